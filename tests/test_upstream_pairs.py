"""The published sampler: the golden pairs, and what it asks of a table."""

from __future__ import annotations

import json
import random

import pytest

from plasma_hf.data import SiteProtein, make_splits, read_site_table
from plasma_hf.data.splits import sample_upstream


def make_table(sizes: dict[str, int]) -> list[SiteProtein]:
    return [
        SiteProtein(f"{family}{i}", family, "MKV", (0, 1, 1))
        for family, size in sizes.items()
        for i in range(size)
    ]


@pytest.mark.parametrize("seed", [1, 42, 100])
def test_golden_pairs(golden, seed):
    folder = golden / "pair_sampler"
    proteins, bad = read_site_table(folder / "venusx_synthetic.csv")
    assert (len(proteins), bad) == (839, [])
    expected = json.loads((folder / f"pairs_seed{seed}.json").read_text())
    splits, excluded = sample_upstream(proteins, seed, pairs=1000)
    assert excluded == expected["excluded_interpro_ids"]
    for name, pairs in splits.items():
        assert [list(pair) for pair in pairs] == expected[name]


def test_golden_family_order_is_found_without_pandas(golden):
    folder = golden / "pair_sampler"
    proteins, _ = read_site_table(folder / "venusx_synthetic.csv")
    counts = json.loads((folder / "index.json").read_text())["value_counts_order_after_filter"]
    order = [family for family, _ in counts]
    assert sample_upstream(proteins, 1, 1000, family_order=order) == sample_upstream(
        proteins, 1, 1000
    )


# Drawn by this code on CPython 3.11, where it gave the golden pairs: a guard for clones without
# these.
def test_pairs_of_a_small_table_stay():
    table = make_table({"A": 4, "B": 3, "C": 3, "D": 2, "E": 2, "F": 1})
    splits, excluded = sample_upstream(table, seed=1, pairs=8, held_out=0.4)
    assert excluded == ["C", "D"]
    assert splits["train"] == [(13, 1, 0), (4, 5, 1), (12, 13, 1), (1, 3, 1), (3, 5, 0), (2, 3, 1)]
    assert splits["test_hard"] == [(7, 9, 1), (7, 10, 0)]


def test_global_random_state_is_left_alone():
    random.seed(3)
    state = random.getstate()
    sample_upstream(make_table({name: 3 for name in "ABCD"}), 1, 8, held_out=0.5)
    assert random.getstate() == state


def test_splits_hold_the_proteins_of_the_table():
    table = make_table({name: 5 for name in "ABCDEFGHIJKLMNOPQRST"})
    splits = make_splits(table, "upstream", seed=42, pairs=200)
    assert [len(pairs) for _, pairs in splits.items()] == [150, 10, 40, 40]
    assert len(splits.held_out_families) == 2
    for _, pairs in splits.items():
        for pair in pairs:
            assert any(pair.query is protein for protein in table)
            assert (pair.query.family == pair.candidate.family) == bool(pair.label)


def test_long_proteins_are_not_drawn():
    table = make_table({name: 4 for name in "ABCDEF"})
    long = [SiteProtein(f"L{i}", "A", "M" * 1025, (1,) * 1025) for i in range(4)]
    splits = make_splits([*long, *table], "upstream", pairs=40, held_out=0.4)
    drawn = {
        side.uid for _, pairs in splits.items() for p in pairs for side in (p.query, p.candidate)
    }
    assert not any(uid.startswith("L") for uid in drawn)


def test_too_few_families_are_counted():
    with pytest.raises(ValueError, match="held-out pool has 1 families .* of 1 families and 3"):
        make_splits(make_table({"A": 3, "B": 3, "C": 3}), "upstream", pairs=4)
