"""`plasma-hf train protalign` and `evaluate protalign` as their users meet them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from datasets import Dataset
from typer.testing import CliRunner

from plasma_hf import ProtAlignConfig, ProtAlignModel
from plasma_hf.cli.common import Skipped, load_structure_encoder, read_pairs
from plasma_hf.cli.evaluate import evaluate_protalign
from plasma_hf.cli.main import EvaluateGroup
from plasma_hf.cli.train import train_protalign
from plasma_hf.io.structures import pair_to_row
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from tests.helpers.structure_files import make_pairs, write_pdb

COMMANDS = {
    "train": (train_protalign, train_protalign.__doc__ or ""),
    "evaluate": (evaluate_protalign, evaluate_protalign.__doc__ or ""),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Folder with a few structures, a broken one, and a small structure encoder."""
    folder = tmp_path_factory.mktemp("cli")
    for name in ("pdb", "with_broken"):
        (folder / name).mkdir()
        for pair in make_pairs(30):
            write_pdb(pair.structure, folder / name / f"{pair.id}.pdb")
    (folder / "with_broken" / "broken.pdb").write_text("HEADER nothing\n")
    config = ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8)
    ProteinMPNNEncoder(config).save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a verb in that folder, quickly."""
    monkeypatch.chdir(folder)
    app = typer.Typer()
    for name, (function, text) in COMMANDS.items():
        app.command(name, help=text)(function)
    quick = {"train": ["--structure-encoder", "encoder", "--epochs", "2"], "evaluate": []}

    def invoke(verb: str, *words: str, structures: str = "pdb") -> Any:
        return CliRunner().invoke(
            app, [verb, "--structures", structures, "--device", "cpu", *quick[verb], *words]
        )

    return invoke


@pytest.fixture
def trained(run: Any, folder: Path) -> Path:
    """A trained model, made once."""
    if not (folder / "out").exists():
        result = run("train", "--output", "out")
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        assert "test, 3 pairs: recall_at_1" in result.stderr
    return folder / "out"


@pytest.mark.slow
def test_a_run_leaves_a_model_a_card_and_figures(trained: Path, run: Any) -> None:
    written = json.loads((trained / "metrics.json").read_text())
    assert set(written["figures"]) == {"eval", "test"}
    assert written["settings"]["split seed"] == 0 and written["settings"]["preset"] == "improved"
    assert f"{written['figures']['test']['mrr']:.3f}" in (trained / "README.md").read_text()
    model = ProtAlignModel.from_pretrained(trained)
    assert model.config.structure_size == 16 and model.sequence_encoder is not None
    again = run("train", "--output", "out")
    assert again.exit_code == 2 and "--resume" in again.stderr
    assert run("train", "--output", "out", "--resume").exit_code == 0


@pytest.mark.slow
def test_the_structure_encoder_is_trained_by_residues_first(run: Any, folder: Path) -> None:
    result = run("train", "--output", "residues", "--residue-steps", "2", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert (folder / "residues" / "residues" / "run.json").exists()
    came, went = (
        ProteinMPNNEncoder.from_pretrained(folder / "encoder").state_dict(),
        ProtAlignModel.from_pretrained(folder / "residues").structure_encoder.state_dict(),
    )
    assert any(not torch.equal(came[name], went[name]) for name in came)


def test_a_trained_model_is_evaluated(trained: Path, run: Any) -> None:
    words = ("--model", "out", "--part", "all", "--out", "evaluated")
    result = run("evaluate", *words, structures="with_broken")
    assert result.exit_code == 2  # by the broken file alone
    assert "broken.pdb" in result.stderr
    result = run("evaluate", *words)
    assert result.exit_code == 0, result.output
    assert "| out |" in result.stdout and "Test pairs: 30 (seed 0)" in result.stdout
    written = json.loads(Path("evaluated/evaluation.json").read_text())
    names = [row["name"] for row in written["tables"][0]["rows"]]
    assert names == ["out", "length alone", "sequence oracle"]
    other = run("evaluate", "--model", "out", "--seed", "1", "--out", "other")
    assert "trained on the split of seed 0" in other.stderr


def test_what_cannot_be_done_is_said_in_one_line(trained: Path, run: Any) -> None:
    for words, said in (
        (("train", "--output", "x", "--structure-encoder", "nowhere"), "nor new"),
        (("train", "--output", "x", "--min-residues", "500"), "give more structures"),
        (("evaluate", "--out", "x", "--model", "encoder"), "protein_mpnn"),
        (("evaluate", "--out", "x", "--model", "nowhere"), "--model nowhere cannot be loaded"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and said in result.stderr, result.output
        assert said in result.stderr.strip().splitlines()[-1]
    missing = run("train", "--output", "x", structures="nowhere")
    assert missing.exit_code == 2 and "nowhere" in missing.stderr


def test_evaluate_takes_options_without_a_command_as_before() -> None:
    app = typer.Typer(cls=EvaluateGroup, no_args_is_help=True)

    @app.command()
    def plasma(sites: str = "none") -> None:
        typer.echo(f"plasma {sites}")

    @app.command()
    def protalign() -> None:
        typer.echo("protalign")

    assert CliRunner().invoke(app, ["--sites", "a"]).stdout.strip() == "plasma a"
    assert CliRunner().invoke(app, ["plasma"]).stdout.strip() == "plasma none"
    assert CliRunner().invoke(app, ["protalign"]).stdout.strip() == "protalign"
    assert "protalign" in CliRunner().invoke(app, ["--help"]).stdout


def test_rows_of_parquet_that_are_no_pairs_cost_themselves_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair_to_row(pair) for pair in make_pairs(3)]
    rows[1]["coordinates"] = rows[1]["coordinates"][:-3]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    skipped = Skipped()
    pairs = read_pairs([tmp_path / "rows.parquet"], 1, 1000, skipped)
    assert [pair.id for pair in pairs] == [rows[0]["id"], rows[2]["id"]]
    told = capsys.readouterr().err
    assert "rows.parquet row 2: " in told and len(skipped.told) == 1
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.parquet is not a valid Parquet file: \S"):
        read_pairs([tmp_path / "cut.parquet"], 1, 1000, skipped)


def test_a_structure_encoder_is_new_or_that_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = (load_structure_encoder("new", seed, "cpu") for seed in (1, 1, 2))
    weights = [next(iter(encoder.parameters())) for encoder in (first, again, other)]
    assert torch.equal(*weights[:2]) and not torch.equal(weights[0], weights[2])
    config = ProtAlignConfig(
        sequence_size=8, structure_size=8, hidden_size=8, num_heads=2, structure_config=None
    )
    ProtAlignModel(config).save_pretrained(tmp_path / "bare")
    with pytest.raises(typer.Exit):
        load_structure_encoder(str(tmp_path / "bare"), 0, "cpu")
    assert "was saved without a structure encoder" in capsys.readouterr().err
