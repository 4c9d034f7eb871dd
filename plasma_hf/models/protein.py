"""A protein as users give it: a sequence, a file, or ready residue embeddings."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .residues import clean_sequence

try:
    import gemmi
except ImportError:  # structures are optional; sequences need nothing beyond torch
    gemmi = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fas")
STRUCTURE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
FILE_SUFFIXES = FASTA_SUFFIXES + STRUCTURE_SUFFIXES
BACKBONE_ATOMS = ("N", "CA", "C")


@dataclass
class Protein:
    """One side of a pair: residues as letters, or as embeddings `(residues, hidden)`."""

    id: str
    sequence: str | None = None
    embeddings: Tensor | None = None


def read_protein(value: Any, name: str = "protein") -> Protein:
    """Read one protein from whatever a user may give for it.

    Args:
        value: A sequence; a path to FASTA, PDB or mmCIF (also `.gz`), with `:id` or `:chain`
            behind it where the file holds several; or embeddings `(residues, hidden)`.
        name: What to call it in an error message.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the sequence or embeddings are unusable, or the file holds several records.
        FileNotFoundError: If there is no such file.

    Example:
        >>> read_protein("mkvla").sequence
        'MKVLA'
    """
    if isinstance(value, Protein):
        if value.embeddings is not None:
            return Protein(value.id, embeddings=_read_embeddings(value.embeddings, name))
        return Protein(value.id, clean_sequence(value.sequence or "", f"{name} {value.id!r}"))
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


def looks_like_path(text: str) -> bool:
    """Tell a path from a sequence: a path holds a dot or a slash, a sequence neither.

    Example:
        >>> looks_like_path("1abc.pdb:A"), looks_like_path("MKVLA")
        (True, False)
    """
    return "." in text or "/" in text or "\\" in text


def read_record(path: str) -> Protein:
    """Read the one protein of a file, or the one named behind a colon, unchecked.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is unreadable, holds several proteins, or not the one named.
    """
    file, _, wanted = path.rpartition(":") if not Path(path).exists() else (path, "", "")
    if not file:
        file, wanted = path, ""
    records = list(read_records(file))
    kind = "record" if _suffix(Path(file)) in FASTA_SUFFIXES else "chain"
    names = ", ".join(record.id.rpartition(":")[2] for record in records[:20])
    if wanted:
        for record in records:
            if wanted in (record.id, record.id.rpartition(":")[2]):
                return record
        raise ValueError(f"{file} has no {kind} {wanted!r}; it has: {names}.")
    if len(records) > 1:
        raise ValueError(
            f"{file} holds {len(records)} {kind}s: {names}; name one, as in "
            f"'{file}:{records[0].id.rpartition(':')[2]}'."
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
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; check the path.")
    return iter(_read_fasta(file) if suffix in FASTA_SUFFIXES else _read_structure(file))


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _read_fasta(file: Path) -> list[Protein]:
    opened = gzip.open if file.name.endswith(".gz") else open
    records: list[tuple[str, list[str]]] = []
    try:
        with opened(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.strip()
                if line.startswith(">"):
                    words = line[1:].split()
                    records.append((words[0] if words else f"line{number}", []))
                elif line and not records:
                    raise ValueError(f"line {number} comes before any '>' header line")
                elif line:
                    records[-1][1].append(line)
    except (OSError, UnicodeDecodeError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is no readable FASTA file: {error}.") from error
    if not records:
        raise ValueError(f"{file} holds no FASTA record; a record begins with a '>' line.")
    return [Protein(name, "".join(parts)) for name, parts in records]


def _read_structure(file: Path) -> list[Protein]:
    if gemmi is None:
        raise ImportError(f"reading {file} needs gemmi; install it with: pip install gemmi")
    try:
        structure = gemmi.read_structure(str(file))
        structure.merge_chain_parts()
        structure.setup_entities()
        model = structure[0]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is no readable structure file: {error}.") from error
    chains = [(chain.name, _amino_acids(chain)) for chain in model]
    chains = [(name, residues) for name, residues in chains if residues]
    if not chains:
        raise ValueError(f"{file} holds no protein chain.")
    complete = {name: _has_backbone(residues) for name, residues in chains}
    if not any(complete.values()):
        raise ValueError(
            f"{file} has no residue with the backbone atoms {', '.join(BACKBONE_ATOMS)}; give a "
            "structure with backbone atoms, or the sequence itself."
        )
    for name in (name for name in complete if not complete[name]):
        logger.warning("chain %r of %s has no backbone atoms and is left out", name, file)
    return [
        Protein(f"{file.name}:{name}", _spell(residues))
        for name, residues in chains
        if complete[name]
    ]


def _amino_acids(chain: Any) -> list[Any]:
    polymer = chain.get_polymer()
    return [r for r in polymer if gemmi.find_tabulated_residue(r.name).is_amino_acid()]


def _has_backbone(residues: list[Any]) -> bool:
    return any(all(atom in residue for atom in BACKBONE_ATOMS) for residue in residues)


def _spell(residues: list[Any]) -> str:
    """Spell the observed residues; a modified one by its parent, an unknown one as X."""
    letters = (gemmi.find_tabulated_residue(r.name).one_letter_code for r in residues)
    return "".join(letter.upper() if letter.strip() else "X" for letter in letters)


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
