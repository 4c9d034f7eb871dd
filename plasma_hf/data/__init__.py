"""Read proteins, sites and structures, keep embeddings, draw pairs and batch them."""

from ..io.sequences import read_sequences
from ..io.structures import StructurePair, pair_of, pair_to_row, read_structure_folder, row_to_pair
from ..models.protein import InvalidRecord, Structure, read_structure, read_structures
from .clusters import ClusterSplit, cluster_sequences, split_by_cluster
from .collator import PairCollator
from .leakage import LeakageReport, leakage_report
from .pairs import ProteinPair, sample_matched_negatives, sample_matched_pairs
from .sites import InvalidRow, SiteProtein, SiteTableReport, iter_site_rows, read_site_table
from .splits import PairSplits, make_splits, pair_rows
from .store import Embedder, EmbeddingJob, EmbeddingReport, EmbeddingStore

__all__ = [
    "ClusterSplit",
    "Embedder",
    "EmbeddingJob",
    "EmbeddingReport",
    "EmbeddingStore",
    "InvalidRecord",
    "InvalidRow",
    "LeakageReport",
    "PairCollator",
    "PairSplits",
    "ProteinPair",
    "SiteProtein",
    "SiteTableReport",
    "Structure",
    "StructurePair",
    "cluster_sequences",
    "iter_site_rows",
    "leakage_report",
    "make_splits",
    "pair_of",
    "pair_rows",
    "pair_to_row",
    "read_sequences",
    "read_site_table",
    "read_structure",
    "read_structure_folder",
    "read_structures",
    "row_to_pair",
    "sample_matched_negatives",
    "sample_matched_pairs",
    "split_by_cluster",
]
