"""The builders of structure data sets: files in, Parquet and a card out."""

import json
import sys
from pathlib import Path

import datasets
import pytest
from huggingface_hub import DatasetCard

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets_scripts"))
import pdbbind
import structure_folder
from pdbbind import Pdbbind
from structure_folder import StructureFolder
from test_pdbbind import tree  # noqa: F401 -- a fixture

from plasma_hf.io.structures import row_to_pair
from tests.helpers.structures import FULL, write_structure

NAMES = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()


@pytest.fixture
def folder(tmp_path):
    """Three files of one sequence, and seven of others."""
    root = tmp_path / "files"
    for number in range(10):
        shift = max(number - 2, 0)
        names = [NAMES[(n * (2 * shift + 1) + shift) % 20] for n in range(30)]
        place = root / f"family{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        write_structure(place / f"{number}.pdb", {"A": [(name, FULL) for name in names]})
    (root / "broken.pdb").write_text("ATOM")
    write_structure(root / "short.pdb", {"A": [("ALA", FULL)]})
    return root


@pytest.fixture
def shell(capsys):
    def run(script, *arguments):
        with pytest.raises(SystemExit) as end:
            script.command([str(argument) for argument in arguments])
        return end.value.code, " ".join(capsys.readouterr().err.split())

    return run


def load(out, tmp_path):
    return datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))


def test_folder_to_parquet_and_back(folder, tmp_path, shell):
    out = tmp_path / "out"
    code, told = shell(structure_folder, folder, "--out", out, "--family-from-folder")
    assert code == 2  # two files were left out
    assert "broken.pdb: " in told
    assert "short.pdb:A: it has 1 residues, not 20 to" in told
    assert "train 10; 2 left out" in told
    rows = load(out, tmp_path)["train"]
    pair = row_to_pair(rows[0])
    assert (pair.id, pair.family) == ("family0/0.pdb:A", "family0")
    assert pair.structure.backbone.shape == (30, 4, 3)
    assert pair.structure.residue_mask.all()
    card = DatasetCard.load(out / "README.md")
    assert "12 files of `files`. 2 files or chains were left out" in card.text
    assert "The structures are not split." in card.text
    assert "{" not in card.text
    report = json.loads((out / "report.json").read_text())
    assert [record["id"] for record in report["invalid"]] == ["broken.pdb", "short.pdb:A"]
    assert "- broken.pdb: " in (out / "report.md").read_text()


def test_folder_split_by_cluster(folder, tmp_path, shell):
    out = tmp_path / "out"
    _, told = shell(structure_folder, folder, "--out", out, "--split-by-cluster", "--seed", 1)
    assert "2 left out" in told  # each told once
    splits = load(out, tmp_path)
    assert list(splits) == ["train", "validation", "test"]
    assert sum(map(len, splits.values())) == 10
    sequences = [set(split["sequence"]) for split in splits.values()]
    assert not sequences[0] & sequences[1] | sequences[0] & sequences[2]
    assert "No sequence cluster is in two splits" in (out / "README.md").read_text()


def test_builder_alone_sees_changed_files(folder, tmp_path):
    def build():
        builder = StructureFolder(folder, cache_dir=str(tmp_path / "cache"), chains="longest")
        builder.download_and_prepare()
        return len(builder.as_dataset("train"))

    assert build() == 10
    (folder / "family0" / "0.pdb").unlink()
    assert build() == 9


def test_folders_of_no_use(tmp_path, shell):
    code, told = shell(structure_folder, tmp_path, "--out", tmp_path / "out")
    assert (code, "no structure file below" in told) == (2, True)
    (tmp_path / "broken.pdb").write_text("ATOM")
    code, told = shell(structure_folder, tmp_path, "--out", tmp_path / "out")
    assert (code, "no structure can be used" in told) == (2, True)
    with pytest.raises(ValueError, match="no choice of chains 'best'; give each"):
        StructureFolder(tmp_path, chains="best")


def test_pdbbind_to_parquet_and_back(tree, tmp_path, shell):  # noqa: F811
    out = tmp_path / "out"
    year = next(tree.rglob("INDEX_refined_data.*")).suffix[1:]
    code, told = shell(pdbbind, year, "--root", tree, "--out", out, "--try-all")
    assert code == 0, told
    assert "| ProtAlign paper | 10,071 | 3,387 | 215 |" in told
    assert "| pocket, split | 2 | 1 | 1 |" in told
    splits = load(out, tmp_path)
    assert {name: rows["id"][:] for name, rows in splits.items()} == {
        "train": ["1aaa"],
        "validation": ["1bbb"],
        "test": ["1ccc"],
    }
    row = splits["test"][0]
    assert (row["family"], row["uniprot"], row["year"]) == ("target 12", "P00003", 2006)
    assert row["affinity"] == 7.0
    assert row_to_pair(row).structure.backbone.shape == (3, 4, 3)
    card = DatasetCard.load(out / "README.md")
    assert "Not to be passed on" in card.text
    assert "| train | 2 | 1 | 10071 |" in card.text
    assert card.data.license_name == "pdbbind"
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] == {"train": 1, "validation": 1, "test": 1}
    assert len(report["tried"]) == 12


def test_pdbbind_tells_what_is_left_out(tree, tmp_path, shell):  # noqa: F811
    (tree / "refined-set" / "1bbb" / "1bbb_protein.pdb").unlink()
    out = tmp_path / "out"
    code, told = shell(pdbbind, "custom", "--root", tree, "--out", out, "--deduplication", "none")
    assert (code, "1bbb: its folder has no 1bbb_protein.pdb" in told) == (2, True)
    assert list(load(out, tmp_path)) == ["train", "test"]
    code, told = shell(pdbbind, "2020", "--root", tmp_path / "nowhere", "--out", out)
    assert (code, "there is no complex below" in told) == (2, True)


def test_pdbbind_builder_alone(tree, tmp_path):  # noqa: F811
    builder = Pdbbind(root=tree, cache_dir=str(tmp_path / "cache"), chains="concat")
    builder.download_and_prepare()
    assert builder.as_dataset("train")["sequence"][:] == ["MKVAMKVAGG"]
    assert builder.report.chains == "concat"


def test_pdbbind_is_pushed_in_private_only(tree, tmp_path, shell, monkeypatch):  # noqa: F811
    calls = []

    class Api:
        def create_repo(self, repository, private, **options):
            calls.append((repository, private))

        def dataset_info(self, repository):
            return type("Info", (), {"private": False})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    out = tmp_path / "out"
    code, told = shell(pdbbind, "custom", "--root", tree, "--out", out, "--push", "me/chains")
    assert (code, calls) == (2, [("me/chains", True)])
    assert "me/chains is public" in told
