"""How compiled kernels are compiled and shared out among threads.

Numba's own parallel loops are not used: their thread pools may not be entered by two threads at
once, end a forked child that enters them again, and cost seconds to compile. Kernels release the
interpreter's lock instead, and plain threads call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import exp, log
from os import getpid
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..models.modeling_plasma import (
    BACKGROUND,
    EXTEND,
    FLOOR,
    HIGHEST_ODDS,
    OPEN,
    POWER,
    UNLIKELY,
    longer_of,
)

try:
    import numba
    from numba.extending import intrinsic
except ImportError:  # the files are importable, the kernels are not
    INSTALLED = False
else:
    INSTALLED = True

LINE = 16
"""Floats in a cache line, and in the widest register."""
Number = np.floating[Any] | float
"""What a kernel takes or returns as a number; results are float32 where arguments are."""


def compiled(function: Callable[..., Any] | None = None, *, fastmath: Any = ()) -> Any:
    """Compile a function without the interpreter's lock, and keep the machine code on disk.

    Args:
        function: What to compile, at its first call.
        fastmath: Liberties with floating point, by LLVM's names.
    """
    if function is None:
        return lambda given: compiled(given, fastmath=fastmath)
    if not INSTALLED:
        return function
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return numba.njit(**options)(function)


def emitted(kind: Callable[..., Any]) -> Any:
    """Make a function that compiled code can call of one that gives types and emitter."""
    return intrinsic(kind) if INSTALLED else kind


@emitted
def full_registers(typing: Any) -> Any:
    """Have the loops of the compiled function that calls this use registers of any width.

    Left to itself LLVM uses half of a 512-bit register, for the sake of processors that slow down
    when they see a whole one.

    Args:
        typing: Numba's.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        # llvmlite refuses attributes that it has not heard of; LLVM reads them as they stand.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return numba.types.void(), emit


def scratch_floats(count: int) -> NDArray[np.float32]:
    """Return unset memory that begins where a cache line does, so that no load straddles two."""
    raw = np.empty(count + LINE, np.float32)
    start = -(raw.ctypes.data // raw.itemsize) % LINE
    return raw[start : start + count]


def share_out(task: Callable[[int], None], tasks: int) -> None:
    """Call `task(0) .. task(tasks - 1)`, on as many threads as torch has.

    Every task has to write places of its own; then results do not depend on the threads.

    Args:
        task: What to do; it spends its time in compiled kernels.
        tasks: How many there are.
    """
    share_out_with(lambda: None, lambda _, number: task(number), tasks)


def share_out_with(
    prepare: Callable[[], Any], task: Callable[[Any, int], None], tasks: int
) -> None:
    """Call `task(own, number)` for all numbers, with one `own = prepare()` a thread.

    Args:
        prepare: Makes what a thread keeps to itself, for example scratch memory.
        task: What to do.
        tasks: How many there are.
    """
    threads = min(torch.get_num_threads(), tasks)
    numbers = count()

    def work() -> None:
        own = prepare()
        while (number := next(numbers)) < tasks:
            task(own, number)

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


# --- The two inner loops in which nearly all time goes, written in vectors.


try:
    from llvmlite import binding, ir
    from numba import types
    from numba.core import cgutils
except ImportError:
    pass


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


# --- Stored half precision to float32, compiled for a CPU: no thread of torch is woken for it.


try:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
except ImportError:

    def intrinsic(function: Any) -> Any:  # type: ignore[no-redef]
        """Leave a function alone that nobody calls then."""
        return function


PART = 4096
"""Numbers that are widened at a time on the way to codes, in the nearest cache."""


def _declare(typing_context: Any, bits: Any) -> Any:
    """Declare the number that 16 bits stand for, one instruction of the machine."""

    def widen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), widen


_from_half: Any = intrinsic(_declare)


@compiled
def _widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    full_registers()
    for i in range(len(bits)):
        out[i] = _from_half(bits[i])


@compiled
def _to_codes(
    values: NDArray[np.float32], low: float, factor: float, out: NDArray[np.uint8]
) -> bool:
    """Write codes of some values, and tell whether one is NaN, which has none."""
    full_registers()
    strange = 0
    for i in range(len(values)):
        # Adding a half and cutting off rounds, since what is below code 0 is clipped before.
        code = (values[i] - low) * factor + np.float32(0.5)
        code = code if code > np.float32(0.0) else np.float32(0.0)
        code = code if code < np.float32(255.0) else np.float32(255.0)
        strange |= values[i] != values[i]
        out[i] = np.uint8(np.int32(code))
    return strange != 0


@compiled
def _half_to_codes(
    bits: NDArray[np.uint16], low: float, factor: float, out: NDArray[np.uint8]
) -> bool:
    some, strange = np.empty(PART, np.float32), False
    for start in range(0, len(bits), PART):
        end = min(start + PART, len(bits))
        _widen(bits[start:end], some)
        strange |= _to_codes(some[: end - start], low, factor, out[start:end])
    return strange


def widened(tensor: Tensor) -> Tensor:
    """Return a float16 tensor on the CPU as float32; others as `Tensor.float` does.

    Example:
        >>> widened(torch.tensor([0.5, -2.0], dtype=torch.float16))
        tensor([ 0.5000, -2.0000])
    """
    if not _is_half(tensor):
        return tensor.float()
    out = torch.empty(tensor.shape)
    _widen(tensor.contiguous().view(torch.uint16).numpy().reshape(-1), out.numpy().reshape(-1))
    return out


def to_codes(values: Tensor, low: float, step: float) -> Tensor:
    """Round `(residues, channels)` on the CPU to codes 0 to 255 of `low + step * code`.

    Raises:
        ValueError: For NaN, which no code stands for.
    """
    out = torch.empty(values.shape, dtype=torch.uint8)
    half = _is_half(values)
    given = values.contiguous().view(torch.uint16) if half else values.float().contiguous()
    form = _half_to_codes if half else _to_codes
    numbers = np.float32(low), np.float32(1 / step)
    if form(given.numpy().reshape(-1), *numbers, out.numpy().reshape(-1)):
        raise ValueError("The projection has NaN, which no code stands for; use float32.")
    return out


def _is_half(tensor: Tensor) -> bool:
    """Tell whether the kernels here widen a tensor faster than torch does."""
    return tensor.dtype == torch.float16 and tensor.device.type == "cpu" and INSTALLED


# --- The inner loop of the hinge cost over 8-bit codes, written in vectors.


try:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError:
    pass


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


def _code_array(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, list[Any]]:
    """Return data pointer and shape of an array argument."""
    array = context.make_array(kind)(context, builder, value=value)
    return array.data, cgutils.unpack_tuple(builder, array.shape)


def _code_rows(builder: Any, array: tuple[Any, list[Any]], first: Any, count: int) -> list[Any]:
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
        query_array = _code_array(context, builder, kinds[0], query)
        query_rows = _code_rows(builder, query_array, i, CODE_ROWS)
        candidate_array = _code_array(context, builder, kinds[2], candidate)
        candidate_rows = _code_rows(builder, candidate_array, j, CODE_COLUMNS)
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
        _store_sums(codes, _code_array(context, builder, kinds[4], out), row, j, slots)
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


# --- Projections in 8-bit codes, and the sums of the hinge cost over them.


LARGEST = 255
"""The largest code; the smallest is 0."""

Codes = NDArray[np.uint8]


def quantum(low: float, high: float) -> float:
    """Return the difference between neighbouring codes.

    Args:
        low: What code 0 stands for.
        high: What code 255 stands for.

    Example:
        >>> quantum(-4.0, 3.96875)
        0.03125
    """
    step = (high - low) / LARGEST
    if not 0.0 < step < float("inf"):
        raise ValueError(f"low={low}, high={high}; give two finite numbers, the lower one first.")
    return step


def quantise(projection: Tensor, low: float, high: float) -> Tensor:
    """Round a projection to the nearest codes; what lies outside the range is clipped to it.

    Args:
        projection: `(residues, channels)` in float32 or float16; of any device, without gradient.
        low: What code 0 stands for.
        high: What code 255 stands for.

    Returns:
        Codes in uint8, of the same shape.

    Raises:
        ValueError: For a projection with NaN, for which there is no code, and for an empty range.

    Example:
        >>> import torch
        >>> quantise(torch.tensor([[-9.0, -1.0, 0.0, 0.4, 999.0]]), -1.0, 254.0).tolist()
        [[0, 0, 1, 1, 255]]
    """
    return to_codes(projection.detach().cpu(), low, quantum(low, high))


def whole_vectors(codes: Tensor) -> Codes:
    """Return codes as an array whose rows are whole vectors, filled up with code 0.

    Filled up on both sides they add nothing to a cost.

    Args:
        codes: `(residues, channels)` in uint8.
    """
    spare = -codes.shape[1] % CODES
    codes = F.pad(codes, (0, spare)) if spare else codes
    array: Codes = codes.contiguous().numpy()
    return array


@compiled
def excess_sums(query: Codes, candidate: Codes, first: int, last: int, out: Any) -> None:
    """Sum `max(query - candidate, 0)` over channels, for query rows `first` to `last`.

    Args:
        query: `(query_residues, channels)`, of whole vectors.
        candidate: `(candidate_residues, channels)`, with as many channels.
        first: First query row.
        last: The row after the last.
        out: Where they go, from row 0 on, in float32; room for whole tiles, at least
            `(last - first up to CODE_ROWS, candidate_residues up to CODE_COLUMNS)`.
    """
    for j in range(0, len(candidate), CODE_COLUMNS):
        for i in range(first, last, CODE_ROWS):
            sum_of_excess(query, i, candidate, j, out, i - first)


# --- The hinge cost and its gradient, compiled for a CPU; see `cost` for what is computed.


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
    return _HingeCost.apply(query.float(), candidate.float())


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


# --- Sums along diagonals and the support made of them, compiled for a CPU; without gradient.


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


# --- The partial Sinkhorn plan in the linear domain, compiled for a CPU; see `sinkhorn`.


Array = NDArray[np.float32]
Flags = NDArray[np.bool_]

SUMS = ("reassoc", "contract", "nsz")
"""What sums may do: be taken in any order. NaN and infinity stay what they are."""
TOGETHER = 4
"""Rows that are read together, so that column sums are loaded and stored more rarely."""
LOWEST = -87.33
"""Where the exponential leaves the range of normal numbers, below which it gives 0."""
HIGHEST = 88.37
"""Above which it gives infinity, a little early."""


def sinkhorn_numba(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to its plan by a fixed number of iterations, as `sinkhorn` does.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)` in float32, `NEVER` where masked.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        n_iters: Iterations, at least 1.

    Returns:
        The plan, shaped like `log_kernel`.
    """
    return _PublishedPlan.apply(log_kernel, candidate_mask, eps, n_iters)


class _PublishedPlan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
    ) -> Tensor:
        logs = log_kernel.detach().contiguous()
        batch, rows, columns = logs.shape
        plan = torch.empty_like(logs)
        kernel = torch.empty_like(logs)
        u = torch.empty(batch, n_iters, rows)
        v = torch.empty(batch, n_iters + 1, columns)
        v[:, 0] = 1 / candidate_mask.sum(-1, keepdim=True).clamp(min=1).float()
        arrays = [tensor.numpy() for tensor in (logs, kernel, u, v, plan)]
        slack = np.float32(eps)
        share_out(lambda pair: _published(*(array[pair] for array in arrays), slack), batch)
        if log_kernel.requires_grad:
            ctx.save_for_backward(kernel, u, v)
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, u, v = ctx.saved_tensors
        out = torch.empty_like(kernel)
        tensors = (kernel, u, v, grad.contiguous().to(kernel.dtype), out)
        arrays = [tensor.numpy() for tensor in tensors]
        share_out(lambda pair: published_backward(*(array[pair] for array in arrays)), len(kernel))
        return out, None, None, None


def converged_plan_numba(
    log_kernel: Tensor,
    query_mask: Tensor,
    candidate_mask: Tensor,
    eps: float,
    tol: float,
    max_iters: int,
) -> Tensor:
    """Scale a kernel until no potential moves any more; without gradient.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)` in float32, `NEVER` where masked.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        tol: Change of a log-potential that counts as none.
        max_iters: Where to stop at the latest.

    Returns:
        The plan, shaped like `log_kernel`.
    """
    logs = log_kernel.detach().contiguous().numpy()
    q_mask, c_mask = query_mask.bool().numpy(), candidate_mask.bool().numpy()
    out = torch.empty(log_kernel.shape)
    plan = out.numpy()
    slack = np.float32(eps)

    def pair_plan(pair: int) -> None:
        _converged(logs[pair], q_mask[pair], c_mask[pair], slack, tol, max_iters, plan[pair])

    share_out(pair_plan, len(logs))
    return out


@compiled(fastmath=("contract",))
def exponential(x: Number) -> Number:
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
def pass_over(kernel: Array, v: Array, eps: Number, u: Array, column_sums: Array) -> None:
    """Answer the candidate potentials and sum what the columns get from it, in one pass.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        v: Candidate potentials, `(candidate_residues,)`.
        eps: Slack of each residue.
        u: Where the query potentials `1 / (kernel @ v + eps)` go, `(query_residues,)`.
        column_sums: Where `u @ kernel` goes, `(candidate_residues,)`.
    """
    full_registers()
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
def answer(sums: Array, eps: Number, out: Array) -> None:
    """Turn sums of a side into its potentials, `1 / (sums + eps)`."""
    full_registers()
    for j in range(len(out)):
        out[j] = np.float32(1.0) / (sums[j] + eps)


@compiled
def scale(kernel: Array, u: Array, v: Array, out: Array) -> None:
    """Write the plan `u kernel v`, in whichever place, also that of the kernel."""
    full_registers()
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out[i, j] = u[i] * kernel[i, j] * v[j]


@compiled
def exponentials(logs: Array, out: Array) -> None:
    """Write `exp(logs)`, in whichever place, also in the same."""
    full_registers()
    for i in range(logs.shape[0]):
        for j in range(logs.shape[1]):
            out[i, j] = exponential(logs[i, j])


@compiled
def _published(logs: Array, kernel: Array, u: Array, v: Array, plan: Array, eps: Number) -> None:
    full_registers()
    exponentials(logs, kernel)
    iterate(kernel, u, v, eps)
    scale(kernel, u[-1], v[-1], plan)


@compiled
def iterate(kernel: Array, u: Array, v: Array, eps: Number) -> None:
    """Run the published form and keep the potentials of every iteration.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        u: Where the query potentials go, `(n_iters, query_residues)`.
        v: Where the candidate potentials go after the first, which are given,
            `(n_iters + 1, candidate_residues)`.
        eps: Slack of each residue.
    """
    full_registers()
    sums = np.empty(kernel.shape[1], np.float32)
    for t in range(len(u)):
        pass_over(kernel, v[t], eps, u[t], sums)
        answer(sums, eps, v[t + 1])


@compiled(fastmath=SUMS)
def published_backward(kernel: Array, u: Array, v: Array, grad: Array, out: Array) -> None:
    """Follow the iterations back; the kernel's gradient is a sum of outer products of vectors.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        u: Query potentials of all iterations, `(n_iters, query_residues)`.
        v: Candidate potentials, with the first, `(n_iters + 1, candidate_residues)`.
        grad: Of the plan, shaped like `kernel`.
        out: Where the gradient of the log-kernel goes.
    """
    full_registers()
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
        _gather_row(kernel[i], u[:, i], v, grad[i], a[:, i], b, out[i])


@compiled(fastmath=SUMS)
def _pass_back(kernel: Array, u: Array, b: Array, du: Array, a: Array, dv: Array) -> None:
    """Carry gradients from one side's sums to the other side's potentials, in one pass."""
    full_registers()
    rows, columns = kernel.shape
    dv[:] = np.float32(0.0)
    for i in range(rows):
        row, total = kernel[i], np.float32(0.0)
        for j in range(columns):
            total += row[j] * b[j]
        a[i] = u[i] * u[i] * (du[i] - total)
        for j in range(columns):
            dv[j] -= a[i] * row[j]


# Without liberties: with them its sums came out different in the process that compiled it and in
# those that loaded it from the disk.
@compiled
def _gather_row(
    kernel: Array, u: Array, v: Array, grad: Array, a: Array, b: Array, out: Array
) -> None:
    """Sum what all iterations say about one row of the log-kernel."""
    full_registers()
    n_iters, columns = b.shape
    for j in range(columns):
        out[j] = grad[j] * u[n_iters - 1] * v[n_iters, j]
    for t in range(n_iters):
        for j in range(columns):
            out[j] -= u[t] * b[t, j] + a[t] * v[t, j]
    for j in range(columns):
        out[j] *= kernel[j]


@compiled
def _converged(
    logs: Array,
    query_mask: Flags,
    candidate_mask: Flags,
    eps: Number,
    tol: Number,
    max_iters: int,
    plan: Array,
) -> None:
    full_registers()
    exponentials(logs, plan)
    u, v = np.empty(len(query_mask), np.float32), np.empty(len(candidate_mask), np.float32)
    converge(plan, query_mask, candidate_mask, eps, tol, max_iters, u, v)
    scale(plan, u, v, plan)


@compiled
def converge(
    kernel: Array,
    query_mask: Flags,
    candidate_mask: Flags,
    eps: Number,
    tol: Number,
    max_iters: int,
    u: Array,
    v: Array,
) -> None:
    """Iterate to a fixed point and write its potentials; see `_converge` of `sinkhorn`.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        query_mask: True where there is a residue, `(query_residues,)`.
        candidate_mask: True where there is a residue, `(candidate_residues,)`.
        eps: Slack of each residue.
        tol: Change of a log-potential that counts as none.
        max_iters: Where to stop at the latest.
        u: Where the query potentials go.
        v: Where the candidate potentials go.
    """
    full_registers()
    query_count, candidate_count = query_mask.sum(), candidate_mask.sum()
    new_u, new_v = np.empty_like(u), np.empty_like(v)
    sums = np.empty_like(v)
    v[:] = np.float32(1.0) / np.float32(max(candidate_count, 1))
    # Before the first iteration there is no query potential to compare with: any would do.
    u[:] = np.float32(1.0)
    for t in range(max_iters):
        pass_over(kernel, v, eps, new_u, sums)
        answer(sums, eps, new_v)
        factor = _exchange(
            _total(new_u, query_mask) * eps,
            _total(new_v, candidate_mask) * eps,
            np.float64(query_count - candidate_count),
        )
        if t == 0:
            u[:] = new_u
        largest = max(
            _settle(u, new_u, np.float32(factor), query_mask),
            _settle(v, new_v, np.float32(1 / factor), candidate_mask),
        )
        if not largest > tol:
            break


@compiled
def _total(potentials: Array, mask: Flags) -> Number:
    total = 0.0
    for i in range(len(mask)):
        total += np.float64(potentials[i]) if mask[i] else 0.0
    return total


@compiled
def _exchange(query_slack: Number, candidate_slack: Number, surplus: Number) -> Number:
    """Return the best factor between both potentials; see `_balance` of `sinkhorn`."""
    half = (np.sqrt(surplus**2 + 4 * query_slack * candidate_slack) + abs(surplus)) / 2
    factor = half / query_slack if surplus >= 0 else candidate_slack / half
    return factor if np.isfinite(factor) and factor > 0 else 1.0


@compiled
def _settle(old: Array, new: Array, factor: Number, mask: Flags) -> Number:
    """Replace potentials by `factor * new`; return by how much their logarithm changes at most."""
    lowest, highest = np.float32(1.0), np.float32(1.0)
    for i in range(len(mask)):
        value = new[i] * factor
        ratio = value / old[i] if mask[i] else np.float32(1.0)
        lowest, highest = min(lowest, ratio), max(highest, ratio)
        old[i] = value
    return max(np.log(highest), -np.log(lowest))


# --- How likely residues are aligned in order, compiled for a CPU; without gradient; see `order`.


Array = NDArray[np.float32]
Sums = NDArray[np.float64]

UNIT = 1e300
"""How a sum of 1 is written at first, so that small sums beside large ones have the range."""
BY_GAP, BY_EXTENSION = exp(OPEN), exp(EXTEND)


def in_order_numba(plan: Tensor, allowed: Tensor) -> Tensor:
    """Do what `in_order` does; without gradient.

    Args:
        plan: `(batch, query_residues, candidate_residues)` in float32.
        allowed: True where both are residues, same shape.

    Returns:
        The probabilities, shaped like `plan`.
    """
    given = plan.detach().masked_fill(~allowed, 0.0).contiguous().numpy()
    mask, longer = allowed.contiguous().numpy(), longer_of(allowed).tolist()
    out = torch.empty(plan.shape)
    found = out.numpy()

    def pair(number: int) -> None:
        odds = np.empty(given.shape[1:])
        write_odds(given[number], longer[number], odds)
        odds *= mask[number]
        write_probabilities(odds, found[number])

    share_out(pair, len(given))
    return out


@compiled
def write_odds(plan: Array, longer: int, odds: Sums) -> None:
    """Write what the entries of a plan say for their pairs; 1 says nothing.

    Args:
        plan: `(query_residues, candidate_residues or more)`.
        longer: Residues of the longer protein.
        odds: `(query_residues, candidate_residues)`, to be written.
    """
    full_registers()
    rows, columns = odds.shape
    of_query, of_candidate = 0.0, np.zeros(columns, np.float32)
    logs = np.empty((rows, columns), np.float32)
    background = np.float32(POWER * log(BACKGROUND / longer))
    for i in range(rows):
        for j in range(columns):
            logs[i, j] = np.float32(POWER) * logarithm(plan[i, j] + np.float32(FLOOR))
            logs[i, j] -= background
            of_candidate[j] = max(of_candidate[j], logs[i, j])
        of_query += max(logs[i].max(), np.float32(0.0))
    bound = max(min(of_query, np.float64(of_candidate.sum())), HIGHEST_ODDS)
    factor = np.float32(HIGHEST_ODDS / bound)
    for i in range(rows):
        for j in range(columns):
            odds[i, j] = exponential(factor * logs[i, j])


@compiled(fastmath=("contract",))
def logarithm(x: Number) -> Number:
    """Return `log(x)` of a positive normal number to about 1e-7; loops over it become vectors."""
    bits = np.float32(x).view(np.int32)
    # The number is 2^power times a fraction from 0.71 to 1.41.
    power = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    fraction = np.int32(bits - (power << np.int32(23))).view(np.float32)
    ratio = (fraction - np.float32(1.0)) / (fraction + np.float32(1.0))
    square = ratio * ratio
    series = np.float32(2 / 9)
    series = series * square + np.float32(2 / 7)
    series = series * square + np.float32(2 / 5)
    series = series * square + np.float32(2 / 3)
    series = series * square + np.float32(2.0)
    return series * ratio + np.float32(power) * np.float32(0.693147181)


@compiled
def write_probabilities(odds: Sums, out: Array) -> None:
    """Write the probabilities that pairs are aligned.

    Args:
        odds: `(query_residues, candidate_residues)`, 0 where nothing may be aligned.
        out: `(query_residues, candidate_residues or more)`, to be written.
    """
    full_registers()
    rows, columns = odds.shape
    ending, logs = _alignments_ending(odds)
    # From the last residues on, what ends with a pair is what begins with it.
    beginning, other_logs = _alignments_ending(odds[::-1, ::-1].copy())
    every = 0.0
    for i in range(rows):
        every += ending[i].sum() / UNIT * exp(logs[i] - logs[-1])
    every = log(every) + logs[-1]
    for i in range(rows):
        # The factor in halves: a row may have sums that are large, but not in one alignment.
        half = exp((logs[i] + other_logs[rows - 1 - i] - every) / 2) / UNIT
        backwards = beginning[rows - 1 - i, ::-1]
        for j in range(columns):
            # A pair is in both, and counts once.
            both = (ending[i, j] * half) * (backwards[j] * half)
            out[i, j] = min(both / odds[i, j], 1.0) if odds[i, j] > 0.0 else 0.0


@compiled
def _alignments_ending(odds: Sums) -> tuple[Sums, Sums]:
    """Sum up the alignments that end with a pair; a sum is `exp(logs[row]) / UNIT` times that."""
    rows, columns = odds.shape
    sums, logs = np.empty((rows, columns)), np.zeros(rows)
    match, query_gap, total = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    unit = UNIT
    for i in range(rows):
        match, largest = sums[i], _next_row(odds[i], unit, match, query_gap, total, sums[i])
        logs[i] = log(UNIT) - log(unit)
        if largest > UNIT:
            factor = UNIT / largest
            match *= factor
            query_gap *= factor
            total *= factor
            unit *= factor
            logs[i] -= log(factor)
    return sums, logs


@compiled
def _next_row(
    odds: Sums, unit: Number, above: Sums, query_gap: Sums, total: Sums, match: Sums
) -> Number:
    """Go on by a query residue, and return the largest sum.

    Args:
        odds: Of its pairs, `(candidate_residues,)`.
        unit: How a sum of 1 is written.
        above: Alignments that end with a pair of the residue before, by candidate residue.
        query_gap: With query residues left out after a pair, to be moved on.
        total: With whatever may come before the next pair, to be moved on.
        match: Alignments that end with a pair of this residue, to be written.
    """
    full_registers()
    before, candidate_gap, opening, largest = 0.0, 0.0, 0.0, 0.0
    for j in range(len(odds)):
        # A local alignment begins anywhere: with a sum of 1 before its first pair.
        match[j] = odds[j] * (before + unit)
        before = total[j]
        query_gap[j] = above[j] * BY_GAP + query_gap[j] * BY_EXTENSION
        candidate_gap = opening * BY_GAP + candidate_gap * BY_EXTENSION
        opening = match[j] + query_gap[j]
        total[j] = opening + candidate_gap
        largest = max(largest, match[j])
    return largest


# --- Plans and what scores are made of for pairs of any lengths, compiled for a CPU.


Array = NDArray[np.float32]
Settings = tuple[Any, ...]


@dataclass
class Matches:
    """What is matched in pairs, one entry a pair in each list and tensor.

    Attributes:
        sent: What each query residue sends to matched candidate residues, 0 if it is not matched
            itself, `(query_residues,)`.
        gates: 1 where a candidate residue is matched, `(candidate_residues,)`.
        stretch: Largest sum along a diagonal stretch of the plan, `(pairs,)`.
        mass: Sum of plan entries above the threshold, `(pairs,)`.
        collinear: Largest sum of plan entries in order, `(pairs,)`; 0 if it was not asked for.
        plans: Plans with support, `(query_residues, candidate_residues)`, if asked for.
    """

    sent: list[Tensor]
    gates: list[Tensor]
    stretch: Tensor
    mass: Tensor
    collinear: Tensor
    plans: list[Tensor] | None


def align_pairs_numba(
    query: Sequence[Tensor],
    candidate: Sequence[Tensor],
    *,
    kernel_scale: float,
    eps: float = 1e-8,
    n_iters: int = 20,
    tol: float | None = None,
    max_iters: int = 2000,
    support_rounds: int = 0,
    support_window: int = 25,
    support_gap: int = 3,
    support_weight: float = 16.0,
    order_weight: float = 0.0,
    threshold: float = 0.5,
    diagonal_window: int = 10,
    collinear: bool = False,
    return_plans: bool = False,
    quantum: float | None = None,
) -> Matches:
    """Align `query[p]` with `candidate[p]` in the linear domain; without gradient.

    Args:
        query: Projected proteins, `(residues, channels)` in float32; one may come repeatedly. Or
            all of both sides as codes in uint8, see `quantise`: about four times as fast a cost.
        candidate: As many, likewise.
        kernel_scale: What multiplies the cost in the exponent.
        eps: Slack of each residue.
        n_iters: Iterations of the published form.
        tol: Tolerance of the converged form; None for the published form.
        max_iters: Where the converged form stops at the latest.
        support_rounds: How often support is added, to plans only: scores take the plan without.
        support_window: Steps to each side that speak for a residue pair.
        support_gap: Residues aside.
        support_weight: Bonus in the exponent.
        order_weight: Weight of a last round for what is in order, to plans only; 0 for none.
        threshold: Plan entry above which a residue is matched.
        diagonal_window: Steps of the stretch; 0 gives a stretch of 0.
        collinear: Whether to sum what is in order.
        return_plans: Whether to write plans at all.
        quantum: Difference between neighbouring codes, with codes only.

    Returns:
        Gates, stretch, mass and collinear mass of the plan without support, and the plan with it.

    Raises:
        ValueError: For codes without quantum or the reverse, and for codes on one side only.
    """
    pairs = _as_arrays(query, candidate, quantum)
    # The cost of codes is a number of quanta; it is scaled once, for both reasons.
    kernel_scale *= 1.0 if quantum is None else quantum
    settings = (
        (np.float32(kernel_scale), np.float32(eps), n_iters, -1.0 if tol is None else float(tol)),
        (max_iters, support_rounds if return_plans else 0, support_window, support_gap)
        + (np.float32(support_weight), np.float32(order_weight if return_plans else 0.0)),
        (np.float32(threshold), diagonal_window, collinear),
    )
    out = Matches(
        sent=list(torch.zeros(sum(len(q) for q, _ in pairs)).split([len(q) for q, _ in pairs])),
        gates=list(torch.zeros(sum(len(c) for _, c in pairs)).split([len(c) for _, c in pairs])),
        stretch=torch.zeros(len(pairs)),
        mass=torch.zeros(len(pairs)),
        collinear=torch.zeros(len(pairs)),
        plans=[torch.zeros(len(q), len(c)) for q, c in pairs] if return_plans else None,
    )
    numbers, none = np.zeros((len(pairs), 3)), np.empty((0, 0), np.float32)

    finish_pair = _finish if quantum is None else _finish_codes

    def finish(scratch: Array, pair: int) -> None:
        sent, gate = out.sent[pair].numpy(), out.gates[pair].numpy()
        plan = none if out.plans is None else out.plans[pair].numpy()
        finish_pair(*pairs[pair], scratch, *settings, sent, gate, numbers[pair], plan)

    sums = sum_rows if quantum is None else _sum_code_rows
    supported = settings[1][1] or settings[1][-1]
    _share_out_pairs(pairs, 3 if supported else 1, sums, finish)
    out.stretch.copy_(torch.from_numpy(numbers[:, 0]))
    out.mass.copy_(torch.from_numpy(numbers[:, 1]))
    out.collinear.copy_(torch.from_numpy(numbers[:, 2]))
    return out


def _as_arrays(
    query: Sequence[Tensor], candidate: Sequence[Tensor], quantum: float | None
) -> list[tuple[Any, Any]]:
    """Return the arrays of all pairs; a protein that comes repeatedly is converted once."""
    proteins: dict[int, Any] = {}
    for tensor in (*query, *candidate):
        if (tensor.dtype == torch.uint8) == (quantum is None):
            raise ValueError(
                f"A projection in {tensor.dtype} with quantum={quantum}; give quantum and codes in "
                "torch.uint8 on both sides, or neither."
            )
        if id(tensor) not in proteins:
            side = tensor.detach()
            whole = side.contiguous().numpy() if quantum is None else whole_vectors(side)
            proteins[id(tensor)] = whole
    return [(proteins[id(q)], proteins[id(c)]) for q, c in zip(query, candidate, strict=True)]


def _share_out_pairs(
    pairs: list[tuple[Any, Any]], matrices: int, sum_rows: Any, finish: Any
) -> None:
    """Give pairs to threads, the largest first; a lone pair is shared by its query rows."""
    areas = [area(q, c) for q, c in pairs]
    order = sorted(
        (p for p, (q, c) in enumerate(pairs) if q.size and c.size), key=areas.__getitem__
    )
    order.reverse()

    def scratch() -> Array:
        # Once a thread, not once a pair: fresh memory costs more than what is done in it.
        return scratch_floats(matrices * max(areas, default=0))

    def whole_pair(own: Array, number: int) -> None:
        pair = order[number]
        sum_rows(*pairs[pair], own, 0, len(pairs[pair][0]))
        finish(own, pair)

    if len(order) > 1:
        share_out_with(scratch, whole_pair, len(order))
    elif order:
        (q, c), own = pairs[order[0]], scratch()
        blocks = -(-len(q) // BLOCK)
        share_out(lambda n: sum_rows(q, c, own, n * BLOCK, min(n * BLOCK + BLOCK, len(q))), blocks)
        finish(own, order[0])


def area(query: Array, candidate: Array) -> int:
    """Return the floats of a scratch matrix for two proteins."""
    return (-(-len(query) // WIDTH) * WIDTH) * (-(-len(candidate) // WIDTH) * WIDTH)


@compiled
def matrix_of(scratch: Array, number: int, rows: int, columns: int) -> Array:
    """Return scratch as a matrix of whole tiles and vectors."""
    height, width = -(-rows // WIDTH) * WIDTH, -(-columns // WIDTH) * WIDTH
    area = height * width
    return scratch[number * area : (number + 1) * area].reshape(height, width)


@compiled
def sum_rows(query: Array, candidate: Array, scratch: Array, first: int, last: int) -> None:
    """Write the sums that the cost is made of, of query rows `first` to `last`."""
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for start in range(first, last, BLOCK):
        larger_sums(query, candidate, start, min(start + BLOCK, last), matrix[start:])


@compiled
def _sum_code_rows(query: Codes, candidate: Codes, scratch: Array, first: int, last: int) -> None:
    """Write costs in quanta, of query rows `first` to `last`."""
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for start in range(first, last, BLOCK):
        excess_sums(query, candidate, start, min(start + BLOCK, last), matrix[start:])


@compiled
def _finish(
    query: Array,
    candidate: Array,
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Go from sums over channels to the plan and the parts of the score.

    Args:
        query: `(query_residues, channels)`.
        candidate: `(candidate_residues, channels)`.
        scratch: What `sum_rows` wrote, and room for as much twice more with support.
        solver: kernel_scale, eps, n_iters, and tol, negative for none.
        support: max_iters, rounds, window, gap and weight of the support, and weight of the order.
        score: threshold, steps of the stretch, and whether to sum what is in order.
        sent: `(query_residues,)`, to be written.
        gate: `(candidate_residues,)`, to be written.
        numbers: Stretch, mass and collinear mass, to be written.
        plan: `(query_residues, candidate_residues)`, to be written if not empty.
    """
    full_registers()
    rows = len(query)
    to_exponents(query, candidate, matrix_of(scratch, 0, rows, len(candidate))[:rows], solver[0])
    _finish_exponents(scratch, solver, support, score, sent, gate, numbers, plan)


@compiled
def _finish_codes(
    query: Codes,
    candidate: Codes,
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Do the same from what `_sum_code_rows` wrote; kernel_scale is that of a quantum."""
    full_registers()
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for i in range(len(query)):
        for j in range(matrix.shape[1]):
            matrix[i, j] *= -solver[0]
    _finish_exponents(scratch, solver, support, score, sent, gate, numbers, plan)


@compiled
def _finish_exponents(
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Go from exponents to the plan and the parts of the score."""
    full_registers()
    rows, columns = len(sent), len(gate)
    _, rounds, window, gap, weight, order_weight = support
    threshold, steps, in_order = score
    matrix = matrix_of(scratch, 0, rows, columns)[:rows]
    logs, nearby = matrix, matrix
    last = rounds + 1 if order_weight > 0.0 else rounds
    if last > 0:
        logs = matrix_of(scratch, 1, rows, columns)[:rows]
        nearby = matrix_of(scratch, 2, rows, columns)[:rows]
        logs[:] = matrix
    for number in range(last + 1):
        if number > rounds:
            odds = np.empty((rows, columns))
            write_odds(matrix, max(rows, columns), odds)
            write_probabilities(odds, matrix)
            _add_logarithms(matrix, columns, order_weight, logs)
        if number > 0:
            best_nearby(matrix, gap, nearby)
            nearby[:, columns:] = np.float32(0.0)
            _add_support(logs, nearby, window, weight, matrix)
        _exponentiate(matrix, columns)
        _solve(matrix, columns, solver, support[0])
        if number == 0:
            numbers[1] = _gates(matrix, threshold, sent, gate)
            numbers[0] = best_window(matrix, columns, steps) if steps > 0 else 0.0
            numbers[2] = _collinear(matrix, columns) if in_order else 0.0
    if plan.size:
        plan[:] = matrix[:, :columns]


@compiled
def to_exponents(query: Array, candidate: Array, matrix: Array, kernel_scale: Number) -> None:
    """Turn what `sum_rows` wrote into `-kernel_scale * cost`, in its place."""
    full_registers()
    rows, columns = len(query), len(candidate)
    offsets, own = np.zeros(matrix.shape[1], np.float32), np.empty(rows, np.float32)
    self_sums(candidate, offsets[:columns])
    self_sums(query, own)
    for i in range(rows):
        excess = hidden_nan(own[i])
        for j in range(matrix.shape[1]):
            matrix[i, j] = -kernel_scale * (matrix[i, j] - offsets[j] + excess)


@compiled
def _exponentiate(matrix: Array, columns: int) -> None:
    full_registers()
    for i in range(len(matrix)):
        for j in range(columns):
            matrix[i, j] = exponential(matrix[i, j])
        for j in range(columns, matrix.shape[1]):
            matrix[i, j] = np.float32(0.0)


@compiled
def _solve(matrix: Array, columns: int, solver: Settings, max_iters: int) -> None:
    """Turn a kernel into its plan, in its place."""
    full_registers()
    (rows, width), (_, eps, n_iters, tol) = matrix.shape, solver
    u, v = np.empty(rows, np.float32), np.empty(width, np.float32)
    if tol >= 0:
        query_mask, candidate_mask = np.ones(rows, np.bool_), np.zeros(width, np.bool_)
        candidate_mask[:columns] = True
        converge(matrix, query_mask, candidate_mask, eps, tol, max_iters, u, v)
    else:
        sums = np.empty(width, np.float32)
        v[:] = np.float32(1.0) / np.float32(columns)
        for _ in range(n_iters):
            pass_over(matrix, v, eps, u, sums)
            answer(sums, eps, v)
    scale(matrix, u, v, matrix)


@compiled
def _gates(plan: Array, threshold: Number, sent: Array, gate: Array) -> Number:
    """Write what gated residues send to gated residues; return the mass above the threshold."""
    full_registers()
    (rows, width), columns, mass = plan.shape, len(gate), 0.0
    open_columns = np.zeros(width, np.float32)
    for i in range(rows):
        above = _above(plan[i], threshold, open_columns)
        sent[i] = above  # a row with nothing above has 0 here, and is not matched
        mass += above
    for j in range(columns):
        gate[j] = open_columns[j]
    for i in range(rows):
        if sent[i] != 0.0:
            sent[i] = _dot(plan[i], open_columns)
    return mass


@compiled
def _collinear(plan: Array, columns: int) -> Number:
    """Sum the plan along its best path, see `collinear_score`."""
    full_registers()
    best, ahead = np.zeros(columns + 1, np.float32), np.empty(columns, np.float32)
    for i in range(len(plan)):
        for j in range(columns):
            ahead[j] = max(best[j] + plan[i, j], best[j + 1])
        furthest = np.float32(0.0)
        for j in range(columns):
            furthest = max(furthest, ahead[j])
            best[j + 1] = furthest
    return best[columns]


@compiled(fastmath=SUMS)
def _above(row: Array, threshold: Number, open_columns: Array) -> Number:
    """Sum what is above the threshold and mark where; NaN is above it, so that it shows."""
    full_registers()
    total = np.float32(0.0)
    for j in range(len(row)):
        below = row[j] <= threshold
        total += np.float32(0.0) if below else row[j]
        open_columns[j] = open_columns[j] if below else np.float32(1.0)
    return total


@compiled(fastmath=SUMS)
def _dot(row: Array, weights: Array) -> Number:
    full_registers()
    total = np.float32(0.0)
    for j in range(len(row)):
        total += row[j] * weights[j]
    return total


@compiled
def _add_logarithms(probabilities: Array, columns: int, weight: Number, logs: Array) -> None:
    full_registers()
    for i in range(len(logs)):
        for j in range(columns):
            logs[i, j] += weight * logarithm(probabilities[i, j] + np.float32(UNLIKELY))


@compiled
def _add_support(logs: Array, nearby: Array, window: int, weight: Number, out: Array) -> None:
    full_registers()
    rows, width = logs.shape
    sums = np.zeros(rows + width, np.float64)
    share = np.float64(weight) / (2 * window + 1)
    for i in range(rows):
        move_on(sums, nearby, i, window, window)
        mine = sums[rows - 1 - i : rows - 1 - i + width]
        for j in range(width):
            out[i, j] = logs[i, j] + np.float32(share * mine[j])


# --- Plans of pairs of any lengths with their gradients, compiled for a CPU: for training.


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
        _share_out_gradients(lambda: scratch_floats(room), pair, sizes)
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

        _share_out_gradients(lambda: None, pair, [grad.shape for grad in given])
        return None, None, None, *(s[:, :channels].unsqueeze(0) for side in out for s in side)


def _in_pairs(sides: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    rows = [side.detach()[0].contiguous() for side in sides]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [tensor.numpy() for tensor in tensors]


def _share_out_gradients(
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
