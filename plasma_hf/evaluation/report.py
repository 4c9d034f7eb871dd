"""Tables in Markdown, and figures as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.alignments import ResidueAlignment, read_reference_alignments
from ..data.pairs import ProteinPair, SiteProtein
from ..io.sequences import BadRecord
from ..metrics import ResidueTruth, residue_truth
from .aligners import Aligner, pair_name
from .aligners import AlignmentPath as TruePairs
from .run import (
    BINS,
    METRICS,
    Figures,
    Outcomes,
    align_in_chunks,
    bin_name,
    figures,
    mean_and_error,
    pair_identities,
    run_aligner,
    spell,
    timed,
)

if TYPE_CHECKING:
    from ..data.splits import PairSplits


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table.

    Args:
        head: Names of the columns.
        rows: Cells as text, as many in a row.
        left: How many columns stand on the left; the others are numbers, on the right.

    Example:
        >>> print(markdown_table(("aligner", "ROC-AUC"), [("eba", "0.9")]))
        | aligner | ROC-AUC |
        |---|--:|
        | eba | 0.9 |
    """
    lines = [_line(head), "|" + "---|" * left + "--:|" * (len(head) - left)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def figure_text(value: float, error: float = float("nan")) -> str:
    """Write a figure to three places, with its standard error where there is one.

    Example:
        >>> figure_text(0.91234), figure_text(0.9, 0.0123), figure_text(float("nan"))
        ('.912', '.900 ± .012', '-')
    """
    if value != value:
        return "-"
    return _short(value) if error != error else f"{_short(value)} ± {_short(error)}"


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


# --- An evaluation: aligners on held-out pairs of several seeds, as tables in Markdown and JSON.


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


# --- Residue truth of aligners: reference alignments, and how plans treat the residues in them.


ALL = (0.0, 1.01)

TRUTH_DEFINITIONS = """\
Each pair of proteins weighs the same. Best partner: share of the true residue pairs whose
candidate residue has the highest weight in the row of the query residue; symmetric: mean of both
directions. Mass: mean plan weight of the true pairs. Precision: true pairs among all called
aligned, {threshold} being the weight above which that is so; a called pair counts where one of its
residues is in a true pair. Called: such pairs by true pair. Identity: identical residues by
aligned residue pair of the reference."""


@dataclass(frozen=True)
class ReferencePair:
    """Hold two proteins and which of their residues correspond.

    Attributes:
        pair: The proteins; they have no labelled site.
        true_pairs: Residues that correspond, 0-based, `(pairs, 2)`.
        identity: Identical residues by aligned residue pair, over all columns.
    """

    pair: ProteinPair
    true_pairs: TruePairs
    identity: float

    @classmethod
    def of(cls, alignment: ResidueAlignment) -> ReferencePair:
        """Take the proteins and their truth from an alignment."""
        letters = (alignment.query, alignment.candidate)
        query, candidate = (
            SiteProtein(name, alignment.name, sequence, (0,) * len(sequence))
            for name, sequence in zip(alignment.names, letters, strict=True)
        )
        return cls(ProteinPair(query, candidate, label=1), alignment.pairs, alignment.identity)


def read_reference_pairs(
    path: str | PathLike[str],
) -> tuple[list[ReferencePair], list[str]]:
    """Read what aligners are judged by; see `plasma_hf.data.alignments`.

    Args:
        path: A list of records in JSON, also .gz, as `read_reference_alignments` takes it.

    Returns:
        The pairs, and a line on each record that cannot be used.

    Raises:
        ValueError: If the file is no list of records.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "reference.json"
        >>> _ = path.write_text('[{"a": "P1", "b": "P2", "seq_a": "MKV", "seq_b": "RV",'
        ...     '"pairs": [[1, 0], [2, 1]]}, {"a": "P3", "b": "P4", "seq_a": "MKV"}]')
        >>> [reference], bad = read_reference_pairs(path)
        >>> reference.true_pairs.tolist(), reference.identity, bad
        ([[1, 0], [2, 1]], 0.5, ['record 2: it lacks seq_b'])
    """
    bad: list[BadRecord] = []
    alignments = read_reference_alignments(path, bad)
    problems = [f"{record.id}: {record.reason}" for record in bad]
    for alignment in alignments:
        if not len(alignment.pairs):
            names = " and ".join(alignment.names)
            problems.append(f"{names} ({alignment.name}): no residues are aligned")
    return [ReferencePair.of(found) for found in alignments if len(found.pairs)], problems


@dataclass
class TruthRun:
    """Hold what one aligner makes of one set of reference alignments.

    Attributes:
        aligner: Its name.
        reference: Name of the set.
        threshold: Weight above which residues are called aligned.
        truths: By pair, with its identity.
        problems: A line on each pair that failed.
        seconds: Wall time of aligning.
    """

    aligner: str
    reference: str
    threshold: float
    truths: list[tuple[float, ResidueTruth]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self, bounds: tuple[float, float] = ALL) -> dict[str, Any]:
        """Return the figures of the pairs in a bin of identity.

        Each pair of proteins weighs the same, or as many true residue pairs as it has in the
        figures `by_residue`.
        """
        chosen = [truth for identity, truth in self.truths if bounds[0] <= identity < bounds[1]]
        called, correct, true = (
            sum(getattr(truth, name) for truth in chosen)
            for name in ("n_called", "n_correct", "n_true")
        )
        weights = [truth.n_true for truth in chosen]
        means = {}
        for name in ("best_partner", "best_partner_symmetric", "mass"):
            values = [getattr(truth, name) for truth in chosen]
            means[name] = float(np.mean(values)) if chosen else nan
            pooled = float(np.average(values, weights=weights)) if chosen else nan
            means[f"{name}_by_residue"] = pooled
        return {
            "pairs": len(chosen),
            "residues": true,
            **means,
            "precision": correct / called if called else nan,
            "called": called / true if true else nan,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the figures over all pairs and by identity, for JSON."""
        bins = {"all": ALL} | {bin_name(bounds): bounds for bounds in BINS}
        figures = {
            name: {key: none_for_nan(value) for key, value in self.figures(bounds).items()}
            for name, bounds in bins.items()
        }
        names = {"aligner": self.aligner, "reference": self.reference, "threshold": self.threshold}
        return names | {"figures": figures, "problems": self.problems}


def run_residue_truth(
    aligner: Aligner,
    references: Sequence[ReferencePair],
    name: str,
    threshold: float = 0.5,
    progress: bool | None = None,
) -> TruthRun | None:
    """Align the proteins of reference alignments and compare plans with the truth.

    Args:
        aligner: What aligns.
        references: The truth.
        name: What to call the set.
        threshold: Plan weight above which residues are called aligned.
        progress: Show progress; None where standard error is a terminal.

    Returns:
        Figures, or None from an aligner without plans.
    """
    run = TruthRun(aligner.name, name, threshold)
    results = align_in_chunks(aligner, [reference.pair for reference in references], progress)
    for reference, ((pair, result), seconds) in zip(references, timed(results), strict=True):
        run.seconds += seconds
        if isinstance(result, Exception):
            run.problems.append(f"{pair_name(pair)}: {spell(result)}")
        elif result.plan is None:
            return None
        else:
            truth = residue_truth(result.plan, reference.true_pairs, threshold)
            run.truths.append((reference.identity, truth))
    return run


COLUMNS = {
    "best_partner": "best partner",
    "best_partner_symmetric": "symmetric",
    "mass": "mass",
    "precision": "precision",
    "called": "called",
}


def truth_markdown(runs: Sequence[TruthRun]) -> str:
    """Write residue truth as tables, one for each reference set and bin of identity.

    Args:
        runs: Of one or several aligners and sets.
    """
    thresholds = sorted({run.threshold for run in runs})
    parts = [TRUTH_DEFINITIONS.format(threshold=" or ".join(map(str, thresholds)))]
    for reference in dict.fromkeys(run.reference for run in runs):
        here = [run for run in runs if run.reference == reference]
        for name, bounds in ({"all": ALL} | {bin_name(b): b for b in BINS}).items():
            rows = [(run.aligner, run.figures(bounds)) for run in here]
            pairs = max(figures["pairs"] for _, figures in rows)
            if pairs:
                parts += [f"### {reference}, identity {name} ({pairs} pairs)", _truth_table(rows)]
        problems = [f"- {run.aligner}: {problem}" for run in here for problem in run.problems]
        if problems:
            parts += [f"{len(problems)} failed:", "\n".join(problems)]
    return "\n\n".join(parts)


def _truth_table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    lines = [
        (aligner, *(figure_text(figures[name]) for name in COLUMNS)) for aligner, figures in rows
    ]
    return markdown_table(("aligner", *COLUMNS.values()), lines)
