"""Pairs of sequence and structure as batches: rows, collator, and an order without near copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..data.batches import sequence_hash
from ..data.clusters import cluster_sequences
from ..data.structure_rows import StructurePair
from ..models.padding import pad_residues
from ..models.processing_protalign import ProtAlignProcessor
from ..models.structure import Structure
from .protalign_features import PairFeatures, structure_hash


class StructurePairs(Dataset[dict[str, Any]]):
    """Give pairs as rows, one at a time.

    Args:
        pairs: Sequences and structures.
        groups: `(pairs,)`, integers: pairs of one group are no negatives of each other. None
            where any two pairs are.
        forms: `(pairs,)`: another form of each structure, with the same residues; or None.

    Example:
        >>> from plasma_hf.models.structure import Structure
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
    """Number groups of pairs whose sequences are nearly the same.

    Args:
        pairs: Sequences and structures.
        identity: Identical residues / length of the shorter sequence, from which on two are.

    Returns:
        A group for each pair, `(pairs,)`.
    """
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
            store = self.features.structures
            forms = [store.embeddings(structure_hash(row["form"])) for row in rows]
            batch["form_embeddings"], _ = pad_residues(forms)
        return batch

    def _sequences(self, pairs: list[StructurePair]) -> dict[str, Tensor]:
        store = self.features.sequences
        if store is None:
            return dict(self._encode(sequences=[pair.sequence for pair in pairs]))
        stored = [store.embeddings(sequence_hash(pair.sequence)) for pair in pairs]
        embeddings, mask = pad_residues(stored)
        return {"sequence_embeddings": embeddings, "sequence_mask": mask}

    def _structures(self, pairs: list[StructurePair]) -> dict[str, Tensor]:
        store = self.features.structures
        if store is None:
            return dict(self._encode(structures=[pair.structure for pair in pairs]))
        stored = [store.embeddings(structure_hash(pair.structure)) for pair in pairs]
        embeddings, mask = pad_residues(stored)
        return {"structure_embeddings": embeddings, "structure_mask": mask}

    def _encode(self, **sides: Any) -> Any:
        if self.processor is None:
            raise ValueError("an encoder that trains needs the model's processor; give it too.")
        return self.processor(**sides)


class ApartInBatches(Sampler[int]):
    """Shuffle pairs so that those of one group are in different batches, as far as they fit.

    The order depends on seed and epoch alone: a run that was stopped goes on with the same one.

    Args:
        groups: Of each pair.
        batch_size: Pairs that are compared with each other, over all ranks.
        seed: Of the generator.

    Example:
        >>> order = list(ApartInBatches([0, 0, 1, 1], batch_size=2, seed=0))
        >>> sorted(order), {number // 2 for number in order[:2]}
        ([0, 1, 2, 3], {0, 1})
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int) -> None:
        """Keep what the order depends on."""
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[int]:
        # Neighbouring seeds and epochs must not meet, as those of seed + epoch would.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        shuffled = torch.randperm(len(self.groups), generator=generator).tolist()
        # Large groups first, each time into the emptiest batch: they spread over all batches.
        sizes = Counter(self.groups)
        shuffled.sort(key=lambda pair: -sizes[self.groups[pair]])
        batches: list[list[int]] = [[] for _ in range(len(shuffled) // self.batch_size)]
        taken: list[set[int]] = [set() for _ in batches]
        left = []
        for pair in shuffled:
            group = self.groups[pair]
            open_to = [
                number
                for number, batch in enumerate(batches)
                if len(batch) < self.batch_size and group not in taken[number]
            ]
            if not open_to:
                left.append(pair)
                continue
            number = min(open_to, key=lambda number: len(batches[number]))
            batches[number].append(pair)
            taken[number].add(group)
        for batch in batches:  # the loss leaves pairs of one group out of each other's negatives
            while len(batch) < self.batch_size:
                batch.append(left.pop())
        return iter([pair for batch in batches for pair in batch] + left)
