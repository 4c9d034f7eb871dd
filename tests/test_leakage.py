"""The leakage report, on splits whose leaks are known."""

from __future__ import annotations

import json

from plasma_hf.data import PairSplits, ProteinPair, SiteProtein, leakage_report

A1 = SiteProtein("A1", "A", "MKVLAWQERTYHGFDSPNIC", (1,) * 20)
A2 = SiteProtein("A2", "A", "MKVLAWQERTYHGFDSPNICA", (1,) * 21)
A1_AS_B = SiteProtein("A1", "B", A1.sequence, (1,) * 20)
B1 = SiteProtein("B1", "B", "WYTRHNMQDCEKPVLFGAIS", (1,) * 20)
C1 = SiteProtein("C1", "C", "GGGGAAAASSSSTTTTLLLL", (1,) * 20)
COPY = SiteProtein("D1", "D", C1.sequence, (1,) * 20)


def make_report(table=None):
    splits = PairSplits(
        train=[ProteinPair(A1, A2, 1), ProteinPair(A2, A1, 1), ProteinPair(A1, C1, 0)],
        validation=[],
        test=[ProteinPair(A2, A1, 1), ProteinPair(A1, B1, 0), ProteinPair(A1_AS_B, B1, 1)],
        test_hard=[ProteinPair(COPY, B1, 0)],
        protocol="upstream",
        seed=1,
    )
    return leakage_report(splits, table, method="kmers")


def test_counts_of_each_split():
    train, validation, test, hard = make_report().splits
    assert (train.pairs, train.positives, train.negatives, train.duplicates) == (3, 2, 1, 1)
    assert (train.proteins, train.families) == (3, 2)
    assert (validation.pairs, validation.length_gap) == (0, (0.0, 0.0))
    # A1 and B1 are a negative although both are in B, as another pair shows.
    assert (test.negatives_of_one_family, test.duplicates) == (1, 1)
    assert hard.negatives_of_one_family == 0


def test_families_of_the_whole_table_count():
    table = [COPY, SiteProtein("D1", "B", COPY.sequence, COPY.site_labels)]
    assert make_report(table).splits[3].negatives_of_one_family == 1


def test_overlaps():
    overlaps = {overlap.splits: overlap for overlap in make_report().overlaps}
    assert len(overlaps) == 6
    common = overlaps["train", "test"]
    assert (common.proteins, common.sequences, common.pairs, common.families) == (2, 2, 1, 1)
    # An equal sequence under another name is no shared protein, but a shared sequence.
    common = overlaps["train", "test_hard"]
    assert (common.proteins, common.sequences, common.pairs, common.families) == (0, 1, 0, 0)


def test_nearest_identity():
    nearest = {near.split: near for near in make_report().nearest}
    assert nearest["test"].counts == (1, 0, 0, 0, 2)
    assert (nearest["test"].highest, nearest["test"].median) == (1.0, 1.0)
    assert nearest["validation"].counts == (0,) * 5


def test_report_as_markdown_and_json():
    report = make_report()
    text = report.to_markdown()
    assert "| train | 3 | 2 | 1 | 3 | 2 | 1 | 0 | 0.048 | 0.000 |" in text
    assert "| train and test | 2 | 2 | 1 | 1 |" in text
    assert "nearest training protein, by kmers" in text
    assert json.loads(json.dumps(report.to_dict()))["overlaps"][1]["proteins"] == 2
