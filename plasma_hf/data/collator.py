"""Pairs of proteins as rows, and as batches of stored embeddings or of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..models.modeling_backbone import pad_residues
from ..models.processing_plasma import PlasmaProcessor
from .pairs import ProteinPair
from .splits import pair_rows
from .store import EmbeddingStore

SIDES = ("query", "candidate")


class PairCollator:
    """Make padded batches of pairs, from an embedding store or by the processor of a backbone.

    It is a data collator for `Trainer`, with `remove_unused_columns=False` in its arguments. A row
    has "query" and "candidate", sequences, or ids of the store if `by` says so; to learn from also
    "label" (or "labels"), 1 where the two share a site, and "query_site_labels" and
    "candidate_site_labels", 0 or 1 per residue, and "correspondences", residues that correspond,
    `(n, 2)`. The batch holds what `PlasmaModel.forward` takes.

    Args:
        source: The store where the embeddings are, for a head alone; or the processor, for a model
            with a backbone.
        kind: Of a store, "embeddings", or "projections" for a head that projects no further.
        by: "sequence" or "id", what rows name proteins of a store by.

    Example:
        >>> import tempfile
        >>> class Ones:
        ...     fingerprint = {"backbone": "ones"}
        ...     hidden_size = 4
        ...     def embed(self, sequences):
        ...         return [torch.ones(len(sequence), 4) for sequence in sequences]
        >>> store = EmbeddingStore.create(tempfile.mkdtemp(), Ones())
        >>> _ = store.add([("P1", "MKVLA"), ("P2", "MKV")], Ones())
        >>> batch = PairCollator(store)([{"query": "MKVLA", "candidate": "MKV", "label": 1}])
        >>> batch["query_embeddings"].shape, batch["labels"]
        (torch.Size([1, 5, 4]), tensor([1]))
    """

    def __init__(
        self,
        source: EmbeddingStore | PlasmaProcessor,
        kind: str = "embeddings",
        by: Literal["sequence", "id"] = "sequence",
    ) -> None:
        self.store = source if isinstance(source, EmbeddingStore) else None
        self.processor = source if isinstance(source, PlasmaProcessor) else None
        self.kind, self.by = kind, by
        if by not in ("sequence", "id"):
            raise ValueError(f"by is {by!r}; give 'sequence' or 'id'.")
        if self.store is not None:
            self.store.check_kind(kind)
        elif self.processor is None:
            raise TypeError(
                f"PairCollator takes an EmbeddingStore or a PlasmaProcessor, not a "
                f"{type(source).__name__}."
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch: embeddings and masks from a store, or what the processor gives.

        `{query,candidate}_embeddings (batch, residues, hidden)` are float32; site labels `(batch,
        residues)` are 0 at padding, `correspondences (batch, n, 2)` are -1.
        """
        batch: dict[str, Tensor] = {}
        for side in SIDES:
            for row in rows:
                if side not in row:
                    raise ValueError(
                        f"a row has no {side!r}, only {', '.join(map(repr, row))}; with Trainer, "
                        "give TrainingArguments(remove_unused_columns=False)."
                    )
            found = self._side([row[side] for row in rows], side)
            batch |= {f"{side}_{name}": tensor for name, tensor in found.items()}
            if _given(rows, f"{side}_site_labels"):
                lengths = batch[f"{side}_mask"].sum(-1).tolist()
                batch[f"{side}_site_labels"] = _site_labels(rows, side, lengths)
        for name in ("labels", "label"):
            if _given(rows, name):
                batch["labels"] = torch.tensor([int(row[name]) for row in rows])
        if _given(rows, "correspondences"):
            known = [torch.as_tensor(row["correspondences"]).view(-1, 2) for row in rows]
            batch["correspondences"] = pad_sequence(known, batch_first=True, padding_value=-1)
        return batch

    def _side(self, proteins: list[str], side: str) -> Mapping[str, Tensor]:
        if self.processor is not None:
            return self.processor.encode(proteins, side)
        assert self.store is not None
        read = self.store.read if self.by == "id" else self.store.read_sequence
        try:
            rows = [read(protein, self.kind, torch.float32) for protein in proteins]
        except KeyError as error:
            hint = "" if self.by == "id" else "; where rows hold ids, PairCollator(store, by='id')"
            raise ValueError(f"{side}: {error.args[0]}{hint}") from error
        return dict(zip(("embeddings", "mask"), pad_residues(rows), strict=True))


def _given(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Tell whether every row has a column; one that only some have is no column."""
    having = sum(row.get(name) is not None for row in rows)
    if 0 < having < len(rows):
        raise ValueError(f"{having} of {len(rows)} rows have {name!r}; give it in all or in none.")
    return having > 0


def _site_labels(rows: Sequence[Mapping[str, Any]], side: str, lengths: Sequence[int]) -> Tensor:
    labels = [torch.as_tensor(row[f"{side}_site_labels"]) for row in rows]
    for row, given, length in zip(rows, labels, lengths, strict=True):
        if len(given) != length:
            raise ValueError(
                f"{side}_site_labels of {row[side][:30]!r} has {len(given)} values for "
                f"{length} residues; give one 0 or 1 for each."
            )
    return pad_sequence(labels, batch_first=True)


def site_correspondences(
    query_site_labels: Sequence[int], candidate_site_labels: Sequence[int]
) -> NDArray[np.int64]:
    """Pair the labelled residues of two proteins of one family, in order, where that is sure.

    Where both have as many labelled spans, those of equal length are paired residue by residue, in
    their order, `(n, 2)` counted from 0; nothing is paired otherwise.

    Example:
        >>> site_correspondences([0, 1, 1, 0], [1, 1, 0]).tolist()
        [[1, 0], [2, 1]]
        >>> site_correspondences([0, 1, 1, 0], [1, 0, 1]).tolist()
        []
    """
    # Where a span begins and where it ends, one after another.
    padded = (np.pad(np.asarray(each), 1) for each in (query_site_labels, candidate_site_labels))
    query, candidate = (np.flatnonzero(np.diff(each)).reshape(-1, 2).tolist() for each in padded)
    pairs: list[tuple[int, int]] = []
    if len(query) == len(candidate):
        for spans in zip(query, candidate, strict=True):
            first, second = (range(*span) for span in spans)
            pairs += zip(first, second, strict=True) if len(first) == len(second) else ()
    return np.array(pairs, np.int64).reshape(-1, 2)


class PairRows(Dataset[dict[str, Any]]):
    """Give pairs as rows of sequences, site labels and pair label, as `PairCollator` takes them.

    With `correspondences` positive pairs have those of `site_correspondences`.

    Example:
        >>> from plasma_hf.data import SiteProtein
        >>> protein = SiteProtein("P1", "F", "MKV", (0, 1, 1))
        >>> rows = PairRows([ProteinPair(protein, protein, 1)])
        >>> rows[0]["query"], rows[0]["label"], rows.lengths
        ('MKV', 1, [3])
    """

    def __init__(self, pairs: Sequence[ProteinPair], correspondences: bool = False) -> None:
        self.pairs, self.correspondences = pairs, correspondences

    @property
    def lengths(self) -> list[int]:
        """Residues of the longer protein of each pair."""
        return [max(len(p.query.sequence), len(p.candidate.sequence)) for p in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        [row] = pair_rows([pair])
        if self.correspondences:
            sites = [side.site_labels if pair.label else () for side in pair.sides]
            row["correspondences"] = torch.as_tensor(site_correspondences(*sites))
        return row
