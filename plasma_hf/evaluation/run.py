"""What one aligner makes of a list of pairs, a few numbers each; no plan is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.pairs import ProteinPair
from ..metrics import (
    average_precision,
    f1_max,
    label_mass_precision,
    label_match_score,
    mean_over_pairs,
    roc_auc,
    symmetric_label_match_score,
)
from .aligners import AlignedPair, Aligner, global_identity

PAIRS_AT_ONCE = 32
"""Pairs aligned together; their plans are in memory at the same time."""

Identities = dict[tuple[str, str], float]
T = TypeVar("T")


@dataclass(frozen=True)
class PairOutcome:
    """Hold what an aligner makes of one pair.

    Attributes:
        query: Accession of the query.
        candidate: Accession of the candidate.
        label: 1 for the same family, 0 for different ones.
        identity: Per column of a global alignment, between 0 and 1.
        score: NaN for a pair that failed.
        label_match: NaN for a negative pair, and from an aligner without a plan.
        symmetric_label_match: The same.
        label_mass_precision: The same.
        error: Why the pair failed, or has no label match; empty otherwise.
    """

    query: str
    candidate: str
    label: int
    identity: float
    score: float = nan
    label_match: float = nan
    symmetric_label_match: float = nan
    label_mass_precision: float = nan
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the pair has no score."""
        return not isfinite(self.score)


@dataclass
class Outcomes:
    """Hold what one aligner makes of the pairs of one split.

    Attributes:
        pairs: One outcome a pair.
        has_plans: Whether the aligner gives plans.
        seconds: Wall time of aligning, embedding included where it was not done before.
    """

    pairs: list[PairOutcome] = field(default_factory=list)
    has_plans: bool = False
    seconds: float = 0.0


def align_in_chunks(
    aligner: Aligner, pairs: Sequence[ProteinPair], progress: bool | None = None
) -> Iterator[tuple[ProteinPair, AlignedPair | Exception]]:
    """Align pairs, a chunk at a time, and go on where one fails.

    Args:
        aligner: What aligns.
        pairs: In any number.
        progress: Show progress; None where standard error is a terminal.

    Yields:
        Each pair, in order, with its result or with what was raised for it.
    """
    disable = None if progress is None else not progress
    with tqdm(total=len(pairs), desc=aligner.name, unit="pair", disable=disable) as bar:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            chunk = pairs[start : start + PAIRS_AT_ONCE]
            yield from zip(chunk, _results(aligner, chunk), strict=True)
            bar.update(len(chunk))


def _results(aligner: Aligner, chunk: Sequence[ProteinPair]) -> list[AlignedPair | Exception]:
    try:
        results: list[AlignedPair | Exception] = list(aligner.align(chunk))
        if len(results) != len(chunk):
            raise ValueError(f"{aligner.name} gave {len(results)} results for {len(chunk)} pairs")
        return [_checked(aligner, pair, r) for pair, r in zip(chunk, results, strict=True)]
    except Exception as error:  # whatever an aligner may raise; alone, the good pairs pass
        if len(chunk) == 1:
            return [error]
        return [result for pair in chunk for result in _results(aligner, [pair])]


def _checked(
    aligner: Aligner, pair: ProteinPair, result: AlignedPair | Exception
) -> AlignedPair | Exception:
    assert isinstance(result, AlignedPair)
    shape = (len(pair.query.sequence), len(pair.candidate.sequence))
    if not isfinite(result.score):
        raise ValueError(f"its score is {result.score}, not a finite number")
    if result.plan is not None and result.plan.shape != shape:
        raise ValueError(f"its plan is of shape {result.plan.shape}, not {shape}")
    return result


def run_aligner(
    aligner: Aligner,
    pairs: Sequence[ProteinPair],
    identities: Identities | None = None,
    progress: bool | None = None,
) -> Outcomes:
    """Align pairs and keep a few numbers of each.

    Args:
        aligner: What aligns.
        pairs: Positive and negative ones.
        identities: What `pair_identities` gives for these pairs; computed where absent.
        progress: Show progress; None where standard error is a terminal.

    Returns:
        One outcome a pair, also for a pair that failed.

    Example:
        >>> from plasma_hf.data import SiteProtein
        >>> from plasma_hf.evaluation import SmithWaterman
        >>> protein = SiteProtein("P1", "F", "MKVLA", (0, 1, 1, 0, 0))
        >>> outcomes = run_aligner(SmithWaterman(), [ProteinPair(protein, protein, label=1)])
        >>> outcomes.pairs[0].score, outcomes.pairs[0].label_match
        (22.0, 1.0)
    """
    known = pair_identities(pairs) if identities is None else identities
    outcomes = Outcomes()
    results = align_in_chunks(aligner, pairs, progress)
    for (pair, result), seconds in timed(results):
        outcomes.seconds += seconds
        outcomes.has_plans |= isinstance(result, AlignedPair) and result.plan is not None
        uids = (pair.query.uid, pair.candidate.uid)
        outcomes.pairs.append(_outcome(pair, result, known[_key(pair)], uids))
    return outcomes


def timed(results: Iterator[T]) -> Iterator[tuple[T, float]]:
    """Give each result with the seconds that it took to come."""
    start = time.perf_counter()
    for result in results:
        yield result, time.perf_counter() - start
        start = time.perf_counter()


def _outcome(
    pair: ProteinPair, result: AlignedPair | Exception, identity: float, uids: tuple[str, str]
) -> PairOutcome:
    if isinstance(result, Exception):
        return PairOutcome(*uids, pair.label, identity, error=spell(result))
    if not pair.label or result.plan is None:
        return PairOutcome(*uids, pair.label, identity, result.score)
    sites = [np.asarray(side.site_labels) for side in (pair.query, pair.candidate)]
    if not all(side.any() for side in sites):
        error = "one of its proteins has no labelled residue"
        return PairOutcome(*uids, pair.label, identity, result.score, error=error)
    return PairOutcome(
        *uids,
        pair.label,
        identity,
        result.score,
        label_match_score(result.plan, *sites),
        symmetric_label_match_score(result.plan, *sites),
        label_mass_precision(result.plan, *sites),
    )


def spell(error: Exception) -> str:
    """Say in one line what was raised.

    Example:
        >>> spell(KeyError("no such protein")), spell(RuntimeError())
        ('no such protein', 'RuntimeError')
    """
    # The text of a KeyError is quoted otherwise.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def pair_identities(
    pairs: Sequence[ProteinPair],
    identity: Callable[[str, str], float] = global_identity,
    progress: bool | None = None,
) -> Identities:
    """Compute the sequence identity of each pair once, for all aligners.

    Args:
        pairs: In any number.
        identity: How; by default per column of a global alignment.
        progress: Show progress; None where standard error is a terminal.

    Returns:
        Identities between 0 and 1, by the two sequences.
    """
    disable = None if progress is None else not progress
    keys = dict.fromkeys(map(_key, pairs))
    return {key: identity(*key) for key in tqdm(keys, "identity", unit="pair", disable=disable)}


def _key(pair: ProteinPair) -> tuple[str, str]:
    return pair.query.sequence, pair.candidate.sequence


# --- The figures of an evaluation: from outcomes of pairs to one row a split, and over seeds.


METRICS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match": "label match",
    "symmetric_label_match": "symmetric",
    "label_mass_precision": "mass precision",
}
"""Figures of a table, with the heads of their columns."""

RANKING: dict[str, Callable[..., float]] = {
    "roc_auc": roc_auc,
    "f1_max": f1_max,
    "average_precision": average_precision,
}

BINS = ((0.0, 0.20), (0.20, 0.35), (0.35, 1.01))
"""Sequence identity, from and to; the upper bound is not in the bin."""


def bin_name(bounds: tuple[float, float]) -> str:
    """Name a bin of identity.

    Example:
        >>> [bin_name(bounds) for bounds in BINS]
        ['< 20 %', '20-35 %', '>= 35 %']
    """
    low, high = bounds
    if low <= 0:
        return f"< {100 * high:.0f} %"
    return f">= {100 * low:.0f} %" if high > 1 else f"{100 * low:.0f}-{100 * high:.0f} %"


@dataclass(frozen=True)
class Figures:
    """Hold the figures of one aligner on one split.

    Attributes:
        values: By the names of `METRICS`; NaN where there is nothing to compute one from.
        positives: Pairs of one family that are in them.
        negatives: Pairs of different families that are in them.
        failed: Pairs without a score, which are in no figure.
        unlabelled: Positive pairs with a score, but without a labelled residue on either side.
    """

    values: dict[str, float]
    positives: int
    negatives: int
    failed: int
    unlabelled: int


def figures(outcomes: Outcomes, bounds: tuple[float, float] | None = None) -> Figures:
    """Compute the figures of a list of pairs.

    Args:
        outcomes: What `run_aligner` gave.
        bounds: Take positive pairs of this identity alone; the negatives are all there are, since
            pairs of different families are nearly all of low identity.

    Returns:
        Ranking figures over pairs of both kinds, label match figures over positive ones.
    """
    chosen = [pair for pair in outcomes.pairs if not pair.label or _inside(pair, bounds)]
    scored = [pair for pair in chosen if not pair.failed]
    positives = [pair for pair in scored if pair.label]
    unlabelled = sum(bool(pair.error) for pair in positives)
    values = _ranking(scored)
    for name in METRICS.keys() - RANKING.keys():
        values[name] = _mean(positives, name) if outcomes.has_plans else nan
    return Figures(
        {name: values[name] for name in METRICS},
        len(positives),
        len(scored) - len(positives),
        len(chosen) - len(scored),
        unlabelled,
    )


def _inside(pair: PairOutcome, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= pair.identity < bounds[1]


def _ranking(scored: Sequence[PairOutcome]) -> dict[str, float]:
    labels = np.array([pair.label for pair in scored])
    scores = np.array([pair.score for pair in scored])
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(RANKING, nan)
    return {name: metric(labels, scores) for name, metric in RANKING.items()}


def _mean(positives: Sequence[PairOutcome], name: str) -> float:
    values = [getattr(pair, name) for pair in positives]
    # Pairs without a labelled residue are counted and named beside the figures.
    return mean_over_pairs(values, allow_skipped=True).mean if values else nan


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds, and its standard error, NaN for a single one.

    Args:
        values: One figure a seed.

    Returns:
        Mean, and sample standard deviation (ddof 1) / sqrt(seeds).

    Example:
        >>> mean_and_error([0.25, 0.75])
        (0.5, 0.25)
    """
    array: NDArray[np.float64] = np.asarray(values, dtype=float)
    if not len(array):
        return nan, nan
    error = float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else nan
    return float(array.mean()), error
