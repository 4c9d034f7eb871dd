"""How likely two residues are aligned, if what is aligned keeps its order along both proteins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .diagonal import learns
from .kernels import kernels_for
from .order_numba import (
    BACKGROUND,
    EXTEND,
    FLOOR,
    HIGHEST,
    OPEN,
    POWER,
    in_order_numba,
    longer_of,
)
from .sinkhorn import NEVER


def in_order(plan: Tensor, allowed: Tensor) -> Tensor:
    """Return the probability that two residues are aligned: `plan`'s shape, in [0, 1].

    A plan knows no order. Here every local alignment in which both residues rise from a pair to
    the next weighs the product of its pairs' odds, which the plan gives, and of what its gaps
    cost; a pair's probability is the share of the alignments that have it. The sum over a row or
    a column is at most 1.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        allowed: True where both are residues, same shape; elsewhere it is 0.

    Source: posterior probabilities of a pair hidden Markov model (Durbin et al., Biological
    sequence analysis, 1998, chapter 4), with affine gaps.

    Example:
        >>> plan = torch.eye(12)[None]
        >>> plan[0, 5] = plan[0, :, 5] = 0.0
        >>> plan[0, 5, 11] = 0.9  # out of order
        >>> found = in_order(plan, torch.ones(1, 12, 12).bool())[0]
        >>> found[5, 5] > found[5, 11], found.sum(0).max() < 1.001
        (tensor(True), tensor(True))
    """
    if not learns(plan) and kernels_for(plan) == "numba":
        return in_order_numba(plan, allowed)
    odds = log_odds(plan.double(), allowed)
    ending = _alignments_ending(odds)
    beginning = _alignments_ending(odds.flip(-2, -1)).flip(-2, -1)
    every = ending.flatten(1).logsumexp(-1)[:, None, None]
    # A pair is in both halves, and counts once.
    found = (ending + beginning - odds - every).clamp(max=0.0).exp()
    return found.masked_fill(~allowed, 0.0).to(plan.dtype)


def log_odds(plan: Tensor, allowed: Tensor) -> Tensor:
    """Return what pairs say for themselves: `plan`'s shape, `NEVER` where none is allowed."""
    background = BACKGROUND / longer_of(allowed)[:, None, None]
    odds = POWER * ((plan + FLOOR) / background).log()
    gain = odds.masked_fill(~allowed, 0.0).clamp(min=0.0)
    bound = torch.minimum(gain.amax(-1).sum(-1), gain.amax(-2).sum(-1))
    odds = odds * (HIGHEST / bound.clamp(min=HIGHEST))[:, None, None]
    return odds.masked_fill(~allowed, NEVER)


def _alignments_ending(odds: Tensor) -> Tensor:
    """Sum up, in logarithms, the alignments that end with a pair, shaped like `odds`."""
    batch, _, columns = odds.shape
    extend = EXTEND * torch.arange(1, columns + 1, device=odds.device, dtype=odds.dtype)
    match = query_gap = total = odds.new_full((batch, columns), NEVER)
    rows = []
    for row in odds.unbind(-2):
        # Before the pair: one residue back on both sides, or nothing, as an alignment is local.
        before = F.pad(total[:, :-1], (1, 0), value=NEVER).logaddexp(odds.new_zeros(()))
        query_gap = (match + OPEN).logaddexp(query_gap + EXTEND)
        match = row + before
        opened = F.pad(match.logaddexp(query_gap)[:, :-1], (1, 0), value=NEVER) + OPEN
        candidate_gap = (opened - extend).logcumsumexp(-1) + extend
        total = match.logaddexp(query_gap).logaddexp(candidate_gap)
        rows.append(match)
    return torch.stack(rows, -2)
