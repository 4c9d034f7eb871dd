"""Evaluate aligners on held-out pairs and on residues that are known to correspond."""

from __future__ import annotations

from .aligners import (
    AlignedPair,
    Aligner,
    CachedEmbeddings,
    Composition,
    EmbeddingAlignment,
    EmbeddingSource,
    Foldseek,
    Length,
    MeanCosine,
    NeedlemanWunsch,
    PlasmaAligner,
    SmithWaterman,
    StoredEmbeddings,
    TMAlign,
    align_sequences,
    global_identity,
    parameter_free,
    with_settings,
)
from .report import Evaluation, truth_markdown
from .run import (
    evaluate_splits,
    pair_identities,
    pair_metrics,
    read_reference_pairs,
    run_aligner,
    run_residue_truth,
)

__all__ = [
    "AlignedPair",
    "Aligner",
    "Composition",
    "CachedEmbeddings",
    "EmbeddingAlignment",
    "EmbeddingSource",
    "Evaluation",
    "Foldseek",
    "Length",
    "MeanCosine",
    "NeedlemanWunsch",
    "PlasmaAligner",
    "SmithWaterman",
    "StoredEmbeddings",
    "TMAlign",
    "align_sequences",
    "evaluate_splits",
    "global_identity",
    "pair_identities",
    "pair_metrics",
    "parameter_free",
    "read_reference_pairs",
    "run_aligner",
    "run_residue_truth",
    "truth_markdown",
    "with_settings",
]
