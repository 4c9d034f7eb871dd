"""Stored half precision to float32, compiled for a CPU: no thread of torch is woken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import INSTALLED, compiled, full_registers

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
