"""Turn lists, numpy arrays and torch tensors into numpy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_float_array(values: ArrayLike) -> NDArray[np.float64]:
    """Convert values to a float64 array, without importing torch.

    Args:
        values: a list, a numpy array or a torch tensor on any device, with or without gradient.

    Returns:
        The values as float64, in the same shape.

    Example:
        >>> as_float_array([1, 2])
        array([1., 2.])
    """
    if hasattr(values, "detach"):
        # numpy knows no bfloat16, so the cast has to happen on the torch side.
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
