"""Searches and embeddings on a Ray cluster: the same as in one process."""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import pipeline
from typer.testing import CliRunner

from plasma_hf import load_backbone
from plasma_hf.cli.main import app
from plasma_hf.data.table import write_table
from plasma_hf.models.protein import Protein
from plasma_hf.search import ProteinDatabase, cluster
from plasma_hf.search.database import SENSITIVITY
from tests.helpers import lost_worker

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def proteins() -> list[Protein]:
    """Pairs that are alike in seven of ten places, one of each in either half."""
    rng = random.Random(0)
    first = ["".join(rng.choices(LETTERS, k=rng.randint(60, 120))) for _ in range(20)]
    other = ["".join(rng.choice(LETTERS) if rng.random() < 0.3 else c for c in s) for s in first]
    return [Protein(f"p{number}", sequence) for number, sequence in enumerate(first + other)]


@pytest.mark.enable_socket
@pytest.mark.slow
def test_shards_and_a_lost_worker_give_the_same(
    proteins: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    ray, lance = pytest.importorskip("ray"), pytest.importorskip("lance")
    monkeypatch.setattr("plasma_hf.search.database.PROTEINS_PER_PART", 15)
    monkeypatch.setitem(SENSITIVITY, "fast", 10)
    database = ProteinDatabase.build(tmp_path / "database", proteins)
    database.add_vectors(pipeline("protein-alignment"))
    queries = [*proteins[:20:5], Protein("digit", "MK7")]
    given: dict[str, Any] = {"evalue": 5.0, "sensitivity": "fast"}
    errors: dict[int, str] = {}
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests run beside
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        load = partial(lost_worker.load, tmp_path / "lost")
        told = {"on_error": errors.__setitem__}
        found = list(cluster.search(database.folder, queries, load, 2, **given, **told))
        table = tmp_path / "table.lance"
        cluster.embed_table(table, proteins, partial(load_backbone, "substitution"), workers=1)
    finally:
        ray.shutdown()
    assert (tmp_path / "lost").exists()
    wanted = list(database.search(queries[:-1], **given))
    assert [hits.to_string("m8") for hits in found[:-1]] == [one.to_string("m8") for one in wanted]
    assert sum(map(len, wanted)) > 8 and not found[-1] and list(errors) == [4]
    check(lance.dataset(str(table)).to_table(), proteins)


def check(table: Any, proteins: list[Protein]) -> None:
    """See that a table has the proteins with their embeddings."""
    backbone = load_backbone("substitution")
    rows = {row["id"]: row for row in table.to_pylist()}
    assert sorted(rows) == sorted(one.id for one in proteins)
    for protein in proteins:
        [embedded] = backbone.embed([protein.sequence])
        row = rows[protein.id]
        assert row["sequence"] == protein.sequence
        np.testing.assert_allclose(row["residues"], embedded, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(row["mean"], embedded.mean(0), rtol=1e-5, atol=1e-6)


def test_tables_are_read_by_others(proteins: Any, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    lance = pytest.importorskip("lance")
    folder = tmp_path / "database"
    ProteinDatabase.build(folder, proteins)
    for name, read in (
        ("a.parquet", parquet.read_table),
        ("a.lance", lambda path: lance.dataset(path).to_table()),
    ):
        result = CliRunner().invoke(app, ["embed", str(folder), "--output", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert f"{len(proteins)} proteins to embed" in result.stderr
        check(read(str(tmp_path / name)), proteins)
        result = CliRunner().invoke(app, ["embed", str(folder), "--output", str(tmp_path / name)])
        assert result.exit_code == 2 and "is there already" in result.stderr
    again = ["database", "build", str(tmp_path / "a.parquet"), "-o", str(tmp_path / "again")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert ProteinDatabase.open(tmp_path / "again").ids == [one.id for one in proteins]


def test_what_is_missing_is_said(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    backbone = load_backbone("substitution")
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.lance"):
        write_table(tmp_path / "a.csv", proteins, backbone)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match="pip install pylance"):
        write_table(tmp_path / "a.lance", proteins, backbone)
    monkeypatch.setitem(sys.modules, "ray", None)
    database = ProteinDatabase.build(tmp_path / "database", proteins)
    with pytest.raises(ImportError, match=r'pip install "plasma-hf\[ray\]"'):
        next(cluster.search(database.folder, proteins, lambda: None))
    result = CliRunner().invoke(app, ["embed", str(database.folder), "-o", "store", "--ray", "2"])
    assert result.exit_code == 2 and "--ray makes a table" in result.stderr
