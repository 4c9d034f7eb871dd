"""Reference alignments: which residues of two proteins stand in the same place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models.residues import RESIDUE_LETTERS

Pairs = NDArray[np.int64]
GAPS = "-."


@dataclass(frozen=True)
class ResidueAlignment:
    """Hold two proteins and the residues of them that correspond.

    Attributes:
        query: One-letter residues.
        candidate: One-letter residues.
        pairs: Corresponding residues, 0-based, `(pairs, 2)`.
        name: Where it comes from.
    """

    query: str
    candidate: str
    pairs: Pairs
    name: str = ""

    @cached_property
    def identity(self) -> float:
        """Identical residues per corresponding pair, 0 without any."""
        same = [self.query[i] == self.candidate[j] for i, j in self.pairs]
        return float(np.mean(same)) if same else 0.0


@dataclass(frozen=True)
class FamilyAlignment:
    """Hold a family of aligned sequences, one row each.

    Attributes:
        name: Of the family.
        rows: Aligned sequences of one length, `-` or `.` for a gap; residues in lower case are
            insertions, which correspond to nothing.
    """

    name: str
    rows: tuple[str, ...]

    def pair(self, first: int, second: int) -> ResidueAlignment:
        """Return two members, with the residues that stand in one column.

        Example:
            >>> FamilyAlignment("PF1", ("MK-V", "M-LV")).pair(0, 1).pairs.tolist()
            [[0, 0], [2, 2]]
        """
        one, other = self.rows[first], self.rows[second]
        residues = [np.array([letter not in GAPS for letter in row]) for row in (one, other)]
        matched = [np.array([letter.isupper() for letter in row]) for row in (one, other)]
        both = matched[0] & matched[1]
        places = [(np.cumsum(present) - 1)[both] for present in residues]
        return ResidueAlignment(
            _without_gaps(one), _without_gaps(other), np.stack(places, axis=1), self.name
        )


def read_family_alignment(path: str | PathLike[str]) -> FamilyAlignment:
    r"""Read an alignment in aligned FASTA, as Pfam gives it, also .gz.

    Args:
        path: Aligned FASTA; the name of the family is the file's up to its first dot.

    Raises:
        ValueError: If there are no rows, or they differ in length or hold no residue letters.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "PF1.align"
        >>> _ = path.write_text(">a/1-3\nMK-V\n>b\nM-\nLV\n")
        >>> read_family_alignment(path)
        FamilyAlignment(name='PF1', rows=('MK-V', 'M-LV'))
    """
    rows: list[list[str]] = []
    for line in _text(path).splitlines():
        if line.startswith(">"):
            rows.append([])
        elif line.strip():
            if not rows:
                raise ValueError(f"{path} does not begin with '>'; give an aligned FASTA file")
            rows[-1].append(line.strip())
    joined = tuple("".join(row) for row in rows)
    if not joined or len({len(row) for row in joined}) != 1:
        lengths = sorted({len(row) for row in joined})[:5]
        raise ValueError(
            f"{path} holds {len(joined)} rows of lengths {lengths}; give an aligned FASTA file, "
            "whose rows are of one length"
        )
    strange = sorted(set("".join(joined).upper()) - set(RESIDUE_LETTERS) - set(GAPS))
    if strange:
        raise ValueError(f"{path} holds {' '.join(map(repr, strange))}, not residue letters")
    return FamilyAlignment(Path(path).name.split(".")[0], joined)


def read_reference_alignments(path: str | PathLike[str]) -> list[ResidueAlignment]:
    """Read reference alignments of pairs from JSON, also .gz.

    Args:
        path: A list of records with `seq_a`, `seq_b` and `pairs`, and where the columns that can
            be trusted are known, `core_pairs`, which are then taken instead.

    Raises:
        ValueError: If a record lacks a field, or a pair lies outside the sequences.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "reference.json"
        >>> _ = path.write_text('[{"seq_a": "MKV", "seq_b": "KV", "pairs": [[1, 0], [2, 1]]}]')
        >>> read_reference_alignments(path)[0].pairs.tolist()
        [[1, 0], [2, 1]]
    """
    try:
        records = json.loads(_text(path))
        return [_reference(record, f"{path}, record {i}") for i, record in enumerate(records)]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of records with seq_a, seq_b and pairs: {error!r}"
        ) from error


def read_alignments(
    paths: Iterable[str | PathLike[str]],
) -> tuple[list[FamilyAlignment], list[ResidueAlignment]]:
    """Read files of either form, or folders of them.

    Args:
        paths: `.json` and `.json.gz` files are records of pairs, all others aligned FASTA.

    Returns:
        The families, and the pairs.

    Raises:
        ValueError: If a file cannot be read; the message says which.
    """
    families: list[FamilyAlignment] = []
    pairs: list[ResidueAlignment] = []
    for file in _files(paths):
        if ".json" in file.suffixes:
            pairs += read_reference_alignments(file)
        else:
            families.append(read_family_alignment(file))
    return families, pairs


def _files(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = (
            [file for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else []
        )
        files += inside if path.is_dir() else [path]
    return files


def _reference(record: dict[str, object], where: str) -> ResidueAlignment:
    query, candidate = str(record["seq_a"]).upper(), str(record["seq_b"]).upper()
    found = record.get("core_pairs") or record["pairs"]
    pairs = np.asarray(found, dtype=np.int64).reshape(-1, 2)
    if len(pairs) and not (
        0 <= pairs.min() and (pairs.max(0) < (len(query), len(candidate))).all()
    ):
        raise ValueError(
            f"{where} has a pair outside its sequences of {len(query)} and {len(candidate)}"
        )
    return ResidueAlignment(query, candidate, pairs, str(record.get("set", "")))


def _without_gaps(row: str) -> str:
    return "".join(letter for letter in row if letter not in GAPS).upper()


def _text(path: str | PathLike[str]) -> str:
    data = Path(path).read_bytes()
    return (gzip.decompress(data) if Path(path).suffix == ".gz" else data).decode()
