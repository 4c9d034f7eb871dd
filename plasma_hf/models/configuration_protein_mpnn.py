"""Configuration of the ProteinMPNN encoder."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

CHOICES = {"atoms": ("backbone", "ca"), "mask_fill": ("inf", "rowmax")}


@strict
class ProteinMPNNConfig(PreTrainedConfig):
    """Configure the ProteinMPNN encoder.

    Args:
        hidden_size: Width of a residue embedding and of an edge.
        num_layers: Rounds of messages.
        k_neighbors: Neighbours of a residue at most, itself among them.
        atoms: "backbone" reads N, CA, C and O; "ca" reads CA alone. What "ca" says depends, as
            published, on how the protein is turned.
        mask_fill: How far off a masked residue counts. "inf" makes it nobody's neighbour, and a
            protein's place in space without effect. "rowmax" does what the original does: a
            masked residue can push out the farthest neighbour of a chain with fewer than
            `k_neighbors` residues, and with "ca" it lies at the origin.
        dropout: Share of numbers dropped in training.
        augment_eps: Standard deviation in angstrom of the noise on coordinates, in training only.

    Raises:
        ValueError: If a number is out of range or a choice unknown.

    Example:
        >>> ProteinMPNNConfig(hidden_size=64, k_neighbors=24).atoms
        'backbone'
    """

    model_type = "protein_mpnn"

    hidden_size: int = 128
    num_layers: int = 3
    k_neighbors: int = 48
    atoms: str = "backbone"
    mask_fill: str = "inf"
    dropout: float | int = 0.1
    augment_eps: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the numbers and choices."""
        for name in ("hidden_size", "num_layers", "k_neighbors"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number above 0.")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                choices = " and ".join(map(repr, accepted))
                raise ValueError(f"{name}={getattr(self, name)!r}; accepted are {choices}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; give a number from 0 to below 1.")
        if self.augment_eps < 0:
            raise ValueError(f"augment_eps={self.augment_eps}; give 0 or more angstrom.")
        super().__post_init__(**kwargs)
