"""The language models of transformers, as encoders with one vector a token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)

from .safe_weights import load_weights

ENCODERS_OF_TEXT = ("t5", "mt5", "umt5")
"""Model types whose AutoModel has a decoder as well; only their encoder is wanted."""

WITH_POOLER = ("bert", "esm")
"""Model types whose AutoModel adds a pooling layer, which nothing here reads."""


def language_model_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build the configuration of a language model from its fields; `model_type` says which.

    Raises:
        ValueError: If transformers does not know the model type.
    """
    model_type = str(fields.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"plm_config has model_type={model_type!r}, which transformers does not know; give the "
            "configuration of a backbone, for example EsmConfig(...) or "
            "AutoConfig.from_pretrained('facebook/esm2_t6_8M_UR50D')."
        )
    return CONFIG_MAPPING[model_type](**{k: v for k, v in fields.items() if k != "model_type"})


def build_language_model(config: Any) -> PreTrainedModel:
    """Build an untrained language model from its configuration."""
    if config.model_type in ENCODERS_OF_TEXT:
        return AutoModelForTextEncoding.from_config(config)
    return AutoModel.from_config(config, **_without_pooler(config))


def load_language_model(name_or_path: str, config: Any, **kwargs: Any) -> PreTrainedModel:
    """Load a pretrained language model, in float32 unless told otherwise.

    Args:
        name_or_path: Hub id or folder.
        config: Its configuration.
        **kwargs: For `from_pretrained`: revision, dtype, device_map, use_safetensors, ...

    Raises:
        WeightsError: If weights are missing, damaged or a pickle; see `load_weights`.
    """
    # transformers would take the file's dtype; ProtT5 is stored in half precision, in which T5
    # activations overflow.
    kwargs = {"dtype": torch.float32} | kwargs
    if config.model_type in ENCODERS_OF_TEXT:
        load: Any = AutoModelForTextEncoding.from_pretrained
    else:
        load, kwargs = AutoModel.from_pretrained, kwargs | _without_pooler(config)
    return load_weights(load, name_or_path, config=config, **kwargs)


def _without_pooler(config: Any) -> dict[str, bool]:
    return {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}


def width_of(config: PreTrainedConfig) -> int:
    """Return the width of the residue embeddings of an encoder.

    Raises:
        ValueError: If the configuration names no width.
    """
    for name in ("hidden_size", "d_model", "embed_dim"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    raise ValueError(
        f"{type(config).__name__} names no width (hidden_size, d_model or embed_dim); "
        "is it the configuration of an encoder?"
    )
