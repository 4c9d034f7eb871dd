"""The figures of an evaluation: from outcomes of pairs to one row a split, and over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from ..metrics import average_precision, f1_max, mean_over_pairs, roc_auc
from .outcome import Outcomes, PairOutcome

METRICS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match": "label match",
    "symmetric_label_match": "symmetric",
    "label_mass_precision": "mass precision",
}
"""Figures of a table, with the heads of their columns."""

RANKING: dict[str, Callable[..., float]] = {
    "roc_auc": roc_auc,
    "f1_max": f1_max,
    "average_precision": average_precision,
}

BINS = ((0.0, 0.20), (0.20, 0.35), (0.35, 1.01))
"""Sequence identity, from and to; the upper bound is not in the bin."""


def bin_name(bounds: tuple[float, float]) -> str:
    """Name a bin of identity.

    Example:
        >>> [bin_name(bounds) for bounds in BINS]
        ['< 20 %', '20-35 %', '>= 35 %']
    """
    low, high = bounds
    if low <= 0:
        return f"< {100 * high:.0f} %"
    return f">= {100 * low:.0f} %" if high > 1 else f"{100 * low:.0f}-{100 * high:.0f} %"


@dataclass(frozen=True)
class Figures:
    """Hold the figures of one aligner on one split.

    Attributes:
        values: By the names of `METRICS`; NaN where there is nothing to compute one from.
        positives: Pairs of one family that are in them.
        negatives: Pairs of different families that are in them.
        failed: Pairs without a score, which are in no figure.
        unlabelled: Positive pairs with a score, but without a labelled residue on either side.
    """

    values: dict[str, float]
    positives: int
    negatives: int
    failed: int
    unlabelled: int


def figures(outcomes: Outcomes, bounds: tuple[float, float] | None = None) -> Figures:
    """Compute the figures of a list of pairs.

    Args:
        outcomes: What `run_aligner` gave.
        bounds: Take positive pairs of this identity alone; the negatives are all there are, since
            pairs of different families are nearly all of low identity.

    Returns:
        Ranking figures over pairs of both kinds, label match figures over positive ones.
    """
    chosen = [pair for pair in outcomes.pairs if not pair.label or _inside(pair, bounds)]
    scored = [pair for pair in chosen if not pair.failed]
    positives = [pair for pair in scored if pair.label]
    unlabelled = sum(bool(pair.error) for pair in positives)
    values = _ranking(scored)
    for name in METRICS.keys() - RANKING.keys():
        values[name] = _mean(positives, name) if outcomes.has_plans else nan
    return Figures(
        {name: values[name] for name in METRICS},
        len(positives),
        len(scored) - len(positives),
        len(chosen) - len(scored),
        unlabelled,
    )


def _inside(pair: PairOutcome, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= pair.identity < bounds[1]


def _ranking(scored: Sequence[PairOutcome]) -> dict[str, float]:
    labels = np.array([pair.label for pair in scored])
    scores = np.array([pair.score for pair in scored])
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(RANKING, nan)
    return {name: metric(labels, scores) for name, metric in RANKING.items()}


def _mean(positives: Sequence[PairOutcome], name: str) -> float:
    values = [getattr(pair, name) for pair in positives]
    # Pairs without a labelled residue are counted and named beside the figures.
    return mean_over_pairs(values, allow_skipped=True).mean if values else nan


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds, and its standard error, NaN for a single one.

    Args:
        values: One figure a seed.

    Returns:
        Mean, and sample standard deviation (ddof 1) / sqrt(seeds).

    Example:
        >>> mean_and_error([0.25, 0.75])
        (0.5, 0.25)
    """
    array: NDArray[np.float64] = np.asarray(values, dtype=float)
    if not len(array):
        return nan, nan
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else nan
    return float(array.mean()), error
