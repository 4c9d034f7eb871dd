"""Residue embeddings of sequences and structures, computed once for all that train on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.batches import cut, rank_and_world_size, sequence_hash
from ..data.chunks import ChunkWriter, remove_stale, shard_lock
from ..data.embedding_store import CHUNK_BYTES, CHUNK_SECONDS, EmbeddingStore
from ..data.structure_rows import StructurePair
from ..models.backbone import Backbone
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
from ..models.protein_mpnn_features import atoms_present
from ..models.structure import Structure
from ..models.weights_digest import weights_digest

RESIDUES_PER_BATCH = 2048
IDENTITY_FIELDS = ("hidden_size", "num_layers", "k_neighbors", "atoms", "mask_fill")


def structure_hash(structure: Structure) -> str:
    """Return the SHA-256 of what an encoder sees of a structure, its key in a store.

    Id and sequence are not part of it: the same atoms under another name share a record.

    Example:
        >>> one = Structure("a", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A"))
        >>> other = Structure("b", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A"))
        >>> structure_hash(one) == structure_hash(other)
        True
    """
    names = json.dumps([structure.author_numbers, structure.chain_ids])
    atoms = structure.backbone.to(torch.float32).contiguous()
    atoms = torch.where(atoms.isnan(), torch.nan, atoms)  # there are several bit patterns of NaN
    return hashlib.sha256(names.encode() + atoms.numpy().tobytes()).hexdigest()


def shaken(structure: Structure, eps: float) -> Structure:
    """Add noise to coordinates: another form of a protein, and always the same one.

    Args:
        structure: Left as it is.
        eps: Standard deviation of the noise, angstrom.

    Example:
        >>> one = Structure("a", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A"))
        >>> structure_hash(shaken(one, 0.3)) == structure_hash(shaken(one, 0.3))
        True
    """
    drawn = torch.Generator().manual_seed(int(structure_hash(structure)[:15], 16))
    noise = torch.randn(structure.backbone.shape, generator=drawn)
    return replace(structure, backbone=structure.backbone + eps * noise)


class StructureEmbedder:
    """Say of a structure encoder what an embedding store asks of its embedder.

    Args:
        encoder: Left in the mode that it is in.
    """

    def __init__(self, encoder: ProteinMPNNEncoder) -> None:
        """Keep the encoder."""
        self.encoder = encoder

    @property
    def identity(self) -> dict[str, str]:
        """What its embeddings depend on."""
        config = self.encoder.config
        fields = {name: str(getattr(config, name)) for name in IDENTITY_FIELDS}
        return {"backbone": "protein_mpnn"} | fields | {"weights": weights_digest(self.encoder)}

    @property
    def hidden_size(self) -> int:
        """Numbers of a residue embedding."""
        return int(self.encoder.config.hidden_size)

    def embed(self, structures: Sequence[Any]) -> list[Tensor]:
        """Embed structures of like length, the residues alone that have all atoms.

        Returns:
            `(residues with all atoms, hidden)` each: a pool asks for no order.
        """
        rows = self.encoder.embed(structures, batch_size=len(structures))
        atoms = self.encoder.config.atoms
        return [
            hidden[atoms_present(structure.backbone, atoms)]
            for hidden, structure in zip(rows, structures, strict=True)
        ]


def store_structures(
    folder: Path, structures: Iterable[Structure], encoder: ProteinMPNNEncoder, dtype: str
) -> EmbeddingStore:
    """Embed the structures that are not in a store yet, or this rank's share of them.

    Like `EmbeddingStore.add`: killed, it goes on where it was; each rank writes a shard of its own.

    Args:
        folder: Of the store, made if need be.
        structures: Each with a residue that has all atoms.
        encoder: What embeds them.
        dtype: What a new store keeps.

    Returns:
        The store, with the records found by `structure_hash`.

    Raises:
        ValueError: If the store is of another encoder, or a structure cannot be embedded.
    """
    embedder = StructureEmbedder(encoder)
    store = EmbeddingStore.create(folder, embedder, dtype=_new_dtype(folder, dtype))
    different = {structure_hash(structure): structure for structure in structures}
    ordered = sorted(different, key=lambda key: (-len(different[key]), key))
    batches = list(cut([len(different[key]) for key in ordered], RESIDUES_PER_BATCH))
    rank, world_size = rank_and_world_size()
    with shard_lock(folder, rank):
        remove_stale(folder, rank)
        text = store.header.text()
        with ChunkWriter(folder, rank, text, CHUNK_BYTES, CHUNK_SECONDS) as writer:
            for batch in _progress(batches[rank::world_size], rank):
                missing = [key for key in ordered[batch] if key not in store]
                if not missing:
                    continue
                # The whole batch, as a resumed job must not round otherwise than an undisturbed.
                rows = embedder.embed([different[key] for key in ordered[batch]])
                records = dict(zip(ordered[batch], rows, strict=True))
                writer.add({f"embeddings/{key}": _kept(records[key], store) for key in missing})
    _wait_for_all()
    return EmbeddingStore.open(folder)


def store_sequences(
    folder: Path, sequences: Iterable[str], backbone: Backbone, dtype: str
) -> EmbeddingStore:
    """Embed the sequences that are not in a store yet, or this rank's share of them.

    Args:
        folder: Of the store, made if need be.
        sequences: One letter a residue.
        backbone: What embeds them.
        dtype: What a new store keeps.

    Returns:
        The store, with the records found by `sequence_hash`.

    Raises:
        ValueError: If the store is of another backbone, or a sequence cannot be embedded.
    """
    store = EmbeddingStore.create(
        folder, backbone, dtype=_new_dtype(folder, dtype), kinds=["embeddings"]
    )
    named = [(sequence_hash(sequence), sequence) for sequence in sorted(set(sequences))]
    done = store.add(named, backbone)
    if done.bad:
        raise ValueError(f"{done.bad[0].id}: {done.bad[0].reason}")
    _wait_for_all()
    return EmbeddingStore.open(folder)


@dataclass(frozen=True)
class PairFeatures:
    """Hold the stores that a head trains on; None for an encoder that trains along.

    Attributes:
        sequences: By `sequence_hash`.
        structures: By `structure_hash`.
    """

    sequences: EmbeddingStore | None
    structures: EmbeddingStore | None

    @classmethod
    def compute(
        cls,
        folder: Path,
        pairs: Iterable[StructurePair],
        backbone: Backbone | None,
        encoder: ProteinMPNNEncoder | None,
        dtype: str = "float16",
    ) -> PairFeatures:
        """Embed both sides of pairs into `sequences` and `structures` of a folder.

        Args:
            folder: Made if need be.
            pairs: What a run needs.
            backbone: Of the sequences, None to leave them.
            encoder: Of the structures, None to leave them.
            dtype: What new stores keep.
        """
        pairs = list(pairs)
        sequences = structures = None
        if backbone is not None:
            texts = (pair.sequence for pair in pairs)
            sequences = store_sequences(folder / "sequences", texts, backbone, dtype)
        if encoder is not None:
            chains = (pair.structure for pair in pairs)
            structures = store_structures(folder / "structures", chains, encoder, dtype)
        return cls(sequences, structures)


def _new_dtype(folder: Path, dtype: str) -> str | None:
    return None if (folder / "store.json").exists() else dtype


def _kept(rows: Tensor, store: EmbeddingStore) -> Tensor:
    kept = rows.to(store.header.torch_dtype)
    if not kept.isfinite().all():
        raise ValueError(
            f"structure embeddings reach {rows.abs().max():.4g}, beyond {kept.dtype}; make a store "
            "of float32."
        )
    return kept.contiguous()


def _progress(batches: Sequence[slice], rank: int) -> Iterator[slice]:
    from tqdm import tqdm

    # None: shown where standard error is a terminal.
    yield from tqdm(batches, desc="structures", unit="batch", disable=True if rank else None)


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # until the other ranks have embedded their share
