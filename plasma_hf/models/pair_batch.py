"""A padded batch of pairs, and the same taken apart: without padding there is less to compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MUCH_PADDING = 0.1
"""Share of padding among the residue pairs of a batch from which on it is taken apart."""

Project = Callable[[Tensor], Tensor]
"""Takes residue embeddings `(residues, hidden)` to projections `(residues, head_size)`."""


@dataclass
class PairBatch:
    """Hold pairs of proteins and what is known about them, query first.

    Attributes:
        embeddings: Of both sides, `(batch, residues, hidden)` each.
        masks: True at residues, `(batch, residues)` each.
        site_labels: 0/1, 0 at padding, `(batch, residues)` each, or None if not known.
        labels: 1 where the two share a site, `(batch,)`, if known.
        correspondences: Residues that correspond, `(batch, n, 2)`, -1 at padding, if known.
        projections: What the head makes of embeddings, `(batch, residues, head_size)` each.
    """

    embeddings: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]
    site_labels: tuple[Tensor | None, Tensor | None] = (None, None)
    labels: Tensor | None = None
    correspondences: Tensor | None = None
    projections: tuple[Any, Any] = (None, None)

    @property
    def mostly_padding(self) -> bool:
        """Tell whether padding is worth cutting off, and stands where it can be."""
        query, candidate = self.masks
        lengths = query.sum(-1), candidate.sum(-1)
        at_the_end = all(bool((mask[:, 1:] <= mask[:, :-1]).all()) for mask in self.masks)
        pairs = (lengths[0] * lengths[1]).sum()
        return (
            at_the_end
            and bool((torch.minimum(*lengths) > 0).all())
            and bool(pairs < (1 - MUCH_PADDING) * query.numel() * candidate.shape[1])
        )

    def projected(self, project: Project) -> PairBatch:
        """Return the batch with projections; embeddings and projections are 0 at padding."""
        query, candidate = (
            side.masked_fill(~mask.unsqueeze(-1), 0.0)
            for side, mask in zip(self.embeddings, self.masks, strict=True)
        )
        projections = (
            _project_residues(query, self.masks[0], project),
            _project_residues(candidate, self.masks[1], project),
        )
        return replace(self, embeddings=(query, candidate), projections=projections)

    def singles(self, project: Project) -> list[PairBatch]:
        """Return each pair as a batch of its own, without padding, with projections."""
        count = len(self.masks[0])
        both = zip(self.embeddings, self.masks, self.site_labels, strict=True)
        query, candidate = (_side_by_protein(*side, project) for side in both)
        known = (_one_by_one(given, count) for given in (self.labels, self.correspondences))
        singles = []
        for q, c, labels, correspondences in zip(query, candidate, *known, strict=True):
            embeddings, masks, site_labels, projections = zip(q, c, strict=True)
            known_of_pair = (site_labels, labels, correspondences)
            singles.append(PairBatch(embeddings, masks, *known_of_pair, projections))
        return singles

    def joined(self, matrices: Sequence[Tensor]) -> Tensor:
        """Put matrices of pairs that were taken apart into one, 0 at padding.

        Args:
            matrices: `(pairs, query_residues, candidate_residues)` each, in order.

        Returns:
            `(batch, query_residues, candidate_residues)`.
        """
        rows, columns = (mask.shape[1] for mask in self.masks)
        return torch.cat(
            [F.pad(m, (0, columns - m.shape[2], 0, rows - m.shape[1])) for m in matrices]
        )


def _project_residues(embeddings: Tensor, mask: Tensor, project: Project) -> Tensor:
    """Project what is no padding: that would be work too."""
    if mask.all():
        return project(embeddings)
    rows = project(embeddings[mask])
    return rows.new_zeros(*mask.shape, rows.shape[-1]).index_put((mask,), rows)


def _side_by_protein(
    embeddings: Tensor, mask: Tensor, site_labels: Tensor | None, project: Project
) -> list[tuple[Any, ...]]:
    """Return embeddings, mask, site labels and projections of each protein, `(1, residues, ...)`.

    All are views of rows without padding, so that gradients are put together in one go.
    """
    lengths = mask.sum(-1).tolist()
    rows = embeddings[mask]
    labels = None if site_labels is None else site_labels[mask]
    parts = [
        [None] * len(lengths) if side is None else side.unsqueeze(0).split(lengths, dim=1)
        for side in (rows, mask[mask], labels, project(rows))
    ]
    return list(zip(*parts, strict=True))


def _one_by_one(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    return [None] * count if tensor is None else tensor.split(1)
