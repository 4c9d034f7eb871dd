"""Site tables: every invalid row is named, valid rows are used."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from plasma_hf.data import SiteTableReport, iter_site_rows, read_site_table

HEADER = ("uid", "interpro_id", "seq_full", "seq_fragment", "start", "end", "label")
GOOD = ("P1", "F1", "MKVLA", "KV", "2", "3", "[0, 1, 1, 0, 0]")


def write(path, rows, header=HEADER):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(source):
    report = SiteTableReport()
    return [protein for protein, _ in iter_site_rows(source, report)], report


@pytest.mark.parametrize(
    ("changes", "reason", "kind"),
    [
        ({"start": "0"}, "start and end are 0 and 3, outside 1 to 5", "coordinates"),
        ({"end": "6"}, "outside 1 to 5", "coordinates"),
        ({"start": "3", "end": "2"}, "or reversed", "coordinates"),
        ({"start": "a"}, "'a' and '3', not whole numbers", "coordinates"),
        ({"start": ""}, "not whole numbers", "coordinates"),
        ({"start": "1|2"}, "hold 2 and 1 values", "coordinates"),
        ({"start": "5", "end": "5", "seq_fragment": "A"}, "cover no residue", "coordinates"),
        ({"seq_fragment": "KL"}, "'KL', but start and end cut out 'KV'", "fragment"),
        ({"label": "[0, 1]"}, "label holds 2 values for 5 residues", "label length"),
        ({"label": "{}"}, "not a list", "label"),
        ({"label": "0"}, "not a list", "label"),
        ({"seq_full": "MK*LA"}, "'*' at position 3, which is no", "alphabet"),
        ({"seq_full": "MK\ufffdLA"}, "at position 3, which is no residue", "alphabet"),
        ({"interpro_id": ""}, "nothing in interpro_id", "empty"),
        ({"interpro_id": "  "}, "nothing in interpro_id", "empty"),
        ({"uid": "P0"}, "repeats the uid and interpro_id of row 1", "duplicate"),
    ],
)
def test_invalid_rows_are_named(tmp_path, changes, reason, kind):
    first = ("P0", *GOOD[1:])
    bad = tuple((dict(zip(HEADER, GOOD, strict=True)) | changes).values())
    last = ("P2", *GOOD[1:])
    proteins, report = read(write(tmp_path / "t.csv", [first, bad, last]))
    assert [protein.uid for protein in proteins] == ["P0", "P2"]
    assert [row.row for row in report.invalid] == [2]
    assert reason in report.invalid[0].reason
    assert report.to_dict()["reasons"] == {kind: 1}
    assert (report.n_rows, report.n_used, report.notes) == (3, 2, [])


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"label": "[1, 1, 1, 1, 0]"}, "label marks 4 residues, 2 of the 2 covered"),
        ({"label": "[0, 0, 0, 0, 0]"}, "label marks 0 residues"),
        ({"label": "[0,0,0,0,0]", "start": "", "end": "", "seq_fragment": ""}, "no residue"),
    ],
)
def test_doubtful_rows_are_used_with_a_remark(tmp_path, changes, remark):
    row = tuple((dict(zip(HEADER, GOOD, strict=True)) | changes).values())
    proteins, report = read(write(tmp_path / "t.csv", [row]))
    assert len(proteins) == 1
    assert report.invalid == []
    assert remark in report.notes[0].reason


def test_another_sequence_under_a_uid_is_remarked(tmp_path):
    other = ("P1", "F2", "MKVLL", "KV", "2", "3", "[0, 1, 1, 0, 0]")
    proteins, report = read(write(tmp_path / "t.csv", [GOOD, other]))
    assert len(proteins) == 2
    assert "another sequence" in report.notes[0].reason


def test_parts_may_come_in_any_order_and_overlap(tmp_path):
    row = ("P1", "F1", "MKVLA", "VLA|KV", "3|2", "5|3", "[0, 1, 1, 1, 1]")
    _, report = read(write(tmp_path / "t.csv", [row]))
    assert (report.invalid, report.notes) == ([], [])


def test_a_broken_line_does_not_end_the_table(tmp_path):
    too_long = ("P3", "F1", "M" * 140_000, "", "", "", "[]")
    path = write(tmp_path / "t.csv", [GOOD, (*GOOD, "more"), too_long, ("P2", *GOOD[1:])])
    with open(path, "ab") as file:
        file.write(b'P4,F1,M\xffV,,,,"[0, 0, 0]"\n')
    proteins, report = read(path)
    assert [protein.uid for protein in proteins] == ["P1", "P2"]
    assert [row.row for row in report.invalid] == [2, 3, 5]


def test_report_is_markdown_and_json(tmp_path):
    rows = [GOOD, ("P|2", *GOOD[1:6], "[0]"), GOOD]
    _, report = read(write(tmp_path / "t.csv", rows))
    text = report.to_markdown()
    assert "3 rows, 1 used, 2 left out (label length 1, duplicate 1), 0 with remarks." in text
    assert "| 2 | P\\|2 | label holds 1 values for 5 residues |" in text
    assert json.loads(json.dumps(report.to_dict()))["invalid"][1]["row"] == 3


def test_other_sources(tmp_path):
    path = write(tmp_path / "t.csv", [GOOD])
    expected = read_site_table(path)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_site_table(packed) == expected
    row = dict(zip(HEADER, GOOD, strict=True)) | {"label": [0, 1, 1, 0, 0]}
    assert read_site_table([row]) == expected
    assert read_site_table([]) == ([], [])

    import datasets

    table = datasets.Dataset.from_list([row])
    assert read_site_table(table) == expected
    table.to_parquet(tmp_path / "t.parquet")
    assert read_site_table(tmp_path / "t.parquet") == expected


def test_lfs_pointers_are_told(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="is a Git-LFS pointer.*git lfs pull"):
        read_site_table(path)


def test_missing_columns_are_told_also_of_rows():
    with pytest.raises(ValueError, match="first row has no column label"):
        read_site_table([{"uid": "P1", "interpro_id": "F", "seq_full": "MK"}])


@pytest.mark.parametrize(
    ("name", "n_rows", "reasons", "remarks"),
    [
        ("binding_site", 1307, {}, {}),
        ("interpro_active_site", 17, {}, {}),
        ("interpro_conserved_site", 153, {"duplicate": 1}, {}),
        ("interpro_residue_sites", 2089, {"duplicate": 109}, None),
    ],
)
def test_real_tables(full_golden, name, n_rows, reasons, remarks):
    _, report = read(full_golden.parent / "sites" / f"{name}.csv")
    found = report.to_dict()
    assert (found["rows"], found["reasons"]) == (n_rows, reasons)
    assert remarks is None or found["remarks"] == remarks
