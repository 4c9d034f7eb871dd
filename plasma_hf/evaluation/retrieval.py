"""How well sequences find structures and structures sequences: recalls, intervals, floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..data.clusters import KmerIndex
from ..io.formats import markdown_table
from ..io.structures import StructurePair
from ..metrics.retrieval import best_ranks, ranks_within_family
from ..models.modeling_protalign import ProtAlignModel
from .report import mean_and_error, metric_text, summary

PLACES = (1, 5)
DIRECTIONS = {"": "sequence to structure", "reverse_": "structure to sequence"}
METRICS = {
    f"{prefix}{name}": f"{title}, {direction}"
    for prefix, direction in DIRECTIONS.items()
    for name, title in {
        "recall_at_1": "R@1",
        "recall_at_5": "R@5",
        "mrr": "MRR",
        "family_recall_at_1": "family R@1",
        "family_recall_at_5": "family R@5",
        "within_family_recall_at_1": "R@1 within the family",
    }.items()
}
"""Metrics of a retrieval by name, with what a reader calls them."""

COMPARED = ("recall_at_1", "recall_at_5", "mrr")
SHOWN = (
    *COMPARED,
    *("reverse_recall_at_1", "reverse_recall_at_5"),
    *("family_recall_at_1", "within_family_recall_at_1"),
)
"""Metrics of the Markdown table; JSON has all."""

DEFINITIONS = """\
R@k is the share of queries whose partner ranks within the first k of all candidates by cosine,
equal cosines by their mean rank; MRR the mean of 1 / rank. Family recall counts any member of the
query's family, and within the family other families are left out. Several seeds: mean ± standard
error over seeds, each with its own split. One seed: the mean with its 95 % interval over queries
(Wilson for recall, bootstrap for MRR)."""

Z = 1.959964
RESAMPLES = 2000

Vectors = NDArray[np.float32]
Values = dict[str, NDArray[np.float64]]
"""What each query contributes to a metric, `(queries,)`, by the names of `METRICS`."""


def retrieval_values(similarity: ArrayLike, families: Sequence[str | None]) -> Values:
    """Compute what each query contributes to the metrics of a retrieval.

    Args:
        similarity: Of sequences with structures, `(pairs, pairs)`; row i and column i belong
            together.
        families: Of each pair, `(pairs,)`; one of None is a family of its own.

    Returns:
        Values `(queries,)` by the names of `METRICS`: hits as 0 and 1, reciprocal ranks. Equal
        similarities count by their mean rank. `within_family_recall_at_1` has the queries alone
        whose family has several members, and is left out where there are none.
    """
    similarity = np.asarray(similarity)
    numbers = _family_numbers(families)
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
    return {name: values[name] for name in METRICS if name in values}


def _family_numbers(families: Sequence[str | None]) -> NDArray[np.int64]:
    """Number the families; None is a new one each time."""
    known: dict[object, int] = {}
    keys = [object() if family is None else family for family in families]
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class Estimate:
    """Hold the mean over queries, the bounds of its 95 % confidence interval, and their number."""

    value: float
    low: float
    high: float
    queries: int


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Give the mean over queries, with an interval.

    Shares of hits have that of Wilson (1927), which stays sensible at 0 and 1; other means one by
    bootstrap over queries.

    Example:
        >>> found = estimate(np.array([1.0] * 92 + [0.0] * 123))
        >>> f"{found.value:.3f} {found.low:.3f} {found.high:.3f}"
        '0.428 0.364 0.495'
    """
    mean, n = float(values.mean()), len(values)
    if not np.isin(values, (0, 1)).all():
        return _bootstrap(values)
    middle = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return Estimate(mean, max(middle - half, 0.0), min(middle + half, 1.0), n)


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Estimate:
    """Give the mean difference of two models on the same queries, by paired bootstrap."""
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{len(ours)} queries and {len(theirs)}; give values of the same queries, in order"
        )
    return _bootstrap(ours - theirs)


def _bootstrap(values: NDArray[np.float64]) -> Estimate:
    drawn = np.random.default_rng(0)  # the same values give the same interval
    means = [drawn.choice(values, len(values)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def chance_floors(families: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """Give the expected metrics of two retrievals that know little.

    "chance" ranks at random, "random within family" finds the family and ranks it at random.

    Example:
        >>> floors = chance_floors(["P", "P", "Q", "Q"])
        >>> floors["chance"]["recall_at_1"], floors["random within family"]["recall_at_1"]
        (0.25, 0.5)
    """
    numbers = _family_numbers(families)
    sizes, n = np.bincount(numbers)[numbers], len(numbers)
    harmonic = np.cumsum(1 / np.arange(1, n + 1))
    by_chance = {}
    for k in PLACES:  # one of `size` among `n` is within k, drawn at random
        drawn = min(k, n)
        missed = [math.comb(n - size, drawn) / math.comb(n, drawn) for size in sizes.tolist()]
        by_chance[k] = 1 - np.mean(missed)
    floors = {}
    for name, among, family in (
        ("chance", np.full(n, n), by_chance),
        ("random within family", sizes, dict.fromkeys(PLACES, 1.0)),
    ):
        found = {f"recall_at_{k}": np.minimum(k / among, 1).mean() for k in PLACES}
        found["mrr"] = (harmonic[among - 1] / among).mean()
        if (sizes > 1).any():
            found["within_family_recall_at_1"] = (1 / sizes[sizes > 1]).mean()
        found |= {f"family_recall_at_{k}": share for k, share in family.items()}
        floors[name] = {f"{prefix}{m}": float(v) for prefix in DIRECTIONS for m, v in found.items()}
    return floors


def pair_vectors(model: ProtAlignModel, pairs: Sequence[StructurePair]) -> tuple[Vectors, Vectors]:
    """Return the vectors of sequences and of structures, `(pairs, shared)` each, of length 1."""
    sequences = model.embed_sequences([pair.sequence for pair in pairs])
    structures = model.embed_structures([pair.structure for pair in pairs])
    return sequences.numpy(), structures.numpy()


def length_similarity(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare numbers of residues, minus their difference: this alone finds more than chance."""
    sequences = np.array([len(pair.sequence) for pair in pairs], dtype=float)
    structures = np.array([len(pair.structure) for pair in pairs], dtype=float)
    return -np.abs(sequences[:, None] - structures)


def sequence_oracle(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare sequences with those of the structure files, which coordinates do not tell.

    Shares of common 4-mers: an upper bound, which says how many proteins have the same sequence.
    """
    index = KmerIndex([pair.structure.sequence for pair in pairs])
    return np.stack([index.shares(pair.sequence) for pair in pairs])


class RetrievalReport:
    """Gather retrievals of the same pairs, and write them as one table."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, dict[int, Values]] = {}  # by name and seed
        self.families: dict[int, Sequence[str | None]] = {}  # of the queries, by seed

    def add(
        self, name: str, seed: int, similarity: ArrayLike, families: Sequence[str | None]
    ) -> None:
        """Add one retrieval of the split of one seed; see `retrieval_values`."""
        self.rows.setdefault(name, {})[seed] = retrieval_values(similarity, families)
        self.families[seed] = families

    def add_baselines(self, seed: int, pairs: Sequence[StructurePair]) -> None:
        """Add what needs no model: `length_similarity` and `sequence_oracle`."""
        families = [pair.family for pair in pairs]
        self.add("length alone", seed, length_similarity(pairs), families)
        self.add("sequence oracle", seed, sequence_oracle(pairs), families)

    def differences(self) -> dict[str, dict[str, Any]]:
        """Compare every retrieval with the first one, on the same queries of all seeds."""
        (first, ours), *others = self.rows.items()
        found: dict[str, dict[str, Any]] = {}
        for name, theirs in others:
            seeds = [seed for seed in ours if seed in theirs]
            for metric in COMPARED if seeds else ():
                sides = ([by[seed][metric] for seed in seeds] for by in (ours, theirs))
                difference = asdict(paired_difference(*map(np.concatenate, sides)))
                found.setdefault(f"{first} - {name}", {})[metric] = difference
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "title": self.title,
            "queries": {str(seed): len(each) for seed, each in self.families.items()},
            "rows": [{"name": name, "figures": _metrics(by)} for name, by in self.rows.items()],
            "floors": self._mean_floors(),
            "differences": self.differences(),
        }

    def to_markdown(self) -> str:
        """Write the table, with the floors below the retrievals."""
        every = [values for by_seed in self.rows.values() for values in by_seed.values()]
        names = [name for name in SHOWN if any(name in values for values in every)]
        lines = [(row, *(_cell(by, name) for name in names)) for row, by in self.rows.items()]
        for floor, values in self._mean_floors().items():
            lines.append((floor, *(metric_text(values.get(name, np.nan)) for name in names)))
        titles = [METRICS[name].removesuffix(", sequence to structure") for name in names]
        counts = ", ".join(f"{len(each)} (seed {seed})" for seed, each in self.families.items())
        return f"Test pairs: {counts}.\n\n{markdown_table((self.title, *titles), lines)}"

    def _mean_floors(self) -> dict[str, dict[str, float]]:
        """Return the means of the floors over seeds, of the metrics that all seeds have."""
        floors = [chance_floors(families) for families in self.families.values()]
        return {
            name: {
                metric: float(np.mean([floor[name][metric] for floor in floors]))
                for metric in first
                if all(metric in floor[name] for floor in floors)
            }
            for name, first in floors[0].items()
        }


def _metrics(by_seed: dict[int, Values]) -> dict[str, Any]:
    found = {}
    for name in METRICS:
        some = {str(seed): values[name] for seed, values in by_seed.items() if name in values}
        estimates = {seed: asdict(estimate(values)) for seed, values in some.items()}
        found[name] = summary([values.mean() for values in some.values()], estimates)
    return found


def _cell(by_seed: dict[int, Values], metric: str) -> str:
    """Write a metric, with its standard error or, of a single seed, its interval."""
    some = [values[metric] for values in by_seed.values() if metric in values]
    if len(by_seed) > 1 or not some:
        return metric_text(*mean_and_error([values.mean() for values in some]))
    found = estimate(some[0])
    return f"{metric_text(found.value)} [{metric_text(found.low)}, {metric_text(found.high)}]"
