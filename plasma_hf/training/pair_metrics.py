"""Figures of an evaluation, from a few numbers a pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics.binary import average_precision, f1_max, roc_auc
from ..models.losses import label_match_losses, with_labelled_site


@torch.no_grad()
def pair_figures(output: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Reduce what a model says of a batch to numbers a pair, so that no plan is kept.

    Args:
        output: The `PlasmaOutput` of the batch, with its plans.
        batch: What the model was given.

    Returns:
        Score, score loss, label match loss of the candidate's site and of the query's site, each
        `(batch,)`; the last two NaN where a pair has none.
    """
    scores = output.scores
    query, candidate = batch.get("query_site_labels"), batch.get("candidate_site_labels")
    nothing = torch.full_like(scores, torch.nan)
    score_loss = nothing if output.score_loss is None else output.score_loss.expand_as(scores)
    if query is None or candidate is None:
        return scores, score_loss.clone(), nothing, nothing.clone()
    query, candidate = query.clamp(min=0), candidate.clamp(min=0)  # some mark padding by -100
    labels = batch.get("labels")
    ahead = _missed(output.plan, query, candidate, labels)
    return scores, score_loss.clone(), ahead, _missed(output.plan.mT, candidate, query, labels)


def _missed(plan: Tensor, query: Tensor, candidate: Tensor, labels: Tensor | None) -> Tensor:
    missed = label_match_losses(plan, query, candidate)
    return missed.masked_fill(~with_labelled_site(candidate, labels), torch.nan)


def pair_metrics(prediction: Any) -> dict[str, float]:
    """Compute the figures of an evaluation, as `compute_metrics` of a `Trainer`.

    Args:
        prediction: An `EvalPrediction` with what `pair_figures` gives, `(pairs,)` each, and the
            pair labels.

    Returns:
        `score_loss`, `label_match_score` (of the candidate's sites, over positive pairs),
        `label_match_score_query` (of the query's sites), `label_match_loss`, and where there are
        pairs of both kinds `roc_auc`, `average_precision` and `f1_max`; `pairs` counts them.

    Example:
        >>> from transformers import EvalPrediction
        >>> import numpy as np
        >>> numbers = np.array([[0.9, 0.2], [0.3, 0.3], [0.1, np.nan], [0.2, np.nan]])
        >>> metrics = pair_metrics(EvalPrediction(tuple(numbers), np.array([1, 0])))
        >>> metrics["roc_auc"], metrics["label_match_score"]
        (1.0, 0.9)
    """
    scores, score_loss, missed, missed_query = (
        np.asarray(numbers, dtype=np.float64) for numbers in prediction.predictions
    )
    labels = np.asarray(prediction.label_ids)
    figures = {"pairs": len(scores), "score_loss": float(score_loss.mean())}
    if not np.isnan(missed).all():
        figures["label_match_loss"] = float(np.nanmean(missed))
        figures["label_match_score"] = float(1 - np.nanmean(missed))
    if not np.isnan(missed_query).all():
        figures["label_match_score_query"] = float(1 - np.nanmean(missed_query))
    if 0 < labels.sum() < len(labels):
        figures["roc_auc"] = roc_auc(labels, scores)
        figures["average_precision"] = average_precision(labels, scores)
        figures["f1_max"] = f1_max(labels, scores)
    return figures
