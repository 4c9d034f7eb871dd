"""Means over pairs that say how many pairs are in them, and refuse to leave any out unsaid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .arrays import as_float_array

NAMED = 5


@dataclass(frozen=True)
class PairMean:
    """Hold a mean over pairs.

    Attributes:
        mean: over the pairs that have a value, NaN where none has.
        scored: number of them.
        skipped: names of the others.
    """

    mean: float
    scored: int
    skipped: tuple[str, ...] = ()


def mean_over_pairs(
    values: ArrayLike, names: Sequence[str] | None = None, allow_skipped: bool = False
) -> PairMean:
    """Average one value a pair; a pair without one is an error unless that is allowed.

    Published evaluations left out pairs that failed, often negatives, without a word; their
    figures are those of other pairs.

    Args:
        values: one number for each pair, NaN where the pair has none, shape `(pairs,)`.
        names: what to call the pairs; their numbers by default.
        allow_skipped: average the others, and return which were left out.

    Returns:
        The mean, the number of pairs in it, and which are not in it.

    Raises:
        ValueError: if a pair has no value and `allow_skipped` is False.

    Example:
        >>> mean_over_pairs([0.5, 1.0])
        PairMean(mean=0.75, scored=2, skipped=())
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
