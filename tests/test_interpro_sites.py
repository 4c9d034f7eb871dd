"""The data set builder: CSV tables in, Parquet and a card out, as a class and from the shell."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets_scripts"))
import interpro_sites
from interpro_sites import InterProSites, export, find_tables

from plasma_hf.data import read_site_table

HEADER = (
    "uid",
    "interpro_id",
    "seq_full",
    "seq_fragment",
    "start",
    "end",
    "label",
    "interpro_label",
)


def row(uid, label="[0, 1, 1, 0, 0]"):
    return (uid, "IPR1", "MKVLA", "KV", "2", "3", label, "7")


@pytest.fixture
def tables(tmp_path):
    folder = tmp_path / "VenusX"
    folder.mkdir()
    for name, rows in {
        "test": [row("P5")],
        "train": [row("P1"), row("P2", "[0]"), row("P3")],
        "valid": [row("P4")],
    }.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
    return folder


@dataclass
class Result:
    exit_code: int
    stderr: str


@pytest.fixture
def shell(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            interpro_sites.command([str(argument) for argument in arguments])
        return Result(end.value.code, " ".join(capsys.readouterr().err.split()))

    return run


def check_folder(folder, tmp_path, config):
    loaded = datasets.load_dataset(str(folder), config, cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "validation", "test"]
    assert loaded["train"].features == interpro_sites.FEATURES
    assert loaded["train"]["uid"][:] == ["P1", "P3"]
    assert loaded["test"][0]["label"] == [0, 1, 1, 0, 0]
    proteins, bad = read_site_table(loaded["train"])
    assert ([protein.uid for protein in proteins], bad) == (["P1", "P3"], [])


def test_from_tables_to_parquet_and_back(tables, tmp_path, shell):
    out = tmp_path / "out"
    result = shell("active_site", "--csv", tables, "--out", out)
    assert result.exit_code == 2  # a row was left out
    assert "train.csv: row 2 (P2): label holds 1 values for 5 residues" in result.stderr
    check_folder(out, tmp_path, "active_site")
    card = DatasetCard.load(out / "README.md")
    assert card.data.configs[0]["config_name"] == "active_site"
    assert [file["split"] for file in card.data.configs[0]["data_files"]] == [
        "train",
        "validation",
        "test",
    ]
    assert "| train | 2 |\n| validation | 1 |\n| test | 1 |\n" in card.text
    assert "Of 5 rows read, 1 were left out" in card.text
    assert "{" not in card.text
    report = json.loads((out / "report.json").read_text())
    assert [entry["invalid"] for entry in report.values()][0][0]["row"] == 2
    assert "| 2 | P2 |" in (out / "report.md").read_text()


def test_good_tables_end_with_code_0(tables, tmp_path, shell):
    result = shell(
        "custom", "--csv", tables / "valid.csv", "--csv", tables / "test.csv", "-o", tmp_path / "o"
    )
    assert result.exit_code == 0, result.stderr
    assert "validation 1, test 1; 0 rows left out" in result.stderr


def test_builder_alone(tables, tmp_path):
    builder = InterProSites(
        "binding_site", find_tables([tables]), cache_dir=str(tmp_path / "cache")
    )
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert sum(len(report.invalid) for report in builder.reports.values()) == 1


def test_rows_stream(tables, tmp_path):
    builder = InterProSites("custom", str(tables / "train.csv"), cache_dir=str(tmp_path / "cache"))
    stream = builder.as_streaming_dataset(split="train")
    assert next(iter(stream))["uid"] == "P1"


def test_a_second_run_reads_the_tables_again(tables, tmp_path):
    for uid in ("P8", "P9"):
        with open(tables / "test.csv", "w", newline="") as file:
            csv.writer(file).writerows([HEADER, row(uid)])
        out = export(InterProSites("custom", {"test": str(tables / "test.csv")}), tmp_path / "out")
        loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / uid), split="test")
        assert loaded["uid"][:] == [uid]


def test_order_of_tables_is_that_of_the_splits(tables, tmp_path):
    assert list(find_tables([tables])) == ["train", "validation", "test"]
    assert find_tables([tables / "test.csv"]) == {"test": str(tables / "test.csv")}
    single = tmp_path / "mine.csv"
    single.write_text("")
    assert find_tables([single]) == {"train": str(single)}
    with pytest.raises(ValueError, match="mine.csv is of no split"):
        find_tables([tables, single])
    with pytest.raises(ValueError, match="a second table of train"):
        find_tables([tables, tables / "train.csv"])
    with pytest.raises(FileNotFoundError, match="no CSV file at .*nowhere"):
        find_tables([tmp_path / "nowhere.csv"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uid,seq_full\nP1,MKV\n", "has no column interpro_id, label"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        ('uid,interpro_id,seq_full,label\nP1,F,MKV,"[0]"\n', "no row can be used"),
    ],
)
def test_useless_tables_are_told(tmp_path, shell, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    result = shell("custom", "--csv", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_tables_and_network(tmp_path, shell, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    result = shell("motif", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "VenusX_Res_Motif_MP50 cannot be fetched" in result.stderr
    assert "--csv FOLDER" in result.stderr
    assert "custom" in shell("custom", "--out", tmp_path / "out").stderr


def test_from_the_hub(tables, tmp_path, shell, monkeypatch):
    asked = {}

    def snapshot_download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(tables)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    shell("motif", "--out", tmp_path / "out", "--revision", "abc")
    assert asked["hub_id"] == "AI4Protein/VenusX_Res_Motif_MP50"
    assert (asked["revision"], asked["allow_patterns"]) == ("abc", "*.csv")
    check_folder(tmp_path / "out", tmp_path, "motif")
    assert (
        "Source: AI4Protein/VenusX_Res_Motif_MP50" in (tmp_path / "out" / "README.md").read_text()
    )
