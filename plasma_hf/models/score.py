"""From a plan to one number for the pair, in four forms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .diagonal import diagonal_sums
from .sinkhorn import NEVER

USUAL_RESIDUES = 100
"""Length up to which a collinear score is the share itself."""


def published_score(
    plan: Tensor,
    query: Tensor,
    candidate: Tensor,
    query_mask: Tensor,
    candidate_mask: Tensor,
    *,
    threshold: float = 0.5,
    diagonal_window: int = 10,
) -> Tensor:
    """Score a pair by its matched residues: their similarity times their collinearity.

    A residue is matched where its best plan entry exceeds `threshold`. The similarity is the
    cosine between the summed embeddings of matched candidate residues and the embeddings that the
    plan transports to them. The collinearity is the mass on the best stretch of
    `diagonal_window` steps along a diagonal, as a share of the stretch; proteins shorter than the
    stretch count the missing steps as empty.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query: Query embeddings as the backbone gives them, `(batch, query_residues, hidden)`.
        candidate: Candidate embeddings, `(batch, candidate_residues, hidden)`.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        threshold: Plan entry above which a residue is matched.
        diagonal_window: Steps of the stretch; 0 leaves the collinearity out.

    Returns:
        Scores in [0, 1], `(batch,)`. The gradient reaches the plan through the similarity alone.

    Source: PLASMA (ICLR 2026), the plan assessor, at batch size 1.
    """
    query_gate = (plan.amax(-1) > threshold).to(plan.dtype)
    candidate_gate = (plan.amax(-2) > threshold).to(plan.dtype)
    similarity = _matched_similarity(plan, query, candidate, query_gate, candidate_gate)
    if diagonal_window > 0:
        sums = _window_sums(plan.detach(), query_mask, candidate_mask, diagonal_window)
        similarity = similarity * sums.amax((-1, -2)).clamp(0, diagonal_window) / diagonal_window
    return similarity.clamp(0, 1)


def soft_score(
    plan: Tensor,
    query: Tensor,
    candidate: Tensor,
    query_mask: Tensor,
    candidate_mask: Tensor,
    *,
    threshold: float = 0.5,
    diagonal_window: int = 10,
    softness: float = 0.05,
) -> Tensor:
    """Score as `published_score` does, with gates and the best stretch made smooth.

    Gates become sigmoids of width `softness` round the threshold, the best stretch a mean over
    stretches with weights that grow by `e` each `softness` of a full stretch. Both carry gradient,
    so a pair in which nothing is matched yet still learns. As `softness` goes to 0 the published
    score is reached.

    Args and returns are those of `published_score`.
    """
    query_gate = torch.sigmoid((plan.amax(-1) - threshold) / softness)
    candidate_gate = torch.sigmoid((plan.amax(-2) - threshold) / softness)
    similarity = _matched_similarity(
        plan,
        query,
        candidate,
        query_gate * query_mask.to(plan.dtype),
        candidate_gate * candidate_mask.to(plan.dtype),
    )
    if diagonal_window > 0:
        share = _window_sums(plan, query_mask, candidate_mask, diagonal_window) / diagonal_window
        share = share.flatten(-2)
        weight = torch.softmax(share / softness, -1)
        similarity = similarity * (weight * share.clamp(0, 1)).sum(-1)
    return similarity.clamp(0, 1)


def matched_mass(
    plan: Tensor, query_mask: Tensor, candidate_mask: Tensor, *, threshold: float = 0.5
) -> Tensor:
    """Score by the share of the shorter protein that is matched: `(batch,)`, in [0, 1].

    The mass of plan entries above `threshold`, divided by the residues of the shorter protein. It
    needs no embeddings, and a long alignment scores more than a short motif does.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        threshold: Plan entry above which mass counts.
    """
    mass = plan.masked_fill(plan <= threshold, 0.0).sum((-1, -2))
    shorter = torch.minimum(query_mask.sum(-1), candidate_mask.sum(-1)).clamp(min=1)
    return (mass / shorter).clamp(0, 1)


def collinear_score(plan: Tensor, query_mask: Tensor, candidate_mask: Tensor) -> Tensor:
    """Score by what is aligned in order: `(batch,)`, in [0, 1].

    The largest sum of plan entries (i, j) in which both i and j rise from one to the next. A plan
    knows no order, so unrelated proteins have lone matches all over it; these do not add up, an
    alignment does. Gaps cost nothing, and every entry counts, however small. See `of_lengths` for
    what becomes of the sum. The gradient reaches the entries on the best path.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.

    Example:
        >>> plan, every = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.ones(1, 2).bool()
        >>> collinear_score(plan, every, every), collinear_score(plan.flip(1), every, every)
        (tensor([1.]), tensor([0.5000]))
    """
    there = query_mask.unsqueeze(-1) & candidate_mask.unsqueeze(-2)
    plan = plan.masked_fill(~there, 0.0)
    # best[j]: the best path that ends among the rows so far, before candidate residue j.
    best = plan.new_zeros(plan.shape[0], plan.shape[2] + 1)
    for row in plan.unbind(-2):
        ahead = torch.maximum(best[:, :-1] + row, best[:, 1:])
        best = F.pad(ahead.cummax(-1).values, (1, 0))
    return of_lengths(best[:, -1], query_mask.sum(-1), candidate_mask.sum(-1))


def of_lengths(mass: Tensor, query_residues: Tensor, candidate_residues: Tensor) -> Tensor:
    """Relate a collinear mass to the lengths of both proteins: `(batch,)`, in [0, 1].

    The share s of the shorter protein becomes 1 - (1 - s)^p with p = sqrt(longer / 100), at least
    1: the same share is the rarer by chance, the more residues there are to choose from. A small
    share so counts in proportion to the square root of the longer protein, as the standardised
    similarities of embedding-based alignment do (Pantolini et al., Bioinformatics 2024).

    Args:
        mass: `(batch,)`.
        query_residues: Lengths, `(batch,)`.
        candidate_residues: Likewise.
    """
    shorter = torch.minimum(query_residues, candidate_residues).clamp(min=1)
    longer = torch.maximum(query_residues, candidate_residues).clamp(min=1)
    share = (mass / shorter).clamp(0, 1)
    return 1 - (1 - share) ** (longer / USUAL_RESIDUES).sqrt().clamp(min=1)


def _matched_similarity(
    plan: Tensor, query: Tensor, candidate: Tensor, query_gate: Tensor, candidate_gate: Tensor
) -> Tensor:
    """Cosine of what the plan transports to gated candidate residues and what is there."""
    sent = query_gate * (plan @ candidate_gate.unsqueeze(-1)).squeeze(-1)  # (batch, query_residues)
    transported = (sent.unsqueeze(-2) @ query.to(plan.dtype)).squeeze(-2)  # (batch, hidden)
    present = (candidate_gate.unsqueeze(-2) @ candidate.to(plan.dtype)).squeeze(-2)
    return F.cosine_similarity(transported, present, dim=-1)


def _window_sums(plan: Tensor, query_mask: Tensor, candidate_mask: Tensor, window: int) -> Tensor:
    """Sum diagonal stretches that start at (i, j); `NEVER` where one does not fit into the pair."""
    starts = _window_starts(query_mask, window).unsqueeze(-1)
    starts = starts & _window_starts(candidate_mask, window).unsqueeze(-2)
    return diagonal_sums(plan, 0, window - 1).masked_fill(~starts, NEVER)


def _window_starts(mask: Tensor, window: int) -> Tensor:
    """Mark where a window fits between the first and last residue, or the first if none does."""
    position = torch.arange(mask.shape[-1], device=mask.device)
    first = torch.where(mask, position, mask.shape[-1]).amin(-1, keepdim=True)
    last = torch.where(mask, position, -1).amax(-1, keepdim=True)
    return (position >= first) & ((position + window - 1 <= last) | (position == first))
