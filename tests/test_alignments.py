"""Reference alignments."""

import gzip
import json
from pathlib import Path

import pytest

from plasma_hf.evaluation.run import read_reference_alignments

SHARED = Path(__file__).parents[2] / "shared" / "data"
RECORDS = [
    {"set": "S1", "seq_a": "mkv", "seq_b": "KV", "pairs": [[1, 0], [2, 1]], "core_pairs": [[2, 1]]},
    {"set": "S2", "seq_a": "MKV", "seq_b": "KV", "pairs": [], "core_pairs": None},
]


def test_pairs_take_the_core_where_it_is_known(tmp_path):
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORDS).encode()))
    core, empty = read_reference_alignments(path)
    assert (core.query, core.pairs.tolist()) == ("MKV", [[2, 1]])
    assert empty.pairs.shape == (0, 2) and empty.identity == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("{}", "give a list of records"),
        ('[{"seq_a": "MK"}]', "seq_b"),
        ('[{"seq_a": "MK", "seq_b": "MK", "pairs": [[0, 2]]}]', "record 1: a pair lies outside"),
        ('[{"seq_a": "MK", "seq_b": "MK", "pairs": [[-1, 0]]}]', "record 1: a pair lies outside"),
    ],
)
def test_no_records(tmp_path, text, said):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_reference_alignments(tmp_path / "bad.json")


def test_the_shared_alignments():
    path = SHARED / "alignments" / "balifam_balibase3_ref.json.gz"
    if not path.exists():
        pytest.skip("the alignments (../shared/data) are not beside this clone")
    pairs = read_reference_alignments(path)
    assert len(pairs) == 397 and all(0 <= pair.identity <= 1 for pair in pairs)
