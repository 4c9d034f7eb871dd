"""`plasma-hf embed` as its users meet it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import typer
from typer.testing import CliRunner

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.cli import embed as cli_embed
from plasma_hf.data import EmbeddingStore
from plasma_hf.data.store import DTYPES
from tests.helpers.store_job import TinyEsm, make_head
from tests.test_cli import choices, one_line

ROOT = Path(__file__).parents[1]
FASTA = ">P1\nMKVLA\n>P2\nACDW\n"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(cli_embed.embed)


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `plasma-hf embed` in an empty folder with one FASTA file."""
    monkeypatch.chdir(tmp_path)
    Path("two.fasta").write_text(FASTA)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed with the tiny ESM, which needs no loading."""
    monkeypatch.setattr(cli_embed, "load_embedder", lambda *_: (TinyEsm(), make_head()))


def test_the_bundled_model(embed: Any) -> None:
    result = embed("two.fasta", "--output", "store")
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert result.stderr.splitlines() == [
        "plasma-hf: 2 sequences to embed, 0.0 MB on disk, as float32",
        "plasma-hf: 2 embedded, 0 already there, 0 left out; store holds 2",
    ]
    store = EmbeddingStore.open("store")
    assert store.header.kinds == ("embeddings",)
    assert store["P1"].shape == (5, 420)
    assert store["P1"].dtype == torch.float32
    again = embed("two.fasta", "--output", "store")
    assert "0 sequences to embed" in again.stderr
    assert "0 embedded, 2 already there" in again.stderr


def test_a_backbone_is_named(embed: Any) -> None:
    result = embed("two.fasta", "--output", "store", "--backbone", "near", "--device", "cpu")
    assert result.exit_code == 0, result.output
    [rows] = load_backbone("near").embed(["MKVLA"])
    torch.testing.assert_close(EmbeddingStore.open("store")["P1"], rows, rtol=0, atol=1e-5)


def test_projections_in_half_precision(embed: Any) -> None:
    words = ["--output", "store", "--model", DEFAULT_CHECKPOINT, "--device", "cpu"]
    assert embed("two.fasta", *words, "--projections", "--dtype", "float16").exit_code == 0
    store = EmbeddingStore.open("store")
    assert store.read("P2", "projections").dtype == torch.float16
    Path("more.fasta").write_text(">P3\nWWW\n")
    assert embed("more.fasta", *words).exit_code == 0  # goes on with what the store keeps
    width = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT).project(torch.randn(3, 420)).shape[-1]
    assert EmbeddingStore.open("store").read("P3", "projections").shape == (3, width)


def test_several_files_and_columns(embed: Any, tiny: None) -> None:
    Path("three.tsv").write_text("acc\tseq\nP3\tWYW\nP4\tMKVLA\n")
    words = ["--id-column", "acc", "--sequence-column", "seq", "--residues-per-batch", "4"]
    result = embed("two.fasta", "three.tsv", "--output", "store", *words)
    assert result.exit_code == 0, result.output
    assert "3 embedded" in result.stderr
    assert sorted(EmbeddingStore.open("store").ids) == ["P1", "P2", "P3", "P4"]


def test_bad_records_are_reported_and_the_rest_is_done(embed: Any, tiny: None) -> None:
    Path("bad.fasta").write_text(">digits\nMK7LA\n>P1\nWWWW\n>good\nACD\n")
    result = embed("two.fasta", "bad.fasta", "no.fasta", "--output", "store")
    assert (result.exit_code, result.stdout) == (2, "")
    _, digits, file, conflict, summary = result.stderr.splitlines()
    assert digits.startswith("plasma-hf: bad.fasta: digits: sequence has the character '7'")
    assert file == "plasma-hf: no.fasta: there is no file 'no.fasta'; check the path."
    assert conflict.startswith("plasma-hf: P1: this id stands for two sequences, 'MKVLA'")
    assert summary == "plasma-hf: 3 embedded, 0 already there, 3 left out; store holds 3"


def test_exit_code_under_torchrun(embed: Any, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    Path("bad.fasta").write_text(">digits\nMK7LA\n")
    result = embed("two.fasta", "bad.fasta", "--output", "store")
    assert result.exit_code == 0
    assert "rank 0 of 2: 2 embedded, 0 already there, 1 left out" in result.stderr


def test_remove(embed: Any, tiny: None) -> None:
    embed("two.fasta", "--output", "store")
    result = embed("--output", "store", "--remove", "P1", "--remove", "P9")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "plasma-hf: store holds no protein 'P9'",
        "plasma-hf: 1 taken out, store holds 1",
    ]
    result = embed("two.fasta", "--output", "store", "--remove", "P2")
    assert result.exit_code == 0
    assert "2 embedded, 0 already there" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "store"], "there is nothing to do; give files with proteins, or --remove"),
        (["--output", "no", "--remove", "P1"], "there is no embedding store in 'no'"),
        (["two.fasta", "-o", "s", "--model", "a", "--backbone", "b"], "--model brings its own"),
        (
            ["two.fasta", "-o", "s", "--input-format", "native"],
            "--input-format goes with --backbone",
        ),
        (["two.fasta", "-o", "s", "--backbone", "no/where"], "no/where"),
        (["two.fasta", "-o", "s", "--model", "no/where"], "--model no/where cannot be loaded;"),
        (["two.fasta", "-o", "s", "--model", "head"], "--model head is a head that takes residue"),
        (["two.fasta", "-o", "s", "--backbone", "substitution", "--projections"], "give --model"),
        (["two.fasta", "-o", "two.fasta/s"], "two.fasta"),
    ],
)
def test_what_cannot_be_used_is_one_line(embed: Any, words: list[str], message: str) -> None:
    if "head" in words:
        PlasmaModel(PlasmaConfig(embedding_size=4, head="hinge")).save_pretrained("head")
    assert message in one_line(embed(*words))


def test_another_model_is_refused(embed: Any, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    embed("two.fasta", "--output", "store")
    monkeypatch.setattr(cli_embed, "load_embedder", lambda *_: (TinyEsm(seed=3), None))
    said = one_line(embed("two.fasta", "--output", "store"))
    assert "holds embeddings of tiny/esm32" in said
    assert "they differ in weights" in said


@pytest.mark.parametrize(
    "words", [["--dtype", "int8"], ["--residues-per-batch", "0"], ["--nonsense"], ["--output"]]
)
def test_bad_options(embed: Any, words: list[str]) -> None:
    result = embed("two.fasta", "--output", "store", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words[0] in result.stderr


def test_dtypes_are_those_of_the_library() -> None:
    assert choices(get_type_hints(cli_embed.embed, include_extras=True)["dtype"]) == list(DTYPES)


def test_examples_of_the_help_run(embed: Any) -> None:
    lines = CliRunner().invoke(app, ["--help"]).stdout.replace("\\\n", "").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("plasma-hf embed ")]
    offline = [example for example in examples if "--backbone" not in example]
    assert (len(examples), len(offline)) == (5, 4)
    shutil.copytree(ROOT / "demo", "demo", ignore=shutil.ignore_patterns("*.png"))
    for example in offline:
        result = embed(*shlex.split(example)[2:])
        assert result.exit_code == 0, result.output
