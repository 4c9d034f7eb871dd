"""Views of proteins: span masking, cropping and mixup of batches, noise on coordinates.

Batches are the inputs of `ProtAlignModel.forward`; what is drawn comes from a generator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.protein import Structure
from .structure_data import structure_hash

STRUCTURE_MASKS = ("structure_mask", "structure_residue_mask")
MASKS = ("sequence_mask", *STRUCTURE_MASKS)
CROPPED_TO, SHORTEST_CROP = 0.3, 20
"""Least part of its residues that a cropped structure keeps, and least number if it has so many."""


def mask_spans(inputs: dict[str, Any], most: float, generator: torch.Generator) -> dict[str, Any]:
    """Mask a span of every protein, of random place and up to a part `most` of its residues."""
    masks = {name: inputs[name].bool() for name in MASKS if inputs.get(name) is not None}
    return inputs | {name: m & ~_spans(m, 0.0, most, generator) for name, m in masks.items()}


def crop_structures(
    inputs: dict[str, Any], probability: float, generator: torch.Generator
) -> dict[str, Any]:
    """Mask all but a span of some structures of a batch, as if only a domain were known."""
    masks = {name: inputs[name].bool() for name in STRUCTURE_MASKS if inputs.get(name) is not None}
    changed = {}
    for name, mask in masks.items():
        whole = torch.rand(len(mask), 1, generator=generator).to(mask.device) >= probability
        changed[name] = mask & (whole | _spans(mask, CROPPED_TO, 1.0, generator, SHORTEST_CROP))
    return inputs | changed


def mix_up(
    inputs: dict[str, Any], others: Tensor | None, generator: torch.Generator
) -> dict[str, Any]:
    """Mix structure embeddings with those of another form, in a proportion drawn per protein."""
    if others is None:
        return inputs
    alpha = torch.rand(len(others), 1, 1, generator=generator).to(others)
    mixed = torch.lerp(inputs["structure_embeddings"], others, alpha)
    return inputs | {"structure_embeddings": mixed}


def _spans(
    mask: Tensor, least: float, most: float, generator: torch.Generator, shortest: int = 0
) -> Tensor:
    """Draw a span of each protein, of between two parts of its residues, `(batch, residues)`."""
    place = mask.cumsum(1) - 1  # among the residues
    count = mask.sum(1, keepdim=True)
    fraction, where = torch.rand(2, len(mask), 1, generator=generator).to(mask.device)
    length = ((least + fraction * (most - least)) * count).floor()
    length = length.clamp(min=shortest).minimum(count)
    start = (where * (count - length + 1)).floor()
    return (place >= start) & (place < start + length)


def coordinate_noise(structure: Structure, eps: float) -> Structure:
    """Add noise of `eps` angstrom to coordinates: another form of a protein, always the same."""
    generator = torch.Generator().manual_seed(int(structure_hash(structure)[:15], 16))
    noise = torch.randn(structure.backbone.shape, generator=generator)
    return replace(structure, backbone=structure.backbone + eps * noise)
