"""Which kernels compute: numba on a CPU, Triton on CUDA, plain torch everywhere else.

Plain torch says what is computed, and is what the tests compare the compiled kernels with. These
are imported at their first use, so that neither numba nor Triton need be installed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

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
    return fitting if fitting == "torch" or _module(fitting) else "torch"


def kernel_for(form: str, tensor: Tensor) -> Callable[..., Any] | None:
    """Return the compiled form of a function for a tensor, None where plain torch computes.

    Args:
        form: Name of the function, for example "hinge_cost".
        tensor: Its dtype and device decide.
    """
    kernels = kernels_for(tensor)
    return None if kernels == "torch" else getattr(_module(kernels), f"{form}_{kernels}", None)


class Matches(NamedTuple):
    """What is matched in pairs, of each an entry of each list or tensor.

    Attributes:
        transported: What each query residue sends to matched candidate residues, 0 if it is not
            matched itself, `(query_residues,)`.
        matched: 1 where a candidate residue is matched, `(candidate_residues,)`.
        window: Largest sum over a diagonal window of the plan, `(pairs,)`.
        mass: Sum of plan entries above the threshold, `(pairs,)`.
        plans: `(query_residues, candidate_residues)` each, if asked for.
    """

    transported: Any
    matched: Any
    window: Tensor
    mass: Tensor
    plans: list[Tensor] | None = None


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
def _module(kernels: str) -> ModuleType | None:
    """Import kernels, None where what they need is not installed or broken."""
    try:
        return import_module(f".{MODULES[kernels]}", __name__)
    except ImportError as error:
        logger.info(
            "%s cannot be used (%s), plain torch computes; for more speed: "
            "pip install 'plasma-hf[fast]'",
            kernels,
            error,
        )
        return None
