"""Site transfer: what is found, what chance is, how it is written, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
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
from plasma_hf.cli.main import app
from plasma_hf.evaluation import transfer
from plasma_hf.models.protein import Protein, Structure, open_text, read_protein, read_records
from plasma_hf.search.sites import (
    MISSING,
    SITE_FIELDS,
    Site,
    SiteNull,
    SiteTransfer,
    place_site,
    transfer_sites,
)

CHYMOTRYPSINOGEN, TRIAD = "demo/structures/2cga_B.pdb.gz", "H57,D102,S195"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def align() -> Any:
    return pipeline("protein-alignment")


@pytest.fixture(scope="module")
def triad(align: Any) -> SiteTransfer:
    return SiteTransfer(CHYMOTRYPSINOGEN, [TRIAD], align)


def drawn(residues: int, rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=residues))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_all_placements_are_summed_up(residues: int, columns: int, seed: int) -> None:
    table = 4 * torch.randn(residues, columns, generator=torch.manual_seed(seed)).double()
    total, probability = place_site(table)
    weights, every = torch.zeros_like(table), 0.0
    for count in range(min(residues, columns) + 1):
        for some in combinations(range(residues), count):
            for places in combinations(range(columns), count):
                weight = (table[some, places].sum() + MISSING * (residues - count)).exp()
                weights[some, places] += weight
                every += float(weight)
    assert total == pytest.approx(np.log(every), abs=1e-6)
    torch.testing.assert_close(probability, weights / every, atol=1e-6, rtol=1e-6)


def test_the_triad_is_found_in_relatives_alone(triad: SiteTransfer) -> None:
    found = {}
    for place in ("demo/serine_proteases.fasta", *sorted(Path("demo/structures").glob("*.gz"))):
        for record in read_records(place):
            [hit] = next(triad([record]))
            found[record.id] = hit
    relatives = ("P00766", "P00760", "1acb_E", "1ppe_E", "2cga_B")
    for name, hit in found.items():
        if not name.startswith(relatives):
            assert hit["p_value"] > 0.01, name
            continue
        assert hit["p_value"] < 1e-7 and hit.kept == 3
        letters = [one[0] for _, one, _ in hit.correspondences] if ":" not in name else None
        assert letters in (None, ["H", "D", "S"])
        if name.startswith("1"):
            numbers = [label.rpartition(":")[2] for _, label, _ in hit.correspondences]
            assert numbers == ["H57", "D102", "S195"]
            assert hit.superpose().rmsd_all < 0.5


def test_a_site_in_proteins_that_are_alike_nowhere_else(align: Any) -> None:
    """Two stretches of a protein, further apart than they were, within another protein."""
    rng = random.Random(1)
    first = drawn(200, rng)
    other = drawn(90, rng) + first[30:51] + drawn(120, rng) + first[150:171] + drawn(60, rng)
    wanted = {40: 100, 44: 104, 160: 241}
    labels = ",".join(f"{first[place]}{place + 1}" for place in wanted)
    [found] = transfer_sites(first, [labels], [Protein("other", other)], align)
    assert found[0].selection("candidate") == "resi " + "+".join(
        str(place + 1) for place in wanted.values()
    )
    assert {i: j for i, j, _ in found[0].pairs} == wanted and found[0]["p_value"] < 1e-4
    swapped = other[200:] + other[:200]
    [found] = transfer_sites(first, [labels], [Protein("swapped", swapped)], align)
    # In another order it is out of reach, and what is there of it is said.
    assert {i: j for i, j, weight in found[0].pairs if weight > 0.9} == {40: 212, 44: 216}


def test_chance_is_what_it_is_said_to_be(triad: SiteTransfer) -> None:
    rng, usual = random.Random(3), (8, 1, 5, 7, 4, 7, 2, 6, 6, 10, 2, 4, 5, 4, 5, 7, 5, 7, 1, 3)
    proteins = [
        Protein(f"{n}", "".join(rng.choices(LETTERS, usual, k=rng.randint(60, 400))))
        for n in range(400)
    ]
    p_values = np.array([hit["p_value"] for [hit] in triad(proteins)])
    assert 0.02 < (p_values <= 0.05).mean() < 0.1 and (p_values <= 1e-3).sum() <= 3
    assert ((p_values > 0) & (p_values <= 1)).all()


def test_chance_falls_with_the_total() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 500, 300).astype(float)
    null = SiteNull.fit(rng.gumbel(3 * np.log(lengths), 2.0), lengths)
    for length in (50, 500):
        p_values = [null.p_value(total, length) for total in np.linspace(0, 60, 200)]
        assert p_values == sorted(p_values, reverse=True) and p_values[-1] < 1e-6


def test_residues_are_named_as_authors_do() -> None:
    structure = read_protein(CHYMOTRYPSINOGEN)
    for text in (TRIAD, "57;102 195", "B:57,B:H57,B:102,S195", "h57, d102, s195"):
        assert Site.parse(text, structure).places == (56, 101, 194)
    assert Site.parse("57-59", structure).places == (56, 57, 58)
    plain = Protein("a", "MKVAHL")
    assert Site.parse("K2,5", plain).places == (1, 4)
    for text, said in (
        ("B57", "residue 57 of .* is H, not B; a chain is written with a colon, B:57"),
        ("999", "has no residue 999; it has B:1 to B:245"),
        ("A:57", "has no residue A:57"),
        ("x", "'x' is no residue; give for example"),
        (" ", "names no residue"),
    ):
        with pytest.raises(ValueError, match=said):
            Site.parse(text, structure)
    two = Structure("two", "MKVMKV", torch.zeros(6, 4, 3), tuple("123123"), tuple("AAABBB"))
    with pytest.raises(ValueError, match="two has 2 residues 2: A:2, B:2"):
        Site.parse("2", Protein("two", structure=two))


def test_patterns_are_sites() -> None:
    protein = Protein("a", "MGAASGKKGTTSAC")
    assert [one.places for one in Site.of_pattern("G-x(2)-S-[AG].", protein)] == [
        (1, 4, 5),
        (8, 11, 12),
    ]
    assert Site.of_pattern("<M-G", protein)[0].places == (0, 1)
    assert Site.of_pattern("{P}-C>", protein)[0].places == (12, 13)
    assert Site.of_pattern("G-x(1,3)-S-G", protein)[0].places == (1, 4, 5)
    for pattern, said in (("G-x-W", "has no G-x-W"), ("G-(2)", "is no element"), ("x", "has no x")):
        with pytest.raises(ValueError, match=said):
            Site.of_pattern(pattern, protein)


def test_what_cannot_be_used_is_said(align: Any) -> None:
    query = Protein("a", "MKVAHL" * 20)
    with pytest.raises(ValueError, match="has 60 residues; give 1 to 50, or align"):
        SiteTransfer(query, ["1-60"], align)
    with pytest.raises(ValueError, match="has no letters"):
        SiteTransfer(torch.randn(9, 420), ["1"], align)
    [[hit]] = SiteTransfer(query, ["1-5"], align)([Protein("short", "MKV")])
    assert hit["p_value"] == 1.0 and not hit.pairs
    fields: dict[str, Any] = {"head": "hinge", "plm_config": plasma_hf.SubstitutionConfig()}
    plan = pipeline(
        "protein-alignment",
        model=plasma_hf.PlasmaModel(plasma_hf.PlasmaConfig(**fields)),
        processor=plasma_hf.PlasmaProcessor(),
    )
    with pytest.raises(ValueError, match="calibrated model; type: plasma-hf calibrate"):
        SiteTransfer(query, ["1"], plan)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, ["site", *map(str, words)])


def test_from_the_shell(tmp_path: Path) -> None:
    given = (CHYMOTRYPSINOGEN, "--database", "demo/structures", "--residues")
    text = run(*given, TRIAD)
    assert text.exit_code == 0, text.output
    lines = text.stdout.splitlines()
    assert lines[0] == f"site {TRIAD} of 2cga_B.pdb.gz:B" and len(lines) == 4
    assert "B:H57=E:H57 1.00  B:D102=E:D102 1.00  B:S195=E:S195 1.00  kept 3/3  RMSD" in lines[1]
    file = tmp_path / "sites.tsv"
    file.write_text(f"# sites\ntriad\t{TRIAD}\nhole\t193-195\nbad\tH58\nturned\t195-193\n")
    table = run(*given, file, "--format", "tsv", "--top-k", 2, "--output", tmp_path / "hits.tsv")
    assert table.exit_code == 2 and table.stdout == ""  # and what can be used was
    assert "sites.tsv, line 4: residue 58" in table.stderr
    assert "line 5: 195-193 is turned round" in table.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "hits.tsv").read_text()), delimiter="\t"))
    assert list(rows[0]) == list(SITE_FIELDS) and len(rows) == 4
    assert {row["site"] for row in rows} == {"triad", "hole"}
    assert rows[0]["chimerax"] == "/E:57,102,195" and float(rows[0]["rmsd"]) < 0.5
    told = [json.loads(line) for line in run(*given, TRIAD, "-f", "json").stdout.splitlines()]
    assert len(told) == 3 and told[0]["segments"][0]["candidate_residues"][0] == "E:57"
    motif = run(*given[:3], "--motif", "[LIVM]-[ST]-A-[STAG]-H-C")
    assert motif.exit_code == 0 and "B:H57=E:H57" in motif.stdout
    example = run(*given[1:3], "--motif", "[LIVM]-[ST]-A-[STAG]-H-C")
    assert example.exit_code == 0 and "E:H57=B:H57" in example.stdout
    assert "1acb_E.pdb.gz:E is the example of [LIVM]" in example.stderr
    assert "give the site" in run(*given[:3]).stderr
    nothing = run(*given, TRIAD, "--evalue", "1e-30")
    assert nothing.exit_code == 0 and "no significant hit among 8 proteins" in nothing.stderr
    for words, said in (
        ([*given, "B57"], "is H, not B"),
        (given[1:3] + ("--motif", "W-W-W-W"), "no protein searched has W-W-W-W"),
        (given[1:3] + ("--residues", "H57"), "those of a QUERY"),
        ([*given, tmp_path / "no.tsv"], "there is no file"),
        ([*given, "H57;x"], "is no residue"),
        (["demo/serine_proteases.fasta", *given[1:], "57"], "holds 2 proteins; name one"),
        ([CHYMOTRYPSINOGEN, "-d", tmp_path / "no", "-r", TRIAD], "no"),
    ):
        result = run(*words)
        assert result.exit_code == 2 and said in result.stderr, words


def test_a_residue_without_ca_costs_the_rmsd_alone(tmp_path: Path) -> None:
    with open_text("demo/structures/1ppe_E.pdb.gz") as lines:
        left = [line for line in lines if line[12:16] != " CA " or line[22:26].strip() != "57"]
    (tmp_path / "a.pdb").write_text("".join(left))
    given = ("demo/structures/2cga_B.pdb.gz", "-r", TRIAD, "-d", tmp_path, "--format", "tsv")
    result = run(*given)
    [row] = csv.DictReader(io.StringIO(result.stdout), delimiter="\t")
    assert result.exit_code == 0 and row["kept"] == "3/3" and row["rmsd"] == "", result.output


def test_residues_are_counted(tmp_path: Path) -> None:
    """Families of one site each; another enzyme of the same class is no other."""
    rng = random.Random(0)
    rows = []
    for family in range(4):
        first = drawn(120, rng)
        for member in range(3):
            letters = [drawn(1, rng) if rng.random() < 0.3 * bool(member) else c for c in first]
            places = [20, 60 + family]
            for place in places:
                letters[place] = first[place]
            labels = [int(n in places) for n in range(120)]
            named = {"uid": f"f{family}_{member}", "interpro_id": f"F{family}"}
            named |= {"seq_full": "".join(letters), "label": json.dumps(labels)}
            rows.append(named | {"ec": f"1.1.{family // 3}.2"})
    sites = transfer.read_labelled_sites(rows)
    assert sites[0].places == (20, 60)
    tasks = transfer.draw_tasks(sites, relatives=2, others=20)
    assert len(tasks) == 4 and all(len(task.relatives) == 2 for task in tasks)
    for task in tasks:
        classes = {one.classes for one in task.others}
        assert task.query.classes not in classes and task.others or task.query.classes in classes
    assert len(transfer.draw_tasks(sites, families=2)) == 2
    file = tmp_path / "sites.csv"
    with file.open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = ["evaluate", "transfer", file, "--out", tmp_path / "out"]
    words += ["--baseline", "smith-waterman", "--baseline", "phmmer"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for name in ("PLASMA-PF", "smith-waterman", "phmmer"):
        assert found[name]["residues, all"] > 0.9 and found[name]["Sens@1FP"] > 0.9, name
    assert found["phmmer"]["p ≤ 0.01"] is None
    result = CliRunner().invoke(app, [*map(str, words), "--baseline", "blast"])
    assert result.exit_code == 2 and "there is no blast; give" in result.stderr
