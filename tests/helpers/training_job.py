"""A tiny training from a store, which tests run in parts, on two ranks, and kill."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import EmbeddingStore, PairCollator, ProteinPair, SiteProtein
from plasma_hf.training import PairRows, PlasmaTrainer
from plasma_hf.training.arguments import EVERY_RUN
from plasma_hf.training.distributed import leave_ranks
from tests.helpers.kill_points import stop_at

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
WIDTH = 16


class LetterEmbedder:
    """Embed a residue by its letter alone."""

    fingerprint = {"backbone": "letters"}
    hidden_size = WIDTH

    def embed(self, sequences):
        table = torch.randn(len(LETTERS), WIDTH, generator=torch.Generator().manual_seed(0))
        return [table[[LETTERS.index(letter) for letter in sequence]] for sequence in sequences]


def make_pairs(n=16, seed=0):
    """Draw `n` pairs of proteins of 15 to 40 residues; positive ones share a motif of eight."""
    rng = random.Random(seed)

    def protein(name, motif):
        left, right = (rng.choices(LETTERS, k=rng.randint(4, 16)) for _ in range(2))
        labels = (0,) * len(left) + (1,) * len(motif) + (0,) * len(right)
        sequence = "".join([*left, *motif, *right])
        return SiteProtein(f"{name}", "F", sequence, labels)

    pairs = []
    for i in range(n):
        motifs = [rng.choices(LETTERS, k=8) for _ in range(2)]
        label = 1 - i % 2
        sides = protein(f"Q{i}", motifs[0]), protein(f"C{i}", motifs[1 - label])
        pairs.append(ProteinPair(*sides, label))
    return pairs


def make_store(folder, pairs):
    store = EmbeddingStore.create(folder, LetterEmbedder())
    proteins = [protein for pair in pairs for protein in (pair.query, pair.candidate)]
    store.add([(f"{i}", protein.sequence) for i, protein in enumerate(proteins)], LetterEmbedder())
    return EmbeddingStore.open(folder)


def make_trainer(store, output, pairs, *, model=None, callbacks=(), optim="sgd", **arguments):
    """Make a trainer whose first weights depend on nothing."""
    torch.set_num_threads(1)
    if model is None:
        torch.manual_seed(0)
        fields = {"head": "residual", "head_size": 8, "kernel_scale": 1.0, "score_form": "mass"}
        model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, **fields))
    fields = EVERY_RUN | {
        "output_dir": str(output),
        "optim": optim,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 2,
        "disable_tqdm": True,
        "use_cpu": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
    }
    return PlasmaTrainer(
        model,
        TrainingArguments(**fields | arguments),
        data_collator=PairCollator(store),
        train_dataset=PairRows(pairs, correspondences=True),
        eval_dataset=PairRows(pairs),
        callbacks=list(callbacks),
    )


CHECKPOINTED = {
    "per_device_train_batch_size": 2,
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "learning_rate": 0.01,
    "save_strategy": "steps",
    "save_steps": 3,
}
"""A run of 16 updates in 2 epochs, with checkpoints in the middle of them."""


def run_killed(folder, steps):
    """Train with checkpoints, from the last one, until a step that kills the process."""
    stop_at("plasma_hf.training:PlasmaTrainer.training_step", steps)
    trainer = make_trainer(
        EmbeddingStore.open(folder / "store"), folder / "run", make_pairs(), **CHECKPOINTED
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder / "run")))


def run_ranks(folder):
    """Train and evaluate on the ranks that torchrun started; the first writes what it has."""
    store = EmbeddingStore.open(folder / "store")
    trainer = make_trainer(store, folder / "ranks", make_pairs(), per_device_train_batch_size=2)
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        metrics = {k: torch.tensor(v) for k, v in metrics.items() if isinstance(v, float)}
        save_file(trainer.model.state_dict() | metrics, folder / "ranks.safetensors")


if __name__ == "__main__":
    job, place = sys.argv[1], Path(sys.argv[2])
    if job == "killed":
        run_killed(place, int(sys.argv[3]))
    else:
        run_ranks(place)
        leave_ranks()
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        assert not [name for name in names if "gloo" in name], "a thread may abort the process"
