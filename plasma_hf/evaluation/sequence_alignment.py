"""Alignments of two sequences by BLOSUM62, and what can be read from two sequences alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..data.blosum import TO_BLOSUM, blosum_aligner
from .aligner import Path

Mode = Literal["local", "global", "free-ends"]
Per = Literal["shorter", "columns"]
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
# "Gap 11/1" is read in two ways: opening pays for the first residue of the gap, so that k
# residues cost 11 + (k - 1), as here and in EMBOSS, or comes on top of it, 11 + k, as in BLAST.
GAP_OPEN = 11


def align_sequences(
    query: str, candidate: str, mode: Mode, gap_open: int = GAP_OPEN
) -> tuple[float, Path]:
    """Align two sequences by BLOSUM62, 1 for each further residue of a gap.

    Args:
        query: One-letter residues.
        candidate: One-letter residues.
        mode: "local" (Smith-Waterman), "global" (Needleman-Wunsch, end gaps charged) or
            "free-ends" (Needleman-Wunsch, end gaps free).
        gap_open: Cost of the first residue of a gap.

    Returns:
        The score of the alignment, and its residue pairs, 0-based, `(pairs, 2)`. Without any
        positive local score they are 0 and empty.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> score, path = align_sequences("MKVLA", "WKVL", "local")
        >>> score, path.tolist()
        (13.0, [[1, 1], [2, 2], [3, 3]])
    """
    within = "local" if mode == "local" else "global"
    aligner = blosum_aligner(within, gap_open, 0.0 if mode == "free-ends" else None)
    found = aligner.align(
        query.upper().translate(TO_BLOSUM), candidate.upper().translate(TO_BLOSUM)
    )
    if mode == "local" and found.score <= 0:
        return 0.0, np.empty((0, 2), dtype=np.int64)
    return float(found.score), _path(found[0])


def _path(alignment: Any) -> Path:
    blocks = [
        np.stack([np.arange(*query), np.arange(*candidate)], axis=1)
        for query, candidate in zip(*alignment.aligned, strict=True)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, 2), dtype=np.int64)


def identity(query: str, candidate: str, path: Path, per: Per = "columns") -> float:
    """Divide the identical aligned residues by a length.

    Args:
        query: One-letter residues.
        candidate: One-letter residues.
        path: Residues of a global alignment, `(pairs, 2)`.
        per: "columns" divides by the number of columns of the alignment, gaps included,
            "shorter" by the length of the shorter protein. Unrelated proteins of like length
            have about .16 in the first measure and .20 in the second.

    Returns:
        The identity, between 0 and 1.

    Example:
        >>> path = np.array([[0, 0], [1, 1], [2, 2]])
        >>> identity("MKVL", "MAV", path), identity("MKVL", "MAV", path, per="shorter")
        (0.5, 0.6666666666666666)
    """
    equal = sum(query[i] == candidate[j] for i, j in path.tolist())
    columns = len(query) + len(candidate) - len(path)
    return equal / (columns if per == "columns" else min(len(query), len(candidate)))


def global_identity(query: str, candidate: str) -> float:
    """Return the identity per column of a global alignment, end gaps charged.

    Example:
        >>> global_identity("MKVLA", "MKVL")
        0.8
    """
    return identity(query, candidate, align_sequences(query, candidate, "global")[1])


def length_ratio(query: str, candidate: str) -> float:
    """Divide the shorter length by the longer one.

    Example:
        >>> length_ratio("MKVL", "MKV")
        0.75
    """
    short, long = sorted((len(query), len(candidate)))
    return short / long


def composition_cosine(query: str, candidate: str) -> float:
    """Compute the cosine between the counts of the 20 residues, 0 where there are none.

    Example:
        >>> composition_cosine("MKKM", "KM")
        1.0
    """
    first, second = (
        np.array([sequence.count(letter) for letter in RESIDUES], dtype=float)
        for sequence in (query, candidate)
    )
    return cosine(first, second)


def cosine(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Compute the cosine of two vectors, 0 where one has no length.

    Example:
        >>> cosine(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
        1.0
    """
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm else 0.0
