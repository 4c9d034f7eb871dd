"""Records for an index, from the files and folders a user names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data.sequences import BadRecord, read_sequences
from ..data.structure_rows import read_structure_folder
from ..models.retrieval_record import KINDS, RetrievalRecord, is_structure_file, record_of

DATASET = "dataset_info.json"


def read_records(
    inputs: str | Path | Iterable[str | Path], bad: list[BadRecord], kind: str | None = None
) -> Iterator[RetrievalRecord]:
    r"""Read records one after the other, leaving out and reporting what is wrong.

    Args:
        inputs: One or several places: structure files, folders with structure files, and whatever
            `read_sequences` reads: FASTA, CSV, TSV, Parquet and JSON Lines files, saved data sets.
        bad: List to which what is left out is added.
        kind: "sequence" to take the sequences of structures, "structure" to refuse whatever has no
            atoms; by default each as it comes.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> import pathlib, tempfile
        >>> fasta = pathlib.Path(tempfile.mkdtemp(), "two.fasta")
        >>> _ = fasta.write_text(">P1 first\nMKVLA\n>P2\nMK7\n")
        >>> bad = []
        >>> [(record.id, record.residues) for record in read_records([fasta], bad)]
        [('P1', 'MKVLA')]
        >>> bad[0].id
        'P2'
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"there is no kind {kind!r}; give {' or '.join(map(repr, KINDS))}")
    for place in [inputs] if isinstance(inputs, str | Path) else inputs:
        try:
            yield from _read_place(Path(place), bad, kind)
        except (ValueError, OSError, ImportError) as error:
            bad.append(BadRecord(str(place), str(error)))


def as_records(values: Iterable[Any], bad: list[BadRecord]) -> Iterator[RetrievalRecord]:
    """Take records as they are, and `(id, content)` or `(id, content, source)` as records.

    Args:
        values: Content is a sequence or a `Structure`; or whatever `record_of` reads.
        bad: List to which what is wrong is added.

    Raises:
        TypeError: If a path is given in the place of records.
    """
    if isinstance(values, str | Path):
        raise TypeError(
            f"records is the path {str(values)!r}; give what is in it: read_records(path, bad)."
        )
    for number, value in enumerate(values, start=1):
        name = f"record {number}"
        try:
            if isinstance(value, tuple | list) and len(value) in (2, 3):
                name = str(value[0])
                record = record_of(RetrievalRecord(name, *value[1:]), "record")
            else:
                record = record_of(value, name)
            yield record
        except (ValueError, TypeError, OSError) as error:
            bad.append(BadRecord(name, str(error)))


def _read_place(place: Path, bad: list[BadRecord], kind: str | None) -> Iterator[RetrievalRecord]:
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}; check the path.")
    whole = Path(os.path.abspath(place))  # found again from any folder
    structures = is_structure_file(place) or (place.is_dir() and not (place / DATASET).exists())
    if not structures:
        if kind == "structure":
            raise ValueError(f"{place} holds sequences; structures come from structure files.")
        for protein in read_sequences(place, bad=bad):
            yield RetrievalRecord(protein.id, protein.sequence or "", f"{whole}:{protein.id}")
        return
    folder = whole if place.is_dir() else whole.parent
    for structure in read_structure_folder(place, bad):
        content = structure.sequence if kind == "sequence" else structure
        record = RetrievalRecord(structure.id, content, str(folder / structure.id))
        yield from as_records([record], bad)
