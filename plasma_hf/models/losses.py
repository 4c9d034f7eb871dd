"""What a plan and a score are trained on: site labels and pair labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def score_loss(
    scores: Tensor, labels: Tensor, form: str = "published", affine: Tensor | None = None
) -> Tensor:
    """Return the mean binary cross-entropy between scores and pair labels.

    Args:
        scores: Scores in [0, 1], `(batch,)`.
        labels: 1 where query and candidate share a site, `(batch,)`.
        form: "published" reads a score as a logit, so that even a perfect classifier keeps a loss
            of .503; "probability" reads it as a probability; "affine" as a logit after scaling
            and shifting.
        affine: Scale and shift of the affine form, `(2,)`.

    Example:
        >>> import torch
        >>> round(score_loss(torch.tensor([1.0]), torch.tensor([1])).item(), 4)
        0.3133
    """
    labels = labels.to(scores.dtype)
    if form == "probability":
        return F.binary_cross_entropy(scores.clamp(1e-6, 1 - 1e-6), labels)
    if form == "affine":
        if affine is None:
            raise ValueError("the affine form needs its scale and shift; give affine=(2,) tensor.")
        scores = affine[0] * scores + affine[1]
    return F.binary_cross_entropy_with_logits(scores, labels)


def label_match_losses(
    plan: Tensor, query_site_labels: Tensor, candidate_site_labels: Tensor
) -> Tensor:
    """Return the share of a candidate's labelled residues that no labelled query residue reaches.

    Per pair `sum_j relu(l_c[j] - sum_i l_q[i] M_ij) / sum_j l_c[j]`; 0 where the candidate has no
    labelled residue. The label match score is 1 minus this.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_site_labels: 0/1, `(batch, query_residues)`; 0 at padding.
        candidate_site_labels: 0/1, `(batch, candidate_residues)`; 0 at padding.

    Returns:
        Losses in [0, 1], `(batch,)`.
    """
    query_labels = query_site_labels.to(plan.dtype).unsqueeze(-2)
    candidate_labels = candidate_site_labels.to(plan.dtype)
    received = (query_labels @ plan).squeeze(-2)
    missing = F.relu(candidate_labels - received).sum(-1)
    return missing / candidate_labels.sum(-1).clamp(min=1)


def label_match_loss(
    plan: Tensor,
    query_site_labels: Tensor,
    candidate_site_labels: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Return the mean of `label_match_losses` over positive pairs with labels; 0 if there is none.

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        query_site_labels: 0/1, `(batch, query_residues)`.
        candidate_site_labels: 0/1, `(batch, candidate_residues)`.
        labels: Pair labels, `(batch,)`; None if every pair is positive.
    """
    losses = label_match_losses(plan, query_site_labels, candidate_site_labels)
    counted = candidate_site_labels.sum(-1) > 0
    if labels is not None:
        counted = counted & (labels > 0)
    weight = counted.to(losses.dtype)
    return (losses * weight).sum() / weight.sum().clamp(min=1)
