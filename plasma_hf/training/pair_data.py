"""Pairs of labelled proteins as rows and batches, with the residues that sites make correspond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..data.collator import PairCollator
from ..data.pairs import ProteinPair


def site_correspondences(
    query_site_labels: Sequence[int], candidate_site_labels: Sequence[int]
) -> NDArray[np.int64]:
    """Pair the labelled residues of two proteins of one family, in order, where that is sure.

    Where both proteins have as many labelled spans, those of equal length are paired residue by
    residue, in their order; nothing is paired otherwise.

    Args:
        query_site_labels: 0/1, `(query_residues,)`.
        candidate_site_labels: 0/1, `(candidate_residues,)`.

    Returns:
        Query and candidate residue, counted from 0, `(n, 2)`.

    Example:
        >>> site_correspondences([0, 1, 1, 0], [1, 1, 0]).tolist()
        [[1, 0], [2, 1]]
        >>> site_correspondences([0, 1, 1, 0], [1, 0, 1]).tolist()
        []
    """
    sides = _labelled_spans(query_site_labels), _labelled_spans(candidate_site_labels)
    pairs: list[tuple[int, int]] = []
    if len(sides[0]) == len(sides[1]):
        for spans in zip(*sides, strict=True):
            pairs += zip(*spans, strict=True) if len(spans[0]) == len(spans[1]) else ()
    return np.array(pairs, np.int64).reshape(-1, 2)


def _labelled_spans(site_labels: Sequence[int]) -> list[range]:
    """Return the spans of labelled residues, in order."""
    padded = np.concatenate([[0], np.asarray(site_labels), [0]])
    edges = np.flatnonzero(np.diff(padded)).tolist()
    return [range(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True)]


class PairRows(Dataset[dict[str, Any]]):
    """Give pairs as rows of sequences, site labels and pair label, as `PairCollator` takes them.

    Args:
        pairs: The pairs, in the order that they are numbered in.
        correspondences: Add the residues that correspond in positive pairs, as far as site labels
            say; see `site_correspondences`.

    Example:
        >>> from plasma_hf.data import SiteProtein
        >>> protein = SiteProtein("P1", "F", "MKV", (0, 1, 1))
        >>> rows = PairRows([ProteinPair(protein, protein, 1)])
        >>> rows[0]["query"], rows[0]["label"], rows.lengths
        ('MKV', 1, [3])
    """

    def __init__(self, pairs: Sequence[ProteinPair], correspondences: bool = False) -> None:
        """Keep the pairs."""
        self.pairs, self.correspondences = pairs, correspondences

    @property
    def lengths(self) -> list[int]:
        """Residues of the longer protein of each pair."""
        return [max(len(p.query.sequence), len(p.candidate.sequence)) for p in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        sites = pair.query.site_labels, pair.candidate.site_labels
        row = {
            "query": pair.query.sequence,
            "candidate": pair.candidate.sequence,
            "query_site_labels": sites[0],
            "candidate_site_labels": sites[1],
            "label": pair.label,
        }
        if self.correspondences:
            known = site_correspondences(*sites) if pair.label else torch.zeros(0, 2).long()
            row["correspondences"] = torch.as_tensor(known)
        return row


class TrainingCollator(PairCollator):
    """Make batches as `PairCollator` does, with the residue correspondences of rows that have them.

    A row's "correspondences" are `(n, 2)`, query and candidate residue, counted from 0.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of rows; `correspondences` is `(batch, n, 2)`, padded with -1."""
        batch = super().__call__(rows)
        if all(row.get("correspondences") is not None for row in rows):
            known = [torch.as_tensor(row["correspondences"]).view(-1, 2) for row in rows]
            batch["correspondences"] = pad_sequence(known, batch_first=True, padding_value=-1)
        return batch
