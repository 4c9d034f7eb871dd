"""Residue truth of aligners: reference alignments, and how plans treat the residues in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from os import PathLike
from typing import Any

import numpy as np

from ..data.alignments import ResidueAlignment, read_reference_alignments
from ..data.pairs import ProteinPair, SiteProtein
from ..data.sequences import BadRecord
from ..metrics import ResidueTruth, residue_truth
from .aligner import Aligner, pair_name
from .aligner import Path as TruePairs
from .figures import BINS, bin_name
from .outcome import align_in_chunks, spell, timed
from .report import none_for_nan
from .tables import figure_text, markdown_table

ALL = (0.0, 1.01)

DEFINITIONS = """\
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
    parts = [DEFINITIONS.format(threshold=" or ".join(map(str, thresholds)))]
    for reference in dict.fromkeys(run.reference for run in runs):
        here = [run for run in runs if run.reference == reference]
        for name, bounds in ({"all": ALL} | {bin_name(b): b for b in BINS}).items():
            rows = [(run.aligner, run.figures(bounds)) for run in here]
            pairs = max(figures["pairs"] for _, figures in rows)
            if pairs:
                parts += [f"### {reference}, identity {name} ({pairs} pairs)", _table(rows)]
        problems = [f"- {run.aligner}: {problem}" for run in here for problem in run.problems]
        if problems:
            parts += [f"{len(problems)} failed:", "\n".join(problems)]
    return "\n\n".join(parts)


def _table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    lines = [
        (aligner, *(figure_text(figures[name]) for name in COLUMNS)) for aligner, figures in rows
    ]
    return markdown_table(("aligner", *COLUMNS.values()), lines)
