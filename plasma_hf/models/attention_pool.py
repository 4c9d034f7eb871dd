"""Attention pool: the residues of a protein in, one vector out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contrastive import Gather, alone


class Standardize(nn.BatchNorm1d):
    """Give each number of a vector mean 0 and deviation 1, over the vectors of a batch.

    In inference these are the mean and deviation of training: no vector depends on its batch.

    Args:
        size: Numbers of a vector.

    Example:
        >>> scaled = Standardize(2)(torch.tensor([[1.0, 7.0], [3.0, 7.5]]))
        >>> scaled.round(decimals=2).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    def __init__(self, size: int) -> None:
        """Build it; nothing of it is learnt by gradient."""
        super().__init__(size, affine=False)

    def forward(self, vectors: Tensor, gather: Gather = alone) -> Tensor:
        """Scale vectors.

        Args:
            vectors: `(batch, numbers)`; in training two at least.
            gather: Fetch those of other ranks: in training a batch is that of all of them.
        """
        everyone = gather(vectors) if self.training else alone(vectors)
        return super().forward(everyone.vectors)[everyone.start :][: len(vectors)]


class AttentionPool(nn.Module):
    """Look at all residues of a protein with one learnt query, and keep what it sees.

    There is no residual connection and no network behind the attention: a multi-head attention
    from the query token to the residues, and a layer norm. Several queries are averaged.

    Two things are not in the paper, and are off unless asked for. `spread` adds how much residues
    differ from what the query sees on average: proteins of equal mean may differ in that.
    `standardize` spreads proteins over all directions of the space.

    Source: ProtAlign (arXiv 2603.06722), section 2.

    Args:
        residue_size: Width of a residue embedding.
        shared_size: Width of the vector.
        num_heads: Heads of the attention.
        dropout: Share of attention weights dropped in training.
        eps: Slack of the layer norm.
        num_queries: Learnt queries.
        spread: Add a linear map of the weighted standard deviation of the residues' values.
        standardize: See `Standardize`.

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
        spread: bool = False,
        standardize: bool = False,
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
        self.spread = nn.Linear(shared_size, shared_size, bias=False) if spread else None
        self.norm = nn.LayerNorm(shared_size, eps=eps)
        self.scale = Standardize(shared_size) if standardize else None

    def forward(
        self, embeddings: Tensor, mask: Tensor, gather: Gather = alone
    ) -> tuple[Tensor, Tensor]:
        """Pool a batch of proteins.

        Args:
            embeddings: `(batch, residues, hidden)`, anything at padding.
            mask: True at residues, `(batch, residues)`.
            gather: For `Standardize`.

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
        see = self._mean if self.spread is None else self._mean_and_spread
        pooled, weights = see(embeddings, mask)
        vectors = self.norm(pooled.mean(1))
        return vectors if self.scale is None else self.scale(vectors, gather), weights.mean(1)

    def _mean(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query sees, `(batch, queries, shared)`, and its weights."""
        embeddings = embeddings.to(self.norm.weight.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        query = self.query.expand(len(embeddings), -1, -1)
        # Asked for the weights, it computes the same way with and without gradient.
        return self.attention(
            query, embeddings, embeddings, key_padding_mask=~mask, need_weights=True
        )

    def _mean_and_spread(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same with the deviation from it; padding, often the most, is not computed."""
        assert self.spread is not None
        attention, heads = self.attention, self.attention.num_heads
        to_query, to_key, to_value = self._projections()
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        residues = embeddings[mask].to(self.norm.weight.dtype)
        protein, _ = mask.nonzero(as_tuple=True)  # of each residue
        # A key is asked by few queries alone: they go through its projection, not all residues.
        # Its bias is the same for all residues of a protein and leaves their weights alone.
        query = F.linear(self.query[0], to_query, query_bias).unflatten(-1, (heads, -1))
        asked = torch.einsum("qhd,hde->qhe", query, to_key.unflatten(0, (heads, -1)))
        asked = torch.einsum("re,qhe->rqh", residues, asked) / attention.head_dim**0.5
        scores = asked.new_full((*mask.shape, *asked.shape[1:]), -torch.inf)
        scores[mask] = asked
        weights = F.dropout(scores.softmax(1), attention.dropout, self.training)
        weight = weights[mask].unsqueeze(-1)

        def mean_of(values: Tensor) -> Tensor:
            seen = weight * values  # (residues, queries, heads, numbers)
            return seen.new_zeros(len(mask), *seen.shape[1:]).index_add(0, protein, seen)

        values = F.linear(residues, to_value, value_bias).unflatten(-1, (heads, -1)).unsqueeze(1)
        mean = mean_of(values)
        variance = mean_of((values - mean[protein]).square())
        # The slack keeps the gradient finite where all residues are alike.
        deviation = (variance + self.norm.eps).sqrt()
        pooled = attention.out_proj(mean.flatten(-2)) + self.spread(deviation.flatten(-2))
        return pooled, weights.mean(-1).transpose(1, 2)

    def _projections(self) -> tuple[Tensor, ...]:
        """Return the weights for queries, keys and values; torch keeps them in one if it can."""
        attention = self.attention
        if attention.in_proj_weight is not None:
            return attention.in_proj_weight.chunk(3)
        return attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight


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
