"""The bundled ProtAlign finds structures of a folder: no model named, no network."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from transformers import pipeline
from typer.testing import CliRunner

from plasma_hf import DEFAULT_RETRIEVAL_CHECKPOINT, ProtAlignModel
from plasma_hf.cli.main import app
from plasma_hf.data import read_structure
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.pipeline_protein_retrieval import read_candidates
from plasma_hf.models.protein import read_protein
from plasma_hf.search import build_index, read_records

STRUCTURES = Path(__file__).parents[1] / "demo" / "structures"
CHAINS = {
    "1acb_E": 241,
    "1ay7_B": 89,
    "1eaw_B": 56,
    "1ppe_E": 223,
    "1r0r_E": 274,
    "2cga_B": 245,
    "2sni_E": 275,
    "9pti_A": 58,
}


def chain(name: str):
    return read_structure(STRUCTURES / f"{name}.pdb.gz")


@pytest.fixture(scope="module")
def search():
    return pipeline("protein-retrieval", candidates=str(STRUCTURES), device="cpu")


def test_the_structures_are_small_whole_and_of_one_chain() -> None:
    bad: list = []
    records = list(read_records(STRUCTURES, bad))
    assert not bad
    found = {record.id.split(".")[0]: len(record) for record in records}
    assert found == CHAINS
    assert all(record.structure.residue_mask.all() for record in records)
    assert [record.id.rpartition(":")[2] for record in records] == [name[-1] for name in CHAINS]
    assert sum(file.stat().st_size for file in STRUCTURES.iterdir()) < 400_000
    named = (STRUCTURES / "README.md").read_text()
    assert all(f"`{name}.pdb.gz`" in named and f"| {n} |" in named for name, n in CHAINS.items())


def test_the_bundled_model_is_small() -> None:
    folder = Path(DEFAULT_RETRIEVAL_CHECKPOINT)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000


@pytest.mark.parametrize("name", ["1ay7_B", "1eaw_B"])
def test_a_sequence_finds_its_structure_on_the_command_line(name: str) -> None:
    words = ["search", "--sequence", chain(name).sequence, "--structures", str(STRUCTURES)]
    result = CliRunner().invoke(app, [*words, "--device", "cpu", "--format", "tsv"])
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t"))
    assert len(rows) == 5
    assert f"{name}.pdb.gz:{name[-1]}" in [row["id"] for row in rows[:3]]


def test_the_sequence_of_an_enzyme_finds_enzymes_before_inhibitors(search) -> None:
    hits = search(chain("1ppe_E").sequence)
    assert {hit["id"][:4] for hit in hits} == {"1ppe", "1acb", "2cga", "2sni", "1r0r"}


@pytest.mark.parametrize(
    ("query", "relatives"),
    [("1acb_E", {"2cga", "1ppe"}), ("2sni_E", {"1r0r"}), ("9pti_A", {"1eaw"})],
)
def test_a_structure_finds_itself_and_then_its_relatives(search, query, relatives) -> None:
    first, *others = search(STRUCTURES / f"{query}.pdb.gz", top_k=1 + len(relatives))
    assert (first["id"][:4], round(first["score"], 4)) == (query[:4], 1.0)
    assert {hit["id"][:4] for hit in others} == relatives


def test_an_index_of_the_bundled_model_is_explained(search, tmp_path: Path) -> None:
    bad: list = []
    assert build_index(search.model, read_records(STRUCTURES, bad), tmp_path).embedded == 8
    indexed = pipeline("protein-retrieval", index=tmp_path, device="cpu")
    sequence = chain("1ay7_B").sequence
    hits = indexed(sequence, explain=True)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in search(sequence)]
    found = {hit["id"][:4]: hit["explain"] for hit in hits}
    best = found.pop("1ay7")
    assert best["evalue"] == 8 * best["p_value"] < 1e-20
    [segment] = best["segments"]
    assert [pair[:2] for pair in segment["pairs"]] == [[i, i] for i in range(len(sequence))]
    assert segment["candidate_residues"][0] == "B:1" and "superposition" not in best
    assert not any(result["segments"] for result in found.values())


def test_structures_are_superposed_where_they_are_aligned(search) -> None:
    hits = search(STRUCTURES / "2cga_B.pdb.gz", top_k=8, explain=True)
    found = {hit["id"][:4]: hit["explain"] for hit in hits}
    for name in ("2cga", "1acb", "1ppe"):
        assert found[name]["evalue"] < 1e-20 and found[name]["superposition"]["rmsd"] < 1.5
        pairs = found[name]["segments"][0]
        sides = zip(pairs["query_residues"], pairs["candidate_residues"], strict=True)
        assert {"B:57", "B:102", "B:195"} <= {a for a, b in sides if a[2:] == b[2:]}
    for name in found.keys() - {"2cga", "1acb", "1ppe"}:
        assert not found[name]["segments"] and "superposition" not in found[name]


def test_residues_are_aligned_as_the_user_says(search) -> None:
    pytest.importorskip("mini3di")
    align = pipeline("protein-alignment", backbone="3di", device="cpu")
    query = STRUCTURES / "2sni_E.pdb.gz"
    by_letters, by_structure = (search(query, explain=by)[1]["explain"] for by in (True, align))
    assert by_letters.candidate.id == by_structure.candidate.id == "1r0r_E.pdb.gz:E"
    assert (
        by_letters["bits"] != by_structure["bits"] == align((query, by_structure.candidate))["bits"]
    )
    found = search("MKTAYIAKQRQISFVKSHFSRQ", explain=align)[0]["explain"]
    assert "which this backbone reads" in found["error"]


def test_what_is_no_place_to_search_is_said(tmp_path: Path) -> None:
    one = STRUCTURES / "1ay7_B.pdb.gz"
    assert [record.id for record in read_candidates(f"{one}:B", print)] == ["1ay7_B.pdb.gz:B"]
    for missing in ("no/where", "MKVLA", f"{one.name}:B"):
        with pytest.raises(FileNotFoundError, match="there is no file or folder .* into a list"):
            list(read_candidates(missing, print))
    with pytest.raises(ValueError, match="query is the folder .*, not one protein; give a file"):
        read_protein(STRUCTURES, "query")
    model = ProtAlignModel(ProtAlignConfig(sequence_size=8, structure_size=8))
    with pytest.raises(TypeError, match=r"records is the path .* read_records\(path, bad\)"):
        build_index(model, str(STRUCTURES), tmp_path)


def test_a_file_given_as_a_sequence() -> None:
    words = ["search", "--sequence", str(STRUCTURES / "1ay7_B.pdb.gz"), "--structures", "x"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "is a file; give it as --fasta or --structure" in result.stderr
