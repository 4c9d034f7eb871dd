"""How well sequences find structures and structures sequences, from a matrix of similarities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..data.clusters import KmerIndex
from ..io.structures import StructurePair
from ..metrics.retrieval import best_ranks, ranks_within_family
from ..models.configuration_protalign import ProtAlignConfig
from ..models.modeling_protalign import Gather, ProtAlignModel, Standardize, alone
from .report import figure_text, markdown_table, none_for_nan
from .run import mean_and_error

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


# --- What a trained retrieval is compared with: a pool that learns little, and what needs no model.


class MeanPool(nn.Module):
    """Take the mean of the residues, and a linear map of it.

    Args:
        residue_size: Width of a residue embedding.
        shared_size: Width of the vector.
        standardize: As in `AttentionPool`.
    """

    def __init__(self, residue_size: int, shared_size: int, standardize: bool = False) -> None:
        """Build the map."""
        super().__init__()
        self.linear = nn.Linear(residue_size, shared_size)
        self.scale = Standardize(shared_size) if standardize else None

    def forward(
        self, embeddings: Tensor, mask: Tensor, gather: Gather = alone
    ) -> tuple[Tensor, Tensor]:
        """Pool a batch of proteins, as `AttentionPool` does.

        Args:
            embeddings: `(batch, residues, hidden)`.
            mask: True at residues, `(batch, residues)`.
            gather: For `Standardize`.

        Returns:
            Vectors `(batch, shared)`, and the equal weights of the residues, `(batch, residues)`.
        """
        weights = mask.to(self.linear.weight.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        rows = embeddings.to(weights.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        vectors = self.linear((weights.unsqueeze(1) @ rows).squeeze(1))
        return vectors if self.scale is None else self.scale(vectors, gather), weights


class MeanPoolModel(ProtAlignModel):
    """ProtAlign with one linear map of the mean residue for each side; all else is the same.

    Example:
        >>> import torch
        >>> model = MeanPoolModel(ProtAlignConfig(sequence_size=8, structure_size=4))
        >>> model.get_structure_features(torch.randn(2, 9, 4)).shape
        torch.Size([2, 128])
    """

    _auto_class = None  # a baseline is saved without code: it is no model for the Hub

    def __init__(self, config: ProtAlignConfig) -> None:
        """Put means in the place of attention."""
        super().__init__(config)
        sizes = {"sequence": config.sequence_size, "structure": config.structure_size}
        for side, size in sizes.items():
            setattr(self, f"{side}_pool", MeanPool(size, config.hidden_size, config.standardize))
        self.post_init()


def length_similarity(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare sequences with structures by their numbers of residues alone.

    A structure has as many residues as its own sequence, so this finds more than chance.

    Args:
        pairs: Sequences and structures.

    Returns:
        Minus the difference, `(pairs, pairs)`.
    """
    sequences = np.array([len(pair.sequence) for pair in pairs], dtype=float)
    structures = np.array([len(pair.structure) for pair in pairs], dtype=float)
    return -np.abs(sequences[:, None] - structures[None, :])


def sequence_oracle(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare sequences with the sequences that the structure files have, by common 4-mers.

    No model that reads coordinates alone can know these: an upper bound, which says how many
    proteins of the set have the same sequence.

    Args:
        pairs: Sequences and structures.

    Returns:
        Shares of common 4-mers, `(pairs, pairs)`.
    """
    index = KmerIndex([pair.structure.sequence for pair in pairs])
    return np.stack([index.shares(pair.sequence) for pair in pairs])


# --- Figures of several retrievals over several seeds, as tables in Markdown and JSON.


SHOWN = (
    "recall_at_1",
    "recall_at_5",
    "mrr",
    "reverse_recall_at_1",
    "reverse_recall_at_5",
    "family_recall_at_1",
    "within_family_recall_at_1",
)
"""Figures of the Markdown table; JSON has all."""

COMPARED = ("recall_at_1", "recall_at_5", "mrr")

DEFINITIONS = """\
R@k is the share of queries whose partner ranks within the first k of all candidates by cosine,
equal cosines by their mean rank; MRR the mean of 1 / rank. Family recall counts any member of the
query's family, and within the family other families are left out. Several seeds: mean ± standard
error over seeds, each with its own split. One seed: the figure with its 95 % interval over queries
(Wilson for recall, bootstrap for MRR)."""


@dataclass
class Row:
    """Hold one retrieval over seeds.

    Attributes:
        name: What retrieves.
        by_seed: Values of the queries, by seed.
    """

    name: str
    by_seed: dict[int, Values] = field(default_factory=dict)

    def mean_and_error(self, figure: str) -> tuple[float, float]:
        """Return mean and standard error over seeds, NaN where there is none."""
        return mean_and_error([v[figure].mean() for v in self.by_seed.values() if figure in v])

    def cell(self, figure: str) -> str:
        """Spell a figure, with its standard error or its interval."""
        if len(self.by_seed) > 1:
            return figure_text(*self.mean_and_error(figure))
        (values,) = self.by_seed.values()
        if figure not in values:
            return "-"
        found = estimate(values[figure])
        return f"{figure_text(found.value)} [{figure_text(found.low)}, {figure_text(found.high)}]"

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        figures = {}
        for name in FIGURES:
            mean, error = self.mean_and_error(name)
            by_seed = {
                str(seed): asdict(estimate(values[name]))
                for seed, values in self.by_seed.items()
                if name in values
            }
            figures[name] = {
                "mean": none_for_nan(mean),
                "standard_error": none_for_nan(error),
                "by_seed": by_seed,
            }
        return {"name": self.name, "figures": figures}


class RetrievalReport:
    """Gather retrievals of the same pairs, and write them as one table.

    Args:
        title: What a reader calls the table.

    Example:
        >>> report = RetrievalReport("Models")
        >>> report.add("perfect", 0, np.eye(3), [None] * 3)
        >>> print(report.to_markdown().splitlines()[-3][:30])
        | perfect | 1.000 [.439, 1.000
    """

    def __init__(self, title: str) -> None:
        """Begin with nothing."""
        self.title = title
        self.rows: dict[str, Row] = {}
        self.floors: dict[int, dict[str, dict[str, float]]] = {}
        self.queries: dict[int, int] = {}

    def add(
        self, name: str, seed: int, similarity: ArrayLike, families: Sequence[str | None]
    ) -> None:
        """Add one retrieval of one seed.

        Args:
            name: What retrieves.
            seed: Of the split.
            similarity: Of sequences with structures, `(pairs, pairs)`.
            families: Of each pair, `(pairs,)`.
        """
        values = retrieval_values(similarity, families)
        self.rows.setdefault(name, Row(name)).by_seed[seed] = values
        self.queries[seed] = len(families)
        self.floors.setdefault(seed, chance_floors(families))

    def differences(self) -> dict[str, dict[str, Any]]:
        """Compare every retrieval with the first one, on the same queries of all seeds."""
        first, *others = self.rows.values()
        found: dict[str, dict[str, Any]] = {}
        for row in others:
            seeds = [seed for seed in first.by_seed if seed in row.by_seed]
            for name in COMPARED if seeds else ():
                ours, theirs = (
                    np.concatenate([each.by_seed[seed][name] for seed in seeds])
                    for each in (first, row)
                )
                key = f"{first.name} - {row.name}"
                found.setdefault(key, {})[name] = asdict(paired_difference(ours, theirs))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "title": self.title,
            "queries": {str(seed): count for seed, count in self.queries.items()},
            "rows": [row.to_dict() for row in self.rows.values()],
            "floors": {name: self._floor(name) for name in self._floor_names()},
            "differences": self.differences(),
        }

    def to_markdown(self) -> str:
        """Write the table, with the floors below the retrievals."""
        names = [
            name for name in SHOWN if any(name in v for r in self.rows.values() for v in _all(r))
        ]
        lines = [(row.name, *(row.cell(name) for name in names)) for row in self.rows.values()]
        for floor in self._floor_names():
            values = self._floor(floor)
            lines.append((floor, *(figure_text(values.get(name, np.nan)) for name in names)))
        titles = [FIGURES[name].removesuffix(", sequence to structure") for name in names]
        counts = ", ".join(f"{count} (seed {seed})" for seed, count in self.queries.items())
        return f"Test pairs: {counts}.\n\n{markdown_table((self.title, *titles), lines)}"

    def _floor_names(self) -> list[str]:
        return list(dict.fromkeys(name for floors in self.floors.values() for name in floors))

    def _floor(self, name: str) -> dict[str, float]:
        """Return the mean of a floor over seeds."""
        by_seed: list[Mapping[str, float]] = [floors[name] for floors in self.floors.values()]
        shared = [figure for figure in by_seed[0] if all(figure in each for each in by_seed)]
        return {figure: float(np.mean([each[figure] for each in by_seed])) for figure in shared}


def _all(row: Row) -> list[Values]:
    return list(row.by_seed.values())
