"""Retrieval metrics over a matrix of similarities, row = query, column = candidate."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .pairs import as_float_array

Ties = Literal["midrank", "optimistic", "pessimistic"]
# The share of equally scored, non-relevant candidates that is ranked ahead of the relevant one.
TIE_SHARE: dict[str, float] = {"midrank": 0.5, "optimistic": 0.0, "pessimistic": 1.0}


def recall_at_k(
    similarity: ArrayLike, k: int, family_ids: ArrayLike | None = None, ties: Ties = "midrank"
) -> float:
    """Compute the share of queries whose best relevant candidate ranks within the first k.

    The relevant candidate of query i is column i, or, with `family_ids`, every column of the
    same family as i (column i included). Ranks count non-relevant candidates only.

    Args:
        similarity: Larger for a likelier partner, `(queries, candidates)`, square.
        k: Number of places that count as found, at least 1.
        family_ids: One family per row and column, `(queries,)`.
        ties: Place of the relevant candidate among non-relevant ones of equal similarity:
            in the middle, ahead (`"optimistic"`) or behind (`"pessimistic"`).

    Example:
        >>> recall_at_k([[0.9, 0.1], [0.8, 0.3]], k=1)
        0.5
        >>> recall_at_k([[0.9, 0.1], [0.8, 0.3]], k=1, family_ids=["P", "P"])
        1.0
    """
    if k < 1:
        raise ValueError(f"k is {k}; give a whole number of at least 1")
    return float(np.mean(best_ranks(similarity, family_ids, ties) <= k))


def mean_reciprocal_rank(
    similarity: ArrayLike, family_ids: ArrayLike | None = None, ties: Ties = "midrank"
) -> float:
    """Compute the mean over queries of 1 / rank of the best relevant candidate; see `recall_at_k`.

    Example:
        >>> mean_reciprocal_rank([[0.9, 0.1], [0.8, 0.3]])
        0.75
    """
    return float(np.mean(1.0 / best_ranks(similarity, family_ids, ties)))


def best_ranks(
    similarity: ArrayLike, family_ids: ArrayLike | None = None, ties: Ties = "midrank"
) -> NDArray[np.float64]:
    """Rank the best relevant candidate of each query from 1, `(queries,)`; see `recall_at_k`."""
    similarity = _checked(similarity)
    relevant = _relevant(len(similarity), family_ids)
    return _ranks(similarity, relevant, ~relevant, ties)


def ranks_within_family(
    similarity: ArrayLike, family_ids: ArrayLike, ties: Ties = "midrank"
) -> NDArray[np.float64]:
    """Rank the partner of each query among the candidates of its own family, `(queries,)`."""
    similarity = _checked(similarity)
    partner = _relevant(len(similarity), None)
    return _ranks(similarity, partner, _relevant(len(similarity), family_ids) & ~partner, ties)


def _ranks(
    similarity: NDArray[np.float64],
    relevant: NDArray[np.bool_],
    others: NDArray[np.bool_],
    ties: str,
) -> NDArray[np.float64]:
    """Count the others ahead of the best relevant candidate; all `(queries, candidates)`."""
    if ties not in TIE_SHARE:
        raise ValueError(f"ties is {ties!r}; use one of {', '.join(map(repr, TIE_SHARE))}")
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    greater = ((similarity > best) & others).sum(axis=1)
    equal = ((similarity == best) & others).sum(axis=1)
    return 1.0 + greater + TIE_SHARE[ties] * equal


def _relevant(size: int, family_ids: ArrayLike | None) -> NDArray[np.bool_]:
    if family_ids is None:
        return np.eye(size, dtype=bool)
    family = np.asarray(family_ids)
    if family.shape != (size,):
        raise ValueError(
            f"family_ids have shape {family.shape}; give one per row of the matrix, ({size},)"
        )
    return family[:, None] == family[None, :]


def _checked(similarity: ArrayLike) -> NDArray[np.float64]:
    similarity = as_float_array(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise ValueError(
            f"similarity has shape {similarity.shape}; give a square matrix (queries, candidates) "
            "whose column i is the partner of row i"
        )
    if np.isnan(similarity).any():
        raise ValueError("similarity holds NaN; check the embeddings it was computed from")
    return similarity
