"""The command line as its users meet it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from datasets import Dataset
from transformers import pipeline
from typer.testing import CliRunner

from plasma_hf import PlasmaConfig, PlasmaModel, PlasmaProcessor, SubstitutionConfig, __version__
from plasma_hf.cli.align import FIELDS, AlignmentFormat
from plasma_hf.cli.common import Output, OutputFormat, compilation_announced
from plasma_hf.cli.main import app
from plasma_hf.io.formats import HIT_FORMATS
from plasma_hf.models.alignment_result import FORMATS, LEGEND, TSV
from tests.helpers.tiny_backbones import FAMILIES

ROOT = Path(__file__).parents[1]
LONG, PART = "MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS"
FASTA = f">one first\n{LONG[:10]}\n{LONG[10:]}\n>two\nGGGPGGGPGGGP\n"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
VERBS = ("align", "calibrate", "embed", "search", "index build", "train plasma", "train protalign")
BAD = f">fine\n{PART}\n>empty\n>digits\nMK7LA\n"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    backbone = SubstitutionConfig()
    PlasmaModel(PlasmaConfig(head="hinge", kernel_scale=0.2, plm_config=backbone)).save_pretrained(
        folder
    )
    PlasmaProcessor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def align(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `plasma-hf align` in an empty folder with two FASTA files."""
    monkeypatch.chdir(tmp_path)
    Path("two.fasta").write_text(FASTA)
    Path("bad.fasta").write_text(BAD)
    Path("same.fasta").write_text(f">P\n{LONG}\n>P\n{PART}\n")

    def run(*words: str, stdin: str | bytes | None = None, model: str = checkpoint) -> Any:
        return CliRunner().invoke(app, ["align", *words, "--model", model], input=stdin)

    return run


def rows(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def choices(annotated: Any) -> list[str]:
    """Return the values that an option takes, given its type."""
    while (inner := get_args(annotated)) and not all(isinstance(one, str) for one in inner):
        annotated = inner[0]
    return list(inner)


def one_line(result: Any) -> str:
    """Check that a run failed as it should; return what it says."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("plasma-hf: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_two_sequences_as_text(align: Any) -> None:
    result = align(LONG, PART)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith(LEGEND)
    assert "segment 1  query 4-20  candidate 1-17" in result.stdout
    assert f"query      4 {LONG[3:20]} 20\n" in result.stdout


def test_every_record_with_every_record(align: Any) -> None:
    names = [("one", "one"), ("one", "two"), ("two", "one"), ("two", "two")]
    table = rows(align("two.fasta", "two.fasta", "--format", "tsv").stdout)
    assert list(dict.fromkeys((row["query"], row["candidate"]) for row in table)) == names
    assert all(list(row) == list(FIELDS)[:-2] for row in table)
    [row] = [row for row in table if (row["query"], row["candidate"]) == ("one", "one")]
    assert (row["query_start"], row["query_end"], row["identity"]) == ("1", "22", "1.0000")
    [row] = [row for row in table if (row["query"], row["candidate"]) == ("one", "two")]
    assert (row["segment"], row["identity"]) == ("", "")
    results = objects(align("two.fasta", "two.fasta", "--format", "json").stdout)
    assert [(r["query"], r["candidate"]) for r in results] == names
    text = align("two.fasta", "two.fasta").stdout
    assert text.count(LEGEND) == 1
    assert text.count("\nscore ") == 4


def test_json_is_the_result_of_the_pipeline(align: Any, checkpoint: str) -> None:
    from transformers import pipeline

    [read] = objects(align(LONG, PART, "--format", "json").stdout)
    want = pipeline("protein-alignment", model=checkpoint)((LONG, PART))
    unknown = {"bits": None, "p_value": None, "evalue": None}  # of a head that reads plans
    want["segments"] = [segment | unknown for segment in want["segments"]]
    assert {name: read[name] for name in [*want, *unknown]} == want | unknown
    assert (read["query_length"], read["candidate_length"]) == (22, 17)


def test_batch_size_changes_nothing(align: Any) -> None:
    one, many = (
        objects(align("two.fasta", "two.fasta", "-f", "json", "--batch-size", size).stdout)
        for size in ("1", "8")
    )
    for left, right in zip(one, many, strict=True):
        assert left["score"] == pytest.approx(right["score"], abs=1e-5)


@pytest.mark.parametrize(
    ("stdin", "names"),
    [
        (FASTA, ["one", "two"]),
        (f"\n{LONG}\n\n{PART}\n", ["line2", "line4"]),
        (f">\r\n{LONG}\r\n>b c\r\n{PART}\r\n", ["line1", "b"]),
        (gzip.compress(FASTA.encode()), ["one", "two"]),
        (f"\ufeff;note\n{FASTA.replace('first', chr(12) + chr(0x2028))}", ["one", "two"]),
        (f";note\r{LONG}\r{PART}", ["line2", "line3"]),
    ],
    ids=["fasta", "bare", "windows", "gzip", "comments", "bare CR"],
)
def test_standard_input(align: Any, stdin: str | bytes, names: list[str]) -> None:
    queries = objects(align("-", PART, "-f", "json", stdin=stdin).stdout)
    assert [r["query"] for r in queries] == names
    candidates = objects(align(PART, "-", "-f", "json", stdin=stdin).stdout)
    assert [r["candidate"] for r in candidates] == names
    assert queries[0]["query_length"] == len(LONG)


def test_a_structure_from_standard_input(align: Any) -> None:
    data = (ROOT / "demo/structures/9pti_A.pdb.gz").read_bytes()
    [result] = objects(align("-", PART, "-f", "json", stdin=data).stdout)
    assert result["query"] == "stdin:A"
    said = one_line(align("-", PART, stdin=data[:-9]))
    assert said.startswith("plasma-hf: standard input is not a valid gzip file: ")


def test_nucleotides_are_noticed(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plasma_hf.models.protein._nucleotides_named", [])
    result = align("ACGT" * 10, PART, "-f", "tsv")
    assert (result.exit_code, len(rows(result.stdout))) == (0, 1)
    said = "plasma-hf: query looks like DNA or RNA; it is read as a protein (said once)\n"
    assert result.stderr == said


def test_a_name_that_is_no_utf_8_is_written_as_it_is(align: Any) -> None:
    name = os.fsdecode(b"caf\xe9.pdb.gz")
    try:
        shutil.copy(ROOT / "demo/structures/9pti_A.pdb.gz", name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert align(name, PART, "-f", "tsv", "--output", "out.tsv").exit_code == 0
    assert Path("out.tsv").read_bytes().splitlines()[1].startswith(b"caf\xe9.pdb.gz:A\t")
    result = align(name, PART, "-f", "tsv")
    assert (result.exit_code, result.stdout_bytes.splitlines()[1][:5]) == (0, b"caf\xe9.")
    said = one_line(align(f"{name}:B", PART))
    assert "has no chain 'B'" in said


def test_named_record_and_gzip(align: Any) -> None:
    [result] = objects(align("two.fasta:two", PART, "-f", "json").stdout)
    assert result["query"] == "two"
    with gzip.open("two.fa.gz", "wt") as file:
        file.write(FASTA)
    assert len(objects(align("two.fa.gz", PART, "-f", "json").stdout)) == 2


def test_output_goes_to_a_file(align: Any) -> None:
    result = align(LONG, PART, "-f", "tsv", "--output", "out.tsv")
    assert (result.exit_code, result.output) == (0, "")
    assert len(rows(Path("out.tsv").read_text())) == 1


def test_bad_records_are_reported_and_the_rest_is_done(align: Any) -> None:
    result = align("bad.fasta", "bad.fasta", "-f", "tsv")
    assert result.exit_code == 2
    assert [(row["query"], row["candidate"]) for row in rows(result.stdout)] == [("fine", "fine")]
    empty, digits = result.stderr.splitlines()
    assert empty.startswith("plasma-hf: bad.fasta: record 'empty' is empty")
    assert digits.startswith("plasma-hf: bad.fasta: record 'digits' has the character '7' at posi")


def test_tables_and_folders_of_structures(align: Any) -> None:
    Path("t.csv").write_text("id,sequence\na,AYIAKQRQLSFVKSHFS\nb,AY7\n")
    result = align("t.csv", "two.fasta", "--format", "tsv")
    assert {row["query"] for row in rows(result.stdout)} == {"a"}
    assert result.exit_code == 2 and result.stderr.startswith("plasma-hf: b: sequence has")
    folder = Path(__file__).parents[1] / "demo" / "structures"
    result = align("t.csv", str(folder), "--format", "tsv")
    assert len({row["candidate"] for row in rows(result.stdout)}) == 8
    Path("words.fasta").write_text(f">one id and sequence\n{PART}\n")
    assert align("words.fasta", "two.fasta", "--format", "tsv").exit_code == 0
    Dataset.from_dict({"id": ["a"], "sequence": [PART]}).save_to_disk("saved")
    assert align("saved", "two.fasta", "--format", "tsv").stdout.splitlines()[1].startswith("a\t")
    # What a file is, its content tells: a table of any name, or from standard input.
    Path("table").write_text("id\tsequence\na\tAYIAKQRQLSFVKSHFS\n")
    lines = '{"id": "a", "sequence": "AYIAKQRQLSFVKSHFS"}\n'
    for given, stdin in (("table", None), ("-", Path("table").read_text()), ("-", lines)):
        result = align(given, "two.fasta", "--format", "tsv", stdin=stdin)
        assert result.exit_code == 0 and {row["query"] for row in rows(result.stdout)} == {"a"}


def test_a_sequence_that_may_have_been_a_file_is_told(align: Any) -> None:
    Path("hba.fasta").write_text(FASTA)
    result = align("hba", "two.fasta", "--format", "tsv")
    assert result.exit_code == 0
    assert "hba is taken as a sequence of 3 residues; hba.fasta is a file" in result.stderr


def test_nothing_usable(align: Any) -> None:
    assert "query has the character '1'" in one_line(align("MKV1", PART))
    assert "candidate is empty" in one_line(align(PART, ""))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.fasta", PART], "there is no file 'no.fasta'"),
        (["two.fasta:three", PART], "two.fasta has no record 'three'; it has: one, two."),
        (["same.fasta:P", PART], "same.fasta has 2 record 'P'; it has: P, P."),
        (["notes.txt", PART], "there is no file 'notes.txt'"),
        (["-", "-"], "one of A and B can be '-'"),
        (["-", PART], "standard input is empty"),
        (["two.fasta", PART, "--plot", "plan.png"], "--plot draws one pair, and these are 2;"),
        ([LONG, PART, "--plot", "no/plan.png"], "no/plan.png"),
        ([LONG, PART, "--output", "no/out.tsv"], "no/out.tsv"),
        ([LONG, PART, "--with-query"], "--with-query goes with --superpose"),
        ([LONG, PART, "--task-head", "motif"], "--model and --task-head name two heads"),
        (["MKTAYIAKQR.." * 400, PART], "query has the character '.' at position 11,"),
        ([LONG, PART, "--device", "banana"], "--device banana is not there; "),
    ],
)
def test_what_cannot_be_used_is_one_line(align: Any, words: list[str], message: str) -> None:
    result = align(*words)
    if "no/plan.png" in words:  # the alignment itself is written before
        assert result.exit_code == 2
        assert message in result.stderr.strip().splitlines()[-1]
    else:
        assert message in one_line(result)


def test_a_file_without_ending_is_no_sequence(align: Any) -> None:
    Path("MKV").write_text(FASTA)
    found = [objects(align(a, PART, "-f", "json").stdout) for a in ("MKV", "MKV:two")]
    assert [[r["query"] for r in results] for results in found] == [["one", "two"], ["two"]]


def test_models_that_cannot_align(align: Any, tmp_path: Path) -> None:
    said = one_line(align(LONG, PART, model="no/such/folder"))
    assert "--model no/such/folder cannot be loaded; give a folder or a Hub id" in said
    PlasmaModel(PlasmaConfig(embedding_size=4, head="hinge")).save_pretrained(tmp_path / "head")
    said = one_line(align(LONG, PART, model=str(tmp_path / "head")))
    assert "is a head that takes residue embeddings" in said


def test_a_bundled_head_is_named() -> None:
    pair = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "AYIAKQRQLSFVKSHNSRQLEERAGLIE"
    words = ["align", *pair, "--task-head", "motif", "--device", "cpu", "-f", "json"]
    found = CliRunner().invoke(app, words)
    align = pipeline("protein-alignment", task_head="motif", device="cpu")
    assert objects(found.stdout)[0]["score"] == align(pair)["score"]
    refused = CliRunner().invoke(app, ["align", *pair, "--task-head", "fold"])
    assert refused.exit_code == 2
    assert "the heads that are bundled are 'active_site', " in refused.stderr


def test_a_backbone_is_named() -> None:
    run = CliRunner().invoke
    words = ["align", LONG, PART, "--backbone", "near", "--device", "cpu"]
    found = run(app, [*words, "-f", "json"])
    align = pipeline("protein-alignment", backbone="near", device="cpu")
    assert objects(found.stdout)[0]["score"] == align((LONG, PART))["score"]
    for more, message in {
        ("--task-head", "motif"): "--task-head brings its own backbone",
        ("--model", "some"): "--model brings its own backbone; give --model or --backbone",
        ("--input-format", "upstream"): "input_format='upstream' for near; accepted are 'generic'",
    }.items():
        assert message in one_line(run(app, [*words, *more]))
    with pytest.raises(ValueError, match="takes the default head; give no model, no task_head"):
        pipeline("protein-alignment", backbone="near", task_head="motif")


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "xml"],
        ["--threshold", "2"],
        ["--max-gap", "-1"],
        ["--min-pairs", "0"],
        ["--batch-size", "0"],
        ["--nonsense"],
    ],
)
def test_bad_options(align: Any, words: list[str]) -> None:
    result = align(LONG, PART, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert words[0] in result.stderr


def test_options_reach_the_alignment(align: Any) -> None:
    assert objects(align(LONG, PART, "-f", "json", "--min-pairs", "18").stdout)[0]["segments"] == []
    assert objects(align(LONG, PART, "-f", "json", "--threshold", "1").stdout)[0]["segments"] == []
    names = [
        r["candidate"]
        for r in objects(align(LONG, "two.fasta", "-f", "json", "--min-score", "0.9").stdout)
    ]
    assert names == ["one"]


def test_plot(align: Any) -> None:
    pytest.importorskip("matplotlib")
    result = align(LONG, PART, "--plot", "plan.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert Path("plan.png").stat().st_size > 5000


def random_proteins(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(30, 80))) for _ in range(count)]


@pytest.fixture(scope="session")
def calibrated(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder that `plasma-hf calibrate` wrote, and what it said."""
    folder = tmp_path_factory.mktemp("calibrated")
    records = [f">p{n} f{n // 2}\n{one}\n" for n, one in enumerate(random_proteins(40, seed=1))]
    (folder / "proteins.fasta").write_text("".join(records) + ">bad f0\nMK7\n")
    words = ["calibrate", checkpoint, folder / "proteins.fasta", "--pairs", "400"]
    words += ["--output", folder / "model"]
    result = CliRunner().invoke(app, list(map(str, words)))
    # One of the records could not be used, and the rest was done.
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return str(folder / "model"), result.stderr


def test_calibrate_says_what_unrelated_proteins_reach(calibrated: tuple[str, str]) -> None:
    folder, said = calibrated
    bad, count, share, last = said.splitlines()
    assert "proteins.fasta: bad: sequence has the character '7'" in bad
    assert count == "plasma-hf: 40 proteins of 20 families"
    # A tenth of the pairs, less those that were drawn twice.
    found = re.search(
        r"p <= 0.05 in (0\.\d{3}) of (\d+) unrelated pairs with a protein held", share
    )
    assert found and float(found[1]) < 0.3 and 25 < int(found[2]) <= 40
    assert last == f"plasma-hf: {folder} holds the model"
    config = PlasmaConfig.from_pretrained(folder)
    assert (config.reading, config.threshold) == ("posterior", 0.2)
    assert (config.calibration["proteins"], config.calibration["families"]) == (36, 18)
    assert config.calibration["pairs"] == 400


def test_significance_as_text(align: Any, calibrated: tuple[str, str]) -> None:
    model, (one, other) = calibrated[0], random_proteins(2, seed=2)
    text = align(one, one[3:], model=model).stdout
    assert re.search(r"\nscore      [\d.]+  bits [\d.]+  p \de-\d\d\n|p [\d.]+e-\d\d\n", text)
    assert re.search(
        r"no significant alignment \(p [\d.]+\)", align(one, other, model=model).stdout
    )
    config = PlasmaConfig(head="hinge", reading="posterior", plm_config=SubstitutionConfig())
    PlasmaModel(config).save_pretrained("new")
    PlasmaProcessor().save_pretrained("new")
    unknown = align(one, other, model="new").stdout
    assert "\nsignificance unknown: run plasma-hf calibrate\n" in unknown


def test_candidates_are_the_database(align: Any, calibrated: tuple[str, str]) -> None:
    one, other, third = random_proteins(3, seed=3)
    Path("b.fasta").write_text(f">one\n{one}\n>other\n{other}\n>bad\n7\n>third\n{third}\n")

    def ratio(*words: str) -> float | None:
        [found, *_] = objects(align(*words, "-f", "json", model=calibrated[0]).stdout)
        for about in (found, *found["segments"]):
            expected = about["evalue"] and pytest.approx(about["evalue"])
            assert expected == (found["evalue"] and about["p_value"] * size)
        return found["evalue"] and found["evalue"] / found["p_value"]

    for size, words in (
        (3, [one, "b.fasta"]),  # those that can be used
        (1000, [one, "b.fasta", "--database-size", "1000"]),
        (1000, [one, one, "--database-size", "1000"]),
        (None, [one, one]),
        (None, ["b.fasta", one]),
    ):
        assert ratio(*words) == (size and pytest.approx(size))


def test_evalue_and_max_hits_say_what_is_shown(align: Any, calibrated: tuple[str, str]) -> None:
    one, other = random_proteins(2, seed=4)

    def count(*words: str) -> int:
        [found] = objects(align(*words, "-f", "json", model=calibrated[0]).stdout)
        return len(found["segments"])

    assert count(one, other) == 0 < count(one, other, "--evalue", "1")
    assert count(one, one, "--evalue", "0") == 0
    assert count(one, one + one) == 2 > count(one, one + one, "--max-hits", "1")
    long = one[:20] + other[:15] + one[20:]
    assert count(one, long) < count(one, long, "--max-gap", "2")


def test_families_of_tables(checkpoint: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    proteins = list(enumerate(random_proteins(24, seed=5)))
    for name, column in (("family", 12), ("id", 24), ("other", 12)):
        lines = [f"{n * column // 24},{one}" for n, one in proteins]
        Path(f"{name}.csv").write_text("\n".join([f"{name},sequence", *lines]))

    def run(name: str, *words: str) -> Any:
        words = (checkpoint, f"{name}.csv", "--pairs", "100", "--output", name, *words)
        return CliRunner().invoke(app, ["calibrate", *words])

    for name, words, families in (
        ("family", ["--plot", "p.svg"], 12),
        ("id", [], 24),
        ("other", ["--family-column", "other"], 12),
    ):
        result = run(name, *words)
        assert result.exit_code == 0, result.output
        assert f"24 proteins of {families} families\n" in result.stderr
    assert "<svg" in Path("p.svg").read_text()
    said = one_line(run("other"))
    assert "has no column 'family', only 'other', 'sequence'" in said
    assert "(--family-column in the shell)" in said
    Path("few.csv").write_text("family,sequence\n" + "a,MKVLAAGHHKL\n" * 20)
    assert "few.csv has 1 families; give 12 at least" in run("few").stderr
    assert not Path("few").exists()


def test_a_head_is_calibrated_with_its_backbone(tmp_path: Path) -> None:
    PlasmaModel(PlasmaConfig(head="hinge", embedding_size=420)).save_pretrained(tmp_path / "head")
    records = [f">p{n}\n{one}\n" for n, one in enumerate(random_proteins(15, seed=6))]
    (tmp_path / "proteins.fasta").write_text("".join(records))
    words = [tmp_path / "head", tmp_path / "proteins.fasta", "--pairs", "100"]
    words += ["--output", tmp_path / "out"]

    def run(*more: str) -> Any:
        return CliRunner().invoke(app, ["calibrate", *map(str, words), *more])

    assert "is a head that takes residue embeddings" in run().stderr
    result = run("--backbone", "substitution")
    assert result.exit_code == 0, result.output
    align = pipeline("protein-alignment", model=str(tmp_path / "out"))
    one = random_proteins(1, seed=7)[0]
    assert align((one, one))["p_value"] < 1e-4


def test_formats_are_those_of_the_library() -> None:
    assert set(choices(OutputFormat)) == set(HIT_FORMATS)
    assert choices(AlignmentFormat) == list(FORMATS)
    assert list(FIELDS) == list(TSV)


def test_a_file_is_written_as_it_ends(align: Any) -> None:
    for name, form in (("a.m8", "m8"), ("a.tsv.gz", "tsv"), ("a.sto", "stockholm"), ("a", "text")):
        screen = align("two.fasta", PART, "--format", form).stdout
        assert align("two.fasta", PART, "--output", name).stdout == ""
        read = Path(name).read_bytes()
        assert (gzip.decompress(read) if name.endswith(".gz") else read).decode() == screen != ""
        assert not Path(f"{name}.progress").exists()
    columns = align(LONG, PART, "-f", "m8", "--columns", "query,tcov,cigar,score").stdout
    assert columns.split("\t")[:3] == ["query", "1.000", "17M"]
    assert "there is no column x; give some of" in one_line(
        align(LONG, PART, "-f", "m8", "--columns", "x")
    )
    assert "text has no columns" in one_line(align(LONG, PART, "--columns", "query"))


def test_the_best_candidates_of_each_query(align: Any, calibrated: tuple[str, str]) -> None:
    one, other = random_proteins(2, seed=9)
    Path("a.fasta").write_text(f">one\n{one}\n>other\n{other}\n")
    made = [one[:20], one[:-5] + other[:9], other, one, other[5:25]]
    Path("b.fasta").write_text("".join(f">b{n}\n{sequence}\n" for n, sequence in enumerate(made)))

    def found(*words: str) -> list[tuple[str, str]]:
        text = align("a.fasta", "b.fasta", "-f", "json", *words, model=calibrated[0]).stdout
        return [(result["query"], result["candidate"]) for result in objects(text)]

    assert found("--top-k", "2") == [("one", "b3"), ("one", "b1"), ("other", "b2"), ("other", "b4")]
    assert len(found()) == len(found("--top-k", "9")) == 10
    assert sorted(found("--top-k", "9")) == found()


@pytest.mark.parametrize("name", ["hits.m8", "hits.tsv", "hits.a3m", "hits.json.gz"])
@pytest.mark.parametrize("top_k", [None, "2"])
def test_a_stopped_run_goes_on(
    align: Any, monkeypatch: pytest.MonkeyPatch, name: str, top_k: str | None
) -> None:
    records = "".join(f">p{n}\n{one}\n" for n, one in enumerate(random_proteins(6, seed=10)))
    Path("p.fasta").write_text(records + f">long\n{LONG}\n")
    words = ["p.fasta", "p.fasta", *(["--top-k", top_k] if top_k else [])]
    assert align(*words, "--output", f"whole-{name}").exit_code == 0
    written = Output.write

    def stopped(self: Output, *given: Any, **named: Any) -> None:
        written(self, *given, **named)
        if self.done >= 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", stopped)
        assert align(*words, "--output", name).exit_code != 0
    with monkeypatch.context() as patch:  # before the first result
        patch.setattr(Output, "write", lambda *_, **named: written(*_, **named) or 1 / 0)
        align(*words, "--output", f"headed-{name}")
    assert align(*words, "--output", f"headed-{name}", "--resume").exit_code == 0
    begun = Path(name).read_bytes()
    Path(name).write_bytes(begun + b"half a li")  # as a job leaves it that is killed
    assert "by another command" in one_line(align(*words, "-o", name, "--resume", "--evalue", "1"))
    result = align(*words, "--output", name, "--resume")
    assert result.exit_code == 0, result.output
    assert re.search(r"plasma-hf: 2\d of 49 pairs are in hits", result.stderr)
    names = (f"whole-{name}", name, f"headed-{name}")
    whole, again, headed = (Path(one).read_bytes() for one in names)
    if name.endswith(".gz"):
        whole, again, headed = map(gzip.decompress, (whole, again, headed))
    assert headed == again == whole != begun
    assert not Path(f"{name}.progress").exists()
    # What is done is not done again, and without --resume all is.
    before = Path(name).stat().st_mtime_ns
    result = align(*words, "--output", name, "--resume")
    # Whether it is this command's, nothing says.
    assert f"{name} is complete, or of another command" in one_line(result)
    assert Path(name).stat().st_mtime_ns == before
    assert align(*words, "--output", name).exit_code == 0
    assert "give it as --output" in one_line(align(*words, "--resume"))


@pytest.mark.slow
def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"plasma-hf {__version__}\n"


def help_examples() -> list[str]:
    lines = CliRunner().invoke(app, ["align", "--help"]).stdout.replace("\\\n", "").splitlines()
    lines = [line.strip() for line in lines if "plasma-hf align " in line and "Usage" not in line]
    return [line for line in lines if "--backbone" not in line]  # which is downloaded


@pytest.mark.parametrize("example", help_examples())
def test_examples_of_the_help_run(align: Any, example: str) -> None:
    if "--plot" in example:
        pytest.importorskip("matplotlib")
    shutil.copytree(ROOT / "demo", "demo", ignore=shutil.ignore_patterns("*.png"))
    fed, _, command = example.rpartition(" | ")
    stdin = fed.removeprefix("echo ") if fed else None
    result = align(*shlex.split(command)[2:], stdin=stdin)
    assert result.exit_code == 0, result.output
    words = shlex.split(command)
    written = [words[i + 1] for i, word in enumerate(words) if word in ("--plot", "--output")]
    assert all(Path(name).stat().st_size > 100 for name in written)


def test_help_has_examples() -> None:
    assert len(help_examples()) == 5


RUN = "import sys; sys.argv[0] = 'plasma-hf'; from plasma_hf.cli import app; app()"
"""What the installed script does."""


@pytest.mark.slow
def test_process_is_quiet_and_ends_quietly(align: Any, checkpoint: str) -> None:
    """Nothing but the result is said, and a reader that leaves early is no error to speak of."""
    Path("many.fasta").write_text("".join(f">p{n}\n{LONG}\n" for n in range(30)))
    words = ["align", "many.fasta", "many.fasta", "--model", checkpoint]
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == LEGEND
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_compiling_is_announced(
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a terminal in one line before and one after; elsewhere a log holds them."""
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with caplog.at_level("INFO", logger="plasma_hf.cli"), compilation_announced():
        for function in (lambda x: x + 1, lambda x: x + 2):
            numba.njit(function)(1)
    said = capsys.readouterr().err.splitlines() if terminal else caplog.messages
    assert len(said) == 2
    assert "compiling the kernels, once" in said[0] and "compiled the kernels in" in said[1]
    with compilation_announced():
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words", ["--help", "--version", "alig", *(f"{verb} --help" for verb in VERBS)]
)
def test_help_and_typing_errors_import_nothing_heavy(words: str) -> None:
    code = f"import atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {RUN}"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", *words.split()],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == (2 if words == "alig" else 0), done.stderr
    loaded = set(done.stderr.split())
    assert "plasma_hf.cli.main" in loaded
    assert not {"torch", "transformers", "numpy", "datasets"} & loaded


@pytest.mark.slow
def test_the_package_registers_itself_but_in_the_command_line() -> None:
    code = "import sys; sys.argv[0] = {!r}; import plasma_hf; print('torch' in sys.modules)"
    for name, eager in (("/bin/plasma-hf", "False"), ("/bin/python", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(name)],
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        )
        assert done.stdout.strip() == eager


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"}


def test_a_backbone_is_calibrated_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    folder = str(FAMILIES["esm2"](tmp_path / "tiny"))
    one = random_proteins(1, seed=8)[0]

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--device", "cpu"])

    def p_value() -> float | None:
        found = run("align", one, one, "--backbone", folder, "-f", "json").stdout
        return objects(found)[0]["p_value"]

    assert p_value() is None
    result = run("calibrate", folder, "--pairs", "200")  # by the bundled domains
    assert result.exit_code == 0, result.output
    assert "300 proteins of 120 families" in result.stderr
    assert f"holds the model, which --backbone {folder} takes" in result.stderr
    found = p_value()
    assert found is not None and found < 0.01
    assert pipeline("protein-alignment", backbone=folder)((one, one))["p_value"] == found
    # Other weights, or another format of the input, are another backbone.
    assert run("calibrate", folder, "--pairs", "200").exit_code == 0
    [kept] = (tmp_path / "cache/plasma_hf/calibrated").iterdir()
    assert kept.name.startswith("tiny-")
    FAMILIES["esm2"](tmp_path / "tiny", layers=1)
    assert p_value() is None
    said = one_line(run("calibrate", str(tmp_path / "cache"), "--pairs", "200"))
    assert "give --output, the folder of the calibrated model" in said
    said = one_line(run("calibrate", "substitution"))
    assert "substitution comes calibrated; give --output" in said
