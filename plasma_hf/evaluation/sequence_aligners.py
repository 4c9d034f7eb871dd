"""Baselines that need nothing but two sequences."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.pairs import ProteinPair
from .aligner import AlignedPair, path_result
from .sequence_alignment import Mode, align_sequences, composition_cosine, length_ratio


class _BySequences:
    """Align by BLOSUM62; the score is that of the alignment, the plan its path."""

    name: str
    mode: Mode

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each."""
        return [self._align(pair) for pair in pairs]

    def _align(self, pair: ProteinPair) -> AlignedPair:
        query, candidate = pair.query, pair.candidate
        found = align_sequences(query.sequence, candidate.sequence, self.mode)
        return path_result(*found, query, candidate)


class SmithWaterman(_BySequences):
    """Align locally, BLOSUM62, gap 11/1."""

    name = "smith-waterman"
    mode = "local"


class NeedlemanWunsch(_BySequences):
    """Align globally with free end gaps, BLOSUM62, gap 11/1."""

    name = "needleman-wunsch"
    mode = "free-ends"


class Length:
    """Score by the ratio of the two lengths alone: what a draw of pairs gives away by them."""

    name = "length"

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Score pairs, one result each, without a plan."""
        return [AlignedPair(length_ratio(p.query.sequence, p.candidate.sequence)) for p in pairs]


class Composition:
    """Score by the cosine of the two residue counts alone."""

    name = "composition"

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Score pairs, one result each, without a plan."""
        return [
            AlignedPair(composition_cosine(p.query.sequence, p.candidate.sequence)) for p in pairs
        ]
