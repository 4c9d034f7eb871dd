"""Proteins from wherever their sequences are kept: files, tables, data sets, rows in memory."""

from __future__ import annotations

import csv
import gzip
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from ..models.protein import (
    FILE_SUFFIXES,
    InvalidRecord,
    Protein,
    is_protein,
    read_protein,
    read_records,
    suffix_of,
)

logger = logging.getLogger(__name__)


DELIMITERS = {".csv": ",", ".tsv": "\t"}
DATASET_FORMATS = {".parquet": "parquet", ".jsonl": "json"}
ACCEPTED = (
    f"a file ({', '.join((*FILE_SUFFIXES, *DELIMITERS))}, each also with .gz; "
    f"{', '.join(DATASET_FORMATS)}), a folder of datasets.save_to_disk, a datasets.Dataset, or "
    "rows that are (id, sequence) or mappings"
)

Source: TypeAlias = "str | PathLike[str] | Iterable[Any]"
OnInvalid = Callable[[InvalidRecord], object]


def log_invalid(record: InvalidRecord) -> None:
    """Log a warning that a record is left out, and why."""
    logger.warning("%s is left out: %s", record.id, record.reason)


def read_sequences(
    source: Source,
    id_column: str = "id",
    sequence_column: str = "sequence",
    on_invalid: OnInvalid = log_invalid,
) -> Iterator[Protein]:
    """Read proteins one after the other, leaving out and reporting invalid records.

    Args:
        source: Path of a FASTA, PDB, mmCIF, CSV or TSV file (each also `.gz`), of a Parquet or
            JSON Lines file or of a folder written by `datasets.save_to_disk`; or a
            `datasets.Dataset` or any rows, each `(id, sequence)`, a mapping or a `Protein`.
        id_column: Name of the ids in tables, data sets and mappings; so `sequence_column`.
        on_invalid: Called with each record that is left out; by default it is logged.

    Example:
        >>> rows = [("P1", "MKVLA"), {"id": "P2", "sequence": "mkv"}, ("P3", "MK7")]
        >>> [(protein.id, protein.sequence) for protein in read_sequences(rows)]
        [('P1', 'MKVLA'), ('P2', 'MKV')]
    """
    columns = (id_column, sequence_column)
    for number, row in enumerate(_rows(source, columns), start=1):
        name = f"row {number}"
        try:
            key, sequence = _split(row, columns)
            if key in (None, ""):
                raise ValueError("it has no id")
            name = str(key)
            if sequence is None:
                raise ValueError("it has no sequence")
            yield read_protein({"id": name, "sequence": sequence}, "sequence")
        except (ValueError, TypeError) as error:
            on_invalid(InvalidRecord(name, str(error)))


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
    suffix = suffix_of(file)
    if suffix in FILE_SUFFIXES and not file.is_dir():
        return read_records(file)
    if not file.is_dir() and suffix not in DATASET_FORMATS and suffix not in DELIMITERS:
        raise ValueError(f"{file} is not read by its ending {suffix!r}; give {ACCEPTED}.")
    if not file.exists():
        raise FileNotFoundError(f"there is no file {str(file)!r}; check the path.")
    if suffix in DELIMITERS and not file.is_dir():
        return _read_table(file, DELIMITERS[suffix], columns)
    return _rows(_load_dataset(file, suffix), columns)


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
    kind = DATASET_FORMATS[suffix]
    return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)


def _check_columns(names: Iterable[str] | None, columns: tuple[str, str], where: str) -> None:
    names = None if names is None else list(names)
    for name, option in zip(columns, ("id_column", "sequence_column"), strict=True):
        if names is not None and name not in names:
            raise ValueError(
                f"{where} has no column {name!r}, only {', '.join(map(repr, names))}; name the "
                f"right one with {option} (--{option.replace('_', '-')} in the shell)."
            )


def _split(row: Any, columns: tuple[str, str]) -> tuple[Any, Any]:
    """Return id and sequence of a row, however it was given."""
    if is_protein(row):
        return row.id, row.sequence
    if isinstance(row, Mapping):
        return row.get(columns[0]), row.get(columns[1])
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    raise TypeError(f"it is a {type(row).__name__}; give (id, sequence) or a mapping")
