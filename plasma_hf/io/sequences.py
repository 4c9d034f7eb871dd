"""Proteins from wherever their sequences are kept: files, tables, data sets, rows in memory."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from ..models.protein import (
    InvalidRecord,
    Protein,
    is_protein,
    open_text,
    read_protein,
    read_records,
)

logger = logging.getLogger(__name__)


csv.field_size_limit(2**31 - 1)  # its own limit of 131,072 characters costs the rest of a table

DELIMITERS = ",\t;"
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ACCEPTED = (
    "a file (FASTA, PDB, mmCIF, CSV, TSV, JSON Lines, each also gzipped, or Parquet), a folder of "
    "datasets.save_to_disk, a datasets.Dataset, or rows that are (id, sequence) or mappings"
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
        source: Path of a FASTA, PDB, mmCIF, CSV, TSV or JSON Lines file (each also gzipped; its
            content tells which), of a Parquet file or of a folder written by
            `datasets.save_to_disk`; or a `datasets.Dataset` or any rows, each `(id, sequence)`, a
            mapping or a `Protein`.
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
    if file.is_dir():
        return _rows(_import("datasets", file).load_from_disk(str(file)), columns)
    kind = _kind_of(file, columns)
    if kind == "table":
        return _read_table(file, columns)
    if kind == "records":
        return read_records(file)
    rows = read_parquet(file) if kind == "parquet" else _read_json_lines(file)
    return _checked(rows, columns, str(file))


def is_table(file: str | PathLike[str]) -> bool:
    """Tell rows of ids and sequences from FASTA and structures, by how a file begins."""
    return _kind_of(Path(file), ("id", "sequence")) != "records"


def _kind_of(file: Path, columns: tuple[str, str]) -> str:
    with open_text(file) as lines:
        start = lines.read(2**16).lstrip()
    if start.startswith("PAR1"):
        return "parquet"
    named = file.name.lower().endswith(TABLES)
    if start[:1] in (">", ";") and not named:
        return "records"
    if start.startswith("{") and not named:
        return "json"
    header = set(re.split(rf'["{DELIMITERS}\s]+', start.partition("\n")[0]))
    return "table" if named or not header.isdisjoint(columns) else "records"


def _read_table(file: Path, columns: tuple[str, str]) -> Iterator[Any]:
    with open_text(file) as lines:
        names, rows = read_table(lines, columns)
        _check_columns(names, columns, str(file))
        yield from rows


def read_table(
    lines: Iterable[str], columns: Iterable[str]
) -> tuple[list[str], Iterator[dict[str, str | None] | ValueError]]:
    r"""Read CSV, or what has tabs or semicolons in place of commas, as the header's columns tell.

    A quote that nothing closes makes its line invalid, not the rest of the file.

    Returns:
        Names of the columns, and the rows: each a mapping, None where a value is missing, or an
        error for one that is invalid.

    Example:
        >>> lines = ["id,sequence\n", "P1,MKV\n", 'P2,"MK\n', "P3,MLA\n"]
        >>> names, rows = read_table(lines, ["id"])
        >>> [row["id"] if isinstance(row, dict) else str(row) for row in rows]
        ['P1', 'the line cannot be read: unexpected end of data', 'P3']
    """
    rest = iter(lines)
    first = next((line for line in rest if line.strip()), "")
    split = {d: next(csv.reader([first], delimiter=d), []) for d in DELIMITERS}
    wanted = set(columns)
    delimiter = max(split, key=lambda d: (len(wanted & set(split[d])), len(split[d])))
    names = [name.strip() for name in split[delimiter]]
    return names, (_as_mapping(names, row) for row in _split_lines(rest, delimiter))


def _as_mapping(names: list[str], row: list[str] | csv.Error) -> dict[str, str | None] | ValueError:
    if isinstance(row, csv.Error):
        return ValueError(f"the line cannot be read: {row}")
    if any(cell.strip() for cell in row[len(names) :]):
        return ValueError("the line holds more values than the header has columns")
    return dict.fromkeys(names) | dict(zip(names, row, strict=False))


def _split_lines(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | csv.Error]:
    """Split each row into its values; where that fails, go on with the line after its first."""
    again: deque[str] = deque()
    taken: list[str] = []

    def feed() -> Iterator[str]:
        nonlocal again
        while again or (again := deque(islice(lines, 1))):
            taken.append(again.popleft())
            yield taken[-1]

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield error
            again.extendleft(reversed(taken[1:]))
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            continue
        if row is None:
            return
        if row:
            yield row


def _read_json_lines(file: Path) -> Iterator[Any]:
    with open_text(file) as lines:
        for line in filter(str.strip, lines):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield ValueError(f"the line is not JSON: {error}")


def read_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a Parquet file."""
    parquet = _import("pyarrow.parquet", path)
    with open(path, "rb") as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=16):
                yield from batch.to_pylist()
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is not a valid Parquet file: {error}") from error


def _import(module: str, path: str | Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs {module}; install it with: pip install 'plasma-hf[train]'"
        ) from error


def _checked(rows: Iterable[Any], columns: tuple[str, str], where: str) -> Iterator[Any]:
    """Refuse all rows where the first one lacks a column."""
    for number, row in enumerate(rows):
        if not number and not isinstance(row, ValueError):
            _check_columns(row if isinstance(row, dict) else (), columns, where)
        yield row


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
    if isinstance(row, ValueError):
        raise row
    if is_protein(row):
        return row.id, row.sequence
    if isinstance(row, Mapping):
        return row.get(columns[0]), row.get(columns[1])
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    raise TypeError(f"it is a {type(row).__name__}; give (id, sequence) or a mapping")
