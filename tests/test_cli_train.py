"""`plasma-hf train plasma` as its users meet it, on a small table."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from plasma_hf import PlasmaModel
from plasma_hf.backbones import load_backbone
from plasma_hf.cli.train import train_app
from plasma_hf.data import EmbeddingStore, ProteinPair, read_site_table
from plasma_hf.training import PlasmaRun
from plasma_hf.training.run import sample_share
from tests.helpers.training_job import make_pairs


def make_splits(proteins: Any, protocol: str = "strict", seed: int = 1, **options: Any) -> Any:
    """Pair neighbours of the table; what is split how is tested elsewhere."""
    made = [
        ProteinPair(proteins[i], proteins[i + 1 + (i // 2) % 2 * 2], 1 - (i // 2) % 2)
        for i in range(0, len(proteins) - 3, 2)
    ]
    third = len(made) // 3
    return SimpleNamespace(
        train=made,
        validation=made[:third],
        test=made[third : 2 * third],
        test_hard=made[-third:],
        protocol=protocol,
        seed=seed,
    )


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `plasma-hf train` in a folder with a table of sites."""
    stub = ModuleType("plasma_hf.data.splits")
    stub.make_splits = make_splits  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plasma_hf.data.splits", stub)
    monkeypatch.chdir(tmp_path)
    with open("sites.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "interpro_id", "seq_full", "label"])
        for number, pair in enumerate(pair for pair in make_pairs(24) if pair.label):
            for side in (pair.query, pair.candidate):
                labels = json.dumps(list(side.site_labels))
                writer.writerow([side.uid, f"IPR{number}", side.sequence, labels])
    return lambda *words: CliRunner().invoke(train_app, ["plasma", "--sites", "sites.csv", *words])


QUICK = ("--output", "out", "--epochs", "1", "--device", "cpu", "--set", "head_size=8")


def test_a_run_leaves_a_model_a_card_and_figures(train: Any) -> None:
    result = train(*QUICK, "--batch-size", "4")
    assert (result.exit_code, result.stdout) == (0, ""), result.output
    assert "extrapolation, 3 pairs: " in result.stderr
    written = json.loads(Path("out/metrics.json").read_text())
    assert set(written["figures"]) == {"eval", "interpolation", "extrapolation"}
    assert written["settings"]["preset"] == "improved"
    card = Path("out/README.md").read_text()
    assert f"{written['figures']['extrapolation']['label_match_score']:.3f}" in card
    model = PlasmaModel.from_pretrained("out")
    assert model.config.plm_name_or_path == "substitution" and model.backbone is not None
    assert model.config.head_size == 8
    assert EmbeddingStore.open("out/store").header.dtype == "float16"


@pytest.mark.slow
def test_the_same_command_gives_the_same_head(train: Any) -> None:
    assert train(*QUICK).exit_code == 0
    assert train(*QUICK, "--output", "again", "--store", "out/store").exit_code == 0
    heads = [PlasmaModel.from_pretrained(folder).state_dict() for folder in ("out", "again")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    figures = [json.loads(Path(f, "metrics.json").read_text())["figures"] for f in ("out", "again")]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_an_earlier_run_is_not_written_over(train: Any) -> None:
    assert train(*QUICK).exit_code == 0
    again = train(*QUICK)
    assert again.exit_code == 2 and "--resume" in again.stderr
    other = train(*QUICK, "--resume", "--seed", "7")
    assert other.exit_code == 2 and "with seed 1, you asked for 7" in other.stderr
    resumed = train(*QUICK, "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_published_preset_by_options(train: Any) -> None:
    words = ("--preset", "published", "--set", "kernel_scale=0.3", "--set", "n_iters=5")
    assert train(*QUICK, *words, "--fraction", "0.5").exit_code == 0
    config = PlasmaModel.from_pretrained("out").config
    assert (config.head, config.kernel_scale, config.n_iters) == ("lrl", 0.3, 5)
    settings = json.loads(Path("out/metrics.json").read_text())["settings"]
    assert settings["pairs per update"] == 1 and settings["training pairs"] == 5


def test_any_field_is_set(train: Any) -> None:
    fields = ("head=lrl", "threshold=0.4", "learning_rate=0.01", "lr_scheduler_type=linear")
    words = [word for field in fields for word in ("--set", field)]
    assert train(*QUICK, *words).exit_code == 0
    config = PlasmaModel.from_pretrained("out").config
    assert (config.head, config.threshold, config.head_size) == ("lrl", 0.4, 8)
    assert json.loads(Path("out/metrics.json").read_text())["settings"]["learning rate"] == 0.01


def test_options_of_a_file(train: Any) -> None:
    Path("run.yaml").write_text(
        "output: out\nepochs: 1\ndevice: cpu\nbatch-size: 4\n"
        "set: {head: lrl, head_size: 8, learning_rate: 0.01}\n"
    )
    assert train("--config", "run.yaml", "--batch-size", "2").exit_code == 0
    config = PlasmaModel.from_pretrained("out").config
    assert (config.head, config.head_size) == ("lrl", 8)
    settings = json.loads(Path("out/metrics.json").read_text())["settings"]
    assert settings["learning rate"] == 0.01 and settings["pairs per update"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 1", "there is no option epoch; is it epochs"),
        ("config: other.yaml", "there is no option config"),
        ("- 1", "holds no options"),
        ("a: [", "cannot be read"),
        ("epochs: many", "--epochs"),
    ],
)
def test_a_file_without_such_options_is_one_line(train: Any, text: str, said: str) -> None:
    Path("run.yaml").write_text(text)
    result = train(*QUICK[:2], "--config", "run.yaml")
    assert result.exit_code == 2 and said in result.stderr, result.output


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning_rates=1", "--set learning_rates=1: give FIELD=VALUE, with a field of Plasma"),
        ("learning_rates=1", "TrainingArguments, as learning_rate"),
        ("head", "--set head: give FIELD=VALUE"),
        ("output_dir=x", "give FIELD=VALUE"),
        ("learning_rate=fast", "learning_rate is 5e-05 by default; give a value of its kind"),
        ("head=none", "head='none'; accepted are"),
    ],
)
def test_what_cannot_be_set_is_one_line(train: Any, setting: str, said: str) -> None:
    result = train(*QUICK, "--set", setting)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_bad_rows_are_named_and_the_rest_is_used(train: Any) -> None:
    with open("sites.csv", "a") as file:
        file.write('B1,IPR0,MKV,"[0]"\nB2,IPR0,M7V,"[0, 0, 1]"\n')
    result = train(*QUICK)
    assert result.exit_code == 2
    assert "(B1): label holds 1 values for 3 residues" in result.stderr
    assert "(B2): seq_full has the character '7'" in result.stderr
    assert Path("out/metrics.json").exists()


def test_what_cannot_be_trained(train: Any) -> None:
    for words, said in (
        (("--fraction", "0.01"), "leaves none"),
        (("--fraction", "2"), "above 0"),
        (("--sites", "nowhere.csv"), "nowhere.csv"),
    ):
        result = train(*QUICK, *words)
        assert result.exit_code == 2 and said in result.stderr, result.output
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_share_is_drawn_as_published() -> None:
    import random

    random.seed(42)
    assert sample_share(list(range(100)), 0.1, 42) == random.sample(range(100), 10)


def test_a_run_in_python(train: Any) -> None:
    splits = make_splits(read_site_table("sites.csv")[0])
    arguments = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True}
    run = PlasmaRun("folder", config={"head_size": 8}, arguments=arguments)
    figures = run.train(splits, load_backbone("substitution", device="cpu"))
    assert 0 <= figures["extrapolation"]["label_match_score"] <= 1
