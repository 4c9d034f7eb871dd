"""Sums along the diagonals of a plan, the simplest notion of order; `order` has the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .diagonal_numba import diagonal_sums_numba
from .kernels import kernels_for


def diagonal_sums(matrix: Tensor, before: int, after: int) -> Tensor:
    """Sum a stretch of diagonal: `out[i, j] = sum of matrix[i + k, j + k], k = -before..after`.

    Entries beyond the edges count as zero. A stretch is the difference of two running sums, so
    the time does not depend on its length.

    Args:
        matrix: `(batch, query_residues, candidate_residues)`.
        before: Steps taken towards the first residues.
        after: Steps taken towards the last residues.

    Example:
        >>> diagonal_sums(torch.eye(3)[None], 0, 1)
        tensor([[[2., 0., 0.],
                 [0., 2., 0.],
                 [0., 0., 1.]]])
    """
    if not learns(matrix) and kernels_for(matrix) == "numba":
        return diagonal_sums_numba(matrix, before, after)
    rows, columns = matrix.shape[-2:]
    # float64: a stretch is a small difference of sums that grow with the protein.
    running = F.pad(_shear(matrix).cumsum(-2, dtype=torch.float64), (0, 0, 1, 0))
    row = torch.arange(rows, device=matrix.device)
    last = (row + after + 1).clamp(max=rows)
    first = (row - before).clamp(min=0)
    sums = running[..., last, :] - running[..., first, :]
    return _unshear(sums.to(matrix.dtype), columns)


def learns(tensor: Tensor) -> bool:
    """Tell whether gradient is wanted, which not all compiled kernels have."""
    return torch.is_grad_enabled() and tensor.requires_grad


def _shear(matrix: Tensor) -> Tensor:
    """Turn diagonals into columns: `(..., rows, columns) -> (..., rows, rows + columns - 1)`."""
    rows, columns = matrix.shape[-2:]
    # Reading the rows of a wide frame as if they were one shorter moves row i right by i places;
    # with the columns reversed, i - j is what stays in place.
    wide = F.pad(matrix.flip(-1), (0, rows)).flatten(-2)
    return wide[..., :-rows].unflatten(-1, (rows, rows + columns - 1))


def _unshear(sheared: Tensor, columns: int) -> Tensor:
    """Undo `_shear`."""
    rows = sheared.shape[-2]
    wide = F.pad(sheared.flatten(-2), (0, rows)).unflatten(-1, (rows, rows + columns))
    return wide[..., :columns].flip(-1)
