"""The two inner loops in which nearly all time goes, written in vectors.

Left to itself LLVM vectorises over half of a 512-bit register, and sums one row pair at a time.
Here a tile of row pairs is summed at once: as many loads feed many more operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from llvmlite import binding, ir
    from numba import types
    from numba.core import cgutils
except ImportError:
    pass

from .compiled_numba import INSTALLED, emitted


def _registers() -> tuple[int, int]:
    """Return floats a vector register and how many such registers there are."""
    if not INSTALLED:
        return 16, 32
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 32
    if features.get("avx"):
        return 8, 16
    return 4, 32 if binding.get_process_triple().startswith(("aarch64", "arm64")) else 16


LANES, _COUNT = _registers()
TILE_ROWS = 4
TILE_COLUMNS = 4 if _COUNT == 32 else 2
PULL_ROWS = 4
PULL_LANES = LANES * (TILE_COLUMNS // 2)
"""Channels that `pull` computes at once."""
_SHARES = 0xA8A8AB88 - (1 << 32)
"""For `vfixupimmps`, from the right: 0 (8) for NaN, 1/2 (B) for 0, 1 (A) for what is above."""


class _Vectors:
    """Emit loads, stores and comparisons of float vectors."""

    def __init__(self, builder: Any, lanes: int = LANES) -> None:
        self.builder, self.lanes = builder, lanes
        self.float, self.int = ir.FloatType(), ir.IntType(64)
        self.vector = ir.VectorType(self.float, lanes)

    def constant(self, value: int) -> Any:
        return ir.Constant(self.int, value)

    def zero(self) -> Any:
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def pointer(self, base: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [offset]), self.vector.as_pointer())

    def load(self, base: Any, offset: Any) -> Any:
        return self.builder.load(self.pointer(base, offset), align=4)

    def store(self, value: Any, base: Any, offset: Any) -> None:
        self.builder.store(value, self.pointer(base, offset), align=4)

    def store_some(self, value: Any, lanes: range, place: Any) -> None:
        """Store some neighbouring lanes."""
        order = ir.VectorType(ir.IntType(32), len(lanes))
        some = self.builder.shuffle_vector(value, value, ir.Constant(order, list(lanes)))
        self.builder.store(some, self.builder.bitcast(place, some.type.as_pointer()), align=4)

    def load_first(self, base: Any, offset: Any, count: Any) -> Any:
        """Load `count` floats and fill up with zeros, without touching what lies beyond."""
        buffer = cgutils.alloca_once_value(self.builder, self.zero())
        self.builder.store(self.zero(), buffer)
        floats = self.builder.bitcast(buffer, self.float.as_pointer())
        with cgutils.for_range(self.builder, count, intp=self.int) as loop:
            source = self.builder.gep(base, [self.builder.add(offset, loop.index)])
            self.builder.store(self.builder.load(source), self.builder.gep(floats, [loop.index]))
        return self.builder.load(buffer)

    def spread(self, value: Any, vector: Any = None) -> Any:
        """Copy one number to all lanes."""
        vector = vector or self.vector
        empty = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
        return self.builder.shuffle_vector(one, empty, mask)

    def larger(self, a: Any, b: Any) -> Any:
        # In this form the comparison and the choice become one instruction; a NaN in b passes.
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def share(self, a: Any, b: Any) -> Any:
        """Return 1 where `a` is larger, 1/2 where they are equal, 0 elsewhere and for NaN."""
        if self.lanes != 16:
            half = ir.Constant(self.vector, [0.5] * self.lanes)
            both = (self.builder.fcmp_ordered(sign, a, b) for sign in (">", ">="))
            return self.builder.fadd(
                *(self.builder.select(holds, half, self.zero()) for holds in both)
            )
        # AVX-512 looks up what to return by the kind of number that the difference is, a digit
        # a kind, and on either of the two ports that compute; only one of them compares.
        word, mask = ir.IntType(32), ir.IntType(16)
        kinds = ir.VectorType(word, self.lanes)
        signature = ir.FunctionType(
            self.vector, [self.vector, self.vector, kinds, word, mask, word]
        )
        name = "llvm.x86.avx512.mask.fixupimm.ps.512"
        look_up = cgutils.get_or_insert_function(self.builder.module, signature, name)
        table = ir.Constant(kinds, [_SHARES] * self.lanes)
        excess = self.builder.fsub(a, b)
        rest = ir.Constant(word, 0), ir.Constant(mask, -1), ir.Constant(word, 4)
        return self.builder.call(look_up, [excess, excess, table, *rest])

    def add_product(self, a: Any, b: Any, total: Any) -> Any:
        """Add a product, rounded once where the machine can."""
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fmuladd.v{self.lanes}f32"
        fma = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(fma, [a, b, total])

    def fold(self, sums: list[Any]) -> Any:
        """Sum the lanes of as many vectors as there are lanes; one lane for each, in order.

        Every vector is summed in the same order, so that equal vectors have equal sums.
        """
        width = self.lanes
        while width > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [self._halve(a, b, width) for a, b in pairs]
            width //= 2
        return sums[0]

    def _halve(self, a: Any, b: Any, width: int) -> Any:
        """Add the halves of all groups of `width` lanes, those of `a` first, then those of `b`."""
        lower = [i for i in range(2 * self.lanes) if i % width < width // 2]
        vector = ir.VectorType(ir.IntType(32), self.lanes)
        low = self.builder.shuffle_vector(a, b, ir.Constant(vector, lower))
        upper = ir.Constant(vector, [i + width // 2 for i in lower])
        return self.builder.fadd(low, self.builder.shuffle_vector(a, b, upper))


def _array(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, list[Any]]:
    """Return data pointer and shape of an array argument."""
    array = context.make_array(kind)(context, builder, value=value)
    return array.data, cgutils.unpack_tuple(builder, array.shape)


def _rows(builder: Any, array: tuple[Any, list[Any]], first: Any, count: int) -> list[Any]:
    """Return where `count` rows begin; beyond the last row, the last row again."""
    data, (rows, width) = array
    one = ir.Constant(rows.type, 1)
    last, pointers = builder.sub(rows, one), []
    for row in range(count):
        wanted = builder.add(first, ir.Constant(rows.type, row))
        wanted = builder.select(builder.icmp_signed("<", wanted, last), wanted, last)
        pointers.append(builder.gep(data, [builder.mul(wanted, width)]))
    return pointers


def _emit_sum_of_larger(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    query, i, candidate, j, out, row = values
    kinds = signature.args
    vectors = _Vectors(builder)
    query_array = _array(context, builder, kinds[0], query)
    candidate_array = _array(context, builder, kinds[2], candidate)
    query_rows = _rows(builder, query_array, i, TILE_ROWS)
    candidate_rows = _rows(builder, candidate_array, j, TILE_COLUMNS)
    sums = [
        cgutils.alloca_once_value(builder, vectors.zero())
        for _ in query_rows
        for _ in candidate_rows
    ]

    def add(load: Callable[[Any], Any]) -> None:
        columns = [load(pointer) for pointer in candidate_rows]
        slots = iter(sums)
        for pointer in query_rows:
            row = load(pointer)
            for column in columns:
                slot = next(slots)
                builder.store(builder.fadd(builder.load(slot), vectors.larger(row, column)), slot)

    _over_channels(builder, vectors, query_array[1][1], add)
    out_data, (_, stride) = _array(context, builder, kinds[4], out)
    corner = builder.add(builder.mul(row, stride), j)
    for start in range(0, len(sums), LANES):
        folded = vectors.fold([builder.load(slot) for slot in sums[start : start + LANES]])
        for first in range(0, LANES, TILE_COLUMNS):
            down = vectors.constant((start + first) // TILE_COLUMNS)
            place = builder.gep(out_data, [builder.add(corner, builder.mul(down, stride))])
            vectors.store_some(folded, range(first, first + TILE_COLUMNS), place)
    return context.get_dummy_value()


def _over_channels(
    builder: Any, vectors: _Vectors, channels: Any, add: Callable[[Callable[[Any], Any]], None]
) -> None:
    """Emit `add` for all channels; it is given what loads the vector of a row."""
    rest = builder.srem(channels, vectors.constant(LANES))
    full = builder.sub(channels, rest)
    step = vectors.constant(LANES)
    with cgutils.for_range_slice(builder, vectors.constant(0), full, step, inc=True) as (k, _):
        add(lambda pointer: vectors.load(pointer, k))
    with builder.if_then(builder.icmp_signed(">", rest, vectors.constant(0))):
        add(lambda pointer: vectors.load_first(pointer, full, rest))


def _emit_sum_of_rows(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    rows, first, out = values
    kinds = signature.args
    vectors = _Vectors(builder)
    array = _array(context, builder, kinds[0], rows)
    pointers = _rows(builder, array, first, LANES)
    sums = [cgutils.alloca_once_value(builder, vectors.zero()) for _ in pointers]

    def add(load: Callable[[Any], Any]) -> None:
        for pointer, slot in zip(pointers, sums, strict=True):
            builder.store(builder.fadd(builder.load(slot), load(pointer)), slot)

    _over_channels(builder, vectors, array[1][1], add)
    out_data, _ = _array(context, builder, kinds[2], out)
    folded = vectors.fold([builder.load(slot) for slot in sums])
    vectors.store(folded, out_data, vectors.constant(0))
    return context.get_dummy_value()


def _emit_pull(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    query, row, channel, candidate, places, weights, count, for_query, for_candidate = values
    kinds = signature.args
    vectors = _Vectors(builder)
    query_rows = _rows(builder, _array(context, builder, kinds[0], query), row, PULL_ROWS)
    out_rows = _rows(builder, _array(context, builder, kinds[7], for_query), row, PULL_ROWS)
    candidate_data, places_data, weights_data, sums_data = (
        _array(context, builder, kinds[at], values[at])[0] for at in (3, 4, 5, 8)
    )
    starts = [vectors.constant(start) for start in range(0, PULL_LANES, LANES)]
    offsets = [builder.add(channel, start) for start in starts]
    mine = [[vectors.load(pointer, offset) for offset in offsets] for pointer in query_rows]
    slots = [
        [cgutils.alloca_once_value(builder, vectors.zero()) for _ in starts] for _ in query_rows
    ]
    with cgutils.for_range(builder, count, intp=vectors.int) as loop:
        place = builder.load(builder.gep(places_data, [loop.index]))
        place = builder.mul(place, vectors.constant(PULL_LANES))
        ats = [builder.add(place, start) for start in starts]
        theirs = [vectors.load(candidate_data, at) for at in ats]
        sums = [vectors.load(sums_data, at) for at in ats]
        first = builder.mul(loop.index, vectors.constant(PULL_ROWS))
        for r in range(PULL_ROWS):
            at = builder.add(first, vectors.constant(r))
            weight = vectors.spread(builder.load(builder.gep(weights_data, [at])))
            for number, slot in enumerate(slots[r]):
                share = vectors.share(mine[r][number], theirs[number])
                builder.store(vectors.add_product(weight, share, builder.load(slot)), slot)
                sums[number] = vectors.add_product(weight, share, sums[number])
        for at, total in zip(ats, sums, strict=True):
            vectors.store(total, sums_data, at)
    # In this order what is stored last to the last row is its own.
    for pointer, row_slots in reversed(list(zip(out_rows, slots, strict=True))):
        for offset, slot in zip(offsets, row_slots, strict=True):
            vectors.store(builder.load(slot), pointer, offset)
    return context.get_dummy_value()


@emitted
def sum_of_larger(
    typing: Any, query: Any, i: Any, candidate: Any, j: Any, out: Any, row: Any
) -> Any:
    """Sum `max(query, candidate)` over channels, for `TILE_ROWS` x `TILE_COLUMNS` row pairs.

    Args:
        typing: Numba's.
        query: `(query_residues, channels)`.
        i: First query row; rows beyond the last are the last again.
        candidate: `(candidate_residues, channels)`.
        j: First candidate row, the same.
        out: Where the sums go, `(rows, columns)`; it has to have room for whole tiles.
        row: They go to `out[row + r, j + s]`.
    """
    kinds = (query, types.int64, candidate, types.int64, out, types.int64)
    return types.void(*kinds), _emit_sum_of_larger


@emitted
def sum_of_rows(typing: Any, rows: Any, first: Any, out: Any) -> Any:
    """Sum `LANES` rows over channels, in exactly the order in which `sum_of_larger` sums.

    Args:
        typing: Numba's.
        rows: `(residues, channels)`.
        first: The first; rows beyond the last are the last again.
        out: Where the sums go, `(LANES,)`.
    """
    return types.void(rows, types.int64, out), _emit_sum_of_rows


@emitted
def pull(
    typing: Any,
    query: Any,
    row: Any,
    channel: Any,
    candidate: Any,
    places: Any,
    weights: Any,
    count: Any,
    for_query: Any,
    for_candidate: Any,
) -> Any:
    """Sum weights over the pairs whose query row is larger, ties half, for both of their rows.

    Args:
        typing: Numba's.
        query: `(query_residues, channels)`.
        row: First of the `PULL_ROWS` query rows; rows beyond the last are the last again.
        channel: First of the `PULL_LANES` channels.
        candidate: These channels of the candidate rows, `(candidate_residues, PULL_LANES)`.
        places: Which candidate rows to compare with, `(count or more,)`.
        weights: The weights of the pairs, `(count or more, PULL_ROWS)`.
        count: How many candidate rows that is.
        for_query: Where the sums of the query rows go, shaped as `query`.
        for_candidate: What the sums of the candidate rows are added to, shaped as `candidate`.
    """
    kinds = (query, types.int64, types.int64, candidate, places, weights, types.int64)
    return types.void(*kinds, for_query, for_candidate), _emit_pull
