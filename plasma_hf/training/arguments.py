"""Presets of training by name, published and default; and adapters, by LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from ..models.configuration_plasma import PlasmaConfig
from ..models.configuration_protalign import ProtAlignConfig
from ..models.modeling_backbone import PreTrainedHead

if TYPE_CHECKING:
    from peft import LoraConfig

EVERY_RUN: dict[str, Any] = {
    **{"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2},
    **{"load_best_model_at_end": True, "greater_is_better": False},
    **{"restore_callback_states_from_checkpoint": True, "per_device_eval_batch_size": 16},
    **{"remove_unused_columns": False, "label_names": ["labels"]},
    **{"logging_steps": 50, "report_to": "none"},
}
"""Arguments that do not depend on the preset."""

EVERY_PROTALIGN_RUN: dict[str, Any] = EVERY_RUN | {
    **{"greater_is_better": True, "metric_for_best_model": "eval_selection"},
    **{"label_names": [], "logging_strategy": "epoch", "dataloader_drop_last": True},
    **{"per_device_eval_batch_size": 64, "learning_rate": 1e-3, "num_train_epochs": 100},
}


@dataclass(frozen=True)
class TrainingPreset:
    """Hold what differs from the defaults of a model's configuration and of `TrainingArguments`."""

    every_run: ClassVar[dict[str, Any]] = EVERY_RUN

    name: str
    config: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def training_arguments(
        self, output_dir: str | PathLike[str], **changes: Any
    ) -> TrainingArguments:
        """Configure the training; `changes` go before the preset."""
        own = {"output_dir": str(output_dir), "dataloader_pin_memory": torch.cuda.is_available()}
        return TrainingArguments(**self.every_run | dict(self.arguments) | own | changes)


@dataclass(frozen=True)
class Preset(TrainingPreset):
    """Hold how PLASMA is trained.

    Attributes:
        patience: evaluations without an improvement by `min_delta` after which training stops.
        aligning: fields of `PlasmaConfig` that are set once training is done.
        correspondences: whether residues that correspond by their site labels are targets.

    Example:
        >>> PRESETS["published"].plasma_config(embedding_size=420).head_size
        512
        >>> PRESETS["published"].training_arguments("out", use_cpu=True).train_batch_size
        1
    """

    patience: int = 3
    min_delta: float = 0.0
    aligning: Mapping[str, Any] = field(default_factory=dict)
    correspondences: bool = False

    def plasma_config(self, embedding_size: int, **changes: Any) -> PlasmaConfig:
        """Configure the head; `changes` go before the preset."""
        return PlasmaConfig(**{"embedding_size": embedding_size} | dict(self.config) | changes)

    def callbacks(self) -> list[EarlyStoppingCallback]:
        """Stop early, by the metric that the arguments name."""
        return [EarlyStoppingCallback(self.patience, self.min_delta)]


@dataclass(frozen=True)
class ProtAlignPreset(TrainingPreset):
    """Hold how ProtAlign is trained.

    Attributes:
        mask_identity: identity of two sequences from which on their pairs are not negatives of
            each other; None for never.
        augment_eps: noise on coordinates, in angstrom, where the structure encoder trains.
        form_eps: the same on those of a second form of each structure, where it does not.
        left_out: largest share of a protein that span masking leaves out.
        cropped: probability that a second view of a structure is cropped.
        view_weight: how much the loss of two views of a structure counts, beside that of pairs.

    Example:
        >>> PROTALIGN_PRESETS["published"].training_arguments("out", use_cpu=True).train_batch_size
        1024
    """

    every_run: ClassVar[dict[str, Any]] = EVERY_PROTALIGN_RUN

    mask_identity: float | None = None
    augment_eps: float = 0.0
    form_eps: float = 0.0
    left_out: float = 0.0
    cropped: float = 0.0
    view_weight: float = 1.0

    def protalign_config(self, **changes: Any) -> ProtAlignConfig:
        """Configure the model; `changes` go before the preset."""
        return ProtAlignConfig(**dict(self.config) | changes)


# AdamW without weight decay is Adam.
ADAM: dict[str, Any] = {"weight_decay": 0.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
COSINE: dict[str, Any] = {
    **{"weight_decay": 0.01, "max_grad_norm": 1.0},
    **{"lr_scheduler_type": "cosine", "warmup_steps": 0.05},
}

PUBLISHED = Preset(
    name="published",
    config={"head": "lrl", "head_size": 512, "kernel_scale": 0.1, "n_iters": 20},
    arguments={
        **ADAM,
        **{"learning_rate": 1e-4, "per_device_train_batch_size": 1, "num_train_epochs": 20},
        "metric_for_best_model": "eval_score_loss",
    },
    min_delta=1e-4,
)
"""As the released heads were trained: one pair per update, stopped by the score loss alone."""

IMPROVED = Preset(
    name="improved",
    config={
        **{"head": "residual", "head_size": 512, "kernel_scale": 0.2, "score_form": "mass"},
        **{"score_loss_form": "affine", "label_match_form": "symmetric"},
    },
    arguments={
        **COSINE,
        **{"learning_rate": 3e-3, "per_device_train_batch_size": 16, "num_train_epochs": 3},
        "metric_for_best_model": "eval_loss",
    },
    aligning={"reading": "posterior", "threshold": 0.2},
    correspondences=True,
)
"""The default: it starts as PLASMA-PF and learns a correction from every part of the pair."""

PRESETS = {preset.name: preset for preset in (IMPROVED, PUBLISHED)}

PROTALIGN_PUBLISHED = ProtAlignPreset(
    name="published", config={}, arguments=ADAM | {"per_device_train_batch_size": 1024}
)
"""What the paper says, and where it says nothing, as little as possible."""

PROTALIGN_IMPROVED = ProtAlignPreset(
    name="improved",
    config={
        **{"hidden_size": 384, "num_heads": 24, "learn_temperature": True},
        **{"spread": True, "standardize": True},
    },
    arguments=COSINE | {"per_device_train_batch_size": 256},
    mask_identity=0.9,
    **{"augment_eps": 0.1, "form_eps": 0.3, "left_out": 0.3, "cropped": 0.6, "view_weight": 2.0},
)
"""The default: more updates, which slow down, no near copies as negatives, wider pools that tell
more, and structures that have to find themselves in part and with other coordinates."""

PROTALIGN_PRESETS = {preset.name: preset for preset in (PROTALIGN_IMPROVED, PROTALIGN_PUBLISHED)}

# The names of query and value in ESM-2 and BERT, T5, and the newer models in that order.
ATTENTION = r"backbone\.(.*\.)?(query|value|q|v|q_proj|v_proj)"


def lora_config(model: PreTrainedHead, rank: int = 8, **options: Any) -> LoraConfig:
    """Return a LoRA configuration: the attention of a model's backbone, and its head whole.

    The adapter goes on the whole model, `get_peft_model(model, lora_config(model))`, and is saved
    and loaded alone. It names the model it was made for by the folder or Hub id of that model, so
    save a new model before.

    Args:
        model: A PLASMA model with a backbone, or ProtAlign with a sequence encoder; its structure
            encoder stays as it is.
        rank: Inner width of the matrices.
        **options: Further fields of `peft.LoraConfig`: target_modules, lora_alpha, lora_dropout.

    Example:
        >>> from transformers import EsmConfig
        >>> from plasma_hf import PlasmaConfig, PlasmaModel
        >>> esm = EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=16,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> lora_config(PlasmaModel(PlasmaConfig(plm_config=esm)), rank=4).modules_to_save
        ['alignment_head']
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft; install it with: pip install peft") from error
    if model.backbone is None:
        raise ValueError(
            "this model is a head without a backbone, and an adapter goes beside the backbone's "
            "weights; load it first with model.load_backbone()."
        )
    # A head without parameters is a placeholder; there is nothing of it to save.
    encoders = ("backbone", "structure_encoder")
    parts = {name: part for name, part in model.named_children() if name not in encoders}
    saved = [name for name in parts if any(p.requires_grad for p in parts[name].parameters())]
    fields = {"target_modules": ATTENTION, "modules_to_save": saved or None, "r": rank}
    return LoraConfig(**fields | options)
