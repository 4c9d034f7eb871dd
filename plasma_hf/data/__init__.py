"""Read tables of proteins with labelled sites, and draw pairs from them."""

from __future__ import annotations

from .pairs import (
    BadRow,
    ProteinPair,
    SiteProtein,
    read_site_table,
    sample_matched_negatives,
    sample_matched_pairs,
)

__all__ = [
    "BadRow",
    "ProteinPair",
    "SiteProtein",
    "read_site_table",
    "sample_matched_negatives",
    "sample_matched_pairs",
]
