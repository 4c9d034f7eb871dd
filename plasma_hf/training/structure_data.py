"""Pairs of sequence and structure: their parts, their stored embeddings, and their batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.clusters import cluster_sequences, split_by_cluster
from ..data.store import (
    EmbeddingStore,
    cut,
    rank_and_world_size,
    sequence_hash,
)
from ..io.structures import StructurePair
from ..models.modeling_backbone import Backbone, pad_residues, weights_digest
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder, atoms_present
from ..models.processing_protalign import ProtAlignProcessor
from ..models.protein import Structure
from .distributed import wait_for_all


@dataclass(frozen=True)
class PairParts:
    """Hold pairs in three parts.

    Attributes:
        train: To learn from.
        validation: To choose the best model by.
        test: To judge by.
        details: How they were made, for the record.
    """

    train: Sequence[StructurePair]
    validation: Sequence[StructurePair]
    test: Sequence[StructurePair]
    details: Mapping[str, Any] = field(default_factory=dict)


def split_pairs(
    pairs: Sequence[StructurePair],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    identity: float | None = None,
) -> PairParts:
    """Split pairs by sequence cluster; of pairs with equal sequences the first one stays.

    A pair without a family gets its cluster for one.

    Args:
        pairs: Sequences and structures.
        seed: Of the split.
        fractions: For train, validation and test.
        identity: From which on two sequences are in one cluster, see `split_by_cluster`.

    Raises:
        ValueError: If train has no two pairs, or another part that is asked for.
    """
    first = {pair.sequence: pair for pair in reversed(pairs)}
    kept = [pair for pair in pairs if first[pair.sequence] is pair]
    split = split_by_cluster([pair.sequence for pair in kept], fractions, seed, identity=identity)
    named = [
        pair if pair.family is not None else replace(pair, family=kept[cluster].id)
        for pair, cluster in zip(kept, split.clusters, strict=True)
    ]
    parts = [[named[i] for i in part] for part in (split.train, split.validation, split.test)]
    for name, part, share in zip(("training", "validation", "test"), parts, fractions, strict=True):
        if len(part) < 2 and share:
            raise ValueError(
                f"{len(part)} of {len(kept)} different sequences are for {name}; give more "
                "structures, or a larger share."
            )
    details = {
        "split seed": seed,
        "identity of clusters": split.identity,
        "clusters by": split.method,
        "pairs of equal sequence left out": len(pairs) - len(kept),
    }
    return PairParts(parts[0], parts[1], parts[2], details)


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


class StructureEmbedder:
    """Let a structure encoder fill an embedding store."""

    def __init__(self, encoder: ProteinMPNNEncoder) -> None:
        """Keep the encoder, in the mode that it is in."""
        self.encoder = encoder

    @property
    def fingerprint(self) -> dict[str, str]:
        """What its embeddings depend on."""
        config = self.encoder.config
        fields = {name: str(getattr(config, name)) for name in IDENTITY_FIELDS}
        return {"backbone": "protein_mpnn"} | fields | {"weights": weights_digest(self.encoder)}

    @property
    def hidden_size(self) -> int:
        """Numbers of a residue embedding."""
        return int(self.encoder.config.hidden_size)

    def embed(self, structures: Sequence[Any]) -> list[Tensor]:
        """Embed structures of like length, the residues alone that have all atoms."""
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

    def records() -> Iterator[dict[str, dict[str, Tensor]]]:
        for batch in _progress(batches[rank::world_size], rank):
            missing = [key for key in ordered[batch] if key not in store]
            if not missing:
                continue
            # The whole batch, as a resumed job must not round otherwise than an undisturbed one.
            rows = embedder.embed([different[key] for key in ordered[batch]])
            embedded = dict(zip(ordered[batch], rows, strict=True))
            yield {key: {"embeddings": store.rounded(embedded[key])} for key in missing}

    store.write(records())
    wait_for_all()
    return EmbeddingStore.open(folder)


def store_sequences(
    folder: Path, sequences: Iterable[str], backbone: Backbone, dtype: str
) -> EmbeddingStore:
    """Do the same for sequences, with a backbone; records are found by `sequence_hash`."""
    store = EmbeddingStore.create(
        folder, backbone, dtype=_new_dtype(folder, dtype), kinds=["embeddings"]
    )
    named = [(sequence_hash(sequence), sequence) for sequence in sorted(set(sequences))]
    done = store.add(named, backbone)
    if done.bad:
        raise ValueError(f"{done.bad[0].id}: {done.bad[0].reason}")
    wait_for_all()
    return EmbeddingStore.open(folder)


@dataclass(frozen=True)
class PairFeatures:
    """Hold the stores that pools train on; None for an encoder that trains along.

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
        pairs: Sequence[StructurePair],
        backbone: Backbone | None,
        encoder: ProteinMPNNEncoder | None,
        dtype: str = "float16",
    ) -> PairFeatures:
        """Embed the sides of pairs that have an encoder into two stores, as far as need be."""
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


def _progress(batches: Sequence[slice], rank: int) -> Iterator[slice]:
    from tqdm import tqdm

    # None: shown where standard error is a terminal.
    yield from tqdm(batches, desc="structures", unit="batch", disable=True if rank else None)


class StructurePairs(Dataset[dict[str, Any]]):
    """Give pairs as rows, one at a time.

    Args:
        pairs: Sequences and structures.
        groups: `(pairs,)`, integers: pairs of one group are not negatives of each other; None
            where any two pairs are.
        forms: `(pairs,)`: another form of each structure, with the same residues; or None.

    Example:
        >>> from plasma_hf.models.protein import Structure
        >>> chain = Structure("a", "MK", torch.zeros(2, 4, 3), ("1", "2"), ("A", "A"))
        >>> rows = StructurePairs([StructurePair("a", "MK", chain)], groups=[7])
        >>> rows[0]["pair"].id, rows[0]["group"]
        ('a', 7)
    """

    def __init__(
        self,
        pairs: Sequence[StructurePair],
        groups: Sequence[int] | None = None,
        forms: Sequence[Structure] | None = None,
    ) -> None:
        """Keep the pairs."""
        self.pairs, self.groups, self.forms = pairs, groups, forms

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"pair": self.pairs[index]}
        if self.groups is not None:
            row["group"] = self.groups[index]
        if self.forms is not None:
            row["form"] = self.forms[index]
        return row


def near_copies(pairs: Sequence[StructurePair], identity: float) -> list[int]:
    """Number groups of pairs whose sequences are identical from a share of the shorter one on."""
    clusters = cluster_sequences({str(i): pair.sequence for i, pair in enumerate(pairs)}, identity)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters.values()))}
    return [numbers[clusters[str(i)]] for i in range(len(pairs))]


class PairCollation:
    """Make the input of `ProtAlignModel` of pairs: stored embeddings, or what its encoders read.

    Args:
        features: Stores of the sides whose encoders do not train.
        processor: For the others.
    """

    def __init__(self, features: PairFeatures, processor: ProtAlignProcessor | None = None) -> None:
        """Keep both."""
        self.features, self.processor = features, processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch; it has `groups` `(batch,)` and `form_embeddings` where rows have them."""
        pairs = [row["pair"] for row in rows]
        batch = self._sequences(pairs) | self._structures(pairs)
        if "group" in rows[0]:
            batch["groups"] = torch.tensor([row["group"] for row in rows])
        if "form" in rows[0] and self.features.structures is not None:
            keys = [structure_hash(row["form"]) for row in rows]
            forms = _padded("form", self.features.structures, keys)
            batch["form_embeddings"] = forms["form_embeddings"]
        return batch

    def _sequences(self, pairs: list[StructurePair]) -> dict[str, Tensor]:
        if self.features.sequences is None:
            return dict(self._encode(sequences=[pair.sequence for pair in pairs]))
        keys = [sequence_hash(pair.sequence) for pair in pairs]
        return _padded("sequence", self.features.sequences, keys)

    def _structures(self, pairs: list[StructurePair]) -> dict[str, Tensor]:
        if self.features.structures is None:
            return dict(self._encode(structures=[pair.structure for pair in pairs]))
        keys = [structure_hash(pair.structure) for pair in pairs]
        return _padded("structure", self.features.structures, keys)

    def _encode(self, **sides: Any) -> Any:
        if self.processor is None:
            raise ValueError("an encoder that trains needs the model's processor; give it too.")
        return self.processor(**sides)


def _padded(side: str, store: EmbeddingStore, keys: list[str]) -> dict[str, Tensor]:
    """Read records and pad them."""
    embeddings, mask = pad_residues([store.embeddings(key) for key in keys])
    return {f"{side}_embeddings": embeddings, f"{side}_mask": mask}
