"""Proteins from wherever their sequences are kept: files, tables, data sets, rows in memory."""

from __future__ import annotations

import csv
import gzip
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from ..models.protein import FILE_SUFFIXES, Protein, clean_sequence, read_records

logger = logging.getLogger(__name__)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
DATASET_FORMATS = {".parquet": "parquet", ".jsonl": "json"}
ACCEPTED = (
    f"a file ({', '.join((*FILE_SUFFIXES, *DELIMITERS))}, each also with .gz; "
    f"{', '.join(DATASET_FORMATS)}), a folder of datasets.save_to_disk, a datasets.Dataset, or "
    "rows that are (id, sequence) or mappings"
)

Source: TypeAlias = "str | PathLike[str] | Iterable[Any]"


@dataclass(frozen=True)
class BadRecord:
    """Say which record was left out, and why.

    Attributes:
        id: id of the record, or where it stands if it has none.
        reason: what is wrong with it.
    """

    id: str
    reason: str


def read_sequences(
    source: Source,
    id_column: str = "id",
    sequence_column: str = "sequence",
    bad: list[BadRecord] | None = None,
) -> Iterator[Protein]:
    """Read proteins one after the other, leaving out and reporting the records that are wrong.

    Args:
        source: Path of a FASTA, PDB, mmCIF, CSV or TSV file (each also `.gz`), of a Parquet or
            JSON Lines file or of a folder written by `datasets.save_to_disk`; or a
            `datasets.Dataset` or any rows, each `(id, sequence)`, a mapping or a `Protein`.
        id_column: Name of the ids in tables, data sets and mappings.
        sequence_column: Name of the sequences there.
        bad: List that records left out are added to; without one they are logged as warnings.

    Yields:
        Proteins with clean sequences (`clean_sequence`), in the order of the source.

    Raises:
        TypeError: If `source` is nothing of the kind.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as what its name says, or lacks a column.

    Example:
        >>> bad = []
        >>> rows = [("P1", "MKVLA"), {"id": "P2", "sequence": "mkv"}, ("P3", "MK7")]
        >>> [(protein.id, protein.sequence) for protein in read_sequences(rows, bad=bad)]
        [('P1', 'MKVLA'), ('P2', 'MKV')]
        >>> bad[0].id, bad[0].reason[:25]
        ('P3', 'sequence has the characte')
    """
    columns = (id_column, sequence_column)
    for number, row in enumerate(_rows(source, columns), start=1):
        name = f"row {number}"
        try:
            key, sequence = _split(row, columns)
            if key in (None, ""):
                raise ValueError("it has no id")
            name = str(key)
            yield Protein(name, clean_sequence(sequence))
        except (ValueError, TypeError) as error:
            record = BadRecord(name, str(error))
            if bad is None:
                logger.warning("%s is left out: %s", record.id, record.reason)
            else:
                bad.append(record)


def _rows(source: Source, columns: tuple[str, str]) -> Iterable[Any]:
    if isinstance(source, str | PathLike):
        return _read_file(Path(source), columns)
    if isinstance(source, Mapping):
        raise TypeError(
            f"a {type(source).__name__} with the keys {', '.join(map(str, list(source)[:5]))}; "
            "give one split of a DatasetDict, or the items() of a dict from id to sequence."
        )
    if not isinstance(source, Iterable):
        raise TypeError(f"cannot read sequences from a {type(source).__name__}; give {ACCEPTED}.")
    # A Dataset says its columns at once; a streamed one may not know them before its first row.
    _check_columns(getattr(source, "column_names", None), columns, "this data set")
    return source


def _read_file(file: Path, columns: tuple[str, str]) -> Iterable[Any]:
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if file.is_dir() or suffix in DATASET_FORMATS:
        return _rows(_load_dataset(file, suffix), columns)
    if suffix in DELIMITERS and file.is_file():
        return _read_table(file, DELIMITERS[suffix], columns)
    if suffix in FILE_SUFFIXES:
        return read_records(file)
    if suffix in DELIMITERS:
        raise FileNotFoundError(f"there is no file {str(file)!r}; check the path.")
    raise ValueError(f"{file} is not read by its ending {suffix!r}; give {ACCEPTED}.")


def _read_table(file: Path, delimiter: str, columns: tuple[str, str]) -> Iterator[dict[str, str]]:
    opened = gzip.open if file.name.endswith(".gz") else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter=delimiter)
            _check_columns(reader.fieldnames or [], columns, str(file))
            yield from reader
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a valid table: {error}.") from error


def _load_dataset(path: Path, suffix: str) -> Iterable[Any]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs datasets; install it with: pip install 'plasma-hf[train]'"
        ) from error
    if path.is_dir():
        return datasets.load_from_disk(str(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; check the path.")
    return datasets.load_dataset(
        DATASET_FORMATS[suffix], data_files=str(path), split="train", streaming=True
    )


def _check_columns(names: Iterable[str] | None, columns: tuple[str, str], where: str) -> None:
    if names is None:
        return
    names = list(names)
    for name, option in zip(columns, ("id_column", "sequence_column"), strict=True):
        if name not in names:
            raise ValueError(
                f"{where} has no column {name!r}, only {', '.join(map(repr, names))}; name the "
                f"right one with {option} (--{option.replace('_', '-')} in the shell)."
            )


def _split(row: Any, columns: tuple[str, str]) -> tuple[Any, Any]:
    """Return id and sequence of a row, however it was given."""
    if isinstance(row, Protein):
        return row.id, row.sequence
    if isinstance(row, Mapping):
        return row.get(columns[0]), row.get(columns[1])
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    raise TypeError(f"it is a {type(row).__name__}; give (id, sequence) or a mapping")
