"""Pairs of sequence and structure: parts, stored embeddings, batches, and views of batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.clusters import cluster_sequences, split_by_cluster
from ..data.store import EmbeddingStore, cut, rank_and_world_size, sequence_hash
from ..io.structures import StructurePair
from ..models.modeling_backbone import Backbone, pad_residues, weights_digest
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder, atoms_present
from ..models.processing_protalign import ProtAlignProcessor
from ..models.protein import Structure
from .distributed import wait_for_all

RESIDUES_PER_BATCH = 2048
IDENTITY_FIELDS = ("hidden_size", "num_layers", "k_neighbors", "atoms", "mask_fill")


@dataclass(frozen=True)
class PairParts:
    """Hold the pairs to learn from, to choose the best model by, and to judge by."""

    train: Sequence[StructurePair]
    validation: Sequence[StructurePair]
    test: Sequence[StructurePair]
    details: Mapping[str, Any] = field(default_factory=dict)  # how they were made, for the record


def split_pairs(
    pairs: Sequence[StructurePair],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    identity: float | None = None,
) -> PairParts:
    """Split pairs by sequence cluster; of pairs with equal sequences the first one stays.

    A pair without a family gets its cluster for one.

    Args:
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
    details: dict[str, Any] = {"split seed": seed, "identity of clusters": split.identity}
    details |= {"clusters by": split.method}
    details["pairs of equal sequence left out"] = len(pairs) - len(kept)
    return PairParts(parts[0], parts[1], parts[2], details)


def structure_hash(structure: Structure) -> str:
    """Return the SHA-256 of what an encoder sees of a structure, its key in a store.

    Id and sequence are not part of it: the same atoms under another name share a record.
    """
    names = json.dumps([structure.author_numbers, structure.chain_ids])
    atoms = structure.backbone.to(torch.float32).contiguous()
    atoms = torch.where(atoms.isnan(), torch.nan, atoms)  # there are several bit patterns of NaN
    return hashlib.sha256(names.encode() + atoms.numpy().tobytes()).hexdigest()


def store_structures(
    folder: Path, structures: Iterable[Structure], encoder: ProteinMPNNEncoder, dtype: str
) -> EmbeddingStore:
    """Embed the structures that a store does not hold yet, or this rank's share of them.

    Records are found by `structure_hash`, with rows for residues that have all atoms. As with
    `EmbeddingStore.add`: killed, it goes on where it was; each rank writes a shard of its own.
    """
    config = encoder.config
    fields = {name: str(getattr(config, name)) for name in IDENTITY_FIELDS}
    fingerprint = {"backbone": "protein_mpnn", **fields, "weights": weights_digest(encoder)}
    embedder = SimpleNamespace(fingerprint=fingerprint, hidden_size=int(config.hidden_size))
    store = _open_store(folder, embedder, dtype)
    different = {structure_hash(structure): structure for structure in structures}
    ordered = sorted(different, key=lambda key: (-len(different[key]), key))
    batches = list(cut([len(different[key]) for key in ordered], RESIDUES_PER_BATCH))
    rank, world_size = rank_and_world_size()

    def records() -> Iterator[dict[str, dict[str, Tensor]]]:
        hidden = True if rank else None  # None: shown where standard error is a terminal
        own = batches[rank::world_size]
        for batch in tqdm(own, desc="structures", unit="batch", disable=hidden):
            keys = ordered[batch]
            missing = {key for key in keys if key not in store.lengths}
            if not missing:
                continue
            # The whole batch, as a resumed job must not round otherwise than an undisturbed one.
            rows = encoder.embed([different[key] for key in keys], batch_size=len(keys))
            there = (atoms_present(different[key].backbone, config.atoms) for key in keys)
            made = zip(keys, rows, there, strict=True)
            yield {k: {"embeddings": store.rounded(r[m])} for k, r, m in made if k in missing}

    store.write(records())
    wait_for_all()
    return EmbeddingStore.open(folder)


def store_sequences(
    folder: Path, sequences: Iterable[str], backbone: Backbone, dtype: str
) -> EmbeddingStore:
    """Do the same for sequences, with a backbone; records are found by `sequence_hash`."""
    named = [(sequence_hash(sequence), sequence) for sequence in sorted(set(sequences))]
    done = _open_store(folder, backbone, dtype).add(named, backbone)
    if done.bad:
        raise ValueError(f"{done.bad[0].id}: {done.bad[0].reason}")
    wait_for_all()
    return EmbeddingStore.open(folder)


def _open_store(folder: Path, embedder: Any, dtype: str) -> EmbeddingStore:
    """Open a store, which keeps its dtype, or make one."""
    new = None if (folder / "store.json").exists() else dtype
    return EmbeddingStore.create(folder, embedder, dtype=new, kinds=["embeddings"])


class StructurePairs(Dataset[dict[str, Any]]):
    """Give pairs as rows, with their groups and another form of their structures, if given.

    Pairs of one group are not negatives of each other; a form has the residues of its structure.
    """

    def __init__(
        self,
        pairs: Sequence[StructurePair],
        groups: Sequence[int] | None = None,
        forms: Sequence[Structure] | None = None,
    ) -> None:
        self.pairs, self.groups, self.forms = pairs, groups, forms

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = {"pair": self.pairs, "group": self.groups, "form": self.forms}
        return {name: rows[index] for name, rows in columns.items() if rows is not None}


def near_copies(pairs: Sequence[StructurePair], identity: float) -> list[int]:
    """Number groups of pairs whose structures' residues are identical from a share on.

    The share is of the shorter one. Pairs of one structure are a group, whatever their sequences.
    """
    sequences = dict.fromkeys(pair.structure.sequence for pair in pairs)
    clusters = cluster_sequences({sequence: sequence for sequence in sequences}, identity)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters.values()))}
    return [numbers[clusters[pair.structure.sequence]] for pair in pairs]


@dataclass(frozen=True)
class PairCollation:
    """Make the input of `ProtAlignModel` of pairs: stored embeddings, or what its encoders read.

    A side whose encoder trains has no store, and needs the processor.
    """

    sequences: EmbeddingStore | None
    structures: EmbeddingStore | None
    processor: ProtAlignProcessor | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch; it has `groups` `(batch,)` and `form_embeddings` where rows have them."""
        batch: dict[str, Tensor] = {}
        unread: dict[str, Any] = {}
        sides: dict[str, tuple[EmbeddingStore | None, Callable[[Any], str]]] = {
            "sequence": (self.sequences, sequence_hash),
            "structure": (self.structures, structure_hash),
        }
        for side, (store, key_of) in sides.items():
            proteins = [getattr(row["pair"], side) for row in rows]
            if store is None:
                unread[f"{side}s"] = proteins
            else:
                read = _read(store, map(key_of, proteins))
                batch[f"{side}_embeddings"], batch[f"{side}_mask"] = read
        if self.structures is not None and "form" in rows[0]:
            keys = (structure_hash(row["form"]) for row in rows)
            batch["form_embeddings"], _ = _read(self.structures, keys)
        if unread and self.processor is None:
            raise ValueError("an encoder that trains needs the model's processor; give it too.")
        if unread and self.processor is not None:
            batch |= self.processor(**unread)
        if "group" in rows[0]:
            batch["groups"] = torch.tensor([row["group"] for row in rows])
        return batch


def _read(store: EmbeddingStore, keys: Iterable[str]) -> tuple[Tensor, Tensor]:
    return pad_residues([store.read_key(key, "embeddings") for key in keys])


# --- Views of proteins: batches are the inputs of `ProtAlignModel.forward`.

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
