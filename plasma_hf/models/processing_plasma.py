"""Processor of PLASMA: sequences to token ids, with a mask of what is a residue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .residues import clean_sequence
from .tokenization_substitution import substitution_tokenizer


class PlasmaProcessor(ProcessorMixin):
    """Turn pairs of sequences into what `PlasmaModel` takes.

    Sequences are checked and cleaned (`clean_sequence`), then tokenised, one token a residue;
    special tokens are attended to but are no residues.

    Args:
        tokenizer: The backbone's tokenizer; None for that of the substitution encoder.
        add_special_tokens: Whether the backbone sees its special tokens.

    Example:
        >>> processor = PlasmaProcessor()
        >>> batch = processor(query=["MKV", "AC"], candidate=["MKVL", "G"])
        >>> batch.query_mask
        tensor([[ True,  True,  True],
                [ True,  True, False]])
    """

    def __init__(
        self, tokenizer: Any = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> None:
        """Keep the tokenizer."""
        self.add_special_tokens = add_special_tokens
        super().__init__(substitution_tokenizer() if tokenizer is None else tokenizer, **kwargs)

    def __call__(
        self, query: str | Sequence[str], candidate: str | Sequence[str], **kwargs: Any
    ) -> BatchFeature:
        """Encode pairs.

        Args:
            query: One sequence or several.
            candidate: As many.
            **kwargs: Nothing else is read; transformers passes `return_tensors`, always "pt" here.

        Returns:
            `{query,candidate}_{input_ids,attention_mask,mask}`, each `(batch, tokens)`.

        Raises:
            ValueError: If a sequence is empty, holds a character that is no residue, or does not
                get one token a residue.
        """
        sides = {"query": query, "candidate": candidate}
        features: dict[str, Tensor] = {}
        for side, sequences in sides.items():
            encoded = self.encode([sequences] if isinstance(sequences, str) else sequences, side)
            features |= {f"{side}_{name}": tensor for name, tensor in encoded.items()}
        return BatchFeature(features)

    def encode(self, sequences: Sequence[str], name: str = "sequence") -> dict[str, Tensor]:
        """Encode one side: `input_ids`, `attention_mask`, `mask`, each `(batch, tokens)`."""
        cleaned = [clean_sequence(sequence, name) for sequence in sequences]
        encoded = self.tokenizer(
            cleaned,
            add_special_tokens=self.add_special_tokens,
            return_special_tokens_mask=True,
            padding=True,
            return_tensors="pt",
        )
        attended = encoded["attention_mask"].bool()
        mask = attended & ~encoded["special_tokens_mask"].bool()
        lengths = torch.tensor([len(sequence) for sequence in cleaned])
        if not torch.equal(mask.sum(-1), lengths):
            at = int((mask.sum(-1) != lengths).nonzero()[0])
            raise ValueError(
                f"the tokenizer gives {int(mask[at].sum())} residue tokens for a {name} of "
                f"{int(lengths[at])} residues; the backbone needs one token a residue."
            )
        return {"input_ids": encoded["input_ids"], "attention_mask": attended, "mask": mask}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        parts = ("input_ids", "attention_mask", "mask")
        return [f"{side}_{part}" for side in ("query", "candidate") for part in parts]
