"""How compiled kernels are compiled and shared out among threads.

Numba's own parallel loops are not used: their thread pools may not be entered by two threads at
once, end a forked child that enters them again, and cost seconds to compile. Kernels release the
interpreter's lock instead, and plain threads call them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from os import getpid
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
