"""Reference alignments."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from plasma_hf.data.alignments import read_reference_alignments
from reproduce.encoder import FamilyAlignment, read_alignments, read_family_alignment

SHARED = Path(__file__).parents[2] / "shared" / "data"
FASTA = ">a/5-8\nMK-V.a\n>b/1-3\nM-LVkA\n"
RECORDS = [
    {"set": "S1", "seq_a": "mkv", "seq_b": "KV", "pairs": [[1, 0], [2, 1]], "core_pairs": [[2, 1]]},
    {"set": "S2", "seq_a": "MKV", "seq_b": "KV", "pairs": [], "core_pairs": None},
]


def test_a_family(tmp_path):
    (tmp_path / "PF1.align.80").write_text(FASTA)
    family = read_family_alignment(tmp_path / "PF1.align.80")
    assert family == FamilyAlignment("PF1", ("MK-V.a", "M-LVkA"))
    pair = family.pair(0, 1)
    # The last column pairs with an insertion, which corresponds to nothing.
    assert (pair.query, pair.candidate, pair.name) == ("MKVA", "MLVKA", "PF1")
    assert pair.pairs.tolist() == [[0, 0], [2, 2]]
    assert family.pair(1, 0).pairs.tolist() == [[0, 0], [2, 2]]
    assert pair.identity == 1.0


def test_pairs_take_the_core_where_it_is_known(tmp_path):
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORDS).encode()))
    core, empty = read_reference_alignments(path)
    assert (core.query, core.pairs.tolist()) == ("MKV", [[2, 1]])
    assert empty.pairs.shape == (0, 2) and empty.identity == 0.0


def test_folders_and_files_of_both_forms(tmp_path):
    (tmp_path / "pfam").mkdir()
    (tmp_path / "pfam" / "PF2.fasta").write_text(FASTA)
    (tmp_path / "pfam" / "PF1.fasta").write_text(FASTA)
    (tmp_path / "r.json").write_text(json.dumps(RECORDS))
    families, pairs = read_alignments([tmp_path / "pfam", tmp_path / "r.json"])
    assert [family.name for family in families] == ["PF1", "PF2"]
    assert [pair.name for pair in pairs] == ["S1", "S2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MKV\n", "line 1 comes before any '>'"),
        ("", "0 rows"),
        (">a\nMK\n>b\nMKV\n", r"rows of lengths \[2, 3\]"),
        (">a\nM7\n>b\nMK\n", "'7', not residue letters"),
    ],
)
def test_no_aligned_fasta(tmp_path, text, said):
    (tmp_path / "bad.align").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_family_alignment(tmp_path / "bad.align")


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
    if not (SHARED / "pfam").is_dir():
        pytest.skip("the alignments (../shared/data) are not beside this clone")
    families, pairs = read_alignments(
        [SHARED / "pfam", SHARED / "alignments" / "balifam_balibase3_ref.json.gz"]
    )
    assert (len(families), len(pairs)) == (30, 397)
    rng = np.random.default_rng(0)
    family = families[0]
    drawn = [family.pair(*rng.integers(len(family.rows), size=2)) for _ in range(50)]
    assert 0.15 < np.mean([pair.identity for pair in drawn]) < 0.6
