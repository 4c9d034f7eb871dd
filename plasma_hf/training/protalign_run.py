"""One run of training ProtAlign: store embeddings, train, evaluate, save, with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments, set_seed

from ..io.structures import StructurePair
from ..models.modeling_backbone import Backbone
from ..models.modeling_protalign import ProtAlignModel
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
from ..models.processing_protalign import ProtAlignProcessor
from ..models.protein import Structure
from .arguments import PROTALIGN_PRESETS, ProtAlignPreset
from .lora import lora_config
from .protalign_trainer import ProtAlignTrainer
from .run import checkpoint_to_resume, digest
from .structure_data import (
    PairCollation,
    PairFeatures,
    PairParts,
    StructurePairs,
    near_copies,
    shaken,
    structure_hash,
)

CHECKPOINTS = "checkpoints"
METRICS = "metrics.json"
UNUSED_PARTS = ("pooler", "contact_head")

Trained = Literal["none", "structure", "all", "lora"]
TRAINED: tuple[Trained, ...] = ("none", "structure", "all", "lora")
"""Which encoders train: none, that of structures, both, or that of sequences by LoRA beside it."""


@dataclass(frozen=True)
class ProtAlignRun:
    """Hold what a run depends on, beside pairs and encoders.

    Attributes:
        folder: where model, card, `metrics.json` and checkpoints go.
        preset: a name of `PROTALIGN_PRESETS`, or a recipe of one's own.
        seed: of first weights and of the order of pairs.
        trained: which encoders train, of `TRAINED`; with "none" embeddings are computed once.
        store: folder of the embeddings; in `folder` by default.
        store_dtype: what new stores keep.
        model_class: `ProtAlignModel`, or one with other pools.
        config: fields of `ProtAlignConfig` that go before the preset.
        arguments: fields of `TrainingArguments` that go before the preset.
        details: what the card says beside, by name.
    """

    folder: str | PathLike[str]
    preset: str | ProtAlignPreset = "improved"
    seed: int = 0
    trained: Trained = "none"
    store: str | PathLike[str] | None = None
    store_dtype: str = "float16"
    model_class: type[ProtAlignModel] = ProtAlignModel
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def train(
        self,
        parts: PairParts,
        backbone: Backbone,
        encoder: ProteinMPNNEncoder,
        *,
        resume: bool = False,
    ) -> dict[str, dict[str, float]]:
        """Train a model on pairs, evaluate it, and save it with its encoders.

        Args:
            parts: The pairs.
            backbone: Of the sequences, what `load_backbone` gives.
            encoder: Of the structures; changed in place if it trains.
            resume: Go on from the last checkpoint in the folder, if there is one.

        Returns:
            Figures by set: "eval" (validation) and "test".

        Raises:
            ValueError: If there are too few pairs, an option is unknown, or the folder has
                checkpoints of a run with other settings.
            FileExistsError: If the folder has checkpoints and `resume` is False.
            ImportError: If LoRA is asked for and peft is not installed.
        """
        if self.trained not in TRAINED:
            raise ValueError(f"trained={self.trained!r}; give one of {', '.join(TRAINED)}.")
        arguments = self._arguments(len(parts.train))
        settings = self._settings(parts)
        checkpoint = checkpoint_to_resume(Path(self.folder) / CHECKPOINTS, settings, resume)
        everything = [*parts.train, *parts.validation, *parts.test]
        forms = self._forms(parts.train)
        if forms is not None:
            everything += [
                replace(pair, structure=form) for pair, form in zip(parts.train, forms, strict=True)
            ]
        features = self.features(everything, backbone, encoder)
        model = self.untrained_model(backbone, encoder)
        trainer = ProtAlignTrainer(
            self._with_adapter(model) if self.trained == "lora" else model,
            arguments,
            data_collator=PairCollation(
                features, None if self.trained == "none" else processor_of(model, backbone)
            ),
            train_dataset=StructurePairs(parts.train, self._groups(parts.train), forms),
            eval_dataset=StructurePairs(parts.validation),
            left_out=self.recipe.left_out,
            cropped=self.recipe.cropped,
            view_weight=self.recipe.view_weight,
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.evaluate()
        if len(parts.test):
            trainer.evaluate(StructurePairs(parts.test), metric_key_prefix="test")
        self._save(trainer, backbone, encoder, parts, settings)
        return trainer.figures

    @property
    def recipe(self) -> ProtAlignPreset:
        """The recipe itself."""
        known = PROTALIGN_PRESETS
        return known[self.preset] if isinstance(self.preset, str) else self.preset

    def features(
        self, pairs: Sequence[StructurePair], backbone: Backbone, encoder: ProteinMPNNEncoder
    ) -> PairFeatures:
        """Compute, or find, the embeddings of the sides whose encoders do not train."""
        sequences = backbone if self.trained in ("none", "structure") else None
        structures = encoder if self.trained in ("none", "lora") else None
        folder = Path(self.store or Path(self.folder) / "store")
        return PairFeatures.compute(folder, pairs, sequences, structures, self.store_dtype)

    def _arguments(self, pairs: int) -> TrainingArguments:
        """Configure the training, with batches that the training pairs can fill."""
        arguments = self.recipe.training_arguments(
            Path(self.folder) / CHECKPOINTS, **{"seed": self.seed} | dict(self.arguments)
        )
        # Without this, as batches that are not full are dropped, nothing would be learnt.
        most = max(2, pairs // arguments.world_size)
        arguments.per_device_train_batch_size = min(arguments.per_device_train_batch_size, most)
        return arguments

    def is_finished(self, parts: PairParts) -> bool:
        """Tell whether the folder holds the result of this very run."""
        file = Path(self.folder) / METRICS
        written = json.loads(file.read_text()) if file.exists() else {}
        return all(written.get(key) == value for key, value in self._settings(parts).items())

    def _settings(self, parts: PairParts) -> dict[str, Any]:
        """Say what a resumed run has to have in common with the one that was stopped."""
        learnt = (f"{pair.sequence} {structure_hash(pair.structure)}" for pair in parts.train)
        return {
            "preset": self.recipe.name,
            "seed": self.seed,
            "trained encoders": self.trained,
            "pools": self.model_class.__name__,
            "config": dict(self.config),
            "arguments": {name: str(value) for name, value in self.arguments.items()},
            "digest of training pairs": digest(learnt),
        }

    def untrained_model(self, backbone: Backbone, encoder: ProteinMPNNEncoder) -> ProtAlignModel:
        """Build the model that training starts from, over the encoders that train."""
        set_seed(self.seed)
        sizes = {
            "sequence_size": backbone.hidden_size,
            "structure_size": encoder.config.hidden_size,
        }
        model = self.model_class(self.recipe.protalign_config(**sizes, **self.config))
        if self.trained in ("structure", "all"):
            encoder.config.augment_eps = self.recipe.augment_eps
            model.attach_structure_encoder(encoder)
            model.structure_encoder.requires_grad_(True)
        if self.trained in ("all", "lora"):
            model.attach_backbone(backbone)
        if self.trained == "all":
            for name, parameter in model.backbone.named_parameters():
                # Some encoders have parts that say nothing of residues, and get no gradient.
                parameter.requires_grad_(not name.startswith(UNUSED_PARTS))
        return model

    def _with_adapter(self, model: ProtAlignModel) -> Any:
        config = lora_config(model)  # complains where peft is not installed
        from peft import get_peft_model

        return get_peft_model(model, config)

    def _groups(self, pairs: Sequence[StructurePair]) -> list[int] | None:
        identity = self.recipe.mask_identity
        return None if identity is None else near_copies(pairs, identity)

    def _forms(self, pairs: Sequence[StructurePair]) -> list[Structure] | None:
        """Make a second form of structures; an encoder that trains adds its noise itself."""
        eps = self.recipe.form_eps
        if not eps or self.trained in ("structure", "all"):
            return None
        return [shaken(pair.structure, eps) for pair in pairs]

    def _save(
        self,
        trainer: ProtAlignTrainer,
        backbone: Backbone,
        encoder: ProteinMPNNEncoder,
        parts: PairParts,
        settings: dict[str, Any],
    ) -> None:
        model: Any = trainer.model
        if self.trained == "lora":
            model = trainer.model = model.merge_and_unload()
        if model.sequence_encoder is None:
            model.attach_backbone(backbone)
        if model.structure_encoder is None:
            model.attach_structure_encoder(encoder)
        trainer.card_details = {
            "preset": self.recipe.name,
            "trained encoders": self.trained,
            "training pairs": len(parts.train),
            **parts.details,
            **self.details,
        }
        trainer.save_model(str(self.folder))
        if trainer.is_world_process_zero():
            processor_of(model, backbone).save_pretrained(self.folder)
            written = {
                "figures": trainer.figures,
                "settings": trainer.details(),
                "losses": trainer.losses,
                **settings,
            }
            (Path(self.folder) / METRICS).write_text(json.dumps(written, indent=2) + "\n")


def processor_of(model: ProtAlignModel, backbone: Backbone) -> ProtAlignProcessor:
    """Return what writes sequences for the backbone, and structures for the encoder."""
    came, structures = backbone.processor, model.config.structure_config
    atoms = "backbone" if structures is None else structures.atoms
    return ProtAlignProcessor(came.tokenizer, came.input_format, atoms=atoms)
