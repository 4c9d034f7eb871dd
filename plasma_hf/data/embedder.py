"""What computes the records of an embedding store, and how one bad protein is kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

KINDS = ("embeddings", "projections")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Record: TypeAlias = dict[str, Tensor]
"""Tensors `(residues, width)` of one protein, by kind."""


class Embedder(Protocol):
    """Whatever turns sequences into residue embeddings, and can say which model it is."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Name all that the embeddings depend on: backbone, revision, recipe, weights."""

    @property
    def hidden_size(self) -> int:
        """Return the width of the embeddings."""

    def embed(self, sequences: Sequence[str]) -> Sequence[Tensor]:
        """Embed sequences of like length as one batch, `(residues, hidden)` float32 each."""


def head_width(head: PlasmaModel, hidden_size: int) -> int:
    """Return the width of what a head makes of embeddings of a given width.

    Raises:
        ValueError: If the head takes another width.
    """
    width = head.config.embedding_size
    if width not in (None, hidden_size):
        raise ValueError(
            f"the head takes residue embeddings of width {width}, the backbone gives "
            f"{hidden_size}; give the backbone that the head was made for."
        )
    with torch.inference_mode():
        return head.project(torch.zeros(1, hidden_size, device=head.device)).shape[-1]


def describe(identity: Mapping[str, str] | None) -> str:
    """Spell an identity in one line, digests cut short.

    Example:
        >>> describe({"backbone": "facebook/esm2", "revision": "main", "weights": 64 * "a"})
        'facebook/esm2 (revision main, weights aaaaaaaaaaaa)'
    """
    if not identity:
        return "none"
    (_, name), *details = sorted(identity.items())  # "backbone" or "head" comes first
    short = [f"{key} {v[:12] if len(v) == 64 else v}" for key, v in details if v]
    return f"{name} ({', '.join(short)})" if short else name


class RecordMaker:
    """Compute the records of a batch, and go on without the proteins that cannot be.

    Args:
        embedder: The backbone.
        head: The head, where projections are wanted.
        kinds: What a record holds.
        dtype: What it is kept in.
    """

    def __init__(
        self, embedder: Embedder, head: PlasmaModel | None, kinds: Sequence[str], dtype: torch.dtype
    ) -> None:
        """Keep the parts."""
        self.embedder, self.head, self.kinds, self.dtype = embedder, head, kinds, dtype

    def make(
        self, batch: Sequence[str], wanted: Sequence[str]
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Embed a batch, and return the records of the wanted sequences in it.

        Args:
            batch: Sequences to embed together.
            wanted: Those of them that a record is made of.

        Returns:
            Records by sequence, and for every other wanted sequence the reason why it has none.
        """
        try:
            embedded = self._embed(batch)
        except Exception as error:  # whatever a model may raise; alone, the good ones pass
            if len(batch) == 1:
                return {}, {batch[0]: _spell(error)}
            parts = [self.make([sequence], [sequence]) for sequence in wanted]
            records = {key: record for part, _ in parts for key, record in part.items()}
            return records, {key: reason for _, part in parts for key, reason in part.items()}
        records, reasons = {}, {}
        for sequence in wanted:
            try:
                records[sequence] = self._record(sequence, embedded[sequence])
            except (ValueError, RuntimeError) as error:
                reasons[sequence] = _spell(error)
        return records, reasons

    def _embed(self, batch: Sequence[str]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return dict(zip(batch, self.embedder.embed(list(batch)), strict=True))

    def _record(self, sequence: str, embeddings: Tensor) -> Record:
        shape = (len(sequence), self.embedder.hidden_size)
        if tuple(embeddings.shape) != shape:
            raise ValueError(f"its embeddings are of shape {tuple(embeddings.shape)}, not {shape}")
        record = {}
        for kind in self.kinds:
            tensor = embeddings
            if kind == "projections":
                tensor = self._project(embeddings)
            record[kind] = self._store(kind, tensor)
        return record

    def _project(self, embeddings: Tensor) -> Tensor:
        assert self.head is not None  # the store has checked it
        # One protein at a time, so that its projection depends on nothing but its embeddings.
        with torch.inference_mode():
            return self.head.project(embeddings.to(self.head.device))

    def _store(self, kind: str, tensor: Tensor) -> Tensor:
        # Rounding keeps order, so the extremes tell of all; NaN is passed on to both of them.
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            raise ValueError(f"its {kind} hold NaN or infinite numbers")
        if not extremes.to(self.dtype).isfinite().all():
            name, largest = str(self.dtype).removeprefix("torch."), torch.finfo(self.dtype).max
            raise ValueError(
                f"its {kind} reach {extremes.abs().max():.4g}, beyond {largest:.4g}, the largest "
                f"{name}; make a store of bfloat16 or float32 (--dtype bfloat16)"
            )
        # A copy: slices of one padded batch share memory, which safetensors does not write.
        return torch.empty(tensor.shape, dtype=self.dtype).copy_(tensor)


def _spell(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
