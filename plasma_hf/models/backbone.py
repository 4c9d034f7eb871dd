"""A backbone ready for use: proteins in, residue embeddings out, one row a residue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .language_model import width_of
from .processing_plasma import PlasmaProcessor
from .protein import Protein
from .recipe import Recipe
from .weights_digest import weights_digest

STANDING_ON_ANOTHER = ("tmvec", "protssn")
"""Model types that run a language model first, and then look at its residues alone."""


class Piece(NamedTuple):
    """A stretch of a protein that is embedded at once, and the rows of it that are kept."""

    protein: int
    start: int
    end: int
    keep_start: int
    keep_end: int


class Backbone:
    """A language model and the recipe of its input.

    A protein longer than `recipe.max_residues` is embedded in windows of that length, each of
    which overlaps the next by a quarter at least; a residue takes its embedding from the window in
    which it is further from the border. Nothing is cut off.

    Args:
        model: An encoder with one vector a token.
        processor: Its tokenizer and recipe.
        name: Its id on the Hub, or its folder.
        revision: Commit of it.
        digest: `weights_digest` of the model as it was loaded under this name; None if its weights
            are not known to be those.

    Example:
        >>> import plasma_hf
        >>> backbone = plasma_hf.load_backbone("substitution")
        >>> [tuple(rows.shape) for rows in backbone.embed(["MKVLA", "ac"])]
        [(5, 420), (2, 420)]
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: PlasmaProcessor,
        name: str | None = None,
        revision: str | None = None,
        digest: str | None = None,
    ) -> None:
        """Put model and processor together; the model is made to infer."""
        self.model, self.processor = model.eval(), processor
        self.name = name or model.config.name_or_path or type(model).__name__
        self.revision, self.digest = revision, digest

    @property
    def recipe(self) -> Recipe:
        """How sequences are written for the model."""
        return self.processor.recipe

    @property
    def hidden_size(self) -> int:
        """Numbers in a residue embedding."""
        return width_of(self.model.config)

    @property
    def identity(self) -> dict[str, str]:
        """What an embedding depends on: the model, its weights, and the recipe of its input."""
        # A folder may move; the digest of the weights stays.
        name = Path(self.name).name if Path(self.name).is_dir() else self.name
        return {
            "backbone": name,
            "revision": self.revision or "",
            "recipe": self.recipe.name,
            "max_residues": str(self.recipe.max_residues or "any"),
            "weights": weights_digest(self.model),
        }

    @torch.no_grad()
    def embed(
        self, proteins: Sequence[str | Path | Protein], residues_per_batch: int = 8192
    ) -> list[Tensor]:
        """Embed proteins, in batches of like length.

        Args:
            proteins: Sequences; for a model that reads structures, paths to PDB or mmCIF.
            residues_per_batch: Padded residues computed together. It changes results in the last
                bits of a float at most.

        Returns:
            Residue embeddings `(residues, hidden)` each, float32, on the CPU.

        Raises:
            ValueError: If a protein is unusable, or its embeddings are not finite.
        """
        read = [self.processor.read(p, f"protein {i}") for i, p in enumerate(proteins)]
        rows: list[list[Tensor]] = [[] for _ in read]
        pieces = list(self._pieces(read))
        for batch in _batches(pieces, residues_per_batch):
            parts = [_cut(read[piece.protein], piece) for piece in batch]
            for piece, hidden in zip(batch, self._embed_batch(parts), strict=True):
                kept = hidden[piece.keep_start - piece.start : piece.keep_end - piece.start]
                rows[piece.protein].append(kept.float().cpu())
        embedded = [torch.cat(parts) for parts in rows]
        for protein, embeddings in zip(read, embedded, strict=True):
            self._check(protein, embeddings)
        return embedded

    def _pieces(self, proteins: list[Protein]) -> Iterator[Piece]:
        limit = None if self.recipe.reads_structures else self.recipe.max_residues
        for i, protein in enumerate(proteins):
            for window in windows(len(protein.sequence or ""), limit):
                yield Piece(i, *window)

    def _embed_batch(self, proteins: list[Protein]) -> list[Tensor]:
        encoded = self.processor.encode(proteins)
        on_device = {name: tensor.to(self.model.device) for name, tensor in encoded.items()}
        mask = on_device.pop("mask")
        return residue_embeddings(self.model, residue_mask=mask, **on_device)

    def _check(self, protein: Protein, embeddings: Tensor) -> None:
        if len(embeddings) != len(protein.sequence or ""):
            raise ValueError(
                f"{self.name} gives {len(embeddings)} rows for {protein.id} of "
                f"{len(protein.sequence or '')} residues; a backbone gives one a residue."
            )
        if not torch.stack(embeddings.aminmax()).isfinite().all():  # NaN is both, and it is fast
            raise ValueError(
                f"{self.name} gives NaN or infinite embeddings for {protein.id}; it runs in "
                f"{self.model.dtype}: load it with dtype=torch.float32."
            )


def windows(length: int, limit: int | None) -> list[tuple[int, int, int, int]]:
    """Cut a protein into overlapping windows and say which rows each of them gives.

    Args:
        length: Residues of the protein.
        limit: Residues of a window; None for one window over everything.

    Returns:
        `(start, end, keep_start, keep_end)` each, 0-based with exclusive ends. Neighbours overlap
        by `limit // 4` residues or more and share the overlap half and half.

    Example:
        >>> windows(10, 8)
        [(0, 8, 0, 5), (2, 10, 5, 10)]
    """
    if limit is None or length <= limit:
        return [(0, length, 0, length)]
    step = limit - limit // 4
    count = -(-(length - limit) // step) + 1
    # Spread evenly, so that the last window overlaps no more than the others.
    starts = [round(i * (length - limit) / (count - 1)) for i in range(count)]
    cuts = [0]
    cuts += [(b + a + limit) // 2 for a, b in zip(starts, starts[1:], strict=False)]
    cuts += [length]
    return [(s, s + limit, cuts[i], cuts[i + 1]) for i, s in enumerate(starts)]


def residue_embeddings(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    residue_mask: Tensor | None = None,
    backbone_atoms: Tensor | None = None,
) -> list[Tensor]:
    """Run a backbone and keep the residues alone.

    Args:
        model: An encoder with one vector a token.
        input_ids: `(batch, tokens)`.
        attention_mask: True at every token that is no padding; None if there is none.
        residue_mask: True at tokens that are residues; None if all attended ones are.
        backbone_atoms: Coordinates of N, CA and C in Å, `(batch, residues, 3, 3)`, for a model
            that reads structures.

    Returns:
        Embeddings `(residues, hidden)` each.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if residue_mask is None:
        residue_mask = attention_mask
    # Models that stand on another look at residues alone, and one of them at atoms as well.
    further: dict[str, Tensor] = {}
    if model.config.model_type in STANDING_ON_ANOTHER:
        further["residue_mask"] = residue_mask.bool()
    if backbone_atoms is not None:
        further["backbone_atoms"] = backbone_atoms
    output = model(input_ids=input_ids, attention_mask=attention_mask, **further)
    hidden = output.last_hidden_state
    return [row[kept] for row, kept in zip(hidden, residue_mask.bool(), strict=True)]


def _batches(pieces: list[Piece], residues_per_batch: int) -> Iterator[list[Piece]]:
    """Yield pieces of like length, as many as the padded batch allows, longest first."""
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start - piece.end):
        longest = batch[0].end - batch[0].start if batch else 0
        if batch and (len(batch) + 1) * longest > residues_per_batch:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _cut(protein: Protein, piece: Piece) -> Protein:
    sequence = (protein.sequence or "")[piece.start : piece.end]
    return Protein(protein.id, sequence, backbone_atoms=protein.backbone_atoms)
