"""A database of proteins: what is found, what is kept, and what goes wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import pipeline
from typer.testing import CliRunner

import plasma_hf
from plasma_hf.cli.main import app
from plasma_hf.models.protein import InvalidRecord, Protein, open_text, read_records
from plasma_hf.search import ProteinDatabase
from plasma_hf.search.database import MANIFEST, SENSITIVITY, model_name, united, usual_iterations

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
USUAL = (8, 1, 5, 7, 4, 7, 2, 6, 6, 10, 2, 4, 5, 4, 5, 7, 5, 7, 1, 3)  # percent in proteins
SIDES = "demo/structures/2cga_B.pdb.gz", "demo/structures"


def drawn(residues: int, rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, USUAL, k=residues))


@pytest.fixture(scope="module")
def proteins() -> list[Protein]:
    """Families of three, each changed in four of ten places, among others that are alone."""
    rng = random.Random(0)
    found = []
    for family in range(8):
        first = drawn(rng.randint(80, 140), rng)
        for member in range(3):
            changed = "".join(
                drawn(1, rng) if rng.random() < 0.4 * bool(member) else c for c in first
            )
            found.append(Protein(f"f{family}_{member}", changed))
    return found + [Protein(f"alone{n}", drawn(rng.randint(40, 200), rng)) for n in range(40)]


@pytest.fixture(scope="module")
def align() -> Any:
    return pipeline("protein-alignment")


@pytest.fixture(scope="module")
def database(proteins: list[Protein], tmp_path_factory: pytest.TempPathFactory) -> ProteinDatabase:
    return ProteinDatabase.build(tmp_path_factory.mktemp("database") / "proteins", proteins)


def test_families_are_found(database: ProteinDatabase, proteins: Any, align: Any) -> None:
    queries = proteins[:24:3]
    for query, hits in zip(queries, database.search(queries, align, evalue=1e-4), strict=True):
        family = query.id.split("_")[0]
        assert [hit.candidate.id.split("_")[0] for hit in hits] == [family] * 3
        assert hits[0].candidate.id == query.id
        e_values = [hit["evalue"] for hit in hits]
        assert e_values == sorted(e_values) and max(e_values) < 1e-4
        assert all(hit["evalue"] == hit["p_value"] * len(database) for hit in hits)


def test_a_stage_loses_little_and_changes_nothing(
    database: ProteinDatabase, proteins: Any, align: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exhaustive search is the slow twin of one with a first stage."""
    [slow] = database.search([proteins[0]], align, evalue=30.0, sensitivity="all")
    monkeypatch.setitem(SENSITIVITY, "fast", 20)
    [fast] = database.search([proteins[0]], align, evalue=30.0, sensitivity="fast")
    by_id = {hit.candidate.id: hit for hit in slow}
    [(scores, numbers)] = database.rank(proteins[0], 20)
    assert len(numbers) == 20 < len(database) and scores == sorted(scores, reverse=True)
    assert [hit.candidate.id for hit in fast][:3] == [hit.candidate.id for hit in slow][:3]
    for hit in fast:
        assert hit["evalue"] == pytest.approx(by_id[hit.candidate.id]["evalue"], rel=1e-4)


@pytest.fixture(scope="module")
def chain() -> ProteinDatabase:
    """Proteins a to d, each changed in six of ten places from the one before, among others."""
    rng = random.Random(1)
    changed = ["".join(rng.choices(LETTERS, k=160))]
    for _ in range(3):
        changed.append(
            "".join(rng.choice(LETTERS) if rng.random() < 0.6 else c for c in changed[-1])
        )
    others = [Protein(f"x{n}", "".join(rng.choices(LETTERS, k=160))) for n in range(60)]
    return ProteinDatabase.of([*map(Protein, "abcd", changed), *others])


def test_profiles_find_relatives_of_relatives(chain: ProteinDatabase, align: Any) -> None:
    found = [
        {hit.candidate.id: (hit["iteration"], hit["evalue"]) for hit in hits}
        for iterations in (1, 2, 3, 4)
        for hits in chain.search([chain[0]], align, iterations=iterations)
    ]
    assert ["".join(each) for each in found] == ["ab", "abc", "abcd", "abcd"]  # best first
    for few, more in pairwise(found):
        assert few.items() <= more.items()  # as it was found first, so is a hit told
    assert [iteration for iteration, _ in found[-1].values()] == [1, 1, 2, 3]
    [fewer] = chain.search([chain[0]], align, evalue=found[1]["b"][1])
    assert [hit.candidate.id for hit in fewer] == ["a", "b"]
    [more] = chain.search([chain[0]], align)
    assert more[-1].to_string().count("(found by a profile)") == 1
    assert more[-1].to_string("m8", ["target", "iteration"]) == "c\t2\n"


def test_a_profile_takes_nothing_of_what_stands_beside_a_common_domain(align: Any) -> None:
    rng = random.Random(5)
    domains = ["".join(rng.choices(LETTERS, k=100)) for _ in range(40)]
    before, common, behind, other, another, *rest = domains
    query = Protein("query", before + common + behind)
    target = Protein("target", other + common + another)
    held = ProteinDatabase.of(
        [target, Protein("other", other), Protein("another", another)]
        + [Protein(f"x{n}", one) for n, one in enumerate(rest)]
    )
    [hits] = held.search([query], align)
    assert [hit.candidate.id for hit in hits] == ["target"]


def test_profiles_are_usual_where_their_chance_is_known(chain: ProteinDatabase, align: Any) -> None:
    assert usual_iterations(align) == 2
    [found] = chain.search([chain[0]], pipeline("protein-alignment", backbone="near"))
    assert {hit["iteration"] for hit in found} == {1}


@pytest.mark.parametrize("evalue", [1e-6, 10.0])
def test_segments_are_those_of_the_threshold(
    chain: ProteinDatabase, align: Any, evalue: float
) -> None:
    twice = Protein("twice", f"{chain[1].sequence}{chain[3].sequence}{chain[1].sequence}")
    held = ProteinDatabase.of([twice, *map(chain.__getitem__, range(40))])
    one, two = (
        {hit.candidate.id: hit for hit in hits}
        for iterations in (1, 2)
        for hits in held.search([chain[0]], align, evalue=evalue, iterations=iterations)
    )
    first = [name for name, hit in two.items() if hit["iteration"] == 1]
    assert "twice" in first and len(two["twice"]["segments"]) > 1
    assert all(two[name]["segments"] == one[name]["segments"] for name in first)


def test_a_copy_of_the_query_makes_no_profile(chain: ProteinDatabase, align: Any) -> None:
    held = ProteinDatabase.of(
        [chain[0], replace(chain[0], id="copy"), *map(chain.__getitem__, range(9, 30))]
    )
    profile, hits = held.profile(chain[0], align)
    assert [hit.candidate.id for hit in hits] == ["a", "copy"] and profile.embeddings is None
    [found] = held.search([chain[0]], align, evalue=30.0)
    assert len(found) > 2 and {hit["iteration"] for hit in found} == {1}
    with pytest.raises(ValueError, match="iterations=0; give 1"):
        next(held.search([chain[0]], align, iterations=0))


def test_shards_give_the_same(database: ProteinDatabase, proteins: Any, align: Any) -> None:
    """Alone a shard makes profiles of its own, so those of one search are merged."""
    given = {"evalue": 5.0, "sensitivity": "all", "iterations": 1}
    [whole] = database.search([proteins[3]], align, **given)
    parts = [ProteinDatabase.of(proteins[n::3]) for n in range(3)]
    given["database_size"] = len(database)
    merged = [
        hit for part in parts for hits in part.search([proteins[3]], align, **given) for hit in hits
    ]
    merged.sort(key=lambda hit: (hit["p_value"], -hit["score"], hit.candidate.id))
    assert [hit.candidate.id for hit in merged] == [hit.candidate.id for hit in whole]
    wanted = [hit["evalue"] for hit in whole]
    assert [hit["evalue"] for hit in merged] == pytest.approx(wanted, rel=1e-4)


def test_it_grows_and_shrinks(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("plasma_hf.search.database.PROTEINS_PER_PART", 10)
    database = ProteinDatabase.build(tmp_path, proteins[:25])
    other = ProteinDatabase.open(tmp_path)  # of another process, say
    assert len(json.loads((tmp_path / MANIFEST).read_text())["parts"]) == 3
    assert database.add(proteins[20:30]) == 5 and len(database) == 30 and len(other) == 25
    assert database.remove(["f0_0", "nothing"]) == 1
    again = ProteinDatabase.open(tmp_path)
    assert again.ids == database.ids and "f0_0" not in again.ids
    assert again.sequences == database.sequences
    assert again.add(proteins[:3]) == 1 and ProteinDatabase.open(tmp_path).ids[-1] == "f0_0"
    # What was removed stays away when its id comes back with another sequence.
    assert again.remove(["f0_0"]) == 1 and again.add([Protein("f0_0", "MKVLAA")]) == 1
    reopened = ProteinDatabase.open(tmp_path)
    assert (reopened.ids, reopened.sequences) == (again.ids, again.sequences)
    assert reopened.ids.count("f0_0") == 1 and reopened.sequences[-1] == "MKVLAA"
    assert again.residues == sum(map(len, again.sequences))


def test_a_build_that_was_stopped_goes_on(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("plasma_hf.search.database.PROTEINS_PER_PART", 10)

    def stopped() -> Any:
        yield from proteins[:35]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProteinDatabase.build(tmp_path, stopped())
    assert len(ProteinDatabase.open(tmp_path)) == 30
    assert ProteinDatabase.build(tmp_path, proteins).ids == [one.id for one in proteins]


def test_what_cannot_be_used_is_said(proteins: Any, tmp_path: Path, align: Any) -> None:
    bad: list[InvalidRecord] = []
    odd = [Protein("digit", "MK7"), Protein("lower", "mkvUOJ"), Protein("empty", "")]
    database = ProteinDatabase.build(tmp_path / "a", odd, bad.append)
    assert database.sequences == ["MKVUOJ"] and [one.id for one in bad] == ["digit", "empty"]
    assert database.add([Protein("lower", "MK"), Protein("lower", "MKVUOJ")], bad.append) == 0
    assert "stands for another sequence" in bad.pop().reason and len(bad) == 2
    in_memory = ProteinDatabase.of(odd, bad.append)
    assert in_memory.sequences == ["MKVUOJ"] and len(bad) == 4
    with pytest.raises(ValueError, match="digit has the character '7'"):
        database.add([Protein("digit", "MK7")])
    with pytest.raises(FileNotFoundError, match="is no database of proteins; make one with"):
        ProteinDatabase.open(tmp_path)
    [part] = (tmp_path / "a").glob("part-*.bin")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged or missing"):
        ProteinDatabase.open(tmp_path / "a")
    small = ProteinDatabase.of(proteins[:3])
    one, several = (list(small.search(q, align)) for q in ("MKVLAAWQ", ["MKVLAAWQ"]))
    assert one == several and len(one) == 1
    with pytest.raises(ValueError, match="give one of fast, default, more, all"):
        next(small.search(["MKV"], align, sensitivity="most"))
    plan = pipeline(
        "protein-alignment",
        model=plasma_hf.PlasmaModel(
            plasma_hf.PlasmaConfig(head="hinge", plm_config=plasma_hf.SubstitutionConfig())
        ),
        processor=plasma_hf.PlasmaProcessor(),
    )
    with pytest.raises(ValueError, match="is not calibrated; type: plasma-hf calibrate"):
        next(small.search(["MKV"], plan))


def test_vectors_find_what_letters_do_not(
    database: ProteinDatabase, proteins: Any, align: Any, monkeypatch: Any
) -> None:
    """Their cosines are those of the pooled residues, whatever they are kept with."""
    monkeypatch.setitem(SENSITIVITY, "fast", 10)
    monkeypatch.setattr("plasma_hf.search.database.VECTORS_AT_ONCE", 7)
    held = ProteinDatabase.of(proteins)
    assert held.add_vectors(align) == len(proteins)
    vectors = torch.cat([align.pool([one]) for one in proteins])
    for query in range(0, 24, 5):
        wanted = (vectors @ vectors[query]).argsort(descending=True).tolist()
        letters, (scores, numbers) = held.rank(proteins[query], 10, align)
        assert numbers[0] == query and scores == sorted(scores, reverse=True)
        assert len(set(numbers) & set(wanted[:12])) == 10  # a byte for each number rounds
        given = {"evalue": 1e9, "sensitivity": "fast", "iterations": 1}
        found = next(held.search([proteins[query]], align, **given))
        chosen = [proteins[n].id for n in united([letters[1], numbers], 10)]
        assert query in numbers and {hit.candidate.id for hit in found} <= set(chosen)
        assert len(letters) == 2 and len(database.rank(proteins[query], 10, align)) == 1


def test_vectors_stay_with_their_proteins(
    proteins: Any, tmp_path: Path, align: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("plasma_hf.search.database.PROTEINS_PER_PART", 10)
    monkeypatch.setattr("plasma_hf.search.database.EMBEDDED_TOGETHER", 4)
    database = ProteinDatabase.build(tmp_path, proteins[:25])
    pool, calls = align.pool, []

    def stopped(some: Any) -> Any:
        calls.append(len(some))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return pool(some)

    with monkeypatch.context() as patch:
        patch.setattr(align, "pool", stopped)
        with pytest.raises(KeyboardInterrupt):
            database.add_vectors(align)
    assert database.without_vectors() == 15
    # Another process goes on with what that one had begun.
    again = ProteinDatabase.open(tmp_path)
    assert again.add_vectors(align) == 25 - sum(calls[:-1]) and again.add_vectors(align) == 0
    again.remove(["f0_0", "f4_1"])
    again.add([*proteins[25:28], proteins[0]])
    assert again.without_vectors() == 4
    of_all = ProteinDatabase.of(proteins)
    of_all.add_vectors(align)
    name = model_name(align)
    for opened in (again, ProteinDatabase.open(tmp_path)):
        kept, wanted = opened.vectors(name), of_all.vectors(name)
        assert kept is not None and wanted is not None and len(kept) == len(opened)
        for protein, row in zip(opened.ids, kept.astype(int), strict=True):
            new = protein == "f0_0" or int(opened.ids.index(protein)) >= 23
            expected = wanted[[one.id for one in proteins].index(protein)] * (not new)
            assert abs(row - expected).max() <= 1  # the last bits depend on the batch
    assert again.add_vectors(align) == 4 and again.without_vectors() == 0
    [first, *_] = tmp_path.glob("*.npy")
    first.write_bytes(first.read_bytes()[:60])
    with pytest.raises(ValueError, match="is damaged; remove it, and make it again"):
        ProteinDatabase.open(tmp_path).vectors(name)


def test_without_the_first_stage(proteins: Any, align: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyopal", None)
    database = ProteinDatabase.of(proteins)
    monkeypatch.setitem(SENSITIVITY, "fast", 5)
    with pytest.raises(ImportError, match=r'pip install "plasma-hf\[search\]"'):
        next(database.search([proteins[0]], align, sensitivity="fast"))
    [hits] = database.search([proteins[0]], align, sensitivity="all", top_k=2)
    assert len(hits) == 2


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def fasta(path: Path, proteins: list[Protein]) -> Path:
    path.write_text("".join(f">{one.id}\n{one.sequence}\n" for one in proteins))
    return path


def test_from_the_shell(proteins: Any, tmp_path: Path) -> None:
    queries, file = fasta(tmp_path / "q.fasta", proteins[:9]), fasta(tmp_path / "p.fasta", proteins)
    folder = tmp_path / "database"
    result = run("database", "build", file, "--output", folder)
    assert result.exit_code == 0, result.output
    residues = sum(len(one.sequence) for one in proteins)
    assert f"{len(proteins)} proteins, {residues} residues" in result.stderr
    strict = ("--format", "m8", "--evalue", "1e-4")
    by_folder = run("search", queries, folder, *strict)
    assert by_folder.exit_code == 0, by_folder.output
    assert by_folder.stdout == run("search", queries, file, *strict).stdout
    rows = [line.split("\t") for line in by_folder.stdout.splitlines()]
    assert {row[0] for row in rows} == {one.id for one in proteins[:9]}
    assert all(row[0].split("_")[0] == row[1].split("_")[0] for row in rows)
    best = run("search", queries, folder, "--top-k", "1", "--format", "m8").stdout
    assert [line.split("\t")[:2] for line in best.splitlines()] == [
        [o.id] * 2 for o in proteins[:9]
    ]
    result = run("database", "remove", folder, "f0_1", "nothing")
    assert result.exit_code == 2 and "has no protein 'nothing'" in result.stderr
    assert f"{len(proteins) - 1} proteins" in run("database", "info", folder).stdout
    assert "\tf0_1\t" not in run("search", queries, folder, "--format", "m8").stdout


def test_vectors_from_the_shell(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(SENSITIVITY, "default", 10)
    folder, store = tmp_path / "database", tmp_path / "store"
    file = fasta(tmp_path / "p.fasta", proteins[:30])
    assert run("database", "build", "--output", folder).exit_code == 2
    assert run("database", "build", file, "--output", folder).exit_code == 0
    search = ["search", proteins[0].sequence, folder, "--backbone", "near", "--format", "m8"]
    hint = f"plasma-hf database build --output {folder} --backbone near"
    plain = run(*search)
    assert hint in plain.stderr and hint not in run(*search, "--quiet").stderr
    assert run("embed", file, "--backbone", "near", "--output", store).exit_code == 0
    build = ["database", "build", "--output", folder, "--backbone", "near"]
    result = run(*build, "--store", store)
    assert result.exit_code == 0 and "30 vectors by near" in result.stderr, result.output
    found = run(*search)
    assert hint not in found.stderr and found.stdout == plain.stdout
    run("database", "build", fasta(tmp_path / "more.fasta", proteins[30:33]), "--output", folder)
    assert "33 proteins" in (told := run("database", "info", folder).stdout)
    assert "30 of them with vectors" in told
    assert "3 vectors by near" in run(*build).stderr


def test_who_adds_knows_what_others_have_added(proteins: Any, tmp_path: Path) -> None:
    first = ProteinDatabase.build(tmp_path, proteins[:3])
    other = ProteinDatabase.open(tmp_path)
    assert (first.add(proteins[:6]), other.add(proteins[:8])) == (3, 2)
    assert ProteinDatabase.open(tmp_path).ids == other.ids == [one.id for one in proteins[:8]]
    with FileLock(tmp_path / ".adding.lock"):
        result = run("database", "build", fasta(tmp_path / "p.fasta", proteins), "-o", tmp_path)
    assert result.exit_code == 2 and "another process is adding to the database" in result.stderr


def test_hits_of_one_name_are_all_told(proteins: Any, tmp_path: Path) -> None:
    """The second by a profile of the first, whose name it has."""
    one, other = proteins[0], proteins[1]
    again = ProteinDatabase([one.id, "x", "x"], [one.sequence, other.sequence, other.sequence[:-4]])
    relatives = [Protein("x", other.sequence)]
    left = again.candidates(one, "all", pipeline("protein-alignment"), relatives)
    assert [(each.id, len(each)) for each in left] == [(one.id, len(one)), ("x", len(other) - 4)]


def test_names_of_files_need_not_be_utf_8(proteins: Any, tmp_path: Path) -> None:
    names = ["pr\udce9.pdb:A", "plain"]
    given = [replace(one, id=name) for one, name in zip(proteins[:2], names, strict=True)]
    assert ProteinDatabase.build(tmp_path / "made", given).ids == names
    assert ProteinDatabase.open(tmp_path / "made").ids == names


def test_a_stopped_search_goes_on(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    queries = fasta(tmp_path / "q.fasta", proteins[:6])
    words = ["search", queries, fasta(tmp_path / "p.fasta", proteins), "--output"]
    assert run(*words, tmp_path / "whole.a3m").exit_code == 0
    search, done = ProteinDatabase.search, []

    def stopped(self: Any, queries: Any, *given: Any, **named: Any) -> Any:
        done.append(1)
        if len(done) > 3:
            raise KeyboardInterrupt
        return search(self, queries, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ProteinDatabase, "search", stopped)
        assert run(*words, tmp_path / "part.a3m").exit_code != 0
    result = run(*words, tmp_path / "part.a3m", "--resume")
    assert "3 of 6 queries are in" in result.stderr
    assert (tmp_path / "part.a3m").read_text() == (tmp_path / "whole.a3m").read_text()


def test_a_reader_is_told_of_a_query_without_hits(proteins: Any, tmp_path: Path) -> None:
    file = fasta(tmp_path / "p.fasta", proteins[:9])
    told = "query: no significant hit among 9 proteins"
    assert told in run("search", "MKVLAAGH", file).stderr
    assert told not in run("search", "MKVLAAGH", file, "-q").stderr
    assert run("search", "MKVLAAGH", file, "-f", "m8").output == ""


def test_structures_keep_their_numbers(tmp_path: Path) -> None:
    result = run("search", *SIDES, "--format", "tsv")
    assert result.exit_code == 0, result.output
    assert "\tB:16-B:245\tE:16-E:245" in result.stdout
    with open_text("demo/structures/1ppe_E.pdb.gz") as lines:  # what `align` reads is searched
        some = [line for line in lines if line[12:16].strip() in ("N", "CA", "C")]
    (tmp_path / "without_oxygen.pdb").write_text("".join(some))
    result = run("search", "demo/serine_proteases.fasta:P00766", tmp_path, "-f", "m8")
    assert result.exit_code == 0 and "without_oxygen.pdb:E\t" in result.stdout, result.output


def test_a_build_of_what_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    result = run("database", "build", tmp_path / "no.fasta", "--output", tmp_path / "made")
    assert result.exit_code == 2 and "no.fasta; check the path" in result.stderr
    assert not (tmp_path / "made").exists()


def test_one_line_for_each_mistake(proteins: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.fasta"
    empty.write_text("")
    file = fasta(tmp_path / "p.fasta", proteins[:3])
    for words, said in (
        ([], "give QUERIES and DATABASE"),
        (["MKVLAA"], "give QUERIES and DATABASE"),
        (["MKVLAA", file, "--resume"], "give it as --output"),
        ([file, file, "--output", file], "is a file that is read"),
        ([tmp_path, file], "there is no structure file below"),
        ([file, file, "--output", "p.csv"], "p.csv is of no known format"),
        ([file, file, "--output", tmp_path / "no/p.m8"], "cannot be written"),
        ([file, file, "--output", tmp_path], "is a folder"),
        (["MKVLAA", file, "--index", "x"], "give QUERIES and DATABASE"),
        (["MKVLAA", file, "--explain"], "give QUERIES and DATABASE"),
        ([tmp_path / "no.fasta", file], "there is no file"),
        (["MKVLAA", tmp_path / "no.fasta"], "no.fasta"),
        (["MKVLAA", empty], "empty.fasta"),
        (["--sequence", "MKV", "--sequences", file, "-f", "m8"], "vectors have no m8"),
        (["--sequence", "MKV", "--sequences", file, "--resume"], "go with QUERIES and DATABASE"),
        (["--sequence", "MKV", "--sequences", file, "--iterations", "1"], "go with QUERIES"),
    ):
        result = run("search", *words)
        assert result.exit_code == 2 and result.stdout == "", words
        assert said in result.stderr, (words, result.stderr)


def test_structures_of_one_name_stay_themselves() -> None:
    first, second = (
        read_records(f"demo/structures/{name}.pdb.gz")[0] for name in ("2cga_B", "1ppe_E")
    )
    second = replace(second, id=first.id)
    database = ProteinDatabase.of([Protein("a", "MKV"), first, second, Protein(first.id, "MKVLA")])
    sequences = [database[number].sequence for number in range(4)]
    assert sequences == ["MKV", first.sequence, second.sequence, "MKVLA"]
    assert database.remove(["a"]) == 1 and database[1].structure is second.structure


def test_two_ranks_give_the_same(proteins: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("plasma_hf.search.database.PROTEINS_PER_PART", 25)
    queries = fasta(tmp_path / "q.fasta", proteins[:24:5])
    folder = ProteinDatabase.build(tmp_path / "database", proteins).folder
    words = ["search", queries, folder, "--evalue", "5", "--sensitivity", "fast", "--output"]
    monkeypatch.setitem(SENSITIVITY, "fast", 10)
    assert run(*words, tmp_path / "plain.m8").exit_code == 0
    plain = (tmp_path / "plain.m8").read_text()
    assert len(plain.splitlines()) > 15

    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = "from plasma_hf.search.database import SENSITIVITY; SENSITIVITY['fast'] = 10; "
    job = tmp_path / "job.py"
    job.write_text(script + "from plasma_hf.cli.main import app; app()")
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*ranks, job, *words, tmp_path / "ranks.m8"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ranks.m8").read_text() == plain


def test_what_a_store_has_is_not_embedded_again(
    proteins: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    file, store = fasta(tmp_path / "p.fasta", proteins), tmp_path / "store"
    words = ["search", fasta(tmp_path / "q.fasta", proteins[:3]), file, "--format", "m8"]
    plain = run(*words)
    assert run("embed", file, "--output", store).exit_code == 0
    embedded: list[Any] = []
    monkeypatch.setattr(
        "plasma_hf.models.modeling_backbone.Backbone.embed",
        lambda self, some: embedded.extend(some),
    )
    stored = run(*words, "--store", store)
    assert stored.exit_code == 0 and stored.stdout == plain.stdout and not embedded
