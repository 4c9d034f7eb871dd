"""The hinge cost and its gradient, compiled for a CPU; see `cost` for what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import Number, compiled, share_out
from .tile_numba import (
    LANES,
    PULL_LANES,
    PULL_ROWS,
    TILE_COLUMNS,
    TILE_ROWS,
    pull,
    sum_of_larger,
    sum_of_rows,
)

Array = NDArray[np.float32]

BLOCK = 64
"""Query rows a task; a multiple of all tiles, so that blocks do not change a result."""
WIDTH = 16
"""Scratch matrices have a multiple of this many columns, for whole tiles and aligned rows."""


def hinge_cost_numba(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess, as `hinge_cost` does.

    Costs that are not finite are so where those of `hinge_cost` are: NaN for any NaN, for -inf in
    the query and for inf in the candidate; inf for the two other infinities.

    Args:
        query: Projected query residues in float32, `(batch, query_residues, channels)`.
        candidate: Projected candidate residues, `(batch, candidate_residues, channels)`.

    Returns:
        The cost, `(batch, query_residues, candidate_residues)`.
    """
    return _HingeCost.apply(query, candidate)


class _HingeCost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, candidate: Tensor) -> Tensor:
        query, candidate = query.detach().contiguous(), candidate.detach().contiguous()
        ctx.save_for_backward(query, candidate)
        batch, rows, columns = len(query), query.shape[1], candidate.shape[1]
        cost = query.new_empty(batch, rows, columns)
        if cost.numel() == 0:
            return cost
        q, c, out = query.numpy(), candidate.numpy(), cost.numpy()
        offsets = np.empty((batch, columns), np.float32)
        share_out(lambda pair: self_sums(c[pair], offsets[pair]), batch)
        blocks = -(-rows // BLOCK)

        def block(number: int) -> None:
            pair, first = number // blocks, number % blocks * BLOCK
            _cost_block(q[pair], c[pair], offsets[pair], first, out[pair])

        share_out(block, batch * blocks)
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        query, candidate = ctx.saved_tensors
        sums = _pulled(query, candidate, grad.to(torch.float32))
        for_query, for_candidate = (
            side if needed else None
            for side, needed in zip(sums, ctx.needs_input_grad, strict=True)
        )
        return for_query, for_candidate


def _pulled(query: Tensor, candidate: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of the pairs whose query residue is larger, ties half.

    Channels do not depend on each other, and every task has some for itself: one comparison
    serves both sides.

    Args:
        query: `(batch, query_residues, channels)`.
        candidate: `(batch, candidate_residues, channels)`.
        grad: `(batch, query_residues, candidate_residues)`.

    Returns:
        The gradients for both, of their shapes.
    """
    batch, rows, columns = grad.shape
    channels = query.shape[2]
    # Whole vectors of channels: rare widths are copied, the usual ones are multiples anyway.
    spare = -channels % PULL_LANES
    if spare:
        query, candidate = (
            torch.nn.functional.pad(side, (0, spare)) for side in (query, candidate)
        )
    for_query, for_candidate = torch.zeros_like(query), torch.zeros_like(candidate)
    if grad.numel() and channels:
        tiles = -(-rows // PULL_ROWS)
        counts = np.empty((batch, tiles), np.int64)
        places = np.empty((batch, tiles, columns), np.int64)
        weights = np.empty((batch, tiles, columns, PULL_ROWS), np.float32)
        q, c, g = query.numpy(), candidate.numpy(), grad.contiguous().numpy()
        q_out, c_out = for_query.numpy(), for_candidate.numpy()
        blocks, parts = -(-rows // BLOCK), query.shape[2] // PULL_LANES

        def weigh_block(number: int) -> None:
            pair, first = number // blocks, number % blocks * (BLOCK // PULL_ROWS)
            weigh(g[pair], first, places[pair], weights[pair], counts[pair])

        def part(number: int) -> None:
            pair, at = number // parts, number % parts * PULL_LANES
            found = places[pair], weights[pair], counts[pair]
            pull_part(q[pair], c[pair], *found, at, q_out[pair], c_out[pair])

        share_out(weigh_block, batch * blocks)
        share_out(part, batch * parts)
    return for_query[..., :channels], for_candidate[..., :channels]


@compiled
def self_sums(rows: Array, out: Array) -> None:
    """Sum rows over channels, in exactly the order in which `sum_of_larger` sums.

    The cost of equal rows is then exactly 0.

    Args:
        rows: `(residues, channels)`.
        out: Where the sums go, `(residues,)`.
    """
    some = np.empty(LANES, np.float32)
    for first in range(0, len(rows), LANES):
        sum_of_rows(rows, first, some)
        for k in range(min(LANES, len(rows) - first)):
            out[first + k] = some[k]


@compiled
def larger_sums(query: Array, candidate: Array, first: int, last: int, out: Array) -> None:
    """Sum `max(query, candidate)` over channels, for query rows `first` to `last`.

    Args:
        query: `(query_residues, channels)`.
        candidate: `(candidate_residues, channels)`.
        first: First query row.
        last: The row after the last.
        out: Where they go, from row 0 on; room for whole tiles, at least
            `(last - first up to TILE_ROWS, candidate_residues up to TILE_COLUMNS)`.
    """
    for j in range(0, len(candidate), TILE_COLUMNS):
        for i in range(first, last, TILE_ROWS):
            sum_of_larger(query, i, candidate, j, out, i - first)


@compiled
def _cost_block(query: Array, candidate: Array, offsets: Array, first: int, out: Array) -> None:
    columns = len(candidate)
    last = min(first + BLOCK, len(query))
    sums = np.empty((BLOCK, -(-columns // WIDTH) * WIDTH), np.float32)
    own = np.empty(last - first, np.float32)
    larger_sums(query, candidate, first, last, sums)
    self_sums(query[first:last], own)
    for i in range(last - first):
        excess = hidden_nan(own[i])
        for j in range(columns):
            out[first + i, j] = sums[i, j] - offsets[j] + excess


@compiled
def hidden_nan(row_sum: Number) -> Number:
    """Return NaN for a query row with a NaN or -inf, which `max` hides; 0 otherwise."""
    return np.float32(0.0) if row_sum > -np.inf else np.float32(np.nan)


@compiled
def weigh(grad: Array, first: int, places: Any, weights: Array, counts: Any) -> None:
    """List the columns with any gradient in the rows of each tile, from tile `first` on.

    Masked residues, and those far from matching anything, have none.
    """
    rows, columns = grad.shape
    for t in range(first, min(first + BLOCK // PULL_ROWS, len(counts))):
        count = 0
        for j in range(columns):
            any_grad = False
            for r in range(PULL_ROWS):
                row = t * PULL_ROWS + r
                weight = grad[row, j] if row < rows else np.float32(0.0)
                weights[t, count, r] = weight
                any_grad |= weight != 0.0
            places[t, count] = j
            count += any_grad
        counts[t] = count


@compiled
def pull_part(
    query: Array,
    candidate: Array,
    places: Any,
    weights: Array,
    counts: Any,
    channel: int,
    for_query: Array,
    for_candidate: Array,
) -> None:
    """Write `PULL_LANES` channels of both gradients of the cost, see `pull`.

    Args:
        query: `(query_residues, channels)`.
        candidate: `(candidate_residues, channels)`.
        places: What `weigh` wrote, as are the next two.
        weights: Gradients of the cost by tile.
        counts: Columns of each tile with any.
        channel: The first channel.
        for_query: Where the gradient goes, shaped as `query`.
        for_candidate: Shaped as `candidate`.
    """
    # Close together the candidate rows stay in the nearest caches for all tiles.
    packed = np.empty((len(candidate), PULL_LANES), np.float32)
    sums = np.zeros((len(candidate), PULL_LANES), np.float32)
    for j in range(len(candidate)):
        for k in range(PULL_LANES):
            packed[j, k] = candidate[j, channel + k]
    for t in range(len(counts)):
        row = t * PULL_ROWS
        pull(query, row, channel, packed, places[t], weights[t], counts[t], for_query, sums)
    for j in range(len(candidate)):
        for k in range(PULL_LANES):
            for_candidate[j, channel + k] = -sums[j, k]
