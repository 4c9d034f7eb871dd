"""What the score needs of a plan, on CUDA, in Triton: the twin of `score`, without the plan.

The published score asks which residues are matched, what the plan sends to them and its best
stretch of diagonal. All of that is summed from blocks of the plan that never leave the chip.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

try:
    from triton import language as tl
except ImportError:
    pass
from .cost_triton import jit
from .plan_triton import BLOCK_WARPS, COLUMN_BLOCK, ROW_BLOCK, load_kernel, potentials


class Matches(NamedTuple):
    """Hold what is matched in each pair of a batch.

    Attributes:
        sent: What each query residue sends to matched candidate residues, 0 for one that is not
            matched itself, `(batch, query_residues)`.
        candidate_gate: 1 for a matched candidate residue, 0 for others,
            `(batch, candidate_residues)`.
        stretch: Largest sum over a stretch of diagonal, `(batch,)`.
        mass: Sum of plan entries above the threshold, `(batch,)`.
    """

    sent: Tensor
    candidate_gate: Tensor
    stretch: Tensor
    mass: Tensor


@torch.no_grad()
def align_scores_triton(
    log_kernel: Tensor,
    query_lengths: Tensor,
    candidate_lengths: Tensor,
    *,
    eps: float = 1e-8,
    n_iters: int = 20,
    threshold: float = 0.5,
    diagonal_window: int = 10,
) -> Matches:
    """Find what is matched by the plan in its published form, without gradient.

    Residues of a protein are the first of its row: nothing is masked in between.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`, see `sinkhorn.log_kernel`.
        query_lengths: Residues of each query, integers, `(batch,)`.
        candidate_lengths: Residues of each candidate, integers, `(batch,)`.
        eps: Slack of each residue.
        n_iters: Iterations, at least one.
        threshold: Plan entry above which a residue is matched.
        diagonal_window: Steps of the stretch; 0 leaves it out, as zeros.

    Source: PLASMA (ICLR 2026), the plan assessor, at batch size 1.
    """
    log_kernel = log_kernel.float().contiguous()
    batch, rows, columns = log_kernel.shape
    position = torch.arange(columns, device=log_kernel.device)
    mask = position < candidate_lengths.unsqueeze(-1)
    queries, candidates = potentials(log_kernel, mask, eps, n_iters)
    plan = (log_kernel, queries[:, -1].contiguous(), candidates[:, -1].contiguous())
    if log_kernel.numel() == 0:
        nothing = log_kernel.new_zeros(batch)
        return Matches(plan[1] * 0, plan[2] * 0, nothing, nothing)
    grid = (batch, -(-rows // ROW_BLOCK))
    best = log_kernel.new_empty(batch, rows)
    best_of_block = log_kernel.new_empty(batch, grid[1], columns)
    sent = torch.empty_like(best)
    mass_of_block = log_kernel.new_empty(batch, grid[1])
    sizes = (rows, columns, ROW_BLOCK, COLUMN_BLOCK)
    with torch.cuda.device_of(log_kernel):
        _best_kernel[grid](*plan, best, best_of_block, *sizes, num_warps=BLOCK_WARPS)
        gate = (best_of_block.amax(1) > threshold).to(log_kernel.dtype)
        _sent_kernel[grid](
            *plan, best, gate, sent, mass_of_block, threshold, *sizes, num_warps=BLOCK_WARPS
        )
    stretch = _best_stretch(plan, query_lengths, candidate_lengths, diagonal_window)
    return Matches(sent, gate, stretch, mass_of_block.sum(-1))


def _best_stretch(
    plan: tuple[Tensor, Tensor, Tensor],
    query_lengths: Tensor,
    candidate_lengths: Tensor,
    window: int,
) -> Tensor:
    batch, rows, columns = plan[0].shape
    grid = (batch, -(-rows // ROW_BLOCK), -(-columns // COLUMN_BLOCK))
    if window <= 0:
        return plan[0].new_zeros(batch)
    of_block = plan[0].new_empty(grid)
    with torch.cuda.device_of(of_block):
        _stretch_kernel[grid](
            *plan,
            query_lengths.to(of_block.device, torch.int32).contiguous(),
            candidate_lengths.to(of_block.device, torch.int32).contiguous(),
            of_block,
            window,
            rows,
            columns,
            ROW_BLOCK,
            COLUMN_BLOCK,
            num_warps=BLOCK_WARPS,
        )
    return of_block.amax((1, 2))


@jit
def _load_plan(
    log_kernel: tl.tensor,
    query: tl.tensor,
    candidate: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
) -> tl.tensor:
    """Compute the `(row, column)` entries of a pair's plan, 0 outside of it."""
    left = tl.load(query + row, row < rows, 0.0)
    right = tl.load(candidate + column, column < columns, 0.0)
    kernel = load_kernel(log_kernel, rows, columns, row, column)
    return left[:, None] * kernel * right[None, :]


@jit
def _best_kernel(
    log_kernel: tl.tensor,
    query: tl.tensor,
    candidate: tl.tensor,
    best: tl.tensor,
    best_of_block: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    """Store the largest entry of each row, and of each column within these rows."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    log_kernel += pair * rows * columns
    query += pair * rows
    candidate += pair * columns
    best_of_block += (pair * tl.num_programs(1) + tl.program_id(1)) * columns
    largest = tl.zeros((row_block,), tl.float32)
    for first in range(0, columns, column_block):
        column = first + tl.arange(0, column_block)
        plan = _load_plan(log_kernel, query, candidate, rows, columns, row, column)
        largest = tl.maximum(largest, tl.max(plan, 1))
        tl.store(best_of_block + column, tl.max(plan, 0), column < columns)
    tl.store(best + pair * rows + row, largest, row < rows)


@jit
def _sent_kernel(
    log_kernel: tl.tensor,
    query: tl.tensor,
    candidate: tl.tensor,
    best: tl.tensor,
    gate: tl.tensor,
    sent: tl.tensor,
    mass_of_block: tl.tensor,
    threshold: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    """Store what matched rows send to matched columns, and the mass above the threshold."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    log_kernel += pair * rows * columns
    query += pair * rows
    candidate += pair * columns
    gate += pair * columns
    total = tl.zeros((row_block,), tl.float32)
    mass = tl.zeros((row_block,), tl.float32)
    for first in range(0, columns, column_block):
        column = first + tl.arange(0, column_block)
        plan = _load_plan(log_kernel, query, candidate, rows, columns, row, column)
        open_gate = tl.load(gate + column, column < columns, 0.0)
        total += tl.sum(plan * open_gate[None, :], 1)
        mass += tl.sum(tl.where(plan > threshold, plan, 0.0), 1)
    matched = tl.load(best + pair * rows + row, row < rows, 0.0) > threshold
    tl.store(sent + pair * rows + row, tl.where(matched, total, 0.0), row < rows)
    tl.store(mass_of_block + pair * tl.num_programs(1) + tl.program_id(1), tl.sum(mass, 0))


@jit
def _stretch_kernel(
    log_kernel: tl.tensor,
    query: tl.tensor,
    candidate: tl.tensor,
    query_lengths: tl.tensor,
    candidate_lengths: tl.tensor,
    of_block: tl.tensor,
    window: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    """Store the largest sum over a stretch that starts in this block and fits into the pair."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    column = tl.program_id(2) * column_block + tl.arange(0, column_block)
    log_kernel += pair * rows * columns
    query += pair * rows
    candidate += pair * columns
    total = tl.zeros((row_block, column_block), tl.float32)
    for step in range(window):
        total += _load_plan(log_kernel, query, candidate, rows, columns, row + step, column + step)
    query_length = tl.load(query_lengths + pair)
    candidate_length = tl.load(candidate_lengths + pair)
    # A protein shorter than the stretch has one start, its first residue.
    row_starts = (row < query_length) & ((row + window <= query_length) | (row == 0))
    column_starts = (column < candidate_length) & (
        (column + window <= candidate_length) | (column == 0)
    )
    total = tl.where(row_starts[:, None] & column_starts[None, :], total, -1e30)
    place = (pair * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2)
    tl.store(of_block + place + tl.program_id(2), tl.max(tl.max(total, 1), 0))
