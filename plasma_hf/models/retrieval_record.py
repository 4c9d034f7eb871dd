"""What retrieval looks for and among: a sequence or a structure with an id and a source."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .protein import FASTA_SUFFIXES, is_protein, looks_like_path, read_record, read_records
from .residues import clean_sequence
from .structure import (
    STRUCTURE_SUFFIXES,
    Structure,
    is_structure,
    read_structure,
    read_structures,
    split_place,
)

logger = logging.getLogger(__name__)

KINDS = ("sequence", "structure")
RESIDUES_PER_BATCH = 2048
ACCEPTED = (
    f"a sequence, a path to FASTA ({', '.join(FASTA_SUFFIXES)}) or a structure "
    f"({', '.join(STRUCTURE_SUFFIXES)}; each also with .gz), a Structure, or a mapping with "
    "'sequence' or 'structure', and 'id' if you like"
)


@dataclass(frozen=True, eq=False)
class RetrievalRecord:
    """Hold a protein as one of its two kinds.

    Args:
        id: What to call it.
        content: One-letter residues, or a `Structure`.
        source: File and record it was read from, "" if from none.
    """

    id: str
    content: str | Structure
    source: str = ""

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "sequence" if isinstance(self.content, str) else "structure"

    @property
    def residues(self) -> str:
        """One letter a residue."""
        return self.content if isinstance(self.content, str) else self.content.sequence

    @cached_property
    def sha(self) -> str:
        """SHA-256 of all that its vector depends on, in hexadecimal.

        Example:
            >>> RetrievalRecord("a", "MKVLA").sha == RetrievalRecord("b", "MKVLA").sha
            True
        """
        digest = hashlib.sha256(f"{self.kind}\0{self.residues}\0".encode())
        if not isinstance(self.content, str):
            structure = self.content
            for names in (structure.author_numbers, structure.chain_ids):
                digest.update(" ".join(names).encode() + b"\0")
            places = structure.backbone.to(torch.float32).cpu().numpy()
            # NaN is many patterns of bits; here it is one.
            digest.update(np.where(np.isnan(places), np.float32("nan"), places).tobytes())
        return digest.hexdigest()


def is_record(value: Any) -> TypeGuard[RetrievalRecord]:
    """Tell a record from anything else, also one made by another copy of this file."""
    return all(hasattr(value, part.name) for part in fields(RetrievalRecord))


def record_of(value: Any, name: str = "query") -> RetrievalRecord:
    """Read one record from whatever a user may give for it.

    Args:
        value: A sequence; a path to FASTA or a structure, with `:record` or `:chain` behind it
            where the file holds several; a `Structure` or `Protein`; or a mapping with `sequence`
            or `structure`, and `id`.
        name: What to call it in an error message, and where it has no id.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it cannot be used, or the file holds several.
        FileNotFoundError: If there is no such file.

    Example:
        >>> record = record_of({"id": "P1", "sequence": "mkvla"})
        >>> record.id, record.kind, record.residues
        ('P1', 'sequence', 'MKVLA')
    """
    if is_record(value):
        return _checked(value, name)
    if isinstance(value, Mapping):
        return _of_mapping(value, name)
    if is_structure(value):
        return _checked(RetrievalRecord(value.id, value), name)
    if is_protein(value):
        return _checked(RetrievalRecord(value.id, value.sequence or ""), name)
    if isinstance(value, Path) or (isinstance(value, str) and looks_like_path(value)):
        return _of_path(str(value), name)
    if isinstance(value, str):
        return RetrievalRecord(name, clean_sequence(value, name))
    raise TypeError(f"{name} is a {type(value).__name__}; give {ACCEPTED}.")


def records_in(place: str | Path, bad: list[tuple[str, str]]) -> Iterator[RetrievalRecord]:
    """Read all records of a FASTA or structure file, or of the structures below a folder.

    Args:
        place: File or folder; or one record or chain, as `file:record` or `file:chain`.
        bad: List to which what cannot be used is added, as (id, reason).

    Raises:
        FileNotFoundError: If there is no such place.
        ValueError: If it holds nothing that can be read.
    """
    path = Path(place)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_structure_file(file))
        if not files:
            raise ValueError(
                f"there is no structure file below {str(place)!r}; structures are read from "
                f"{', '.join(STRUCTURE_SUFFIXES)}, each also with .gz."
            )
        for file in files:
            name = file.relative_to(path).as_posix()
            yield from _reporting(_chains(file, name), name, bad)
    elif not path.exists():
        yield _named_record(str(place))
    elif is_structure_file(path):
        yield from _chains(path, path.name)
    else:
        for protein in read_records(path):
            record = RetrievalRecord(protein.id, protein.sequence or "", f"{path}:{protein.id}")
            yield from _reporting([record], protein.id, bad)


def _named_record(place: str) -> RetrievalRecord:
    """Read the one record that is named behind a file."""
    if not Path(split_place(place)[0]).is_file():
        raise FileNotFoundError(
            f"there is no file or folder {place!r}; check the path. A sequence goes into a list: "
            "candidates=['MKVLA']."
        )
    return _of_path(place, "candidate")


def _reporting(
    records: Iterable[RetrievalRecord], name: str, bad: list[tuple[str, str]]
) -> Iterator[RetrievalRecord]:
    try:
        for record in records:
            yield _checked(record, "record")
    except (ValueError, OSError, EOFError) as error:
        bad.append((name, str(error)))


def _chains(file: Path, name: str) -> Iterator[RetrievalRecord]:
    for structure in read_structures(file):
        chain = structure.id.rpartition(":")[2]
        yield RetrievalRecord(f"{name}:{chain}", structure, f"{file}:{chain}")


def is_structure_file(file: Path) -> bool:
    """Tell by its ending whether a file may hold structures."""
    return _suffix(file) in STRUCTURE_SUFFIXES


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _of_mapping(value: Mapping[str, Any], name: str) -> RetrievalRecord:
    given = [kind for kind in KINDS if value.get(kind) is not None]
    if len(given) != 1:
        raise ValueError(
            f"{name} is a mapping with the keys {', '.join(map(repr, value)) or 'none'}; give "
            "either 'sequence' or 'structure', and 'id' if you like."
        )
    content = value[given[0]]
    if given[0] == "sequence" and isinstance(content, str):
        content = clean_sequence(content, name)  # never a path, whatever it looks like
    record = record_of(content, name)
    if record.kind != given[0]:
        raise ValueError(f"{name} has a {record.kind} under the key {given[0]!r}.")
    return RetrievalRecord(str(value.get("id") or record.id), record.content, record.source)


def _of_path(place: str, name: str) -> RetrievalRecord:
    file = Path(split_place(place)[0])
    if file.is_dir():
        raise ValueError(
            f"{name} is the folder {place!r}, not one protein; give a file in it. What to search "
            "can be a folder: candidates=FOLDER, or plasma-hf index build FOLDER."
        )
    if is_structure_file(file):
        structure = read_structure(place)
        chain = structure.id.rpartition(":")[2]
        return _checked(RetrievalRecord(structure.id, structure, f"{file}:{chain}"), name)
    protein = read_record(place)
    record = RetrievalRecord(protein.id, protein.sequence or "", f"{file}:{protein.id}")
    return _checked(record, name)


def _checked(record: RetrievalRecord, name: str) -> RetrievalRecord:
    if isinstance(record.content, str):
        letters = clean_sequence(record.content, f"{name} {record.id!r}")
        return RetrievalRecord(record.id, letters, record.source)
    if not is_structure(record.content):
        raise TypeError(
            f"{name} {record.id!r} is a {type(record.content).__name__}; give {ACCEPTED}."
        )
    return record


def embed_records(
    model: Any, records: Sequence[RetrievalRecord], residues_per_batch: int = RESIDUES_PER_BATCH
) -> list[Tensor | Exception]:
    """Embed records, each kind by its own side of the model, in batches of like length.

    Args:
        model: With `embed_sequences` and `embed_structures`, such as `ProtAlignModel`.
        records: Sequences and structures, mixed as they come.
        residues_per_batch: Most residues embedded at once, padding included.

    Returns:
        One L2-normalised vector `(width,)` a record, float32 on the CPU, or what went wrong.

    Raises:
        ValueError: If the model has no encoder for a kind.
    """
    results: dict[int, Tensor | Exception] = {}
    for kind in KINDS:
        chosen = [i for i, record in enumerate(records) if record.kind == kind]
        if chosen:
            check_encoder(model, kind)
        chosen.sort(key=lambda i: -len(records[i].residues))
        while chosen:
            longest = len(records[chosen[0]].residues)
            size = max(1, residues_per_batch // max(1, longest))
            batch, chosen = chosen[:size], chosen[size:]
            found = _embed_batch(model, [records[i] for i in batch])
            results |= dict(zip(batch, found, strict=True))
    return [results[i] for i in range(len(records))]


def check_encoder(model: Any, kind: str) -> None:
    """Refuse a model without an encoder for a kind, if it can tell; see `ProtAlignModel`."""
    check = getattr(model, "check_encoder", None)
    if check is not None:
        check(kind)


def _embed_batch(model: Any, records: Sequence[RetrievalRecord]) -> list[Tensor | Exception]:
    """Embed a batch; if that fails, each by itself, to find the one to blame."""
    embed = model.embed_sequences if records[0].kind == "sequence" else model.embed_structures
    try:
        vectors = embed([record.content for record in records], batch_size=len(records))
        vectors = F.normalize(vectors.detach().float().cpu(), dim=-1)
    except (ValueError, RuntimeError) as error:
        if len(records) == 1:
            return [error]
        return [found for record in records for found in _embed_batch(model, [record])]
    return [
        vector if bool(vector.isfinite().all()) else ValueError("its vector is not finite")
        for vector in vectors
    ]
