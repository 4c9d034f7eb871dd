"""What a trained retrieval is compared with: a pool that learns little, and what needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.clusters import KmerIndex
from ..data.structure_rows import StructurePair
from ..models.attention_pool import Standardize
from ..models.configuration_protalign import ProtAlignConfig
from ..models.contrastive import Gather, alone
from ..models.modeling_protalign import ProtAlignModel


class MeanPool(nn.Module):
    """Take the mean of the residues, and a linear map of it.

    Args:
        residue_size: Width of a residue embedding.
        shared_size: Width of the vector.
        standardize: As in `AttentionPool`.
    """

    def __init__(self, residue_size: int, shared_size: int, standardize: bool = False) -> None:
        """Build the map."""
        super().__init__()
        self.linear = nn.Linear(residue_size, shared_size)
        self.scale = Standardize(shared_size) if standardize else None

    def forward(
        self, embeddings: Tensor, mask: Tensor, gather: Gather = alone
    ) -> tuple[Tensor, Tensor]:
        """Pool a batch of proteins, as `AttentionPool` does.

        Args:
            embeddings: `(batch, residues, hidden)`.
            mask: True at residues, `(batch, residues)`.
            gather: For `Standardize`.

        Returns:
            Vectors `(batch, shared)`, and the equal weights of the residues, `(batch, residues)`.
        """
        weights = mask.to(self.linear.weight.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        rows = embeddings.to(weights.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        vectors = self.linear((weights.unsqueeze(1) @ rows).squeeze(1))
        return vectors if self.scale is None else self.scale(vectors, gather), weights


class MeanPoolModel(ProtAlignModel):
    """ProtAlign with one linear map of the mean residue for each side; all else is the same.

    Example:
        >>> import torch
        >>> model = MeanPoolModel(ProtAlignConfig(sequence_size=8, structure_size=4))
        >>> model.get_structure_features(torch.randn(2, 9, 4)).shape
        torch.Size([2, 128])
    """

    _auto_class = None  # a baseline is saved without code: it is no model for the Hub

    def __init__(self, config: ProtAlignConfig) -> None:
        """Put means in the place of attention."""
        super().__init__(config)
        sizes = {"sequence": config.sequence_size, "structure": config.structure_size}
        for side, size in sizes.items():
            setattr(self, f"{side}_pool", MeanPool(size, config.hidden_size, config.standardize))
        self.post_init()


def length_similarity(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare sequences with structures by their numbers of residues alone.

    A structure has as many residues as its own sequence, so this finds more than chance.

    Args:
        pairs: Sequences and structures.

    Returns:
        Minus the difference, `(pairs, pairs)`.
    """
    sequences = np.array([len(pair.sequence) for pair in pairs], dtype=float)
    structures = np.array([len(pair.structure) for pair in pairs], dtype=float)
    return -np.abs(sequences[:, None] - structures[None, :])


def sequence_oracle(pairs: Sequence[StructurePair]) -> NDArray[np.float64]:
    """Compare sequences with the sequences that the structure files have, by common 4-mers.

    No model that reads coordinates alone can know these: an upper bound, which says how many
    proteins of the set have the same sequence.

    Args:
        pairs: Sequences and structures.

    Returns:
        Shares of common 4-mers, `(pairs, pairs)`.
    """
    index = KmerIndex([pair.structure.sequence for pair in pairs])
    return np.stack([index.shares(pair.sequence) for pair in pairs])
