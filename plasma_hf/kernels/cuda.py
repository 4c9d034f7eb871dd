"""The kernels of a GPU, in Triton: cost and plan with their gradients, and the parts of a score.

They compute what the functions of `modeling_plasma` with the same names compute in plain torch.

A block of costs stays in registers while the channels stream past, one outer difference a step: 32
query residues, the same for all threads, against one candidate residue a thread. A step then
loads 33 values a thread, 32 of them four at a time, for 96 operations, and exchanges nothing
between threads; a 3-D block reduced over channels would. The gradients have the same form, with
channels in the place of one side while the other side's residues stream past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton import language as tl

from ..models import modeling_plasma as plain
from . import Matches

if TYPE_CHECKING:
    from ..models.configuration_plasma import PlasmaConfig

# --- The hinge cost.


ROW_BLOCK, COLUMN_BLOCK = 32, 128
"""Residues of a block of costs: a column is a thread's own, or each step would shuffle values."""
GRADIENT_BLOCK = 64
"""Residues and channels of a block of gradients: below the threads of a program, same reason."""
OPTIONS = {"num_warps": COLUMN_BLOCK // 32, "num_stages": 1}


def hinge_cost_triton(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess, as `hinge_cost` does.

    Nothing is subtracted from a sum, so a residue costs exactly nothing against itself. Sides are
    float16, bfloat16 or float32, costs float32. Gradients have a fixed order of summation and come
    in the dtype of their input; at a tie the slope is one half, as that of `torch.cdist`.
    """
    batch = torch.broadcast_shapes(query.shape[:1], candidate.shape[:1])
    return _HingeCost.apply(query.expand(*batch, -1, -1), candidate.expand(*batch, -1, -1))


class _HingeCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, candidate: Tensor) -> Tensor:
        ctx.save_for_backward(query, candidate)
        batch, rows, channels = query.shape
        columns = candidate.shape[1]
        cost = query.new_empty(batch, rows, columns, dtype=torch.float32)
        if cost.numel() == 0:
            return cost
        left = _residues_last(query, ROW_BLOCK)
        right = _residues_last(candidate, COLUMN_BLOCK)
        grid = (batch, left.shape[-1] // ROW_BLOCK, right.shape[-1] // COLUMN_BLOCK)
        sizes = (rows, columns, channels, left.shape[-1], right.shape[-1])
        batches, blocks = map(_batch_stride, (left, right)), (ROW_BLOCK, COLUMN_BLOCK)
        with torch.cuda.device_of(cost):  # Triton launches on the current device
            _cost_kernel[grid](left, right, cost, *sizes, *batches, *blocks, **OPTIONS)
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        query, candidate = ctx.saved_tensors
        query_grad = candidate_grad = None
        if ctx.needs_input_grad[0]:
            query_grad = _gradient(query, candidate, grad, 1)
        if ctx.needs_input_grad[1]:
            candidate_grad = _gradient(candidate, query, grad.transpose(1, 2), -1)
        return query_grad, candidate_grad


def _gradient(own: Tensor, other: Tensor, grad: Tensor, sign: int) -> Tensor:
    """Return the gradient of one side; `grad` is `(batch, own residues, other residues)`."""
    batch, residues, channels = own.shape
    out = torch.zeros(own.shape, dtype=own.dtype, device=own.device)
    if out.numel() == 0 or grad.numel() == 0:
        return out
    own, other = _once(own).contiguous(), _once(other).contiguous()
    weight = _residues_last(grad, GRADIENT_BLOCK)  # (batch, other residues, own residues)
    grid = (batch, weight.shape[-1] // GRADIENT_BLOCK, -(-channels // GRADIENT_BLOCK))
    sizes = (residues, other.shape[1], channels, weight.shape[-1])
    batches, blocks = map(_batch_stride, (own, other, weight)), (GRADIENT_BLOCK,) * 2
    with torch.cuda.device_of(out):
        _cost_gradient_kernel[grid](
            own, other, weight, out, *sizes, *batches, sign, *blocks, **OPTIONS
        )
    return out


def _once(tensor: Tensor) -> Tensor:
    """Keep one of a batch that is the same tensor over and over."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _residues_last(tensor: Tensor, block: int) -> Tensor:
    """Copy `(batch, residues, x)` to float32 `(batch, x, residues)`, zeros up to whole blocks."""
    # Whole blocks need no masks and let four values load at once; widening costs less here than
    # at each step.
    tensor = _once(tensor).transpose(1, 2).float()
    return F.pad(tensor, (0, -tensor.shape[-1] % block)).contiguous()


def _batch_stride(tensor: Tensor) -> int:
    return tensor.stride(0) if tensor.shape[0] > 1 else 0


@triton.jit
def _cost_kernel(
    query: tl.tensor,
    candidate: tl.tensor,
    cost: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    channels: tl.tensor,
    query_stride: tl.tensor,
    candidate_stride: tl.tensor,
    query_batch: tl.tensor,
    candidate_batch: tl.tensor,
    row_block: tl.constexpr,
    column_block: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)  # offsets of a large batch exceed 32 bits
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    column = tl.program_id(2) * column_block + tl.arange(0, column_block)
    query += pair * query_batch + row
    candidate += pair * candidate_batch + column
    total = tl.zeros((row_block, column_block), tl.float32)
    for channel in tl.range(0, channels, loop_unroll_factor=8):
        left = tl.load(query + channel * query_stride)
        right = tl.load(candidate + channel * candidate_stride)
        excess = left[:, None] - right[None, :]
        # An ordinary maximum turns NaN to 0: the best cost there is, from a broken embedding.
        total += tl.maximum(excess, 0.0, propagate_nan=tl.PropagateNan.ALL)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    cost += pair * rows * columns
    tl.store(cost + row[:, None] * columns + column[None, :], total, inside)


@triton.jit
def _cost_gradient_kernel(
    own: tl.tensor,
    other: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    residues: tl.tensor,
    others: tl.tensor,
    channels: tl.tensor,
    weight_stride: tl.tensor,
    own_batch: tl.tensor,
    other_batch: tl.tensor,
    weight_batch: tl.tensor,
    sign: tl.constexpr,
    residue_block: tl.constexpr,
    channel_block: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64)
    residue = tl.program_id(1) * residue_block + tl.arange(0, residue_block)
    channel = tl.program_id(2) * channel_block + tl.arange(0, channel_block)
    place = residue[:, None] * channels + channel[None, :]
    inside = (residue < residues)[:, None] & (channel < channels)[None, :]
    # Changing the sign of both sides turns "below" into "above".
    mine = sign * tl.load(own + pair * own_batch + place, inside, 0.0).to(tl.float32)
    other += pair * other_batch + channel
    weight += pair * weight_batch + residue
    total = tl.zeros((residue_block, channel_block), tl.float32)
    for step in tl.range(0, others, loop_unroll_factor=4):
        theirs = tl.load(other + step * channels, channel < channels, 0.0).to(tl.float32)
        theirs = (sign * theirs)[None, :]
        half = (0.5 * tl.load(weight + step * weight_stride))[:, None]
        # Above counts twice a half, a tie once.
        total += half * ((mine > theirs).to(tl.float32) + (mine >= theirs).to(tl.float32))
    total = (sign * total).to(out.dtype.element_ty)
    tl.store(out + pair * residues * channels + place, total, inside)


# --- The partial Sinkhorn plan.

ON_CHIP = 128 * 128
"""Entries of a pair, rounded up to powers of two, that stay in registers."""
STREAMED = 32 * 256
"""Entries of the blocks of rows that stream past."""
PLAN_BLOCKS = (32, 64)
"""Residues of a block where every block has a program: plans and their gradients."""
BLOCK_WARPS = 4


def sinkhorn_triton(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to a partial transport plan, as `sinkhorn` does, in float32.

    The gradient is that of the iterations, each undone in turn.
    """
    return _Plan.apply(log_kernel, candidate_mask, eps, n_iters)


def _potentials(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
) -> tuple[Tensor, Tensor]:
    """Return the query potentials of all iterations, and the candidate's with those before them."""
    batch, rows, columns = log_kernel.shape
    queries = log_kernel.new_empty(batch, n_iters, rows)
    candidates = log_kernel.new_empty(batch, n_iters + 1, columns)
    candidates[:, 0] = 1 / candidate_mask.sum(-1, keepdim=True).clamp(min=1)
    if log_kernel.numel() == 0:
        return queries, candidates
    row_block, column_block = _power_of_two(rows), _power_of_two(columns)
    kernel = _on_chip_kernel
    if row_block * column_block > ON_CHIP:
        kernel, row_block = _streamed_kernel, max(1, STREAMED // column_block)
    tensors, blocks = (log_kernel, queries, candidates), (row_block, column_block)
    with torch.cuda.device_of(log_kernel):  # Triton launches on the current device
        kernel[(batch,)](*tensors, rows, columns, n_iters, eps, *blocks, num_warps=_warps(*blocks))
    return queries, candidates


class _Plan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
    ) -> Tensor:
        log_kernel = log_kernel.float().contiguous()
        queries, candidates = _potentials(log_kernel, candidate_mask, eps, n_iters)
        ctx.save_for_backward(log_kernel, queries, candidates)
        plan = torch.empty_like(log_kernel)
        if plan.numel():
            sizes = (*plan.shape[1:], n_iters, *PLAN_BLOCKS)
            with torch.cuda.device_of(plan):
                _plan_kernel[_plan_grid(plan)](
                    log_kernel, queries, candidates, plan, *sizes, num_warps=BLOCK_WARPS
                )
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        log_kernel, queries, candidates = ctx.saved_tensors
        grad = grad.float().contiguous()
        out = torch.empty_like(log_kernel)
        if out.numel() == 0:
            return out, None, None, None
        sides = torch.empty_like(queries), torch.empty_like(candidates[:, 1:])
        tensors = (log_kernel, grad, queries, candidates, *sides)
        sizes = (*out.shape[1:], queries.shape[1])
        column_block = _power_of_two(out.shape[2])
        blocks = (max(1, STREAMED // column_block), column_block)
        with torch.cuda.device_of(out):
            _adjoint_kernel[(len(out),)](*tensors, *sizes, *blocks, num_warps=_warps(*blocks))
            _plan_gradient_kernel[_plan_grid(out)](
                *tensors, out, *sizes, *PLAN_BLOCKS, num_warps=BLOCK_WARPS
            )
        return out, None, None, None


def _plan_grid(plan: Tensor) -> tuple[int, ...]:
    """Return the programs of a batch of plans, pairs and blocks."""
    batch, *sizes = plan.shape
    return batch, *(-(-size // block) for size, block in zip(sizes, PLAN_BLOCKS, strict=True))


def _warps(row_block: int, column_block: int) -> int:
    """Return warps that leave 32 entries a thread: twice as many spill to memory."""
    return min(16, max(4, row_block * column_block // 1024))


def _power_of_two(residues: int) -> int:
    """Round up to what Triton takes for a block, and to no less than a warp."""
    return max(32, 1 << (residues - 1).bit_length())


@triton.jit
def _load_block(
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


@triton.jit
def _load_kernel(
    log_kernel: tl.tensor, rows: tl.tensor, columns: tl.tensor, row: tl.tensor, column: tl.tensor
) -> tl.tensor:
    """Compute the `(row, column)` entries of a pair's kernel, 0 outside of it."""
    return tl.exp(_load_block(log_kernel, rows, columns, row, column, float("-inf")))


@triton.jit
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
    kernel = _load_kernel(log_kernel, rows, columns, row, column)
    return left[:, None] * kernel * right[None, :]


@triton.jit
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
    kernel = _load_kernel(log_kernel + pair * rows * columns, rows, columns, row, column)
    candidate = tl.load(candidates, column < columns, 0.0)
    for step in range(n_iters):
        query = 1.0 / (tl.sum(kernel * candidate[None, :], 1) + eps)
        candidate = 1.0 / (tl.sum(kernel * query[:, None], 0) + eps)
        tl.store(queries + step * rows, query, row < rows)
        tl.store(candidates + (step + 1) * columns, candidate, column < columns)


@triton.jit
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
            kernel = _load_kernel(log_kernel, rows, columns, row, column)
            query = 1.0 / (tl.sum(kernel * candidate[None, :], 1) + eps)
            mass += tl.sum(kernel * query[:, None], 0)
            tl.store(queries + step * rows + row, query, row < rows)
        candidate = 1.0 / (mass + eps)
        tl.store(candidates + (step + 1) * columns, candidate, column < columns)


@triton.jit
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
    log_kernel += pair * rows * columns
    values = _load_plan(log_kernel, queries, candidates, rows, columns, row, column)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(
        plan + pair * rows * columns + row[:, None] * columns + column[None, :], values, inside
    )


@triton.jit
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
        kernel = _load_kernel(log_kernel, rows, columns, row, column)
        weight = _load_block(grad, rows, columns, row, column, 0.0)
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
            kernel = _load_kernel(log_kernel, rows, columns, row, column)
            weight = _load_block(grad, planned, columns, row, column, 0.0)
            query_grad = tl.sum(kernel * (weight * final[None, :] + side[None, :]), 1)
            query = tl.load(queries + step * rows + row, row < rows, 0.0)
            query_side = -query_grad * query * query
            tl.store(query_sides + step * rows + row, query_side, row < rows)
            candidate_grad += tl.sum(kernel * query_side[:, None], 0)


@triton.jit
def _plan_gradient_kernel(
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
    kernel = _load_kernel(log_kernel, rows, columns, row, column)
    weight = _load_block(grad, rows, columns, row, column, 0.0)
    total = kernel * (total + weight * query[:, None] * candidate[None, :])
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], total, inside)


# --- What a score needs of a plan, without writing the plan.


@torch.no_grad()
def score_padded_triton(
    embeddings: Sequence[Tensor],
    projections: Sequence[Tensor],
    masks: Sequence[Tensor],
    config: PlasmaConfig,
) -> Tensor:
    """Score a padded batch, `(batch,)`, without writing its plans."""
    cost = hinge_cost_triton(*projections)
    lengths = [mask.sum(-1) for mask in masks]
    kernel = plain.log_kernel(cost, config.kernel_scale, masks[0], masks[1])
    matches = align_scores_triton(kernel, lengths[0], lengths[1], config)
    if config.score_form == "mass":
        return plain.share_of_shorter(matches.mass, *lengths)
    query, candidate = (side.float() for side in embeddings)
    similarity = plain.matched_similarity(matches.transported, query, matches.matched, candidate)
    return plain.with_window(similarity, matches.window, config.diagonal_window)


@torch.no_grad()
def align_scores_triton(
    log_kernel: Tensor, query_lengths: Tensor, candidate_lengths: Tensor, config: PlasmaConfig
) -> Matches:
    """Find what is matched by the plan of a padded batch, without gradient.

    Residues of a protein are the first of its row: nothing is masked in between.
    """
    log_kernel = log_kernel.float().contiguous()
    batch, rows, columns = log_kernel.shape
    position = torch.arange(columns, device=log_kernel.device)
    mask = position < candidate_lengths.unsqueeze(-1)
    queries, candidates = _potentials(log_kernel, mask, config.eps, config.n_iters)
    plan = (log_kernel, queries[:, -1].contiguous(), candidates[:, -1].contiguous())
    if log_kernel.numel() == 0:
        nothing = log_kernel.new_zeros(batch)
        return Matches(plan[1] * 0, plan[2] * 0, nothing, nothing)
    grid = _plan_grid(log_kernel)[:2]
    best = log_kernel.new_empty(batch, rows)
    best_of_block = log_kernel.new_empty(batch, grid[1], columns)
    sent = torch.empty_like(best)
    mass_of_block = log_kernel.new_empty(batch, grid[1])
    sizes = (rows, columns, *PLAN_BLOCKS)
    with torch.cuda.device_of(log_kernel):
        _best_kernel[grid](*plan, best, best_of_block, *sizes, num_warps=BLOCK_WARPS)
        gate = (best_of_block.amax(1) > config.threshold).to(log_kernel.dtype)
        _sent_kernel[grid](
            *plan, best, gate, sent, mass_of_block, config.threshold, *sizes, num_warps=BLOCK_WARPS
        )
    window = _best_window(plan, query_lengths, candidate_lengths, config.diagonal_window)
    return Matches(sent, gate, window, mass_of_block.sum(-1))


def _best_window(
    plan: tuple[Tensor, Tensor, Tensor],
    query_lengths: Tensor,
    candidate_lengths: Tensor,
    window: int,
) -> Tensor:
    grid, sizes = _plan_grid(plan[0]), (*plan[0].shape[1:], *PLAN_BLOCKS)
    if window <= 0:
        return plan[0].new_zeros(grid[0])
    of_block = plan[0].new_empty(grid)
    lengths = (
        each.to(of_block.device, torch.int32).contiguous()
        for each in (query_lengths, candidate_lengths)
    )
    with torch.cuda.device_of(of_block):
        _window_kernel[grid](*plan, *lengths, of_block, window, *sizes, num_warps=BLOCK_WARPS)
    return of_block.amax((1, 2))


@triton.jit
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


@triton.jit
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


@triton.jit
def _window_kernel(
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
