"""How well sequences find structures and structures sequences, from a matrix of similarities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..metrics.retrieval import best_ranks, ranks_within_family

PLACES = (1, 5)
DIRECTIONS = {"": "sequence to structure", "reverse_": "structure to sequence"}
FIGURES = {
    f"{prefix}{name}": f"{title}, {direction}"
    for prefix, direction in DIRECTIONS.items()
    for name, title in (
        ("recall_at_1", "R@1"),
        ("recall_at_5", "R@5"),
        ("mrr", "MRR"),
        ("family_recall_at_1", "family R@1"),
        ("family_recall_at_5", "family R@5"),
        ("within_family_recall_at_1", "R@1 within the family"),
    )
}
"""Figures of an evaluation by name, with what a reader calls them."""

Z = 1.959964
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """Hold a figure and its 95 % confidence interval.

    Attributes:
        value: Mean over queries.
        low: Lower bound.
        high: Upper bound.
        queries: How many the mean is over.
    """

    value: float
    low: float
    high: float
    queries: int


Values = dict[str, NDArray[np.float64]]
"""What each query contributes to a figure, `(queries,)`, by the names of `FIGURES`."""


def retrieval_values(similarity: ArrayLike, families: Sequence[str | None]) -> Values:
    """Compute what each query contributes to the figures of a retrieval.

    Args:
        similarity: Of sequences with structures, `(pairs, pairs)`; row i and column i belong
            together.
        families: Of each pair, `(pairs,)`; one of None is a family of its own.

    Returns:
        Values `(queries,)` by the names of `FIGURES`: hits as 0 and 1, reciprocal ranks. Equal
        similarities count by their mean rank. `within_family_recall_at_1` has the queries alone
        whose family has several members, and is left out where there are none.

    Raises:
        ValueError: If the matrix is not square, holds NaN, or disagrees with the families.

    Example:
        >>> values = retrieval_values([[0.9, 0.1], [0.8, 0.3]], ["P", "P"])
        >>> values["recall_at_1"].tolist(), values["family_recall_at_1"].tolist()
        ([1.0, 0.0], [1.0, 1.0])
    """
    similarity = np.asarray(similarity)
    numbers = family_numbers(families)
    several = np.bincount(numbers)[numbers] > 1
    values: Values = {}
    for prefix, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        own, family = best_ranks(matrix), best_ranks(matrix, numbers)
        for k in PLACES:
            values[f"{prefix}recall_at_{k}"] = (own <= k).astype(float)
            values[f"{prefix}family_recall_at_{k}"] = (family <= k).astype(float)
        values[f"{prefix}mrr"] = 1 / own
        if several.any():
            within = ranks_within_family(matrix, numbers)[several]
            values[f"{prefix}within_family_recall_at_1"] = (within <= 1).astype(float)
    return {name: values[name] for name in FIGURES if name in values}


def family_numbers(families: Sequence[str | None]) -> NDArray[np.int64]:
    """Number the families; None is a new one each time.

    Example:
        >>> family_numbers(["P", None, "P", None]).tolist()
        [0, 1, 0, 2]
    """
    known: dict[object, int] = {}
    keys = [object() if family is None else family for family in families]
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Give the mean over queries, with an interval.

    Shares of hits have that of Wilson (1927), which stays sensible at 0 and 1; other means one by
    bootstrap over queries.

    Args:
        values: `(queries,)`.

    Example:
        >>> found = estimate(np.array([1.0] * 92 + [0.0] * 123))
        >>> f"{found.value:.3f} {found.low:.3f} {found.high:.3f}"
        '0.428 0.364 0.495'
    """
    mean, n = float(values.mean()), len(values)
    if np.isin(values, (0, 1)).all():
        middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
        return Estimate(mean, max(middle - half, 0.0), min(middle + half, 1.0), n)
    low, high = np.percentile(_resampled_means(values), (2.5, 97.5))
    return Estimate(mean, float(low), float(high), n)


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """Give the mean difference of two models on the same queries, by paired bootstrap.

    Args:
        ours: Values of one model, `(queries,)`.
        theirs: Values of the other, `(queries,)`, of the same queries.

    Returns:
        The difference ours - theirs; an interval around 0 says that the queries do not tell them
        apart.

    Raises:
        ValueError: If the numbers of queries differ.

    Example:
        >>> found = paired_difference(np.ones(8), np.zeros(8))
        >>> found.value, found.low
        (1.0, 1.0)
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{len(ours)} queries and {len(theirs)}; give values of the same queries, in order"
        )
    difference = ours - theirs
    low, high = np.percentile(_resampled_means(difference), (2.5, 97.5))
    return Estimate(float(difference.mean()), float(low), float(high), len(ours))


def _resampled_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    drawn = np.random.default_rng(0)  # the same values give the same interval
    return np.array([drawn.choice(values, len(values)).mean() for _ in range(RESAMPLES)])


def chance_floors(families: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """Give the expected figures of two retrievals that know little.

    Args:
        families: Of each pair, `(pairs,)`.

    Returns:
        "chance" ranks at random, "random within family" finds the family and ranks it at random.
        Both have the figures of `FIGURES`.

    Example:
        >>> floors = chance_floors(["P", "P", "Q", "Q"])
        >>> floors["chance"]["recall_at_1"], floors["random within family"]["recall_at_1"]
        (0.25, 0.5)
    """
    numbers = family_numbers(families)
    sizes = np.bincount(numbers)[numbers]
    n = len(numbers)
    whole = np.full(n, n)
    floors: dict[str, dict[str, float]] = {"chance": {}, "random within family": {}}
    for prefix in DIRECTIONS:
        for name, among in (("chance", whole), ("random within family", sizes)):
            figures = floors[name]
            for k in PLACES:
                figures[f"{prefix}recall_at_{k}"] = float(np.minimum(k / among, 1).mean())
            harmonic = np.cumsum(1 / np.arange(1, n + 1))
            figures[f"{prefix}mrr"] = float((harmonic[among - 1] / among).mean())
            if (sizes > 1).any():
                figures[f"{prefix}within_family_recall_at_1"] = float((1 / sizes[sizes > 1]).mean())
        for k in PLACES:
            chance = [_found_by_chance(n, int(size), k) for size in sizes]
            floors["chance"][f"{prefix}family_recall_at_{k}"] = float(np.mean(chance))
            floors["random within family"][f"{prefix}family_recall_at_{k}"] = 1.0
    return floors


def _found_by_chance(n: int, size: int, k: int) -> float:
    """Give the probability that one of `size` among `n` stands in k places, drawn at random."""
    return 1 - math.comb(n - size, k) / math.comb(n, k) if n > k else 1.0
