"""Which residues of two family members correspond: what a classical alignment is sure of.

A family of sites says that two proteins correspond, not where. In the confident columns of a global
alignment it is plain to see, and serves to teach an encoder the cases where it is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..data.blosum import TO_BLOSUM, blosum_aligner

Pairs = NDArray[np.int64]

GAP_OPEN, END_GAP = 11.0, 0.5
GAP_PENALTY = -4.0
NO_PAIRS = np.empty((0, 2), dtype=np.int64)


def confident_pairs(
    query: str, candidate: str, *, reach: int = 4, least: float = 1.0, least_identity: float = 0.25
) -> Pairs:
    """Align two sequences globally and keep the columns whose surroundings agree.

    Args:
        query: One-letter residues.
        candidate: One-letter residues.
        reach: Columns to each side that speak for a column.
        least: Mean BLOSUM62 score of these columns, in half-bits, that is confident; a gap
            counts as -4.
        least_identity: Share of identical columns below which no column is trusted.

    Returns:
        Corresponding residues, 0-based, `(pairs, 2)`.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> confident_pairs("MKVLAWDERTY", "MKVLAWDERTY").shape
        (11, 2)
    """
    query, candidate = query.translate(TO_BLOSUM), candidate.translate(TO_BLOSUM)
    aligner = blosum_aligner("global", GAP_OPEN, END_GAP)
    aligned = aligner.align(query, candidate)[0]
    columns = aligned.indices.T  # (columns, 2), -1 for a gap
    paired = (columns >= 0).all(axis=1)
    if not paired.any():
        return NO_PAIRS
    pairs = columns[paired].astype(np.int64)
    same = sum(query[i] == candidate[j] for i, j in pairs)
    if same < least_identity * len(columns):
        return NO_PAIRS
    matrix = aligner.substitution_matrix
    scores = np.full(len(columns), GAP_PENALTY)
    scores[paired] = [matrix[query[i], candidate[j]] for i, j in pairs]
    ones = np.ones(2 * reach + 1)
    around = np.convolve(scores, ones, "full")[reach : -reach or None]
    counted = np.convolve(np.ones(len(scores)), ones, "full")[reach : -reach or None]
    return pairs[(around / counted >= least)[paired]]


def merge_pairs(first: Pairs, second: Pairs) -> Pairs:
    """Join two lists of pairs; where they contradict each other, neither is believed.

    Example:
        >>> merge_pairs(np.array([[0, 0], [1, 1]]), np.array([[1, 2], [3, 3]])).tolist()
        [[0, 0], [3, 3]]
    """
    joined = np.unique(np.concatenate([first, second]), axis=0)
    once = np.ones(len(joined), dtype=bool)
    for side in (0, 1):
        _, place, count = np.unique(joined[:, side], return_inverse=True, return_counts=True)
        once &= count[place] == 1
    return joined[once]


def shared_words(query: str, candidate: str, length: int = 3) -> float:
    """Return the share of the shorter protein's words that the other has too, a cheap likeness.

    Example:
        >>> shared_words("MKVLA", "MKVLW")
        0.6666666666666666
    """
    words = [{s[i : i + length] for i in range(len(s) - length + 1)} for s in (query, candidate)]
    fewest = min(map(len, words))
    return len(words[0] & words[1]) / fewest if fewest else 0.0
