"""PLASMA: residue embeddings of two proteins in, an alignment plan and one score out.

In the order of the computation: the hinge cost of matching two residues, the partial Sinkhorn plan
over it, scores of a plan, losses, the heads, and the model that puts them together. A model that
reads by "posterior" compares residues by the cosine of what the head makes of them instead, and
sums over local alignments (`local_alignment`). What is here is plain torch and says what is
computed; where the package `plasma_hf` is installed, its compiled kernels compute the same.

Throughout, costs, kernels and plans are `(batch, query_residues, candidate_residues)`, embeddings
`(batch, residues, hidden)`, and masks `(batch, residues)`, True where there is a residue.
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
from .local_alignment import (
    MOST_EVIDENCE,
    NEVER,
    READING,
    SEARCHING,
    Calibration,
    Evidence,
    aligned_probabilities,
    alignment_scores,
    kernel_for,
    share_of_evidence,
)
from .modeling_backbone import (
    PreTrainedHead,
    SubstitutionConfig,
    build_backbone,
    check_embeddings,
    free_memory,
    from_package,
    in_windows,
    pad_residues,
    residue_mask,
    vectors_of,
    weights_digest,
)
from .protein import STANDARD_RESIDUES

if TYPE_CHECKING:
    # Files named by an import travel with a saved model: the folder then has its pipeline.
    from .pipeline_protein_alignment import ProteinAlignmentPipeline  # noqa: F401

# --- The hinge cost of matching a query residue with a candidate residue.

# Numbers that the plain cost compares at a time: on a CPU what a cache holds, and elsewhere.
BLOCK, LARGE_BLOCK = 1 << 21, 1 << 26


def hinge_cost(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess of the candidate residue.

    `C_ij = sum_k relu(q_ik - c_jk)`, in float32 or wider, computed as `sum_k max(q_ik, c_jk) -
    sum_k c_jk`: nothing is rounded twice, and a residue costs exactly nothing against itself.
    Nothing has residues, residues and channels as its axes. A batch of one meets every protein of
    the other.

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


def log_kernel(
    cost: Tensor, kernel_scale: float, query_mask: Tensor, candidate_mask: Tensor
) -> Tensor:
    """Return the log of the transport kernel, `-kernel_scale * cost`; `NEVER` where masked.

    The scale is 1 / tau in the paper's notation.
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
        log_kernel: See `log_kernel`.
        candidate_mask: True where there is a residue.
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


# --- From a plan to one number per pair, in two forms.


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
    stretch count the missing steps as empty, and 0 steps leave the collinearity out. Gradient
    reaches the plan through the similarity. The embeddings are those of the backbone.

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
    sums = plan.clone()
    for step in range(1, window):
        sums[..., :-step, :-step] += plan[..., step:, step:]
    return sums.masked_fill(~starts, NEVER)


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
    """
    mass = plan.masked_fill(plan <= threshold, 0.0).sum((-1, -2))
    return share_of_shorter(mass, query_mask.sum(-1), candidate_mask.sum(-1))


def share_of_shorter(mass: Tensor, query_residues: Tensor, candidate_residues: Tensor) -> Tensor:
    """Divide a mass by the residues of the shorter protein, `(batch,)` each."""
    return (mass / torch.minimum(query_residues, candidate_residues).clamp(min=1)).clamp(0, 1)


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
    """

    embeddings: Sides
    masks: Sides
    site_labels: tuple[Tensor | None, Tensor | None] = (None, None)
    labels: Tensor | None = None
    correspondences: Tensor | None = None

    @property
    def asks_for_plans(self) -> bool:
        """Whether something is known that the residues of a plan are compared with."""
        return any(each is not None for each in (*self.site_labels, self.correspondences))

    @property
    def clean(self) -> Sides:
        """Embeddings that are 0 at padding."""
        query, candidate = map(_clean, self.embeddings, self.masks)
        return query, candidate

    def projected(self, project: Callable[[Tensor], Tensor]) -> Sides:
        """Return projections, 0 at padding, which is not projected."""
        query, candidate = (
            torch.zeros(*mask.shape, rows.shape[-1]).to(rows).index_put((mask,), rows)
            for mask, rows in (
                (mask, project(side[mask]))
                for side, mask in zip(self.embeddings, self.masks, strict=True)
            )
        )
        return query, candidate

    def apart(self, project: Callable[[Tensor], Tensor]) -> list[list[tuple[Tensor, Tensor]]]:
        """Return embeddings and projections of each protein of both sides, without padding.

        All are views of rows of residues, so that gradients are put together in one go.
        """
        sides = []
        for embeddings, mask in zip(self.embeddings, self.masks, strict=True):
            rows = embeddings.flatten(0, 1) if mask.all() else embeddings[mask]
            parts = (each.split(mask.sum(-1).tolist()) for each in (rows, project(rows)))
            sides.append(list(zip(*parts, strict=True)))
        return sides

    def padded(self, matrices: Sequence[Tensor]) -> Tensor:
        """Put matrices of pairs, over their residues alone, where the masks have them."""
        if all((mask[:, 1:] <= mask[:, :-1]).all() for mask in self.masks):  # padding comes last
            rows, columns = (mask.shape[1] for mask in self.masks)
            sizes = ((0, columns - m.shape[1], 0, rows - m.shape[0]) for m in matrices)
            return torch.stack(list(map(F.pad, matrices, sizes)))
        allowed = self.masks[0].unsqueeze(-1) & self.masks[1].unsqueeze(-2)
        values = torch.cat([matrix.flatten() for matrix in matrices])
        return values.new_zeros(allowed.shape).masked_scatter(allowed, values)


def _all_residues(protein: Tensor) -> Tensor:
    """Return the mask of a protein without padding, `(1, residues)`."""
    return torch.ones(1, len(protein), dtype=torch.bool, device=protein.device)


def _clean(rows: Tensor, mask: Tensor) -> Tensor:
    return rows if mask.all() else rows.masked_fill(~mask.unsqueeze(-1), 0.0)


# --- What a pair is trained on: its label, its site labels, residues known to correspond.

LEAST_MASS = 1e-6  # below it a correspondence that was missed costs no more


def score_losses(
    scores: Tensor, labels: Tensor, form: str = "published", affine: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy between score and label of each pair, `(batch,)`.

    The form "published" reads a score as a logit, so that even a perfect classifier keeps a loss of
    .503; "affine" reads it so after scaling and shifting, by `affine`, `(2,)`.

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
    no labelled residue. The label match score is 1 minus this. The form "symmetric" is the mean of
    both directions. Labels are 0/1, `(batch, residues)` each, 0 at padding.
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

    They are `(batch, n, 2)`, from 0; rows of -1 are padding, without others the loss is 0.

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


class LetterWindows(nn.Module):
    """Read in embeddings which residues they are of, and say what stands around each.

    A language model knows what a residue does better than which one it is; alignments of the two
    together are better than of either. The letters are read from the embeddings, as these are all
    that an aligner gets.

    Args:
        width: Of an embedding.
    """

    letters: Tensor  # turns an embedding, and a 1 behind it, into how much it is each of the twenty
    vectors: Tensor  # of each of these

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("letters", torch.zeros(width + 1, len(STANDARD_RESIDUES)))
        self.register_buffer("vectors", torch.zeros(vectors_of(STANDARD_RESIDUES).shape))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return what stands around each residue of one protein, `(residues, WINDOWS)`."""
        return in_windows(self.vectors[(self.normalised(embeddings) @ self.letters).argmax(-1)])

    @staticmethod
    def normalised(embeddings: Tensor) -> Tensor:
        """Return what letters are read in, `(residues, width + 1)`."""
        return F.pad(F.layer_norm(embeddings, embeddings.shape[-1:]), (0, 1), value=1.0)


WINDOWS = SubstitutionConfig().hidden_size


class Background(nn.Module):
    """Hold what residues of unrelated proteins look like, and compare residues against it.

    Residues lie along the principal axes of all residues, weighed by a power of each axis'
    variance. A cosine counts in standard deviations of the cosines that both residues have with
    any other. With no width nothing is known, and a pair is its own background.

    The mean of a protein's residues, axis by axis in standard deviations of such means, is a vector
    of the whole: those of relatives are near each other.

    Args:
        width: Of a projected residue.
        windows: Width of the letters around it, which stand behind it; 0 without.
    """

    POWER = 0.05  # of an axis' variance
    MOST_AXES = 256
    LETTERS = 0.5  # length of what letters add to a language model
    centre: Tensor
    axes: Tensor
    weights: Tensor
    moments: Tensor
    proteins: Tensor  # mean and deviation of what they are on average, letters aside

    def __init__(self, width: int, windows: int = 0) -> None:
        super().__init__()
        self.widths = [width, windows] if windows else [width]
        sizes = [min(each, self.MOST_AXES) for each in self.widths]
        self.register_buffer("centre", torch.zeros(sum(self.widths)))
        self.register_buffer("axes", torch.zeros(sum(self.widths), sum(sizes)))
        self.register_buffer("weights", torch.zeros(sum(sizes)))
        self.register_buffer("moments", torch.zeros(2, sum(sizes)))
        self.register_buffer("proteins", torch.zeros(2, sizes[0]))

    def forward(self, projected: Tensor) -> Tensor:
        """Turn a protein into vectors, `(residues, axes + 3)`, that `evidence` compares."""
        along = projected @ self.axes - self.centre @ self.axes
        return against_background(along, self.weights, self.moments)

    def pool(self, seen: Tensor) -> Tensor:
        """Turn vectors of residues into one of the protein, `(axes,)`, of unit length."""
        usual, deviation = self.proteins
        return F.normalize((self.mean(seen) - usual) / deviation.clamp(min=1e-6), dim=-1)

    def mean(self, seen: Tensor) -> Tensor:
        """Return the mean of residues along the axes of the embeddings, `(axes,)`."""
        return seen[:, : self.proteins.shape[1]].mean(0)

    @staticmethod
    def evidence(query: Tensor, candidate: Tensor) -> Evidence:
        """Return the evidence of residue pairs, in standard deviations."""
        read = _products(query[:, :-1], candidate[:, :-1]).clamp_(max=MOST_EVIDENCE)
        return Evidence(read, read - (query[:, -1:] + candidate[:, -1]))


LONGEST_PERIOD = 12  # of repeats that are no sign of common descent
USUAL_REPEAT = 4.0  # evidence of residues so near each other that is nothing special


def against_background(along: Tensor, weights: Tensor, moments: Tensor) -> Tensor:
    """Return what `Background` makes of residues along its axes, `(residues, axes)`.

    Args:
        along: Residues of one protein.
        weights: Of each axis, `(axes,)`.
        moments: Mean and variance of unit vectors, `(2, axes)`.
    """
    learns = torch.is_grad_enabled() and along.requires_grad
    if not learns and (compiled := kernel_for("against_background", along)):
        return compiled(along, weights, moments)
    weighted, (usual, variance) = along * weights, moments
    sums = weighted.square() @ torch.stack([torch.ones_like(variance), variance], -1)
    square, spread = sums.clamp(min=1e-12).unbind(-1)
    usual = weighted @ usual * square**-0.5  # of the residue's cosines with any others
    scale = (spread / square).clamp(min=1e-8) ** -0.25
    units, mean = weighted * (scale * square**-0.5)[:, None], -usual * scale / 2
    # What a residue has in common with its own protein does not tell relatives: repeats of few
    # letters are like one another in any two proteins.
    whole, itself = units.sum(0), scale.square() * (1 - usual)
    own = units @ whole + mean * scale.sum() + scale * mean.sum() - itself
    own = own.clamp(min=0.0) / max(1, len(own) - 1)
    for step in range(1, min(LONGEST_PERIOD + 1, len(own))):
        near = (units[step:] * units[:-step]).sum(-1)
        near = near + mean[step:] * scale[:-step] + scale[step:] * mean[:-step] - USUAL_REPEAT
        first, last = F.pad(near, (0, step)), F.pad(near, (step, 0))
        own = torch.maximum(own, torch.maximum(first, last))
    return torch.cat([units, torch.stack([mean, scale, own / 2], -1)], -1)


def _products(query: Tensor, candidate: Tensor) -> Tensor:
    """Multiply vectors; of the last two numbers each multiplies the other's of the other side."""
    turned = torch.cat([candidate[:, :-2], candidate[:, [-1, -2]]], -1)
    return query @ turned.mT


def own_background(query: Tensor, candidate: Tensor) -> Tensor:
    """Compare projections `(residues, width)` in the deviations of each residue's own cosines."""
    centre = torch.cat([query, candidate]).mean(0)
    cosines = F.normalize(query - centre, dim=-1) @ F.normalize(candidate - centre, dim=-1).mT
    rows, columns = (
        (cosines - cosines.mean(d, keepdim=True))
        / cosines.std(d, keepdim=True, correction=0).clamp(min=1e-6)
        for d in (0, 1)
    )
    return (rows + columns) / 2


HEADS = {"lrl": LearnedProjection, "hinge": LayerNormalization, "residual": ResidualProjection}


# --- The model.

FEW_CELLS = 2**24  # of all plans together, which fit into any memory
PADDED_PAIRS = 16  # in one batch on a GPU; on a CPU padding costs more than it saves


@dataclass
class AlignedPairs:
    """Scores of pairs, `(pairs,)`, and plans, `(query_residues, candidate_residues)` each.

    Read by "posterior" there are raw scores, `(pairs,)`, and what `Background` says of each pair.
    """

    scores: Tensor
    plans: list[Tensor] | None = None
    raw_scores: Tensor | None = None
    evidence: list[Evidence] | None = None


@dataclass
class PlasmaOutput(ModelOutput):
    """What PLASMA says about a batch of pairs.

    Args:
        loss: Mean over pairs of what each would lose alone: the weighted sum of the three below.
        scores: One score in [0, 1] per pair, `(batch,)`.
        raw_scores: Of local alignments, `(batch,)`, read by "posterior" alone; see `Calibration`.
        plan: `(batch, query_residues, candidate_residues)`, with `return_plan=True`.
        cost: Same shape, with `return_plan=True`; what the kernel is made of.
        score_loss: Mean over pairs of the loss that comes from pair labels.
        label_match_loss: Mean over positive pairs of that from site labels; 0 if none is positive.
        correspondence_loss: Mean over pairs of that from residue correspondences.
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    raw_scores: Tensor | None = None
    plan: Tensor | None = None
    cost: Tensor | None = None
    score_loss: Tensor | None = None
    label_match_loss: Tensor | None = None
    correspondence_loss: Tensor | None = None


class AlignedBatch(NamedTuple):
    """Scores, `(batch,)`, cost and plan, `(batch, query_residues, candidate_residues)` each."""

    scores: Tensor
    plan: Any = None  # a tensor, or None where nothing asks for it, and so the others
    cost: Any = None
    raw_scores: Tensor | None = None


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
        if config.reading == "posterior":
            known = config.calibration or {}
            letters = known.get("letters")  # width of what they are read in
            self.letters = LetterWindows(letters) if letters else None
            beside = WINDOWS if letters else known.get("beside", 0)
            self.background = Background(known.get("width", 0), beside)
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
        elif isinstance(module, Background | LetterWindows):
            for values in module.buffers():
                init.zeros_(values)
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
        """Project residue embeddings to what is compared, in float32.

        Args:
            embeddings: `(..., hidden)`; of one protein, `(residues, hidden)`, if calibrated.
        """
        embeddings = at_least_float32(embeddings)
        projected = self.alignment_head(embeddings)
        if not self.knows_background:
            return projected
        return self.background(self.beside_letters(projected, embeddings))

    def beside_letters(self, projected: Tensor, embeddings: Tensor) -> Tensor:
        """Put what stands around each residue behind it, where that is compared."""
        if self.letters is None:
            return projected
        return torch.cat([projected, self.letters(embeddings)], -1)

    @property
    def head_identity(self) -> dict[str, str]:
        """What projections depend on: the form of the head and a digest of its parameters."""
        config, digest = self.config, weights_digest(self.alignment_head)
        known = {"head": config.head, "normalize": str(config.normalize), "weights": digest}
        if self.knows_background:
            known["background"] = weights_digest(self.background)
            known |= {"letters": weights_digest(self.letters)} if self.letters else {}
        return known

    @torch.no_grad()
    def align_pairs(
        self,
        queries: Sequence[Tensor],
        candidates: Sequence[Tensor],
        *,
        query_projections: Sequence[Tensor] | None = None,
        candidate_projections: Sequence[Tensor] | None = None,
        return_plans: bool = True,
        is_read: Callable[[float, Sequence[int]], bool] | None = None,
    ) -> AlignedPairs:
        """Align query p with candidate p as `forward` does, without gradient and padding.

        Args:
            queries, candidates: Residue embeddings, `(residues, hidden)` each, as many of one as of
                the other; a protein may stand there repeatedly.
            query_projections, candidate_projections: What `project` makes of them, `(residues,
                head_size)` each, where it is at hand.
            return_plans: Return plans beside scores; without them less is computed.
            is_read: Tells by raw score and lengths which pairs are worth a plan, if the model
                reads by "posterior"; the others get an empty one.

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
        if self.config.reading == "posterior":
            found = self._read(query, candidate, is_read or (lambda *pair: return_plans))
            return found if return_plans else replace(found, plans=None)
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
        each = 10 if self.config.reading == "posterior" else 1
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
        if score and not return_plans:
            return AlignedPairs(score(embeddings, projections, masks, self.config))
        _, plans = self.align_projected(*projections, *masks)
        pairs = zip(plans, *proteins, strict=True)
        shown = [plan[: len(q), : len(c)] for plan, q, c in pairs]
        return AlignedPairs(self.score_plan(plans, embeddings, masks), shown)

    def score_many(self, queries: Any, store: Any, **options: Any) -> list[list[Any]]:
        """Score queries, `(residues, hidden)` each, against every protein of an `EmbeddingStore`.

        Returns the hits of each query, best first. Options are `top_k` (10) and `return_plans`
        (True), see `plasma_hf.search.exhaustive.score_many`.
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
        check_widths(query, candidate)
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
        """Align pairs as is least work, and say what they lose."""
        config: Any = self.config
        learns = torch.is_grad_enabled()
        if batch.masks[0].numel() * batch.masks[1].shape[1] > FEW_CELLS:
            sizes = zip(*(mask.sum(-1).tolist() for mask in batch.masks), strict=True)
            self.check_memory(list(sizes), return_plan, return_plan or learns)
        if config.reading == "posterior":
            found = self._read_batch(batch, return_plan)
        elif kernel_for("pair_plans", batch.embeddings[0]):
            found = self._align_apart(batch, return_plan, learns)
        else:
            cost, plan = self.align_projected(*batch.projected(self.project), *batch.masks)
            found = AlignedBatch(self.score_plan(plan, batch.clean, batch.masks), plan, cost)
        affine = self.score_affine() if config.score_loss_form == "affine" else None
        losses = _pair_losses(batch, found.scores, found.plan, config, affine)
        return PlasmaOutput(
            scores=found.scores,
            raw_scores=found.raw_scores,
            plan=found.plan if return_plan else None,
            cost=found.cost if return_plan else None,
            **_mean_losses(losses, batch, config),
        )

    def _align_apart(self, batch: PairBatch, return_plan: bool, learns: bool) -> AlignedBatch:
        """Align pairs by compiled kernels, without padding."""
        sides = (zip(*side, strict=True) for side in batch.apart(self.project))
        proteins, projected = zip(*sides, strict=True)
        asked = return_plan or batch.asks_for_plans
        if not (return_plan or learns):
            align: Any = kernel_for("align_and_score", projected[0][0])
            scores, plans = align(proteins, projected, self.config, asked)
            return AlignedBatch(scores, batch.padded(plans) if asked else None)
        make: Any = kernel_for("pair_plans", projected[0][0])
        costs, plans = make(*projected, self.config)
        scores = [
            self.score_plan(plan[None], (q[None], c[None]), (_all_residues(q), _all_residues(c)))
            if plan.numel()
            else plan.sum()[None]
            for plan, q, c in zip(plans, *proteins, strict=True)
        ]
        plan = batch.padded(plans) if asked else None
        return AlignedBatch(torch.cat(scores), plan, batch.padded(costs) if return_plan else None)

    def _read_batch(self, batch: PairBatch, return_plan: bool) -> AlignedBatch:
        """Read pairs by their local alignments, without padding."""
        query, candidate = (
            [self.project(rows[residues]) for rows, residues in zip(*side, strict=True)]
            for side in zip(batch.embeddings, batch.masks, strict=True)
        )
        read = self._read(query, candidate)
        costs = [-each.read for each in read.evidence or ()]
        cost = batch.padded(costs) if return_plan else None
        return AlignedBatch(read.scores, batch.padded(read.plans or []), cost, read.raw_scores)

    def _read(
        self,
        query: Sequence[Tensor],
        candidate: Sequence[Tensor],
        is_read: Callable[[float, Sequence[int]], bool] = lambda raw_score, lengths: True,
    ) -> AlignedPairs:
        """Read those pairs of projections by their local alignments that `is_read` wants."""
        pairs = list(zip(query, candidate, strict=True))
        seen = [self.evidence(q, c) for q, c in pairs]
        raw_scores = alignment_scores([each.scored for each in seen], SEARCHING)
        sums = alignment_scores([each.read for each in seen], READING)
        lengths = [(len(q), len(c)) for q, c in pairs]
        scores = share_of_evidence(sums, sums.new_tensor([min(each) for each in lengths]))
        wanted = map(is_read, raw_scores.tolist(), lengths)
        chosen = [number for number, read in enumerate(wanted) if read]
        plans = [torch.empty(0, 0)] * len(pairs)
        found = aligned_probabilities([seen[number].read for number in chosen])
        for number, plan in zip(chosen, found, strict=True):
            plans[number] = plan
        return AlignedPairs(scores, plans, raw_scores, seen)

    def measure_background(
        self, embeddings: Sequence[Tensor], sequences: Sequence[str] = ()
    ) -> None:
        """Learn what residues of unrelated proteins look like.

        Args:
            embeddings: Of proteins, `(residues, hidden)` each.
            sequences: Theirs; with them a language model's residues are compared by letters, too.
        """
        package = from_package("search.calibration", "models are calibrated")
        package.measure_background(self, embeddings, sequences)

    def evidence(self, query: Tensor, candidate: Tensor) -> Evidence:
        """Return the evidence of the residue pairs of two projections."""
        if not self.knows_background:
            return Evidence(*[own_background(query, candidate)] * 2)
        return self.background.evidence(query, candidate)

    def raw_scores(self, query: Tensor, candidates: Sequence[Tensor]) -> Tensor:
        """Return the raw scores of a projection with each of others, `(candidates,)`."""
        seen = [self.evidence(query, candidate).scored for candidate in candidates]
        return alignment_scores(seen, SEARCHING)

    @torch.no_grad()
    def pool(self, projections: Sequence[Tensor]) -> Tensor:
        """Return a vector of each protein, `(proteins, axes)`, whose cosines tell relatives.

        Args:
            projections: Of each, as `project_each` makes them by a model that was calibrated.
        """
        return torch.stack([self.background.pool(one) for one in projections])

    @property
    def calibration(self) -> Calibration | None:
        """What unrelated proteins reach; None before `calibrate`."""
        known = (self.config.calibration or {}) if self.config.reading == "posterior" else {}
        if "location" not in known:
            return None
        fields = tuple(known["location"]), tuple(known["log_scale"]), known["tail"], known["shape"]
        return Calibration(*fields)

    @property
    def knows_background(self) -> bool:
        """Tell whether residues are compared against those of unrelated proteins."""
        return self.config.reading == "posterior" and self.config.calibration is not None

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
    ) -> tuple[Tensor, Tensor]:
        """Make costs and plans of a padded batch of projections, `(batch, residues, head_size)`."""
        cost = hinge_cost(query, candidate)
        kernel = log_kernel(cost, self.config.kernel_scale, query_mask, candidate_mask)
        settings = {"eps": self.config.eps, "n_iters": self.config.n_iters}
        return cost, sinkhorn(kernel, candidate_mask, **settings)

    def score_plan(self, plan: Tensor, embeddings: Sides, masks: Sides) -> Tensor:
        """Score a padded batch, `(batch,)`, by its plans and the backbone's embeddings."""
        config = self.config
        if config.score_form == "mass":
            return matched_mass(plan, *masks, threshold=config.threshold)
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
