"""Read proteins and their labelled sites, keep their embeddings, draw pairs and batch them."""

from __future__ import annotations

from .collator import PairCollator
from .embedder import Embedder
from .embedding_store import EmbeddingJob, EmbeddingReport, EmbeddingStore
from .pairs import (
    BadRow,
    ProteinPair,
    SiteProtein,
    read_site_table,
    sample_matched_negatives,
    sample_matched_pairs,
)
from .sequences import BadRecord, read_sequences

__all__ = [
    "BadRecord",
    "BadRow",
    "Embedder",
    "EmbeddingJob",
    "EmbeddingReport",
    "EmbeddingStore",
    "PairCollator",
    "ProteinPair",
    "SiteProtein",
    "read_sequences",
    "read_site_table",
    "sample_matched_negatives",
    "sample_matched_pairs",
]
