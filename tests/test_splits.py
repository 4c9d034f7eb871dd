"""Splits of pairs as rows, epoch by epoch."""

from __future__ import annotations

from plasma_hf.data import ProteinPair, SiteProtein, pair_rows

PROTEINS = [SiteProtein(f"P{i}", "F", "MKV", (0, 1, 1)) for i in range(8)]
PAIRS = [ProteinPair(one, other, 1) for one, other in zip(PROTEINS, PROTEINS[1:], strict=False)]


def test_epochs_have_orders_of_their_own():
    def order(**options):
        return [row["query_uid"] for row in pair_rows(PAIRS, **options)]

    everyone = [pair.query.uid for pair in PAIRS]
    first = order(seed=1, epoch=0)
    assert first != order(seed=1, epoch=1)
    assert first == order(seed=1, epoch=0)
    assert sorted(first) == sorted(order(seed=1, epoch=1)) == everyone
    assert order() == everyone


def test_rows_are_made_one_at_a_time():
    seen = []

    class Watched(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    rows = pair_rows(Watched(PAIRS), seed=1)
    assert seen == []
    row = next(rows)
    assert len(seen) == 1
    assert row["query"] == "MKV" and row["candidate_site_labels"] == [0, 1, 1]
    assert (row["label"], row["family"]) == (1, "F")


def test_rows_stream_into_datasets():
    import datasets

    stream = datasets.IterableDataset.from_generator(pair_rows, gen_kwargs={"pairs": PAIRS})
    assert [row["query_uid"] for row in stream] == [pair.query.uid for pair in PAIRS]
