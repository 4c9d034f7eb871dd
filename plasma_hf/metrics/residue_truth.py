"""Residue truth: how a plan treats the residues that are known to correspond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import as_float_array


@dataclass(frozen=True)
class ResidueTruth:
    """Hold what a plan says about the true pairs of two proteins.

    Attributes:
        n_true: true pairs (query residue, candidate residue).
        best_partner: share of them whose candidate residue has the highest weight in the row of
            the query residue. A weight of 0 finds nothing; k residues that share the highest
            weight count 1/k.
        best_partner_symmetric: mean of that and of the same in the other direction.
        mass: mean plan weight of the true pairs.
        n_called: residue pairs called aligned of which one residue is in a true pair. Others are
            not judged: the truth says nothing about their residues.
        n_correct: true pairs among them.
    """

    n_true: int
    best_partner: float
    best_partner_symmetric: float
    mass: float
    n_called: int
    n_correct: int

    @property
    def precision(self) -> float:
        """Share of the called pairs that are true, NaN where nothing is called."""
        return self.n_correct / self.n_called if self.n_called else float("nan")


def residue_truth(plan: ArrayLike, true_pairs: ArrayLike, threshold: float = 0.5) -> ResidueTruth:
    """Compare a plan with the residues that are known to correspond.

    Args:
        plan: alignment weights, shape `(query_residues, candidate_residues)`.
        true_pairs: residues that correspond, 0-based, shape `(pairs, 2)`, at least one.
        threshold: weight above which two residues are called aligned.

    Returns:
        Shares and counts over the true pairs.

    Raises:
        ValueError: if the plan is no matrix or holds NaN, or a true pair lies outside of it.

    Example:
        >>> truth = residue_truth([[0.9, 0.0], [0.6, 0.3]], [[0, 0], [1, 1]])
        >>> truth.best_partner, truth.best_partner_symmetric, truth.mass, truth.precision
        (0.5, 0.75, 0.6, 0.5)
    """
    plan = as_float_array(plan)
    pairs = np.asarray(true_pairs)
    _check(plan, pairs)
    weights = plan[pairs[:, 0], pairs[:, 1]]
    forward = _best_share(plan, pairs[:, 0], weights)
    backward = _best_share(plan.T, pairs[:, 1], weights)
    called = plan > threshold
    known = np.zeros(plan.shape, dtype=bool)
    known[pairs[:, 0]] = True
    known[:, pairs[:, 1]] = True
    return ResidueTruth(
        n_true=len(pairs),
        best_partner=forward,
        best_partner_symmetric=(forward + backward) / 2,
        mass=float(weights.mean()),
        n_called=int((called & known).sum()),
        n_correct=int((weights > threshold).sum()),
    )


def _best_share(
    plan: NDArray[np.float64], rows: NDArray[np.int64], weights: NDArray[np.float64]
) -> float:
    highest = plan.max(axis=1)[rows]
    sharing = (plan[rows] == highest[:, None]).sum(axis=1)
    return float(np.mean(((weights == highest) & (weights > 0)) / sharing))


def _check(plan: NDArray[np.float64], pairs: NDArray[np.int64]) -> None:
    if plan.ndim != 2 or np.isnan(plan).any():
        raise ValueError(
            f"the plan has shape {plan.shape} and {int(np.isnan(plan).sum())} NaN; give finite "
            "weights of shape (query_residues, candidate_residues), for one pair"
        )
    if pairs.ndim != 2 or pairs.shape[1:] != (2,) or not len(pairs):
        raise ValueError(f"true_pairs have shape {pairs.shape}; give at least one, (pairs, 2)")
    if pairs.min() < 0 or (pairs.max(axis=0) >= plan.shape).any():
        raise ValueError(f"a true pair lies outside of the plan, whose shape is {plan.shape}")
