"""How an alignment plan treats residues: those of a site, and those of a reference alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .pairs import as_float_array

Array = NDArray[np.float64]


def label_match_score(
    plan: ArrayLike, query_site_labels: ArrayLike, candidate_site_labels: ArrayLike
) -> float:
    """Compute the share of the candidate's site that is aligned to the query's site.

    It is a recall: weight that lands outside the candidate's site costs nothing, and swapping
    query and candidate changes the value. Average it over positive pairs only.

    Args:
        plan: Alignment weights, `(query_residues, candidate_residues)`.
        query_site_labels: 1 inside the site, 0 outside, `(query_residues,)`.
        candidate_site_labels: The same for the candidate, `(candidate_residues,)`.

    Returns:
        `1 - sum_j relu(c_j - sum_i q_i plan_ij) / sum_j c_j` with site labels q and c, or NaN
        when no residue of the candidate is labelled.

    Example:
        >>> label_match_score([[1.0, 0.0], [0.0, 0.5]], [1, 1], [1, 1])
        0.75
    """
    return _recall(*_checked(plan, query_site_labels, candidate_site_labels))


def symmetric_label_match_score(
    plan: ArrayLike, query_site_labels: ArrayLike, candidate_site_labels: ArrayLike
) -> float:
    """Average the `label_match_score` over both directions; NaN when a protein has no site.

    Example:
        >>> symmetric_label_match_score([[1.0, 0.0], [0.0, 0.0]], [1, 1], [1, 0])
        0.75
    """
    plan, query, candidate = _checked(plan, query_site_labels, candidate_site_labels)
    return (_recall(plan, query, candidate) + _recall(plan.T, candidate, query)) / 2


def label_mass_precision(
    plan: ArrayLike, query_site_labels: ArrayLike, candidate_site_labels: ArrayLike
) -> float:
    """Compute the share of the mass sent from the query's site that lands on the candidate's.

    It is the precision beside the recall of `label_match_score`, whose arguments it has. A plan
    that sends nothing from the query's site scores 0: what finds nothing is not precise, and a
    mean over pairs then holds the same pairs for every method.

    Returns:
        `sum_ij q_i plan_ij c_j / sum_ij q_i plan_ij` with site labels q and c, or NaN when one
        of the proteins has no labelled residue.

    Example:
        >>> label_mass_precision([[0.75, 0.25], [0.9, 0.9]], [1, 0], [1, 0])
        0.75
    """
    plan, query, candidate = _checked(plan, query_site_labels, candidate_site_labels)
    if not query.any() or not candidate.any():
        return float("nan")
    sent = query @ plan  # (candidate_residues,)
    total = float(sent.sum())
    return float(sent @ candidate) / total if total > 0 else 0.0


def _recall(plan: Array, query: Array, candidate: Array) -> float:
    if candidate.sum() == 0:
        return float("nan")
    missing = np.maximum(candidate - query @ plan, 0.0)  # (candidate_residues,)
    return float(1.0 - missing.sum() / candidate.sum())


def _checked(
    plan: ArrayLike, query_site_labels: ArrayLike, candidate_site_labels: ArrayLike
) -> tuple[Array, Array, Array]:
    plan = as_float_array(plan)
    query, candidate = as_float_array(query_site_labels), as_float_array(candidate_site_labels)
    if query.ndim != 1 or candidate.ndim != 1 or plan.shape != (query.size, candidate.size):
        raise ValueError(
            f"the plan has shape {plan.shape} but the site labels {query.shape} and "
            f"{candidate.shape}; give a plan of shape (query_residues, candidate_residues) "
            "without padding, for one pair"
        )
    if np.isnan(plan).any():
        raise ValueError("the plan holds NaN; check the embeddings it was computed from")
    for name, labels in (("query", query), ("candidate", candidate)):
        if not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(f"{name}_site_labels leave [0, 1]; give 0 or 1 for each residue")
    return plan, query, candidate


@dataclass(frozen=True)
class ReferenceAgreement:
    """What a plan says about the pairs of a reference alignment, the true pairs.

    Attributes:
        n_true: True pairs (query residue, candidate residue).
        best_partner: Share of them whose candidate residue has the highest weight in the row of
            the query residue. A weight of 0 finds nothing; k residues that share the highest
            weight count 1/k.
        best_partner_symmetric: Mean of that and of the same in the other direction.
        mass: Mean plan weight of the true pairs.
        n_called: Residue pairs called aligned of which one residue is in a true pair. Others are
            not judged: the reference says nothing about their residues.
        n_correct: True pairs among them.
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


def compare_with_reference(
    plan: ArrayLike, true_pairs: ArrayLike, threshold: float = 0.5
) -> ReferenceAgreement:
    """Compare a plan with a reference alignment: residues that are known to correspond.

    Args:
        plan: Alignment weights, `(query_residues, candidate_residues)`.
        true_pairs: Residues that correspond, 0-based, `(pairs, 2)`, at least one.
        threshold: Weight above which two residues are called aligned.

    Example:
        >>> found = compare_with_reference([[0.9, 0.0], [0.6, 0.3]], [[0, 0], [1, 1]])
        >>> found.best_partner, found.best_partner_symmetric, found.mass, found.precision
        (0.5, 0.75, 0.6, 0.5)
    """
    plan, pairs = as_float_array(plan), np.asarray(true_pairs)
    if plan.ndim != 2 or np.isnan(plan).any():
        raise ValueError(
            f"the plan has shape {plan.shape} and {int(np.isnan(plan).sum())} NaN; give finite "
            "weights of shape (query_residues, candidate_residues), for one pair"
        )
    if pairs.ndim != 2 or pairs.shape[1:] != (2,) or not len(pairs):
        raise ValueError(f"true_pairs have shape {pairs.shape}; give at least one, (pairs, 2)")
    if pairs.min() < 0 or (pairs.max(axis=0) >= plan.shape).any():
        raise ValueError(f"a true pair lies outside of the plan, whose shape is {plan.shape}")
    weights = plan[pairs[:, 0], pairs[:, 1]]
    forward = _best_share(plan, pairs[:, 0], weights)
    backward = _best_share(plan.T, pairs[:, 1], weights)
    known = np.zeros(plan.shape, dtype=bool)
    known[pairs[:, 0]] = True
    known[:, pairs[:, 1]] = True
    return ReferenceAgreement(
        n_true=len(pairs),
        best_partner=forward,
        best_partner_symmetric=(forward + backward) / 2,
        mass=float(weights.mean()),
        n_called=int(((plan > threshold) & known).sum()),
        n_correct=int((weights > threshold).sum()),
    )


def _best_share(plan: Array, rows: NDArray[np.int64], weights: Array) -> float:
    highest = plan.max(axis=1)[rows]
    sharing = (plan[rows] == highest[:, None]).sum(axis=1)
    return float(np.mean(((weights == highest) & (weights > 0)) / sharing))
