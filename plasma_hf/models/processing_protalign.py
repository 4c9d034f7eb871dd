"""Processor of ProtAlign: sequences to token ids, structures to coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BatchFeature

from .modeling_protein_mpnn import structure_batch
from .processing_plasma import InputFormat, PlasmaProcessor
from .protein import BACKBONE_ATOMS, Structure, is_structure, read_structure


class ProtAlignProcessor(PlasmaProcessor):
    """Turn sequences and structures into what `ProtAlignModel` takes.

    Args:
        tokenizer: The sequence encoder's tokenizer; None for that of the bundled encoders.
        input_format: How sequences are written for it, see `PlasmaProcessor`.
        atoms: What a residue of a structure must have to be there: "backbone" is N, CA, C and O,
            "ca" is CA.

    Example:
        >>> processor = ProtAlignProcessor()
        >>> batch = processor(sequences=["MKV", "AC"])
        >>> sorted(batch), batch.input_ids.shape
        (['attention_mask', 'input_ids', 'sequence_mask'], torch.Size([2, 3]))
    """

    def __init__(
        self,
        tokenizer: Any = None,
        input_format: InputFormat | Mapping[str, Any] | str | None = None,
        atoms: str = "backbone",
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, input_format, **kwargs)
        self.atoms = atoms

    def __call__(  # type: ignore[override]
        self,
        sequences: str | Sequence[str] | None = None,
        structures: str | Path | Structure | Sequence[str | Path | Structure] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode sequences, structures, or pairs of both; nothing else is read.

        Structures are read already, or files: `file.pdb:A` where a file has several chains,
        `file.pdb:*` for all of them. For what they become see `ProtAlignModel.forward`.
        """
        features: dict[str, Tensor] = {}
        if sequences is not None:
            features |= self.encode([sequences] if isinstance(sequences, str) else sequences)
            features["sequence_mask"] = features.pop("mask")
        if structures is not None:
            one = isinstance(structures, str | Path) or is_structure(structures)
            several: Any = [structures] if one else structures
            wanted = {"backbone": BACKBONE_ATOMS, "ca": ("CA",)}[self.atoms]
            read = [s if is_structure(s) else read_structure(s, wanted) for s in several]
            features |= structure_batch(read, self.atoms)
            features["structure_residue_mask"] = features.pop("residue_mask")
        if not features:
            raise ValueError("there is nothing to encode; give sequences, structures or both.")
        return BatchFeature(features)

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved."""
        return super().to_dict() | {"atoms": self.atoms}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        sequence = ["input_ids", "attention_mask", "sequence_mask"]
        return [*sequence, "backbone", "structure_residue_mask", "residue_index", "chain_index"]
