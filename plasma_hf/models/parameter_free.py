"""What a model needs that may have no parameter at all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor


class ParameterFree:
    """Tell dtype and device by buffers where a model has no parameters.

    transformers asks the parameters, and fails where there are none. A frozen parameter is no way
    out: loading a checkpoint makes it trainable again.
    """

    parameters: Any
    buffers: Any

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating point tensor."""
        return next(tensor.dtype for tensor in self._tensors() if tensor.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return next(self._tensors()).device

    def _tensors(self) -> Iterator[Tensor]:
        return chain(self.parameters(), self.buffers())
