"""The hinge cost on CUDA, in Triton: the twin of `cost`, and its gradients.

A block of costs stays in registers while the channels stream past, one outer difference a step:
32 query residues, the same for all threads, against one candidate residue a thread. A step then
loads 33 values a thread, 32 of them four at a time, for 96 operations, and exchanges nothing
between threads; a 3-D block reduced over channels would. The gradients have the same form, with
channels in the place of one side while the other side's residues stream past.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _plain(kernel: Callable[..., Any]) -> Any:
    return kernel


try:
    import triton
    from triton import language as tl
except ImportError:  # nobody calls what is below then, see `kernels`
    jit = _plain
else:
    jit = triton.jit

ROW_BLOCK, COLUMN_BLOCK = 32, 128
"""Residues of a block of costs: a column is a thread's own, or each step would shuffle values."""
GRADIENT_BLOCK = 64
"""Residues and channels of a block of gradients: below the threads of a program, same reason."""
OPTIONS = {"num_warps": COLUMN_BLOCK // 32, "num_stages": 1}


def hinge_cost_triton(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess, as `hinge_cost` does.

    Nothing is subtracted from a sum, so a residue costs exactly nothing against itself. Gradients
    have a fixed order of summation and come in the dtype of their input; at a tie the slope is
    one half, which is what `torch.cdist` gives.

    Args:
        query: Projected query residues, `(batch, query_residues, channels)`, float16, bfloat16 or
            float32; a batch of one meets every candidate.
        candidate: Projected candidate residues, `(batch, candidate_residues, channels)`.

    Returns:
        The cost, `(batch, query_residues, candidate_residues)`, float32.

    Source: PLASMA (ICLR 2026), the hinge cost.
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
        with torch.cuda.device_of(cost):  # Triton launches on the current device
            _cost_kernel[grid](
                left,
                right,
                cost,
                rows,
                columns,
                channels,
                left.shape[-1],
                right.shape[-1],
                _batch_stride(left),
                _batch_stride(right),
                ROW_BLOCK,
                COLUMN_BLOCK,
                **OPTIONS,
            )
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
    with torch.cuda.device_of(out):
        _gradient_kernel[grid](
            own,
            other,
            weight,
            out,
            residues,
            other.shape[1],
            channels,
            weight.shape[-1],
            _batch_stride(own),
            _batch_stride(other),
            _batch_stride(weight),
            sign,
            GRADIENT_BLOCK,
            GRADIENT_BLOCK,
            **OPTIONS,
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


@jit
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


@jit
def _gradient_kernel(
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
