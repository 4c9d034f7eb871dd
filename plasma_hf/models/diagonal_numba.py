"""Sums along diagonals and the support made of them, compiled for a CPU; without gradient.

A running sum for each diagonal takes a row in at one end and gives one back at the other: one
addition and one subtraction an entry, however long the stretch is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import Number, compiled, full_registers, share_out

Array = NDArray[np.float32]
Running = NDArray[np.float64]


def diagonal_sums_numba(matrix: Tensor, before: int, after: int) -> Tensor:
    """Sum a stretch of diagonal, as `diagonal_sums` does; without gradient.

    Args:
        matrix: `(batch, query_residues, candidate_residues)` in float32.
        before: Steps taken towards the first residues.
        after: Steps taken towards the last residues.

    Returns:
        The sums, shaped like `matrix`.
    """
    given = matrix.detach().contiguous()
    out = torch.empty_like(given)
    entries, sums = given.numpy(), out.numpy()
    share_out(lambda pair: _diagonal_sums(entries[pair], before, after, sums[pair]), len(given))
    return out


def diagonal_support_numba(plan: Tensor, allowed: Tensor, window: int, gap: int) -> Tensor:
    """Measure how well the surroundings are aligned, as `diagonal_support` does; without gradient.

    Args:
        plan: `(batch, query_residues, candidate_residues)` in float32.
        allowed: True where both are residues, same shape.
        window: Steps to each side.
        gap: Residues aside.

    Returns:
        The support, shaped like `plan`.
    """
    given = plan.detach().contiguous()
    best, out = torch.empty_like(given), torch.empty_like(given)
    entries, nearby, sums = given.numpy(), best.numpy(), out.numpy()

    def pair_best(pair: int) -> None:
        best_nearby(entries[pair], gap, nearby[pair])

    share_out(pair_best, len(given))
    best.masked_fill_(~allowed, 0.0)
    share_out(lambda pair: _diagonal_sums(nearby[pair], window, window, sums[pair]), len(given))
    return out.div_(2 * window + 1)


@compiled
def take_row(sums: Running, row: Array, place: int, sign: Number) -> None:
    """Add a row of a matrix to the running sums of its diagonals, or subtract it.

    Args:
        sums: One for each diagonal, `(rows + columns - 1,)`; entry (i, j) is on diagonal
            `j - i + rows - 1`.
        row: `(columns,)`.
        place: Diagonal of the first entry, `rows - 1 - i`.
        sign: 1 or -1.
    """
    full_registers()
    # float64: a stretch is a small difference of sums that grow with the protein.
    mine = sums[place : place + len(row)]  # sliced, since an index that may be negative is slow
    for j in range(len(row)):
        mine[j] += sign * np.float64(row[j])


@compiled
def move_on(sums: Running, matrix: Array, i: int, before: int, after: int) -> None:
    """Move running sums from row `i - 1` to row `i`: rows `i - before .. i + after` are in.

    Args:
        sums: As in `take_row`; zeros before row 0.
        matrix: `(rows, columns)`.
        i: The row; rows have to come in order.
        before: Rows before it that are in.
        after: Rows after it that are in.
    """
    full_registers()
    rows = len(matrix)
    for new in range(0 if i == 0 else i + after, min(i + after + 1, rows)):
        take_row(sums, matrix[new], rows - 1 - new, 1.0)
    if i - before - 1 >= 0:
        take_row(sums, matrix[i - before - 1], rows - i + before, -1.0)


@compiled
def _diagonal_sums(matrix: Array, before: int, after: int, out: Array) -> None:
    full_registers()
    rows, columns = matrix.shape
    sums = np.zeros(rows + columns, np.float64)
    for i in range(rows):
        move_on(sums, matrix, i, before, after)
        mine = sums[rows - 1 - i : rows - 1 - i + columns]
        for j in range(columns):
            out[i, j] = mine[j]


@compiled
def best_window(plan: Array, columns: int, window: int) -> Number:
    """Return the largest sum of a diagonal stretch that fits into the pair.

    A protein shorter than the stretch lends its first residue as the only start.

    Args:
        plan: `(query_residues, candidate_residues or more)`; zeros where it is more.
        columns: Candidate residues.
        window: Steps of the stretch.
    """
    full_registers()
    rows = len(plan)
    sums = np.zeros(rows + plan.shape[1], np.float64)
    starts = max(columns - window + 1, 1)
    # One maximum a column: a loop over these becomes vectors, one over a lone maximum does not.
    largest = np.full(starts, -np.inf)
    for i in range(max(rows - window + 1, 1)):
        move_on(sums, plan, i, 0, window - 1)
        reached = sums[rows - 1 - i : rows - 1 - i + starts]
        for j in range(starts):
            largest[j] = reached[j] if reached[j] > largest[j] else largest[j]
    return largest.max()


@compiled
def best_nearby(plan: Array, gap: int, out: Array) -> None:
    """Average the best entries up to `gap` residues aside, along the candidate and the query.

    Args:
        plan: `(query_residues, candidate_residues)`, not negative.
        gap: Residues aside.
        out: Where the averages go, same shape.
    """
    full_registers()
    rows, columns = plan.shape
    along_query = np.empty(columns, np.float32)
    along_candidate = np.empty(columns, np.float32)
    for i in range(rows):
        along_query[:] = plan[i]
        along_candidate[:] = plan[i]
        for k in range(1, gap + 1):
            if i >= k:
                _raise_to(along_query, plan[i - k])
            if i + k < rows:
                _raise_to(along_query, plan[i + k])
            if k < columns:
                _raise_to(along_candidate[k:], plan[i, : columns - k])
                _raise_to(along_candidate[: columns - k], plan[i, k:])
        for j in range(columns):
            out[i, j] = (along_candidate[j] + along_query[j]) * np.float32(0.5)


@compiled
def _raise_to(values: Array, others: Array) -> None:
    full_registers()
    for j in range(len(values)):
        values[j] = values[j] if values[j] > others[j] else others[j]
