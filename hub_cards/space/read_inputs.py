"""What a visitor gives: proteins as text or file, and databases of them, none too large."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from plasma_hf.models.protein import (
    BACKBONE_ATOMS,
    InvalidRecord,
    Protein,
    read_protein,
    read_records,
)
from plasma_hf.search.database import ProteinDatabase

MOST_RESIDUES = 3000
"""Residues of a protein that this page takes; the library has no limit."""
MOST_LETTERS, MOST_BYTES, MOST_RECORDS = 100_000, 50_000_000, 1000
"""Characters of a text, bytes that a file may unpack to, and FASTA records of either."""
MOST_TOGETHER = 400_000
"""Residues of all proteins that are searched."""


def read_input(text: str, file: str | None, part: str, name: str) -> Protein:
    """Read a protein from what a visitor gave: a file, or else a sequence or FASTA text.

    Args:
        text: Never taken for a path.
        file: Where the upload is.
        part: Chain or record of the file or text, "" where it has one only.
        name: What to call a sequence without a name.

    Raises:
        ValueError: If it cannot be used, or is longer than `MOST_RESIDUES`.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(
            f"the text has {len(text):,} characters, and this page takes up to {MOST_LETTERS:,}; "
            "the library takes more: plasma-hf align."
        )
    if file:
        record = read_file(Path(file), part)
    elif text.lstrip().startswith(">"):
        with as_file(text) as pasted:
            record = read_file(pasted, part)
    else:
        record = read_protein({"id": name, "sequence": text}, name)
    if len(record) > MOST_RESIDUES:
        raise ValueError(
            f"{record.id} has {len(record)} residues, and this page takes up to "
            f"{MOST_RESIDUES}; the library takes more: plasma-hf align."
        )
    return record


@contextmanager
def as_file(text: str) -> Iterator[Path]:
    """Put FASTA text into a file for a while."""
    with TemporaryDirectory() as folder:
        pasted = Path(folder, "text.fasta")
        pasted.write_text(text, encoding="utf-8")
        yield pasted


@contextmanager
def checked(file: Path) -> Iterator[None]:
    """Refuse a file that is too large; errors name the file, not the folder it was put into."""
    check_size(file)
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(f"{file.parent}{os.sep}", "")) from error


def read_file(file: Path, part: str) -> Protein:
    """Read one protein of a file."""
    with checked(file):
        place = f"{file}:{part.strip()}" if part.strip() else file
        return read_protein(place, "query", BACKBONE_ATOMS)


def read_all(file: Path) -> list[Protein]:
    """Read all proteins of a file."""
    with checked(file):
        return read_records(file, BACKBONE_ATOMS)


def check_size(file: Path) -> None:
    """Refuse a file that unpacks to much, or has many records, without keeping what is in it."""
    size = records = 0
    last = b"\n"
    try:
        packed = file.read_bytes()[:2] == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as content:
            while piece := content.read(2**20):
                size, records = size + len(piece), records + (last + piece).count(b"\n>")
                last = piece[-1:]
                if size > MOST_BYTES or records > MOST_RECORDS:
                    raise ValueError(
                        f"{file.name} holds more than {MOST_BYTES // 10**6} MB or "
                        f"{MOST_RECORDS} records, the most that this page takes; the library takes "
                        "more: plasma-hf align."
                    )
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file.name} cannot be read: {error}.") from error


def read_database(
    text: str, files: Sequence[str] | None, example: Path | None = None
) -> tuple[ProteinDatabase, list[str]]:
    """Read the proteins to search: FASTA text, or files, or else the folder of an example.

    Returns:
        The proteins, and what of them could not be read.

    Raises:
        ValueError: If there are none, or more than this page takes.
    """
    left_out: list[str] = []
    if text.strip():
        if len(text) > MOST_TOGETHER:
            raise ValueError(f"the text has {len(text):,} characters; give a file.")
        with as_file(text if text.lstrip().startswith(">") else f">query\n{text}") as pasted:
            found = read_all(pasted)
    else:
        examples = sorted(example.glob("*.gz")) if example else []
        given = [Path(file) for file in files or ()] or examples
        found = [protein for file in given for protein in read_all(file)]
    for protein in found:
        if len(protein) > MOST_RESIDUES:
            left_out.append(f"{protein.id}: it has {len(protein)} residues, over {MOST_RESIDUES}")
    found = [protein for protein in found if len(protein) <= MOST_RESIDUES]

    def leave_out(record: InvalidRecord) -> None:
        left_out.append(f"{record.id}: {record.reason}")

    database = ProteinDatabase.of(found, leave_out)
    if not len(database):
        raise ValueError("there is no protein to search: " + "; ".join(left_out or ["none given"]))
    if len(database) > MOST_RECORDS or database.residues > MOST_TOGETHER:
        raise ValueError(
            f"{len(database)} proteins of {database.residues:,} residues, and this page takes "
            f"{MOST_RECORDS} of {MOST_TOGETHER:,} together; the library takes more: "
            "plasma-hf search."
        )
    return database, left_out
