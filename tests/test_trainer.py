"""Training of a head: what an update depends on, and what it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import get_last_checkpoint

from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.data import PairCollator
from plasma_hf.metrics import average_precision, f1_max, label_match_score, roc_auc
from plasma_hf.training import PRESETS, PairRows, PlasmaTrainer, lora_config
from plasma_hf.training.trainer import LengthGroupedSampler
from tests.helpers.clients import run_client
from tests.helpers.hub import serve
from tests.helpers.tiny_backbones import FAMILIES
from tests.helpers.training_job import CHECKPOINTED, WIDTH, make_pairs, make_store, make_trainer

JOB = Path(__file__).parent / "helpers" / "training_job.py"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pairs():
    return make_pairs()


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    make_store(folder / "store", pairs)
    return folder


@pytest.fixture
def store(folder, pairs):
    return make_store(folder / "store", pairs)


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def differ(some, others):
    return max(float((some[name] - others[name]).abs().max()) for name in some)


def run_job(*words, ranks=1, check=True):
    python = [sys.executable]
    if ranks > 1:
        python += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python, str(JOB), *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("form", ["published", "symmetric"])
@pytest.mark.parametrize("head", ["lrl", "residual"])
def test_a_batch_has_the_mean_gradient_of_its_pairs(pairs, store, head, form):
    torch.manual_seed(0)
    fields = {"embedding_size": WIDTH, "head": head, "head_size": 32, "kernel_scale": 0.5}
    losses = {"score_loss_form": "affine", "label_match_form": form, "score_form": "mass"}
    model = PlasmaModel(PlasmaConfig(**fields, **losses))
    rows, collate = PairRows(pairs, correspondences=True), PairCollator(store)
    batch = gradients(model, collate([rows[i] for i in range(16)]))
    alone = [gradients(model, collate([rows[i]])) for i in range(16)]
    for name, gradient in batch.items():
        mean = torch.stack([one[name] for one in alone]).mean(0)
        assert (gradient - mean).abs().max() < 1e-5, name
    assert max(gradient.abs().max() for gradient in batch.values()) > 1e-3


@pytest.mark.slow
def test_accumulated_batches_update_as_one(pairs, store, tmp_path):
    whole = make_trainer(store, tmp_path, pairs, per_device_train_batch_size=4)
    first = weights(whole)
    whole.train()
    parts = make_trainer(
        store, tmp_path, pairs, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    parts.train()
    assert differ(first, weights(whole)) > 1e-3
    assert differ(weights(whole), weights(parts)) < 1e-6


@pytest.mark.slow
def test_two_ranks_update_and_evaluate_as_one(pairs, store, folder, tmp_path):
    alone = make_trainer(store, tmp_path, pairs, per_device_train_batch_size=4)
    alone.train()
    metrics = alone.evaluate()
    run_job("ranks", folder, ranks=2)
    shared = load_file(folder / "ranks.safetensors")
    assert differ(weights(alone), shared) < 1e-6
    for name in ("loss", "score_loss", "label_match_score", "roc_auc", "f1_max"):
        assert metrics[f"eval_{name}"] == pytest.approx(float(shared[f"eval_{name}"]), abs=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(pairs, store, tmp_path):
    runs = [make_trainer(store, tmp_path, pairs, **CHECKPOINTED | {"seed": 3}) for _ in range(2)]
    other = make_trainer(store, tmp_path, pairs, **CHECKPOINTED | {"seed": 4})
    for trainer in (*runs, other):
        trainer.train()
    assert differ(weights(runs[0]), weights(runs[1])) == 0.0
    assert differ(weights(runs[0]), weights(other)) > 0.0
    figures = [trainer.evaluate() and trainer.metrics["eval"] for trainer in runs]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_killed_and_resumed_training_ends_in_the_same_weights(pairs, store, folder, tmp_path):
    whole = make_trainer(store, tmp_path, pairs, **CHECKPOINTED)
    whole.train()
    assert run_job("killed", folder, 11, check=False).returncode == -9  # in the second epoch
    last = get_last_checkpoint(str(folder / "run"))
    assert last.endswith("checkpoint-9")
    resumed = make_trainer(store, folder / "run", pairs, **CHECKPOINTED)
    resumed.train(resume_from_checkpoint=last)
    assert resumed.state.global_step == whole.state.global_step == 16
    assert differ(weights(whole), weights(resumed)) == 0.0


@torch.no_grad()
def test_figures_of_an_evaluation(pairs, store, tmp_path):
    trainer = make_trainer(store, tmp_path, pairs, per_device_eval_batch_size=5)
    metrics = trainer.evaluate()
    model, rows, collate = trainer.model.eval(), PairRows(pairs), PairCollator(store)
    scores, matches, backward, losses = [], [], [], []
    for row in rows:
        out = model(**collate([row]), return_plan=True)
        scores.append(float(out.scores))
        losses.append(float(out.loss))
        if row["label"]:
            sites = row["query_site_labels"], row["candidate_site_labels"]
            matches.append(label_match_score(out.plan[0], *sites))
            backward.append(label_match_score(out.plan[0].T, *sites[::-1]))
    labels = [pair.label for pair in pairs]
    wanted = {
        "loss": sum(losses) / len(losses),
        "roc_auc": roc_auc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "f1_max": f1_max(labels, scores),
        "label_match_score": sum(matches) / len(matches),
        "label_match_score_query": sum(backward) / len(backward),
        "pairs": len(pairs),
    }
    for name, value in wanted.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5), name
    assert metrics["eval_loss"] == pytest.approx(
        metrics["eval_score_loss"] + metrics["eval_label_match_loss"] / 2, abs=1e-5
    )


def test_positive_pairs_alone_have_no_area(pairs, store, tmp_path):
    trainer = make_trainer(store, tmp_path, pairs)
    metrics = trainer.evaluate(PairRows([pair for pair in pairs if pair.label]))
    assert "eval_roc_auc" not in metrics and metrics["eval_label_match_score"] > 0


def test_training_stops_early_and_keeps_the_best(pairs, store, tmp_path):
    trainer = make_trainer(
        store,
        tmp_path,
        pairs,
        callbacks=[EarlyStoppingCallback(2, 0.1)],  # as much as no epoch gains after the first
        optim="adamw_torch",
        num_train_epochs=15,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        per_device_train_batch_size=4,
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert 2 < len(losses) < 15
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.slow
def test_half_precision_leaves_the_head_alone(pairs, store, tmp_path):
    full, half = (
        make_trainer(store, tmp_path, pairs, per_device_train_batch_size=4, bf16=bf16)
        for bf16 in (False, True)
    )
    full.train()
    half.train()
    assert differ(weights(full), weights(half)) == 0.0


@pytest.mark.parametrize("trained", ["lora", "full"])
def test_a_backbone_trains_too(trained, tmp_path):
    backbone = load_backbone(FAMILIES["esm2"](tmp_path / "esm2_t6_8M_UR50D"))
    torch.manual_seed(0)
    fields = {"embedding_size": 32, "head_size": 8, "kernel_scale": 1.0, "score_form": "mass"}
    model = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(backbone)
    if trained == "lora":
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, lora_config(model, rank=2))
    else:
        model.backbone.requires_grad_(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pairs = make_pairs(4)
    arguments = PRESETS["improved"].training_arguments(
        tmp_path / "run",
        use_cpu=True,
        disable_tqdm=True,
        max_steps=2,
        per_device_train_batch_size=2,
    )
    trainer = PlasmaTrainer(
        model,
        arguments,
        data_collator=PairCollator(backbone.processor),
        train_dataset=PairRows(pairs),
        eval_dataset=PairRows(pairs),
    )
    trainer.train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("backbone" in name for name in changed)
    assert any("alignment_head" in name for name in changed)
    if trained == "lora":
        assert all("lora" in name for name in changed if "backbone" in name)


def test_save_model_writes_a_card(pairs, store, tmp_path):
    trainer = make_trainer(store, tmp_path, pairs)
    trainer.evaluate()
    trainer.evaluate(PairRows(pairs[:6]), metric_key_prefix="extrapolation")
    trainer.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    wanted = trainer.metrics["extrapolation"]["label_match_score"]
    assert (
        f"| extrapolation (families held out) | {trainer.metrics['extrapolation']['roc_auc']:.3f}"
        in card
    )
    assert f"| {wanted:.3f} | 6 |" in card
    loaded = PlasmaModel.from_pretrained(tmp_path / "saved")
    assert differ(weights(trainer), loaded.state_dict()) == 0.0


def test_nothing_is_printed(pairs, store, tmp_path, capsys):
    make_trainer(store, tmp_path, pairs, per_device_train_batch_size=8, logging_steps=1).train()
    assert capsys.readouterr().out == ""


def test_order_of_pairs():
    lengths = torch.randint(50, 400, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGroupedSampler(lengths, batch_size=16, seed=1)
    first = list(sampler)
    assert first == list(sampler) and sorted(first) == list(range(500))
    spread = [
        max(lengths[i] for i in first[k : k + 16]) - min(lengths[i] for i in first[k : k + 16])
        for k in range(0, 496, 16)
    ]
    assert sorted(spread)[len(spread) // 2] < 60  # of a range of 350
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthGroupedSampler(lengths, 16, seed=2)) != first


PUSH = """
import json, sys, torch
from pathlib import Path
from huggingface_hub import HfApi
from plasma_hf import PlasmaConfig, PlasmaModel, PlasmaProcessor
from plasma_hf.training import PRESETS, ProtAlignTrainer, PlasmaTrainer
from plasma_hf.training.arguments import PROTALIGN_PRESETS
from tests.test_protalign import tiny_model

folder, api, found = Path(sys.argv[1]), HfApi(), {}
fields = {"use_cpu": True, "disable_tqdm": True, "max_steps": 2, "per_device_train_batch_size": 1}
fields |= {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
protein = torch.arange(96.0).sin().view(12, 8)
row = {"query_embeddings": protein, "candidate_embeddings": protein, "labels": torch.tensor(1)}
model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=8))
arguments = PRESETS["improved"].training_arguments(folder / "head", **fields)
arguments.hub_model_id = "org/head"
trainer = PlasmaTrainer(model, arguments, train_dataset=[row], eval_dataset=[row])
trainer.train()
trainer.evaluate()
commit = trainer.push_to_hub("By hand")
found["head"] = [commit.oid, commit.commit_message, api.list_repo_files("org/head")]

row = {"sequence_embeddings": torch.ones(4, 12), "structure_embeddings": torch.ones(4, 8)}
pushed = {"push_to_hub": True, "hub_model_id": "org/pools", "hub_strategy": "every_save"}
arguments = PROTALIGN_PRESETS["improved"].training_arguments(folder / "pools", **fields | pushed)
trainer = ProtAlignTrainer(tiny_model(), arguments, train_dataset=[row], eval_dataset=[row])
trainer.train()
found["after training"] = api.list_repo_files("org/pools")
trainer.save_model()
found["pools"] = api.list_repo_files("org/pools")
for name in ("head", "pools"):
    found[f"{name} card"] = Path(api.hf_hub_download(f"org/{name}", "README.md")).read_text()
found["weights"] = float(trainer.model.sequence_pool.query.sum())
print(json.dumps(found))
"""

LOAD = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
from transformers import AutoModel

remote = {"trust_remote_code": True}
head, pools = (AutoModel.from_pretrained(f"org/{name}", **remote) for name in ("head", "pools"))
print(json.dumps([type(head).__name__, float(pools.sequence_pool.query.sum())]))
"""


@pytest.mark.slow
def test_a_run_is_pushed_to_the_hub_and_loads_without_the_package(tmp_path):
    with serve() as address:
        hub = {"PLASMA_HF_KERNELS": "torch", "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        found = run_client(PUSH, (tmp_path,), tmp_path, "pusher", **hub)
        loaded = run_client(LOAD, (), tmp_path, "reader", **hub)
    assert found["head"][1] == "By hand"
    for files in (found["head"][2], found["after training"], found["pools"]):
        assert {"config.json", "model.safetensors", "export.json", "README.md"} <= set(files)
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
        assert not [file for file in files if "checkpoint" in file]
    assert "validation" in found["head card"] and "updates: 2" in found["head card"]
    assert "org/pools" in found["pools card"]
    assert loaded == ["PlasmaModel", pytest.approx(found["weights"], abs=1e-6)]
