"""Metrics of alignments: ranking pairs, matching site labels and residues, retrieving partners.

Plain functions on numpy arrays (torch tensors are converted); none of them needs torch.
"""

from .pairs import PairMean, average_precision, f1_max, mean_over_pairs, roc_auc
from .residues import (
    ReferenceAgreement,
    compare_with_reference,
    label_mass_precision,
    label_match_score,
    symmetric_label_match_score,
)
from .retrieval import mean_reciprocal_rank, recall_at_k

__all__ = [
    "PairMean",
    "ReferenceAgreement",
    "average_precision",
    "compare_with_reference",
    "f1_max",
    "label_mass_precision",
    "label_match_score",
    "mean_over_pairs",
    "mean_reciprocal_rank",
    "recall_at_k",
    "roc_auc",
    "symmetric_label_match_score",
]
