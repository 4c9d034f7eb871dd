"""What one aligner makes of a list of pairs, a few numbers each; no plan is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ..data.pairs import ProteinPair
from ..metrics import label_mass_precision, label_match_score, symmetric_label_match_score
from .aligner import AlignedPair, Aligner
from .sequence_alignment import global_identity

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
