"""Residue correspondences that site labels give away: equal sites match residue by residue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def site_correspondences(
    query_site_labels: Sequence[int], candidate_site_labels: Sequence[int]
) -> NDArray[np.int64]:
    """Pair the labelled residues of two proteins of one family, in order, where that is sure.

    Labelled stretches are taken in their order. Where both proteins have as many of them, the
    stretches of equal length are paired residue by residue; nothing is paired otherwise.

    Args:
        query_site_labels: 0/1, `(query_residues,)`.
        candidate_site_labels: 0/1, `(candidate_residues,)`.

    Returns:
        Query and candidate residue, counted from 0, `(n, 2)`.

    Example:
        >>> site_correspondences([0, 1, 1, 0], [1, 1, 0]).tolist()
        [[1, 0], [2, 1]]
        >>> site_correspondences([0, 1, 1, 0], [1, 0, 1]).tolist()
        []
    """
    sides = labelled_stretches(query_site_labels), labelled_stretches(candidate_site_labels)
    if len(sides[0]) != len(sides[1]):
        return np.zeros((0, 2), np.int64)
    equal = [(q, c) for q, c in zip(*sides, strict=True) if len(q) == len(c)]
    return np.array([pair for q, c in equal for pair in zip(q, c, strict=True)], np.int64).reshape(
        -1, 2
    )


def labelled_stretches(site_labels: Sequence[int]) -> list[range]:
    """Return the stretches of labelled residues, in order.

    Example:
        >>> labelled_stretches([1, 1, 0, 1])
        [range(0, 2), range(3, 4)]
    """
    padded = np.concatenate([[0], np.asarray(site_labels), [0]])
    edges = np.flatnonzero(np.diff(padded)).tolist()
    return [range(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True)]
