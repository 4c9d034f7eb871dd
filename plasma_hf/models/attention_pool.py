"""Attention pool: the residues of a protein in, one vector out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Look at all residues of a protein with one learnt query, and keep what it sees.

    There is no residual connection and no network behind the attention: a multi-head attention
    from the query token to the residues, and a layer norm. Several queries are averaged.

    Source: ProtAlign (arXiv 2603.06722), section 2.

    Args:
        residue_size: Width of a residue embedding.
        shared_size: Width of the vector.
        num_heads: Heads of the attention.
        dropout: Share of attention weights dropped in training.
        eps: Slack of the layer norm.
        num_queries: Learnt queries.

    Example:
        >>> pool = AttentionPool(residue_size=16, shared_size=8, num_heads=2)
        >>> vectors, weights = pool(torch.randn(3, 20, 16), torch.ones(3, 20).bool())
        >>> vectors.shape, weights.shape
        (torch.Size([3, 8]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        residue_size: int,
        shared_size: int,
        num_heads: int,
        dropout: float = 0.0,
        eps: float = 1e-5,
        num_queries: int = 1,
    ) -> None:
        """Build the pool."""
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, num_queries, shared_size).normal_(0.0, 0.02))
        self.attention = nn.MultiheadAttention(
            shared_size,
            num_heads,
            dropout=dropout,
            kdim=residue_size,
            vdim=residue_size,
            batch_first=True,
        )
        self.norm = nn.LayerNorm(shared_size, eps=eps)

    def forward(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a batch of proteins.

        Args:
            embeddings: `(batch, residues, hidden)`, anything at padding.
            mask: True at residues, `(batch, residues)`.

        Returns:
            Vectors `(batch, shared)`, and how much each residue weighs in them, `(batch,
            residues)`: the mean over heads, 0 at padding, with the sum 1.

        Raises:
            ValueError: If a protein has no residue.
        """
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"protein {empty[0]} of the batch ({len(empty)} in all) has no residue that the "
                "mask lets through; leave it out, or give a mask that is True at its residues."
            )
        embeddings = embeddings.to(self.norm.weight.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        query = self.query.expand(len(embeddings), -1, -1)
        # Asked for the weights, it computes the same way with and without gradient.
        pooled, weights = self.attention(
            query, embeddings, embeddings, key_padding_mask=~mask, need_weights=True
        )
        return self.norm(pooled.mean(1)), weights.mean(1)


def check_residues(side: str, embeddings: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """Check the residue embeddings of a side, and return their mask.

    Args:
        side: "sequence" or "structure".
        embeddings: What should be `(batch, residues, width)`.
        mask: True (or 1) at residues, `(batch, residues)`; None for everywhere.
        width: Of a residue embedding.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if embeddings.ndim != 3 or embeddings.shape[-1] != width or not embeddings.is_floating_point():
        raise ValueError(
            f"{side}_embeddings is {embeddings.dtype} of shape {tuple(embeddings.shape)}; give "
            f"floating point numbers of shape (batch, residues, {width}), from the encoder that "
            "the model was made for."
        )
    if mask is None:
        return torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    if mask.shape != embeddings.shape[:2]:
        raise ValueError(
            f"the mask of the {side}s has shape {tuple(mask.shape)}; give "
            f"{tuple(embeddings.shape[:2])}, True at residues."
        )
    return mask.bool()
