"""Training of a residue encoder with the Trainer of transformers."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainingArguments, set_seed

from ..models.configuration_plasma import PlasmaConfig
from ..models.configuration_residue_encoder import ResidueEncoderConfig
from ..models.modeling_plasma import PlasmaModel
from ..models.modeling_residue_encoder import ResidueEncoderModel
from ..models.tokenization_substitution import substitution_tokenizer
from .checkpoints import checkpoint_to_resume
from .encoder_data import EncoderBatches, EncoderSources
from .encoder_objective import EncoderObjective, ObjectiveWeights
from .safe_saving import SafeSaving

logger = logging.getLogger(__name__)

HEAD: dict[str, Any] = {
    "head": "hinge",
    "kernel_scale": 0.2,
    "support_rounds": 3,
    "support_window": 25,
    "support_gap": 3,
    "support_weight": 16.0,
}
"""The parameter-free head that the encoder is trained for. The default checkpoint has fewer support
rounds and a last one for order, under which encoders were not measured."""


@dataclass
class EncoderTraining:
    """Settings of a training run; the same settings and data give the same weights.

    Attributes:
        steps: Batches to learn from.
        pairs_per_batch: Pairs in a batch.
        max_residues: Longer proteins are cropped to so many.
        masked_per_batch: Sequences with masked residues in a batch, where they have a weight.
        learning_rate: At its highest.
        warmup: Share of the steps in which it rises; it falls along a cosine after.
        weight_decay: Of the matrices.
        save_steps: Steps between checkpoints.
        weights: Of the parts of the objective.
        seed: Of initial weights and draws.
        device: "cpu" to stay off a GPU, None for one if it is there.
        head: Fields of the `PlasmaConfig` of the head.
        kept: Share of what was learnt that is kept, see `keep_share`.
    """

    steps: int = 2000
    pairs_per_batch: int = 8
    max_residues: int = 200
    masked_per_batch: int = 8
    learning_rate: float = 1.5e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    save_steps: int = 200
    weights: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    seed: int = 0
    device: str | None = None
    head: dict[str, Any] = field(default_factory=lambda: dict(HEAD))
    kept: float = 0.4


class EncoderTrainer(SafeSaving):
    """A Trainer whose batches come ready, in order, and which logs the parts of the loss."""

    # The objective takes no count of items; Trainer must not scale the loss by one.
    model_accepts_loss_kwargs = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Begin with no parts."""
        super().__init__(*args, **kwargs)
        self._parts: dict[str, Tensor] = {}
        self._counted = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        batches: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(batches)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, and keep its parts for the log."""
        parts: dict[str, Tensor] = model(**inputs)
        for name, part in parts.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, torch.zeros_like(part)) + part.detach()
        self._counted += 1
        return (parts["loss"], parts) if return_outputs else parts["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part since the last log."""
        if "loss" in logs and self._counted:
            logs |= {name: float(total) / self._counted for name, total in self._parts.items()}
            self._parts, self._counted = {}, 0
            logger.info("step %d: %s", self.state.global_step, logs)
        super().log(logs, *args, **kwargs)


def train_residue_encoder(
    sources: EncoderSources,
    folder: str | Path,
    settings: EncoderTraining | None = None,
    config: ResidueEncoderConfig | None = None,
    *,
    start: ResidueEncoderModel | None = None,
    resume: bool = False,
    **options: Any,
) -> ResidueEncoderModel:
    """Train a residue encoder and save it, with its tokenizer, to a folder.

    Args:
        sources: What to learn from.
        folder: Where the encoder goes; its checkpoints go to `checkpoints` in it.
        settings: Of the run.
        config: Of the encoder, if it is a new one.
        start: An encoder to go on from, instead of a new one.
        resume: Go on at the last checkpoint, if there is one.
        **options: Further fields of `TrainingArguments`.

    Raises:
        FileExistsError: If the folder has checkpoints and `resume` is False.
        ValueError: If they are of a run with other settings.
        ImportError: If accelerate is not installed.

    Example:
        >>> import tempfile
        >>> from plasma_hf.data.alignments import FamilyAlignment
        >>> family = FamilyAlignment("PF1", ("MKVLAW", "MRVLSW", "MKV-AW"))
        >>> tiny = ResidueEncoderConfig(width=8, dilations=[1])
        >>> settings = EncoderTraining(steps=1, pairs_per_batch=2, device="cpu")
        >>> encoder = train_residue_encoder(
        ...     EncoderSources([family]), tempfile.mkdtemp(), settings, tiny, disable_tqdm=True)
        >>> encoder.config.width
        8
    """
    settings, folder = settings or EncoderTraining(), Path(folder)
    checkpoints = folder / "checkpoints"
    last = checkpoint_to_resume(checkpoints, lasting(settings), resume)
    set_seed(settings.seed)
    encoder = start or ResidueEncoderModel(config or ResidueEncoderConfig())
    head = PlasmaModel(PlasmaConfig(embedding_size=encoder.config.hidden_size, **settings.head))
    batches = EncoderBatches(
        sources,
        settings.steps,
        settings.pairs_per_batch,
        settings.max_residues,
        settings.masked_per_batch if settings.weights.masked else 0,
        settings.seed,
    )
    trainer = EncoderTrainer(
        model=EncoderObjective(encoder.train(), head, settings.weights),
        args=batch_arguments(checkpoints, settings, options),
        train_dataset=batches,
        data_collator=only_batch,
    )
    trainer.remove_callback(PrinterCallback)  # a library does not print; `log` logs
    trainer.train(resume_from_checkpoint=last)
    keep_share(encoder, settings.kept)
    if trainer.is_world_process_zero():
        encoder.eval().save_pretrained(folder)
        substitution_tokenizer().save_pretrained(folder)
    return encoder.eval()


@torch.no_grad()
def keep_share(encoder: ResidueEncoderModel, share: float) -> None:
    """Go only part of the way from the substitution windows to a trained encoder.

    The windows serve proteins unlike any that were learnt from, the trained encoder those like
    them; between the two lie embeddings better than either (interpolation of weights, as Wortsman
    et al. 2022 do it for classifiers).

    Args:
        encoder: Changed in place.
        share: 0 for the windows, 1 for the encoder as trained.

    Example:
        >>> encoder = ResidueEncoderModel(ResidueEncoderConfig(width=8, dilations=[1]))
        >>> _ = encoder.gain.data.fill_(2.0)
        >>> keep_share(encoder, 0.25)
        >>> encoder.gain[0].item()
        1.25
    """
    encoder.gain.copy_(1 + share * (encoder.gain - 1))
    encoder.residual.weight.mul_(share)
    encoder.residual.bias.mul_(share)


def batch_arguments(folder: Path, settings: Any, options: dict[str, Any]) -> TrainingArguments:
    """Configure `Trainer` for a data set whose items are batches, by settings of either kind."""
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": 1,  # an item of the data set is a batch
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup * settings.steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": 1.0,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": max(1, min(50, settings.steps // 10)),
        "seed": settings.seed,
        "use_cpu": settings.device == "cpu",
        "report_to": "none",
        "remove_unused_columns": False,
    }
    return TrainingArguments(**fields | options)


def lasting(settings: Any) -> dict[str, Any]:
    """Return the settings, of either kind, that a resumed run must not change."""
    free = ("device", "save_steps")
    return {name: value for name, value in asdict(settings).items() if name not in free}


def only_batch(items: list[Any]) -> Any:
    """Collate a batch of one batch."""
    return items[0]
