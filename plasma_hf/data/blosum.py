"""The pairwise aligner that all alignments of plain sequences here are made by."""

from __future__ import annotations

from functools import cache
from typing import Any

# BLOSUM62 has no column for selenocysteine, pyrrolysine and I/L.
TO_BLOSUM = str.maketrans("UOJ", "CKX")


@cache
def blosum_aligner(mode: str, gap_open: float, end_gap: float | None = None) -> Any:
    """Return biopython's aligner with BLOSUM62, 1 for each further residue of a gap.

    Args:
        mode: "local" or "global".
        gap_open: Cost of the first residue of a gap.
        end_gap: Cost of a residue of a gap at the ends; None for that of any gap.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> blosum_aligner("global", 11).score("MKV", "MKV")
        14.0
    """
    try:
        from Bio.Align import PairwiseAligner, substitution_matrices
    except ImportError as error:
        raise ImportError(
            "alignments of sequences need biopython; run: pip install biopython"
        ) from error
    made = PairwiseAligner(mode=mode)
    made.substitution_matrix = substitution_matrices.load("BLOSUM62")
    made.open_gap_score, made.extend_gap_score = -float(gap_open), -1.0
    if end_gap is not None:
        made.end_gap_score = -end_gap
    return made
