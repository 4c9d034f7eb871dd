"""Figures of several retrievals over several seeds, as tables in Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .figures import mean_and_error
from .report import none_for_nan
from .retrieval import (
    FIGURES,
    Values,
    chance_floors,
    estimate,
    paired_difference,
    retrieval_values,
)
from .tables import figure_text, markdown_table

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
