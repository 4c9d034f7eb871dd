"""Sequences from files, tables, data sets and rows."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plasma_hf.data import InvalidRecord, read_sequences
from plasma_hf.models.protein import Protein

WANT = [("P1", "MKVLA"), ("P2", "ACD")]
ROWS = [{"id": "P1", "sequence": "MKVLA"}, {"id": "P2", "sequence": "acd"}]
FASTA = ">P1 first\nMKV\nLA\n>P2\nacd*\n"
CSV = 'id,note,sequence\nP1,"a, b",MKVLA\nP2,,acd\n'


def read(source: Any, **options: Any) -> list[tuple[str, str | None]]:
    return [(protein.id, protein.sequence) for protein in read_sequences(source, **options)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.fasta", FASTA),
        ("x.FA", FASTA),
        ("x.faa.gz", FASTA),
        ("x.csv", CSV),
        ("x.csv.gz", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("x.tsv", "sequence\tid\nMKVLA\tP1\nACD\tP2\n"),
    ],
)
def test_files(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert read(path) == read(str(path)) == WANT


def test_structures(tmp_path: Path) -> None:
    atoms = [("N", 1), ("CA", 2), ("C", 3), ("O", 4)]
    lines = [
        f"ATOM  {4 * r + n:>5}  {atom:<3} {residue} A{r + 1:>4}    "
        f"{r * 3.8:>8.3f}{n:>8.3f}{0:>8.3f}  1.00  0.00           {atom[0]}"
        for r, residue in enumerate(["MET", "LYS", "VAL"])
        for atom, n in atoms
    ]
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
    assert read(tmp_path / "x.pdb") == [("x.pdb:A", "MKV")]


def stream() -> Iterator[Any]:
    yield from ROWS


@pytest.mark.parametrize(
    "rows",
    [ROWS, WANT, [list(row) for row in WANT], [Protein(*row) for row in WANT], dict(WANT).items()],
    ids=["mappings", "tuples", "lists", "proteins", "items"],
)
def test_rows(rows: Any) -> None:
    assert read(rows) == WANT


def test_a_generator_is_read_as_it_comes() -> None:
    assert read(stream()) == WANT
    proteins = read_sequences(("P", "MK") for _ in iter(int, 1))  # without end
    assert next(proteins).id == "P"


def test_names_of_columns(tmp_path: Path) -> None:
    names = {"id_column": "accession", "sequence_column": "seq"}
    assert read([{"accession": 7, "seq": "MK"}], **names) == [("7", "MK")]
    path = tmp_path / "x.csv"
    path.write_text("accession,seq\nP1,MKVLA\nP2,ACD\n")
    assert read(path, **names) == WANT
    with pytest.raises(ValueError, match=r"x\.csv has no column 'id', only 'accession', 'seq'; "):
        read(path)


def test_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    assert read(table) == WANT
    assert read(table.to_iterable_dataset()) == WANT
    table.save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == WANT
    table.to_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == WANT
    with pytest.raises(
        ValueError, match=r"x\.parquet has no column 'seq', only 'id', 'sequence'; "
    ):
        read(tmp_path / "x.parquet", sequence_column="seq")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"cut\.parquet is not a valid Parquet file: \S"):
        read(tmp_path / "cut.parquet")
    table.to_json(tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl") == WANT
    with pytest.raises(ValueError, match="no column 'sequence', only 'id'; name the right one"):
        read(table.remove_columns("sequence"))
    with pytest.raises(TypeError, match="DatasetDict with the keys train; give one split"):
        read(datasets.DatasetDict(train=table))


def test_bad_records_are_reported_with_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,sequence\nP1,MKVLA\nB1,MK7\nB2,\n,MKV\nB3\nP2,ACD\n")
    bad: list[InvalidRecord] = []
    assert read(path, on_invalid=bad.append) == WANT
    assert [record.id for record in bad] == ["B1", "B2", "row 4", "B3"]
    assert "character '7' at position 3" in bad[0].reason
    assert "empty" in bad[1].reason
    assert bad[2].reason == "it has no id"
    bad.clear()
    rows = ["MKV", 3, ("a",), {}, {"id": "x"}, ("y", None), Protein("z"), *WANT]
    assert read(rows, on_invalid=bad.append) == WANT
    want = ["row 1", "row 2", "row 3", "row 4", "x", "y", "z"]
    assert [record.id for record in bad] == want
    assert bad[0].reason == "it is a str; give (id, sequence) or a mapping"


def test_bad_records_are_logged_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read([("B", "M-K"), *WANT]) == WANT
    assert "B is left out: sequence has the character '-'" in caplog.text


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot read sequences from a int; give a file"):
        read(3)
    for name in ("no.fasta", "no.csv", "no.parquet"):
        if name == "no.parquet":
            pytest.importorskip("datasets")
        with pytest.raises(FileNotFoundError, match="there is no file"):
            read(tmp_path / name)
    (tmp_path / "x.txt").write_text("MKV\n")
    with pytest.raises(ValueError, match=r"x\.txt is not a valid .* nor begins with '>' as FASTA"):
        read(tmp_path / "x.txt")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-20])
    with pytest.raises(ValueError, match=r"x\.csv\.gz is not a valid gzip file"):
        read(tmp_path / "x.csv.gz")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.csv has no column 'id', only"):
        read(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("")
    with pytest.raises(ValueError, match=r"y\.csv has no column 'id', only ; name"):
        read(tmp_path / "y.csv")
