"""Multiple alignment: what is aligned, how it is written and read, and what goes wrong."""

from __future__ import annotations

import gzip
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import pipeline
from typer.testing import CliRunner

import plasma_hf
from plasma_hf import multiple
from plasma_hf.cli.main import app
from plasma_hf.models.protein import Protein
from plasma_hf.multiple import MultipleAlignment, Probabilities, align_many

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def align() -> Any:
    return pipeline("protein-alignment")


def family(members: int, residues: int = 120, changed: float = 0.4) -> tuple[list[Protein], Any]:
    """Draw descendants of a protein, and say which residue of it each residue was."""
    rng = random.Random(members)
    first = rng.choices(LETTERS, k=residues)
    proteins, origins = [], []
    for member in range(members):
        start = rng.randrange(20, residues - 20)
        gap = range(start, start + rng.randrange(8))
        kept = [place for place in range(residues) if place not in gap]
        letters = [rng.choice(LETTERS) if rng.random() < changed else first[p] for p in kept]
        more = rng.choices(LETTERS, k=rng.randrange(6))
        proteins.append(Protein(f"p{member}", "".join(more + letters)))
        origins.append(np.array([-1] * len(more) + kept))
    return proteins, origins


def right(found: MultipleAlignment, origins: Any) -> float:
    """Return the share of true pairs that stand in one column."""
    true = hits = 0
    for (a, one), (b, other) in combinations(zip(found.columns, origins, strict=True), 2):
        for place in set(one) & set(other) - {-1}:
            true += 1
            hits += a[list(one).index(place)] == b[list(other).index(place)]
    return hits / true


def test_descendants_are_aligned(align: Any) -> None:
    proteins, origins = family(6)
    found = align_many(proteins, align)
    for protein, row in zip(proteins, found.rows, strict=True):
        assert row.replace("-", "") == protein.sequence
    assert len(set(map(len, found.rows))) == 1
    assert not any(set(column) == {"-"} for column in zip(*found.rows, strict=True))
    assert right(found, origins) > 0.95
    assert align_many(proteins, align).rows == found.rows


def test_thirds_help(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proteins, origins = family(8, changed=0.7)
    with_thirds = right(align_many(proteins, align), origins)
    monkeypatch.setattr(multiple, "ROUNDS", 0)
    assert with_thirds > right(align_many(proteins, align, refined=0), origins)


def test_more_are_added_to_the_first(align: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proteins, origins = family(9)
    monkeypatch.setattr(multiple, "TOGETHER", 5)
    found = align_many(proteins, align)
    assert [one.id for one in found.proteins] == [one.id for one in proteins]
    assert right(found, origins) > 0.9


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 10**6))
def test_consistency_is_the_sum_over_thirds(sizes: list[int], seed: int) -> None:
    """A dense product, protein by protein, is the slow twin of the sparse one."""
    rng = torch.manual_seed(seed)
    starts = torch.tensor([0, *np.cumsum(sizes)])
    blocks = {}
    for i, j in combinations(range(len(sizes)), 2):
        blocks[i, j] = torch.rand(sizes[i], sizes[j], generator=rng)
        blocks[j, i] = blocks[i, j].T
    blocks |= {(i, i): torch.eye(size) for i, size in enumerate(sizes)}
    dense = torch.cat(
        [torch.cat([blocks[i, j] for j in range(len(sizes))], 1) for i in range(len(sizes))]
    )
    known = Probabilities(starts, dense.nonzero().T, dense[dense > 0])
    apart = known.owner[known.pairs[0]] != known.owner[known.pairs[1]]
    found = Probabilities(starts, known.pairs[:, apart], known.values[apart]).consistent()
    for i, j in combinations(range(len(sizes)), 2):
        wanted = sum(blocks[i, k] @ blocks[k, j] for k in range(len(sizes))) / len(sizes)
        got = torch.zeros(dense.shape)
        got[found.pairs[0], found.pairs[1]] = found.values
        got = got[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
        torch.testing.assert_close(got, wanted * (wanted > multiple.LEAST_SAID))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    proteins = tuple(Protein(name, letters) for name, letters in (("a", "MKV"), ("b c", "MGGV")))
    found = MultipleAlignment(proteins, ("MK--V", "M-GGV"))
    assert found.to_string("a3m") == ">a\nMKV\n>b_c\nM-ggV\n"
    for form in ("fasta", "a3m"):
        file = tmp_path / f"x.{form}"
        file.write_text(found.to_string(form))
        again = MultipleAlignment.read(file)
        assert again.rows == found.rows and again.proteins[1].sequence == "MGGV"
    assert found.to_string("stockholm").splitlines()[1:3] == ["a   MK--V", "b_c M-GGV"]
    assert "b_c  M-GGV" in found.to_string("clustal")
    with pytest.raises(ValueError, match="give one of fasta, a3m, stockholm, clustal"):
        found.to_string("m8")
    again = MultipleAlignment(
        tuple(Protein(n, "MKV") for n in ("a", "a_2", "a", "a")), ("MKV",) * 4
    )
    assert again.names == ["a", "a_2", "a_3", "a_4"]
    (tmp_path / "bad.fasta").write_text(">a\nMKV\n>b\nMK\n")
    with pytest.raises(ValueError, match="its rows are not of one length"):
        MultipleAlignment.read(tmp_path / "bad.fasta")


def test_what_cannot_be_aligned_is_said(align: Any) -> None:
    with pytest.raises(ValueError, match="1 proteins; an alignment needs two at least"):
        align_many([Protein("a", "MKV")], align)
    fields: dict[str, Any] = {"head": "hinge", "plm_config": plasma_hf.SubstitutionConfig()}
    plan = pipeline(
        "protein-alignment",
        model=plasma_hf.PlasmaModel(plasma_hf.PlasmaConfig(**fields)),
        processor=plasma_hf.PlasmaProcessor(),
    )
    with pytest.raises(ValueError, match='takes a model with reading="posterior"'):
        align_many([Protein("a", "MKV"), Protein("b", "MKV")], plan)


def test_alignments_are_read_as_other_files_are(tmp_path: Path) -> None:
    file = tmp_path / "packed.fa.gz"
    file.write_bytes(gzip.compress(b">a prot\xe9ine -> b\nMKTAY\n>b\nmk-\nay\n"))
    found = MultipleAlignment.read(file)
    assert ([one.id for one in found.proteins], found.rows) == (["a", "b"], ("MKTAY", "MK-AY"))
    lower = tmp_path / "lower.fa"  # columns stay: nothing is an insertion where all is lower case
    lower.write_text(">a\nmkt-ay\n>b\nmkta-y\n")
    assert MultipleAlignment.read(lower).rows == ("MKT-AY", "MKTA-Y")


def test_from_the_shell(tmp_path: Path) -> None:
    proteins, _ = family(5)
    for name, some in (("family", proteins[:4]), ("new", proteins[4:])):
        text = "".join(f">{one.id}\n{one.sequence}\n" for one in some)
        (tmp_path / f"{name}.fasta").write_text(text)
    run = CliRunner().invoke
    aligned = tmp_path / "family.a3m"
    result = run(app, ["msa", str(tmp_path / "family.fasta"), "-o", str(aligned)])
    assert result.exit_code == 0 and "4 proteins in" in result.stderr, result.output
    before = MultipleAlignment.read(aligned)
    result = run(app, ["msa", str(tmp_path / "new.fasta"), "--add", str(aligned), "-q"])
    assert result.exit_code == 0 and result.stdout.count(">") == 5
    (tmp_path / "all.fasta").write_text(result.stdout)
    after = MultipleAlignment.read(tmp_path / "all.fasta")
    stays = [n for n, c in enumerate(zip(*after.rows[:4], strict=True)) if set(c) != {"-"}]
    assert tuple("".join(row[n] for n in stays) for row in after.rows[:4]) == before.rows
    result = run(app, ["msa", str(tmp_path / "new.fasta")])
    assert result.exit_code == 2 and "give 2 at least" in result.stderr
    twice = tmp_path / "twice.fasta"
    twice.write_text((tmp_path / "new.fasta").read_text() * 2)
    text = twice.read_text()
    result = run(app, ["msa", str(twice), "-o", str(twice)])
    assert result.exit_code == 2 and "is a file that is read" in result.stderr
    assert twice.read_text() == text
    result = run(app, ["msa", str(twice), "-f", "stockholm"])
    assert result.exit_code == 0 and f"written as {proteins[4].id}_2" in result.stderr
