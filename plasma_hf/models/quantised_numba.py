"""Projections in 8-bit codes, and the sums of the hinge cost over them.

A code stands for `low + quantum * code`. With one scale for both sides the hinge cost of two
residues is `quantum` times an integer, and equal residues still cost exactly 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .compiled_numba import compiled
from .half_numba import to_codes
from .tile_uint8_numba import CODE_COLUMNS, CODE_ROWS, CODES, sum_of_excess

LARGEST = 255
"""The largest code; the smallest is 0."""

Codes = NDArray[np.uint8]


def quantum(low: float, high: float) -> float:
    """Return the difference between neighbouring codes.

    Args:
        low: What code 0 stands for.
        high: What code 255 stands for.

    Example:
        >>> quantum(-4.0, 3.96875)
        0.03125
    """
    step = (high - low) / LARGEST
    if not 0.0 < step < float("inf"):
        raise ValueError(f"low={low}, high={high}; give two finite numbers, the lower one first.")
    return step


def quantise(projection: Tensor, low: float, high: float) -> Tensor:
    """Round a projection to the nearest codes; what lies outside the range is clipped to it.

    Args:
        projection: `(residues, channels)` in float32 or float16; of any device, without gradient.
        low: What code 0 stands for.
        high: What code 255 stands for.

    Returns:
        Codes in uint8, of the same shape.

    Raises:
        ValueError: For a projection with NaN, for which there is no code, and for an empty range.

    Example:
        >>> import torch
        >>> quantise(torch.tensor([[-9.0, -1.0, 0.0, 0.4, 999.0]]), -1.0, 254.0).tolist()
        [[0, 0, 1, 1, 255]]
    """
    return to_codes(projection.detach().cpu(), low, quantum(low, high))


def whole_vectors(codes: Tensor) -> Codes:
    """Return codes as an array whose rows are whole vectors, filled up with code 0.

    Filled up on both sides they add nothing to a cost.

    Args:
        codes: `(residues, channels)` in uint8.
    """
    spare = -codes.shape[1] % CODES
    codes = F.pad(codes, (0, spare)) if spare else codes
    array: Codes = codes.contiguous().numpy()
    return array


@compiled
def excess_sums(query: Codes, candidate: Codes, first: int, last: int, out: Any) -> None:
    """Sum `max(query - candidate, 0)` over channels, for query rows `first` to `last`.

    Args:
        query: `(query_residues, channels)`, of whole vectors.
        candidate: `(candidate_residues, channels)`, with as many channels.
        first: First query row.
        last: The row after the last.
        out: Where they go, from row 0 on, in float32; room for whole tiles, at least
            `(last - first up to CODE_ROWS, candidate_residues up to CODE_COLUMNS)`.
    """
    for j in range(0, len(candidate), CODE_COLUMNS):
        for i in range(first, last, CODE_ROWS):
            sum_of_excess(query, i, candidate, j, out, i - first)
