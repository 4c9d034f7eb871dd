"""Which kernels compute: compiled ones where they can, plain torch everywhere else.

Every compiled form has its twin in plain torch, which says what is computed and which the tests
compare with: numba on a CPU (`cost_numba`, `plan_numba`), Triton on CUDA (`cost_triton`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

KERNELS = ("numba", "triton", "torch")
MODULES = {"numba": "cpu", "triton": "cuda"}
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


def kernel_for(form: str, tensor: Tensor) -> Callable[..., Any] | None:
    """Return the compiled form of a function for a tensor, None where plain torch computes.

    Args:
        form: Name of the function, for example "hinge_cost".
        tensor: Its dtype and device decide.
    """
    kernels = kernels_for(tensor)
    if kernels == "torch":
        return None
    module = import_module(f".{MODULES[kernels]}", __name__)
    return getattr(module, f"{form}_{kernels}", None)


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
