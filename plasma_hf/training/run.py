"""Where a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.pairs import ProteinPair
from ..data.store import EmbeddingStore, sequence_hash
from ..models.modeling_backbone import Backbone
from ..models.modeling_plasma import PlasmaModel
from .arguments import PRESETS, Preset
from .pair_data import PairRows, TrainingCollator
from .trainer import HELD_OUT, PlasmaTrainer

if TYPE_CHECKING:
    from ..data.splits import PairSplits


logger = logging.getLogger(__name__)

SETTINGS = "run.json"
"""File beside checkpoints with the settings of their run."""


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a Trainer that was written to its end, None without one.

    A process that is killed while it writes leaves a torn one; the state of the Trainer is what
    is written last.
    """
    found = {int(c.name.split("-")[-1]): c for c in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    for _, checkpoint in sorted(found.items(), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            logger.warning("%s is not complete and is passed over", checkpoint)
            continue
        return checkpoint
    return None


def checkpoint_to_resume(folder: Path, settings: Mapping[str, Any], resume: bool) -> str | None:
    """Return the last whole checkpoint of a folder, None where there is none.

    Args:
        folder: Of the checkpoints; made if need be.
        settings: What a resumed run has in common with the one that was stopped, by name. A new run
            leaves them in the folder.
        resume: Whether to go on with an earlier run.

    Raises:
        FileExistsError: If there is one and `resume` is False.
        ValueError: If it is of a run with other settings; the message names the first.
    """
    last, file = last_whole_checkpoint(folder), folder / SETTINGS
    wanted = json.loads(json.dumps(dict(settings), default=str))
    if last is None:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(wanted, indent=2) + "\n")
        return None
    if not resume:
        raise FileExistsError(
            f"{folder} has the checkpoints of an earlier run; go on with it by resume=True "
            "(--resume), or give another folder."
        )
    before = json.loads(file.read_text()) if file.exists() else wanted
    for name, value in wanted.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} has a run with {name} {before.get(name)}, you asked for {value}; resume "
                "it with the same settings, or give another folder."
            )
    return str(last)


def digest(texts: Iterable[str]) -> str:
    """Return what tells one list of texts from another.

    Example:
        >>> digest(["MKV", "A"]) == digest(["MK", "VA"])
        False
    """
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(f"{text}\n".encode())
    return hashed.hexdigest()[:16]


# --- One run of training a head: store the embeddings, train, evaluate, save, with a card.


CHECKPOINTS = "checkpoints"
METRICS = "metrics.json"


@dataclass(frozen=True)
class PlasmaRun:
    """Hold what a run depends on, beside pairs and backbone.

    Attributes:
        folder: where model, card, `metrics.json` and checkpoints go.
        preset: a name of `PRESETS`, or a recipe of one's own.
        seed: of the head's first weights and of the order of pairs.
        fraction: share of the training pairs to use, drawn with the seed.
        store: folder of the embeddings; in `folder` by default.
        store_dtype: what a new store keeps.
        config: fields of `PlasmaConfig` that go before the preset.
        arguments: fields of `TrainingArguments` that go before the preset.
        details: what the card says beside, by name.
    """

    folder: str | PathLike[str]
    preset: str | Preset = "improved"
    seed: int = 1
    fraction: float = 1.0
    store: str | PathLike[str] | None = None
    store_dtype: str = "float16"
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def train(
        self, splits: PairSplits, backbone: Backbone, *, resume: bool = False
    ) -> dict[str, dict[str, float]]:
        """Train a head on the pairs of a split, evaluate it, and save it.

        Embeddings and pairs stream: neither the store nor a set of plans is held in memory.

        Args:
            splits: A `PairSplits`: train, validation, test and test_hard.
            backbone: What `load_backbone` gives; it stays frozen.
            resume: Go on from the last checkpoint in the folder, if there is one.

        Returns:
            Figures by set: "eval" (validation), "interpolation", "extrapolation".

        Raises:
            ValueError: If there is nothing to train on, an option is out of range, or the folder
                has checkpoints of a run with other settings.
            FileExistsError: If the folder has checkpoints and `resume` is False.
        """
        preset = self.recipe
        arguments = preset.training_arguments(
            Path(self.folder) / CHECKPOINTS, **{"seed": self.seed} | dict(self.arguments)
        )
        pairs = sample_share(splits.train, self.fraction, self.seed)
        checkpoint = checkpoint_to_resume(
            Path(self.folder) / CHECKPOINTS, self._settings(pairs), resume
        )
        held_out = {name: getattr(splits, side) for name, side in HELD_OUT.items()}
        store = self._store([pairs, splits.validation, *held_out.values()], backbone)
        set_seed(self.seed)
        model = PlasmaModel(preset.plasma_config(backbone.hidden_size, **self.config))
        trainer = PlasmaTrainer(
            model,
            arguments,
            data_collator=TrainingCollator(store),
            train_dataset=PairRows(pairs, preset.correspondences),
            eval_dataset=PairRows(splits.validation),
            callbacks=preset.callbacks(),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        for name, value in preset.aligning.items():
            setattr(model.config, name, value)
        trainer.evaluate()
        for name, test in held_out.items():
            if len(test):
                trainer.evaluate(PairRows(test), metric_key_prefix=name)
        self._save(trainer, model, backbone, splits, len(pairs))
        return trainer.figures

    @property
    def recipe(self) -> Preset:
        """The recipe itself."""
        return PRESETS[self.preset] if isinstance(self.preset, str) else self.preset

    def _settings(self, pairs: Iterable[ProteinPair]) -> dict[str, Any]:
        """Say what a resumed run has to have in common with the one that was stopped."""
        return {
            "preset": self.recipe.name,
            "seed": self.seed,
            "fraction": self.fraction,
            "config": dict(self.config),
            "arguments": {name: str(value) for name, value in self.arguments.items()},
            "digest of training pairs": digest(
                f"{pair.query.sequence} {pair.candidate.sequence} {pair.label}" for pair in pairs
            ),
        }

    def _store(self, parts: Iterable[Sequence[ProteinPair]], backbone: Backbone) -> EmbeddingStore:
        folder = Path(self.store or Path(self.folder) / "store")
        there = (folder / "store.json").exists()
        store = EmbeddingStore.create(
            folder, backbone, dtype=None if there else self.store_dtype, kinds=["embeddings"]
        )
        sequences = {
            protein.sequence
            for part in parts
            for pair in part
            for protein in (pair.query, pair.candidate)
        }
        # By hash: one accession may stand for several sequences in a table, and several for one.
        named = [(sequence_hash(sequence), sequence) for sequence in sorted(sequences)]
        done = store.add(named, backbone)
        if done.bad:
            raise ValueError(f"{done.bad[0].id}: {done.bad[0].reason}")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # until the other ranks have embedded their share
        return EmbeddingStore.open(folder)

    def _save(
        self,
        trainer: PlasmaTrainer,
        model: PlasmaModel,
        backbone: Backbone,
        splits: PairSplits,
        n_pairs: int,
    ) -> None:
        model.attach_backbone(backbone)
        trainer.card_details = {
            "preset": self.recipe.name,
            "protocol": splits.protocol,
            "training pairs": n_pairs,
            **self.details,
        }
        trainer.save_model(str(self.folder))
        if trainer.is_world_process_zero():
            backbone.processor.save_pretrained(self.folder)
            written = {
                "figures": trainer.figures,
                "settings": trainer.details(),
                "config": dict(self.recipe.config) | dict(self.config),
                "splits": {"protocol": splits.protocol, "seed": splits.seed},
            }
            (Path(self.folder) / METRICS).write_text(json.dumps(written, indent=2) + "\n")


def sample_share(pairs: Sequence[ProteinPair], fraction: float, seed: int) -> Sequence[ProteinPair]:
    """Draw a share of the training pairs, as the published code does with the same seed.

    Raises:
        ValueError: If the share is out of (0, 1] or leaves no pair.

    Example:
        >>> sample_share(list("abcdefgh"), 0.25, seed=1)
        ['c', 'e']
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}; give a share above 0, up to 1.")
    count = int(len(pairs) * fraction)
    if count == 0:
        raise ValueError(
            f"fraction={fraction} of {len(pairs)} training pairs leaves none; give a larger share."
        )
    return pairs if fraction == 1 else random.Random(seed).sample(list(pairs), count)
