"""The machine: what it is, and the most additions and maxima that a core does a second."""

from __future__ import annotations

import os
import platform
import re
import time
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numba", "numpy", "biopython", "tmtools", "transformers")
VECTORS = ((16, 12), (8, 12), (8, 5))
"""Lanes of a vector and vectors kept in registers; which one is fastest depends on the CPU."""


def describe_machine() -> dict:
    """Say what the CPU is called, how many cores this process may use, and the versions."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "versions": _versions()}


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@contextmanager
def threads(count: int):
    """Let torch, and with it the compiled kernels, use so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_operations(turns: int, repeats: int) -> float | None:
    """Measure the most lane operations a second of one core, half of them max, half add.

    Vectors stay in registers, so that nothing but arithmetic is measured. Returns None where numba
    is not installed.
    """
    try:
        import numba  # noqa: F401
    except ImportError:
        return None
    best = 0.0
    for lanes, sums in VECTORS:
        loop = _compile_loop(lanes, sums)
        loop(1)
        for _ in range(repeats):
            start = time.perf_counter()
            loop(turns)
            best = max(best, 2 * lanes * sums * turns / (time.perf_counter() - start))
    return best


@cache
def _compile_loop(lanes: int, sums: int):
    """Compile `sum_i += max(i, turn)` over vectors; LLVM by itself prefers narrower ones."""
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    vector, integer = ir.VectorType(ir.FloatType(), lanes), ir.IntType(64)

    def constant(value):
        return ir.Constant(vector, [float(value)] * lanes)

    def build(context, builder, signature, arguments):
        before = builder.block
        body, after = (builder.append_basic_block(name) for name in ("body", "after"))
        builder.branch(body)
        builder.position_at_end(body)
        turn, step = builder.phi(integer), builder.phi(vector)
        totals = [builder.phi(vector) for _ in range(sums)]
        turn.add_incoming(ir.Constant(integer, 0), before)
        step.add_incoming(constant(0), before)
        added = []
        for i, total in enumerate(totals):
            total.add_incoming(constant(i), before)
            is_step_less = builder.fcmp_ordered(">", constant(i), step)
            added.append(builder.fadd(total, builder.select(is_step_less, constant(i), step)))
            total.add_incoming(added[-1], body)
        step.add_incoming(builder.fadd(step, constant(1)), body)
        next_turn = builder.add(turn, ir.Constant(integer, 1))
        turn.add_incoming(next_turn, body)
        builder.cbranch(builder.icmp_signed("<", next_turn, arguments[0]), body, after)
        builder.position_at_end(after)
        result = added[0]
        for total in added[1:]:
            result = builder.fadd(result, total)
        return builder.extract_element(result, ir.Constant(ir.IntType(32), 0))

    @intrinsic
    def add_maxima(typing_context, turns):
        return numba.types.float32(numba.types.int64), build

    @numba.njit
    def loop(turns):
        return add_maxima(turns)

    return loop
