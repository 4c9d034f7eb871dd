"""Reading of site tables and drawing of pairs, on a small made-up table."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from plasma_hf.data import (
    ProteinPair,
    SiteProtein,
    read_site_table,
    sample_matched_negatives,
    sample_matched_pairs,
)

HEADER = ("uid", "interpro_id", "seq_full", "label")


def write_table(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def make_proteins(sizes: dict[str, int], seed: int = 0) -> list[SiteProtein]:
    """Make families of the given sizes; the members of a family are of like length."""
    rng = np.random.default_rng(seed)
    proteins = []
    for number, (family, size) in enumerate(sizes.items()):
        for member in range(size):
            length = 60 + 5 * number + int(rng.integers(4))
            sequence = "".join(rng.choice(list("ACDEFGHIKL"), length))
            labels = tuple(int(i in (3, 4)) for i in range(length))
            proteins.append(SiteProtein(f"{family}{member}", family, sequence, labels))
    return proteins


@pytest.fixture
def proteins() -> list[SiteProtein]:
    return make_proteins({"A": 40, "B": 4, "C": 3, "D": 3, "E": 2, "F": 1, "G": 6, "H": 5})


def lengths(pair: ProteinPair) -> tuple[int, int]:
    return len(pair.query.sequence), len(pair.candidate.sequence)


def test_reader_keeps_good_rows_in_order(tmp_path: Path) -> None:
    rows = [("P2", "F1", "MKVX", "[0, 1, 1, 0]"), ("P1", "F1", "MKU", "[0,0,0]")]
    proteins, invalid_rows = read_site_table(write_table(tmp_path / "sites.csv", rows))
    assert proteins == [
        SiteProtein("P2", "F1", "MKVX", (0, 1, 1, 0)),
        SiteProtein("P1", "F1", "MKU", (0, 0, 0)),
    ]
    assert invalid_rows == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("P", "F", "MKV", "[0, 1]"), "label holds 2 values for 3 residues"),
        (("P", "F", "MK-v", "[0, 1, 0, 0]"), "seq_full has the character '-' at position 3"),
        (("P", "F", "MKV", "[0, 1, 2]"), "not a list of 0 and 1"),
        (("P", "F", "MKV", "7"), "not a list of 0 and 1"),
        (("P", "F", "MKV", "[0, 1, 0"), "not JSON"),
        (("", "F", "MKV", "[0, 1, 0]"), "nothing in uid"),
        (("P", "F", "", "[]"), "nothing in seq_full"),
        (("good", "F", "MKV", "[0, 1, 0]"), "repeats the uid"),
    ],
)
def test_reader_reports_invalid_rows(
    tmp_path: Path, row: tuple[str, str, str, str], reason: str
) -> None:
    good = ("good", "F", "MKV", "[0, 1, 0]")
    proteins, invalid_rows = read_site_table(write_table(tmp_path / "sites.csv", [good, row]))
    assert [protein.uid for protein in proteins] == ["good"]
    assert [(one.row, one.uid) for one in invalid_rows] == [(2, row[0])]
    assert reason in invalid_rows[0].reason


def test_reader_reports_a_row_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    path.write_text("uid,interpro_id,seq_full,label\nP1,F\n")
    proteins, invalid_rows = read_site_table(path)
    assert proteins == []
    assert invalid_rows[0].reason == "nothing in seq_full, label"


def test_reader_names_missing_columns(tmp_path: Path) -> None:
    path = tmp_path / "sites.csv"
    path.write_text("pdb_id,interpro_id,seq_full\n1abc,F,MKV\n")
    with pytest.raises(ValueError, match="no column uid, label"):
        read_site_table(path)


def test_pairs_carry_the_label_of_their_families(proteins: list[SiteProtein]) -> None:
    pairs = sample_matched_pairs(proteins, n_positive=20, n_negative=30, seed=1)
    assert [pair.label for pair in pairs] == [1] * 20 + [0] * 30
    for pair in pairs:
        assert pair.query.uid != pair.candidate.uid
        assert (pair.query.family == pair.candidate.family) == bool(pair.label)


def test_pairs_are_drawn_once(proteins: list[SiteProtein]) -> None:
    pairs = sample_matched_pairs(proteins, n_positive=60, n_negative=60, seed=1)
    assert len({frozenset((pair.query.uid, pair.candidate.uid)) for pair in pairs}) == 120


def test_every_pair_of_a_table_can_be_drawn() -> None:
    small = make_proteins({"A": 3, "B": 2})
    pairs = sample_matched_pairs(small, n_positive=4, n_negative=6, seed=3)
    assert len({frozenset((pair.query.uid, pair.candidate.uid)) for pair in pairs}) == 10


def test_large_families_do_not_dominate() -> None:
    families = {"A": 200} | {name: 12 for name in "BCDEFGHIJ"}
    pairs = sample_matched_pairs(make_proteins(families), 300, 0, seed=0)
    counts = Counter(pair.query.family for pair in pairs)
    # Drawn by pairs instead, family A would take 97 % of them.
    assert set(counts) == set(families)
    assert 15 <= counts["A"] <= 45


def test_negatives_copy_the_lengths_of_the_positives(proteins: list[SiteProtein]) -> None:
    pairs = sample_matched_pairs(proteins, n_positive=30, n_negative=45, seed=2)
    positives, negatives = pairs[:30], pairs[30:]
    for i, negative in enumerate(negatives):
        want = np.array(lengths(positives[i % 30]))
        assert (np.abs(np.array(lengths(negative)) - want) <= np.ceil(0.05 * want)).all()


def test_negatives_can_be_drawn_for_chosen_positives(proteins: list[SiteProtein]) -> None:
    chosen = [pair for pair in sample_matched_pairs(proteins, 40, 0, seed=2) if "A0" in repr(pair)]
    negatives = sample_matched_negatives(proteins[::-1], chosen, len(chosen), seed=0)
    assert negatives == sample_matched_negatives(proteins, chosen, len(chosen), seed=0)
    for positive, negative in zip(chosen, negatives, strict=True):
        assert negative.label == 0
        assert np.allclose(lengths(negative), lengths(positive), rtol=0.05)


def test_the_nearest_partner_serves_when_none_is_near() -> None:
    short = SiteProtein("S0", "S", "M" * 20, (1,) * 20)
    proteins = [*make_proteins({"L": 3}), short]
    pairs = sample_matched_pairs(proteins, n_positive=1, n_negative=1, seed=0)
    assert "S0" in (pairs[1].query.uid, pairs[1].candidate.uid)


def test_proteins_that_share_any_family_are_no_negatives() -> None:
    twins = [SiteProtein(f"T{i}", family, "MKVL", (1, 0, 0, 0)) for i in (0, 1) for family in "AB"]
    other = SiteProtein("O", "C", "MKVL", (1, 0, 0, 0))
    pairs = sample_matched_pairs([*twins, other], n_positive=2, n_negative=2, seed=0)
    for pair in pairs[2:]:
        assert "O" in (pair.query.uid, pair.candidate.uid)


def test_pairs_depend_on_the_seed_alone(proteins: list[SiteProtein]) -> None:
    first = sample_matched_pairs(proteins, 10, 10, seed=5)
    assert sample_matched_pairs(proteins[::-1], 10, 10, seed=5) == first
    assert sample_matched_pairs(proteins, 10, 10, seed=6) != first


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "message"),
    [
        (-1, 0, "n_positive is -1"),
        (0, 3, "at least one positive"),
        (9, 0, "form 4 pairs within families"),
        (1, 7, "no unused pair of different families"),
    ],
)
def test_sampler_refuses_what_it_cannot_draw(
    n_positive: int, n_negative: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample_matched_pairs(make_proteins({"A": 3, "B": 2}), n_positive, n_negative, seed=0)


def test_sampler_refuses_a_protein_given_twice(proteins: list[SiteProtein]) -> None:
    with pytest.raises(ValueError, match="given twice"):
        sample_matched_pairs([*proteins, proteins[0]], 1, 1, seed=0)
