"""Text as users have it: told by its content, damaged or not, and named as it is typed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest

from plasma_hf.data import SiteTableReport, iter_site_rows, read_sequences, read_site_table
from plasma_hf.io.structures import find_structure_files, read_structure_folder
from plasma_hf.models import protein
from plasma_hf.models.pipeline_protein_retrieval import read_candidates
from plasma_hf.models.protein import (
    Protein,
    files_below,
    looks_like_path,
    read_protein,
    read_records,
    split_record,
)
from tests.helpers.structures import FULL, write_structure

LONG, PART = "MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS"
FASTA = f">a first\n{LONG[:10]}\n{LONG[10:]}\n>b\n{PART}\n"
WANT = [("a", LONG), ("b", PART)]


def found(place: Any) -> list[tuple[str, str | None]]:
    return [(one.id, one.sequence) for one in read_records(place)]


WRITTEN = {
    "as it is": FASTA.encode(),
    "byte order mark": b"\xef\xbb\xbf" + FASTA.encode(),
    "two marks": b"\xef\xbb\xbf" + FASTA.replace(">b", "\ufeff>b").encode(),
    "Latin-1": FASTA.replace("first", "prot\u00e9ine").encode("latin-1"),
    "UTF-8 and Latin-1": FASTA.replace("first", "\u03b1").encode().replace(b">b", b">b \xe9"),
    "CR": FASTA.replace("\n", "\r").encode(),
    "CR LF": FASTA.replace("\n", "\r\n").encode(),
    "comments": ("; by hand\n\n" + FASTA.replace(">b", ";>c\n>b") + ";end\n").encode(),
    "alignment": b"#22\t1\n" + FASTA.encode(),
    "other white space": re.sub("first", "x\x0cy\u2028z\x1c\x85", FASTA).encode(),
    "no last line end": FASTA.strip().encode(),
    "two parts": gzip.compress(FASTA[:40].encode()) + gzip.compress(FASTA[40:].encode()),
}


@pytest.mark.parametrize("name", ["x.fasta", "x.faa", "x.A3M", "x.fna", "x.txt", "x.pdb", "x"])
@pytest.mark.parametrize("content", WRITTEN)
def test_fasta_is_told_by_its_content(tmp_path: Path, name: str, content: str) -> None:
    for ending, data in (("", WRITTEN[content]), (".GZ", gzip.compress(WRITTEN[content]))):
        file = tmp_path / (name + ending)
        file.write_bytes(data if content != "two parts" or not ending else WRITTEN[content])
        assert found(file) == WANT
        assert found(f"{file}:b") == WANT[1:]
        assert [(p.id, p.sequence) for p in read_sequences(file)] == WANT


def test_a_structure_is_told_by_its_content(tmp_path: Path) -> None:
    file = write_structure(tmp_path / "x.pdb", {"A": [("ALA", FULL), ("GLY", FULL)]})
    for name in ("x.fasta", "x.csv.txt", "x", "x.ENT.GZ"):
        data = file.read_bytes().replace(b"\n", b"\r" if name == "x" else b"\n")
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("Z") else data)
        assert read_protein(tmp_path / name).sequence == "AG"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are Unix's")
@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_is_read_like_a_file(tmp_path: Path, packed: bool) -> None:
    structure = write_structure(tmp_path / "x.pdb", {"A": [("ALA", FULL), ("GLY", FULL)]})
    table = "id;sequence\na;mkv\n"
    contents = FASTA.encode(), structure.read_bytes(), table.encode()
    for number, data in enumerate(contents):
        pipe = tmp_path / f"pipe{number}"
        os.mkfifo(pipe)
        written = gzip.compress(data) if packed else data
        writer = threading.Thread(target=pipe.write_bytes, args=(written,))
        writer.start()
        if data == contents[0]:
            assert found(f"{pipe}:b") == WANT[1:]  # as `<(zcat x.fasta.gz)` is read
            assert found(pipe) == WANT  # and once more
        elif data == contents[1]:
            assert found(pipe) == [("pipe1:A", "AG")]
        else:
            assert [p.sequence for p in read_sequences(pipe)] == ["MKV"]
        writer.join()


@pytest.mark.parametrize(
    "letters", ["ACGT" * 8, "acguacguacgu" * 3, "ACGTN" * 6 + "R", "ATGGCTAGCTAGGATTACAT"]
)
def test_nucleotides_are_noticed_once(
    letters: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protein, "_nucleotides_named", [])
    for name in ("query", "candidate"):
        read_protein(letters, name)
    [said] = caplog.messages
    assert said.startswith("query looks like DNA or RNA; it is read as a protein")


@pytest.mark.parametrize("letters", ["GATTACA", "AGAGAGAGAGAGAGAGAGAGAGAGAG", LONG, "ACGT" * 3])
def test_proteins_are_not_taken_for_nucleotides(
    letters: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protein, "_nucleotides_named", [])
    read_protein(letters)
    assert not caplog.messages


def test_a_file_of_nucleotides_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.fna").write_text(">a\n" + "ACGT" * 10)
    with pytest.raises(ValueError, match="x.fna holds nucleotides; give proteins"):
        read_records(tmp_path / "x.fna")


# --- Damaged files.


def test_damaged_gzip_is_one_line(tmp_path: Path) -> None:
    """Every byte of a small file changed, and the file cut off at every place."""
    data, file = gzip.compress(FASTA.encode(), mtime=0), tmp_path / "x.fasta.gz"
    broken = [data[:i] for i in range(3, len(data) - 1)]
    broken += [data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :] for i in range(10, len(data))]
    for bad in broken:
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="x.fasta.gz is not a valid gzip file: ") as error:
            read_records(file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fill", [b"\0", b"M", b"ATOM      1  CA  ALA A   1\n", b"\xe9"])
def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, fill: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protein, "MOST_UNPACKED", 2**17)
    (tmp_path / "x.pdb.gz").write_bytes(gzip.compress(fill * (2**20 // len(fill))))
    for read in (read_records, read_site_table, lambda file: list(read_sequences(file))):
        with pytest.raises(ValueError, match="x.pdb.gz (is not a valid gzip file: it unpacks|has)"):
            read(tmp_path / "x.pdb.gz")
    for read in (read_records, lambda file: protein.open_text(file).read()):
        with pytest.raises(
            ValueError, match="it unpacks to over 0 MB; gunzip what you trust first"
        ):
            read(tmp_path / "x.pdb.gz")


def test_what_its_size_explains_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protein, "MOST_UNPACKED", 2**10)
    letters = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=2**14))
    (tmp_path / "x.gz").write_bytes(gzip.compress(f">a\n{letters}\n".encode()))
    assert found(tmp_path / "x.gz") == [("a", letters)]
    monkeypatch.setattr(protein, "MOST_GROWTH", 0)  # as a page may set it
    with pytest.raises(ValueError, match="unpacks to over"):
        read_records(tmp_path / "x.gz")


def test_the_other_files_of_a_folder_are_used(tmp_path: Path) -> None:
    write_structure(tmp_path / "a.pdb", {"A": [("ALA", FULL)]})
    packed = gzip.compress((tmp_path / "a.pdb").read_bytes())
    (tmp_path / "b.pdb.gz").write_bytes(packed[:-30])
    (tmp_path / "c.jsonl.gz").write_bytes(packed[:60] + b"\xff" * 40 + packed[100:])
    (tmp_path / "d.jsonl").write_bytes(b"\xff\xfe{\n")
    (tmp_path / "z").write_bytes(packed)
    os.symlink("nowhere.pdb", tmp_path / "y.pdb")
    bad: list[Any] = []
    assert [one.id for one in read_structure_folder(tmp_path, bad.append)] == ["a.pdb:A", "z:A"]
    assert [one.id for one in bad] == ["b.pdb.gz", "c.jsonl.gz", "d.jsonl line 1", "y.pdb"]
    assert all("is not a valid gzip file" in one.reason for one in bad[:2])
    assert "(a link to nothing)" in bad[3].reason


# --- Names.


def test_ids_with_colons_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">x:A\nMKV\n>A\nMLA\n>1ABC:B|PDBID|CHAIN\nMMM\n>2XYZ:B\nMC\n")
    for wanted, sequence in (("A", "MLA"), ("x:A", "MKV"), ("1ABC:B|PDBID|CHAIN", "MMM")):
        assert read_protein(f"{tmp_path / 'x.fasta'}:{wanted}").sequence == sequence
    assert read_protein(f"{tmp_path / 'x.fasta'}:B").sequence == "MC"  # one ends in :B
    (tmp_path / "x.fasta").write_text(">1ABC:B\nMKV\n>2XYZ:B\nMLA\n")
    with pytest.raises(ValueError, match="has 2 record 'B'; it has: 1ABC:B, 2XYZ:B"):
        read_protein(f"{tmp_path / 'x.fasta'}:B")


@pytest.mark.parametrize("name", ["two.fasta", "two words.fasta", "it's.fasta", "a:b.fasta", "$x"])
@pytest.mark.parametrize("key", ["a", "1ABC:A|PDBID", "don't", '"q"'])
def test_the_advice_of_an_error_works_in_python_and_in_a_shell(
    tmp_path: Path, name: str, key: str
) -> None:
    (tmp_path / name).write_text(f">{key}\nMKV\n>other\nMLA\n")
    with pytest.raises(ValueError, match="holds 2 records") as error:
        read_protein(tmp_path / name)
    typed = str(error.value).partition("as in ")[2].removesuffix(".")
    [shell] = shlex.split(typed)
    assert shell == eval(typed)
    assert read_protein(shell).sequence == "MKV"


def test_a_folder_is_no_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert read_protein("DATA").sequence == "DATA" or (tmp_path / "DATA").exists()
    with pytest.raises(ValueError, match="is the folder 'data', not one protein"):
        read_protein("data")


def test_records_of_files_that_are_not_there() -> None:
    assert split_record("no.fasta:1") == ("no.fasta", "1")
    assert split_record("no.fasta") == ("no.fasta", None)
    assert split_record("M" * 5000 + ":1") == ("M" * 5000, "1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no.fasta", True),
        ("NO.PDB", True),
        ("a/b", True),
        ("notes.txt:1", True),
        (LONG, False),
        ("MKTAYIAKQR..MKTAYIAKQR", False),
        ("mktayiakqr.." * 400, False),
        (">P1.2 some\nMKV.\n", False),
    ],
)
def test_a_sequence_with_dots_is_no_path(text: str, expected: bool) -> None:
    assert looks_like_path(text) is expected
    if not expected and text != LONG:
        with pytest.raises(ValueError, match=r"has the character '[.>]' at position 1?1"):
            read_protein(text)


def test_a_file_name_that_is_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.pdb")
    try:
        write_structure(tmp_path / "x.pdb", {"A": [("ALA", FULL)]}).rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    [one] = read_structure_folder(tmp_path)
    assert one.id == f"{name}:A"
    assert read_protein(f"{tmp_path / name}:A").sequence == "A"


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    inside = tmp_path / "d"
    (inside / "real").mkdir(parents=True)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for place in (inside / "real" / "a.pdb", tmp_path / "other" / "deep" / "b.pdb"):
        write_structure(place, {"A": [("ALA", FULL)]})
    os.symlink("../other", inside / "again")
    os.symlink("../other", inside / "more")
    os.symlink("real", inside / "a link to real")
    os.symlink("..", inside / "real" / "up")  # without end, if followed
    os.symlink("gone", inside / "lost.pdb")
    names = ["again/deep/b.pdb", "lost.pdb", "real/a.pdb"]
    assert [file.relative_to(inside).as_posix() for file in files_below(inside)] == names
    assert [name for _, name in find_structure_files(inside)] == names
    bad: list[Any] = []
    ids = [one.id for one in read_candidates(str(inside), bad.append)]
    assert ids == ["again/deep/b.pdb:A", "real/a.pdb:A"] and bad[0].id == "lost.pdb"


# --- Tables.


def rows_of(file: Path) -> tuple[list[str], list[str]]:
    bad: list[Any] = []
    return [one.id for one in read_sequences(file, on_invalid=bad.append)], [r.id for r in bad]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t", "t.CSV.GZ"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_tables_are_told_by_their_header(tmp_path: Path, name: str, delimiter: str) -> None:
    file = io.StringIO()
    rows = [("note", "id", "sequence"), ("x" * 140_000, "P1", "mkv*"), ('a, "b"; c', "P2", "MLA")]
    csv.writer(file, delimiter=delimiter).writerows(rows)
    data = b"\xef\xbb\xbf" + file.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("Z") else data)
    assert rows_of(tmp_path / name) == (["P1", "P2"], [])


def test_a_bad_line_of_a_table_costs_that_line(tmp_path: Path) -> None:
    lines = ["id,sequence", "P1,MKV", 'P2,"MKV', "P3,MLA", "P4,a note, MKV", 'P5,"MK"V', "P6,M,"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert rows_of(tmp_path / "t.csv") == (["P1", "P3", "P6"], ["row 2", "row 4", "row 5"])


def test_a_bad_line_of_json_costs_that_line(tmp_path: Path) -> None:
    rows = ['{"id": "P1", "sequence": "mkv"}', "{", "[" * 100_000, "7", '{"id": "P2"}']
    (tmp_path / "x").write_text("\n".join(rows))
    assert rows_of(tmp_path / "x") == (["P1"], ["row 2", "row 3", "row 4", "P2"])


def test_site_tables_take_what_all_else_takes(tmp_path: Path) -> None:
    header = "uid\tinterpro_id\tseq_full\tlabel\tstart\tend\tseq_fragment\n"
    row = "P1\tF\tmkvla*\t[0, 1, 1, 0, 0]\t2\t3\tkv\n"
    (tmp_path / "t").write_bytes(gzip.compress(b"\xef\xbb\xbf" + (header + row).encode()))
    [one], bad = read_site_table(tmp_path / "t")
    assert (one.sequence, one.site_labels, bad) == ("MKVLA", (0, 1, 1, 0, 0), [])
    (tmp_path / "t").write_bytes(gzip.compress((header + row * 50).encode())[:-12])
    with pytest.raises(ValueError, match="t is not a valid gzip file: Compressed file ended"):
        read_site_table(tmp_path / "t")


# --- Whatever happens to a file, it is read and reported in full, or refused in one line.

INSERTED = [b'"', b"\0", b"\x0c", b"\xe2\x80\xa8", b"\xe9", b"\xef\xbb\xbf", b"\r", b"\n", b";"]
INSERTED += [b">", b",", b"\t", b"#", b"*", b"{", b"\x1f\x8b", b"\x85", b"\x1c"]


def written(draw: random.Random, kind: str) -> bytes:
    rows = [(f"P{i}", "".join(draw.choices("ACDEFGHIKL", k=20))) for i in range(draw.randint(1, 5))]
    if kind == "fasta":
        return "".join(f">{key} d\u00e9\n{s[:9]}\n{s[9:]}\n" for key, s in rows).encode()
    if kind == "jsonl":
        return "".join(json.dumps({"id": key, "sequence": s}) + "\n" for key, s in rows).encode()
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    if kind == "sites":
        table.writerow(["uid", "interpro_id", "seq_full", "label"])
        table.writerows((key, "F", s, json.dumps([0, 1] * 10)) for key, s in rows)
    else:
        table.writerow(["id", "note", "sequence"])
        table.writerows((key, draw.choice(["", "a, b", 'a "b"']), s) for key, s in rows)
    return file.getvalue().encode()


def mutated(draw: random.Random, data: bytes) -> bytes:
    for _ in range(draw.randint(0, 3)):
        i = draw.randrange(len(data) + 1)
        data = draw.choice(
            [
                data[:i] + draw.choice(INSERTED) + data[i:],
                data[:i] + bytes([draw.randrange(256)]) + data[i + 1 :],
                data[:i] + data[i + draw.randint(1, 4) :],
                data[:i],
                data.replace(b"\n", draw.choice([b"\r", b"\r\n"])),
                draw.choice([b"\xef\xbb\xbf", b";c\n", b"\n"]) + data,
            ]
        )
    return data


def records_in(kind: str, data: bytes) -> int:
    """Count records by other means: FASTA and JSON by their lines, tables by csv where it can."""
    lines = re.split("\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf").decode("latin-1"))
    if kind == "fasta":
        mark = "\u00ef\u00bb\u00bf"  # a byte order mark, as Latin-1
        return sum(one.strip().removeprefix(mark).startswith(">") for one in lines)
    said = [line for line in lines if (line.strip() if kind == "jsonl" else line)]
    if kind == "jsonl":
        return len(said)
    while said and not said[0].strip():
        del said[0]
    try:
        return sum(map(bool, csv.reader(io.StringIO("\n".join(said[1:])), strict=True)))
    except csv.Error:
        return max(0, len(said) - 1)


@pytest.mark.parametrize("kind", ["fasta", "csv", "sites", "jsonl"])
def test_mutated_files_are_read_and_reported_in_full(tmp_path: Path, kind: str) -> None:
    read_whole = 0
    for seed in range(120):
        draw = random.Random(f"{kind} {seed}")
        plain = mutated(draw, written(draw, kind))
        packed = gzip.compress(plain) if seed % 3 == 0 else plain
        data = mutated(draw, packed) if seed % 6 == 0 else packed
        file = tmp_path / ("x" if seed % 5 == 0 else f"x.{kind.replace('sites', 'csv')}")
        file.write_bytes(data)
        bad: list[Any] = []
        try:
            if kind == "sites":
                report = SiteTableReport()
                count, bad = len(list(iter_site_rows(file, report))), report.invalid
            else:
                count = len(list(read_sequences(file, on_invalid=bad.append)))
        except (ValueError, OSError) as error:
            assert str(file) in str(error) and "\n" not in str(error).strip(), seed
            continue
        if data == packed:
            assert count + len(bad) == records_in(kind, plain), (seed, plain)
            read_whole += 1
    assert read_whole >= 60


def test_proteins_of_rows_keep_their_names() -> None:
    rows = [(os.fsdecode(b"\xe9"), "MKV"), Protein("\ud800", "MLA")]
    assert [len(one.sha) for one in read_sequences(rows)] == [64, 64]
