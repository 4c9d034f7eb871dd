"""`plasma-hf index` and `plasma-hf search` as their users meet them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from plasma_hf import ProtAlignModel
from plasma_hf.cli import index as index_verbs
from plasma_hf.cli import main
from plasma_hf.cli.search import search
from plasma_hf.io.formats import HIT_FIELDS as FIELDS
from plasma_hf.io.formats import HIT_FORMATS as FORMATS
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_backbone import SubstitutionConfig
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig
from plasma_hf.models.protein import read_structures
from plasma_hf.search import Index
from tests.helpers.index_job import write_helix

ROOT = Path(__file__).parents[1]
HELIX = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRV"  # 40 residues
OTHER = "GSHMASMTGGQQMGRGSWWPLAVFDCYNEKKTAYIAKQRQ"
FASTA = f">P1 words\n{HELIX}\n>P2\n{OTHER}\n"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(index_verbs.index_app, name="index")
app.command()(search)


def save_model(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    structures = ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8)
    config = ProtAlignConfig(
        plm_config=SubstitutionConfig(), structure_config=structures, hidden_size=16
    )
    ProtAlignModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder with structures and a FASTA file."""
    monkeypatch.chdir(tmp_path)
    Path("structures").mkdir()
    write_helix(Path("structures/helix.pdb"), {"A": HELIX}, first=11)
    write_helix(Path("structures/two.pdb"), {"A": OTHER, "B": HELIX[:20]})
    Path("two.fasta").write_text(FASTA)

    def run(line: str, *words: str) -> Any:
        return CliRunner().invoke(app, [*shlex.split(line), *words])

    return run


@pytest.fixture
def index(run: Any, model: str) -> Path:
    assert run("index build structures -o index --model", model).exit_code == 0
    return Path("index")


def one_line(result: Any) -> str:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    [line] = result.stderr.splitlines()
    return str(line)


def test_sequence_among_a_folder_of_structures(run: Any, model: str) -> None:
    result = run(f"search --sequence {HELIX} --structures structures --model", model)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    first, blank, head, *hits = result.stdout.splitlines()
    assert (first, blank) == ("query  query  40 residues", "")
    assert head.split() == ["rank", "score", "id", "source"]
    assert [hit.split()[0] for hit in hits if hit] == ["1", "2", "3"]
    assert sum("structures/helix.pdb:A" in hit for hit in hits) == 1


def test_formats_say_the_same(run: Any, model: str, index: Path) -> None:
    line = "search --fasta two.fasta --index index --top-k 2 --explain --model"
    outputs = {}
    for name in FORMATS:
        result = run(line, model, "--format", name)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        outputs[name] = result.stdout
    lines = [json.loads(line) for line in outputs["json"].splitlines()]
    assert [(line["query"], line["query_length"]) for line in lines] == [("P1", 40), ("P2", 40)]
    rows = list(csv.DictReader(io.StringIO(outputs["tsv"]), delimiter="\t"))
    assert list(rows[0]) == list(FIELDS)
    hits = [(line["query"], hit) for line in lines for hit in line["hits"]]
    assert len(hits) == len(rows) == 4
    for (query, hit), row in zip(hits, rows, strict=True):
        assert (row["query"], row["id"], row["rank"]) == (query, hit["id"], str(hit["rank"]))
        assert float(row["score"]) == hit["score"]
        assert row["evalue"] == f"{hit['explain']['evalue']:.2g}"
        aligned = bool(hit["explain"]["segments"])
        spelled = f"E {row['evalue']}  {row['query_residues']} = {row['hit_residues']}"
        assert (spelled in outputs["text"]) == aligned == bool(row["pairs"])
        assert hit["id"] in outputs["text"]
    assert any(row["pairs"] for row in rows)


def test_structures_as_queries(run: Any, model: str) -> None:
    words = "--sequences two.fasta --format tsv --model"
    result = run(f"search --structure structures/two.pdb {words}", model)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t"))
    assert [row["query"] for row in rows] == ["two.pdb:A"] * 2 + ["two.pdb:B"] * 2
    assert rows[0]["query_residues"] == rows[0]["evalue"] == ""
    one = run(f"search --structure structures/two.pdb:B {words}", model)
    assert one.stdout.splitlines()[1:] == result.stdout.splitlines()[3:]
    one = run(f"search --fasta two.fasta:P2 {words}", model, "--output", "hits.tsv")
    assert (one.exit_code, one.stdout) == (0, "")
    [best, _] = csv.DictReader(Path("hits.tsv").open(), delimiter="\t")
    assert (best["query"], best["id"], best["score"]) == ("P2", "P2", "1.000000")


def test_bad_records_are_reported_and_the_rest_is_done(run: Any, model: str) -> None:
    Path("structures/rubbish.pdb").write_text("no atoms here\n")
    Path("bad.fasta").write_text(f">digits\nMK7\n>fine\n{HELIX}\n")
    result = run("index build structures bad.fasta no.cif -o index --model", model)
    assert (result.exit_code, result.stdout) == (2, "")
    rubbish, digits, missing, summary = result.stderr.splitlines()
    assert rubbish.startswith("plasma-hf: rubbish.pdb: ")
    assert digits.startswith("plasma-hf: digits: sequence has the character '7'")
    assert missing.startswith("plasma-hf: no.cif: there is no file or folder 'no.cif'")
    assert summary == "plasma-hf: 4 embedded, 0 already there, 3 left out; index holds 4"
    result = run("search --fasta bad.fasta --structures structures --format json --model", model)
    assert result.exit_code == 2
    assert [json.loads(line)["query"] for line in result.stdout.splitlines()] == ["fine"]
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["digits", "rubbish.pdb"]


def test_add_remove_and_info(run: Any, model: str, index: Path) -> None:
    Path("structures/helix.pdb").rename("helix.pdb")
    write_helix(Path("helix.pdb"), {"A": OTHER})
    result = run("index add two.fasta helix.pdb --index index --model", model)
    assert result.exit_code == 2
    conflict, summary = result.stderr.splitlines()
    assert conflict.startswith("plasma-hf: helix.pdb:A: index holds this id with other content")
    assert summary == "plasma-hf: 2 embedded, 0 already there, 1 left out; index holds 5"
    result = run("index add helix.pdb two.fasta --index index --replace --model", model)
    assert result.exit_code == 0
    assert result.stderr == (
        "plasma-hf: 1 embedded, 2 already there, 1 replaced, 0 left out; index holds 5\n"
    )
    result = run("index remove P1 P9 two.pdb:A --index index")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "plasma-hf: index holds no record 'P9'",
        "plasma-hf: 2 taken out; index holds 3",
    ]
    result = run("index info index")
    assert (result.exit_code, result.stderr) == (0, "")
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines())
    assert told["records"] == "3 (1 sequence, 2 structures)"
    assert told["model"] == Path(model).name
    assert (told["width"], told["search"]) == ("16", "exact")
    assert re.fullmatch("[0-9a-f]{16}", told["weights"])


def test_build_again_and_overwrite(run: Any, model: str, index: Path) -> None:
    result = run("index build structures -o index --model", model)
    assert result.exit_code == 0
    assert "0 embedded, 3 already there" in result.stderr
    line = "index build structures -o index --kind sequence --model"
    assert "holds an index of 3 records already" in one_line(run(line, model))
    assert run(line, model, "--overwrite").exit_code == 0
    assert Index.open("index").header.kinds == {"sequence": 3}


def test_a_foreign_index(run: Any, model: str, index: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "another_model", 1)
    for line in (
        f"search --sequence {HELIX} --index index --model",
        "index add two.fasta --index index --model",
        "index build structures -o index --model",
    ):
        message = one_line(run(line, other))
        assert f"the index index was made by {Path(model).name} (weights " in message
        assert "and this model is another_model (weights " in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("search --structures structures", "or one query of --sequence, --fasta, --structure; n"),
        ("search --sequence MK --fasta a.fasta --index i", "--sequence and --fasta is given"),
        ("search --sequence MK", "one place to search of --index, --structures, --sequences"),
        ("search --sequence MK7 --index i", "has the character '7'"),
        ("search --fasta no.fasta --index i", "there is no file 'no.fasta'"),
        ("search --structure structures/two.pdb:C --index i", "has no chain 'C'; it has: A, B"),
        ("search --structure two.fasta --index i", "two.fasta holds sequences"),
        ("search --sequence MK --index nowhere", "there is no index in 'nowhere'; build one with"),
        ("search --sequence MK --structures no", "there is no file or folder 'no'"),
        ("search --sequence MK --structures two.fasta", "two.fasta holds sequences"),
        ("index info nowhere", "there is no index in 'nowhere'"),
        ("index remove P1 --index nowhere", "there is no index in 'nowhere'"),
        ("index add two.fasta --index nowhere", "there is no index in 'nowhere'"),
    ],
)
def test_errors_in_one_line(run: Any, model: str, line: str, message: str) -> None:
    words = [] if line.startswith(("index info", "index remove")) else ["--model", model]
    result = run(line, *words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert message in result.stderr.splitlines()[0]


def test_models_that_cannot_be_used(run: Any, tmp_path: Path) -> None:
    SubstitutionConfig().save_pretrained(tmp_path / "config")
    line = f"search --sequence {HELIX} --structures structures --model"
    assert "--model no/where cannot be loaded; give a folder or a Hub" in one_line(
        run(line, "no/where")
    )
    assert "cannot be loaded" in one_line(run(line, "config"))


def test_help_names_every_field_and_its_examples_parse(run: Any) -> None:
    for name, description in FIELDS.items():
        assert name in str(search.__doc__) and description in str(search.__doc__)
    for line, verb in (
        ("search", search),
        ("index build", index_verbs.build),
        ("index add", index_verbs.add),
        ("index remove", index_verbs.remove),
        ("index info", index_verbs.info),
    ):
        text = str(verb.__doc__)
        result = run(f"{line} --help")
        assert result.exit_code == 0
        for example in re.findall(r"^  (plasma-hf .*)$", text, re.MULTILINE):
            assert example.startswith(f"plasma-hf {line} ")
            used = set(re.findall(r"--[a-z-]+", example))
            assert all(option in result.stdout for option in used)


def listed(file: str) -> str:
    """Return the chains of a structure file as a list of them."""
    chains = (
        {"id": f"list_{one.chain_ids[0]}", "seq": one.sequence}
        | {atom: one.backbone[:, i].tolist() for i, atom in enumerate(("N", "CA", "C", "O"))}
        for one in read_structures(file)
    )
    return "".join(json.dumps(chain) + "\n" for chain in chains)


def test_explained_by_a_backbone(run: Any, model: str) -> None:
    line = f"search --sequence {HELIX} --sequences two.fasta --format tsv --model"
    letters, near = (
        list(csv.DictReader(io.StringIO(run(line, model, *words).stdout), delimiter="\t"))
        for words in (["--explain"], ["--explain", "--backbone", "near"])
    )
    assert letters[0]["id"] == near[0]["id"] and letters[0]["evalue"] != near[0]["evalue"]
    refused = run(line, model, "--backbone", "near")
    assert refused.exit_code == 2 and "--backbone also with --explain" in refused.stderr


def test_every_record_of_an_index_is_explained(run: Any, model: str) -> None:
    """Chains of lists, files without an ending, in folders that are linked to."""
    helix = Path("structures/helix.pdb").read_bytes()
    Path("else").mkdir()
    Path("else/no-ending").write_bytes(helix)
    Path("else/packed").write_bytes(gzip.compress(helix))
    Path("else/chains.jsonl.gz").write_bytes(gzip.compress(listed("structures/two.pdb").encode()))
    Path("structures/linked").symlink_to("../else")
    assert run("index build structures two.fasta -o index --model", model).exit_code == 0
    line = f"search --sequence {HELIX} --index index --top-k 20 --explain --format json --model"
    [result] = [json.loads(line) for line in run(line, model).stdout.splitlines()]
    ids = {hit["id"] for hit in result["hits"]}
    assert {f"linked/chains.jsonl.gz:list_{chain}" for chain in "AB"} < ids
    assert {"linked/no-ending:A", "linked/packed:A", "helix.pdb:A", "P1"} < ids and len(ids) == 9
    assert all("error" not in hit["explain"] for hit in result["hits"])


def test_a_list_of_chains_is_a_file_like_others(run: Any, model: str) -> None:
    Path("chains.jsonl").write_text(listed("structures/two.pdb"))
    result = run(f"search --sequence {HELIX} --structures chains.jsonl -f tsv --model", model)
    assert result.exit_code == 0 and "chains.jsonl:list_A" in result.stdout, result.output
    for side in ("chains.jsonl", "chains.jsonl:list_B"):
        words = ["align", HELIX, side, "-f", "tsv"]
        result = CliRunner().invoke(main.app, words)
        found = {row.split("\t")[1] for row in result.stdout.splitlines()[1:]}
        assert "chains.jsonl:list_B" in found and len(found) == 2 - (":" in side), result.output


def test_damaged_files_do_not_end_an_index(run: Any, model: str) -> None:
    packed = gzip.compress(listed("structures/two.pdb").encode())
    Path("structures/bad.jsonl.gz").write_bytes(packed[:80] + b"\xff" * 50 + packed[130:])
    Path("structures/cut.pdb.gz").write_bytes(packed[:-50])
    Path("cut.csv.gz").write_bytes(gzip.compress(b"id,sequence\n")[:-1])
    result = run("index build cut.csv.gz structures two.fasta -o index --model", model)
    assert result.exit_code == 2
    *bad, done = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in bad] == ["cut.csv.gz", "bad.jsonl.gz", "cut.pdb.gz"]
    assert all("is not a valid gzip file" in line for line in bad)
    assert done == "plasma-hf: 5 embedded, 0 already there, 3 left out; index holds 5"


def test_a_query_with_dots_is_a_sequence(run: Any, model: str) -> None:
    said = one_line(run(f"search --sequence {'MKTAYIAKQR..' * 99} --sequences two.fasta"))
    assert "query has the character '.' at position 11," in said
