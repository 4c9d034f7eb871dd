"""Baselines on the same residue embeddings as PLASMA, without its head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import ProteinPair
from .aligner import AlignedPair, Path, path_result
from .embedding_source import EmbeddingSource
from .sequence_alignment import cosine

Matrix = NDArray[np.float64]


class MeanCosine:
    """Score by the cosine of the mean embeddings of both proteins; it has no plan.

    Args:
        source: Where embeddings come from.
        backbone: What a table calls the embeddings.
    """

    name = "mean-cosine"

    def __init__(self, source: EmbeddingSource, backbone: str = "-") -> None:
        """Keep the source."""
        self.source, self.backbone = source, backbone

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Score pairs, one result each, without a plan."""
        means = {key: rows.mean(axis=0) for key, rows in _embeddings(self.source, pairs).items()}
        return [
            AlignedPair(cosine(means[pair.query.sequence], means[pair.candidate.sequence]))
            for pair in pairs
        ]


class EmbeddingAlignment:
    """Align by dynamic programming over embedding similarity (EBA).

    The similarity exp(-distance) is standardised by rows and by columns, the two averaged, and the
    best global path without gap costs is found; the score is its sum by the shorter length, the
    plan its path.

    Source: embedding-based alignment, Pantolini et al. (Bioinformatics, 2024).

    Args:
        source: Where embeddings come from.
        backbone: What a table calls the embeddings.
    """

    name = "eba"

    def __init__(self, source: EmbeddingSource, backbone: str = "-") -> None:
        """Keep the source."""
        self.source, self.backbone = source, backbone

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each."""
        embeddings = _embeddings(self.source, pairs)
        results = []
        for pair in pairs:
            query, candidate = pair.query, pair.candidate
            sides = embeddings[query.sequence], embeddings[candidate.sequence]
            raw, path = best_path(enhanced_similarity(*sides))
            score = raw / min(map(len, sides))
            results.append(path_result(score, path, query, candidate))
        return results


def enhanced_similarity(query: Matrix, candidate: Matrix) -> Matrix:
    """Compute exp(-distance) and standardise it by rows and by columns.

    Args:
        query: `(query_residues, hidden)`.
        candidate: `(candidate_residues, hidden)`.

    Returns:
        The mean of both standardised forms, `(query_residues, candidate_residues)`; a row or
        column without any spread counts 0.

    Example:
        >>> enhanced_similarity(1e4 * np.eye(2), 1e4 * np.eye(2)).round(3).tolist()
        [[0.707, -0.707], [-0.707, 0.707]]
    """
    squares = (query**2).sum(1)[:, None] + (candidate**2).sum(1) - 2 * query @ candidate.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    # Far embeddings underflow exp, and a matrix of zeros has no spread; a common factor, which
    # standardising takes out again, keeps the nearest residues apart.
    similarity = np.exp(distance.min() - distance)
    return (_standardise(similarity, axis=1) + _standardise(similarity, axis=0)) / 2


def _standardise(values: Matrix, axis: int) -> Matrix:
    centred = values - values.mean(axis=axis, keepdims=True)
    count = values.shape[axis]
    spread = np.sqrt((centred**2).sum(axis=axis, keepdims=True) / max(count - 1, 1))
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def best_path(similarity: Matrix) -> tuple[float, Path]:
    """Find the order-preserving path of largest summed similarity; a gap costs nothing.

    Args:
        similarity: Of residues, `(query_residues, candidate_residues)`, of either sign.

    Returns:
        The sum, and the residue pairs of the path, `(pairs, 2)`.

    Example:
        >>> total, path = best_path(np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 2.0]]))
        >>> total, path.tolist()
        (3.0, [[0, 0], [1, 2]])
    """
    n, m = similarity.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(n):
        step = np.maximum(best[i, 1:], best[i, :-1] + similarity[i])
        # A free gap makes the rest of the row a running maximum.
        best[i + 1, 1:] = np.maximum(np.maximum.accumulate(step), 0.0)
    return float(best[n, m]), _trace_back(best)


def _trace_back(best: Matrix) -> Path:
    pairs = []
    i, j = best.shape[0] - 1, best.shape[1] - 1
    while i and j:
        # Values are handed on unchanged along gaps, so equality is exact.
        if best[i, j] == best[i, j - 1]:
            j -= 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return np.array(pairs[::-1], dtype=np.int64).reshape(-1, 2)


def _embeddings(source: EmbeddingSource, pairs: Sequence[ProteinPair]) -> dict[str, Matrix]:
    sequences = [side.sequence for pair in pairs for side in (pair.query, pair.candidate)]
    return {key: rows.cpu().double().numpy() for key, rows in source.get(sequences).items()}
