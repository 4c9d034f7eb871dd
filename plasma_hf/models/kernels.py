"""Which kernels compute: compiled ones where they can, plain torch everywhere else.

Every compiled form has its twin in plain torch, which says what is computed and which the tests
compare with: numba on a CPU (`cost_numba`, `plan_numba`), Triton on CUDA (`cost_triton`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

KERNELS = ("numba", "triton", "torch")
CHOICE = "PLASMA_HF_KERNELS"
"""Environment variable that names the kernels of a process; nothing for the fastest that fit."""

_chosen: ContextVar[str | None] = ContextVar("kernels", default=os.environ.get(CHOICE) or None)


def kernels_for(tensor: Tensor) -> str:
    """Return the kernels for a tensor: "numba", "triton" or "torch".

    Example:
        >>> with use_kernels("torch"):
        ...     kernels_for(torch.zeros(1))
        'torch'
    """
    if tensor.dtype == torch.float64:  # the reference's precision is the reference's business
        return "torch"
    wanted = _chosen.get()
    fitting = {"cpu": "numba", "cuda": "triton"}.get(tensor.device.type, "torch")
    if wanted == "triton" and tensor.device.type == "cpu":  # Triton's interpreter, in tests
        fitting = "triton"
    if wanted not in (None, fitting):
        return "torch"
    return fitting if fitting == "torch" or _is_installed(fitting) else "torch"


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Compute with these kernels within the block, where they fit, and with torch elsewhere.

    Args:
        name: "numba", "triton" or "torch".

    Raises:
        ValueError: If there are no such kernels.
    """
    if name not in KERNELS:
        raise ValueError(f"kernels {name!r}; accepted are {', '.join(map(repr, KERNELS))}.")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@cache
def _is_installed(package: str) -> bool:
    if find_spec(package) is not None:
        return True
    logger.info(
        "%s is not installed, plain torch computes; for more speed: pip install 'plasma-hf[fast]'",
        package,
    )
    return False
