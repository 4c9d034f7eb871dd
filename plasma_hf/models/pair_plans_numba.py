"""Plans of pairs of any lengths with their gradients, compiled for a CPU: for training.

A pair is computed by one thread from projections to plan, and back; nothing is padded, and torch
has nothing to do in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .align_numba import area, matrix_of, sum_rows, to_exponents
from .compiled_numba import (
    Number,
    compiled,
    full_registers,
    scratch_floats,
    share_out_with,
)
from .cost_numba import BLOCK, pull_part, weigh
from .plan_numba import exponential, iterate, published_backward, scale
from .tile_numba import PULL_LANES, PULL_ROWS

Array = NDArray[np.float32]


def pair_plans_numba(
    query: Sequence[Tensor],
    candidate: Sequence[Tensor],
    kernel_scale: float,
    eps: float = 1e-8,
    n_iters: int = 20,
) -> tuple[Tensor, ...]:
    """Make the plans of `query[p]` and `candidate[p]` in the published form, with gradient.

    Args:
        query: Projected proteins, `(1, residues, channels)` in float32, without padding.
        candidate: As many, likewise.
        kernel_scale: What multiplies the cost in the exponent.
        eps: Slack of each residue.
        n_iters: Iterations, at least 1.

    Returns:
        Plans, `(1, query_residues, candidate_residues)` each.
    """
    plans: tuple[Tensor, ...] = _PairPlans.apply(kernel_scale, eps, n_iters, *query, *candidate)
    return plans


class _PairPlans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel_scale: float, eps: float, n_iters: int, *sides: Tensor
    ) -> tuple[Tensor, ...]:
        query, candidate = _in_pairs(sides)
        sizes = [(len(q), len(c)) for q, c in zip(query, candidate, strict=True)]
        plans = [torch.empty(1, *size) for size in sizes]
        kernels = [torch.empty(size) for size in sizes]
        u = [torch.empty(n_iters, rows) for rows, _ in sizes]
        v = [torch.full((n_iters + 1, columns), 1 / columns) for _, columns in sizes]
        arrays = [_arrays(each) for each in (query, candidate, kernels, u, v)]
        plan_arrays = [plan[0].numpy() for plan in plans]
        numbers = np.float32(kernel_scale), np.float32(eps)

        def pair(scratch: Array, p: int) -> None:
            _forward(*(each[p] for each in arrays), *numbers, scratch, plan_arrays[p])

        room = max(area(q, c) for q, c in zip(*arrays[:2], strict=True))
        _share_out_pairs(lambda: scratch_floats(room), pair, sizes)
        ctx.save_for_backward(*sides, *kernels, *u, *v)
        ctx.kernel_scale = kernel_scale
        return tuple(plans)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = len(grads)
        saved = ctx.saved_tensors
        query, candidate = _in_pairs(saved[: 2 * count])
        channels = query[0].shape[1]
        # Whole vectors of channels: rare widths are copied, the usual ones are multiples anyway.
        spare = -channels % PULL_LANES
        if spare:
            query, candidate = ([F.pad(s, (0, spare)) for s in side] for side in (query, candidate))
        rest = [saved[(2 + k) * count : (3 + k) * count] for k in range(3)]
        given = [grad[0].contiguous() for grad in grads]
        out = [[torch.empty_like(s) for s in side] for side in (query, candidate)]
        arrays = [_arrays(each) for each in (query, candidate, *rest, given, *out)]
        factor = np.float32(-ctx.kernel_scale)

        def pair(_: None, p: int) -> None:
            _backward(*(each[p] for each in arrays), factor)

        _share_out_pairs(lambda: None, pair, [grad.shape for grad in given])
        return None, None, None, *(s[:, :channels].unsqueeze(0) for side in out for s in side)


def _in_pairs(sides: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    rows = [side.detach()[0].contiguous() for side in sides]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def _share_out_pairs(
    prepare: Callable[[], Any], pair: Callable[[Any, int], None], sizes: Sequence[Any]
) -> None:
    """Give pairs to threads, the largest first: then they end at about the same time."""
    order = sorted(range(len(sizes)), key=lambda p: -sizes[p][0] * sizes[p][1])
    share_out_with(prepare, lambda own, number: pair(own, order[number]), len(order))


@compiled
def _forward(
    query: Array,
    candidate: Array,
    kernel: Array,
    u: Array,
    v: Array,
    kernel_scale: Number,
    eps: Number,
    scratch: Array,
    plan: Array,
) -> None:
    full_registers()
    rows, columns = kernel.shape
    sum_rows(query, candidate, scratch, 0, rows)
    exponents = matrix_of(scratch, 0, rows, columns)[:rows]
    to_exponents(query, candidate, exponents, kernel_scale)
    for i in range(rows):
        for j in range(columns):
            kernel[i, j] = exponential(exponents[i, j])
    iterate(kernel, u, v, eps)
    scale(kernel, u[-1], v[-1], plan)


@compiled
def _backward(
    query: Array,
    candidate: Array,
    kernel: Array,
    u: Array,
    v: Array,
    grad: Array,
    for_query: Array,
    for_candidate: Array,
    factor: Number,
) -> None:
    full_registers()
    rows, columns = kernel.shape
    tiles = -(-rows // PULL_ROWS)
    of_cost = np.empty((rows, columns), np.float32)
    published_backward(kernel, u, v, grad, of_cost)
    for i in range(rows):
        for j in range(columns):
            of_cost[i, j] *= factor
    counts = np.empty(tiles, np.int64)
    places = np.empty((tiles, columns), np.int64)
    weights = np.empty((tiles, columns, PULL_ROWS), np.float32)
    for first in range(0, tiles, BLOCK // PULL_ROWS):
        weigh(of_cost, first, places, weights, counts)
    for channel in range(0, query.shape[1], PULL_LANES):
        pull_part(query, candidate, places, weights, counts, channel, for_query, for_candidate)
