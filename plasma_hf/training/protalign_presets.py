"""Recipes of training ProtAlign by name: the published one, and the one that is the default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from transformers import TrainingArguments

from ..models.configuration_protalign import ProtAlignConfig
from .presets import EVERY_RUN

EVERY_PROTALIGN_RUN: dict[str, Any] = EVERY_RUN | {
    "greater_is_better": True,
    "metric_for_best_model": "eval_selection",
    "label_names": [],
    "logging_strategy": "epoch",
    "dataloader_drop_last": True,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "num_train_epochs": 100,
}
"""Arguments that do not depend on the recipe."""


@dataclass(frozen=True)
class ProtAlignPreset:
    """Hold a recipe: what differs from the defaults of the model and of `Trainer`.

    Attributes:
        name: what it is called.
        config: fields of `ProtAlignConfig`.
        arguments: fields of `TrainingArguments`.
        mask_identity: identity of two sequences from which on their pairs are no negatives of each
            other; None for never.
        augment_eps: noise on coordinates, in angstrom, where the structure encoder trains.
        form_eps: noise on those of a second form of each structure, where embeddings are stored.
        left_out: largest share of a protein that is left out, see `ProtAlignTrainer`.
        cropped: probability that a second view of a structure is a stretch of it.
        view_weight: how much the loss of two views of a structure counts, beside that of pairs.

    Example:
        >>> PROTALIGN_PRESETS["published"].protalign_config(sequence_size=420).logit_temperature
        0.07
        >>> PROTALIGN_PRESETS["published"].training_arguments("out", use_cpu=True).train_batch_size
        1024
    """

    name: str
    config: Mapping[str, Any]
    arguments: Mapping[str, Any]
    mask_identity: float | None = None
    augment_eps: float = 0.0
    form_eps: float = 0.0
    left_out: float = 0.0
    cropped: float = 0.0
    view_weight: float = 1.0

    def protalign_config(self, **changes: Any) -> ProtAlignConfig:
        """Configure the model; `changes` go before the recipe."""
        return ProtAlignConfig(**dict(self.config) | changes)

    def training_arguments(
        self, output_dir: str | PathLike[str], **changes: Any
    ) -> TrainingArguments:
        """Configure the training; `changes` go before the recipe."""
        own = {"output_dir": str(output_dir), "dataloader_pin_memory": torch.cuda.is_available()}
        return TrainingArguments(**EVERY_PROTALIGN_RUN | dict(self.arguments) | own | changes)


PUBLISHED = ProtAlignPreset(
    name="published",
    config={},
    # AdamW without weight decay is Adam.
    arguments={
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 1024,
    },
)
"""What the paper says, and where it says nothing, as little as possible."""

IMPROVED = ProtAlignPreset(
    name="improved",
    config={
        "hidden_size": 384,
        "num_heads": 24,
        "learn_temperature": True,
        "spread": True,
        "standardize": True,
    },
    arguments={
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 256,
    },
    mask_identity=0.9,
    augment_eps=0.1,
    form_eps=0.3,
    left_out=0.3,
    cropped=0.6,
    view_weight=2.0,
)
"""The default: more updates, which slow down, no near copies as negatives, wider pools that tell
more, and structures that have to find themselves in part and with other coordinates."""

PROTALIGN_PRESETS = {preset.name: preset for preset in (IMPROVED, PUBLISHED)}
