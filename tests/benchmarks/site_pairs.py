"""Pairs of proteins with sites, for the choice of settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from pathlib import Path

from plasma_hf.data import (
    ProteinPair,
    SiteProtein,
    read_site_table,
    sample_matched_negatives,
    sample_matched_pairs,
)
from plasma_hf.evaluation import align_sequences as align
from plasma_hf.evaluation.aligners import Per, identity

SITES = Path(__file__).parents[3] / "shared" / "data" / "sites"
ACTIVE_SITES = SITES / "active_site.csv"
LOW_IDENTITY = 0.20
# Positives drawn in search of enough low ones, as a multiple of those asked for.
POOL = 40
# "Gap 11/1" is read in two ways: opening pays for the first residue of the gap, so that k
# residues cost 11 + (k - 1) (EMBOSS), or comes on top of it, 11 + k (BLAST).
GAP_OPEN = {"smith_waterman": 11, "smith_waterman_blast": 12}


def load_pairs(
    seed: int,
    n_positive: int = 600,
    n_negative: int = 600,
    path: Path = ACTIVE_SITES,
    n_low: int = 0,
    per: Per = "shorter",
) -> list[ProteinPair]:
    """Draw the pairs of the benchmark from a table of sites.

    Args:
        seed: seed of the draw.
        n_positive: pairs of one family.
        n_negative: pairs of different families, matched to the positives in length.
        path: VenusX-style table.
        n_low: how many of the positives must be under 20 % identity; 0 takes them as they come,
            which leaves about one in fifty (per shorter protein) or one in eight (per column).
        per: what identical residues are divided by, see `identity`.

    Returns:
        The positives, then the negatives.

    Raises:
        ValueError: if the table holds rows that are wrong, since leaving them out would change
            the draw, or too few positives of low identity.
    """
    proteins, bad_rows = read_site_table(path)
    if bad_rows:
        raise ValueError(f"{path} holds {len(bad_rows)} bad rows, the first {bad_rows[0]}; mend it")
    if not n_low:
        return sample_matched_pairs(proteins, n_positive, n_negative, seed)
    positives = _split_positives(proteins, n_positive, n_low, seed, per)
    return positives + sample_matched_negatives(proteins, positives, n_negative, seed)


def _split_positives(
    proteins: Sequence[SiteProtein], n_positive: int, n_low: int, seed: int, per: Per
) -> list[ProteinPair]:
    sizes = Counter(protein.family for protein in proteins)
    pool_size = min(POOL * n_positive, sum(comb(size, 2) for size in sizes.values()))
    wanted = {True: n_low, False: n_positive - n_low}
    positives = []
    for pair in sample_matched_pairs(proteins, pool_size, 0, seed):
        query, candidate = pair.query.sequence, pair.candidate.sequence
        low = identity(query, candidate, align(query, candidate, "global")[1], per) < LOW_IDENTITY
        if wanted[low]:
            wanted[low] -= 1
            positives.append(pair)
        if not any(wanted.values()):
            return positives
    raise ValueError(f"{pool_size} draws lack {wanted[True]} positives of low identity; ask fewer")
