"""`pipeline("protein-retrieval")`: queries and candidates of both kinds, batches, bad input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import plasma_hf  # noqa: F401 - it registers the task
from plasma_hf import PlasmaConfig, PlasmaModel, ProtAlignModel
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_backbone import SubstitutionConfig
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig
from plasma_hf.models.pipeline_protein_retrieval import ProteinRetrievalPipeline
from plasma_hf.models.protein import Protein, read_structure
from plasma_hf.search import build_index, read_records
from tests.helpers.clients import run_fresh
from tests.helpers.index_job import Composition, write_helix

SEQUENCES = {
    "helix": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRV",
    "other": "GSHMASMTGGQQMGRGSWWPLAVFDCYNEKKTAYIAKQRQ",
    "short": "MKVLAAGGWYF",
}


@pytest.fixture(scope="module")
def model() -> ProtAlignModel:
    torch.manual_seed(0)
    structures = ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8)
    config = ProtAlignConfig(
        plm_config=SubstitutionConfig(), structure_config=structures, hidden_size=16
    )
    return ProtAlignModel(config).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "structures").mkdir()
    for name, sequence in SEQUENCES.items():
        write_helix(folder / "structures" / f"{name}.pdb", {"A": sequence}, first=5)
    write_helix(folder / "two.pdb", {"A": SEQUENCES["helix"], "B": SEQUENCES["short"]})
    records = [f">{name} words\n{sequence}\n" for name, sequence in SEQUENCES.items()]
    (folder / "all.fasta").write_text("".join(records))
    return folder


@pytest.fixture(scope="module")
def index(model: ProtAlignModel, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    build_index(model, read_records([files / "structures"], []), folder)
    return folder


@pytest.fixture(scope="module")
def search(model: ProtAlignModel, index: Path) -> Any:
    return pipeline("protein-retrieval", model=model, index=str(index))


def equal(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    assert [hit["id"] for hit in first] == [hit["id"] for hit in second]
    assert [h["score"] for h in first] == pytest.approx([h["score"] for h in second], abs=3e-6)
    return True


def test_a_sequence_against_structures(search: Any, model: ProtAlignModel, files: Path) -> None:
    hits = search(SEQUENCES["helix"])
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert set(hits[0]) == {"id", "score", "rank", "source"}
    assert sorted(hit["id"] for hit in hits) == ["helix.pdb:A", "other.pdb:A", "short.pdb:A"]
    [query] = model.embed_sequences([SEQUENCES["helix"]])
    for hit in hits:
        [vector] = model.embed_structures([read_structure(hit["source"])])
        assert hit["score"] == pytest.approx(float(query @ vector), abs=2e-6)
    assert len(search(SEQUENCES["helix"], top_k=2)) == 2


def test_every_kind_against_every_kind(model: ProtAlignModel, files: Path) -> None:
    structure = read_structure(files / "structures" / "other.pdb")
    for candidates in (
        files / "structures",
        str(files / "all.fasta"),
        list(SEQUENCES.values()),
        [{"id": name, "sequence": sequence} for name, sequence in SEQUENCES.items()],
        [files / "structures" / f"{name}.pdb" for name in SEQUENCES],
        [f"{files / 'all.fasta'}:{name}" for name in SEQUENCES],
        [Protein(name, sequence) for name, sequence in SEQUENCES.items()],
        [SEQUENCES["helix"], structure, Protein("short", SEQUENCES["short"])],
    ):
        pipe = pipeline("protein-retrieval", model=model, candidates=candidates)
        for query in (SEQUENCES["other"], structure):
            assert [hit["rank"] for hit in pipe(query)] == [1, 2, 3]
    # A protein is as near to itself in its own kind as can be; the folds here are all one.
    by_structure = pipeline("protein-retrieval", model=model, candidates=files / "structures")
    assert {hit["id"]: hit["score"] for hit in by_structure(structure)}["other.pdb:A"] == 1.0
    by_sequence = pipeline("protein-retrieval", model=model, candidates=files / "all.fasta")
    [hit] = by_sequence(SEQUENCES["other"], top_k=1)
    assert hit == {"id": "other", "score": 1.0, "rank": 1, "source": f"{files / 'all.fasta'}:other"}


def test_every_form_of_a_query_gives_the_same(search: Any, files: Path) -> None:
    expected = search(SEQUENCES["helix"])
    place = files / "structures" / "helix.pdb"
    for query in (
        SEQUENCES["helix"].lower(),
        {"sequence": SEQUENCES["helix"]},
        {"id": "mine", "sequence": SEQUENCES["helix"]},
        Protein("p", SEQUENCES["helix"]),
        f"{files / 'all.fasta'}:helix",
    ):
        assert equal(search(query), expected)
    expected = search(read_structure(place))
    for query in (place, str(place), f"{place}:A", {"structure": str(place)}, f"{place}:*"):
        assert equal(search(query), expected)
    assert equal(search(f"{files / 'two.pdb'}:A"), expected)


def test_every_container_gives_the_same(search: Any, files: Path) -> None:
    queries = list(SEQUENCES.values())
    one_by_one = [search(query) for query in queries]
    rows = Dataset.from_list([{"sequence": query} for query in queries])
    for inputs, options in (
        (queries, {}),
        (queries, {"batch_size": 2}),
        (iter(queries), {"batch_size": 2}),
        (rows, {}),
        (rows.to_iterable_dataset(), {}),
        (KeyDataset(rows, "sequence"), {"batch_size": 3}),
        (files / "all.fasta", {}),
    ):
        results = search(inputs, **options)
        assert all(map(equal, results, one_by_one))
    assert isinstance(search(files / "all.fasta"), list)
    mixed = [queries[0], files / "structures" / "short.pdb", queries[2], {"sequence": queries[1]}]
    results = search(mixed, batch_size=4)
    assert all(equal(result, search(query)) for result, query in zip(results, mixed, strict=True))
    assert search([]) == [] and list(search(iter([]))) == []


def test_a_generator_streams(search: Any) -> None:
    taken = []

    def queries() -> Any:
        for i in range(100):
            taken.append(i)
            yield SEQUENCES["short"]

    next(search(queries()))
    assert len(taken) <= 2  # transformers peeks at one


def test_explanations(search: Any) -> None:
    hits = search(SEQUENCES["short"], explain=True)
    for hit in hits:
        found = hit["explain"]
        assert (found.query.sequence, found.candidate.id) == (SEQUENCES["short"], hit["id"])
        assert found["evalue"] == len(search.index) * found["p_value"]
    assert "explain" not in search(SEQUENCES["short"])[0]


def test_residues_decide_among_the_nearest() -> None:
    """Vectors of composition do not tell a protein from its reverse; residues do."""
    one = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
    others = [{"id": "reverse", "sequence": one[::-1]}, {"id": "same", "sequence": one}]
    pipe = ProteinRetrievalPipeline(model=as_model(), candidates=others)
    assert [hit["id"] for hit in pipe(one)] == ["reverse", "same"]
    first, second = pipe(one, explain=True)
    assert (first["id"], first["rank"], second["id"], second["rank"]) == ("same", 1, "reverse", 2)
    assert first["explain"]["segments"] and not second["explain"]["segments"]
    align = pipeline("protein-alignment", model=PlasmaModel(PlasmaConfig(head="hinge")))
    with pytest.raises(ValueError, match="is not calibrated; plasma-hf calibrate"):
        pipe(one, explain=align)
    [only] = pipe(one, explain=True, top_k=1)
    assert only["id"] == "same"


def test_explanation_of_a_hit_whose_file_is_gone(tmp_path: Path) -> None:
    file = write_helix(tmp_path / "gone.pdb", {"A": "MKVLAAGMKV"})
    records = [*read_records([file], []), ("from no file", read_structure(file)), ("P", "MKV")]
    build_index(Composition(), records, tmp_path / "index")
    file.unlink()
    pipe = ProteinRetrievalPipeline(model=as_model(), index=tmp_path / "index")
    found = {hit["id"]: hit["explain"] for hit in pipe("MKV", explain=True)}
    assert "there is no file" in found["gone.pdb:A"]["error"]
    assert "was read from no file" in found["from no file"]["error"]
    assert found["P"]["segments"] == [] and found["P"].candidate.sequence == "MKV"


def as_model(**options: Any) -> Any:
    """A stub with what a pipeline wants to know of a model."""
    stub: Any = Composition(**options)
    stub.device, stub.dtype = torch.device("cpu"), torch.float32
    stub.config.task_specific_params = stub.config.prefix = None
    stub.can_generate = lambda: False
    return stub


BAD = {
    "empty": ("", "query is empty; give at least one residue"),
    "character": ("MK1V", "query has the character '1' at position 3"),
    "no file": ("no/such.fasta", "there is no file 'no/such.fasta'"),
    "no structure": ("no/such.pdb", "there is no file 'no/such.pdb'"),
    "no record": ("{}/all.fasta:z", "has no record 'z'; it has: helix, other, short"),
    "several chains": ("{}/two.pdb", "holds 2 chains: A, B; name one"),
    "no chain": ("{}/two.pdb:C", "has no chain 'C'"),
    "no key": ({"seq": "MKV"}, "is a mapping with the keys 'seq'; give either 'sequence' or"),
    "both keys": ({"sequence": "MKV", "structure": "a.pdb"}, "give either 'sequence' or"),
    "path as sequence": ({"sequence": "a.pdb"}, "has the character '.'"),
    "sequence as structure": ({"structure": "MKV"}, "has a sequence under the key 'structure'"),
    "number": (7, "query is a int; give a sequence, a path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_queries(search: Any, files: Path, name: str) -> None:
    query, message = BAD[name]
    query = query.format(files) if isinstance(query, str) else query
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        search([query])
    good = SEQUENCES["short"]
    results = search([good, query, good], on_error="report", batch_size=2)
    assert message in results[1]["error"]
    assert equal(results[0], search(good)) and equal(results[2], results[0])


def test_a_query_that_cannot_be_embedded(tmp_path: Path) -> None:
    pipe = ProteinRetrievalPipeline(model=as_model(), candidates=["MKV", "WYF"])
    with pytest.raises(ValueError, match="pyrrolysine is too much for me"):
        pipe("MKO")
    good, bad = pipe(["MKV", "MKO"], on_error="report", batch_size=2)
    assert good[0]["id"] == "candidate 1"
    assert bad == {"error": "query cannot be embedded: pyrrolysine is too much for me"}


def test_bad_candidates_are_left_out(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    candidates = ["MKV", "MK7", "WYF", "MKO"]
    with caplog.at_level(logging.WARNING):
        pipe = ProteinRetrievalPipeline(model=as_model(), candidates=candidates)
    assert [record.id for record in pipe.invalid_candidates] == ["candidate 2", "candidate 4"]
    assert "candidate candidate 2" not in caplog.text
    assert "candidate 2 is left out: candidate 2 has the character '7'" in caplog.text
    assert len(pipe("MKV")) == 2
    with pytest.raises(ValueError, match="there is no candidate that can be searched. candidate 1"):
        ProteinRetrievalPipeline(model=as_model(), candidates=["MK7"])
    with pytest.raises(TypeError, match="candidates is a int; give a list"):
        ProteinRetrievalPipeline(model=as_model(), candidates=3)
    (files / "nothing").mkdir()
    with pytest.raises(ValueError, match="there is no structure file below"):
        ProteinRetrievalPipeline(model=as_model(), candidates=files / "nothing")


def test_bad_use(search: Any, model: ProtAlignModel, index: Path) -> None:
    for options in ({}, {"index": index, "candidates": ["MKV"]}):
        with pytest.raises(ValueError, match="give one of index=FOLDER"):
            pipeline("protein-retrieval", model=model, **options)
    with pytest.raises(ValueError, match="top_k=0; give at least 1"):
        search("MKV", top_k=0)
    with pytest.raises(ValueError, match="on_error='ignore'; accepted are"):
        search("MKV", on_error="ignore")
    with pytest.raises(TypeError, match="as one argument"):
        search("MKV", "MKV")
    with pytest.raises(TypeError, match="cannot search with a int"):
        search(7)


def test_a_foreign_index_and_a_model_without_encoders(index: Path, model: ProtAlignModel) -> None:
    with pytest.raises(ValueError, match=r"was made by .* and this model is tiny/composition"):
        ProteinRetrievalPipeline(model=as_model(), index=index)
    head = ProtAlignModel(ProtAlignConfig(sequence_size=32, structure_size=16)).eval()
    with pytest.raises(ValueError, match="this model has no sequence encoder"):
        pipeline("protein-retrieval", model=head, candidates=["MKV"])


FRESH = """
import sys
sys.modules["plasma_hf"] = None  # any import of it now fails
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder, index, files, query = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
name = "pipeline_protein_retrieval.ProteinRetrievalPipeline"
made = get_class_from_dynamic_module(name, folder)
try:
    made(model=model, index=index)
except ImportError as error:
    print(error)
print(*(hit["id"] for hit in made(model=model, candidates=files)(query, explain=True)))
"""


@pytest.mark.slow
def test_where_the_package_is_not_installed_files_are_searched_and_an_index_is_refused(
    search: Any, files: Path, index: Path, tmp_path: Path
) -> None:
    search.save_pretrained(tmp_path / "saved")
    words = [tmp_path / "saved", index, files / "structures", SEQUENCES["short"]]
    refusal, found = run_fresh(FRESH, words, tmp_path).splitlines()
    assert "candidates=[...] needs none) is opened by the package: pip install plasma-hf" in refusal
    assert found.split() == [hit["id"] for hit in search(SEQUENCES["short"])]
