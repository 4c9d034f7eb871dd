"""Read proteins and their labelled sites, keep their embeddings, draw pairs and batch them."""

from __future__ import annotations

from .clusters import cluster_sequences
from .collator import PairCollator
from .embedder import Embedder
from .embedding_store import EmbeddingJob, EmbeddingReport, EmbeddingStore
from .leakage import LeakageReport, leakage_report
from .pairs import ProteinPair, sample_matched_negatives, sample_matched_pairs
from .sequences import BadRecord, read_sequences
from .site_table import BadRow, SiteProtein, SiteTableReport, iter_site_rows, read_site_table
from .splits import PairSplits, iter_pairs, make_splits, pair_rows

__all__ = [
    "BadRecord",
    "BadRow",
    "Embedder",
    "EmbeddingJob",
    "EmbeddingReport",
    "EmbeddingStore",
    "LeakageReport",
    "PairCollator",
    "PairSplits",
    "ProteinPair",
    "SiteProtein",
    "SiteTableReport",
    "cluster_sequences",
    "iter_pairs",
    "iter_site_rows",
    "leakage_report",
    "make_splits",
    "pair_rows",
    "read_sequences",
    "read_site_table",
    "sample_matched_negatives",
    "sample_matched_pairs",
]
