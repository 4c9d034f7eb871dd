"""Stored half precision to float32, compiled for a CPU: no thread of torch is woken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import compiled

try:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
except ImportError:

    def intrinsic(function: Any) -> Any:  # type: ignore[no-redef]
        """Leave a function alone that nobody calls then."""
        return function


def _declare(typing_context: Any, bits: Any) -> Any:
    """Declare the number that 16 bits stand for, one instruction of the machine."""

    def widen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), widen


_from_half: Any = intrinsic(_declare)


@compiled
def _widen(bits: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    for i in range(len(bits)):
        out[i] = _from_half(bits[i])


@compiled
def _to_codes(values: NDArray[np.float32], low: float, step: float, out: NDArray[np.uint8]) -> None:
    factor = np.float32(1.0) / step
    for i in range(len(values)):
        code = np.rint((values[i] - low) * factor)
        out[i] = np.uint8(min(max(code, np.float32(0.0)), np.float32(255.0)))


def widened(tensor: Tensor) -> Tensor:
    """Return a float16 tensor on the CPU as float32; others as `Tensor.float` does.

    Example:
        >>> widened(torch.tensor([0.5, -2.0], dtype=torch.float16))
        tensor([ 0.5000, -2.0000])
    """
    if tensor.dtype != torch.float16 or tensor.device.type != "cpu":
        return tensor.float()
    if not hasattr(_widen, "py_func"):  # not compiled
        return tensor.float()
    out = torch.empty(tensor.shape)
    _widen(tensor.contiguous().view(torch.uint16).numpy().reshape(-1), out.numpy().reshape(-1))
    return out


def to_codes(values: Tensor, low: float, step: float) -> Tensor:
    """Round float32 `(residues, channels)` on the CPU to codes 0 to 255 of `low + step * code`."""
    out = torch.empty(values.shape, dtype=torch.uint8)
    given = values.contiguous().numpy().reshape(-1)
    _to_codes(given, np.float32(low), np.float32(step), out.numpy().reshape(-1))
    return out
