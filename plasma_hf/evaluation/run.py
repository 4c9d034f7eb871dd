"""Run aligners over pairs of proteins, and reduce what they find to metrics; no plan is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, nan
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.pairs import ProteinPair, SiteProtein
from ..metrics import (
    ReferenceAgreement,
    average_precision,
    compare_with_reference,
    f1_max,
    label_mass_precision,
    label_match_score,
    mean_over_pairs,
    roc_auc,
    symmetric_label_match_score,
)
from ..models.protein import InvalidRecord, open_text
from .aligners import AlignedPair, Aligner, global_identity

if TYPE_CHECKING:
    from ..data.splits import PairSplits

PAIRS_AT_ONCE = 32
"""Pairs aligned together; their plans are in memory at the same time."""

RANKING = {"roc_auc": roc_auc, "f1_max": f1_max, "average_precision": average_precision}
SITE_MATCH = ("label_match", "symmetric_label_match", "label_mass_precision")

Bounds = tuple[float, float]
ALL: Bounds = (0.0, 1.01)
BINS: dict[str, Bounds] = {"< 20 %": (0.0, 0.20), "20-35 %": (0.20, 0.35), ">= 35 %": (0.35, 1.01)}
"""Sequence identity, from and to; the upper bound is not in the bin."""

Identities = dict[tuple[str, str], float]


@dataclass(frozen=True)
class PairOutcome:
    """Hold what an aligner makes of one pair; NaN is what it does not have."""

    query: str
    candidate: str
    label: int
    identity: float
    score: float = nan
    label_match: float = nan
    symmetric_label_match: float = nan
    label_mass_precision: float = nan
    error: str = ""  # why it failed, or has no label match


@dataclass
class Run:
    """Hold what one aligner makes of the pairs of one split of one seed."""

    aligner: str
    backbone: str = "-"
    task: str = ""  # what the sites are
    split: str = ""  # "test" or "test_hard"
    seed: int = 0
    pairs: list[PairOutcome] = field(default_factory=list)
    has_plans: bool = False
    seconds: float = 0.0  # of aligning, with embedding where that was not done before


def align_in_chunks(
    aligner: Aligner, pairs: Sequence[ProteinPair]
) -> Iterator[tuple[ProteinPair, AlignedPair | Exception, float]]:
    """Yield each pair with its result, or what was raised for it, and the seconds it took."""
    with tqdm(total=len(pairs), desc=aligner.name, unit="pair", disable=None) as bar:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            chunk = pairs[start : start + PAIRS_AT_ONCE]
            began = time.perf_counter()
            results = _results(aligner, chunk)
            seconds = (time.perf_counter() - began) / len(chunk)
            yield from ((pair, r, seconds) for pair, r in zip(chunk, results, strict=True))
            bar.update(len(chunk))


def _results(aligner: Aligner, chunk: Sequence[ProteinPair]) -> list[AlignedPair | Exception]:
    try:
        results = list(aligner.align(chunk))
        if len(results) != len(chunk):
            raise ValueError(f"{aligner.name} gave {len(results)} results for {len(chunk)} pairs")
        for pair, result in zip(chunk, results, strict=True):
            shape = (len(pair.query.sequence), len(pair.candidate.sequence))
            if not isfinite(result.score):
                raise ValueError(f"its score is {result.score}, not a finite number")
            if result.plan is not None and result.plan.shape != shape:
                raise ValueError(f"its plan is of shape {result.plan.shape}, not {shape}")
        return [*results]
    except Exception as error:  # whatever an aligner may raise; alone, the valid pairs pass
        if len(chunk) == 1:
            return [error]
        return [result for pair in chunk for result in _results(aligner, [pair])]


def run_aligner(
    aligner: Aligner, pairs: Sequence[ProteinPair], identities: Identities | None = None
) -> Run:
    """Align pairs and keep a few numbers of each, also of a pair that failed.

    Args:
        identities: What `pair_identities` gives for these pairs; computed where absent.

    Example:
        >>> from plasma_hf.data import SiteProtein
        >>> from plasma_hf.evaluation import SmithWaterman
        >>> protein = SiteProtein("P1", "F", "MKVLA", (0, 1, 1, 0, 0))
        >>> run = run_aligner(SmithWaterman(), [ProteinPair(protein, protein, label=1)])
        >>> run.pairs[0].score, run.pairs[0].label_match
        (22.0, 1.0)
    """
    known = pair_identities(pairs) if identities is None else identities
    run = Run(aligner.name, getattr(aligner, "backbone", "-"))
    for pair, result, seconds in align_in_chunks(aligner, pairs):
        run.seconds += seconds
        run.has_plans |= isinstance(result, AlignedPair) and result.plan is not None
        identity = known[pair.query.sequence, pair.candidate.sequence]
        run.pairs.append(_outcome(pair, result, identity))
    return run


def _outcome(pair: ProteinPair, result: AlignedPair | Exception, identity: float) -> PairOutcome:
    known = (pair.query.uid, pair.candidate.uid, pair.label, identity)
    if isinstance(result, Exception):
        return PairOutcome(*known, error=_one_line(result))
    if not pair.label or result.plan is None:
        return PairOutcome(*known, result.score)
    sites = [np.asarray(side.site_labels) for side in (pair.query, pair.candidate)]
    if not all(side.any() for side in sites):
        unlabelled = "one of its proteins has no labelled residue"
        return PairOutcome(*known, result.score, error=unlabelled)
    return PairOutcome(
        *known,
        result.score,
        label_match_score(result.plan, *sites),
        symmetric_label_match_score(result.plan, *sites),
        label_mass_precision(result.plan, *sites),
    )


def _one_line(error: Exception) -> str:
    """Say in one line what was raised; the text of a KeyError would be quoted."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def pair_identities(pairs: Sequence[ProteinPair]) -> Identities:
    """Return the `global_identity` of pairs by their two sequences, once for all aligners."""
    keys = dict.fromkeys((pair.query.sequence, pair.candidate.sequence) for pair in pairs)
    bar = tqdm(keys, "identity", unit="pair", disable=None)  # if stderr is a terminal
    return {key: global_identity(*key) for key in bar}


def pair_metrics(run: Run, bounds: Bounds = ALL) -> dict[str, float]:
    """Compute the metrics of a run.

    Args:
        bounds: Take positive pairs of this identity alone; the negatives are all there are, since
            pairs of different families are nearly all of low identity.

    Returns:
        Ranking metrics over pairs of both kinds and site match over positive ones, NaN where there
        is nothing to compute one from. Counts beside: the `positives` and `negatives` in them,
        pairs that `failed` and are in none, positives with a score but `unlabelled`.
    """
    chosen = [p for p in run.pairs if not p.label or bounds[0] <= p.identity < bounds[1]]
    scored = [pair for pair in chosen if isfinite(pair.score)]
    positives = [pair for pair in scored if pair.label]
    labels, scores = [pair.label for pair in scored], [pair.score for pair in scored]
    found: dict[str, float] = dict.fromkeys((*RANKING, *SITE_MATCH), nan)
    if len(set(labels)) == 2:
        found |= {name: metric(labels, scores) for name, metric in RANKING.items()}
    if run.has_plans and positives:
        for name in SITE_MATCH:  # without those that have no labelled residue, which are counted
            matches = [getattr(pair, name) for pair in positives]
            found[name] = mean_over_pairs(matches, allow_skipped=True).mean
    return found | {
        "positives": len(positives),
        "negatives": len(scored) - len(positives),
        "failed": len(chosen) - len(scored),
        "unlabelled": sum(bool(pair.error) for pair in positives),
    }


def evaluate_splits(
    aligners: Callable[[int], Sequence[Aligner]],
    splits: Sequence[PairSplits],
    task: str,
    parts: Sequence[str] = ("test", "test_hard"),
) -> list[Run]:
    """Evaluate aligners on the held-out pairs of several seeds.

    Args:
        aligners: Gives those of a seed, of the same names for each: a head trained on one split
            must not be judged by another.
        splits: One for each seed.
        parts: Which pairs: "test", "test_hard" or both.

    Returns:
        One run for each seed, part and aligner; a part without pairs has none.
    """
    runs = []
    for split in splits:
        ready = aligners(split.seed)
        for part in parts:
            pairs: Sequence[ProteinPair] = getattr(split, part)
            identities = pair_identities(pairs)
            for aligner in ready if len(pairs) else ():
                run = run_aligner(aligner, pairs, identities)
                run.task, run.split, run.seed = task, part, split.seed
                runs.append(run)
    return runs


# --- Residues that are known to correspond.

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class ResidueAlignment:
    """Two proteins and the residues of them that correspond.

    `pairs` are 0-based, `(pairs, 2)`, and trusted, where the source says which are; `columns` are
    all that are aligned, trusted or not, None for `pairs`.
    """

    query: str
    candidate: str
    pairs: Pairs
    name: str = ""  # where it comes from
    names: tuple[str, str] = ("", "")  # of the two proteins
    columns: Pairs | None = None

    @cached_property
    def identity(self) -> float:
        """Identical residues per aligned pair, 0 without any."""
        columns = self.pairs if self.columns is None else self.columns
        same = [self.query[i] == self.candidate[j] for i, j in columns]
        return float(np.mean(same)) if same else 0.0


def read_reference_alignments(
    path: str | PathLike[str], invalid: list[InvalidRecord] | None = None
) -> list[ResidueAlignment]:
    """Read reference alignments of pairs from JSON, also gzipped.

    Args:
        path: A list of records with `seq_a`, `seq_b` and `pairs` (`[[i, j], ...]`, 0-based), where
            they are known with names `a` and `b`, and with `core_pairs`, the trusted columns.
        invalid: Takes the invalid records; without it the first of them raises.
    """
    try:
        with open_text(Path(path)) as lines:
            records = json.load(lines)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON, or gzipped JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}; give a list of records")
    found = []
    for number, record in enumerate(records, start=1):
        try:
            found.append(_reference(record))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            lacking = isinstance(error, KeyError)
            reason = f"it lacks {error.args[0]}" if lacking else str(error)
            if invalid is None:
                raise ValueError(f"{path}, record {number}: {reason}") from error
            invalid.append(InvalidRecord(f"record {number}", reason))
    return found


def _reference(record: dict[str, Any]) -> ResidueAlignment:
    query, candidate = record["seq_a"].upper(), record["seq_b"].upper()
    columns, core = (
        np.asarray(found or [], dtype=np.int64).reshape(-1, 2)
        for found in (record["pairs"], record.get("core_pairs"))
    )
    for pairs in (columns, core):
        if len(pairs) and (pairs.min() < 0 or (pairs.max(0) >= (len(query), len(candidate))).any()):
            lengths = f"{len(query)} and {len(candidate)}"
            raise ValueError(f"a pair lies outside of its sequences of {lengths} residues")
    names = str(record.get("a", "")), str(record.get("b", ""))
    trusted, group = core if len(core) else columns, str(record.get("set", ""))
    aligned = columns if len(columns) else trusted
    return ResidueAlignment(query, candidate, trusted, group, names, aligned)


def read_reference_pairs(path: str | PathLike[str]) -> tuple[list[ResidueAlignment], list[str]]:
    """Read alignments that plans are compared with, by `read_reference_alignments`.

    Returns:
        Those with aligned residues, and a line on each record that cannot be used.
    """
    invalid: list[InvalidRecord] = []
    alignments = read_reference_alignments(path, invalid)
    problems = [f"{record.id}: {record.reason}" for record in invalid]
    problems += [
        f"{' and '.join(found.names)} ({found.name}): no residues are aligned"
        for found in alignments
        if not len(found.pairs)
    ]
    return [found for found in alignments if len(found.pairs)], problems


@dataclass
class TruthRun:
    """Hold what one aligner makes of one set of reference alignments."""

    aligner: str
    reference: str
    threshold: float  # weight above which residues are called aligned
    truths: list[tuple[float, ReferenceAgreement]] = field(default_factory=list)  # with identities
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def metrics(self, bounds: Bounds = ALL) -> dict[str, float]:
        """Return the metrics of the pairs in a bin of identity.

        Each pair of proteins weighs the same, or as many true residue pairs as it has in the
        metrics `by_residue`.
        """
        chosen = [truth for identity, truth in self.truths if bounds[0] <= identity < bounds[1]]
        weights = [truth.n_true for truth in chosen]
        called, true = sum(truth.n_called for truth in chosen), sum(weights)
        found: dict[str, float] = {"pairs": len(chosen), "residues": true}
        for name in ("best_partner", "best_partner_symmetric", "mass"):
            values = [getattr(truth, name) for truth in chosen]
            for ending, shares in {"": None, "_by_residue": weights}.items():
                mean = float(np.average(values, weights=shares)) if chosen else nan
                found[name + ending] = mean
        found["precision"] = sum(truth.n_correct for truth in chosen) / called if called else nan
        found["called"] = called / true if true else nan
        return found


def run_residue_truth(
    aligner: Aligner, references: Sequence[ResidueAlignment], name: str, threshold: float = 0.5
) -> TruthRun | None:
    """Align the proteins of reference alignments and compare plans with the truth.

    Args:
        name: What to call the set.
        threshold: Plan weight above which residues are called aligned.

    Returns:
        The run, or None from an aligner without plans.
    """
    run = TruthRun(aligner.name, name, threshold)
    results = align_in_chunks(aligner, [_pair_of(found) for found in references])
    for reference, (_, result, seconds) in zip(references, results, strict=True):
        run.seconds += seconds
        if isinstance(result, Exception):
            run.problems.append(f"{' and '.join(reference.names)}: {_one_line(result)}")
        elif result.plan is None:
            return None
        else:
            truth = compare_with_reference(result.plan, reference.pairs, threshold)
            run.truths.append((reference.identity, truth))
    return run


def _pair_of(found: ResidueAlignment) -> ProteinPair:
    query, candidate = (
        SiteProtein(uid, found.name, sequence, (0,) * len(sequence))
        for uid, sequence in zip(found.names, (found.query, found.candidate), strict=True)
    )
    return ProteinPair(query, candidate, label=1)
