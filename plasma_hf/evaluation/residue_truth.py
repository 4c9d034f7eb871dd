"""Residue truth of aligners: reference alignments, and how plans treat the residues in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pairs import ProteinPair, SiteProtein
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
        true_pairs: Residues that correspond, 0-based, `(pairs, 2)`: trusted columns alone, where
            the reference says which these are.
        identity: Identical residues by aligned residue pair, over all columns.
    """

    pair: ProteinPair
    true_pairs: TruePairs
    identity: float


def read_reference_pairs(
    path: str | PathLike[str],
) -> tuple[list[ReferencePair], list[str]]:
    """Read reference alignments of pairs from JSON, also .gz.

    Args:
        path: A list of records with `a`, `b` (names), `seq_a`, `seq_b`, `pairs` (`[[i, j], ...]`,
            0-based), and where trusted columns are known, `core_pairs`, which are then the truth.

    Returns:
        The pairs, and a line on each record that cannot be used.

    Raises:
        ValueError: If the file is no list of records.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "reference.json"
        >>> _ = path.write_text('[{"a": "P1", "b": "P2", "seq_a": "MKV", "seq_b": "RV",'
        ...     '"pairs": [[1, 0], [2, 1]]}, {"a": "P3", "b": "P4", "seq_a": "MKV"}]')
        >>> [reference], bad = read_reference_pairs(path)
        >>> reference.true_pairs.tolist(), reference.identity, bad
        ([[1, 0], [2, 1]], 0.5, ['record 2: it lacks seq_b'])
    """
    data = Path(path).read_bytes()
    try:
        records = json.loads(gzip.decompress(data) if Path(path).suffix == ".gz" else data)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no JSON, or gzipped JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}; give a list of records")
    read, bad = [], []
    for number, record in enumerate(records, start=1):
        try:
            read.append(_reference(record))
        except (ValueError, TypeError) as error:
            bad.append(f"record {number}: {error}")
        except KeyError as error:
            bad.append(f"record {number}: it lacks {error.args[0]}")
    return read, bad


def _reference(record: dict[str, Any]) -> ReferencePair:
    group = str(record.get("set", ""))
    sides = [
        SiteProtein(str(record.get(name, "")), group, sequence, (0,) * len(sequence))
        for name, sequence in (("a", record["seq_a"].upper()), ("b", record["seq_b"].upper()))
    ]
    aligned, core = (
        np.asarray(found or [], dtype=np.int64).reshape(-1, 2)
        for found in (record["pairs"], record.get("core_pairs"))
    )
    query, candidate = sides
    truth = core if len(core) else aligned
    lengths = tuple(len(side.sequence) for side in sides)
    if not len(truth):
        raise ValueError("it has no aligned residues")
    for pairs in (aligned, truth):
        if len(pairs) and (pairs.min() < 0 or (pairs.max(axis=0) >= lengths).any()):
            raise ValueError(f"a pair lies outside of its sequences of {lengths} residues")
    both = aligned if len(aligned) else truth
    same = [query.sequence[i] == candidate.sequence[j] for i, j in both.tolist()]
    return ReferencePair(ProteinPair(query, candidate, label=1), truth, float(np.mean(same)))


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
