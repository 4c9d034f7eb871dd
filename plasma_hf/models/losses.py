"""What a pair is trained on: its label, its site labels, residues known to correspond.

Every loss has one value a pair, and none knows of the other pairs of a batch: the mean over a batch
has the mean of the gradients that the pairs would have alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .configuration_plasma import PlasmaConfig
    from .pair_batch import PairBatch

LEAST_MASS = 1e-6
"""Mass below which a correspondence that was missed costs no more."""


def score_losses(
    scores: Tensor, labels: Tensor, form: str = "published", affine: Tensor | None = None
) -> Tensor:
    """Return the binary cross-entropy between the score of each pair and its label.

    Args:
        scores: Scores in [0, 1], `(batch,)`.
        labels: 1 where query and candidate share a site, `(batch,)`.
        form: "published" reads a score as a logit, so that even a perfect classifier keeps a loss
            of .503; "probability" reads it as a probability; "affine" as a logit after scaling
            and shifting.
        affine: Scale and shift of the affine form, `(2,)`.

    Returns:
        Losses, `(batch,)`.

    Example:
        >>> import torch
        >>> round(score_losses(torch.tensor([1.0]), torch.tensor([1])).item(), 4)
        0.3133
    """
    labels = labels.to(scores.dtype)
    if form == "probability":
        return F.binary_cross_entropy(scores.clamp(1e-6, 1 - 1e-6), labels, reduction="none")
    if form == "affine":
        if affine is None:
            raise ValueError("the affine form needs its scale and shift; give affine=(2,) tensor.")
        scores = affine[0] * scores + affine[1]
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")


def score_loss(
    scores: Tensor, labels: Tensor, form: str = "published", affine: Tensor | None = None
) -> Tensor:
    """Return the mean of `score_losses`."""
    return score_losses(scores, labels, form, affine).mean()


def label_match_losses(
    plan: Tensor,
    query_site_labels: Tensor,
    candidate_site_labels: Tensor,
    form: str = "published",
) -> Tensor:
    """Return the share of a candidate's labelled residues that no labelled query residue reaches.

    Per pair `sum_j relu(l_c[j] - sum_i l_q[i] M_ij) / sum_j l_c[j]`; 0 where the candidate has no
    labelled residue. The label match score is 1 minus this.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_site_labels: 0/1, `(batch, query_residues)`; 0 at padding.
        candidate_site_labels: 0/1, `(batch, candidate_residues)`; 0 at padding.
        form: "published", or "symmetric" for the mean of both directions.

    Returns:
        Losses in [0, 1], `(batch,)`.
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
    """Mark the pairs that have a label match loss: positive, with a labelled candidate.

    Args:
        candidate_site_labels: 0/1, `(batch, candidate_residues)`.
        labels: Pair labels, `(batch,)`; None if every pair is positive.

    Returns:
        `(batch,)`, bool.
    """
    counted = candidate_site_labels.sum(-1) > 0
    return counted if labels is None else counted & (labels > 0)


def correspondence_losses(plan: Tensor, correspondences: Tensor) -> Tensor:
    """Return the mean of `-log M_ij` over the residues (i, j) that are known to correspond.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        correspondences: Query and candidate residue, `(batch, n, 2)`, from 0; rows of -1 are
            padding, and a pair with nothing else has a loss of 0.

    Returns:
        Losses, `(batch,)`.

    Example:
        >>> import torch
        >>> plan = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]])
        >>> correspondence_losses(plan, torch.tensor([[[0, 0], [1, 1], [-1, -1]]]))
        tensor([0.3466])
    """
    known = (correspondences >= 0).all(-1)
    i, j = correspondences.clamp(min=0).unbind(-1)
    mass = plan.flatten(-2).gather(-1, i * plan.shape[-1] + j)
    missed = -mass.clamp(min=LEAST_MASS).log().masked_fill(~known, 0.0)
    return missed.sum(-1) / known.sum(-1).clamp(min=1)


def pair_losses(
    batch: PairBatch, scores: Tensor, plan: Tensor, config: PlasmaConfig, affine: Tensor | None
) -> dict[str, Tensor]:
    """Return what each pair of a batch would lose alone, by the name of the loss, unweighted.

    Args:
        batch: The pairs and what is known about them, which says what losses there are.
        scores: `(batch,)`.
        plan: `(batch, query_residues, candidate_residues)`.
        config: Says in which forms.
        affine: See `score_losses`.

    Returns:
        Losses, `(batch,)` each.
    """
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


def mean_losses(
    losses: dict[str, Tensor], batch: PairBatch, config: PlasmaConfig
) -> dict[str, Tensor]:
    """Return the loss of a batch, and its parts.

    Args:
        losses: What `pair_losses` returned.
        batch: The pairs.
        config: Has the weights.

    Returns:
        "loss", the mean over pairs of what each would lose alone, and each part by its name,
        unweighted: its mean over pairs, of the label match loss over the pairs that have one.
    """
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
