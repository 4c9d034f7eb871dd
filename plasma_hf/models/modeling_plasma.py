"""PLASMA: residue embeddings of two proteins in, an alignment plan and one score out.

What is here is plain torch and says what is computed, in the order of the computation; where the
package `plasma_hf` is installed, its compiled kernels compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_plasma import PlasmaConfig
from .modeling_backbone import (
    PreTrainedHead,
    build_backbone,
    check_embeddings,
    free_memory,
    from_package,
    pad_residues,
    residue_mask,
    weights_digest,
)

if TYPE_CHECKING:
    # Files named by an import travel with a saved model: the folder then has its pipeline.
    from .pipeline_protein_alignment import ProteinAlignmentPipeline  # noqa: F401

try:
    from plasma_hf.kernels import kernel_for
except ImportError:  # as remote code, plain torch computes

    def kernel_for(form: str, tensor: Tensor) -> Callable[..., Any] | None:
        """Return no compiled kernel."""
        return None


# --- The hinge cost of matching a query residue with a candidate residue.

# Numbers that the plain cost compares at a time: on a CPU what a cache holds, and elsewhere.
BLOCK, LARGE_BLOCK = 1 << 21, 1 << 26


def hinge_cost(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess of the candidate residue.

    `C_ij = sum_k relu(q_ik - c_jk)`, `(batch, query_residues, candidate_residues)`, in float32 or
    wider, computed as `sum_k max(q_ik, c_jk) - sum_k c_jk`: nothing is rounded twice, and a residue
    costs exactly nothing against itself. Nothing has residues, residues and channels as its axes.

    Args:
        query, candidate: Projected residues, `(batch, residues, channels)`; a batch of one meets
            every protein of the other.

    Raises:
        ValueError: If the two have different widths.

    Source: PLASMA (ICLR 2026), the hinge cost.

    Example:
        >>> q, c = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[1.0, 5.0], [3.0, 0.0]]])
        >>> hinge_cost(q, c)
        tensor([[[2., 0.]]])
    """
    check_widths(query, candidate)
    if (compiled := kernel_for("hinge_cost", query)) is not None:
        return compiled(query, candidate)
    batch = torch.broadcast_shapes(query.shape[:1], candidate.shape[:1])
    sides = (at_least_float32(side).expand(*batch, -1, -1) for side in (query, candidate))
    return _HingeCost.apply(*sides)


class _HingeCost(torch.autograd.Function):
    """The cost in plain torch: several times as fast as `torch.cdist`, and more accurate."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, candidate: Tensor) -> Tensor:
        query, candidate = query.contiguous(), candidate.contiguous()
        ctx.save_for_backward(query, candidate)
        cost = query.new_empty(*query.shape[:2], candidate.shape[1])
        for pair, rows, room in _blocks(query, candidate):
            torch.maximum(query[pair, rows].unsqueeze(1), candidate[pair], out=room)
            torch.sum(room, -1, out=cost[pair, rows])
        own = query.sum(-1, keepdim=True)
        # 0, but NaN for a row with an infinity: a maximum hides it.
        return cost.sub_(candidate.sum(-1).unsqueeze(1)).add_(own - own)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        query, candidate = ctx.saved_tensors
        # The slope is (1 + sign) / 2, at a tie one half.
        for_query = grad.sum(-1, keepdim=True).expand_as(query).contiguous()
        for_candidate = grad.sum(-2).unsqueeze(-1).expand_as(candidate).contiguous()
        for pair, rows, room in _blocks(query, candidate):
            sign = torch.sub(query[pair, rows].unsqueeze(1), candidate[pair], out=room).sign_()
            weight = grad[pair, rows]
            for_query[pair, rows] += (weight.unsqueeze(1) @ sign).squeeze(1)
            for_candidate[pair] += sign.mul_(weight.unsqueeze(-1)).sum(0)
        return for_query.div_(2), for_candidate.div_(-2)


def _blocks(query: Tensor, candidate: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield pairs, some rows of each query, and room to compare them with the candidate in."""
    rows, (columns, channels) = query.shape[1], candidate.shape[1:]
    entries = BLOCK if query.device.type == "cpu" else LARGE_BLOCK
    size = min(rows, max(1, entries // max(1, columns * channels)))
    room = query.new_empty(size, columns, channels)
    for pair in range(len(query)):
        for first in range(0, rows, max(1, size)):
            last = min(first + size, rows)
            yield pair, slice(first, last), room[: last - first]


def check_widths(query: Tensor, candidate: Tensor) -> None:
    """Refuse residues of different widths; a compiled kernel would read past the narrower ones."""
    if query.shape[-1] != candidate.shape[-1]:
        raise ValueError(
            f"query embeddings have width {query.shape[-1]}, candidate embeddings "
            f"{candidate.shape[-1]}; embed both with the same backbone."
        )


def check_counts(queries: Sequence[Tensor] | Tensor, candidates: Sequence[Tensor] | Tensor) -> None:
    """Refuse queries and candidates that are no pairs."""
    q, c = len(queries), len(candidates)
    if q != c:
        raise ValueError(f"{q} queries and {c} candidates; give as many of each.")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision, which the head does not compute in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# --- The partial Sinkhorn plan: which query residue goes with which candidate residue.

NEVER = -1e30  # log-kernel of a pair that may not match; finite, so that no gradient becomes NaN


def log_kernel(
    cost: Tensor, kernel_scale: float, query_mask: Tensor, candidate_mask: Tensor
) -> Tensor:
    """Return the log of the transport kernel, `-kernel_scale * cost`; `NEVER` where masked.

    Args:
        cost: `(batch, query_residues, candidate_residues)`.
        kernel_scale: What multiplies the cost in the exponent, 1 / tau in the paper's notation.
        query_mask, candidate_mask: True where there is a residue, `(batch, residues)` each.
    """
    allowed = query_mask.unsqueeze(-1) & candidate_mask.unsqueeze(-2)
    return (-kernel_scale * cost).masked_fill(~allowed, NEVER)


def sinkhorn(
    log_kernel: Tensor, candidate_mask: Tensor, *, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to a partial transport plan of its shape, 0 where a residue is masked.

    `u = 1 / (K v + eps)`, `v = 1 / (K' u + eps)`, and the plan is `u K v`. The updates end with
    the candidate's: columns sum to at most 1, rows to up to candidate/query residues. A potential
    never exceeds `1 / eps`, so a kernel entry that underflows could not have given a plan entry
    above `smallest_float / eps^2`: with the published eps nothing is lost.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`, see `log_kernel`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue; staying unmatched costs `-log(eps)` in the exponent.
        n_iters: Iterations, at least one.

    Source: PLASMA (ICLR 2026), the partial Sinkhorn plan.

    Example:
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> sinkhorn(torch.tensor([[[0.0, -40.0], [-40.0, 0.0]]]), mask).round(decimals=3)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    if (compiled := kernel_for("sinkhorn", log_kernel)) is not None:
        return compiled(log_kernel, candidate_mask, eps, n_iters)
    kernel = log_kernel.exp()
    count = candidate_mask.sum(-1, keepdim=True).clamp(min=1).to(kernel.dtype)
    candidate = (1 / count).expand(candidate_mask.shape)
    for _ in range(n_iters):
        query = 1 / ((kernel @ candidate.unsqueeze(-1)).squeeze(-1) + eps)
        candidate = 1 / ((query.unsqueeze(-2) @ kernel).squeeze(-2) + eps)
    return query.unsqueeze(-1) * kernel * candidate.unsqueeze(-2)


def make_plans(log_kernel: Tensor, candidate_mask: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Return the plan of a kernel, which is scored, and the plan with support, which is read.

    In each support round the plan is solved again with `support_weight * diagonal_support` added
    to the log-kernel, which prefers, among equal matches, the one whose neighbours match as well.
    A last round, of `order_weight`, looks at whole alignments: its support is that of the
    probabilities of `in_order`, and their logarithms are added as well.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        config: The `PlasmaConfig`, with eps, iterations and the settings of support.
    """

    def solve(log_kernel: Tensor) -> Tensor:
        return sinkhorn(log_kernel, candidate_mask, eps=config.eps, n_iters=config.n_iters)

    def support(plan: Tensor) -> Tensor:
        nearby = diagonal_support(plan, allowed, config.support_window, config.support_gap)
        return config.support_weight * nearby

    first_plan = plan = solve(log_kernel)
    allowed = log_kernel > NEVER / 2
    for _ in range(config.support_rounds):
        plan = solve(log_kernel + support(plan))
    if config.order_weight:
        ordered = in_order(plan, allowed)
        order = config.order_weight * (ordered + UNLIKELY).log()
        plan = solve(log_kernel + support(ordered) + order)
    return first_plan, plan


# --- Support: what is aligned nearby along the diagonal, or in order along both proteins.


def diagonal_support(plan: Tensor, allowed: Tensor, window: int, gap: int) -> Tensor:
    """Measure how well the surroundings of a residue pair are aligned, between 0 and 1.

    The mean of the plan over `window` steps along the diagonal in each direction, where each step
    may look up to `gap` residues aside. It looks aside once along the query and once along the
    candidate and averages both, so that support of (b, a) is the transpose of that of (a, b).

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        allowed: True where both are residues, same shape; elsewhere nothing is found, as beyond
            the ends.
        window: Steps to each side.
        gap: Residues aside, the insertions and deletions that are tolerated.
    """
    if not _learns(plan) and (compiled := kernel_for("diagonal_support", plan)):
        return compiled(plan, allowed, window, gap)
    kernel = 2 * gap + 1
    along_candidate = F.max_pool2d(plan, (1, kernel), stride=1, padding=(0, gap))
    along_query = F.max_pool2d(plan, (kernel, 1), stride=1, padding=(gap, 0))
    best = ((along_candidate + along_query) / 2).masked_fill(~allowed, 0.0)
    return diagonal_sums(best, window, window) / (2 * window + 1)


def diagonal_sums(matrix: Tensor, before: int, after: int) -> Tensor:
    """Sum a stretch of diagonal: `out[i, j] = sum of matrix[i + k, j + k], k = -before..after`.

    Entries beyond the edges count as zero.

    Args:
        matrix: `(batch, query_residues, candidate_residues)`.
        before, after: Steps taken towards the first residues, and towards the last.

    Example:
        >>> diagonal_sums(torch.eye(3)[None], 0, 1)
        tensor([[[2., 0., 0.],
                 [0., 2., 0.],
                 [0., 0., 1.]]])
    """
    if not _learns(matrix) and (compiled := kernel_for("diagonal_sums", matrix)):
        return compiled(matrix, before, after)
    rows, columns = matrix.shape[-2:]
    wide = F.pad(matrix, (before, after, before, after))
    sums = torch.zeros_like(matrix)
    for k in range(before + after + 1):
        sums = sums + wide[..., k : k + rows, k : k + columns]
    return sums


def _learns(tensor: Tensor) -> bool:
    """Tell whether gradient is wanted, which not all compiled kernels have."""
    return torch.is_grad_enabled() and tensor.requires_grad


FLOOR = 1e-5  # added to every plan entry: none is impossible
BACKGROUND = 0.8  # speaks neither for a pair nor against it, over the entry of residues all alike
POWER = 0.1  # how much log-odds count: neighbours in a plan are no independent witnesses
OPEN, EXTEND = -6.0, -0.3  # log-weights of the first residue of a gap and of each further one
HIGHEST_ODDS = 1000.0  # log-odds of an alignment; float64 then holds it and whatever rivals it
UNLIKELY = 1e-3  # added to a probability: what is out of order is never ruled out


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
    if not _learns(plan) and (compiled := kernel_for("in_order", plan)):
        return compiled(plan, allowed)
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
    odds = odds * (HIGHEST_ODDS / bound.clamp(min=HIGHEST_ODDS))[:, None, None]
    return odds.masked_fill(~allowed, NEVER)


def longer_of(allowed: Tensor) -> Tensor:
    """Count the residues of the longer protein, `(batch,)`, from where both have one."""
    return torch.maximum(allowed.any(-1).sum(-1), allowed.any(-2).sum(-1)).clamp(min=1)


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


# --- From a plan to one number per pair, in three forms.

USUAL_RESIDUES = 100  # length up to which a collinear score is the share itself


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
    """Score by matched residues, similarity times collinearity: `(batch,)`, in [0, 1].

    A residue is matched where its best plan entry exceeds `threshold`. The similarity is the
    cosine between the summed embeddings of matched candidate residues and the embeddings that the
    plan transports to them. The collinearity is the mass on the best stretch of
    `diagonal_window` steps along a diagonal, as a share of the stretch; proteins shorter than the
    stretch count the missing steps as empty. Gradient reaches the plan through the similarity.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query, candidate: Embeddings as the backbone gives them, `(batch, residues, hidden)` each.
        query_mask, candidate_mask: True where there is a residue, `(batch, residues)` each.
        threshold: Plan entry above which a residue is matched.
        diagonal_window: Steps of the stretch; 0 leaves the collinearity out.

    Source: PLASMA (ICLR 2026), the plan assessor, at batch size 1.
    """
    query_gate, candidate_gate = ((plan.amax(d) > threshold).to(plan.dtype) for d in (-1, -2))
    sent = query_gate * (plan @ candidate_gate.unsqueeze(-1)).squeeze(-1)  # (batch, query_residues)
    query, candidate = query.to(plan.dtype), candidate.to(plan.dtype)
    similarity = matched_similarity(sent, query, candidate_gate, candidate)
    best = similarity
    if diagonal_window > 0:
        sums = _window_sums(plan.detach(), query_mask, candidate_mask, diagonal_window)
        best = sums.amax((-1, -2))
    return with_window(similarity, best, diagonal_window)


def matched_similarity(sent: Tensor, query: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
    """Return the cosine of what is sent to matched candidate residues and what is there."""
    transported = (sent.unsqueeze(-2) @ query).squeeze(-2)
    present = (gate.unsqueeze(-2) @ candidate).squeeze(-2)
    return F.cosine_similarity(transported, present, dim=-1)


def with_window(similarity: Tensor, best: Tensor, window: int) -> Tensor:
    """Multiply a similarity by the share of the diagonal window that the best stretch fills."""
    if window > 0:
        similarity = similarity * best.clamp(0, window) / window
    return similarity.clamp(0, 1)


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


def matched_mass(
    plan: Tensor, query_mask: Tensor, candidate_mask: Tensor, *, threshold: float = 0.5
) -> Tensor:
    """Score by the share of the shorter protein that is matched: `(batch,)`, in [0, 1].

    The mass of plan entries above `threshold`, divided by the residues of the shorter protein. It
    needs no embeddings, and a long alignment scores more than a short motif does.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_mask, candidate_mask: True where there is a residue, `(batch, residues)` each.
        threshold: Plan entry above which mass counts.
    """
    mass = plan.masked_fill(plan <= threshold, 0.0).sum((-1, -2))
    return share_of_shorter(mass, query_mask.sum(-1), candidate_mask.sum(-1))


def share_of_shorter(mass: Tensor, query_residues: Tensor, candidate_residues: Tensor) -> Tensor:
    """Divide a mass by the residues of the shorter protein, `(batch,)` each."""
    return (mass / torch.minimum(query_residues, candidate_residues).clamp(min=1)).clamp(0, 1)


def collinear_score(plan: Tensor, query_mask: Tensor, candidate_mask: Tensor) -> Tensor:
    """Score by what is aligned in order: `(batch,)`, in [0, 1].

    The largest sum of plan entries (i, j) in which both i and j rise from one to the next, see
    `of_lengths` for what becomes of it. Lone matches of unrelated proteins do not add up, an
    alignment does. Gaps cost nothing. The gradient reaches the entries on the best path.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_mask, candidate_mask: True where there is a residue, `(batch, residues)` each.

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
    """
    share = share_of_shorter(mass, query_residues, candidate_residues)
    longer = torch.maximum(query_residues, candidate_residues).clamp(min=1)
    return 1 - (1 - share) ** (longer / USUAL_RESIDUES).sqrt().clamp(min=1)


# --- A padded batch of pairs.

Sides = tuple[Tensor, Tensor]  # query and candidate
Given = Tensor | None


@dataclass
class PairBatch:
    """Hold pairs of proteins and what is known about them, query first.

    Attributes:
        embeddings: Of both sides, `(batch, residues, hidden)` each.
        masks: True at residues, `(batch, residues)` each.
        site_labels: 0/1, 0 at padding, `(batch, residues)` each, or None if not known.
        labels: 1 where the two share a site, `(batch,)`, if known.
        correspondences: Residues that correspond, `(batch, n, 2)`, -1 at padding, if known.
        projections: What the head makes of embeddings, `(batch, residues, head_size)` each.
    """

    embeddings: Sides
    masks: Sides
    site_labels: tuple[Tensor | None, Tensor | None] = (None, None)
    labels: Tensor | None = None
    correspondences: Tensor | None = None
    projections: tuple[Any, Any] = (None, None)

    def projected(self, project: Callable[[Tensor], Tensor]) -> PairBatch:
        """Return the batch with projections; embeddings and projections are 0 at padding."""
        sides = zip(self.embeddings, self.masks, strict=True)
        embeddings, projections = zip(*(_projected(*side, project) for side in sides), strict=True)
        return replace(self, embeddings=embeddings, projections=projections)

    def joined(self, matrices: Sequence[Tensor]) -> Tensor:
        """Put matrices of pairs that were taken apart into one, 0 at padding."""
        rows, columns = (mask.shape[1] for mask in self.masks)
        return torch.cat(
            [F.pad(m, (0, columns - m.shape[2], 0, rows - m.shape[1])) for m in matrices]
        )


def _projected(embeddings: Tensor, mask: Tensor, project: Any) -> tuple[Tensor, Tensor]:
    """Return embeddings and projections, 0 at padding, which is not projected."""
    if mask.all():
        return embeddings, project(embeddings)
    rows = project(embeddings[mask])
    projections = rows.new_zeros(*mask.shape, rows.shape[-1]).index_put((mask,), rows)
    return embeddings.masked_fill(~mask.unsqueeze(-1), 0.0), projections


# --- What a pair is trained on: its label, its site labels, residues known to correspond.

LEAST_MASS = 1e-6  # below it a correspondence that was missed costs no more


def score_losses(
    scores: Tensor, labels: Tensor, form: str = "published", affine: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy between score and label of each pair, `(batch,)`.

    Args:
        scores: Scores in [0, 1], `(batch,)`.
        labels: 1 where query and candidate share a site, `(batch,)`.
        form: "published" reads a score as a logit, so that even a perfect classifier keeps a loss
            of .503; "affine" reads it so after scaling and shifting.
        affine: Scale and shift of the affine form, `(2,)`.

    Example:
        >>> round(score_losses(torch.tensor([1.0]), torch.tensor([1])).item(), 4)
        0.3133
    """
    labels = labels.to(scores.dtype)
    if form == "affine":
        if affine is None:
            raise ValueError("the affine form needs its scale and shift; give affine=(2,) tensor.")
        scores = affine[0] * scores + affine[1]
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


def label_match_losses(
    plan: Tensor, query_site_labels: Tensor, candidate_site_labels: Tensor, form: str = "published"
) -> Tensor:
    """Return the share of a candidate's labelled residues that no labelled query residue reaches.

    `sum_j relu(l_c[j] - sum_i l_q[i] M_ij) / sum_j l_c[j]`, `(batch,)`; 0 where the candidate has
    no labelled residue. The label match score is 1 minus this.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_site_labels, candidate_site_labels: 0/1, `(batch, residues)` each; 0 at padding.
        form: "published", or "symmetric" for the mean of both directions.
    """
    if form == "symmetric":
        back = label_match_losses(plan.mT, candidate_site_labels, query_site_labels)
        return (label_match_losses(plan, query_site_labels, candidate_site_labels) + back) / 2
    query_labels = query_site_labels.to(plan.dtype).unsqueeze(-2)
    candidate_labels = candidate_site_labels.to(plan.dtype)
    received = (query_labels @ plan).squeeze(-2)
    missing = F.relu(candidate_labels - received).sum(-1)
    return missing / candidate_labels.sum(-1).clamp(min=1)


def with_labelled_site(candidate_site_labels: Tensor, labels: Tensor | None = None) -> Tensor:
    """Mark pairs that have a label match loss: positive, if labelled, with a candidate's site."""
    counted = candidate_site_labels.sum(-1) > 0
    return counted if labels is None else counted & (labels > 0)


def correspondence_losses(plan: Tensor, correspondences: Tensor) -> Tensor:
    """Return the mean of `-log M_ij` over residues (i, j) known to correspond, `(batch,)`.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        correspondences: Query and candidate residue, `(batch, n, 2)`, from 0; rows of -1 are
            padding, and a pair with nothing else has a loss of 0.

    Example:
        >>> plan = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
        >>> correspondence_losses(plan, torch.tensor([[[0, 0], [1, 1], [-1, -1]]]))
        tensor([0.3466])
    """
    known = (correspondences >= 0).all(-1)
    i, j = correspondences.clamp(min=0).unbind(-1)
    mass = plan.flatten(-2).gather(-1, i * plan.shape[-1] + j)
    missed = -mass.clamp(min=LEAST_MASS).log().masked_fill(~known, 0.0)
    return missed.sum(-1) / known.sum(-1).clamp(min=1)


def _pair_losses(
    batch: PairBatch, scores: Tensor, plan: Tensor, config: PlasmaConfig, affine: Tensor | None
) -> dict[str, Tensor]:
    """Return what each pair would lose alone, `(batch,)`, by the name of the loss, unweighted."""
    losses: dict[str, Tensor] = {}
    if batch.labels is not None:
        losses["score_loss"] = score_losses(scores, batch.labels, config.score_loss_form, affine)
    query, candidate = batch.site_labels
    if query is not None and candidate is not None:
        missed = label_match_losses(plan, query, candidate, config.label_match_form)
        losses["label_match_loss"] = missed * with_labelled_site(candidate, batch.labels)
    if batch.correspondences is not None:
        losses["correspondence_loss"] = correspondence_losses(plan, batch.correspondences)
    return losses


def _mean_losses(
    losses: dict[str, Tensor], batch: PairBatch, config: PlasmaConfig
) -> dict[str, Tensor]:
    """Return the mean of each loss over the pairs that have it, and "loss", weighted, over all."""
    if not losses:
        return {}
    weights = {
        "label_match_loss": config.label_match_weight,
        "correspondence_loss": config.correspondence_weight,
    }
    means = {name: by_pair.mean() for name, by_pair in losses.items()}
    if (candidate := batch.site_labels[1]) is not None and "label_match_loss" in losses:
        counted = with_labelled_site(candidate, batch.labels).sum()
        means["label_match_loss"] = losses["label_match_loss"].sum() / counted.clamp(min=1)
    total = [weights.get(name, 1.0) * by_pair for name, by_pair in losses.items()]
    return means | {"loss": torch.stack(total).sum(0).mean()}


# --- The heads: what residue embeddings are projected to before the cost compares them.


class LearnedProjection(nn.Module):
    """Project residue embeddings, `LayerNorm(W2 relu(W1 h + b1) + b2)`: the head "lrl"."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.embedding_size, config.head_size)
        self.output = nn.Linear(config.head_size, config.head_size)
        self.norm = nn.LayerNorm(config.head_size)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project `(..., hidden)` to `(..., head_size)`."""
        return self.norm(self.output(torch.relu(self.hidden(embeddings))))


class LayerNormalization(nn.Module):
    """Normalise residue embeddings and learn nothing: the head "hinge", PLASMA-PF."""

    placeholder: Tensor

    def __init__(self, config: PlasmaConfig) -> None:
        super().__init__()
        self.normalize = config.normalize
        # A checkpoint has to hold something, also that of a head alone.
        self.register_buffer("placeholder", torch.zeros(1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return `(..., hidden)` as it came in shape."""
        return F.layer_norm(embeddings, embeddings.shape[-1:]) if self.normalize else embeddings


class ZeroLinear(nn.Linear):
    """Start at 0, which transformers decides by the class of a module."""


class ResidualProjection(nn.Module):
    """Correct PLASMA-PF, at first by 0, `LayerNorm(x + W2 relu(W1 x + b1) + b2)`: "residual"."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.embedding_size, config.head_size)
        self.output = ZeroLinear(config.head_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return `(..., hidden)` as it came in shape."""
        start = F.layer_norm(embeddings, embeddings.shape[-1:])
        return self.norm(start + self.output(torch.relu(self.hidden(start))))


class ScoreAffine(nn.Module):
    """Hold the learnt scale and shift from score to logit; adapters save modules alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, -5.0]))

    def forward(self) -> Tensor:
        """Return scale and shift, `(2,)`."""
        return self.weight


HEADS = {"lrl": LearnedProjection, "hinge": LayerNormalization, "residual": ResidualProjection}


# --- The model.

FEW_CELLS = 2**24  # of all plans together, which fit into any memory
PADDED_PAIRS = 16  # in one batch on a GPU; on a CPU padding costs more than it saves


@dataclass
class AlignedPairs:
    """Scores of pairs, `(pairs,)`, and plans, `(query_residues, candidate_residues)` each."""

    scores: Tensor
    plans: list[Tensor] | None = None


@dataclass
class PlasmaOutput(ModelOutput):
    """What PLASMA says about a batch of pairs.

    Args:
        loss: Mean over pairs of what each would lose alone: the weighted sum of the three below.
        scores: One score in [0, 1] per pair, `(batch,)`.
        plan: `(batch, query_residues, candidate_residues)`, with `return_plan=True`.
        cost: Same shape, with `return_plan=True`; what the kernel is made of.
        score_loss: Mean over pairs of the loss that comes from pair labels.
        label_match_loss: Mean over positive pairs of that from site labels; 0 if none is positive.
        correspondence_loss: Mean over pairs of that from residue correspondences.
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    plan: Tensor | None = None
    cost: Tensor | None = None
    score_loss: Tensor | None = None
    label_match_loss: Tensor | None = None
    correspondence_loss: Tensor | None = None


class AlignedBatch(NamedTuple):
    """Cost, plan without support and plan with it, `(batch, query, candidate)` each."""

    cost: Any  # a tensor, or None in training, where it is not kept
    first_plan: Tensor
    plan: Tensor


class PlasmaModel(PreTrainedHead):
    """Align two proteins by optimal transport between their residue embeddings.

    The model is a head, and takes ready embeddings, or a head over a backbone, and takes token
    ids as well. A pair's score, plan and loss do not depend on its batch nor on padding.

    Source: PLASMA (ICLR 2026).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = PlasmaModel(PlasmaConfig(embedding_size=64, head="hinge"))
        >>> protein = torch.randn(1, 30, 64)
        >>> out = model(protein, protein[:, 5:20], return_plan=True)
        >>> out.plan.shape, out.scores.shape
        (torch.Size([1, 30, 15]), torch.Size([1]))
    """

    config_class = PlasmaConfig
    base_model_prefix = "plasma"
    main_input_name = "query_embeddings"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever accumulates it
    _keep_in_fp32_modules_strict = {"alignment_head", "score_affine"}

    def __init__(self, config: PlasmaConfig) -> None:
        super().__init__(config)
        under = config.plm_config if config.backbone_saved else None
        self.backbone = None if under is None else build_backbone(under)
        self.alignment_head = HEADS[config.head](config)
        if config.score_loss_form == "affine":
            self.score_affine = ScoreAffine()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            # PyTorch's own defaults, with which the released heads were trained.
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerNormalization):
            init.zeros_(module.placeholder)
        elif isinstance(module, ScoreAffine):
            init.copy_(module.weight, torch.tensor([10.0, -5.0]))

    @classmethod
    def from_upstream(
        cls,
        repo_or_dir: str | Path,
        task: str | None = None,
        backbone: str | None = None,
        revision: str | None = None,
    ) -> PlasmaModel:
        """Load a released PLASMA head as a head-only model.

        Args:
            repo_or_dir: Hub id, or a folder with `weights/{task}/{backbone}/`, or that inner
                folder itself.
            task: "active_site", "binding_site" or "motif".
            backbone: For example "esm2_t33_650M_UR50D".
            revision: Commit, branch or tag on the Hub.

        Raises:
            FileNotFoundError: If there is no such head; the message lists those that are there.
            ValueError: If the files are no released head.
        """
        upstream = from_package("hub.upstream", "the layout of the released heads is read")
        fields, state = upstream.read_released_head(repo_or_dir, task, backbone, revision)
        model = cls(PlasmaConfig(**fields))
        model.load_state_dict(state, strict=fields["head"] == "lrl")
        return model.eval()

    def save_upstream(self, folder: str | Path) -> Path:
        """Write the head in the layout of the released heads, if it has one; return the folder."""
        upstream = from_package("hub.upstream", "the layout of the released heads is written")
        state = self.alignment_head.state_dict(prefix="alignment_head.")
        return upstream.write_released_head(self.config, state, Path(folder))

    def project(self, embeddings: Tensor) -> Tensor:
        """Project residue embeddings `(..., hidden)` to what the cost compares, in float32."""
        return self.alignment_head(at_least_float32(embeddings))

    @property
    def head_identity(self) -> dict[str, str]:
        """What projections depend on: the form of the head and a digest of its parameters."""
        config, digest = self.config, weights_digest(self.alignment_head)
        return {"head": config.head, "normalize": str(config.normalize), "weights": digest}

    @torch.no_grad()
    def align_pairs(
        self,
        queries: Sequence[Tensor],
        candidates: Sequence[Tensor],
        *,
        query_projections: Sequence[Tensor] | None = None,
        candidate_projections: Sequence[Tensor] | None = None,
        return_plans: bool = True,
    ) -> AlignedPairs:
        """Align query p with candidate p as `forward` does, without gradient and padding.

        Args:
            queries, candidates: Residue embeddings, `(residues, hidden)` each, as many of one as of
                the other; a protein may stand there repeatedly.
            query_projections, candidate_projections: What `project` makes of them, `(residues,
                head_size)` each, where it is at hand.
            return_plans: Return plans beside scores; without them less is computed.

        Example:
            >>> model = PlasmaModel(PlasmaConfig(embedding_size=8, head="hinge"))
            >>> protein = torch.arange(96.0).sin().view(12, 8)
            >>> aligned = model.align_pairs([protein, protein], [protein, protein[3:9]])
            >>> aligned.scores.shape, [plan.shape for plan in aligned.plans]
            (torch.Size([2]), [torch.Size([12, 12]), torch.Size([12, 6])])
        """
        check_counts(queries, candidates)
        query = query_projections or self.project_each(queries, "query")
        candidate = candidate_projections or self.project_each(candidates, "candidate")
        pairs = list(zip(query, candidate, strict=True))
        for sides in pairs:
            check_widths(*sides)
        self.check_memory([(len(q), len(c)) for q, c in pairs], return_plans)
        if not len(queries):
            return AlignedPairs(torch.zeros(0), [] if return_plans else None)
        if (align := kernel_for("align_and_score", query[0])) is not None:
            proteins, projected = (queries, candidates), (query, candidate)
            return AlignedPairs(*align(proteins, projected, self.config, return_plans))
        size = 1 if query[0].device.type == "cpu" else PADDED_PAIRS
        parts = []
        for start in range(0, len(queries), size):
            part = range(len(queries))[start : start + size]  # a store reads its proteins singly
            some = [[side[p] for p in part] for side in (queries, candidates, query, candidate)]
            parts.append(self._align_padded(some[:2], some[2:], return_plans))
        plans = [plan for part in parts for plan in part.plans or ()] if return_plans else None
        return AlignedPairs(torch.cat([part.scores for part in parts]), plans)

    def check_memory(self, lengths: Sequence[Any], plans: bool, learns: bool = False) -> None:
        """Refuse pairs, of such lengths each, for which the memory that is free is too little."""
        cells = sorted(map(math.prod, lengths), reverse=True)
        if sum(cells) < FEW_CELLS or self.device.type != "cpu":  # other devices say so themselves
            return
        # Numbers per cell, as measured: with kernels, and four times as many without or to learn.
        each = 11 if self.config.order_weight else 3 if self.config.support_rounds else 1
        plain = learns or kernel_for("align_and_score", torch.empty(0)) is None
        at_once = cells if learns else cells[: torch.get_num_threads()]
        needed = 4 * each * (4 if plain else 1) * sum(at_once) + 4 * sum(cells) * plans
        if needed > (free := free_memory()):
            q, c = max(lengths, key=math.prod)
            raise ValueError(
                f"{len(lengths)} pairs, up to {q} and {c} residues, take {needed / 1e9:.1f} GB "
                f"and {free / 1e9:.1f} GB of memory are free; give fewer or shorter ones at a time."
            )

    @torch.no_grad()  # also where a thread calls it that knows nothing of its caller's no_grad
    def project_each(self, proteins: Sequence[Tensor], name: str = "protein") -> list[Tensor]:
        """Project proteins `(residues, hidden)`; one that stands there repeatedly, once."""
        projected: dict[int, Tensor] = {}
        for number, protein in enumerate(proteins):
            if id(protein) not in projected:
                check_embeddings(protein, f"{name} {number}")
                projected[id(protein)] = self.project(protein)
        return [projected[id(protein)] for protein in proteins]

    def _align_padded(
        self, proteins: list[list[Tensor]], projected: list[list[Tensor]], return_plans: bool
    ) -> AlignedPairs:
        """Align a few pairs, queries and candidates, in one padded batch."""
        embeddings, masks = zip(*map(pad_residues, proteins), strict=True)
        projections = [pad_residues(side)[0] for side in projected]
        score = kernel_for("score_padded", projections[0])
        if score and not return_plans and self.config.score_form in ("published", "mass"):
            return AlignedPairs(score(embeddings, projections, masks, self.config))
        aligned = self.align_projected(*projections, *masks)
        scores = self.score_plan(aligned.first_plan, embeddings, masks)
        pairs = zip(aligned.plan, *proteins, strict=True)
        return AlignedPairs(scores, [plan[: len(q), : len(c)] for plan, q, c in pairs])

    def score_many(self, queries: Any, store: Any, **options: Any) -> list[list[Any]]:
        """Score queries, `(residues, hidden)` each, against every protein of an `EmbeddingStore`.

        Returns the hits of each query, best first. Options are `top_k` (10), `return_plans` (True)
        and `progress`, see `plasma_hf.search.exhaustive.score_many`.
        """
        search = from_package("search.exhaustive", "an embedding store is searched")
        several = [queries] if isinstance(queries, Tensor) else list(queries)
        return search.score_many(self, several, store, **options)

    def forward(
        self,
        query_embeddings: Tensor | None = None,
        candidate_embeddings: Tensor | None = None,
        query_mask: Tensor | None = None,
        candidate_mask: Tensor | None = None,
        query_input_ids: Tensor | None = None,
        candidate_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        candidate_attention_mask: Tensor | None = None,
        query_backbone_atoms: Tensor | None = None,
        candidate_backbone_atoms: Tensor | None = None,
        query_site_labels: Tensor | None = None,
        candidate_site_labels: Tensor | None = None,
        labels: Tensor | None = None,
        correspondences: Tensor | None = None,
        return_plan: bool = False,
        return_dict: bool | None = None,
    ) -> PlasmaOutput | tuple[Tensor, ...]:
        """Align a batch of pairs.

        Each side comes as embeddings, or as token ids with a backbone. Masks are True (or 1) at
        residues; `None` means that every position is one.

        Args, the first six for `query_` and `candidate_` alike:
            *_embeddings: `(batch, residues, hidden)`, any floating dtype.
            *_mask: `(batch, residues)`, or over tokens with `*_input_ids`.
            *_input_ids, *_attention_mask: `(batch, tokens)`.
            *_backbone_atoms: N, CA and C in Å, `(batch, residues, 3, 3)`, beside the token ids of
                a backbone that reads structures.
            *_site_labels: 0/1 per residue, `(batch, residues)`.
            labels: 1 where the two share a site, `(batch,)`.
            correspondences: Residues (i, j) that are known to correspond, `(batch, n, 2)`; rows
                of -1 are padding.
            return_plan: Return plan and cost too.
            return_dict: Return a `PlasmaOutput` (default) or a tuple.

        Raises:
            ValueError: If a side is missing or given twice, or shapes do not fit together.
        """
        given = (query_embeddings, query_input_ids, query_attention_mask)
        query, query_mask = self._side("query", *given, query_mask, query_backbone_atoms)
        given = (candidate_embeddings, candidate_input_ids, candidate_attention_mask)
        atoms = candidate_backbone_atoms
        candidate, candidate_mask = self._side("candidate", *given, candidate_mask, atoms)
        check_counts(query, candidate)
        # Costs of some hundreds, exponentiated, do not survive half precision.
        with torch.autocast(query.device.type, enabled=False):
            site_labels = (
                _masked_labels("query", query_site_labels, query_mask),
                _masked_labels("candidate", candidate_site_labels, candidate_mask),
            )
            sides = ((query, candidate), (query_mask, candidate_mask), site_labels)
            output = self._align_batch(PairBatch(*sides, labels, correspondences), return_plan)
        return output.to_tuple() if return_dict is False else output

    def _align_batch(self, batch: PairBatch, return_plan: bool) -> PlasmaOutput:
        """Align pairs together, or one by one where that is less work."""
        config: Any = self.config
        first, no_cost = batch.embeddings[0], not (return_plan or torch.is_grad_enabled())
        if batch.masks[0].numel() * batch.masks[1].shape[1] > FEW_CELLS:
            sizes = zip(*(mask.sum(-1).tolist() for mask in batch.masks), strict=True)
            self.check_memory(list(sizes), return_plan, learns=not no_cost)
        take_apart, score = kernel_for("take_apart", first), kernel_for("score_apart", first)
        alone = take_apart(batch, self.project, no_cost) if take_apart else None
        parts = alone or [batch.projected(self.project)]
        if alone and no_cost and score:
            scores, plans = score(parts, config)
            aligned = [AlignedBatch(None, plan, plan) for plan in plans]
        else:
            aligned = self._align_parts(parts, bool(alone) and not return_plan)
            scores = [
                self.score_plan(a.first_plan, part.embeddings, part.masks)
                for a, part in zip(aligned, parts, strict=True)
            ]
        affine = self.score_affine() if config.score_loss_form == "affine" else None
        losses = [
            _pair_losses(part, score, a.plan, config, affine)
            for part, score, a in zip(parts, scores, aligned, strict=True)
        ]
        all_losses = {name: torch.cat([part[name] for part in losses]) for name in losses[0]}
        return PlasmaOutput(
            scores=torch.cat(scores),
            plan=batch.joined([a.plan for a in aligned]) if return_plan else None,
            cost=batch.joined([a.cost for a in aligned]) if return_plan else None,
            **_mean_losses(all_losses, batch, config),
        )

    def _align_parts(self, parts: Sequence[PairBatch], plans_alone: bool) -> list[AlignedBatch]:
        """Align parts of a batch; where plans are enough, pairs on their own keep no cost."""
        config = self.config
        compiled = kernel_for("pair_plans", parts[0].embeddings[0]) if plans_alone else None
        if compiled is None or config.support_rounds or config.order_weight:
            return [self.align_projected(*part.projections, *part.masks) for part in parts]
        query, candidate = zip(*(part.projections for part in parts), strict=True)
        plans = compiled(query, candidate, config.kernel_scale, config.eps, config.n_iters)
        return [AlignedBatch(None, plan, plan) for plan in plans]

    def _side(
        self, side: str, embeddings: Given, ids: Given, attended: Given, mask: Given, atoms: Given
    ) -> Sides:
        """Return embeddings, whatever stands at padding, and residue mask of one side."""
        if (embeddings is None) == (ids is None):
            raise ValueError(
                f"give the {side} either as {side}_embeddings or as {side}_input_ids"
                + (", not as both." if embeddings is not None else "; neither is here.")
            )
        if ids is not None:
            embeddings, mask = self.embed(ids, attended, mask, atoms)
        assert embeddings is not None
        mask = residue_mask(side, embeddings, mask, self.config.embedding_size)
        check_embeddings(embeddings, f"{side}_embeddings", mask)
        return at_least_float32(embeddings), mask

    def align_projected(
        self, query: Tensor, candidate: Tensor, query_mask: Tensor, candidate_mask: Tensor
    ) -> AlignedBatch:
        """Make the plans of a padded batch of projections, `(batch, residues, head_size)` each."""
        cost = hinge_cost(query, candidate)
        kernel = log_kernel(cost, self.config.kernel_scale, query_mask, candidate_mask)
        return AlignedBatch(cost, *make_plans(kernel, candidate_mask, self.config))

    def score_plan(self, plan: Tensor, embeddings: Sides, masks: Sides) -> Tensor:
        """Score a padded batch, `(batch,)`, by its first plans and the backbone's embeddings."""
        config = self.config
        if config.score_form == "mass":
            return matched_mass(plan, *masks, threshold=config.threshold)
        if config.score_form == "collinear":
            return collinear_score(plan, *masks)
        settings = {"threshold": config.threshold, "diagonal_window": config.diagonal_window}
        return published_score(plan, *embeddings, *masks, **settings)


def _masked_labels(side: str, labels: Tensor | None, mask: Tensor) -> Tensor | None:
    """Return site labels with 0 at padding, whatever the collator put there (-100, say)."""
    if labels is None:
        return None
    if labels.shape != mask.shape:
        raise ValueError(
            f"{side}_site_labels has shape {tuple(labels.shape)}; give {tuple(mask.shape)}, one "
            "0 or 1 for each residue."
        )
    return labels.masked_fill(~mask, 0)
