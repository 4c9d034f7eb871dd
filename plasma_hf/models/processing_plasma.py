"""Processor of PLASMA: sequences to token ids, with a mask of what is a residue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from .backbones import find_recipe
from .protein import Protein, is_protein, read_protein, with_backbone_atoms
from .recipe import Recipe, ResidueTokenizer, generic_recipe
from .residues import clean_sequence
from .tokenization_substitution import substitution_tokenizer


class PlasmaProcessor(ProcessorMixin):
    """Turn pairs of sequences into what `PlasmaModel` takes.

    Sequences are checked and cleaned (`clean_sequence`), then written for the tokenizer as the
    recipe says, one token a residue; special tokens are attended to but are no residues.

    Args:
        tokenizer: The backbone's tokenizer; None for that of the substitution encoder.
        recipe: A `Recipe`, its fields, or a name of `RECIPES`; None to work one out from the
            tokenizer.

    Raises:
        ValueError: If the tokenizer does not give one token a residue.

    Example:
        >>> processor = PlasmaProcessor()
        >>> batch = processor(query=["MKV", "AC"], candidate=["MKVL", "G"])
        >>> batch.query_mask
        tensor([[ True,  True,  True],
                [ True,  True, False]])
    """

    def __init__(
        self,
        tokenizer: Any = None,
        recipe: Recipe | Mapping[str, Any] | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep tokenizer and recipe."""
        tokenizer = substitution_tokenizer() if tokenizer is None else tokenizer
        if isinstance(recipe, str):
            recipe = find_recipe("this tokenizer", recipe)
        elif isinstance(recipe, Mapping):
            recipe = Recipe(**recipe)
        self.recipe = generic_recipe(tokenizer) if recipe is None else recipe
        super().__init__(tokenizer, **kwargs)

    def __call__(
        self,
        query: str | Protein | Sequence[str | Protein],
        candidate: str | Protein | Sequence[str | Protein],
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode pairs.

        Args:
            query: One sequence or several; proteins with atoms for a model that reads structures.
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
        for side, given in sides.items():
            encoded = self.encode(_as_list(given), side)
            features |= {f"{side}_{name}": tensor for name, tensor in encoded.items()}
        return BatchFeature(features)

    def read(self, value: str | Path | Protein, name: str = "protein") -> Protein:
        """Read a protein as this backbone needs it, see `read_protein`.

        Raises:
            ValueError: If it is unusable, or has no atoms where the backbone reads structures.
        """
        protein = read_protein(value, name)
        if protein.sequence is None:
            raise ValueError(f"{name} is residue embeddings already; give a sequence or a path.")
        return with_backbone_atoms(protein) if self.recipe.reads_structures else protein

    def encode(
        self, proteins: Sequence[str | Protein], name: str = "sequence"
    ) -> dict[str, Tensor]:
        """Encode one side.

        Args:
            proteins: Sequences, or proteins that hold one.
            name: What to call them in an error message.

        Returns:
            `input_ids`, `attention_mask` and `mask` (True at residues), each `(batch, tokens)`,
            and for a model that reads structures `backbone_atoms`, `(batch, residues, 3, 3)` in Å.
        """
        given: list[Any] = [p.sequence or "" if is_protein(p) else p for p in proteins]
        sequences = [clean_sequence(sequence, name) for sequence in given]
        rows = [torch.tensor(row) for row in self.residue_tokenizer.encode(sequences, name)]
        padding_token = self.tokenizer.pad_token_id or 0
        input_ids = pad_sequence(rows, batch_first=True, padding_value=padding_token)
        position = torch.arange(input_ids.shape[1])
        first = self.residue_tokenizer.front
        tokens = torch.tensor([len(row) for row in rows]).unsqueeze(-1)
        residues = torch.tensor([len(sequence) for sequence in sequences]).unsqueeze(-1)
        encoded = {
            "input_ids": input_ids,
            "attention_mask": position < tokens,
            "mask": (position >= first) & (position < first + residues),
        }
        if self.recipe.reads_structures:
            encoded["backbone_atoms"] = _stack_atoms(proteins, name)
        return encoded

    @cached_property
    def residue_tokenizer(self) -> ResidueTokenizer:
        """The tokenizer under the recipe."""
        return ResidueTokenizer(self.tokenizer, self.recipe)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        self.__dict__.pop("residue_tokenizer", None)  # the base class would copy all of it
        return super().to_dict() | {"recipe": asdict(self.recipe)}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        parts = ["input_ids", "attention_mask", "mask"]
        parts += ["backbone_atoms"] if self.recipe.reads_structures else []
        return [f"{side}_{part}" for side in ("query", "candidate") for part in parts]


def _as_list(given: Any) -> Sequence[str | Protein]:
    return [given] if isinstance(given, str) or is_protein(given) else given


def _stack_atoms(proteins: Sequence[str | Protein], name: str) -> Tensor:
    """Stack backbone atoms `(batch, residues, 3, 3)`, padded with NaN."""
    atoms = [p.backbone_atoms if is_protein(p) else None for p in proteins]
    known = [a for a in atoms if a is not None]
    if len(known) < len(atoms):
        raise ValueError(
            f"a {name} has no backbone atoms, and this backbone reads structures; give the path "
            "of a PDB or mmCIF file."
        )
    return pad_sequence(known, batch_first=True, padding_value=float("nan"))
