"""A model that stands on a language model: TM-Vec, ProtSSN."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .language_model import build_language_model
from .safe_weights import SafeWeights


class OverLanguageModel(SafeWeights):
    """Take residue embeddings, or token ids through the language model underneath."""

    main_input_name = "input_ids"
    _supports_sdpa = True
    trained_on = ""  # id of the language model to name in an error message

    language_model: Any

    def __init__(self, config: Any) -> None:
        """Build the language model, if the configuration has one."""
        super().__init__(config)
        under = config.plm_config
        self.language_model = None if under is None else build_language_model(under)

    def attach_language_model(
        self, language_model: PreTrainedModel, name: str | None = None, revision: str | None = None
    ) -> Self:
        """Put a language model under this one, so that it takes token ids.

        Args:
            language_model: An encoder with one vector a token.
            name: Its Hub id or folder; kept in the configuration.
            revision: Which revision of it; None keeps what the configuration says of that name.

        Raises:
            ValueError: If it has another width.
        """
        self.config.check_width(language_model.config)
        self.language_model, self.config.plm_config = language_model, language_model.config
        name = name or getattr(language_model.config, "name_or_path", None) or None
        if revision is not None or name != self.config.plm_name_or_path:
            self.config.plm_name_or_path, self.config.plm_revision = name, revision
        return self

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

        Raises:
            ValueError: If proteins are given not at all or twice, as token ids without a language
                model to read them, or in shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "give proteins either as input_ids or as inputs_embeds"
                + ("; neither is here." if input_ids is None else ", not as both.")
            )
        if inputs_embeds is None:
            self._check_language_model()
            output = self.language_model(input_ids=input_ids, attention_mask=attention_mask)
            inputs_embeds = output.last_hidden_state
        mask = attention_mask if residue_mask is None else residue_mask
        if mask is None:
            mask = torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device)
        self._check_shapes(inputs_embeds, mask)
        return inputs_embeds, mask.bool()

    def _check_language_model(self) -> None:
        if self.language_model is None:
            name = self.config.plm_name_or_path or self.trained_on
            raise ValueError(
                f"this {type(self).__name__} has no language model under it and takes no "
                f"input_ids; pass inputs_embeds, residue embeddings of {name!r}, or attach it: "
                f"model.attach_language_model(plasma_hf.load_backbone({name!r}).model)."
            )

    def _check_shapes(self, embeddings: Tensor, mask: Tensor) -> None:
        width = self.config.hidden_size
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise ValueError(
                f"inputs_embeds has shape {tuple(embeddings.shape)}; give (batch, residues, "
                f"{width}), from the language model that {type(self).__name__} was trained on."
            )
        if mask.shape != embeddings.shape[:2]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}; give {tuple(embeddings.shape[:2])}, "
                "True (or 1) at residues."
            )
