"""`plasma-hf evaluate` as its users meet it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.cli.evaluate import evaluate
from tests.test_cli import one_line

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
HEADER = "uid,interpro_id,seq_full,seq_fragment,start,end,label,interpro_label"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(evaluate)


def rows(n_families: int = 24, members: int = 3) -> list[str]:
    """Make a table of families, each of which shares a site."""
    rng = np.random.default_rng(0)
    lines = []
    for family in range(n_families):
        site = "".join(rng.choice(list(LETTERS), 10))
        for member in range(members):
            ends = ["".join(rng.choice(list(LETTERS), 15)) for _ in range(2)]
            sequence = ends[0] + site + ends[1]
            labels = json.dumps([0] * 15 + [1] * 10 + [0] * 15)
            uid = f"P{family}{'abc'[member]}"
            lines.append(f'{uid},F{family},{sequence},{site},16,25,"{labels}",{family}')
    return lines


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `plasma-hf evaluate` in a folder with a table of sites and a reference alignment."""
    monkeypatch.chdir(tmp_path)
    Path("sites.csv").write_text("\n".join([HEADER, *rows()]) + "\n")
    record = {"a": "P1", "b": "P2", "seq_a": "MKVLAW", "seq_b": "KVLAWG", "pairs": [[1, 0], [2, 1]]}
    Path("truth.json").write_text(json.dumps([record]))
    return lambda *words: CliRunner().invoke(app, [*words, "--out", "out"])


def found() -> Any:
    return json.loads(Path("out/evaluation.json").read_text())


QUICK = ("--sites", "sites.csv", "--pairs", "40", "--pictures", "none", "--device", "cpu")


def test_the_table(run: Any) -> None:
    baselines = ["smith-waterman", "needleman-wunsch", "eba", "mean-cosine", "length"]
    options = [word for name in [*baselines, "composition"] for word in ("--baseline", name)]
    result = run(
        *QUICK, "--model", "default", "--model", "pf", "--seed", "1", "--seed", "2", *options
    )
    assert result.exit_code == 0, result.output
    rows = found()["sites"]["rows"]
    assert {row["split"] for row in rows} == {"test", "test_hard"}
    names = {(row["aligner"], row["backbone"]) for row in rows}
    assert ("default", "substitution") in names and ("pf", "substitution") in names
    assert ("smith-waterman", "-") in names and len(names) == 8
    for row in rows:
        assert (row["task"], row["seeds"]) == ("sites", [1, 2])
        assert row["pairs"]["failed"] == [0, 0]
        assert 0 <= row["figures"]["roc_auc"]["mean"] <= 1
        assert row["figures"]["roc_auc"]["standard_error"] is not None
    text = Path("out/evaluation.md").read_text()
    assert text == result.stdout
    assert "## Extrapolation" in text and "| sites | substitution | default |" in text
    pairs = Path("out/pairs.csv").read_text().splitlines()
    assert pairs[0].startswith("task,backbone,aligner,split,seed,query,candidate,label,identity")
    assert {
        line["seconds"] > 0 for line in json.loads(Path("out/timing.json").read_text())["sites"]
    }


def test_the_same_seed_gives_the_same_file(run: Any) -> None:
    texts = set()
    for _ in range(2):
        assert run(*QUICK, "--baseline", "eba", "--split", "test").exit_code == 0
        texts.add(Path("out/evaluation.json").read_text() + Path("out/pairs.csv").read_text())
    assert len(texts) == 1


@pytest.mark.slow
def test_pictures(run: Any) -> None:
    result = run(
        "--sites",
        "sites.csv",
        "--pairs",
        "40",
        "--task",
        "site",
        "--examples",
        "1",
        "--pictures",
        "svg",
        "--split",
        "test_hard",
        "--baseline",
        "smith-waterman",
    )
    assert result.exit_code == 0, result.output
    assert Path("out/site_test_hard_curves.svg").stat().st_size > 0
    names = sorted(path.name for path in Path("out/plans").iterdir())
    assert len(names) == 2
    assert names[0].endswith("default_substitution.svg")
    assert names[1].endswith("smith_waterman.svg")


def test_a_sweep(run: Any) -> None:
    sweep = (
        "--kernel-scale",
        "0.1",
        "--kernel-scale",
        "0.3",
        "--iterations",
        "5",
        "--threshold",
        "0.4",
        "--window",
        "0",
    )
    assert run(*QUICK, "--model", "pf", *sweep, "--split", "test").exit_code == 0
    names = [row["aligner"] for row in found()["sites"]["rows"]]
    assert names == [
        f"pf, kernel scale {scale}, iterations 5, threshold 0.4, window 0" for scale in (0.1, 0.3)
    ]
    scores = [row["figures"]["label_match"]["mean"] for row in found()["sites"]["rows"]]
    assert scores[0] != scores[1]


def test_a_model_for_each_seed_and_a_store(run: Any) -> None:
    from plasma_hf import load_backbone
    from plasma_hf.data import EmbeddingStore, read_site_table

    for seed in (1, 2):
        head = PlasmaConfig(embedding_size=420, head="hinge", kernel_scale=0.1 * seed)
        PlasmaModel(head).save_pretrained(f"head_{seed}")
    embedder = load_backbone("substitution")
    store = EmbeddingStore.create("store", embedder)
    proteins, _ = read_site_table("sites.csv")
    store.add([(protein.uid, protein.sequence) for protein in proteins], embedder)
    model = ("--model", "head_{seed}", "--store", "store", "--split", "test")
    result = run(*QUICK, *model, "--seed", "1", "--seed", "2")
    assert result.exit_code == 0, result.output
    [row] = found()["sites"]["rows"]
    assert (row["aligner"], row["backbone"]) == ("head_{seed}", "substitution")
    each = [run(*QUICK, "--model", f"head_{s}", *model[2:], "--seed", f"{s}") for s in (1, 2)]
    assert [result.exit_code for result in each] == [0, 0]
    [alone] = found()["sites"]["rows"]
    want = alone["figures"]["label_match"]["by_seed"][0]
    assert row["figures"]["label_match"]["by_seed"][1] == want


def test_residue_truth(run: Any) -> None:
    result = run(
        "--alignments", "truth.json", "--baseline", "needleman-wunsch", "--baseline", "length"
    )
    assert result.exit_code == 0, result.output
    assert [run["aligner"] for run in found()["residue_truth"]] == ["default", "needleman-wunsch"]
    assert "### truth, identity >= 35 % (1 pairs)" in result.stdout


def test_options_of_a_file(run: Any) -> None:
    Path("run.yaml").write_text("alignments: truth.json\nbaseline: [needleman-wunsch, length]\n")
    assert run("--config", "run.yaml").exit_code == 0
    assert [run["aligner"] for run in found()["residue_truth"]] == ["default", "needleman-wunsch"]


def test_bad_rows_and_records_are_named_and_the_rest_is_done(run: Any) -> None:
    bad = ['X1,F1,MKV,K,2,2,"[0, 1]",1', 'X2,F1,MK1,K,2,2,"[0, 1, 0]",1']
    Path("sites.csv").write_text("\n".join([HEADER, bad[0], *rows(), bad[1]]) + "\n")
    record = json.loads(Path("truth.json").read_text())[0]
    Path("truth.json").write_text(json.dumps([record, {"a": "P9"}]))
    result = run(*QUICK, "--split", "test", "--alignments", "truth.json")
    assert result.exit_code == 2
    assert "row 1 (X1)" in result.stderr and "(X2)" in result.stderr
    assert "truth.json: record 2: it lacks" in result.stderr
    assert found()["sites"]["rows"] and found()["residue_truth"]
    assert len(found()["left_out"]) == 3
    assert "## 3 rows or records left out" in result.stdout


def test_a_pair_that_fails_is_named_and_the_rest_is_done(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plasma_hf.evaluation import SmithWaterman

    align = SmithWaterman._align

    def fails(self: Any, pair: Any) -> Any:
        if "P3a" in (pair.query.uid, pair.candidate.uid) or pair.query.uid.endswith("b"):
            raise RuntimeError("out of memory")
        return align(self, pair)

    monkeypatch.setattr(SmithWaterman, "_align", fails)
    result = run(*QUICK, "--split", "test", "--baseline", "smith-waterman")
    assert result.exit_code == 2
    assert "smith-waterman: P" in result.stderr and "out of memory" in result.stderr
    default, waterman = found()["sites"]["rows"]
    assert default["pairs"]["failed"] == [0] and waterman["pairs"]["failed"][0] > 0


def test_foldseek_that_is_not_there_is_reported(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("--alignments", "truth.json", "--baseline", "foldseek", "--structures", ".")
    assert result.exit_code == 0, result.output
    assert "foldseek: not found, left out." in result.stdout
    assert found()["settings"]["not_found"] == ["foldseek"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give --sites FILE, --alignments FILE, or both"),
        (("--sites", "nothing.csv"), "nothing.csv"),
        (("--sites", "sites.csv", "--task", "a", "--task", "b"), "2 --task for 1 --sites"),
        (("--sites", "sites.csv", "--sites", "sites.csv"), "tell them apart by --task"),
        (("--alignments", "truth.json", "--model", "nowhere"), "--model nowhere cannot be loaded"),
        (("--alignments", "truth.json", "--model", "pf", "--model", "pf"), "is there twice"),
        (("--alignments", "truth.json", "--kernel-scale", "-1"), "kernel_scale=-1"),
        (("--alignments", "truth.json", "--baseline", "tm-align"), "--structures"),
        (("--alignments", "sites.csv"), "not valid JSON"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    run: Any, words: tuple[str, ...], message: str
) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in one_line(result)


def test_help_has_runnable_examples() -> None:
    lines = (evaluate.__doc__ or "").replace("\\\n", " ").splitlines()
    examples = [shlex.split(line) for line in lines if line.strip().startswith("plasma-hf")]
    assert len(examples) == 4
    assert all(example[:2] == ["plasma-hf", "evaluate"] for example in examples)
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0 and "plasma-hf evaluate --sites" in shown.stdout
