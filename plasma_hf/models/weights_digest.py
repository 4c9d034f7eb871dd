"""A digest of weights, to tell whether two models are the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_digest(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that depend on every weight of a module.

    Any training, merging or conversion changes them. The digest adds up bit patterns as integers,
    exactly and hence in any order: it takes a pass over the weights and no copy of them.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> before = weights_digest(layer)
        >>> layer.weight.data[0, 0] += 1
        >>> before == weights_digest(layer)
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(
            f"{name} {tuple(tensor.shape)} {tensor.dtype} {_sum_of_bits(tensor)}".encode()
        )
    return digest.hexdigest()[:16]


def _sum_of_bits(tensor: Tensor) -> int:
    flat = tensor.detach().contiguous().flatten()
    if not flat.numel():
        return 0
    return int(flat.view(INTEGERS[flat.element_size()]).sum(dtype=torch.int64))
