"""A protein as users give it: a sequence, a file, or ready residue embeddings."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .residues import clean_sequence
from .structure import (
    STRUCTURE_SUFFIXES,
    Structure,
    read_structure,
    read_structures,
    split_place,
)

logger = logging.getLogger(__name__)

FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fas")
FILE_SUFFIXES = FASTA_SUFFIXES + STRUCTURE_SUFFIXES
BACKBONE_ATOMS = ("N", "CA", "C")


@dataclass
class Protein:
    """One side of a pair: residues as letters, or as embeddings `(residues, hidden)`.

    Args:
        id: What to call it.
        sequence: One letter a residue.
        embeddings: One vector a residue, `(residues, hidden)`.
        backbone_atoms: N, CA and C of each residue, `(residues, 3 atoms, 3)`, Å, float32, for a
            protein read from a structure. A residue that lacks one of the three has NaN.
    """

    id: str
    sequence: str | None = None
    embeddings: Tensor | None = None
    backbone_atoms: Tensor | None = field(default=None, repr=False, compare=False)


def read_protein(value: Any, name: str = "protein") -> Protein:
    """Read one protein from whatever a user may give for it.

    Args:
        value: A sequence; a path to FASTA, PDB or mmCIF (also `.gz`), with `:id` or `:chain`
            behind it where the file holds several, `:*` for all chains one after another; or
            embeddings `(residues, hidden)`.
        name: What to call it in an error message.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the sequence or embeddings are unusable, or the file holds several records.
        FileNotFoundError: If there is no such file.

    Example:
        >>> read_protein("mkvla").sequence
        'MKVLA'
    """
    if is_protein(value):
        return _check_protein(value, name)
    if isinstance(value, Path) or (isinstance(value, str) and looks_like_path(value)):
        return read_protein(read_record(str(value)), name)
    if isinstance(value, str):
        return Protein(name, clean_sequence(value, name))
    if isinstance(value, Tensor | np.ndarray | list):
        return Protein(name, embeddings=_read_embeddings(value, name))
    raise TypeError(
        f"{name} is a {type(value).__name__}; give a sequence, a path to a FASTA, PDB or mmCIF "
        "file, or residue embeddings (residues, hidden)."
    )


def is_protein(value: Any) -> TypeGuard[Protein]:
    """Tell a `Protein` from anything else, also one made by another copy of this file.

    transformers loads the remote code of a model and of its processor as separate packages, each
    with a class `Protein` of its own; between them `isinstance` says no.

    Example:
        >>> is_protein(Protein("p", "MKV")), is_protein("MKV")
        (True, False)
    """
    return all(hasattr(value, part.name) for part in fields(Protein))


def with_backbone_atoms(protein: Protein) -> Protein:
    """Keep the residues that have all of N, CA and C, as a structure encoder needs them.

    A warning names those that are left out. Whatever a residue's name, it stays: ProtSSN's own
    reader gives up on a protein with a modified residue, here it is spelled by its parent.

    Raises:
        ValueError: If the protein has no atoms, or no residue has all three.

    Example:
        >>> atoms = torch.tensor([1.0, float("nan"), 3.0]).expand(3, 3, 3).transpose(0, 2)
        >>> with_backbone_atoms(Protein("p", "MKV", backbone_atoms=atoms)).sequence
        'MV'
    """
    atoms = protein.backbone_atoms
    if atoms is None:
        raise ValueError(
            f"{protein.id} comes without atoms, and a structure encoder such as ProtSSN reads "
            "structures; give the path of a PDB or mmCIF file, for example 'file.pdb:A'."
        )
    complete = atoms.isfinite().all(dim=-1).all(dim=-1)
    if complete.all():
        return protein
    letters = protein.sequence or "?" * len(atoms)
    lacking = [f"{letters[i]}{i + 1}" for i in (~complete).nonzero()[:, 0].tolist()]
    names = ", ".join(lacking[:20]) + (", ..." if len(lacking) > 20 else "")
    lack = f"lack one of the backbone atoms {', '.join(BACKBONE_ATOMS)}"
    if not complete.any():
        raise ValueError(f"all residues of {protein.id} {lack}; give a complete structure.")
    logger.warning(
        "%s: %d of %d residues %s and are left out: %s (by their place in the sequence)",
        *(protein.id, len(lacking), len(atoms), lack, names),
    )
    return replace(
        protein,
        sequence=protein.sequence and "".join(compress(letters, complete.tolist())),
        embeddings=None if protein.embeddings is None else protein.embeddings[complete],
        backbone_atoms=atoms[complete],
    )


def looks_like_path(text: str) -> bool:
    """Tell a path from a sequence: a path holds a dot or a slash, a sequence neither.

    Example:
        >>> looks_like_path("1abc.pdb:A"), looks_like_path("MKVLA")
        (True, False)
    """
    return "." in text or "/" in text or "\\" in text


def read_record(path: str) -> Protein:
    """Read the one protein of a file, or the one named behind a colon, unchecked.

    `file.pdb:*` is all chains of a structure one after another, as one protein.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is unreadable, holds several proteins, or not the one named.
    """
    file, wanted = split_place(path)
    if _suffix(Path(file)) in STRUCTURE_SUFFIXES:
        return _from_structure(read_structure(path, atoms=BACKBONE_ATOMS))
    records = list(read_records(file))
    names = ", ".join(record.id for record in records[:20])
    if wanted:
        for record in records:
            if wanted in (record.id, record.id.rpartition(":")[2]):
                return record
        raise ValueError(f"{file} has no record {wanted!r}; it has: {names}.")
    if len(records) > 1:
        raise ValueError(
            f"{file} holds {len(records)} records: {names}; name one, as in "
            f"'{file}:{records[0].id}'."
        )
    return records[0]


def read_records(path: str | Path) -> Iterator[Protein]:
    """Read every protein of a FASTA, PDB or mmCIF file, sequences unchecked.

    A FASTA record is called by the first word of its header, a chain `file:chain`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as what its name says.
    """
    file = Path(path)
    suffix = _suffix(file)
    if suffix not in FILE_SUFFIXES:
        raise ValueError(
            f"{path}: files are read by their ending, and this one "
            + (f"has {suffix!r}, which is not one of" if suffix else "has no ending; give one of")
            + f" {', '.join(FILE_SUFFIXES)} (each also with .gz)."
        )
    if suffix in STRUCTURE_SUFFIXES:
        return map(_from_structure, read_structures(file, atoms=BACKBONE_ATOMS))
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; check the path.")
    return iter(_read_fasta(file))


def parse_fasta(lines: Iterable[str]) -> Iterator[Protein]:
    """Read FASTA records from lines as they come, sequences unchecked.

    A record is called by the first word of its header, or else by the number of its line.

    Args:
        lines: An open file, or the lines of a text.

    Raises:
        ValueError: If a line comes before any header.

    Example:
        >>> [(p.id, p.sequence) for p in parse_fasta([">one first", "MK", "VL", ">two", "AC"])]
        [('one', 'MKVL'), ('two', 'AC')]
    """
    name: str | None = None
    parts: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if line.startswith(">"):
            if name is not None:
                yield Protein(name, "".join(parts))
            name, parts = (line[1:].split() or [f"line{number}"])[0], []
        elif line and name is None:
            raise ValueError(f"line {number} comes before any '>' header line")
        else:
            parts.append(line)
    if name is not None:
        yield Protein(name, "".join(parts))


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _read_fasta(file: Path) -> list[Protein]:
    opened = gzip.open if file.name.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            records = list(parse_fasta(lines))
    except (OSError, UnicodeDecodeError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no readable FASTA file: {error}.") from error
    if not records:
        raise ValueError(f"{file} holds no FASTA record; a record begins with a '>' line.")
    return records


def _from_structure(structure: Structure) -> Protein:
    atoms = structure.backbone[:, : len(BACKBONE_ATOMS)]
    return Protein(structure.id, structure.sequence, backbone_atoms=atoms)


def _check_protein(protein: Protein, name: str) -> Protein:
    """Return a protein with its embeddings, or else its sequence, checked; and its atoms."""
    sequence = embeddings = None
    if protein.embeddings is not None:
        embeddings = _read_embeddings(protein.embeddings, name)
        residues = len(embeddings)
    else:
        sequence = clean_sequence(protein.sequence or "", f"{name} {protein.id!r}")
        residues = len(sequence)
    atoms = protein.backbone_atoms
    if atoms is not None and tuple(atoms.shape) != (residues, len(BACKBONE_ATOMS), 3):
        raise ValueError(
            f"{name} {protein.id!r} has {residues} residues and backbone_atoms of shape "
            f"{tuple(atoms.shape)}; give N, CA and C of each residue, ({residues}, 3, 3)."
        )
    return Protein(protein.id, sequence, embeddings, atoms)


def _read_embeddings(value: Tensor | np.ndarray | list, name: str) -> Tensor:
    try:
        embeddings = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no table of numbers (residues, hidden): {error}.") from error
    if embeddings.ndim != 2 or 0 in embeddings.shape or not embeddings.is_floating_point():
        raise ValueError(
            f"{name} is {embeddings.dtype} of shape {tuple(embeddings.shape)}; residue embeddings "
            "are floating point numbers of shape (residues, hidden), with at least one residue."
        )
    if not embeddings.isfinite().all():
        raise ValueError(f"{name} has embeddings that are NaN or infinite.")
    return embeddings
