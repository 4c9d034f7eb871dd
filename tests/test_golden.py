"""Parity with the original implementation, every golden case."""

import json

import pytest
import torch
from safetensors.torch import load_file

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.models import modeling_plasma
from tests.conftest import GOLDEN
from tests.helpers import reference

LAYOUTS = {1280: 919_552, 1024: 788_480, 768: 657_408}


def cases(golden, folder):
    for name, case in json.loads((golden / folder / "cases.json").read_text())["cases"].items():
        yield name, case, load_file(golden / folder / case["file"])


def load_head(golden, folder, case):
    head = case["head"] if folder == "plasma_heads" else "upstream_saved_pf"
    return PlasmaModel.from_upstream(golden / folder / head)


def run(model, tensors, label=1):
    batch = {
        "query_embeddings": tensors["H_q"][None],
        "candidate_embeddings": tensors["H_c"][None],
        "return_plan": True,
    }
    if "labels_q" in tensors:
        batch["query_site_labels"] = tensors["labels_q"][None]
        batch["candidate_site_labels"] = tensors["labels_c"][None]
    return model(**batch, labels=torch.tensor([label]))


@pytest.mark.parametrize("domain", ["linear", "log"])
@pytest.mark.parametrize("folder", ["plasma_heads", "plasma_pf"])
@torch.no_grad()
def test_cost_plan_score_and_losses(golden, folder, domain, monkeypatch):
    if domain == "log":
        monkeypatch.setattr(modeling_plasma, "sinkhorn", reference.log_sinkhorn)
    seen = 0
    for name, case, tensors in cases(golden, folder):
        if "H_q" not in tensors:
            continue
        model = load_head(golden, folder, case)
        out = run(model, tensors)
        scale = tensors["cost"].abs().clamp(min=1.0)
        assert ((out.cost[0] - tensors["cost"]).abs() / scale).max() < 1e-5, name
        assert (out.plan[0] - tensors["plan"]).abs().max() < 1e-5, name
        wanted = tensors["score" if "score" in tensors else "score_zero_padded"]
        assert (out.scores - wanted).abs().max() < 1e-5, name
        if "labels_q" in tensors:
            assert abs(out.label_match_loss - tensors["label_match_loss"]) < 1e-5, name
            for label in (0, 1):
                loss = run(model, tensors, label).score_loss
                assert abs(loss - tensors[f"bce_y{label}"]) < 1e-5, name
        seen += 1
    assert seen >= (12 if golden == GOLDEN else 20)


@pytest.mark.parametrize("folder", ["plasma_heads", "plasma_pf"])
@torch.no_grad()
def test_short_proteins_under_each_window(golden, folder):
    for name, case, tensors in cases(golden, folder):
        if "score_K5" not in tensors:
            continue
        model = load_head(golden, folder, case)
        for window in (0, 5):
            model.config.diagonal_window = window
            out = run(model, tensors)
            assert abs(out.scores - tensors[f"score_K{window}"]) < 1e-5, name


@pytest.mark.parametrize("folder", ["plasma_heads", "plasma_pf"])
@torch.no_grad()
def test_a_batch_gives_what_single_pairs_gave(golden, folder):
    seen = 0
    for name, case, batched in cases(golden, folder):
        if "members" not in case:
            continue
        members = [load_file(golden / folder / file) for file in case["members"]]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {}
        for side, key, labels in (("query", "H_q", "labels_q"), ("candidate", "H_c", "labels_c")):
            batch[f"{side}_embeddings"] = pad([t[key] for t in members], batch_first=True)
            ones = [torch.ones(len(t[key]), dtype=torch.bool) for t in members]
            batch[f"{side}_mask"] = pad(ones, batch_first=True)
            batch[f"{side}_site_labels"] = pad([t[labels] for t in members], batch_first=True)
        model = load_head(golden, folder, case)
        out = model(**batch, labels=torch.tensor(case["pair_labels"]), return_plan=True)
        assert (out.scores - batched["score_batch1"]).abs().max() < 1e-5, name
        for i, (n, m) in enumerate(case["shapes"]):
            assert (out.plan[i, :n, :m] - batched[f"plan_batch1_{i}"]).abs().max() < 1e-5, name
            assert out.plan[i, n:].abs().sum() == out.plan[i, :, m:].abs().sum() == 0, name
        positive = torch.tensor(case["pair_labels"]) > 0
        wanted = batched["label_match_loss_batch1"][positive].mean()
        assert abs(out.label_match_loss - wanted) < 1e-5, name
        seen += 1
    assert seen


def test_gradients(golden):
    described = json.loads((golden / "plasma_heads" / "cases.json").read_text())["cases"]
    seen = 0
    for name, case, wanted in cases(golden, "plasma_heads"):
        if not name.startswith("grads_"):
            continue
        model = load_head(golden, "plasma_heads", case)
        tensors = load_file(golden / "plasma_heads" / described[case["case"]]["file"])
        out = run(model, tensors, case["pair_label"])
        assert abs(out.loss - case["total"]) < 1e-5
        out.loss.backward()
        ours = {
            "eta.lrl.0.weight": model.alignment_head.hidden.weight,
            "eta.lrl.0.bias": model.alignment_head.hidden.bias,
            "eta.lrl.2.weight": model.alignment_head.output.weight,
            "eta.lrl.2.bias": model.alignment_head.output.bias,
            "eta.norm.weight": model.alignment_head.norm.weight,
        }
        for key, parameter in ours.items():
            gradient = wanted[f"grad.{key}"]
            assert (parameter.grad - gradient).norm() / gradient.norm() < 1e-3, (name, key)
        # The cost sees differences only: a bias that both sides share has gradient 0.
        assert model.alignment_head.norm.bias.grad.abs().max() < 1e-6
        seen += 1
    assert seen == 4


def test_released_heads_round_trip(golden, tmp_path):
    folder = golden / "plasma_heads"
    found = 0
    for file in (folder / "weights").glob("*/*/model.safetensors"):
        task, backbone = file.parent.parts[-2:]
        model = PlasmaModel.from_upstream(folder, task=task, backbone=backbone)
        written = model.save_upstream(tmp_path) / "model.safetensors"
        assert written == tmp_path / "weights" / task / backbone / "model.safetensors"
        before, after = load_file(file), load_file(written)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        for name in ("config.json", "metadata.json"):
            ours, theirs = ((p.parent / name).read_text() for p in (written, file))
            assert json.loads(ours) == json.loads(theirs)
        again = PlasmaModel.from_upstream(tmp_path, task=task, backbone=backbone)
        assert again.config.to_dict() == model.config.to_dict()
        found += 1
    assert found >= (2 if golden == GOLDEN else 3)


@pytest.mark.parametrize("width", LAYOUTS)
def test_released_layouts_load_strictly(tmp_path, width):
    model = PlasmaModel(PlasmaConfig(embedding_size=width))
    assert sum(p.numel() for p in model.parameters()) == LAYOUTS[width]
    folder = model.save_upstream(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["eta.lrl.0.weight"].shape == (512, width)
    assert set(tensors) == {
        f"eta.{name}.{kind}" for name in ("lrl.0", "lrl.2", "norm") for kind in ("weight", "bias")
    }
    loaded = PlasmaModel.from_upstream(tmp_path)
    assert loaded.config.embedding_size == width
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
