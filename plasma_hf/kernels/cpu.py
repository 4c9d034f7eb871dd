"""The kernels of a CPU, compiled by numba: cost, plan, local alignments, and whole pairs at once.

They compute what the functions of `modeling_plasma` with the same names compute in plain torch.
Numba's own parallel loops are not used: their thread pools may not be entered by two threads at
once, end a forked child that enters them again, and cost seconds to compile. Kernels release the
interpreter's lock instead, and plain threads call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from math import exp, log
from os import getpid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..models import modeling_plasma as plain
from ..models.local_alignment import NEVER, Scoring, probability_by_logarithms
from . import Matches

if TYPE_CHECKING:
    from ..models.configuration_plasma import PlasmaConfig

intrinsic: Any = numba_intrinsic  # what it makes is called without its first argument
Array = NDArray[np.float32]
Sums = NDArray[np.float64]
Number = np.floating[Any] | float
"""What a kernel takes or returns as a number; results are float32 where arguments are."""
SUMS = ("reassoc", "contract", "nsz")
"""Fast-math flags of sums: taken in any order. NaN and infinity stay what they are."""


# --- Compilation and threads.


def compiled(function: Callable[..., Any] | None = None, *, fastmath: Any = ()) -> Any:
    """Compile a function, with LLVM's `fastmath` flags, to code that is kept on disk."""
    if function is None:
        return lambda given: compiled(given, fastmath=fastmath)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return numba.njit(**options)(function)


@intrinsic
def prefer_512_bit_vectors(typing: Any) -> Any:
    """Have the loops of the compiled function that calls this use registers of any width.

    Left to itself LLVM uses half of a 512-bit register, for the sake of processors that slow down
    when they see a whole one.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        # llvmlite refuses attributes that it has not heard of; LLVM reads them as they stand.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), emit


def parallel_for(tasks: int, task: Callable[[int], None]) -> None:
    """Call `task(0) .. task(tasks - 1)`, on as many threads as torch has.

    Every task spends its time in compiled kernels, and has to write places of its own; then results
    do not depend on the threads. A task that itself calls this has to be the only one.
    """
    threads = min(torch.get_num_threads(), tasks)
    numbers = count()

    def work() -> None:
        while (number := next(numbers)) < tasks:
            task(number)

    others = [_threads(getpid(), threads).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for other in others:
            other.result()


@lru_cache(maxsize=1)
def _threads(process: int, threads: int) -> ThreadPoolExecutor:
    """Return the pool of this process; a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(max(threads - 1, 1), thread_name_prefix="plasma-kernels")


# --- The hinge cost.

BLOCK = 64
"""Query rows per task; a multiple of all tiles, so that blocks do not change a result."""
WIDTH = 16
"""Scratch matrices have a multiple of this many columns, for whole tiles and aligned rows."""
TILE_ROWS, TILE_COLUMNS = 4, 4
"""Pairs of rows whose sums are computed together, so that each row is loaded more rarely."""
LANES = 16
"""Channels whose gradients are computed together."""
GRADIENT_ROWS = 4
"""Query rows whose gradients are computed together."""


def hinge_cost_numba(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess, as `hinge_cost` does.

    Costs that are not finite are so where those of `hinge_cost` are: NaN for any NaN, for -inf in
    the query and for inf in the candidate; inf for the two other infinities.
    """
    batch = torch.broadcast_shapes(query.shape[:1], candidate.shape[:1])
    cost: Tensor = _Costs.apply(
        *(side.float().expand(*batch, -1, -1) for side in (query, candidate))
    )[0]
    return cost


class _Costs(torch.autograd.Function):
    """Costs of query[p] and candidate[p], one pair of matrices each, or a batch of pairs."""

    @staticmethod
    def forward(ctx: Any, *sides: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*sides)
        queries, candidates = _halves(sides)
        costs = [
            q.new_empty(*q.shape[:-1], c.shape[-2])
            for q, c in zip(queries, candidates, strict=True)
        ]
        query, candidate, out = map(_arrays, (queries, candidates, costs))
        offsets = [np.empty(len(one), np.float32) for one in candidate]
        parallel_for(len(candidate), lambda pair: _row_sums(candidate[pair], offsets[pair]))
        blocks = [
            (pair, row) for pair, one in enumerate(query) for row in range(0, len(one), BLOCK)
        ]

        def block(number: int) -> None:
            pair, row = blocks[number]
            _cost_block(query[pair], candidate[pair], offsets[pair], row, out[pair])

        parallel_for(len(blocks), block)
        return tuple(costs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        whole = [_whole_vectors(side) for side in ctx.saved_tensors]
        out = [torch.zeros(side.shape) for side in whole]
        query, candidate = map(_arrays, _halves(whole))
        for_query, for_candidate = map(_arrays, _halves(out))
        weights = _arrays(grad.float() for grad in grads)
        weighted: list[Any] = [None] * len(weights)
        # Channels do not depend on each other, and every task has some for itself.
        parts = [(pair, k) for pair, q in enumerate(query) for k in range(0, q.shape[1], LANES)]

        def columns(pair: int) -> None:
            weighted[pair] = _columns_with_gradient(weights[pair])

        def part(number: int) -> None:
            pair, k = parts[number]
            sides = for_query[pair], for_candidate[pair]
            _cost_gradient(query[pair], candidate[pair], *weighted[pair], k, *sides)

        parallel_for(len(weights), columns)
        parallel_for(len(parts), part)
        shapes = (side.shape[-2:] for side in ctx.saved_tensors)
        return tuple(
            one[..., :rows, :channels] for one, (rows, channels) in zip(out, shapes, strict=True)
        )


def _halves(sides: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return queries and candidates, which follow each other."""
    return sides[: len(sides) // 2], sides[len(sides) // 2 :]


def _arrays(tensors: Iterable[Tensor]) -> list[Array]:
    """Return tensors, and each pair of batches, as arrays: in their memory, if it is in order."""
    arrays = (tensor.detach().contiguous().numpy() for tensor in tensors)
    return [one for array in arrays for one in (array if array.ndim == 3 else [array])]


def _whole_vectors(side: Tensor) -> Tensor:
    """Return `(..., residues, channels)` with zeros up to whole `GRADIENT_ROWS` and `LANES`."""
    return F.pad(side, (0, -side.shape[-1] % LANES, 0, -side.shape[-2] % GRADIENT_ROWS))


@compiled(fastmath=SUMS)
def _sums_of_max(query: Array, i: int, candidate: Array, j: int, out: Array, row: int) -> None:
    """Write `sum(max(query, candidate))` over channels, for a tile of pairs of rows from i and j.

    Those of rows i + r and j + s go to `out[row + r, j + s]`, which has room for whole tiles: a row
    beyond the last is the last again. A NaN of the query is hidden.
    """
    prefer_512_bit_vectors()
    last, end = len(query) - 1, len(candidate) - 1
    a, b = query[i], query[min(i + 1, last)]
    c, d = query[min(i + 2, last)], query[min(i + 3, last)]
    w, x = candidate[j], candidate[min(j + 1, end)]
    y, z = candidate[min(j + 2, end)], candidate[min(j + 3, end)]
    aw = ax = ay = az = bw = bx = by = bz = np.float32(0.0)
    cw = cx = cy = cz = dw = dx = dy = dz = np.float32(0.0)
    for k in range(query.shape[1]):
        aw += a[k] if a[k] > w[k] else w[k]
        ax += a[k] if a[k] > x[k] else x[k]
        ay += a[k] if a[k] > y[k] else y[k]
        az += a[k] if a[k] > z[k] else z[k]
        bw += b[k] if b[k] > w[k] else w[k]
        bx += b[k] if b[k] > x[k] else x[k]
        by += b[k] if b[k] > y[k] else y[k]
        bz += b[k] if b[k] > z[k] else z[k]
        cw += c[k] if c[k] > w[k] else w[k]
        cx += c[k] if c[k] > x[k] else x[k]
        cy += c[k] if c[k] > y[k] else y[k]
        cz += c[k] if c[k] > z[k] else z[k]
        dw += d[k] if d[k] > w[k] else w[k]
        dx += d[k] if d[k] > x[k] else x[k]
        dy += d[k] if d[k] > y[k] else y[k]
        dz += d[k] if d[k] > z[k] else z[k]
    _write(out[row + 0], j, aw, ax, ay, az)
    _write(out[row + 1], j, bw, bx, by, bz)
    _write(out[row + 2], j, cw, cx, cy, cz)
    _write(out[row + 3], j, dw, dx, dy, dz)


@compiled
def _write(out: Array, j: int, w: Number, x: Number, y: Number, z: Number) -> None:
    out[j], out[j + 1], out[j + 2], out[j + 3] = w, x, y, z


@compiled
def _row_sums(rows: Array, out: Array) -> None:
    """Sum rows over channels, in the order of `_sums_of_max`: equal rows then cost exactly 0."""
    # Compared with a copy, which the compiler cannot know to be one: it would sum otherwise.
    same, tile = rows.copy(), np.empty((TILE_ROWS, TILE_COLUMNS), np.float32)
    for i in range(0, len(rows), TILE_ROWS):
        _sums_of_max(rows, i, same[i : i + TILE_COLUMNS], 0, tile, 0)
        for r in range(min(TILE_ROWS, len(rows) - i)):
            out[i + r] = tile[r, r]


@compiled
def _cost_block(query: Array, candidate: Array, offsets: Array, first: int, out: Array) -> None:
    prefer_512_bit_vectors()
    columns = len(candidate)
    last = min(first + BLOCK, len(query))
    sums = np.empty((BLOCK, -(-columns // WIDTH) * WIDTH), np.float32)
    for j in range(0, columns, TILE_COLUMNS):
        for i in range(first, last, TILE_ROWS):
            _sums_of_max(query, i, candidate, j, sums, i - first)
    for i in range(first, last):
        hidden = _hidden_nan(query[i])
        for j in range(columns):
            out[i, j] = sums[i - first, j] - offsets[j] + hidden


@compiled(fastmath=SUMS)
def _hidden_nan(row: Array) -> Number:
    """Return NaN for a query row with a NaN or -inf, which a maximum hides; 0 otherwise."""
    prefer_512_bit_vectors()
    total = np.float32(0.0)
    for k in range(len(row)):
        total += row[k]
    return np.float32(0.0) if total > -np.inf else np.float32(np.nan)


@compiled
def _columns_with_gradient(grad: Array) -> Any:
    """List the columns with any gradient in each few rows, of a tile.

    Masked residues, and those far from matching anything, have none. Returned are which columns,
    `(tiles, columns)`, their weights, `(tiles, columns, GRADIENT_ROWS)`, and how many they are.
    """
    rows, columns = grad.shape
    tiles = -(-rows // GRADIENT_ROWS)
    places = np.empty((tiles, columns), np.int64)
    weights = np.empty((tiles, columns, GRADIENT_ROWS), np.float32)
    counts = np.empty(tiles, np.int64)
    for t in range(tiles):
        count = 0
        for j in range(columns):
            any_gradient = False
            for r in range(GRADIENT_ROWS):
                row = t * GRADIENT_ROWS + r
                weight = grad[row, j] if row < rows else np.float32(0.0)
                weights[t, count, r] = weight
                any_gradient |= weight != 0.0
            places[t, count] = j
            count += any_gradient
        counts[t] = count
    return places, weights, counts


@compiled
def _cost_gradient(
    query: Array,
    candidate: Array,
    places: Any,
    weights: Array,
    counts: Any,
    channel: int,
    for_query: Array,
    for_candidate: Array,
) -> None:
    """Write `LANES` channels of the gradients of the cost: weights where the query is larger.

    Sides are those of `_whole_vectors`; places, weights and counts of `_columns_with_gradient`.
    """
    # Close together the candidate rows stay in the nearest caches for all tiles.
    theirs = np.empty((len(candidate), LANES), np.float32)
    their_sums = np.zeros((len(candidate), LANES), np.float32)
    for j in range(len(candidate)):
        for k in range(LANES):
            theirs[j, k] = candidate[j, channel + k]
    for t in range(len(counts)):
        row, found = t * GRADIENT_ROWS, (places[t], weights[t], counts[t])
        _accumulate_gradient(query, row, channel, theirs, *found, for_query, their_sums)
    for j in range(len(candidate)):
        for k in range(LANES):
            for_candidate[j, channel + k] = -their_sums[j, k]


@intrinsic
def _accumulate_gradient(
    typing: Any,
    query: Any,
    row: Any,
    channel: Any,
    theirs: Any,
    places: Any,
    weights: Any,
    count: Any,
    for_query: Any,
    their_sums: Any,
) -> Any:
    """Sum weights over the pairs whose query row is larger, ties half, for both of their rows.

    Written in LLVM's vectors: plain loops cannot keep the sums of several rows in registers while
    candidate rows stream past, and took 1.7 times as long. The `GRADIENT_ROWS` query rows from
    `row` on, at `LANES` channels, meet those `count` rows of `theirs` that `places` lists.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = {
            i: context.make_array(kind)(context, builder, value=value)
            for i, (kind, value) in enumerate(zip(signature.args, values, strict=True))
            if isinstance(kind, types.Array)
        }
        query, row, channel, theirs, places, weights, count, for_query, their_sums = (
            arrays[i].data if i in arrays else value for i, value in enumerate(values)
        )
        _, channels = cgutils.unpack_tuple(builder, arrays[0].shape)
        vector, index = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
        zero, half, one = (ir.Constant(vector, [x] * LANES) for x in (0.0, 0.5, 1.0))
        lane = ir.IntType(32)
        every_lane = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        fused = ir.FunctionType(vector, [vector] * 3)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, fused, f"llvm.fmuladd.v{LANES}f32"
        )

        def place(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def slope(row: Any, other: Any) -> Any:
            """Return 1 where a row is larger, 1/2 where they are equal, 0 elsewhere and for NaN."""
            if "+avx512f" not in context.codegen().magic_tuple()[2].split(","):
                share = builder.select(builder.fcmp_ordered("==", row, other), half, zero)
                return builder.select(builder.fcmp_ordered(">", row, other), one, share)
            # One instruction: what to return by the kind of number that the difference is.
            excess, kinds = builder.fsub(row, other), ir.VectorType(lane, LANES)
            table = ir.Constant(kinds, [0xA8A8AB88 - (1 << 32)] * LANES)
            mask = ir.IntType(16)
            look_up = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector, [vector, vector, kinds, lane, mask, lane]),
                "llvm.x86.avx512.mask.fixupimm.ps.512",
            )
            return builder.call(look_up, [excess, excess, table, lane(0), mask(-1), lane(4)])

        numbers = [builder.add(row, index(r)) for r in range(GRADIENT_ROWS)]
        starts = [builder.add(builder.mul(number, channels), channel) for number in numbers]
        rows = [builder.load(place(query, start), align=4) for start in starts]
        sums = [cgutils.alloca_once(builder, vector) for _ in rows]
        for slot in sums:
            builder.store(zero, slot)
        with cgutils.for_range(builder, count, intp=index) as loop:
            column = builder.load(builder.gep(places, [loop.index]))
            column = builder.mul(column, index(LANES))
            other = builder.load(place(theirs, column), align=4)
            total = builder.load(place(their_sums, column), align=4)
            for r, (mine, slot) in enumerate(zip(rows, sums, strict=True)):
                at = builder.add(builder.mul(loop.index, index(GRADIENT_ROWS)), index(r))
                weight = builder.load(builder.gep(weights, [at]))
                weight = builder.insert_element(zero, weight, lane(0))
                weight = builder.shuffle_vector(weight, zero, every_lane)
                share = slope(mine, other)
                own = builder.call(multiply_add, [weight, share, builder.load(slot)])
                builder.store(own, slot)
                total = builder.call(multiply_add, [weight, share, total])
            builder.store(total, place(their_sums, column), align=4)
        for start, slot in zip(starts, sums, strict=True):
            builder.store(builder.load(slot), place(for_query, start), align=4)
        return context.get_dummy_value()

    at = types.int64
    kinds = (query, at, at, theirs, places, weights, at, for_query, their_sums)
    return types.void(*kinds), emit


# --- The partial Sinkhorn plan.

TOGETHER = 4
"""Rows that are read together, so that column sums are loaded and stored more rarely."""
LOWEST = -87.33
"""Where the exponential leaves the range of normal numbers, below which it gives 0."""
HIGHEST = 88.37
"""Above which it gives infinity, a little early."""


def sinkhorn_numba(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to its plan by a fixed number of iterations, as `sinkhorn` does."""
    residues = candidate_mask.sum(-1, keepdim=True).clamp(min=1)
    plan: Tensor = _Plans.apply(1.0, eps, n_iters, [residues], log_kernel)[0]
    return plan


def pair_plans_numba(
    query: Sequence[Tensor], candidate: Sequence[Tensor], config: PlasmaConfig
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Make costs and plans of projections, `(residues, channels)` each, with gradient.

    Returns:
        As many costs and plans, `(query_residues, candidate_residues)` each.
    """
    costs = _Costs.apply(*query, *candidate)
    residues = [max(1, len(each)) for each in candidate]
    return costs, _Plans.apply(-config.kernel_scale, config.eps, config.n_iters, residues, *costs)


class _Plans(torch.autograd.Function):
    """Plans of kernels, the exponentials of `factor` times `logs`: matrices or batches of them."""

    @staticmethod
    def forward(
        ctx: Any, factor: float, eps: float, n_iters: int, residues: Sequence[Any], *logs: Tensor
    ) -> tuple[Tensor, ...]:
        plans, kernels = ([one.new_empty(one.shape) for one in logs] for _ in range(2))
        u = [one.new_empty(*one.shape[:-2], n_iters, one.shape[-2]) for one in logs]
        v = [one.new_empty(*one.shape[:-2], n_iters + 1, one.shape[-1]) for one in logs]
        for potentials, size in zip(v, residues, strict=True):
            potentials[..., 0, :] = 1 / size
        arrays = [_arrays(each) for each in (logs, kernels, u, v, plans)]
        numbers = np.float32(factor), np.float32(eps)
        parallel_for(len(arrays[0]), lambda p: _write_plan(*(each[p] for each in arrays), *numbers))
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*kernels, *u, *v)
        ctx.factor = factor
        return tuple(plans)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved, count = ctx.saved_tensors, len(grads)
        kernels, u, v = (saved[n * count : (n + 1) * count] for n in range(3))
        out = [torch.empty_like(kernel) for kernel in kernels]
        given = [grad.to(out[0].dtype) for grad in grads]
        arrays, factor = [_arrays(each) for each in (kernels, u, v, given, out)], ctx.factor
        parallel_for(
            len(arrays[0]),
            lambda p: _plan_gradient(*(each[p] for each in arrays), np.float32(factor)),
        )
        return None, None, None, None, *out


@compiled(fastmath=("contract",))
def _exponential(x: Number) -> Number:
    """Return `exp(x)` to about 1e-7, and 0 where that is no normal number.

    Written without branches, so that loops over it become vectors.
    """
    bounded = x if x > np.float32(LOWEST) else np.float32(LOWEST)
    bounded = bounded if bounded < np.float32(HIGHEST) else np.float32(HIGHEST)
    whole = np.floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    # The logarithm of 2 in two parts, the first short enough for an exact product.
    rest = bounded - whole * np.float32(0.693359375)
    rest = rest - whole * np.float32(-2.12194440e-4)
    series = np.float32(1 / 5040)
    series = series * rest + np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(0.5)
    series = series * rest * rest + rest + np.float32(1.0)
    # The bits of 2^whole, as a number that is exact in float32 too.
    power = np.int32((whole + np.float32(127.0)) * np.float32(8388608.0)).view(np.float32)
    value = series * power
    value = value if x >= np.float32(LOWEST) else np.float32(0.0)
    value = value if x <= np.float32(HIGHEST) else np.float32(np.inf)
    return value if x == x else x


@compiled(fastmath=SUMS)
def _sinkhorn_step(kernel: Array, v: Array, eps: Number, u: Array, column_sums: Array) -> None:
    """Answer the candidate potentials and sum what the columns get from it, in one pass."""
    prefer_512_bit_vectors()
    rows, columns = kernel.shape
    one, zero = np.float32(1.0), np.float32(0.0)
    column_sums[:] = zero
    whole = rows - rows % TOGETHER
    for i in range(0, whole, TOGETHER):
        first, second, third, fourth = kernel[i], kernel[i + 1], kernel[i + 2], kernel[i + 3]
        a, b, c, d = zero, zero, zero, zero
        for j in range(columns):
            a += first[j] * v[j]
            b += second[j] * v[j]
            c += third[j] * v[j]
            d += fourth[j] * v[j]
        a, b, c, d = one / (a + eps), one / (b + eps), one / (c + eps), one / (d + eps)
        u[i], u[i + 1], u[i + 2], u[i + 3] = a, b, c, d
        for j in range(columns):
            column_sums[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j])
    for i in range(whole, rows):
        row, a = kernel[i], zero
        for j in range(columns):
            a += row[j] * v[j]
        u[i] = a = one / (a + eps)
        for j in range(columns):
            column_sums[j] += a * row[j]


@compiled
def _update_potential(sums: Array, eps: Number, out: Array) -> None:
    """Turn sums of a side into its potentials, `1 / (sums + eps)`."""
    prefer_512_bit_vectors()
    for j in range(len(out)):
        out[j] = np.float32(1.0) / (sums[j] + eps)


@compiled
def _scale(kernel: Array, u: Array, v: Array, out: Array) -> None:
    """Write the plan `u kernel v`, in whichever place, also that of the kernel."""
    prefer_512_bit_vectors()
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out[i, j] = u[i] * kernel[i, j] * v[j]


@compiled
def _write_plan(
    logs: Array, kernel: Array, u: Array, v: Array, plan: Array, factor: Number, eps: Number
) -> None:
    """Run all iterations and keep the potentials of every iteration."""
    prefer_512_bit_vectors()
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            kernel[i, j] = _exponential(factor * logs[i, j])
    sums = np.empty(kernel.shape[1], np.float32)
    for t in range(len(u)):
        _sinkhorn_step(kernel, v[t], eps, u[t], sums)
        _update_potential(sums, eps, v[t + 1])
    _scale(kernel, u[-1], v[-1], plan)


@compiled(fastmath=SUMS)
def _plan_gradient(
    kernel: Array, u: Array, v: Array, grad: Array, out: Array, factor: Number
) -> None:
    """Follow the iterations back; the kernel's gradient is a sum of outer products of vectors."""
    prefer_512_bit_vectors()
    (n_iters, rows), columns = u.shape, v.shape[1]
    du, dv = np.empty(rows, np.float32), np.zeros(columns, np.float32)
    # Minus the gradients of the sums whose inverses the potentials are.
    a, b = np.empty(u.shape, np.float32), np.empty((n_iters, columns), np.float32)
    for i in range(rows):
        total = np.float32(0.0)
        for j in range(columns):
            weighted = grad[i, j] * kernel[i, j]
            total += weighted * v[n_iters, j]
            dv[j] += weighted * u[n_iters - 1, i]
        du[i] = total
    for t in range(n_iters - 1, -1, -1):
        for j in range(columns):
            b[t, j] = v[t + 1, j] * v[t + 1, j] * dv[j]
        _pass_back(kernel, u[t], b[t], du, a[t], dv)
        du[:] = np.float32(0.0)
    for i in range(rows):
        _gather_row(kernel[i], u[:, i], v, grad[i], a[:, i], b, factor, out[i])


@compiled(fastmath=SUMS)
def _pass_back(kernel: Array, u: Array, b: Array, du: Array, a: Array, dv: Array) -> None:
    """Carry gradients from one side's sums to the other side's potentials, in one pass."""
    prefer_512_bit_vectors()
    rows, columns = kernel.shape
    dv[:] = np.float32(0.0)
    for i in range(rows):
        row, total = kernel[i], np.float32(0.0)
        for j in range(columns):
            total += row[j] * b[j]
        a[i] = u[i] * u[i] * (du[i] - total)
        for j in range(columns):
            dv[j] -= a[i] * row[j]


# Without fast-math flags: with them its sums came out different in the process that compiled it
# and in those that loaded it from the disk.
@compiled
def _gather_row(
    kernel: Array, u: Array, v: Array, grad: Array, a: Array, b: Array, factor: Number, out: Array
) -> None:
    """Sum what all iterations say about one row of the logs."""
    prefer_512_bit_vectors()
    n_iters, columns = b.shape
    for j in range(columns):
        out[j] = grad[j] * u[n_iters - 1] * v[n_iters, j]
    for t in range(n_iters):
        for j in range(columns):
            out[j] -= u[t] * b[t, j] + a[t] * v[t, j]
    for j in range(columns):
        out[j] *= factor * kernel[j]


# --- Local alignments over the evidence of residue pairs; without gradient.

UNIT = 1e200
"""How a sum of 1 is written at first, so that small sums beside large ones have the range."""
RANGE = np.float64(1100.0)
"""Logarithm of what sums of one row may differ by: what is smaller still is lost."""
PAIR_ODDS = np.float32(60.0)
"""Log-odds of one pair, at most."""


def alignment_scores_numba(evidence: Sequence[Tensor], scoring: Scoring) -> Tensor:
    """Do what `alignment_scores` does."""
    given, out, weights = _arrays(evidence), torch.empty(len(evidence)), _weights(scoring)
    no_rows = np.empty((0, 0)), np.empty(0)

    def pair(number: int) -> None:
        out[number] = _go_through(given[number], *weights, *no_rows)

    parallel_for(len(given), pair)
    return out


def aligned_probabilities_numba(evidence: Sequence[Tensor], scoring: Scoring) -> list[Tensor]:
    """Do what `aligned_probabilities` does."""
    given, plans = _arrays(evidence), [torch.empty(one.shape) for one in evidence]

    def pair(number: int) -> None:
        if not given[number].size:
            return
        if not _write_probabilities(given[number], *_weights(scoring), plans[number].numpy()):
            plans[number] = probability_by_logarithms(evidence[number], scoring)

    parallel_for(len(given), pair)
    return plans


def _weights(scoring: Scoring) -> tuple[np.float32, np.float32, float, float]:
    """Return slope and shift, and what a gap multiplies when it opens and extends."""
    gaps = exp(-scoring.gap_open), exp(-scoring.gap_extend)
    return np.float32(scoring.slope), np.float32(scoring.shift), *gaps


def against_background_numba(along: Tensor, weights: Tensor, moments: Tensor) -> Tensor:
    """Do what `against_background` does."""
    out = torch.empty(len(along), along.shape[1] + 3)
    _write_vectors(*_arrays([along, weights, *moments]), out.numpy())
    return out


@compiled(fastmath=SUMS)
def _write_vectors(along: Array, weights: Array, usual: Array, variance: Array, out: Array) -> None:
    prefer_512_bit_vectors()
    residues, axes = along.shape
    itself, whole = np.empty(residues, np.float32), np.zeros((1, axes + 2), np.float32)
    for i in range(residues):
        itself[i] = _write_vector(along[i], weights, usual, variance, out[i])
        for k in range(axes + 2):
            whole[0, k] += out[i, k]
    for i in range(residues):
        own = _evidence(out, i, whole, 0, axes) - itself[i]
        out[i, -1] = max(own, np.float32(0.0)) / max(1, residues - 1)
    for step in range(1, min(plain.LONGEST_PERIOD + 1, residues)):
        for i in range(residues - step):
            near = _evidence(out, i, out, i + step, axes) - np.float32(plain.USUAL_REPEAT)
            out[i, -1] = max(out[i, -1], near)
            out[i + step, -1] = max(out[i + step, -1], near)
    for i in range(residues):
        out[i, -1] /= np.float32(2.0)


@compiled(fastmath=SUMS)
def _write_vector(
    along: Array, weight: Array, usual: Array, variance: Array, row: Array
) -> np.float32:
    """Write one residue, and return its product with itself."""
    prefer_512_bit_vectors()
    axes, tiny, one = len(along), np.float32(1e-12), np.float32(1.0)
    square = spread = mean = np.float32(0.0)
    for k in range(axes):
        row[k] = x = along[k] * weight[k]
        square += x * x
        spread += x * x * variance[k]
        mean += x * usual[k]
    square, spread = max(square, tiny), max(spread, tiny)
    mean /= np.sqrt(square)
    scale = one / np.sqrt(np.sqrt(max(spread / square, np.float32(1e-8))))
    factor = scale / np.sqrt(square)
    for k in range(axes):
        row[k] *= factor
    row[axes], row[axes + 1] = -mean * scale / np.float32(2.0), scale
    return scale * scale * (one - mean)


@compiled(fastmath=SUMS)
def _evidence(rows: Array, i: int, others: Array, j: int, axes: int) -> np.float32:
    prefer_512_bit_vectors()
    found = rows[i, axes] * others[j, axes + 1] + rows[i, axes + 1] * others[j, axes]
    for k in range(axes):
        found += rows[i, k] * others[j, k]
    return found


def best_stretch_numba(evidence: Tensor, scoring: Scoring) -> tuple[slice, slice]:
    """Do what `best_stretch` does."""
    slope, shift, gap_open, gap_extend = map(np.float32, scoring)
    given = evidence.detach().contiguous().numpy()
    first, left, last, right = _best_stretch(given, slope, shift, gap_open, gap_extend)
    return slice(first, last + 1), slice(left, right + 1)


def best_in_order_numba(gain: Tensor) -> Tensor:
    """Do what `best_in_order` does."""
    return torch.from_numpy(_best_in_order(gain.detach().contiguous().numpy()))


@compiled
def _write_probabilities(
    evidence: Array, slope: Number, shift: Number, opened: Number, extended: Number, out: Array
) -> bool:
    """Write the probabilities that pairs are aligned; False if rivals of an alignment are lost.

    Where one begins, or later, it is beside what ends in the same row. If that weighs more by
    `RANGE`, and all that follows, at most, still makes it as likely as all together, it counted.
    """
    prefer_512_bit_vectors()
    rows, columns = evidence.shape
    ending, logs = np.empty((rows, columns)), np.zeros(rows)
    every = _go_through(evidence, slope, shift, opened, extended, ending, logs)
    if every <= NEVER:  # nothing has odds
        out[:] = 0.0
        return True
    follows = np.zeros(rows + 1)
    if logs[-1] > RANGE and _loses_rivals(evidence, slope, shift, logs, every, follows):
        return False
    # From the last residues on, what ends with a pair is what begins with it.
    odds, turned, beginning = np.empty(columns), np.empty(columns), np.empty(columns)
    match, query_gap, total = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    unit, carried = UNIT, 0.0
    for i in range(rows - 1, -1, -1):
        _write_odds(evidence[i], slope, shift, odds)
        turned[:] = odds[::-1]
        largest = _next_row(turned, unit, opened, extended, match, query_gap, total, match)
        if largest > UNIT:
            factor = UNIT / largest
            match *= factor
            query_gap *= factor
            total *= factor
            unit *= factor
            carried -= log(factor)
        if carried > RANGE and carried + follows[0] - follows[i] > every + RANGE:
            return False
        # The factor in halves: a row may have sums that are large, but not in one alignment.
        half = exp((logs[i] + carried - every) / 2) / UNIT
        beginning[:] = match[::-1]
        for j in range(columns):
            # A pair is in both, and counts once; one of no odds is in none.
            share = (ending[i, j] * half) * (beginning[j] * half) / max(odds[j], 1e-300)
            out[i, j] = min(share, 1.0)
    return True


@compiled
def _loses_rivals(
    evidence: Array, slope: Number, shift: Number, logs: Sums, every: Number, follows: Sums
) -> bool:
    """Bound what the rows from each on add, and tell whether a rival that is lost had counted."""
    for i in range(len(logs) - 1, -1, -1):
        follows[i] = follows[i + 1] + _most_gain(evidence[i], slope, shift)
        if logs[i] + follows[i + 1] > every + RANGE:
            return True
    return False


@compiled
def _most_gain(row: Array, slope: Number, shift: Number) -> Number:
    """Bound what a residue adds to the log-odds of an alignment."""
    prefer_512_bit_vectors()
    most: Any = np.float32(0.0)
    for j in range(len(row)):
        most = max(most, slope * (row[j] - shift))
    return most


@compiled
def _go_through(
    evidence: Array,
    slope: Number,
    shift: Number,
    opened: Number,
    extended: Number,
    ending: Sums,
    logs: Sums,
) -> Number:
    """Return the logarithm of the sum of all local alignments.

    Sums over those that end with a pair, of row i `exp(logs[i]) / UNIT` times `ending[i]`, are
    kept in as many rows as `ending` has.
    """
    rows, columns = evidence.shape
    odds, match = np.empty(columns), np.zeros(columns)
    query_gap, total = np.zeros(columns), np.zeros(columns)
    unit, every, carried = UNIT, 0.0, 0.0
    for i in range(rows):
        _write_odds(evidence[i], slope, shift, odds)
        largest = _next_row(odds, unit, opened, extended, match, query_gap, total, match)
        every += match.sum()
        if largest > UNIT:
            factor = UNIT / largest
            match *= factor
            query_gap *= factor
            total *= factor
            unit *= factor
            every *= factor
            carried -= log(factor)
        if i < len(ending):
            ending[i], logs[i] = match, carried
    return log(every) - log(UNIT) + carried if every > 0.0 else NEVER


@compiled
def _next_row(
    odds: Sums,
    unit: Number,
    opened: Number,
    extended: Number,
    above: Sums,
    query_gap: Sums,
    total: Sums,
    match: Sums,
) -> Number:
    """Go on by a query residue, and return the largest sum; `match` may be the row above."""
    prefer_512_bit_vectors()
    columns = len(odds)
    for j in range(columns):
        query_gap[j] = above[j] * opened + query_gap[j] * extended
    # A local alignment begins anywhere: with a sum of 1 before its first pair.
    match[0] = odds[0] * unit
    for j in range(1, columns):
        match[j] = odds[j] * (total[j - 1] + unit)
    candidate_gap, largest = 0.0, 0.0
    for j in range(columns):
        largest = max(largest, match[j])
        both = match[j] + query_gap[j]
        total[j] = both + candidate_gap
        candidate_gap = both * opened + candidate_gap * extended
    return largest


@compiled
def _write_odds(evidence: Array, slope: Number, shift: Number, odds: Sums) -> None:
    prefer_512_bit_vectors()
    for j in range(len(odds)):
        odds[j] = _exponential(min(slope * (evidence[j] - shift), PAIR_ODDS))


@compiled
def _better(one: Number, of_one: int, other: Number, of_other: int) -> tuple[Number, int]:
    """Return the larger number, and what belongs to it."""
    return (one, of_one) if one >= other else (other, of_other)


@compiled
def _best_stretch(
    evidence: Array, slope: Number, shift: Number, gap_open: Number, gap_extend: Number
) -> tuple[int, int, int, int]:
    """Find first and last pair of the local alignment that weighs most.

    Each state takes along where its alignment began, as `row * columns + column`.
    """
    rows, columns = evidence.shape
    never, nothing = np.float32(NEVER), np.float32(0.0)
    match, gap, best = np.full(columns, never), np.full(columns, never), np.full(columns, never)
    begins = np.zeros((3, columns), np.int64)
    match_from, gap_from, best_from = begins[0], begins[1], begins[2]
    most, end, start = never, 0, 0
    for i in range(rows):
        before, aside, opening = (never, 0), (never, 0), (never, 0)
        for j in range(columns):
            gap[j], gap_from[j] = _better(
                match[j] - gap_open, match_from[j], gap[j] - gap_extend, gap_from[j]
            )
            before = _better(nothing, i * columns + j, *before)
            match[j], match_from[j] = slope * (evidence[i, j] - shift) + before[0], before[1]
            before = best[j], best_from[j]
            aside = _better(opening[0] - gap_open, opening[1], aside[0] - gap_extend, aside[1])
            opening = _better(match[j], match_from[j], gap[j], gap_from[j])
            best[j], best_from[j] = _better(*opening, *aside)
            if match[j] > most:
                most, end, start = match[j], i * columns + j, match_from[j]
    return start // columns, start % columns, end // columns, end % columns


@compiled
def _best_in_order(gain: Array) -> Any:
    """Return the pairs in order that gain most together."""
    rows, columns = gain.shape
    best = np.zeros((rows + 1, columns + 1), np.float32)
    for i in range(rows):
        for j in range(columns):
            most = max(best[i, j + 1], best[i + 1, j])
            best[i + 1, j + 1] = max(most, best[i, j] + gain[i, j])
    pairs, i, j, count = np.empty((min(rows, columns), 2), np.int64), rows, columns, 0
    while i > 0 and j > 0:
        if best[i, j] == best[i - 1, j]:
            i -= 1
        elif best[i, j] == best[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs[count, 0], pairs[count, 1] = i, j
            count += 1
    return pairs[:count][::-1].copy()


# --- Whole pairs of any lengths, from projections to what is matched; without gradient.


class Settings(NamedTuple):
    """The fields of `PlasmaConfig` that pairs are aligned by, as compiled code takes them."""

    kernel_scale: np.float32
    eps: np.float32
    n_iters: int
    threshold: np.float32
    diagonal_window: int

    @classmethod
    def of(cls, config: PlasmaConfig) -> Settings:
        """Read a configuration."""
        own = SimpleNamespace(**vars(config))  # a configuration takes microseconds per attribute
        return cls(
            np.float32(own.kernel_scale),
            np.float32(own.eps),
            own.n_iters,
            np.float32(own.threshold),
            own.diagonal_window,
        )


def align_pairs_numba(
    query: Sequence[Tensor],
    candidate: Sequence[Tensor],
    config: PlasmaConfig,
    return_plans: bool = False,
) -> Matches:
    """Align projections, `(residues, channels)` each, query[p] with candidate[p]."""
    known = {id(protein): protein.detach().contiguous().numpy() for protein in (*query, *candidate)}
    pairs = [(known[id(q)], known[id(c)]) for q, c in zip(query, candidate, strict=True)]
    settings = Settings.of(config)
    transported, matched = (
        list(torch.zeros(sum(sizes)).split(sizes))
        for sizes in ([len(q) for q, _ in pairs], [len(c) for _, c in pairs])
    )
    plans = [torch.zeros(len(q), len(c)) for q, c in pairs] if return_plans else None
    numbers, none = np.zeros((len(pairs), 2)), np.empty((0, 0), np.float32)
    # The largest first: then the threads end at about the same time.
    order = sorted(
        (p for p, sides in enumerate(pairs) if all(map(len, sides))),
        key=lambda p: -len(pairs[p][0]) * len(pairs[p][1]),
    )
    run = parallel_for if len(order) == 1 else _in_turn  # one pair: the threads share its cost

    def whole_pair(number: int) -> None:
        pair = order[number]
        q, c = pairs[pair]
        cost = np.empty((len(q), -(-len(c) // WIDTH) * WIDTH), np.float32)
        _row_sums(c, offsets := np.empty(len(c), np.float32))
        blocks = -(-len(q) // BLOCK)
        run(blocks, lambda block: _cost_block(q, c, offsets, block * BLOCK, cost))
        plan = none if plans is None else plans[pair].numpy()
        sides = transported[pair].numpy(), matched[pair].numpy()
        _finish(cost, settings, *sides, numbers[pair], plan)

    parallel_for(len(order), whole_pair)
    window, mass = torch.from_numpy(numbers).float().unbind(-1)
    return Matches(transported, matched, window, mass, plans)


def _in_turn(tasks: int, task: Callable[[int], None]) -> None:
    for number in range(tasks):
        task(number)


def align_and_score_numba(
    proteins: Sequence[Sequence[Tensor]],
    projected: Sequence[Sequence[Tensor]],
    config: PlasmaConfig,
    return_plans: bool,
) -> tuple[Tensor, list[Tensor] | None]:
    """Align queries with candidates; return the scores, `(pairs,)`, and the plans if asked for."""
    query, candidate = ([protein.float() for protein in side] for side in projected)
    matches = align_pairs_numba(query, candidate, config, return_plans)
    if config.score_form == "mass":
        lengths = [torch.tensor([len(protein) for protein in side]) for side in projected]
        return plain.share_of_shorter(matches.mass, *lengths), matches.plans
    similarity = torch.zeros(len(matches.mass))
    # Few pairs have anything matched, and few residues in them: the others are not even read.
    for p in (matches.mass != 0).nonzero()[:, 0].tolist():
        sent, gate = matches.transported[p], matches.matched[p]
        there = proteins[0][p][sent != 0].float(), proteins[1][p][gate != 0].float()
        similarity[p] = plain.matched_similarity(
            sent[sent != 0], there[0], gate[gate != 0], there[1]
        )
    scores = plain.with_window(similarity, matches.window, config.diagonal_window)
    return scores, matches.plans


@compiled
def _finish(
    matrix: Array,
    settings: Settings,
    transported: Array,
    matched: Array,
    numbers: Sums,
    plan: Array,
) -> None:
    """Go from costs, with room for whole vectors, to the parts of the score.

    Written are what `Matches` has, of which numbers are window and mass; the plan if not empty.
    """
    prefer_512_bit_vectors()
    columns = len(matched)
    _solve(matrix, columns, settings)
    numbers[1] = _match(matrix, settings.threshold, transported, matched)
    if settings.diagonal_window > 0:
        numbers[0] = _best_window(matrix, columns, settings.diagonal_window)
    if plan.size:
        plan[:] = matrix[:, :columns]


@compiled
def _solve(matrix: Array, columns: int, settings: Settings) -> None:
    """Turn costs into the plan, in their place; 0 beyond the columns."""
    prefer_512_bit_vectors()
    rows, width = matrix.shape
    for i in range(rows):
        for j in range(columns):
            matrix[i, j] = _exponential(-settings.kernel_scale * matrix[i, j])
        for j in range(columns, width):
            matrix[i, j] = np.float32(0.0)
    u, v = np.empty(rows, np.float32), np.empty(width, np.float32)
    sums = np.empty(width, np.float32)
    v[:] = np.float32(1.0) / np.float32(columns)
    for _ in range(settings.n_iters):
        _sinkhorn_step(matrix, v, settings.eps, u, sums)
        _update_potential(sums, settings.eps, v)
    _scale(matrix, u, v, matrix)


@compiled
def _match(plan: Array, threshold: Number, transported: Array, matched: Array) -> Number:
    """Write what matched residues send to matched residues; return the mass above the threshold."""
    prefer_512_bit_vectors()
    (rows, width), columns, mass = plan.shape, len(matched), 0.0
    open_columns = np.zeros(width, np.float32)
    for i in range(rows):
        above = _above(plan[i], threshold, open_columns)
        transported[i] = above  # a row with nothing above has 0 here, and is not matched
        mass += above
    for j in range(columns):
        matched[j] = open_columns[j]
    for i in range(rows):
        if transported[i] != 0.0:
            transported[i] = _dot(plan[i], open_columns)
    return mass


@compiled
def _best_window(plan: Array, columns: int, window: int) -> Number:
    """Return the largest sum of a diagonal stretch that fits into the pair."""
    prefer_512_bit_vectors()
    rows, starts = len(plan), max(columns - window + 1, 1)
    # One maximum a column: a loop over these becomes vectors, one over a lone maximum does not.
    largest, sums = np.full(starts, -np.inf), np.empty(starts)
    for i in range(max(rows - window + 1, 1)):
        sums[:] = 0.0
        for step in range(min(window, rows - i)):
            row = plan[i + step, step:]
            for j in range(min(starts, len(row))):
                sums[j] += row[j]
        for j in range(starts):
            largest[j] = sums[j] if sums[j] > largest[j] else largest[j]
    return largest.max()


@compiled(fastmath=SUMS)
def _above(row: Array, threshold: Number, open_columns: Array) -> Number:
    """Sum what is above the threshold and mark where; NaN is above it, so that it shows."""
    prefer_512_bit_vectors()
    total = np.float32(0.0)
    for j in range(len(row)):
        below = row[j] <= threshold
        total += np.float32(0.0) if below else row[j]
        open_columns[j] = open_columns[j] if below else np.float32(1.0)
    return total


@compiled(fastmath=SUMS)
def _dot(row: Array, weights: Array) -> Number:
    prefer_512_bit_vectors()
    total = np.float32(0.0)
    for j in range(len(row)):
        total += row[j] * weights[j]
    return total
