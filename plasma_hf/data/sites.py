"""Tables of proteins with labelled sites, read row by row, with a report of invalid rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, TypeAlias

from ..io.formats import markdown_table
from ..io.sequences import read_parquet, read_table
from ..models.protein import clean_sequence, open_text

COLUMNS = ("uid", "interpro_id", "seq_full", "label")
LFS_POINTER = "version https://git-lfs.github.com/spec/"
# How the reasons of each kind begin, for the counts of a report.
KINDS = {
    "empty": "nothing in ",
    "alphabet": "seq_full has the character ",
    "label length": "label holds ",
    "label": "label is ",
    "duplicate": "repeats ",
    "coordinates": "start and end ",
    "fragment": "seq_fragment ",
    "file": "the line ",
    "label differs": "label marks ",
    "other sequence": "uid stands ",
}

Source: TypeAlias = "str | PathLike[str] | Iterable[Mapping[str, Any]]"


@dataclass(frozen=True)
class SiteProtein:
    """A protein and the residues of its site."""

    uid: str  # accession
    family: str  # entry that the site belongs to; a protein may appear under several
    sequence: str
    site_labels: tuple[int, ...]  # 1 inside the site, 0 outside, one per residue


@dataclass(frozen=True)
class InvalidRow:
    """A row of a table that was left out or is doubtful, and why."""

    row: int  # the first below the header is 1
    uid: str  # empty if it has none
    reason: str


@dataclass
class SiteTableReport:
    """What a table held: rows used, rows left out, and rows used that look doubtful."""

    source: str = ""
    n_rows: int = 0
    n_used: int = 0
    invalid: list[InvalidRow] = field(default_factory=list)  # rows left out
    notes: list[InvalidRow] = field(default_factory=list)  # remarks on rows that were used

    def to_dict(self) -> dict[str, Any]:
        """Return counts, and every row with its reason, for JSON."""
        return {
            "source": self.source,
            "rows": self.n_rows,
            "used": self.n_used,
            "reasons": _counts(self.invalid),
            "remarks": _counts(self.notes),
            "invalid": [vars(row) for row in self.invalid],
            "notes": [vars(row) for row in self.notes],
        }

    def to_markdown(self) -> str:
        """Write the report as Markdown: a sentence, and a table that names every row."""
        said, tables = [f"{self.source}: {self.n_rows} rows, {self.n_used} used"], []
        for what, title, rows in (
            ("left out", "left out: reason", self.invalid),
            ("with remarks", "used: remark", self.notes),
        ):
            kinds = ", ".join(f"{kind} {count}" for kind, count in _counts(rows).items())
            said.append(f"{len(rows)} {what}" + (f" ({kinds})" if rows else ""))
            if rows:
                cells = [(str(r.row), r.uid, r.reason.replace("\n", " ")) for r in rows]
                tables += ["", markdown_table(("row", "uid", title), cells, left=3)]
        return "\n".join([", ".join(said) + ".", *tables])


def _counts(rows: Iterable[InvalidRow]) -> dict[str, int]:
    kinds = (
        next((kind for kind, start in KINDS.items() if row.reason.startswith(start)), "other")
        for row in rows
    )
    return dict(Counter(kinds).most_common())


def read_site_table(source: Source) -> tuple[list[SiteProtein], list[InvalidRow]]:
    """Read a VenusX-style table of sites: the valid proteins, and the rows left out.

    All else is as in `iter_site_rows`.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "sites.csv"
        >>> rows = ["uid,interpro_id,seq_full,label", 'A,F,MKV,"[0, 1, 1]"', 'B,F,MK,"[0]"']
        >>> _ = path.write_text(chr(10).join(rows))
        >>> proteins, invalid = read_site_table(path)
        >>> proteins
        [SiteProtein(uid='A', family='F', sequence='MKV', site_labels=(0, 1, 1))]
        >>> invalid[0].reason
        'label holds 1 values for 2 residues'
    """
    report = SiteTableReport()
    return [protein for protein, _ in iter_site_rows(source, report)], report.invalid


def iter_site_rows(
    source: Source, report: SiteTableReport
) -> Iterator[tuple[SiteProtein, Mapping[str, Any]]]:
    """Read a table of sites one row at a time; only ids are kept of the rows before.

    A row is left out if a column is empty, the sequence has other letters than those of residues,
    the label is not one 0 or 1 per residue, `start`, `end` or `seq_fragment` (if the table has
    them) contradict the sequence or share no residue with the label, or an earlier row has the same
    uid and interpro_id. A row is used with a remark if the label marks other residues than `start`
    and `end` do, or none, or if an earlier row has another sequence for its uid.

    Args:
        source: CSV file (also `.gz`), Parquet file, `datasets.Dataset` or mappings with `uid`,
            `interpro_id`, `seq_full` and `label`, the last a list of 0 and 1 (in CSV as JSON) as
            long as the sequence. `start` and `end` are counted from 1, the end included, and like
            `seq_fragment` joined by `|`. Other columns are ignored.

    Yields:
        Each valid protein, and the row it came from.

    Raises:
        ValueError: If a column is missing, or the file is a Git-LFS pointer.
    """
    report.source = str(source) if isinstance(source, str | PathLike) else type(source).__name__
    seen: dict[tuple[str, str], int] = {}
    sequences: dict[str, int] = {}
    for number, row in enumerate(_rows(source), start=1):
        report.n_rows = number
        try:
            protein = _parse(row)
            note = _check_coordinates(row, protein)
            first = seen.setdefault((protein.uid, protein.family), number)
            if first != number:
                raise ValueError(f"repeats the uid and interpro_id of row {first}")
        except ValueError as error:
            report.invalid.append(InvalidRow(number, str(row.get("uid") or ""), str(error)))
            continue
        if sequences.setdefault(protein.uid, hash(protein.sequence)) != hash(protein.sequence):
            note = "uid stands for another sequence in an earlier row"
        if note:
            report.notes.append(InvalidRow(number, protein.uid, note))
        report.n_used += 1
        yield protein, row


def _rows(source: Source) -> Iterator[Mapping[str, Any]]:
    if not isinstance(source, str | PathLike):
        for number, row in enumerate(source):
            if not number:
                _check_columns(row, "the first row")
            yield row
    else:
        yield from _read_file(fspath(source))


def _read_file(name: str) -> Iterator[Mapping[str, Any]]:
    with open_text(name) as lines:
        start = lines.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(
            f"{name} is a Git-LFS pointer, not the table; fetch it with `git lfs pull`, or "
            "download it with huggingface_hub"
        )
    if start.startswith("PAR1"):
        yield from _rows(read_parquet(name))
        return
    with open_text(name) as lines:
        columns, rows = read_table(lines, COLUMNS)
        _check_columns(columns, name)
        for row in rows:
            yield {"error": str(row)} if isinstance(row, ValueError) else row


def _check_columns(given: Iterable[str], name: str) -> None:
    missing = [column for column in COLUMNS if column not in given]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(missing)}; "
            f"give a CSV table with a header holding {', '.join(COLUMNS)}"
        )


def _parse(row: Mapping[str, Any]) -> SiteProtein:
    if "error" in row:
        raise ValueError(row["error"])
    empty = [name for name in COLUMNS if row[name] in (None, "") or not str(row[name]).strip()]
    if empty:
        raise ValueError(f"nothing in {', '.join(empty)}")
    sequence = clean_sequence(str(row["seq_full"]), "seq_full")
    labels = row["label"]
    try:
        labels = json.loads(labels) if isinstance(labels, str) else labels
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"label is not JSON: {error}") from error
    if not isinstance(labels, list) or any(value not in (0, 1) for value in labels):
        raise ValueError("label is not a list of 0 and 1")
    if len(labels) != len(sequence):
        raise ValueError(f"label holds {len(labels)} values for {len(sequence)} residues")
    return SiteProtein(row["uid"], row["interpro_id"], sequence, tuple(map(int, labels)))


def _check_coordinates(row: Mapping[str, Any], protein: SiteProtein) -> str:
    """Compare coordinates and fragments with sequence and label; return a remark, if any."""
    marked = {i for i, value in enumerate(protein.site_labels) if value}
    starts, ends = (str(row.get(name) or "").split("|") for name in ("start", "end"))
    if starts == ends == [""]:
        return "" if marked else "label marks no residue"
    spans = _parse_spans(starts, ends, len(protein.sequence))
    fragments = str(row.get("seq_fragment") or "").strip().upper()
    expected = "|".join(protein.sequence[start:end] for start, end in spans)
    if fragments and fragments != expected:
        raise ValueError(
            f"seq_fragment is {_short(fragments)}, but start and end cut out {_short(expected)}"
        )
    covered = {i for start, end in spans for i in range(start, end)}
    if marked and not marked & covered:
        raise ValueError("start and end cover no residue that label marks")
    if marked != covered:
        common = len(marked & covered)
        return f"label marks {len(marked)} residues, {common} of the {len(covered)} covered"
    return ""


def _parse_spans(starts: list[str], ends: list[str], length: int) -> list[tuple[int, int]]:
    """Read coordinates from 1, ends included, as spans from 0, ends excluded."""
    if len(starts) != len(ends):
        raise ValueError(f"start and end hold {len(starts)} and {len(ends)} values")
    spans = []
    for start, end in zip(starts, ends, strict=True):
        if not (start.strip().isdecimal() and end.strip().isdecimal()):
            raise ValueError(f"start and end are {start!r} and {end!r}, not whole numbers")
        if not 1 <= int(start) <= int(end) <= length:
            raise ValueError(
                f"start and end are {start} and {end}, outside 1 to {length} or reversed"
            )
        spans.append((int(start) - 1, int(end)))
    return spans


def _short(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:21] + "...")
