"""Text, TSV and JSON of alignments, read back and against a snapshot."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plasma_hf.io.formats import FIELDS, FORMATS, LEGEND, AlignedPair, columns, to_json, to_text
from plasma_hf.models.pipeline_protein_alignment import describe_segment
from plasma_hf.models.protein import Protein

# Between pairs: one residue of the query alone (S), then two beside one (GG, W), then two of the
# candidate alone (LL).
PAIRS = [(1, 0, 1.0), (2, 1, 0.95), (4, 2, 0.8), (5, 3, 0.9), (8, 5, 0.7), (9, 8, 0.55)]


def tiny_pair(pairs: list[tuple[int, int, float]] = PAIRS) -> AlignedPair:
    segments = [describe_segment(pairs)] if pairs else []
    query, candidate = Protein("first", "MACSDEGGHK"), Protein("second|x", "ACDQWHLLRV")
    return AlignedPair(query, candidate, {"score": 0.5, "segments": segments})


SNAPSHOT = """
query      first     10 residues
candidate  second|x  10 residues
score      0.5000

segment 1  query 2-10  candidate 1-9  score 0.5444  pairs 6  identity 0.667

query      2 ACSDEGGH--K 10
             || :|  :  .
candidate  1 AC-DQW-HLLR  9

"""


def test_text_is_as_it_was() -> None:
    pair = tiny_pair()
    assert to_text(pair) == SNAPSHOT
    assert FORMATS["text"].head == LEGEND


def test_text_numbers_blocks() -> None:
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 7
    pairs = [(i, i + 3, 1.0) for i in range(3, 137)]
    proteins = Protein("a", sequence), Protein("b", "MMM" + sequence)
    text = to_text(AlignedPair(*proteins, {"score": 1.0, "segments": [describe_segment(pairs)]}))
    rows = [line.split() for line in text.splitlines() if line.startswith(("query ", "candidate "))]
    numbers = [(int(row[1]), int(row[3])) for row in rows[2:]]
    assert numbers == [(4, 63), (7, 66), (64, 123), (67, 126), (124, 137), (127, 140)]
    assert rows[2][2] == sequence[3:63] == rows[3][2]


def test_text_leaves_out_numbers_of_a_row_without_residues() -> None:
    pairs = [(0, 0, 1.0), (1, 200, 1.0)]
    proteins = Protein("a", "MK"), Protein("b", "M" * 199 + "LK")
    text = to_text(AlignedPair(*proteins, {"score": 1.0, "segments": [describe_segment(pairs)]}))
    assert f"query         {'-' * 60}\n" in text


def test_no_segment_is_one_plain_line() -> None:
    pair = tiny_pair([])
    assert to_text(pair).splitlines()[-1].startswith("no segment")
    [row] = read_tsv([pair])
    assert (row["query"], row["candidate"], row["score"]) == ("first", "second|x", "0.500000")
    assert not any(row[name] for name in list(FIELDS)[3:])


def read_tsv(pairs: list[AlignedPair]) -> list[dict[str, Any]]:
    text = FORMATS["tsv"].head + "".join(map(FORMATS["tsv"].render, pairs))
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def test_tsv_counts_from_one() -> None:
    [row] = read_tsv([tiny_pair()])
    assert list(row) == list(FIELDS)
    ranges = [name for name in FIELDS if name.endswith(("_start", "_end"))]
    assert [row[name] for name in ranges] == ["2", "10", "1", "9"]
    assert (row["segment"], row["pairs"], row["identity"]) == ("1", "6", "0.6667")
    spelled = [pair.split(":") for pair in row["residue_pairs"].split(",")]
    assert [(int(i) - 1, int(j) - 1, float(w)) for i, j, w in spelled] == PAIRS


def test_tsv_survives_odd_ids() -> None:
    pair = tiny_pair()
    odd = AlignedPair(Protein('a\t"b"', pair.letters[0]), pair.candidate, pair.result)
    [row] = read_tsv([odd])
    assert row["query"] == 'a\t"b"'


def test_json_keeps_the_result() -> None:
    pair = tiny_pair()
    with_plan = AlignedPair(
        pair.query, pair.candidate, {**pair.result, "plan": torch.zeros(10, 10)}
    )
    line = to_json(with_plan)
    assert line.count("\n") == 1
    read = json.loads(line)
    assert (read["query"], read["candidate_length"]) == ("first", 10)
    segment = pair.result["segments"][0]
    assert read["segments"] == [{**segment, "pairs": [list(pair) for pair in segment["pairs"]]}]
    assert "plan" not in read


steps = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=20)


@given(steps)
def test_columns_hold_every_residue_once_and_in_order(steps: list[tuple[int, int]]) -> None:
    pairs, i, j = [], 0, 0
    for down, across in steps:
        i, j = i + down, j + across
        pairs.append((i, j, 0.75))
    laid_out = list(columns(pairs))
    assert [c for c in laid_out if c[2] is not None] == pairs
    for side in (0, 1):
        indices = [c[side] for c in laid_out if c[side] is not None]
        assert indices == list(range(pairs[0][side], pairs[-1][side] + 1))
    assert all(c[0] is not None or c[1] is not None for c in laid_out)


def test_pair_says_what_cannot_be_written() -> None:
    good = Protein("good", "MKV")
    with pytest.raises(ValueError, match="'bare' has residue embeddings and no sequence"):
        AlignedPair(good, Protein("bare", embeddings=torch.zeros(3, 2)), {})
    with pytest.raises(ValueError, match="no alignment: candidate is empty"):
        AlignedPair(good, good, {"error": "candidate is empty"})
