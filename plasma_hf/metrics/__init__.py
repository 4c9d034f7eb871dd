"""Metrics of alignments: ranking pairs, matching site labels and residues, retrieving partners.

Plain functions on numpy arrays (torch tensors are converted); none of them needs torch. The
folders under `modules` offer some of them to `evaluate.load(folder)`.
"""

from __future__ import annotations

from .pairs import PairMean, average_precision, f1_max, mean_over_pairs, roc_auc
from .residues import (
    ResidueTruth,
    label_mass_precision,
    label_match_score,
    residue_truth,
    symmetric_label_match_score,
)
from .retrieval import mean_reciprocal_rank, recall_at_k

__all__ = [
    "PairMean",
    "ResidueTruth",
    "average_precision",
    "f1_max",
    "label_mass_precision",
    "label_match_score",
    "mean_over_pairs",
    "mean_reciprocal_rank",
    "recall_at_k",
    "residue_truth",
    "roc_auc",
    "symmetric_label_match_score",
]
