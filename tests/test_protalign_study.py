"""Tables and figures of the ProtAlign paper: what is trained, drawn and listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from reproduce.protalign_study import (
    MeanPool,
    MeanPoolModel,
    draw_heat_map,
    draw_losses,
    draw_planes,
    list_clusters,
    main,
    sequence_differences,
)
from tests.helpers.structure_files import make_pairs, write_pdb


def test_mean_pool_is_the_mean_of_residues_that_the_mask_has() -> None:
    pool, rows = MeanPool(4, 3), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    vectors, weights = pool(rows.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert torch.allclose(vectors[0], pool.linear(rows[0, :2].mean(0)), atol=1e-6)
    assert weights.sum(1).tolist() == pytest.approx([1, 1])


def test_a_baseline_is_saved_and_loaded(tmp_path) -> None:
    model = MeanPoolModel(ProtAlignConfig(sequence_size=6, structure_size=4)).eval()
    model.save_pretrained(tmp_path)
    again = MeanPoolModel.from_pretrained(tmp_path)
    rows = torch.randn(2, 3, 6)
    found, wanted = (one.get_sequence_features(rows) for one in (again, model))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_figures_are_written_with_their_numbers(tmp_path) -> None:
    rng = np.random.default_rng(0)
    before, after = [tuple(rng.normal(size=(2, 8, 4)).astype(np.float32)) for _ in range(2)]
    draw_planes({"before": before, "after": after}, tmp_path / "figure2.png")
    draw_losses({"CLIP": [3.0, 2.0], "SigLIP": [9.0, 4.0]}, tmp_path / "figure3.png")
    draw_heat_map(after[0] @ after[1].T, list("abcdefgh"), tmp_path / "figure4.svg")
    for name in ("figure2.png", "figure3.png", "figure4.svg"):
        assert (tmp_path / name).stat().st_size > 1000
    read = {n: json.loads((tmp_path / f"figure{n}.json").read_text()) for n in (2, 3, 4)}
    assert len(read[2]["stages"]["after"]["structures"]) == 8
    assert read[3]["losses"]["SigLIP"] == [9.0, 4.0]
    assert len(read[4]["cosines"]) == len(read[4]["ids"]) == 8
    with pytest.raises(ValueError, match="at least 3"):
        draw_planes({"after": (after[0][:2], after[1][:2])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="two axes"):
        draw_losses(dict.fromkeys("abc", [1.0]), tmp_path / "x.png")


def test_clusters_are_chains_of_close_vectors() -> None:
    angles = np.array([0.0, 0.2, 0.4, 2.0])  # the first and third are linked by the second
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sequences = ["MKVLAWGGH", "MKVLAWGGH", "MKILAWGG", "PPPPPPPP"]
    (cluster,) = list_clusters(vectors, list("abcd"), sequences, ["F"] * 4, least_cosine=0.97)
    assert [member.id for member in cluster] == ["a", "b", "c"]
    assert cluster[2].differences == ("V3I", "H9-") and cluster[2].identity == 7 / 8
    assert cluster[0].family == "F"


@pytest.mark.parametrize(
    ("second", "differences"),
    [
        ("MKVLAWGGHEE", ["9+EE"]),
        ("TTMKVLAWGGH", ["0+TT"]),
        ("MKVAWGGH", ["L4-"]),
        ("MKVLAWGGH", []),
    ],
)
def test_differences_of_sequences(second, differences) -> None:
    assert sequence_differences("MKVLAWGGH", second) == differences


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command on a few structures, one of which is broken, with a small encoder."""
    monkeypatch.chdir(tmp_path)
    Path("pdb").mkdir()
    for pair in make_pairs(30):
        write_pdb(pair.structure, Path("pdb") / f"{pair.id}.pdb")
    Path("pdb/broken.pdb").write_text("HEADER nothing\n")
    config = ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8)
    ProteinMPNNEncoder(config).save_pretrained("encoder")
    quick = ("--structures", "pdb", "--structure-encoder", "encoder", "--epochs", "2")
    return lambda *words: main([*quick, "--out", "study", *words])


@pytest.mark.slow
def test_tables_and_figures_train_what_they_need_once(study, capsys) -> None:
    assert study("--seed", "0", "1", "--table", "2", "--figure", "2", "3") == 2
    assert "broken.pdb" in capsys.readouterr().err  # by this file alone
    written = json.loads(Path("study/evaluation.json").read_text())
    assert [table["title"] for table in written["tables"]] == ["model", "table 2"]
    names = [row["name"] for row in written["tables"][0]["rows"]]
    assert names == ["ProtAlign", "mean-pool + linear", "length alone", "sequence oracle"]
    assert [row["name"] for row in written["tables"][1]["rows"]] == ["CLIP", "SigLIP"]
    assert set(written["tables"][1]["rows"][0]["figures"]["mrr"]["by_seed"]) == {"0", "1"}
    assert len(json.loads(Path("study/figure3.json").read_text())["losses"]["SigLIP"]) == 2
    stages = json.loads(Path("study/figure2.json").read_text())["stages"]
    assert set(stages) == {"before training", "after training"}
    times = {path: path.stat().st_mtime_ns for path in Path("study/runs").glob("*/metrics.json")}
    assert len(times) == 6  # ProtAlign and CLIP are the same
    study("--figure", "3")
    assert times == {path: path.stat().st_mtime_ns for path in times}
    again = json.loads(Path("study/evaluation.json").read_text())["tables"][0]["rows"][0]
    first = written["tables"][0]["rows"][0]
    name = "recall_at_1"
    assert again["figures"][name]["by_seed"]["0"] == first["figures"][name]["by_seed"]["0"]


@pytest.mark.slow
def test_a_ready_model_is_described_without_training(study) -> None:
    with pytest.raises(SystemExit):
        study("--model", "any", "--table", "2")
    study("--epochs", "1")
    (trained,) = (path.parent for path in Path("study/runs").glob("ProtAlignModel*/config.json"))
    words = ("--figure", "2", "4", "--clusters", "--least-cosine", "-1", "--out", "described")
    assert study("--model", str(trained), *words) == 2
    written = json.loads(Path("described/evaluation.json").read_text())
    assert written["tables"] == [] and len(written["clusters"][0]) == 30
    for name in ("figure2", "figure4"):
        assert {path.suffix for path in Path("described").glob(f"{name}.*")} == {".png", ".json"}
