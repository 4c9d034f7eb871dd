"""Residue truth of aligners on reference alignments."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plasma_hf.data import ProteinPair
from plasma_hf.evaluation import (
    AlignedPair,
    Length,
    NeedlemanWunsch,
    read_reference_pairs,
    run_residue_truth,
    truth_markdown,
)
from plasma_hf.evaluation.report import _truth_dict

ALIGNMENTS = Path(__file__).parents[2] / "shared" / "data" / "alignments"
GOOD = {
    "set": "S1",
    "a": "P1",
    "b": "P2",
    "seq_a": "MKVLAW",
    "seq_b": "KVLAWG",
    "pairs": [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4]],
}
REMOTE = GOOD | {"a": "P3", "seq_a": "GPDEGP", "core_pairs": [[2, 1]]}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write records as a reference file."""

    def write(*records: Any) -> Path:
        path = tmp_path / "reference.json.gz"
        path.write_bytes(gzip.compress(json.dumps(records).encode()))
        return path

    return write


def test_good_records_are_read_and_bad_ones_named(write: Any) -> None:
    lacking = {key: value for key, value in GOOD.items() if key != "seq_b"}
    outside = GOOD | {"pairs": [[1, 6]]}
    empty = GOOD | {"pairs": []}
    strange = GOOD | {"pairs": "none"}
    references, bad = read_reference_pairs(write(GOOD, lacking, outside, empty, strange, REMOTE))
    assert [line.split(":")[0] for line in bad[:3]] == [f"record {i}" for i in (2, 3, 5)]
    assert "lacks seq_b" in bad[0] and "outside of its sequences" in bad[1]
    assert bad[3:] == ["P1 and P2 (S1): no residues are aligned"]
    assert [reference.identity for reference in references] == [1.0, 0.0]
    assert references[1].pairs.tolist() == [[2, 1]]  # the trusted columns


@pytest.mark.parametrize("content", [b"[", b"{}", gzip.compress(b"[", mtime=0)[:8]])
def test_a_file_that_is_no_list_of_records(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("x.json.gz" if content[:1] == b"\x1f" else "x.json")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not valid JSON|give a list"):
        read_reference_pairs(path)


def test_metrics_of_an_aligner(write: Any) -> None:
    references, _ = read_reference_pairs(write(GOOD, REMOTE))
    run = run_residue_truth(NeedlemanWunsch(), references, "tiny")
    assert run is not None
    good = run.metrics((0.35, 1.01))
    assert (good["pairs"], good["residues"], good["best_partner"]) == (1, 5, 1.0)
    assert (good["precision"], good["called"], good["mass"]) == (1.0, 1.0, 1.0)
    assert run.metrics((0.0, 0.2))["pairs"] == 1
    assert run.metrics()["pairs"] == 2
    text = truth_markdown([run])
    assert "### tiny, identity >= 35 % (1 pairs)" in text
    assert "| needleman-wunsch | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    json.dumps(_truth_dict(run), allow_nan=False)


def test_an_aligner_without_plans_has_no_metrics(write: Any) -> None:
    references, _ = read_reference_pairs(write(GOOD))
    assert run_residue_truth(Length(), references, "tiny") is None


def test_a_pair_that_fails_is_named(write: Any) -> None:
    class Fails:
        name = "fails"

        def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
            if any(pair.query.uid == "P3" for pair in pairs):
                raise RuntimeError("no such protein")
            return NeedlemanWunsch().align(pairs)

    references, _ = read_reference_pairs(write(GOOD, REMOTE))
    run = run_residue_truth(Fails(), references, "tiny")
    assert run is not None
    assert (run.problems, run.metrics()["pairs"]) == (["P3 and P2: no such protein"], 1)
    assert "1 failed" in truth_markdown([run])


@pytest.mark.slow
def test_on_real_alignments() -> None:
    if not ALIGNMENTS.is_dir():
        pytest.skip("the alignments (../shared/data/alignments) are not beside this clone")
    references, bad = read_reference_pairs(ALIGNMENTS / "balibase3_RV12_BB.json.gz")
    assert (len(references), bad) == (1268, [])
    run = run_residue_truth(NeedlemanWunsch(), references[:5], "RV12")
    assert run is not None
    found = run.metrics()
    assert 0.5 < found["best_partner"] == pytest.approx(found["mass"])
    assert np.isfinite(list(found.values())).all()
