"""Pairs of labelled proteins as rows and batches, with the residues that sites make correspond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..data.pairs import ProteinPair
from ..data.splits import pair_rows


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
