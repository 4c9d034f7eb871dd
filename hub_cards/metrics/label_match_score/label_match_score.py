"""`evaluate` module over the label match scores of `plasma_hf.metrics`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from plasma_hf.metrics.pairs import mean_over_pairs
from plasma_hf.metrics.residues import (
    label_mass_precision,
    label_match_score,
    symmetric_label_match_score,
)

DESCRIPTION = "How much of the site of one protein an alignment plan finds in the other."
INPUTS = """
Give positive pairs only, one protein pair per item:
Args:
    plans: alignment weights, (query_residues, candidate_residues).
    query_site_labels: 1 inside the site, 0 outside, (query_residues,).
    candidate_site_labels: the same for the candidate.
Returns:
    label_match_score (of the candidate's site), symmetric_label_match_score (of both),
    label_mass_precision, and pairs. A pair without a labelled residue is an error.
"""
METRICS = (label_match_score, symmetric_label_match_score, label_mass_precision)


class LabelMatchScore(evaluate.Metric):
    """Compute mean label match scores over positive pairs.

    Example:
        >>> site = {"query_site_labels": [[1, 1]], "candidate_site_labels": [[1, 1]]}
        >>> found = LabelMatchScore().compute(plans=[[[1.0, 0.0], [0.0, 0.5]]], **site)
        >>> found["label_match_score"], found["pairs"]
        (0.75, 1)
    """

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Value("int64"))
        features = {
            "plans": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
            "query_site_labels": labels,
            "candidate_site_labels": labels,
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self, plans: Any, query_site_labels: Any, candidate_site_labels: Any
    ) -> dict[str, float]:
        pairs = list(zip(plans, query_site_labels, candidate_site_labels, strict=True))
        means = {
            metric.__name__: mean_over_pairs([metric(*pair) for pair in pairs]).mean
            for metric in METRICS
        }
        return means | {"pairs": len(pairs)}
