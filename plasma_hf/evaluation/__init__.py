"""Evaluate aligners on held-out pairs and on residues that are known to correspond."""

from __future__ import annotations

from .aligner import AlignedPair, Aligner, pair_name, plan_of_path
from .embedding_aligners import EmbeddingAlignment, MeanCosine
from .embedding_source import EmbeddedOnce, EmbeddingSource, StoredEmbeddings
from .outcome import Outcomes, PairOutcome, pair_identities, run_aligner
from .plasma_aligner import PlasmaAligner, parameter_free, with_settings
from .report import Evaluation, Run, evaluate_splits
from .residue_truth import (
    ReferencePair,
    TruthRun,
    read_reference_pairs,
    run_residue_truth,
    truth_markdown,
)
from .sequence_aligners import Composition, Length, NeedlemanWunsch, SmithWaterman
from .sequence_alignment import align_sequences, global_identity
from .structure_aligners import Foldseek, StructureFolder, TMAlign

__all__ = [
    "AlignedPair",
    "Aligner",
    "Composition",
    "EmbeddedOnce",
    "EmbeddingAlignment",
    "EmbeddingSource",
    "Evaluation",
    "Foldseek",
    "Length",
    "MeanCosine",
    "NeedlemanWunsch",
    "Outcomes",
    "PairOutcome",
    "PlasmaAligner",
    "ReferencePair",
    "Run",
    "SmithWaterman",
    "StoredEmbeddings",
    "StructureFolder",
    "TMAlign",
    "TruthRun",
    "align_sequences",
    "evaluate_splits",
    "global_identity",
    "pair_identities",
    "pair_name",
    "parameter_free",
    "plan_of_path",
    "read_reference_pairs",
    "run_aligner",
    "run_residue_truth",
    "truth_markdown",
    "with_settings",
]
