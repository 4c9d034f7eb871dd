"""The strict protocol keeps its promises on tables of all shapes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plasma_hf.data import PairSplits, SiteProtein, leakage_report, make_splits, read_site_table

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def make_table(n_families: int, size: int, shared: float, seed: int) -> list[SiteProtein]:
    """Make families whose proteins are alike in twos; some are in a second family too."""
    rng = np.random.default_rng(seed)
    rows = []
    for family in range(n_families):
        for member in range(size):
            if member % 2 == 0:
                length = 60 + int(rng.integers(30))
                sequence = "".join(rng.choice(LETTERS, length))
            else:
                sequence = "AC" + sequence[1:]
            labels = (1,) * 3 + (0,) * (len(sequence) - 3)
            uid = f"P{family:02d}{member:02d}"
            rows.append(SiteProtein(uid, f"F{family:02d}", sequence, labels))
            if rng.random() < shared:
                other = f"F{int(rng.integers(n_families)):02d}"
                if other != rows[-1].family:
                    rows.append(SiteProtein(uid, other, sequence, labels))
    return rows


def check_promises(splits: PairSplits, table: list[SiteProtein]) -> None:
    report = leakage_report(splits, table, method="kmers")
    for overlap in report.overlaps:
        assert (overlap.proteins, overlap.sequences, overlap.pairs) == (0, 0, 0)
        if "test_hard" in overlap.splits:
            assert overlap.families == 0
    for counts in report.splits:
        assert counts.duplicates == counts.negatives_of_one_family == 0
        assert counts.positives == counts.negatives > 0
    assert all(near.highest < 0.5 for near in report.nearest)
    held_out = set(splits.held_out_families)
    families: dict[str, set[str]] = {}
    for protein in table:
        families.setdefault(protein.uid, set()).add(protein.family)
    for name, pairs in splits.items():
        for side in (side for pair in pairs for side in (pair.query, pair.candidate)):
            if name == "test_hard":
                assert side.family in held_out
            else:
                assert not families[side.uid] & held_out


@given(
    n_families=st.integers(10, 16),
    size=st.integers(4, 8),
    shared=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_promises(n_families, size, shared, seed):
    table = make_table(n_families, size, shared, seed)
    try:
        splits = make_splits(table, seed=seed, held_out=0.2, fractions=(0.5, 0.2))
    except ValueError as error:
        assert "positive and" in str(error)  # too little for a split: said with the counts
        return
    check_promises(splits, table)


def test_promises_are_not_kept_by_refusing():
    table = make_table(16, 8, 0.05, seed=1)
    splits = make_splits(table, seed=1, held_out=0.2, fractions=(0.5, 0.2))
    check_promises(splits, table)
    assert splits.clusters_by in ("kmers", "mmseqs")
    # Families of the tests of interpolation are in training too.
    overlap = leakage_report(splits, method="kmers").overlaps[1]
    assert overlap.splits == ("train", "test") and overlap.families > 0


def test_pairs_depend_on_the_seed_alone():
    table = make_table(12, 6, 0.0, seed=2)
    options = {"held_out": 0.2, "fractions": (0.5, 0.2)}
    assert make_splits(table, seed=5, **options) == make_splits(table[::-1], seed=5, **options)
    assert make_splits(table, seed=5, **options) != make_splits(table, seed=6, **options)


def test_asked_number_of_pairs():
    table = make_table(16, 8, 0.0, seed=3)
    splits = make_splits(table, pairs=40, held_out=0.2, fractions=(0.5, 0.2))
    assert [len(pairs) for _, pairs in splits.items()] == [20, 8, 12, 12]


def test_lengths_say_nothing():
    table = make_table(16, 8, 0.0, seed=4)
    counts = leakage_report(make_splits(table, held_out=0.2, fractions=(0.5, 0.2))).splits[0]
    assert abs(counts.length_gap[0] - counts.length_gap[1]) < 0.03


def test_equal_sequences_of_a_family_are_one_protein():
    table = make_table(12, 6, 0.0, seed=6)
    copies = [SiteProtein(f"{p.uid}copy", p.family, p.sequence, p.site_labels) for p in table]
    splits = make_splits([*table, *copies], held_out=0.2, fractions=(0.5, 0.2))
    for _, pairs in splits.items():
        assert all(pair.query.sequence != pair.candidate.sequence for pair in pairs)


@pytest.mark.parametrize(
    ("n_families", "options", "message"),
    [
        (3, {}, "3 families have two proteins or more, of 3 families and 12 proteins"),
        (12, {"pairs": 4000}, r"\w+ has \d+ proteins of \d+ families, \d+ of which form \d+ posit"),
        (12, {"held_out": 0.9}, "12 families have two proteins or more"),
        (12, {"held_out": 1.5}, "held_out is 1.5"),
        (12, {"fractions": (0.9, 0.2)}, "fractions"),
        (12, {"pairs": 1}, "pairs is 1"),
        (12, {"protocol": "loose"}, "give 'strict' or 'upstream'"),
    ],
)
def test_what_cannot_be_drawn_is_said_with_counts(n_families, options, message):
    with pytest.raises(ValueError, match=message):
        make_splits(make_table(n_families, 4, 0.0, seed=7), **options)


def test_real_table(full_golden, caplog):
    sites = full_golden.parent / "sites" / "binding_site.csv"
    proteins, bad = read_site_table(sites)
    assert bad == []
    with caplog.at_level(logging.INFO):
        splits = make_splits(proteins, seed=1)
    assert "clusters, by" in caplog.text
    check_promises(splits, proteins)
