"""Proteins as users have them into the shared space of ProtAlign, through its own encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone
from .padding import pad_residues
from .protein import Protein
from .protein_mpnn_features import structure_batch
from .residues import clean_sequence
from .structure import Structure

Pool = Callable[[Any, list[Any]], tuple[Tensor, Tensor]]
"""From a model and proteins to their vectors and attention weights."""


def embed_sequences(model: Any, sequences: Sequence[str], batch_size: int) -> Tensor:
    """Embed sequences, see `ProtAlignModel.embed_sequences`."""
    proteins = [_read(sequence, f"sequence {i}") for i, sequence in enumerate(sequences)]
    lengths = [len(protein.sequence or "") for protein in proteins]
    return _embed(model, proteins, lengths, pool_proteins, batch_size)


def embed_structures(model: Any, structures: Sequence[Structure], batch_size: int) -> Tensor:
    """Embed structures, see `ProtAlignModel.embed_structures`."""
    lengths = [len(structure) for structure in structures]
    return _embed(model, structures, lengths, pool_structures, batch_size)


def sequence_weights(model: Any, sequence: str) -> Tensor:
    """Weigh residues, see `ProtAlignModel.explain_sequence`."""
    with _in_inference(model):
        return pool_proteins(model, [_read(sequence, "the sequence")])[1][0].float().cpu()


def structure_weights(model: Any, structure: Structure) -> Tensor:
    """Weigh residues, see `ProtAlignModel.explain_structure`."""
    with _in_inference(model):
        return pool_structures(model, [structure])[1][0].float().cpu()


def pool_proteins(model: Any, proteins: list[Protein]) -> tuple[Tensor, Tensor]:
    """Pool proteins by their sequences, long ones embedded in windows."""
    model.check_encoder("sequence")
    if model.processor is None:
        raise ValueError(
            "the model does not know how to write sequences for its encoder, as no processor was "
            "saved with it; set model.processor = ProtAlignProcessor(tokenizer, recipe)."
        )
    rows = Backbone(model.sequence_encoder, model.processor).embed(proteins)
    embeddings, mask = pad_residues([row.to(model.device) for row in rows])
    return model.pool_sequences(embeddings, mask)


def pool_structures(model: Any, structures: list[Structure]) -> tuple[Tensor, Tensor]:
    """Pool structures by the atoms of their backbones."""
    model.check_encoder("structure")
    batch = structure_batch(structures, model.structure_encoder.config.atoms)
    for structure, mask in zip(structures, batch["residue_mask"], strict=True):
        if not mask.any():
            raise ValueError(
                f"structure {structure.id} has no residue with all the backbone atoms that are "
                "read; leave it out, or give one with coordinates."
            )
    return model.pool_structures(**{name: rows.to(model.device) for name, rows in batch.items()})


def _read(sequence: str, name: str) -> Protein:
    return Protein(name, clean_sequence(sequence, name))


def _embed(
    model: Any, proteins: Sequence[Any], lengths: list[int], pool: Pool, batch_size: int
) -> Tensor:
    """Pool proteins in batches of like length, and normalise their vectors."""
    vectors = torch.zeros(len(proteins), model.config.hidden_size)
    longest_first = sorted(range(len(proteins)), key=lambda i: -lengths[i])
    with _in_inference(model):
        for start in range(0, len(proteins), batch_size):
            places = longest_first[start : start + batch_size]
            pooled, _ = pool(model, [proteins[i] for i in places])
            vectors[places] = F.normalize(pooled, dim=-1).float().cpu()
    return vectors


@contextmanager
def _in_inference(model: nn.Module) -> Iterator[None]:
    """Leave training mode and gradients for a while."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
