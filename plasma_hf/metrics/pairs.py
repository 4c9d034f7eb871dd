"""Rank metrics of pair scores against labels (1 = match, 0 = no match), and means over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRID_THRESHOLDS = 1000
NAMED = 5


def as_float_array(values: ArrayLike) -> NDArray[np.float64]:
    """Convert a list, a numpy array or any torch tensor to float64, without importing torch."""
    if hasattr(values, "detach"):
        # numpy has no bfloat16, so the cast has to happen on the torch side.
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the area under the ROC curve, ties at mid-rank.

    Args:
        labels: 0 or 1 per pair, `(pairs,)`, at least one of each.
        scores: Any finite number per pair, larger for a likelier match, `(pairs,)`.

    Example:
        >>> roc_auc([0, 1, 0, 1], [0.1, 0.4, 0.2, 0.2])
        0.875
    """
    labels, scores = _checked(labels, scores)
    return float(_sklearn_metrics().roc_auc_score(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Compute the step-wise area under the precision-recall curve; see `roc_auc`.

    Example:
        >>> average_precision([0, 1, 1], [0.3, 0.2, 0.9])
        0.8333333333333333
    """
    labels, scores = _checked(labels, scores)
    return float(_sklearn_metrics().average_precision_score(labels, scores))


def f1_max(
    labels: ArrayLike, scores: ArrayLike, mode: Literal["exact", "grid1000"] = "exact"
) -> float:
    """Compute the largest F1 over thresholds, a pair being called a match at score >= threshold.

    Args:
        mode: `"exact"` tries every distinct score. `"grid1000"` is the published protocol:
            1000 equal steps from the lowest to the highest score, where a threshold that
            predicts a single class counts 0; it misses optima, and is 0 for constant scores.

    Example:
        >>> f1_max([0, 1], [0.9, 0.3])
        0.6666666666666666
        >>> f1_max([0, 1], [0.9, 0.3], mode="grid1000")
        0.0
    """
    labels, scores = _checked(labels, scores)
    if mode == "exact":
        precision, recall, _ = _sklearn_metrics().precision_recall_curve(labels, scores)
        total = precision + recall
        return float(np.max(2 * precision * recall / np.where(total > 0, total, 1)))
    if mode != "grid1000":
        raise ValueError(f"mode is {mode!r}; use 'exact' or 'grid1000'")
    thresholds = np.linspace(scores.min(), scores.max(), GRID_THRESHOLDS)
    predicted, hits = (
        len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
        for values in (scores, scores[labels == 1])
    )
    f1 = 2 * hits / (predicted + labels.sum())
    two_classes = (predicted > 0) & (predicted < len(scores))
    return float(np.max(np.where(two_classes, f1, 0.0)))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    labels, scores = as_float_array(labels), as_float_array(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(
            f"labels have shape {labels.shape} and scores {scores.shape}; "
            "give one label and one score for each pair, both of shape (pairs,)"
        )
    unusable = int((~np.isfinite(scores)).sum())
    if unusable:
        raise ValueError(
            f"{unusable} of {len(scores)} scores are NaN or infinite; "
            "find out why these pairs failed, then give them a finite score"
        )
    found = np.unique(labels).tolist()
    if found != [0.0, 1.0]:
        raise ValueError(
            f"labels hold the values {found[:5]}; give 0 (no match) and 1 (match), "
            "with at least one pair of each"
        )
    return labels.astype(np.int64), scores


def _sklearn_metrics() -> ModuleType:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError(
            'rank metrics need scikit-learn; run: pip install "plasma-hf[train]"'
        ) from error
    return metrics


@dataclass(frozen=True)
class PairMean:
    """A mean over the pairs that have a value, NaN where none has."""

    mean: float
    scored: int
    skipped: tuple[str, ...] = ()  # names of the pairs without a value


def mean_over_pairs(
    values: ArrayLike, names: Sequence[str] | None = None, allow_skipped: bool = False
) -> PairMean:
    """Average one value per pair; a pair without one is an error unless that is allowed.

    Published evaluations left out pairs that failed, often negatives, without a word; their
    numbers are those of other pairs.

    Args:
        values: One number per pair, NaN where the pair has none, `(pairs,)`.
        names: What to call the pairs; their numbers by default.
        allow_skipped: Average the others, and return which were left out.

    Example:
        >>> mean_over_pairs([0.5, float("nan")], ["P1 P2", "P1 P3"], allow_skipped=True)
        PairMean(mean=0.5, scored=1, skipped=('P1 P3',))
    """
    values = as_float_array(values)
    called = list(names) if names is not None else [f"pair {i}" for i in range(len(values))]
    missing = np.isnan(values)
    skipped = tuple(name for name, gone in zip(called, missing, strict=True) if gone)
    if skipped and not allow_skipped:
        more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        raise ValueError(
            f"{len(skipped)} of {len(values)} pairs have no value: "
            f"{', '.join(skipped[:NAMED])}{more}; score them, or say allow_skipped=True and "
            "report how many were left out"
        )
    mean = float(values[~missing].mean()) if not missing.all() else float("nan")
    return PairMean(mean, len(values) - len(skipped), skipped)
