"""Label match score: how much of the candidate's site the alignment finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import as_float_array


def label_match_score(
    plan: ArrayLike, query_site_labels: ArrayLike, candidate_site_labels: ArrayLike
) -> float:
    """Compute the share of the candidate's site that is aligned to the query's site.

    It is a recall: weight that lands outside the candidate's site costs nothing, and swapping
    query and candidate changes the value. Average it over positive pairs only.

    Args:
        plan: alignment weights, shape `(query_residues, candidate_residues)`.
        query_site_labels: 1 inside the site, 0 outside, shape `(query_residues,)`.
        candidate_site_labels: the same for the candidate, shape `(candidate_residues,)`.

    Returns:
        `1 - sum_j relu(c_j - sum_i q_i plan_ij) / sum_j c_j` with site labels q and c, or NaN
        when no residue of the candidate is labelled.

    Raises:
        ValueError: if the shapes disagree, the plan holds NaN, or a label lies outside [0, 1].

    Example:
        >>> label_match_score([[1.0, 0.0], [0.0, 0.5]], [1, 1], [1, 1])
        0.75
    """
    plan = as_float_array(plan)
    query = as_float_array(query_site_labels)
    candidate = as_float_array(candidate_site_labels)
    _check(plan, query, candidate)
    if candidate.sum() == 0:
        return float("nan")
    missing = np.maximum(candidate - query @ plan, 0.0)  # (candidate_residues,)
    return float(1.0 - missing.sum() / candidate.sum())


def _check(
    plan: NDArray[np.float64], query: NDArray[np.float64], candidate: NDArray[np.float64]
) -> None:
    if query.ndim != 1 or candidate.ndim != 1 or plan.shape != (query.size, candidate.size):
        raise ValueError(
            f"the plan has shape {plan.shape} but the site labels {query.shape} and "
            f"{candidate.shape}; give a plan of shape (query_residues, candidate_residues) "
            "without padding, for one pair"
        )
    if np.isnan(plan).any():
        raise ValueError("the plan holds NaN; check the embeddings it was computed from")
    for name, labels in (("query", query), ("candidate", candidate)):
        if not ((labels >= 0) & (labels <= 1)).all():
            raise ValueError(f"{name}_site_labels leave [0, 1]; give 0 or 1 for each residue")
