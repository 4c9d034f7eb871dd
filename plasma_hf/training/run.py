"""Whole runs of training: store the embeddings, train, evaluate, save with a card, resume."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from transformers import set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.collator import PairCollator, PairRows
from ..data.pairs import ProteinPair
from ..io.structures import StructurePair
from ..models.configuration_protalign import ProtAlignConfig
from ..models.modeling_backbone import Backbone
from ..models.modeling_plasma import PlasmaModel
from ..models.modeling_protalign import ProtAlignModel
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
from ..models.modeling_residue_encoder import ResidueEncoderModel
from ..models.processing_protalign import ProtAlignProcessor
from .arguments import PRESETS, PROTALIGN_PRESETS, Preset, ProtAlignPreset, lora_config
from .structure_data import (
    PairCollation,
    PairParts,
    StructurePairs,
    coordinate_noise,
    near_copies,
    store_sequences,
    store_structures,
    structure_hash,
)
from .trainer import CardTrainer, PlasmaTrainer, ProtAlignTrainer

if TYPE_CHECKING:
    from ..data.splits import PairSplits
    from ..data.store import EmbeddingStore

logger = logging.getLogger(__name__)

CHECKPOINTS, METRICS, SETTINGS = "checkpoints", "metrics.json", "run.json"
UNUSED_PARTS = ("pooler", "contact_head")

# Which encoders train: none, that of structures, both, or that of sequences by LoRA beside it.
Trained = Literal["none", "structure", "all", "lora"]
TRAINED: tuple[Trained, ...] = get_args(Trained)


def _last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that was written to its end; a killed process may tear one."""
    found = {int(c.name.split("-")[-1]): c for c in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    for _, checkpoint in sorted(found.items(), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            logger.warning("%s is not complete and is skipped", checkpoint)
            continue
        return checkpoint
    return None


def checkpoint_to_resume(folder: Path, settings: Mapping[str, Any], resume: bool) -> str | None:
    """Return the last whole checkpoint of a folder, None where there is none.

    One is refused without `resume`, or if it is of a run with other settings, which a new run
    leaves in the folder.
    """
    last, file = _last_whole_checkpoint(folder), folder / SETTINGS
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


@dataclass(frozen=True)
class TrainingRun:
    """Hold what a run depends on, beside data and encoders.

    Attributes:
        folder: where model, card, `metrics.json` and checkpoints go.
        preset: the name of a preset, or one of one's own.
        store: folder of the embeddings; in `folder` by default.
        config: fields of the model's configuration that go before the preset.
        arguments: fields of `TrainingArguments` that go before the preset.
        details: what the card says beside, by name.
    """

    presets: ClassVar[Mapping[str, Any]] = {}

    folder: str | PathLike[str]
    preset: Any = "improved"
    seed: int = 0
    store: str | PathLike[str] | None = None
    store_dtype: str = "float16"
    config: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _preset(self) -> Any:
        return self.presets[self.preset] if isinstance(self.preset, str) else self.preset

    @property
    def _store_folder(self) -> Path:
        return Path(self.store or Path(self.folder) / "store")

    def _training_arguments(self) -> Any:
        folder, given = Path(self.folder) / CHECKPOINTS, {"seed": self.seed} | dict(self.arguments)
        return self._preset.training_arguments(folder, **given)

    def _common(self, pairs: Iterable[str], **others: Any) -> dict[str, Any]:
        """Say what a resumed run has to have in common with the one that was stopped."""
        hashed = hashlib.sha256()
        for text in pairs:
            hashed.update(f"{text}\n".encode())
        return {
            "preset": self._preset.name,
            "seed": self.seed,
            **others,
            "config": dict(self.config),
            "arguments": {name: str(value) for name, value in self.arguments.items()},
            "digest of training pairs": hashed.hexdigest()[:16],
        }

    def _write(
        self, trainer: CardTrainer, processor: Any, details: Mapping[str, Any], **others: Any
    ) -> dict[str, dict[str, float]]:
        """Save model, processor, card and metrics, and return the metrics."""
        trainer.card_details = {"preset": self._preset.name, **details, **self.details}
        trainer.save_model(str(self.folder))
        if trainer.is_world_process_zero():
            processor.save_pretrained(self.folder)
            written = {"figures": trainer.metrics, "settings": trainer.details(), **others}
            (Path(self.folder) / METRICS).write_text(json.dumps(written, indent=2) + "\n")
        return trainer.metrics


@dataclass(frozen=True)
class PlasmaRun(TrainingRun):
    """Train a head on pairs, or a `fraction` of them; all else is as of `TrainingRun`."""

    presets: ClassVar[Mapping[str, Any]] = PRESETS

    preset: str | Preset = "improved"
    seed: int = 1
    fraction: float = 1.0

    def train(
        self, splits: PairSplits, backbone: Backbone, *, resume: bool = False
    ) -> dict[str, dict[str, float]]:
        """Train a head on the pairs of a split, evaluate it, and save it.

        Embeddings and pairs stream: neither the store nor a set of plans is held in memory.

        Args:
            backbone: What `load_backbone` gives; it stays frozen.
            resume: Go on from the last checkpoint in the folder, if there is one.

        Returns:
            Metrics by set: "eval" (validation), "interpolation", "extrapolation".

        Raises:
            ValueError: If there is nothing to train on, or the checkpoints are of another run.
            FileExistsError: If the folder has checkpoints and `resume` is False.
        """
        preset, arguments = self._preset, self._training_arguments()
        pairs = sample_share(splits.train, self.fraction, self.seed)
        learnt = (f"{p.query.sequence} {p.candidate.sequence} {p.label}" for p in pairs)
        settings = self._common(learnt, fraction=self.fraction)
        checkpoint = checkpoint_to_resume(Path(arguments.output_dir), settings, resume)
        everything = [*pairs, *splits.validation, *splits.test, *splits.test_hard]
        sequences = (side.sequence for pair in everything for side in (pair.query, pair.candidate))
        store = store_sequences(self._store_folder, sequences, backbone, self.store_dtype)
        set_seed(self.seed)
        model = PlasmaModel(preset.plasma_config(backbone.hidden_size, **self.config))
        trainer = PlasmaTrainer(
            model,
            arguments,
            data_collator=PairCollator(store),
            train_dataset=PairRows(pairs, preset.correspondences),
            eval_dataset=PairRows(splits.validation),
            callbacks=preset.callbacks(),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        for name, value in preset.aligning.items():
            setattr(model.config, name, self.config.get(name, value))
        if model.config.reading == "posterior":
            _learn_background(model, pairs, store)
        trainer.evaluate()
        for name, test in (("interpolation", splits.test), ("extrapolation", splits.test_hard)):
            if len(test):
                trainer.evaluate(PairRows(test), metric_key_prefix=name)
        model.attach_backbone(backbone)
        details = {"protocol": splits.protocol, "training pairs": len(pairs)}
        split, config = {"protocol": splits.protocol, "seed": splits.seed}, dict(preset.config)
        config |= self.config
        return self._write(trainer, backbone.processor, details, config=config, splits=split)


def _learn_background(model: PlasmaModel, pairs: Sequence[ProteinPair], store: Any) -> None:
    """Say what residues look like, by proteins of the training pairs, at most 30 of a family."""
    families: dict[str, set[str]] = {}
    for protein in (side for pair in pairs for side in (pair.query, pair.candidate)):
        if len(known := families.setdefault(protein.family, set())) < 30:
            known.add(protein.sequence)
    proteins = [(family, one) for family in sorted(families) for one in sorted(families[family])]
    proteins = random.Random(0).sample(proteins, min(len(proteins), 300))

    def embed(sequences: Sequence[str]) -> list[Any]:
        return [store.read_sequence(each, "embeddings") for each in sequences]

    sequences = [sequence for _, sequence in proteins]
    model.measure_background(embed(sequences), sequences)


def sample_share(pairs: Sequence[ProteinPair], fraction: float, seed: int) -> Sequence[ProteinPair]:
    """Draw a share of the training pairs, as the published code does with the same seed."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}; give a share above 0, up to 1.")
    count = int(len(pairs) * fraction)
    if count == 0:
        raise ValueError(
            f"fraction={fraction} of {len(pairs)} training pairs leaves none; give a larger share."
        )
    return pairs if fraction == 1 else random.Random(seed).sample(list(pairs), count)


@dataclass(frozen=True)
class ProtAlignRun(TrainingRun):
    """Train ProtAlign on pairs; the attributes beside those of `TrainingRun`.

    Attributes:
        trained: which encoders train, of `TRAINED`; with "none" embeddings are computed once.
        residue_steps: batches by which the encoders are trained residue by residue before all else,
            see `train_encoders`; a language model stays as it is.
        model_class: `ProtAlignModel`, or one with other pools.
    """

    presets: ClassVar[Mapping[str, Any]] = PROTALIGN_PRESETS

    preset: str | ProtAlignPreset = "improved"
    trained: Trained = "none"
    residue_steps: int = 0
    model_class: type[ProtAlignModel] = ProtAlignModel

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
            parts: What `split_pairs` gives.
            backbone: Of the sequences, what `load_backbone` gives.
            encoder: Of the structures; changed in place if it trains.
            resume: As of `PlasmaRun.train`, which also says what is refused.

        Returns:
            Metrics by set: "eval" (validation) and "test".
        """
        if self.trained not in TRAINED:
            raise ValueError(f"trained={self.trained!r}; give one of {', '.join(TRAINED)}.")
        preset, arguments, train = self._preset, self._training_arguments(), parts.train
        # Batches that are not full are dropped; larger ones than there are pairs would all be.
        most = max(2, len(train) // arguments.world_size)
        arguments.per_device_train_batch_size = min(arguments.per_device_train_batch_size, most)
        settings = self._settings(parts)
        checkpoint = checkpoint_to_resume(Path(arguments.output_dir), settings, resume)
        self._train_residues(train, backbone, encoder, arguments.use_cpu, resume)
        everything, forms = [*train, *parts.validation, *parts.test], None
        if preset.form_eps and self.trained in ("none", "lora"):
            # A second form of structures; an encoder that trains adds its noise itself.
            forms = [coordinate_noise(pair.structure, preset.form_eps) for pair in train]
            everything += [replace(p, structure=f) for p, f in zip(train, forms, strict=True)]
        stores, near = self.features(everything, backbone, encoder), preset.mask_identity
        groups = None if near is None else near_copies(train, near)
        model: Any = self.untrained_model(backbone, encoder)
        collation = PairCollation(*stores, processor_of(model, backbone))
        if self.trained == "lora":
            config = lora_config(model)  # complains where peft is not installed
            from peft import get_peft_model

            model = get_peft_model(model, config)
        trainer = ProtAlignTrainer(
            model,
            arguments,
            data_collator=collation,
            train_dataset=StructurePairs(train, groups, forms),
            eval_dataset=StructurePairs(parts.validation),
            **{name: getattr(preset, name) for name in ("left_out", "cropped", "view_weight")},
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.evaluate()
        if len(parts.test):
            trainer.evaluate(StructurePairs(parts.test), metric_key_prefix="test")
        model = trainer.model
        if self.trained == "lora":
            model = trainer.model = model.merge_and_unload()
        if model.sequence_encoder is None:
            model.attach_backbone(backbone)
        if model.structure_encoder is None:
            model.attach_structure_encoder(encoder)
        details = {"trained encoders": self.trained, "training pairs": len(train), **parts.details}
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        processor = processor_of(model, backbone)
        return self._write(trainer, processor, details, losses=losses, **settings)

    def _train_residues(
        self,
        pairs: Sequence[StructurePair],
        backbone: Backbone,
        encoder: ProteinMPNNEncoder,
        use_cpu: bool,
        resume: bool,
    ) -> None:
        """Train the encoders in place, residue by residue, where that is asked for."""
        if not self.residue_steps:
            return
        from .residue_contrast import ResidueTraining, train_encoders  # it stands on this module

        sizes = (backbone.hidden_size, encoder.config.hidden_size)
        model = ProtAlignModel(ProtAlignConfig(sequence_size=sizes[0], structure_size=sizes[1]))
        model.attach_backbone(backbone).attach_structure_encoder(encoder)
        model.processor = processor_of(model, backbone)
        train_encoders(
            model,
            pairs,
            [pair.family or pair.id for pair in pairs],
            Path(self.folder) / "residues",
            ResidueTraining(self.residue_steps, seed=self.seed, device="cpu" if use_cpu else None),
            sequences=isinstance(backbone.model, ResidueEncoderModel),
            resume=resume,
        )

    def features(
        self, pairs: Sequence[StructurePair], backbone: Backbone, encoder: ProteinMPNNEncoder
    ) -> tuple[EmbeddingStore | None, EmbeddingStore | None]:
        """Store the embeddings of sequences and structures, where the encoder does not train."""
        folder, dtype = self._store_folder, self.store_dtype
        sequences = structures = None
        if self.trained in ("none", "structure"):
            texts = (pair.sequence for pair in pairs)
            sequences = store_sequences(folder / "sequences", texts, backbone, dtype)
        if self.trained in ("none", "lora"):
            chains = (pair.structure for pair in pairs)
            structures = store_structures(folder / "structures", chains, encoder, dtype)
        return sequences, structures

    def is_finished(self, parts: PairParts) -> bool:
        """Tell whether the folder holds the result of this very run."""
        file = Path(self.folder) / METRICS
        written = json.loads(file.read_text()) if file.exists() else {}
        return all(written.get(key) == value for key, value in self._settings(parts).items())

    def _settings(self, parts: PairParts) -> dict[str, Any]:
        learnt = (f"{pair.sequence} {structure_hash(pair.structure)}" for pair in parts.train)
        named = {"trained encoders": self.trained, "pools": self.model_class.__name__}
        return self._common(learnt, **named)

    def untrained_model(self, backbone: Backbone, encoder: ProteinMPNNEncoder) -> ProtAlignModel:
        """Build the model that training starts from, over the encoders that train."""
        set_seed(self.seed)
        sizes = {"sequence_size": backbone.hidden_size}
        sizes["structure_size"] = encoder.config.hidden_size
        model = self.model_class(self._preset.protalign_config(**sizes, **self.config))
        if self.trained in ("structure", "all"):
            encoder.config.augment_eps = self._preset.augment_eps
            model.attach_structure_encoder(encoder)
            model.structure_encoder.requires_grad_(True)
        if self.trained in ("all", "lora"):
            model.attach_backbone(backbone)
        if self.trained == "all":
            for name, parameter in model.backbone.named_parameters():
                # Some encoders have parts that say nothing of residues, and get no gradient.
                parameter.requires_grad_(not name.startswith(UNUSED_PARTS))
        return model


def processor_of(model: ProtAlignModel, backbone: Backbone) -> ProtAlignProcessor:
    """Return what writes sequences for the backbone, and structures for the encoder."""
    came, structures = backbone.processor, model.config.structure_config
    atoms = "backbone" if structures is None else structures.atoms
    return ProtAlignProcessor(came.tokenizer, came.input_format, atoms=atoms)
