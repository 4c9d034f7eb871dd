"""Index files of PDBbind and CASF: which complexes there are, in which set, of which target."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from .sequences import BadRecord

CODE = re.compile(r"[0-9][a-z0-9]{3}")
# Sets and the index files that list them, the fuller one first; the year comes from the name.
INDEX_FILES = {
    "general": (r"INDEX_general_PL_data\.(\d{4})", r"INDEX\.(\d{4})\.general\.data"),
    "general (short)": (r"INDEX_general_PL\.(\d{4})",),
    "refined": (r"INDEX_refined_data\.(\d{4})", r"INDEX\.(\d{4})\.refined\.data"),
    "refined (short)": (r"INDEX_refined_set\.(\d{4})",),
    "core": (r"INDEX_core_data\.(\d{4})", r"INDEX\.(\d{4})\.core\.data"),
    "names": (r"INDEX_general_PL_name\.(\d{4})",),
}


@dataclass(frozen=True)
class IndexRecord:
    """Hold one line of an index file.

    Attributes:
        code: PDB code, in lower case.
        year: Year of release.
        resolution: Angstrom; None for NMR, or where the file does not say.
        affinity: -log10 of Kd, Ki or IC50 in mol/l, where the file says.
        binding: Binding datum as written ("Kd=49uM").
        target: Target of the core set, from 1 to 57 in CASF-2016, where the file says.
        uniprot: UniProt accession, where the file says.
        name: Name of the protein, where the file says.
    """

    code: str
    year: int
    resolution: float | None = None
    affinity: float | None = None
    binding: str = ""
    target: str | None = None
    uniprot: str | None = None
    name: str = ""


def find_index_files(root: str | PathLike[str]) -> dict[str, dict[str, Path]]:
    """Find the index files of a download, wherever its archives were unpacked.

    Args:
        root: Folder of the download; looked at to a depth of three.

    Returns:
        File by what it lists ("general", "refined", "core", "names"), by year of the release. Of
        copies, which every archive brings along, the first is taken.
    """
    found: dict[str, dict[str, Path]] = {}
    for pattern in ("INDEX*", "*/INDEX*", "*/*/INDEX*"):
        for file in sorted(Path(root).glob(pattern)):
            for kind, names in INDEX_FILES.items():
                match = next((m for name in names if (m := re.fullmatch(name, file.name))), None)
                if match:
                    found.setdefault(match[1], {}).setdefault(kind, file)
    for files in found.values():
        for kind in ("general", "refined"):
            short = files.pop(f"{kind} (short)", None)
            if short:
                files.setdefault(kind, short)
    return found


def read_index(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read an index of binding data: `INDEX_*_data`, `INDEX_general_PL` or `INDEX_refined_set`.

    A line is `code resolution year [affinity] binding // reference (ligand)`; lines that begin
    with `#` are comments.

    Args:
        file: Index file.
        bad: List to which malformed lines are added, with their numbers.

    Returns:
        Records by PDB code, in the order of the file.

    Raises:
        OSError: If the file cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "INDEX_refined_data.2020"
        >>> lines = ["# comment", "4yef  1.72  2015   5.35  Kd=4.44uM  // 4yee.pdf (4CQ)", "4yef?"]
        >>> _ = file.write_text(chr(10).join(lines))
        >>> bad = []
        >>> read_index(file, bad)["4yef"].affinity
        5.35
        >>> bad[0].id, bad[0].reason
        ('INDEX_refined_data.2020 line 3', "'4yef?' is no PDB code")
    """
    return _read(file, bad, _parse_binding)


def read_name_index(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read `INDEX_general_PL_name`: `code year UniProt name`, the accession `------` if unknown.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, bad, _parse_name)


def read_core_set(file: str | PathLike[str], bad: list[BadRecord]) -> dict[str, IndexRecord]:
    """Read `CoreSet.dat` of CASF: `code resolution year affinity binding target`.

    Arguments, result and errors are those of `read_index`.
    """
    return _read(file, bad, _parse_core)


def _read(
    file: str | PathLike[str], bad: list[BadRecord], parse: Callable[[list[str]], IndexRecord]
) -> dict[str, IndexRecord]:
    file = Path(file)
    records: dict[str, IndexRecord] = {}
    for number, line in _lines(file):
        where = f"{file.name} line {number}"
        try:
            record = parse(line.partition("//")[0].split())
        except (ValueError, IndexError) as error:
            reason = "it has too few fields" if isinstance(error, IndexError) else str(error)
            bad.append(BadRecord(where, reason))
            continue
        if record.code in records:
            bad.append(BadRecord(where, f"{record.code} stands in an earlier line too"))
        records.setdefault(record.code, record)
    return records


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # Some names of proteins are not UTF-8; none of those letters is needed.
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, line


def _parse_binding(fields: list[str]) -> IndexRecord:
    code = _code(fields[0])
    resolution, year = _resolution(fields[1]), _year(fields[2])
    affinity = _number(fields[3])
    binding = fields[3:] if affinity is None else fields[4:]
    if not binding:
        raise ValueError("it has no binding datum")
    return IndexRecord(code, year, resolution, affinity, " ".join(binding))


def _parse_name(fields: list[str]) -> IndexRecord:
    code, year, uniprot = _code(fields[0]), _year(fields[1]), fields[2]
    known = uniprot.strip("-") or None
    return IndexRecord(code, year, uniprot=known, name=" ".join(fields[3:]))


def _parse_core(fields: list[str]) -> IndexRecord:
    code, target = _code(fields[0]), fields[5]
    if not target.isdecimal():
        raise ValueError(f"target is {target!r}, not a number")
    affinity = _number(fields[3])
    if affinity is None:
        raise ValueError(f"affinity is {fields[3]!r}, not a number")
    resolution, year = _resolution(fields[1]), _year(fields[2])
    return IndexRecord(code, year, resolution, affinity, fields[4], target=target)


def _code(text: str) -> str:
    if not CODE.fullmatch(text.lower()):
        raise ValueError(f"{text!r} is no PDB code")
    return text.lower()


def _resolution(text: str) -> float | None:
    value = _number(text)
    if value is None and text.upper() != "NMR":
        raise ValueError(f"resolution is {text!r}, neither a number nor NMR")
    return value


def _year(text: str) -> int:
    if not re.fullmatch(r"(19|20)\d\d", text):
        raise ValueError(f"year is {text!r}")
    return int(text)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d*)?", text) else None
