"""What an embedding store says of itself: the models it is of, and how it keeps numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .chunks import read_json, write_json
from .embedder import DTYPES, KINDS, Embedder, describe, head_width

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

FORMAT = 1
REMEDY = (
    "delete it and run the plasma-hf embed command that made the store again: it writes it anew"
)
# A record's entry in the table of contents of its chunk: key, dtype, shape and offsets.
ENTRY_BYTES = 160


@dataclass(frozen=True)
class StoreHeader:
    """Hold what every record of a store has in common; `store.json` is this.

    Attributes:
        backbone: identity of the backbone.
        head: identity of the head that projections are of, or None.
        dtype: name of the floating point type that records are kept in.
        hidden_size: width of residue embeddings.
        head_size: width of projections, or None.
        kinds: what is kept, of "embeddings" and "projections".
    """

    backbone: dict[str, str]
    head: dict[str, str] | None
    dtype: str
    hidden_size: int
    head_size: int | None
    kinds: tuple[str, ...]

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        head: PlasmaModel | None,
        dtype: str | torch.dtype | None,
        kinds: Sequence[str] | None,
    ) -> StoreHeader:
        """Describe a new store; by default float32, with projections if there is a head.

        Raises:
            ValueError: If dtype or kinds are none, or kinds and head do not go together.
        """
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        if kinds is None:
            kinds = KINDS if head is not None else KINDS[:1]
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds is {tuple(kinds)}; give one or both of {', '.join(KINDS)}.")
        projecting = "projections" in kinds
        if projecting and head is None:
            raise ValueError(
                "projections need a head; give head=PlasmaModel, in the shell --model FOLDER."
            )
        hidden_size = embedder.hidden_size
        return cls(
            backbone=dict(embedder.identity),
            head=head.head_identity if projecting and head is not None else None,
            dtype=name,
            hidden_size=hidden_size,
            head_size=head_width(head, hidden_size) if projecting and head is not None else None,
            kinds=tuple(kind for kind in KINDS if kind in kinds),
        )

    @classmethod
    def read(cls, path: Path) -> StoreHeader:
        """Read `store.json`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, or of a newer format than is known here.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no embedding store in {str(path.parent)!r} (no {path.name}); make one "
                f"with: plasma-hf embed proteins.fasta --output {path.parent}"
            )
        fields = read_json(path, REMEDY)
        version = fields.pop("format", None)
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"{path} is of format {version}, and this plasma_hf reads {FORMAT}; install a "
                "newer one with: pip install --upgrade plasma-hf"
            )
        try:
            return cls(**fields | {"kinds": tuple(fields["kinds"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is no header of a store ({error}); {REMEDY}.") from error

    def write(self, path: Path) -> None:
        """Write `store.json`."""
        write_json(path, self.fields())

    def fields(self) -> dict[str, Any]:
        """Return everything with the version of the format."""
        return asdict(self) | {"kinds": list(self.kinds), "format": FORMAT}

    def text(self) -> str:
        """Return everything in one line; every chunk carries it."""
        return json.dumps(self.fields(), sort_keys=True)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that records are kept in."""
        return DTYPES[self.dtype]

    @property
    def widths(self) -> dict[str, int]:
        """Numbers a residue, by kind."""
        sizes = {"embeddings": self.hidden_size, "projections": self.head_size or 0}
        return {kind: sizes[kind] for kind in self.kinds}

    def size_of(self, lengths: Sequence[int]) -> int:
        """Return the bytes on disk of records of these lengths, tables of contents included."""
        numbers = sum(lengths) * sum(self.widths.values())
        return numbers * self.torch_dtype.itemsize + len(lengths) * len(self.kinds) * ENTRY_BYTES

    def check(
        self, folder: Path, backbone: Mapping[str, str], head: Mapping[str, str] | None = None
    ) -> None:
        """Refuse another backbone or head than the store is of.

        Raises:
            ValueError: Naming both.
        """
        pairs = [("embeddings of", self.backbone, backbone)]
        if head is not None and self.head is not None:
            pairs += [("projections by the head", self.head, head)]
        for what, ours, given in pairs:
            if dict(ours) == dict(given):
                continue
            differing = [k for k in {**ours, **given} if ours.get(k) != given.get(k)]
            raise ValueError(
                f"the store {folder} holds {what} {describe(ours)}, you asked for "
                f"{describe(given)}: they differ in {' and '.join(differing)}; make another store "
                "with: plasma-hf embed proteins.fasta --output ANOTHER_FOLDER"
                + (f" --backbone {backbone.get('backbone', 'NAME')}" if given is backbone else "")
            )
