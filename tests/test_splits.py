"""Pairs as rows."""

from __future__ import annotations

from plasma_hf.data import ProteinPair, SiteProtein, pair_rows

PROTEINS = [SiteProtein(f"P{i}", "F", "MKV", (0, 1, 1)) for i in range(8)]
PAIRS = [ProteinPair(one, other, 1) for one, other in zip(PROTEINS, PROTEINS[1:], strict=False)]


def test_a_row_has_both_sides():
    row = next(pair_rows(PAIRS))
    assert row["query"] == "MKV" and row["candidate_site_labels"] == [0, 1, 1]
    assert (row["label"], row["family"]) == (1, "F")


def test_rows_stream_into_datasets():
    import datasets

    stream = datasets.IterableDataset.from_generator(pair_rows, gen_kwargs={"pairs": PAIRS})
    assert [row["query_uid"] for row in stream] == [pair.query.uid for pair in PAIRS]
