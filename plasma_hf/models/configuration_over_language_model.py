"""What the configuration of a model says of the language model that it stands on."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .language_model import language_model_config, width_of


@strict
class OverLanguageModelConfig(PreTrainedConfig):
    """Say which language model feeds a model, and how wide its residue embeddings are.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.

    Raises:
        ValueError: If the language model has another width.
    """

    sub_configs = {"plm_config": AutoConfig}

    hidden_size: int = 1024
    plm_config: dict[str, Any] | PreTrainedConfig | None = None
    plm_name_or_path: str | None = None
    plm_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve the language model's configuration and check its width."""
        if isinstance(self.plm_config, dict):
            self.plm_config = language_model_config(self.plm_config)
        if self.hidden_size <= 0:
            raise ValueError(f"hidden_size={self.hidden_size}; give a number above 0.")
        if self.plm_config is not None:
            self.check_width(self.plm_config)
        super().__post_init__(**kwargs)

    def check_width(self, plm_config: PreTrainedConfig) -> None:
        """Refuse a language model of another width than this model's.

        Raises:
            ValueError: If the widths differ.
        """
        if (width := width_of(plm_config)) != self.hidden_size:
            name = type(self).__name__
            raise ValueError(
                f"the language model ({plm_config.model_type}) gives residue embeddings of width "
                f"{width}, {name.removesuffix('Config')} takes hidden_size={self.hidden_size}; use "
                "the language model it was trained on, or make a new one with "
                f"{name}(hidden_size={width})."
            )
