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


CERTAIN = {"bits": 85.23, "p_value": 3.14e-20}
COUNTED = CERTAIN | {"evalue": 3.14e-18}
UNKNOWN = {"bits": None, "p_value": None}


def significant(about: dict[str, Any], **others: Any) -> AlignedPair:
    """Return a pair of which the result and its segment say the same of chance."""
    pair = tiny_pair()
    segments = [segment | about for segment in pair.result["segments"]]
    result = {**pair.result, "segments": segments} | about | others
    return AlignedPair(pair.query, pair.candidate, result)


@pytest.mark.parametrize(("about", "chance"), [(CERTAIN, "p 3.1e-20"), (COUNTED, "E 3.1e-18")])
def test_text_says_how_likely_chance_is(about: dict[str, Any], chance: str) -> None:
    text = to_text(significant(about))
    assert f"score      0.5000  bits 85.2  {chance}\n" in text
    assert f"score 0.5444  bits 85.2  {chance}  pairs 6" in text
    assert "p < 1e-300\n" in to_text(significant(CERTAIN | {"p_value": 0.0}))


def test_text_says_why_there_is_no_segment() -> None:
    def last(about: dict[str, Any]) -> str:
        return to_text(significant(about, segments=[])).splitlines()[-1]

    assert last({"bits": 6.1, "p_value": 0.412}) == "no significant alignment (p 0.41)"
    assert last(COUNTED | {"evalue": 41.2}) == "no significant alignment (E 41)"
    # It is significant, and some option leaves too few pairs of it.
    assert last(COUNTED).startswith("no segment: no stretch")


def test_text_says_that_significance_is_unknown() -> None:
    for about in (UNKNOWN, UNKNOWN | {"evalue": None}):
        text = to_text(significant(about))
        assert "score      0.5000\nsignificance unknown: run plasma-hf calibrate\n" in text
        assert "bits" not in text


def test_tables_and_json_hold_what_is_known_of_chance() -> None:
    names = ("bits", "p_value", "evalue")
    for about, want in (
        (COUNTED, (85.23, 3.14e-20, 3.14e-18)),
        (CERTAIN, (85.23, 3.14e-20, None)),
        (UNKNOWN, (None, None, None)),
        ({}, (None, None, None)),  # of a head that reads plans
    ):
        pair = significant(about)
        [row] = read_tsv([pair])
        for prefix in ("", "segment_"):
            read = [row[prefix + name] for name in names]
            assert [float(value) if value else None for value in read] == list(want)
        result = json.loads(to_json(pair))
        assert tuple(result[name] for name in names) == want
        assert tuple(result["segments"][0][name] for name in names) == want


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
    unknown = {"bits": None, "p_value": None, "evalue": None}
    pairs = [list(pair) for pair in segment["pairs"]]
    assert read["segments"] == [{**segment, **unknown, "pairs": pairs}]
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
