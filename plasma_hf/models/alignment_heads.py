"""The heads: what residue embeddings are projected to before the cost compares them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .configuration_plasma import PlasmaConfig


class LearnedProjection(nn.Module):
    """Project residue embeddings, `LayerNorm(W2 relu(W1 h + b1) + b2)`: the head "lrl"."""

    def __init__(self, config: PlasmaConfig) -> None:
        """Build the layers."""
        super().__init__()
        width: Any = config.embedding_size  # the configuration has checked that there is one
        self.hidden = nn.Linear(width, config.head_size)
        self.output = nn.Linear(config.head_size, config.head_size)
        self.norm = nn.LayerNorm(config.head_size)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project `(..., hidden)` to `(..., head_size)`."""
        return self.norm(self.output(torch.relu(self.hidden(embeddings))))


class LayerNormalization(nn.Module):
    """Normalise residue embeddings and learn nothing: the head "hinge", PLASMA-PF."""

    placeholder: Tensor

    def __init__(self, config: PlasmaConfig) -> None:
        """Remember whether to normalise at all."""
        super().__init__()
        self.normalize = config.normalize
        # A checkpoint has to hold something, also that of a head alone.
        self.register_buffer("placeholder", torch.zeros(1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return `(..., hidden)` as it came in shape."""
        if not self.normalize:
            return embeddings
        return nn.functional.layer_norm(embeddings, embeddings.shape[-1:])


class ZeroLinear(nn.Linear):
    """Start at 0, which transformers decides by the class of a module."""


class ResidualProjection(nn.Module):
    """Correct the parameter-free head, `LayerNorm(x + W2 relu(W1 x + b1) + b2)`: "residual".

    x is what the head "hinge" gives. W2 and b2 start at 0, so that an untrained head aligns as
    PLASMA-PF does.
    """

    def __init__(self, config: PlasmaConfig) -> None:
        """Build the layers."""
        super().__init__()
        width: Any = config.embedding_size  # the configuration has checked that there is one
        self.hidden = nn.Linear(width, config.head_size)
        self.output = ZeroLinear(config.head_size, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return `(..., hidden)` as it came in shape."""
        start = nn.functional.layer_norm(embeddings, embeddings.shape[-1:])
        return self.norm(start + self.output(torch.relu(self.hidden(start))))


class ScoreAffine(nn.Module):
    """Hold the learnt scale and shift from score to logit; adapters save modules alone."""

    def __init__(self) -> None:
        """Start where a score of 1/2 is undecided."""
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, -5.0]))

    def forward(self) -> Tensor:
        """Return scale and shift, `(2,)`."""
        return self.weight


HEADS = {"lrl": LearnedProjection, "hinge": LayerNormalization, "residual": ResidualProjection}
