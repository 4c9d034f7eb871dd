"""Metrics of alignments: ranking pairs, matching site labels, retrieving partners.

Plain functions on numpy arrays (torch tensors are converted); none of them needs torch.
"""

from __future__ import annotations

from .binary import average_precision, f1_max, roc_auc
from .label_match import label_match_score
from .retrieval import mean_reciprocal_rank, recall_at_k

__all__ = [
    "average_precision",
    "f1_max",
    "label_match_score",
    "mean_reciprocal_rank",
    "recall_at_k",
    "roc_auc",
]
