"""An evaluation: aligners on held-out pairs of several seeds, as tables in Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data.pairs import ProteinPair
from .aligner import Aligner
from .figures import BINS, METRICS, Figures, bin_name, figures, mean_and_error
from .outcome import Outcomes, pair_identities, run_aligner
from .tables import figure_text, markdown_table

if TYPE_CHECKING:
    from ..data.splits import PairSplits

SPLITS = {
    "test": "Interpolation: pairs held out of training",
    "test_hard": "Extrapolation: families held out of training",
}
NAMED_PROBLEMS = 50

DEFINITIONS = """\
Figures are means over the seeds ± standard error. Label match is the share of the candidate's
site that the plan finds from the query's, symmetric the mean of both directions, mass precision
the share of the mass sent from the query's site that lands on the candidate's (0 where none is
sent); all three are means over positive pairs. Identity is per column of a global alignment
(BLOSUM62, gap 11/1, end gaps charged); a bin has the positive pairs of that identity, and all
negative ones."""


@dataclass(frozen=True)
class Run:
    """Hold what one aligner makes of one split of one seed."""

    task: str
    backbone: str
    aligner: str
    split: str
    seed: int
    outcomes: Outcomes


@dataclass
class Row:
    """Hold one line of a table: one aligner on one split, over seeds.

    Attributes:
        task: What the sites are.
        backbone: What embeddings the aligner reads, "-" for none.
        aligner: Its name.
        split: "test" or "test_hard".
        seeds: In order.
        by_seed: Figures of each.
    """

    task: str
    backbone: str
    aligner: str
    split: str
    seeds: list[int] = field(default_factory=list)
    by_seed: list[Figures] = field(default_factory=list)

    def mean_and_error(self, name: str) -> tuple[float, float]:
        """Return mean and standard error of a figure, by its name in `METRICS`."""
        return mean_and_error([figures.values[name] for figures in self.by_seed])

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON, figures that cannot be computed as None."""
        counts = {
            name: [getattr(figures, name) for figures in self.by_seed]
            for name in ("positives", "negatives", "failed", "unlabelled")
        }
        return {
            "task": self.task,
            "backbone": self.backbone,
            "aligner": self.aligner,
            "split": self.split,
            "seeds": self.seeds,
            "pairs": counts,
            "figures": {name: self._figure(name) for name in METRICS},
        }

    def _figure(self, name: str) -> dict[str, Any]:
        mean, error = self.mean_and_error(name)
        values = [none_for_nan(figures.values[name]) for figures in self.by_seed]
        return {
            "mean": none_for_nan(mean),
            "standard_error": none_for_nan(error),
            "by_seed": values,
        }


@dataclass
class Evaluation:
    """Hold the runs of an evaluation, and write them as tables.

    Attributes:
        runs: One for each task, seed, split and aligner.
    """

    runs: list[Run] = field(default_factory=list)

    @property
    def problems(self) -> list[dict[str, Any]]:
        """List the pairs that failed, or have no label match, with the reason."""
        return [
            {"task": run.task, "aligner": run.aligner, "split": run.split, "seed": run.seed}
            | {"query": pair.query, "candidate": pair.candidate, "error": pair.error}
            for run in self.runs
            for pair in run.outcomes.pairs
            if pair.error
        ]

    def rows(self, bounds: tuple[float, float] | None = None) -> list[Row]:
        """Return one row for each task, backbone, aligner and split, in the order of the runs.

        Args:
            bounds: Positive pairs of this identity alone; see `figures`.
        """
        rows: dict[tuple[str, ...], Row] = {}
        for run in self.runs:
            key = (run.task, run.backbone, run.aligner, run.split)
            row = rows.setdefault(key, Row(*key))
            row.seeds.append(run.seed)
            row.by_seed.append(figures(run.outcomes, bounds))
        return list(rows.values())

    def to_dict(self) -> dict[str, Any]:
        """Return rows, rows by identity, and problems, for JSON."""
        by_identity = {
            bin_name(bounds): [row.to_dict() for row in self.rows(bounds)] for bounds in BINS
        }
        rows = [row.to_dict() for row in self.rows()]
        return {"rows": rows, "by_identity": by_identity, "problems": self.problems}

    def seconds(self) -> list[dict[str, Any]]:
        """Return the time that each run took, apart from the figures, which can be repeated."""
        return [
            {"task": run.task, "backbone": run.backbone, "aligner": run.aligner}
            | {"split": run.split, "seed": run.seed, "pairs": len(run.outcomes.pairs)}
            | {"seconds": run.outcomes.seconds}
            for run in self.runs
        ]

    def to_markdown(self) -> str:
        """Write all tables, and the pairs that failed."""
        parts = [DEFINITIONS]
        for split, title in SPLITS.items():
            rows = [row for row in self.rows() if row.split == split]
            if rows:
                parts += [f"## {title}", self._counts(rows), _table(rows)]
                parts += list(self._identity_tables(split))
        parts += list(self._problem_list())
        return "\n\n".join(parts)

    def _counts(self, rows: Sequence[Row]) -> str:
        counts = {
            (row.task, *sums): None
            for row in rows
            if (sums := tuple(sum(_count(f) for f in row.by_seed) for _count in COUNTS))
        }
        seeds = ", ".join(str(seed) for seed in rows[0].seeds)
        lines = [
            f"{task}, seeds {seeds}: {positive} positive and {negative} negative pairs scored, "
            f"{failed} failed."
            for task, positive, negative, failed in counts
        ]
        return "\n".join(lines)

    def _identity_tables(self, split: str) -> Iterator[str]:
        names = ("roc_auc", "average_precision", "label_match", "symmetric_label_match")
        for bounds in BINS:
            rows = [row for row in self.rows(bounds) if row.split == split]
            if any(figures.positives for row in rows for figures in row.by_seed):
                positives = max(sum(f.positives for f in row.by_seed) for row in rows)
                yield f"### Identity {bin_name(bounds)} ({positives} positive pairs)"
                yield _table(rows, names)

    def _problem_list(self) -> Iterator[str]:
        problems = self.problems
        if not problems:
            return
        yield f"## {len(problems)} pairs failed, or have no label match"
        lines = [
            f"- {p['aligner']}, {p['task']}, {p['split']}, seed {p['seed']}: "
            f"{p['query']} and {p['candidate']}: {p['error']}"
            for p in problems[:NAMED_PROBLEMS]
        ]
        if len(problems) > NAMED_PROBLEMS:
            lines.append(f"- and {len(problems) - NAMED_PROBLEMS} more, in the JSON file")
        yield "\n".join(lines)


COUNTS: tuple[Callable[[Figures], int], ...] = (
    lambda figures: figures.positives,
    lambda figures: figures.negatives,
    lambda figures: figures.failed,
)


def _table(rows: Sequence[Row], names: Sequence[str] = tuple(METRICS)) -> str:
    head = ("task", "backbone", "aligner", *(METRICS[name] for name in names))
    lines = [
        (
            row.task,
            row.backbone,
            row.aligner,
            *(figure_text(*row.mean_and_error(name)) for name in names),
        )
        for row in rows
    ]
    return markdown_table(head, lines, left=3)


def none_for_nan(value: float) -> float | None:
    """Return a figure as JSON can hold it."""
    return None if math.isnan(value) else value


def evaluate_splits(
    aligners: Callable[[int], Sequence[Aligner]],
    splits: Sequence[PairSplits],
    task: str,
    parts: Sequence[str] = tuple(SPLITS),
    progress: bool | None = None,
) -> list[Run]:
    """Evaluate aligners on the held-out pairs of several seeds.

    Args:
        aligners: Gives those of a seed, of the same names for each: a head trained on one split
            must not be judged by another.
        splits: One for each seed.
        task: What the sites are.
        parts: Which pairs: "test", "test_hard" or both.
        progress: Show progress; None where standard error is a terminal.

    Returns:
        One run for each seed, part and aligner; a part without pairs has none.
    """
    runs = []
    for split in splits:
        ready = aligners(split.seed)
        for part in parts:
            pairs: Sequence[ProteinPair] = getattr(split, part)
            if not len(pairs):
                continue
            identities = pair_identities(pairs, progress=progress)
            for aligner in ready:
                outcomes = run_aligner(aligner, pairs, identities, progress)
                backbone = getattr(aligner, "backbone", "-")
                runs.append(Run(task, backbone, aligner.name, part, split.seed, outcomes))
    return runs
