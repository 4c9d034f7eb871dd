"""The inner loop of the hinge cost over 8-bit codes, written in vectors.

Of unsigned codes the hinge is one instruction, a subtraction that stops at 0, and four times as
many of them fit in a register as floats. Sums are integers, so that their order does not matter:
every processor returns the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError:
    pass

from .compiled_numba import INSTALLED
from .tile_numba import LANES

CODES = 4 * LANES
"""Codes a vector register; rows have to be whole vectors."""
CODE_ROWS = 4
CODE_COLUMNS = 4
"""Rows of the query and of the candidate whose sums are computed at once."""

_DOTS = {64: "llvm.x86.avx512.vpdpbusd.512"}
_DISTANCES = {
    64: "llvm.x86.avx512.psad.bw.512",
    32: "llvm.x86.avx2.psad.bw",
    16: "llvm.x86.sse2.psad.bw",
}
_NEEDED = {64: "+avx512bw", 32: "+avx2", 16: "+sse2"}


def _form(context: Any) -> str:
    """Return how codes are best added up on the processor that is compiled for.

    That need not be the one which compiles: numba can be told of another.
    """
    triple, _, features = context.codegen().magic_tuple()
    known = set(features.split(","))
    if not triple.startswith(("x86_64", "i686", "amd64")) or _NEEDED[CODES] not in known:
        return "plain"
    return "dot" if CODES in _DOTS and "+avx512vnni" in known else "distance"


class _Codes:
    """Emit what is done with vectors of codes."""

    def __init__(self, builder: Any, form: str) -> None:
        self.builder, self.form = builder, form
        self.int, self.int32 = ir.IntType(64), ir.IntType(32)
        self.codes = ir.VectorType(ir.IntType(8), CODES)
        self.sums = ir.VectorType(self.int32, LANES)

    def constant(self, value: int) -> Any:
        return ir.Constant(self.int, value)

    def load(self, base: Any, offset: Any) -> Any:
        place = self.builder.gep(base, [offset])
        return self.builder.load(self.builder.bitcast(place, self.codes.as_pointer()), align=1)

    def excess(self, a: Any, b: Any) -> Any:
        """Subtract, and stop at 0."""
        return self._call(f"llvm.usub.sat.v{CODES}i8", self.codes, a, b)

    def add_up(self, sums: Any, codes: Any) -> Any:
        """Add codes to as many sums as there are floats in a register, no matter which to which."""
        if self.form == "dot":
            # The products' types are those before LLVM 22, which later versions still take.
            ones = ir.Constant(self.codes, [1] * CODES)
            sides = [self.builder.bitcast(side, self.sums) for side in (codes, ones)]
            return self._call(_DOTS[CODES], self.sums, sums, *sides)
        if self.form == "distance":
            zeros = ir.Constant(self.codes, [0] * CODES)
            wide = ir.VectorType(self.int, LANES // 2)
            more = self._call(_DISTANCES[CODES], wide, codes, zeros)
            return self.builder.add(sums, self.builder.bitcast(more, self.sums))
        for start in range(0, CODES, LANES):
            order = ir.VectorType(self.int32, LANES)
            places = ir.Constant(order, list(range(start, start + LANES)))
            some = self.builder.shuffle_vector(codes, codes, places)
            sums = self.builder.add(sums, self.builder.zext(some, self.sums))
        return sums

    def fold(self, sums: list[Any]) -> Any:
        """Sum the lanes of as many vectors as there are lanes; one lane for each, in order."""
        width = LANES
        while width > 1:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [self._halve(a, b, width) for a, b in pairs]
            width //= 2
        return sums[0]

    def store_some(self, value: Any, lanes: range, place: Any) -> None:
        """Store some neighbouring lanes."""
        order = ir.Constant(ir.VectorType(self.int32, len(lanes)), list(lanes))
        some = self.builder.shuffle_vector(value, value, order)
        self.builder.store(some, self.builder.bitcast(place, some.type.as_pointer()), align=4)

    def _halve(self, a: Any, b: Any, width: int) -> Any:
        """Add the halves of all groups of `width` lanes, those of `a` first, then those of `b`."""
        lower = [i for i in range(2 * LANES) if i % width < width // 2]
        order = ir.VectorType(self.int32, LANES)
        low = self.builder.shuffle_vector(a, b, ir.Constant(order, lower))
        upper = ir.Constant(order, [i + width // 2 for i in lower])
        return self.builder.add(low, self.builder.shuffle_vector(a, b, upper))

    def _call(self, name: str, returned: Any, *values: Any) -> Any:
        kind = ir.FunctionType(returned, [value.type for value in values])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, values)


def _array(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, list[Any]]:
    """Return data pointer and shape of an array argument."""
    array = context.make_array(kind)(context, builder, value=value)
    return array.data, cgutils.unpack_tuple(builder, array.shape)


def _rows(builder: Any, array: tuple[Any, list[Any]], first: Any, count: int) -> list[Any]:
    """Return where `count` rows begin; beyond the last row, the last row again."""
    data, (rows, width) = array
    last, pointers = builder.sub(rows, ir.Constant(rows.type, 1)), []
    for row in range(count):
        wanted = builder.add(first, ir.Constant(rows.type, row))
        wanted = builder.select(builder.icmp_signed("<", wanted, last), wanted, last)
        pointers.append(builder.gep(data, [builder.mul(wanted, width)]))
    return pointers


def _emit_sum_of_excess(form: str | None) -> Callable[..., Any]:
    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        query, i, candidate, j, out, row = values
        kinds = signature.args
        codes = _Codes(builder, form or _form(context))
        query_array = _array(context, builder, kinds[0], query)
        query_rows = _rows(builder, query_array, i, CODE_ROWS)
        candidate_array = _array(context, builder, kinds[2], candidate)
        candidate_rows = _rows(builder, candidate_array, j, CODE_COLUMNS)
        zero = ir.Constant(codes.sums, [0] * LANES)
        slots = [
            cgutils.alloca_once_value(builder, zero) for _ in query_rows for _ in candidate_rows
        ]
        for slot in slots:
            builder.store(zero, slot)  # `alloca_once_value` stores where the function begins
        step, channels = codes.constant(CODES), query_array[1][1]
        with cgutils.for_range_slice(builder, codes.constant(0), channels, step, inc=True) as (
            k,
            _,
        ):
            columns = [codes.load(pointer, k) for pointer in candidate_rows]
            remaining = iter(slots)
            for pointer in query_rows:
                mine = codes.load(pointer, k)
                for column in columns:
                    slot = next(remaining)
                    excess = codes.excess(mine, column)
                    builder.store(codes.add_up(builder.load(slot), excess), slot)
        _store_sums(codes, _array(context, builder, kinds[4], out), row, j, slots)
        return context.get_dummy_value()

    return emit


def _store_sums(
    codes: _Codes, out: tuple[Any, list[Any]], row: Any, column: Any, slots: list[Any]
) -> None:
    """Store the sums of a tile as floats, at `out[row, column]` and around."""
    builder, (data, (_, stride)) = codes.builder, out
    corner = builder.add(builder.mul(row, stride), column)
    floats = ir.VectorType(ir.FloatType(), LANES)
    run = min(CODE_COLUMNS, LANES)
    for start in range(0, len(slots), LANES):
        folded = codes.fold([builder.load(slot) for slot in slots[start : start + LANES]])
        folded = builder.sitofp(folded, floats)
        for first in range(0, LANES, run):
            down = codes.constant((start + first) // CODE_COLUMNS)
            place = builder.gep(data, [builder.add(corner, builder.mul(down, stride))])
            codes.store_some(folded, range(first, first + run), place)


def _emitted(form: str | None) -> Any:
    """Make the function that compiled code can call; tests choose the form."""

    def sum_of_excess(
        typing: Any, query: Any, i: Any, candidate: Any, j: Any, out: Any, row: Any
    ) -> Any:
        """Sum `max(query - candidate, 0)` over channels, for `CODE_ROWS` x `CODE_COLUMNS` pairs.

        Args:
            typing: Numba's.
            query: Codes in uint8, `(query_residues, channels)`, channels a multiple of `CODES`.
            i: First query row; rows beyond the last are the last again.
            candidate: `(candidate_residues, channels)`, with as many channels.
            j: First candidate row, the same.
            out: Where the sums go, `(rows, columns)` in float32; it has to have room for whole
                tiles.
            row: They go to `out[row + r, j + s]`.
        """
        kinds = (query, types.int64, candidate, types.int64, out, types.int64)
        return types.void(*kinds), _emit_sum_of_excess(form)

    return intrinsic(sum_of_excess) if INSTALLED else sum_of_excess


sum_of_excess = _emitted(None)
