"""The machine: what it is, and the memory of a process on it."""

from __future__ import annotations

import os
import platform
import re
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "numba", "numpy", "biopython", "tmtools", "transformers")


def describe_machine() -> str:
    """Say what the CPU is called, how many cores this process may use, and the versions."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{_cpu()}, {cores} cores; python {platform.python_version()}, {versions}"


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@contextmanager
def threads(count: int):
    """Let torch, and with it the compiled kernels, use so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def memory(field: str) -> int:
    """Return a field of `/proc/self/status` in bytes, for example VmHWM; 0 where it is missing.

    VmHWM starts anew with a program, where `ru_maxrss` begins with what the parent had.
    """
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)
