"""Residue embeddings of sequences: from a store, or computed once and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..data.embedder import Embedder
from ..data.embedding_store import EmbeddingStore


class EmbeddingSource(Protocol):
    """Whatever gives the residue embeddings of a sequence."""

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings `(residues, hidden)`, float32, by sequence."""


class StoredEmbeddings:
    """Read embeddings from a store.

    Args:
        store: It holds every sequence that will be asked for.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        """Keep the store."""
        self.store = store

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings `(residues, hidden)`, float32, by sequence.

        Raises:
            KeyError: If the store lacks one; the message says how to add it.
        """
        return {
            sequence: self.store.embeddings(sequence, torch.float32)
            for sequence in dict.fromkeys(sequences)
        }


class EmbeddedOnce:
    """Embed a sequence when it is first asked for, and keep the latest.

    Args:
        embedder: The backbone.
        max_residues: Residues to keep; beyond, what was not asked for longest is forgotten.

    Example:
        >>> from plasma_hf import load_backbone
        >>> source = EmbeddedOnce(load_backbone("substitution"))
        >>> source.get(["MKVLA"])["MKVLA"].shape
        torch.Size([5, 420])
    """

    def __init__(self, embedder: Embedder, max_residues: int = 200_000) -> None:
        """Keep the embedder."""
        self.embedder, self.max_residues = embedder, max_residues
        self.kept: OrderedDict[str, Tensor] = OrderedDict()
        self.residues = 0

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings `(residues, hidden)`, float32, by sequence."""
        wanted = list(dict.fromkeys(sequences))
        missing = sorted((s for s in wanted if s not in self.kept), key=len)
        for sequence, rows in zip(missing, self.embedder.embed(missing), strict=True):
            self.kept[sequence] = rows
            self.residues += len(rows)
        for sequence in wanted:
            self.kept.move_to_end(sequence)
        found = {sequence: self.kept[sequence] for sequence in wanted}
        while self.residues > self.max_residues:
            _, forgotten = self.kept.popitem(last=False)
            self.residues -= len(forgotten)
        return found
