"""Encoders that stand on a language model: what TM-Vec and ProtSSN share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import has_file

from .modeling_backbone import (
    SafeWeights,
    backbone_config,
    build_backbone,
    check_settings,
    fetch,
    load_encoder,
    width_of,
)
from .processing_plasma import INPUT_FORMATS, InputFormat


@strict
class PLMEncoderConfig(PreTrainedConfig):
    """Say which language model feeds an encoder, and how wide its residue embeddings are.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.
    """

    sub_configs = {"plm_config": AutoConfig}

    hidden_size: int = 1024
    plm_config: dict[str, Any] | PreTrainedConfig | None = None
    plm_name_or_path: str | None = None
    plm_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.plm_config, dict):
            self.plm_config = backbone_config(self.plm_config)
        check_settings(self, ("hidden_size",))
        if self.plm_config is not None:
            self.check_width(self.plm_config)
        super().__post_init__(**kwargs)

    def check_width(self, plm_config: PreTrainedConfig) -> None:
        """Refuse a language model of another width than this model's."""
        if (width := width_of(plm_config)) != self.hidden_size:
            name = type(self).__name__
            raise ValueError(
                f"the language model ({plm_config.model_type}) gives residue embeddings of width "
                f"{width}, {name.removesuffix('Config')} takes hidden_size={self.hidden_size}; use "
                "the language model it was trained on, or make a new one with "
                f"{name}(hidden_size={width})."
            )


class PLMEncoder(SafeWeights):
    """Take residue embeddings, or token ids through the language model underneath."""

    main_input_name = "input_ids"
    reads_residue_mask = True  # it looks at residues alone, not at special tokens
    trained_on = ""  # id of the language model to name in an error message

    language_model: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        under = config.plm_config
        self.language_model = None if under is None else build_backbone(under)

    def attach_language_model(
        self, language_model: PreTrainedModel, name: str | None = None, revision: str | None = None
    ) -> Self:
        """Put a language model of the same width under this one, so that it takes token ids.

        Its `name`, a Hub id or folder, and its revision are kept in the configuration.
        """
        self.config.check_width(language_model.config)
        self.language_model, self.config.plm_config = language_model, language_model.config
        name = name or getattr(language_model.config, "name_or_path", None) or None
        if revision is not None or name != self.config.plm_name_or_path:
            self.config.plm_name_or_path, self.config.plm_revision = name, revision
        return self

    def complete(
        self, source: str, input_format: InputFormat | None, **options: Any
    ) -> tuple[str, str | None]:
        """Load the language model where it is not there yet; say where its tokenizer is.

        The `source` is where this encoder came from; an input format may name a language model.
        """
        saved = self.config.plm_name_or_path
        wanted = input_format.language_model if input_format is not None else None
        inside = self.language_model is not None
        published = saved is not None and "/" in saved and not Path(saved).exists()
        if inside and published and wanted and Path(saved).name != Path(wanted).name:
            name = input_format.name if input_format is not None else ""
            raise ValueError(
                f"{source} stands on {saved}, the input format {name!r} asks for {wanted}; load "
                "it without an input format, or load the files of its authors with this one."
            )
        under, revision = saved if inside else wanted or saved, self.config.plm_revision
        if under is None:
            accepted = ", ".join(name for name, f in INPUT_FORMATS.items() if f.language_model)
            raise ValueError(
                f"{source} is a {self.config.model_type} model that does not say which language "
                f"model it stands on; give an input format, one of {accepted}."
            )
        if not inside:
            self.attach_language_model(fetch(load_encoder, under, revision, **options), under)
        saved_with_it = has_file(source, "tokenizer_config.json")
        return (source, None) if saved_with_it else (under, revision)

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        residue_mask: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return residue embeddings and residue mask, run the language model where need be.

        Args:
            input_ids: `(batch, tokens)`, for the language model, with its special tokens.
            attention_mask: `(batch, tokens)`, what the language model attends to; None is all.
            residue_mask: `(batch, tokens)` or `(batch, residues)`, True at residues and never at
                special tokens or padding; None takes attention_mask.
            inputs_embeds: `(batch, residues, hidden)`, residue embeddings of the language model.
        """
        kind, width = type(self).__name__, self.config.hidden_size
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "give proteins either as input_ids or as inputs_embeds"
                + ("; neither is here." if input_ids is None else ", not as both.")
            )
        if inputs_embeds is None:
            if self.language_model is None:
                name = self.config.plm_name_or_path or self.trained_on
                raise ValueError(
                    f"this {kind} has no language model under it and takes no input_ids; pass "
                    f"inputs_embeds, residue embeddings of {name!r}, or attach it: "
                    f"model.attach_language_model(plasma_hf.load_backbone({name!r}).model)."
                )
            output = self.language_model(input_ids=input_ids, attention_mask=attention_mask)
            inputs_embeds = output.last_hidden_state
        shape = tuple(inputs_embeds.shape)
        if len(shape) != 3 or shape[-1] != width:
            raise ValueError(
                f"inputs_embeds has shape {shape}; give (batch, residues, {width}), from the "
                f"language model that {kind} was trained on."
            )
        mask = attention_mask if residue_mask is None else residue_mask
        if mask is None:
            mask = torch.ones(shape[:2], device=inputs_embeds.device)
        if mask.shape != shape[:2]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}; give {shape[:2]}, True (or 1) at "
                "residues."
            )
        return inputs_embeds, mask.bool()
