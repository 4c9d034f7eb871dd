"""`python -m reproduce.encoder` as its users meet it."""

import json

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from plasma_hf.backbones import load_backbone
from reproduce.encoder import app

SMALL = ["--width", "8", "--dilations", "1,2", "--pairs-per-batch", "2", "--steps", "3"]
SITES = """uid,interpro_id,seq_full,label
A1,A,MKVLAWDERT,"[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]"
A2,A,MRVLSWDERS,"[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]"
B1,B,GGPHHSPGNN,"[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]"
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run it in a folder with an alignment and a table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pfam").mkdir()
    (tmp_path / "pfam" / "PF1.align").write_text(">a\nMKVLAW\n>b\nMRV-SW\n")
    (tmp_path / "sites.csv").write_text(SITES)
    return lambda *words: CliRunner().invoke(app, [*words, "--device", "cpu", *SMALL])


@pytest.mark.slow
def test_from_files_to_a_backbone(train, tmp_path):
    result = train("--pfam", "pfam", "--sites", "sites.csv", "--out", "encoder")
    assert result.exit_code == 0, result.output
    first, *_, last = result.stderr.splitlines()
    assert first == ("plasma-hf: 1 families, 2 aligned rows, 3 site proteins, 2 site families")
    assert last.endswith("3 steps; wrote encoder")
    assert load_backbone(tmp_path / "encoder").embed(["MKVLA"])[0].shape == (5, 420)
    assert AutoTokenizer.from_pretrained(tmp_path / "encoder")("MK").input_ids == [13, 11]
    record = json.loads((tmp_path / "encoder" / "training.json").read_text())
    assert record["settings"]["steps"] == 3 and record["data"]["site proteins"] == 3


@pytest.mark.slow
def test_a_second_run_needs_resume(train):
    words = ("--pfam", "pfam", "--output", "encoder")
    assert train(*words).exit_code == 0
    again = train(*words)
    assert again.exit_code == 2 and "--resume" in again.stderr
    assert train(*words, "--resume").exit_code == 0


@pytest.mark.slow
def test_a_bad_row_is_reported_and_the_rest_used(train, tmp_path):
    (tmp_path / "sites.csv").write_text(SITES + 'C1,C,MK,"[0]"\n')
    result = train("--sites", "sites.csv", "--output", "encoder")
    assert result.exit_code == 2 and "(C1): label holds 1 values" in result.stderr
    assert (tmp_path / "encoder" / "model.safetensors").exists()


@pytest.mark.slow
def test_excluded_proteins(train, tmp_path):
    (tmp_path / "test.txt").write_text("B1\n")
    words = ("--pfam", "pfam", "--sites", "sites.csv", "--output", "encoder")
    result = train(*words, "--exclude-uids", "test.txt")
    assert result.exit_code == 0, result.output
    assert "2 site proteins, 1 site families" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to learn from"),
        (("--pfam", "nowhere"), "nowhere"),
        (("--pfam", "sites.csv"), "sites.csv is not an aligned FASTA file"),
        (("--pfam", "pfam", "--masked-weight", "1"), "needs --sequences"),
        (("--pfam", "pfam", "--dilations", "a"), "whole numbers"),
        (("--pfam", "pfam", "--device", "tpu"), "give cpu or cuda"),
    ],
)
def test_what_is_wrong_in_one_line(train, words, said):
    result = CliRunner().invoke(app, [*words, "--output", "encoder"])
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
