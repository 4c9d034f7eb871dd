"""Recipes: the published one follows the original, the default starts as PLASMA-PF."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from plasma_hf import PlasmaModel
from plasma_hf.training import PRESETS, PlasmaTrainer
from tests.benchmarks.published_form import PublishedForm
from tests.helpers.training_job import WIDTH, make_pairs

NAMES = {
    "eta.lrl.0.weight": "alignment_head.hidden.weight",
    "eta.lrl.0.bias": "alignment_head.hidden.bias",
    "eta.lrl.2.weight": "alignment_head.output.weight",
    "eta.lrl.2.bias": "alignment_head.output.bias",
    "eta.norm.weight": "alignment_head.norm.weight",
}


class KeepGradients(TrainerCallback):
    """Keep what the optimiser is given."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters()}


def arguments(preset, folder, **changes):
    return PRESETS[preset].training_arguments(folder, use_cpu=True, disable_tqdm=True, **changes)


def test_published_settings(tmp_path):
    config = PRESETS["published"].plasma_config(1280)
    assert (config.head, config.head_size, config.kernel_scale, config.n_iters) == (
        ("lrl", 512, 0.1, 20)
    )
    assert (config.score_form, config.score_loss_form) == ("published", "published")
    given = arguments("published", tmp_path)
    assert given.train_batch_size == 1 and given.learning_rate == 1e-4
    assert given.weight_decay == 0 and given.max_grad_norm == 0
    assert given.lr_scheduler_type == "constant" and given.num_train_epochs == 20
    assert given.metric_for_best_model == "eval_score_loss"
    stop = PRESETS["published"].callbacks()[0]
    assert (stop.early_stopping_patience, stop.early_stopping_threshold) == (3, 1e-4)


def test_changes_go_before_the_recipe(tmp_path):
    assert PRESETS["published"].plasma_config(8, head_size=64).head_size == 64
    assert arguments("published", tmp_path, num_train_epochs=2).num_train_epochs == 2


@pytest.mark.slow
def test_published_preset_follows_the_golden_gradients(golden, tmp_path):
    folder = golden / "plasma_heads"
    described = json.loads((folder / "cases.json").read_text())["cases"]
    seen = 0
    for name, case in described.items():
        if not name.startswith("grads_"):
            continue
        model = PlasmaModel.from_upstream(folder / case["head"])
        wanted = PRESETS["published"].plasma_config(
            model.config.embedding_size, head_size=model.config.head_size
        )
        for field in PRESETS["published"].config:
            assert getattr(model.config, field) == getattr(wanted, field), field
        tensors = load_file(folder / described[case["case"]]["file"])
        row = {
            "query_embeddings": tensors["H_q"],
            "candidate_embeddings": tensors["H_c"],
            "query_site_labels": tensors["labels_q"],
            "candidate_site_labels": tensors["labels_c"],
            "labels": torch.tensor(case["pair_label"]),
        }
        given = arguments("published", tmp_path, max_steps=1)
        given.eval_strategy = given.save_strategy = "no"
        keep = KeepGradients()
        PlasmaTrainer(
            model, given, train_dataset=[row], eval_dataset=[row], callbacks=[keep]
        ).train()
        golden_gradients = load_file(folder / case["file"])
        for theirs, ours in NAMES.items():
            gradient = golden_gradients[f"grad.{theirs}"]
            error = (keep.gradients[ours] - gradient).norm() / gradient.norm()
            assert error < 1e-3, (name, theirs)
        seen += 1
    assert seen == 4


@pytest.mark.slow
def test_published_preset_updates_as_a_plain_loop_with_adam(tmp_path):
    torch.manual_seed(0)
    model = PlasmaModel(PRESETS["published"].plasma_config(WIDTH, head_size=32, kernel_scale=0.5))
    plain = PublishedForm(model)
    rows = []
    for pair in make_pairs(6):
        sides = {}
        for side in ("query", "candidate"):
            protein = getattr(pair, side)
            sides[f"{side}_embeddings"] = torch.randn(len(protein.sequence), WIDTH)
            sides[f"{side}_site_labels"] = torch.tensor(protein.site_labels).float()
        rows.append(sides | {"labels": torch.tensor(pair.label)})
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    for row in rows:
        optimizer.zero_grad()
        sides = row["query_embeddings"], row["candidate_embeddings"]
        sites = row["query_site_labels"], row["candidate_site_labels"]
        plain.loss(*sides, row["labels"], *sites).backward()
        optimizer.step()
    given = arguments(
        "published", tmp_path, num_train_epochs=1, train_sampling_strategy="sequential"
    )
    given.eval_strategy = given.save_strategy = "no"
    PlasmaTrainer(model, given, train_dataset=rows, eval_dataset=rows).train()
    ours = [model.alignment_head.hidden, model.alignment_head.output]
    for layer, theirs in zip(ours, (plain.project[0], plain.project[2]), strict=True):
        # Adam's step is as large for a gradient of rounding noise as for any other.
        moved = (layer.weight - theirs.weight).abs()
        assert moved.median() < 1e-6 and moved.max() < 6 * 1e-4


@torch.no_grad()
def test_the_default_starts_as_plasma_pf():
    torch.manual_seed(0)
    query, candidate = torch.randn(1, 20, WIDTH), torch.randn(1, 30, WIDTH)
    candidate[:, 5:15] = query[:, :10]
    improved = PRESETS["improved"].plasma_config(WIDTH, kernel_scale=1.0)
    free = PRESETS["improved"].plasma_config(WIDTH, kernel_scale=1.0, head="hinge")
    fresh, pf = (
        PlasmaModel(config)(query, candidate, return_plan=True) for config in (improved, free)
    )
    assert (fresh.plan - pf.plan).abs().max() < 1e-4
    assert fresh.scores == pytest.approx(pf.scores, abs=1e-4)
