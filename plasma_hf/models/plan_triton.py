"""The published plan on CUDA, in Triton: the twin of `sinkhorn` without `tol`, and its gradient.

One program scales one pair. Where the pair fits, its kernel stays in registers for all
iterations; otherwise blocks of whole rows stream past once an iteration, since a row's query
potential is all that its part in the candidate potentials waits for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from triton import language as tl
except ImportError:
    pass
from .cost_triton import jit

ON_CHIP = 128 * 128
"""Entries of a pair, rounded up to powers of two, that stay in registers."""
STREAMED = 32 * 256
"""Entries of the blocks of rows that stream past."""
ROW_BLOCK, COLUMN_BLOCK = 32, 64
"""Residues of a block where every block has a program: plans and their gradients."""
BLOCK_WARPS = 4


def sinkhorn_triton(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to a partial transport plan, as `sinkhorn` does in its published form.

    The linear domain, in float32. The gradient is that of the iterations, each undone in turn.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`, see `sinkhorn.log_kernel`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        n_iters: Iterations, at least one.

    Returns:
        The plan, shaped like `log_kernel`, float32; 0 where either residue is masked.

    Source: PLASMA (ICLR 2026), the partial Sinkhorn plan.
    """
    return _Plan.apply(log_kernel, candidate_mask, eps, n_iters)


def potentials(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
) -> tuple[Tensor, Tensor]:
    """Iterate, and keep the potentials of all iterations.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`, float32, contiguous.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        n_iters: Iterations, at least one.

    Returns:
        Query potentials, `(batch, n_iters, query_residues)`, and candidate potentials,
        `(batch, n_iters + 1, candidate_residues)`, which begin with those before the first
        iteration.
    """
    batch, rows, columns = log_kernel.shape
    queries = log_kernel.new_empty(batch, n_iters, rows)
    candidates = log_kernel.new_empty(batch, n_iters + 1, columns)
    candidates[:, 0] = 1 / candidate_mask.sum(-1, keepdim=True).clamp(min=1)
    if log_kernel.numel() == 0:
        return queries, candidates
    row_block, column_block = power_of_two(rows), power_of_two(columns)
    kernel = _on_chip_kernel
    if row_block * column_block > ON_CHIP:
        kernel, row_block = _streamed_kernel, max(1, STREAMED // column_block)
    with torch.cuda.device_of(log_kernel):  # Triton launches on the current device
        kernel[(batch,)](
            log_kernel,
            queries,
            candidates,
            rows,
            columns,
            n_iters,
            eps,
            row_block,
            column_block,
            num_warps=_warps(row_block * column_block),
        )
    return queries, candidates


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
    ) -> Tensor:
        log_kernel = log_kernel.float().contiguous()
        queries, candidates = potentials(log_kernel, candidate_mask, eps, n_iters)
        ctx.save_for_backward(log_kernel, queries, candidates)
        batch, rows, columns = log_kernel.shape
        plan = torch.empty_like(log_kernel)
        if plan.numel() == 0:
            return plan
        grid = (batch, -(-rows // ROW_BLOCK), -(-columns // COLUMN_BLOCK))
        with torch.cuda.device_of(plan):
            _plan_kernel[grid](
                log_kernel,
                queries,
                candidates,
                plan,
                rows,
                columns,
                n_iters,
                ROW_BLOCK,
                COLUMN_BLOCK,
                num_warps=BLOCK_WARPS,
            )
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        log_kernel, queries, candidates = ctx.saved_tensors
        grad = grad.float().contiguous()
        batch, rows, columns = log_kernel.shape
        n_iters = queries.shape[1]
        query_sides = torch.empty_like(queries)
        candidate_sides = torch.empty_like(candidates[:, 1:])
        out = torch.empty_like(log_kernel)
        if out.numel() == 0:
            return out, None, None, None
        column_block = power_of_two(columns)
        row_block = max(1, STREAMED // column_block)
        tensors = (log_kernel, grad, queries, candidates, query_sides, candidate_sides)
        grid = (batch, -(-rows // ROW_BLOCK), -(-columns // COLUMN_BLOCK))
        with torch.cuda.device_of(out):
            _adjoint_kernel[(batch,)](
                *tensors,
                rows,
                columns,
                n_iters,
                row_block,
                column_block,
                num_warps=_warps(row_block * column_block),
            )
            _gradient_kernel[grid](
                *tensors,
                out,
                rows,
                columns,
                n_iters,
                ROW_BLOCK,
                COLUMN_BLOCK,
                num_warps=BLOCK_WARPS,
            )
        return out, None, None, None


def _warps(entries: int) -> int:
    """Return warps that leave 32 entries a thread: twice as many spill to memory."""
    return min(16, max(4, entries // 1024))


def power_of_two(residues: int) -> int:
    """Round up to what Triton takes for a block, and to no less than a warp."""
    return max(32, 1 << (residues - 1).bit_length())


@jit
def load_block(
    values: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    other: tl.constexpr,
) -> tl.tensor:
    """Load the `(row, column)` entries of a pair, `other` outside of it."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(values + row[:, None] * columns + column[None, :], inside, other)


@jit
def load_kernel(
    log_kernel: tl.tensor, rows: tl.tensor, columns: tl.tensor, row: tl.tensor, column: tl.tensor
) -> tl.tensor:
    """Compute the `(row, column)` entries of a pair's kernel, 0 outside of it."""
    return tl.exp(load_block(log_kernel, rows, columns, row, column, float("-inf")))


@jit
def _on_chip_kernel(
    log_kernel: tl.tensor,
    queries: tl.tensor,
    candidates: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_iters: tl.tensor,
    eps: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)  # offsets of a large batch exceed 32 bits
    row = tl.arange(0, row_block)
    column = tl.arange(0, column_block)
    queries += pair * n_iters * rows + row
    candidates += pair * (n_iters + 1) * columns + column
    kernel = load_kernel(log_kernel + pair * rows * columns, rows, columns, row, column)
    candidate = tl.load(candidates, column < columns, 0.0)
    for step in range(n_iters):
        query = 1.0 / (tl.sum(kernel * candidate[None, :], 1) + eps)
        candidate = 1.0 / (tl.sum(kernel * query[:, None], 0) + eps)
        tl.store(queries + step * rows, query, row < rows)
        tl.store(candidates + (step + 1) * columns, candidate, column < columns)


@jit
def _streamed_kernel(
    log_kernel: tl.tensor,
    queries: tl.tensor,
    candidates: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_iters: tl.tensor,
    eps: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, column_block)
    queries += pair * n_iters * rows
    candidates += pair * (n_iters + 1) * columns + column
    log_kernel += pair * rows * columns
    candidate = tl.load(candidates, column < columns, 0.0)
    for step in range(n_iters):
        mass = tl.zeros((column_block,), tl.float32)
        for first in range(0, rows, row_block):
            row = first + tl.arange(0, row_block)
            kernel = load_kernel(log_kernel, rows, columns, row, column)
            query = 1.0 / (tl.sum(kernel * candidate[None, :], 1) + eps)
            mass += tl.sum(kernel * query[:, None], 0)
            tl.store(queries + step * rows + row, query, row < rows)
        candidate = 1.0 / (mass + eps)
        tl.store(candidates + (step + 1) * columns, candidate, column < columns)


@jit
def _plan_kernel(
    log_kernel: tl.tensor,
    queries: tl.tensor,
    candidates: tl.tensor,
    plan: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_iters: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    column = tl.program_id(2) * column_block + tl.arange(0, column_block)
    queries += (pair * n_iters + n_iters - 1) * rows
    candidates += (pair * (n_iters + 1) + n_iters) * columns
    kernel = load_kernel(log_kernel + pair * rows * columns, rows, columns, row, column)
    query = tl.load(queries + row, row < rows, 0.0)
    candidate = tl.load(candidates + column, column < columns, 0.0)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    plan += pair * rows * columns + row[:, None] * columns + column[None, :]
    tl.store(plan, query[:, None] * kernel * candidate[None, :], inside)


@jit
def _adjoint_kernel(
    log_kernel: tl.tensor,
    grad: tl.tensor,
    queries: tl.tensor,
    candidates: tl.tensor,
    query_sides: tl.tensor,
    candidate_sides: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_iters: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    """Store the gradient of every sum that an iteration inverts, from the last one back."""
    pair = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, column_block)
    queries += pair * n_iters * rows
    query_sides += pair * n_iters * rows
    candidates += pair * (n_iters + 1) * columns + column
    candidate_sides += pair * n_iters * columns + column
    log_kernel += pair * rows * columns
    grad += pair * rows * columns
    last = n_iters - 1
    candidate_grad = tl.zeros((column_block,), tl.float32)
    for first in range(0, rows, row_block):
        row = first + tl.arange(0, row_block)
        kernel = load_kernel(log_kernel, rows, columns, row, column)
        weight = load_block(grad, rows, columns, row, column, 0.0)
        query = tl.load(queries + last * rows + row, row < rows, 0.0)
        candidate_grad += tl.sum(weight * kernel * query[:, None], 0)
    final = tl.load(candidates + n_iters * columns, column < columns, 0.0)
    for back in range(n_iters):
        step = last - back
        candidate = tl.load(candidates + (step + 1) * columns, column < columns, 0.0)
        side = -candidate_grad * candidate * candidate
        tl.store(candidate_sides + step * columns, side, column < columns)
        candidate_grad = tl.zeros((column_block,), tl.float32)
        # The plan itself depends on the last query potential only: no row is left after it.
        planned = tl.where(back == 0, rows, 0)
        for first in range(0, rows, row_block):
            row = first + tl.arange(0, row_block)
            kernel = load_kernel(log_kernel, rows, columns, row, column)
            weight = load_block(grad, planned, columns, row, column, 0.0)
            query_grad = tl.sum(kernel * (weight * final[None, :] + side[None, :]), 1)
            query = tl.load(queries + step * rows + row, row < rows, 0.0)
            query_side = -query_grad * query * query
            tl.store(query_sides + step * rows + row, query_side, row < rows)
            candidate_grad += tl.sum(kernel * query_side[:, None], 0)


@jit
def _gradient_kernel(
    log_kernel: tl.tensor,
    grad: tl.tensor,
    queries: tl.tensor,
    candidates: tl.tensor,
    query_sides: tl.tensor,
    candidate_sides: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    n_iters: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    """Sum what every iteration gives to the log-kernel."""
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    column = tl.program_id(2) * column_block + tl.arange(0, column_block)
    queries += pair * n_iters * rows + row
    query_sides += pair * n_iters * rows + row
    candidates += pair * (n_iters + 1) * columns + column
    candidate_sides += pair * n_iters * columns + column
    log_kernel += pair * rows * columns
    grad += pair * rows * columns
    out += pair * rows * columns
    query = tl.zeros((row_block,), tl.float32)
    candidate = tl.load(candidates, column < columns, 0.0)
    total = tl.zeros((row_block, column_block), tl.float32)
    for step in range(n_iters):
        query = tl.load(queries + step * rows, row < rows, 0.0)
        side = tl.load(query_sides + step * rows, row < rows, 0.0)
        total += side[:, None] * candidate[None, :]
        side = tl.load(candidate_sides + step * columns, column < columns, 0.0)
        total += query[:, None] * side[None, :]
        candidate = tl.load(candidates + (step + 1) * columns, column < columns, 0.0)
    kernel = load_kernel(log_kernel, rows, columns, row, column)
    weight = load_block(grad, rows, columns, row, column, 0.0)
    total = kernel * (total + weight * query[:, None] * candidate[None, :])
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], total, inside)
