"""Indexes: built, killed, resumed, refused, added to, taken from, searched."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from plasma_hf.data import InvalidRecord
from plasma_hf.data.shards import write_shard
from plasma_hf.models.protein import Protein, read_structures
from plasma_hf.search import (
    Index,
    IndexHeader,
    add_records,
    build_index,
    read_records,
    remove_records,
)
from plasma_hf.search import index as index_module
from plasma_hf.search.index import ModelFingerprint
from tests.helpers.index_job import (
    RECORDS_PER_SHARD,
    WIDTH,
    Composition,
    make_records,
    run,
    write_helix,
)
from tests.helpers.kill_points import Jobs, contents, jobs, kill_everywhere

FEW = [("P1", "MKVLA"), ("P2", "WWFF", "a.fasta:P2"), ("P3", "GGGA")]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    build_index(Composition(), FEW, tmp_path / "few", records_per_shard=2)
    return tmp_path / "few"


@pytest.fixture
def approximate(tmp_path: Path) -> Path:
    """A few records with a faiss index over them, which happens to be exact."""
    build_index(Composition(), FEW, tmp_path / "few", records_per_shard=2, factory="Flat")
    return tmp_path / "few"


@pytest.fixture(scope="module")
def builder() -> Iterator[Jobs]:
    with jobs("tests.helpers.index_job") as found:
        yield found


@pytest.fixture(scope="module")
def one_go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_go")
    assert run(folder).embedded == 10_000
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "there"),
    [
        # before anything of the third shard is written; before the fifth further one has its name
        (("plasma_hf.search.index:write_shard", 3), ("os:replace", 6), 7),
        # in the middle of the first shard; when all are written and the header is not
        (("os:fsync", 1), ("plasma_hf.search.index:IndexHeader.write", 1), 20),
    ],
)
def test_ten_thousand_records_killed_twice_and_resumed(
    builder: Jobs,
    one_go: Path,
    tmp_path: Path,
    first: tuple[str, int],
    second: tuple[str, int],
    there: int,
) -> None:
    folder = tmp_path / "index"
    for point in (first, second):
        builder.kill(*point, folder)
        with pytest.raises(FileNotFoundError, match="is not finished; run the command that builds"):
            Index.open(folder)
    assert len(list(folder.glob("records-*.safetensors"))) == there
    report = run(folder)
    assert report.already_there == there * RECORDS_PER_SHARD
    assert report.embedded == 10_000 - report.already_there
    assert not report.bad
    assert contents(folder) == contents(one_go)
    index = Index.open(folder, Composition())
    assert len(index) == 10_000
    assert index.ids[:2] == ["P0", "P1"]


def test_a_query_among_ten_thousand(one_go: Path) -> None:
    index, model = Index.open(one_go), Composition()
    queries = model.embed_sequences([sequence for _, sequence, _ in make_records(10_000)[::500]])
    found = index.search(queries, k=3)
    assert [hits[0]["id"] for hits in found] == [f"P{i}" for i in range(0, 10_000, 500)]
    first = found[0][0]
    assert (first["rank"], first["score"], first["row"]) == (1, 1.0, 0)
    assert (first["kind"], first["source"]) == ("sequence", "made.fasta:P0")
    vectors = np.concatenate(
        [load_file(one_go / name)["vectors"].double() for name in index.header.shards]
    )
    for query, hits in zip(queries.double().numpy(), found, strict=True):
        scores = vectors @ query
        assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores)[:-4:-1], abs=2e-6)
    assert index.search(queries[:1], 3)[0] == found[0]  # alone as among others


def test_a_build_again_does_nothing_and_other_records_are_refused(few: Path) -> None:
    model, before = Composition(), contents(few)
    report = build_index(model, FEW, few, records_per_shard=2)
    assert (report.embedded, report.already_there, model.calls) == (0, 3, 0)
    assert contents(few) == before
    for other in (FEW[:2], [*FEW, ("P4", "MK")]):
        with pytest.raises(ValueError, match="holds an index of 3 records already, and these are"):
            build_index(model, other, few, records_per_shard=2)
    assert (model.calls, contents(few)) == (0, before)
    build_index(model, FEW[:2], few, records_per_shard=2, overwrite=True)
    assert Index.open(few).ids == ["P1", "P2"]
    assert len(contents(few)) == 2  # one shard, the header


def test_bad_records_are_reported_also_by_the_one_who_resumes(tmp_path: Path) -> None:
    records = [
        *FEW,
        ("digit", "MK7"),
        ("P1", "MKVLA"),
        ("P2", "AAAA"),
        ("pyrrolysine", "MKO"),
        ("number", 3),
        ("P4", "CC"),
    ]
    told = [InvalidRecord("file.fasta", "it was wrong before")]
    for report in (
        build_index(Composition(), records, tmp_path / "index", bad=told[:]),
        build_index(Composition(), records, tmp_path / "index", bad=told[:]),
    ):
        reasons = {bad.id: bad.reason for bad in report.bad}
        assert list(reasons) == ["file.fasta", "digit", "P1", "P2", "number", "pyrrolysine"]
        assert "character '7'" in reasons["digit"]
        assert "comes again, with the same content" in reasons["P1"]
        assert "comes again, with other content" in reasons["P2"]
        assert reasons["pyrrolysine"].startswith("it cannot be embedded: pyrrolysine is too much")
    assert Index.open(tmp_path / "index").ids == ["P1", "P2", "P3", "P4"]


def test_a_foreign_index_is_refused_naming_both_models(few: Path) -> None:
    other = Composition(seed=1, name="tiny/other")
    mine, theirs = Index.open(few).header.made_by, ModelFingerprint.of(other)
    message = (
        rf"made by tiny/composition \(weights {mine.weights[:8]}, recipe raw\), and this model is "
        rf"tiny/other \(weights {theirs.weights[:8]}, recipe raw\)"
    )
    before = contents(few)
    for use in (
        lambda: Index.open(few, other),
        lambda: Index.open(few).check(other),
        lambda: add_records(few, other, [("P4", "MK")]),
        lambda: build_index(other, FEW, few),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert contents(few) == before
    recipe = Composition()
    recipe.config.plm_recipe = "spaced"
    with pytest.raises(ValueError, match="recipe spaced"):
        Index.open(few, recipe)
    Index.open(few, Composition(name="the/same/elsewhere"))


def test_add(few: Path) -> None:
    model = Composition()
    more = [FEW[0], ("P2", "AAAA"), ("P4", "MKMK"), ("P5", "MKO")]
    report = add_records(few, model, more)
    assert (report.embedded, report.already_there, report.replaced) == (1, 1, 0)
    assert [bad.id for bad in report.bad] == ["P2", "P5"]
    assert "holds this id with other content, which stays" in report.bad[0].reason
    index = Index.open(few, model)
    assert index.ids == ["P1", "P2", "P3", "P4"]
    assert index.header.kinds == {"sequence": 4}
    assert index.search(model.embed_sequences(["MKMK"]), 1)[0][0]["id"] == "P4"

    report = add_records(few, model, [("P2", "AAAA"), ("P3", "MKO")], replace_changed=True)
    assert (report.embedded, report.replaced) == (1, 1)
    assert [bad.id for bad in report.bad] == ["P3"]
    index = Index.open(few)
    kept = {record.id: record.sequence for record in map(index.read, range(len(index)))}
    assert kept == {"P1": "MKVLA", "P3": "GGGA", "P4": "MKMK", "P2": "AAAA"}


def test_remove(few: Path) -> None:
    assert remove_records(few, ["P1", "nobody", "P1"]) == ["nobody"]
    index, model = Index.open(few), Composition()
    assert index.ids == ["P2", "P3"]
    assert {h["id"] for h in index.search(model.embed_sequences(["MKVLA"]), 9)[0]} == {"P2", "P3"}
    assert remove_records(few, ["P2", "P3"]) == []
    assert list(contents(few)) == ["index.json"]
    assert Index.open(few).search(model.embed_sequences(["MKVLA"])) == [[]]
    assert add_records(few, model, FEW).embedded == 3
    with pytest.raises(FileNotFoundError, match="there is no index in 'nowhere'; build one with"):
        remove_records("nowhere", ["P1"])
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("step", ["write_shard", "_write_faiss", "IndexHeader.write", "_sweep"])
def test_stopped_at_any_step_the_index_is_the_old_or_the_new_one(
    approximate: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    model, few = Composition(), approximate

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    changes = {
        "add": lambda: add_records(few, model, [("P4", "MK"), ("P1", "AA")], replace_changed=True),
        "remove": lambda: remove_records(few, ["P1"]),
    }
    for name, change in changes.items():
        old = Index.open(few).ids
        with monkeypatch.context() as patched:
            patched.setattr(f"plasma_hf.search.index.{step}", stop)
            with pytest.raises(KeyboardInterrupt):
                change()
        now = Index.open(few)
        assert (now.ids == old) == (step != "_sweep")
        assert len(now.search(model.embed_sequences(["MK"]), 9)[0]) == len(now)
        change()
        expected = {"add": ["P2", "P3", "P4", "P1"], "remove": ["P2", "P3", "P4"]}[name]
        assert Index.open(few).ids == expected
    header = IndexHeader.read(few)
    assert set(contents(few)) == {"index.json", header.vectors, *header.shards}


def embed_peptides(folder: Path) -> None:
    sizes = {"records_per_shard": 3, "residues_per_batch": 60}
    build_index(Composition(), make_records(4), folder, factory="Flat", **sizes)


CHANGES = {
    "build": embed_peptides,
    "add": lambda folder: add_records(folder, Composition(), make_records(6)[4:]),
    "replace": lambda folder: add_records(
        folder, Composition(), [("P1", "MKVLA"), ("P3", "WWFF")], replace_changed=True
    ),
    "remove": lambda folder: remove_records(folder, ["P0", "P3"]),
}


def search_all(folder: Path) -> None:
    """Search what there is; an index may not be finished."""
    try:
        index = Index.open(folder, Composition())
    except FileNotFoundError:
        return
    [hits] = index.search(Composition().embed_sequences(["MKV"]), 100)
    assert sorted(hit["id"] for hit in hits) == sorted(index.ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_killed_at_every_file_operation(name: str, tmp_path: Path) -> None:
    base = None
    if name != "build":
        embed_peptides(base := tmp_path / "base")
    assert kill_everywhere(CHANGES[name], search_all, tmp_path, base) > 10


class Stopped(Composition):
    """Embed so many batches."""

    batches = 0

    def embed_sequences(self, sequences: list[str], batch_size: int = 32) -> torch.Tensor:
        if self.calls == self.batches:
            raise KeyboardInterrupt
        return super().embed_sequences(sequences, batch_size)


def test_a_killed_build_loses_a_shard_at_most(tmp_path: Path) -> None:
    records = [*make_records(300), ("bad", "MKO" * 15)]
    sizes = {"residues_per_batch": 150}
    build_index(Composition(), records, tmp_path / "one go", **sizes)
    for batches in (20, 50, 70):
        folder, model = tmp_path / str(batches), Stopped()
        model.batches = batches
        with pytest.raises(KeyboardInterrupt):
            build_index(model, records, folder, **sizes)
        report = build_index(Composition(), records, folder, **sizes)
        assert 0 <= model.embedded - report.already_there < index_module.RECORDS_PER_SHARD
        assert report.embedded + report.already_there == 300
        assert [bad.id for bad in report.bad] == ["bad"]
        assert contents(folder) == contents(tmp_path / "one go")


def test_a_reader_that_meets_a_change_reads_again(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, changes = IndexHeader.read, iter([["P1"], ["P2"]])

    def read_and_change(folder: Path) -> IndexHeader:
        header = read(folder)
        with monkeypatch.context() as patched:
            patched.setattr(IndexHeader, "read", read)
            for names in changes:
                remove_records(few, names)
                break
        return header

    monkeypatch.setattr(IndexHeader, "read", read_and_change)
    assert Index.open(few).ids == ["P3"]


def test_a_flipped_byte_is_named(approximate: Path) -> None:
    everything = [str(name) for name in contents(approximate)]
    assert len(everything) == 4
    for name in everything:
        whole = (approximate / name).read_bytes()
        for place in range(0, len(whole), 7):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            (approximate / name).write_bytes(changed)
            with pytest.raises(ValueError, match=f"{name} .*build the index again"):
                Index.open(approximate).search(torch.ones(1, WIDTH), 3)
        (approximate / name).write_bytes(whole)
    assert len(Index.open(approximate).search(torch.ones(1, WIDTH), 3)[0]) == 3


def test_what_is_damaged_is_built_again(approximate: Path) -> None:
    before = contents(approximate)
    for name, content in before.items():
        if name != IndexHeader.FILE:
            (approximate / name).write_bytes(content[:-1] + b"?")
    words = {"records_per_shard": 2, "factory": "Flat", "overwrite": True}
    assert build_index(Composition(), FEW, approximate, **words).embedded == 3
    assert contents(approximate) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": "../../etc/passwd"},
        {"vectors": 5},
        {"shards": {"../few/records-000000000000000000000000.safetensors": 1}},
        {"shards": {"/etc/passwd": 1}},
        {"shards": [["a", 1]]},
        {"width": -1},
        {"width": 3.5},
        {"kinds": [1]},
        {"made_by": {"model": {"a": 1}, "weights": "a", "recipe": "b"}},
        {"made_by": [1]},
        {"format": "3"},
        {"format": True},
        {"more": 1},
    ],
)
def test_headers_of_wrong_types(few: Path, changes: dict[str, Any]) -> None:
    header = json.loads((few / "index.json").read_text())
    del header["checksum"]
    (few / "index.json").write_text(json.dumps(header | changes))
    with pytest.raises(ValueError, match=r"index\.json is not a valid header .*build the index"):
        Index.open(few)


def test_crafted_files_are_one_line(few: Path) -> None:
    name = next(iter(IndexHeader.read(few).shards))
    rows = torch.frombuffer(bytearray(b"{}\n{}"), dtype=torch.uint8)
    deep = torch.frombuffer(bytearray(2 * (9_999 * b"[" + b"\n")), dtype=torch.uint8)
    vectors, about = torch.ones(2, WIDTH), json.dumps({"kinds": {}, "bad": []})
    for tensors, text in (
        ({"vectors": vectors, "about": rows}, 100_000 * "["),
        ({"vectors": vectors, "about": rows}, json.dumps({"kinds": [1], "bad": []})),
        ({"vectors": vectors, "about": rows}, json.dumps({"kinds": {}, "bad": [["1", "2", "3"]]})),
        ({"vectors": vectors, "about": rows}, about),
        ({"vectors": vectors, "about": deep}, about),
        ({"vectors": vectors}, about),
        ({"vectors": vectors.bfloat16(), "about": rows}, about),
        ({"vectors": torch.ones(2), "about": rows}, about),
        ({"vectors": torch.ones(2, WIDTH + 1), "about": rows}, about),
    ):
        write_shard(few / name, tensors, text)
        with pytest.raises(ValueError, match=f"{name} .*build the index again"):
            Index.open(few).search(torch.ones(1, WIDTH), 3)
    for text in (100_000 * "[", 100_000 * '{"a":', '{"format": %s}' % (10_000 * "9"), "", "NaN"):
        (few / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json .*build the index again"):
            Index.open(few)


@dataclass
class Searched(Dataset[str]):
    """Queries of an index, answered where they are asked for."""

    index: Index

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> str:
        query = Composition().embed_sequences(["MKVLA", "GGGA"][number : number + 1])
        return str(self.index.search(query, 1)[0][0]["id"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_searched_in_the_processes_of_a_loader(few: Path, how: str) -> None:
    searched = Searched(Index.open(few))
    assert searched[0] == "P1"  # mapped before there are other processes
    loader = DataLoader(searched, batch_size=None, num_workers=1, multiprocessing_context=how)
    assert list(loader) == ["P1", "P3"]


def test_equal_scores_keep_the_order_of_the_index(tmp_path: Path) -> None:
    records = [(f"P{i}", "MKV" if i % 3 else "WYF") for i in range(300)]
    model = Composition()
    build_index(model, records, tmp_path / "index", records_per_shard=70)
    index = Index.open(tmp_path / "index")
    [hits] = index.search(model.embed_sequences(["VKM"]), 4)
    assert [hit["id"] for hit in hits] == ["P1", "P2", "P4", "P5"]
    assert {hit["score"] for hit in hits} == {1.0}
    [hits] = index.search(model.embed_sequences(["VKM"]), 1000)
    expected = [f"P{i}" for i in range(300) if i % 3] + [f"P{i}" for i in range(0, 300, 3)]
    assert [hit["id"] for hit in hits] == expected


def test_an_approximate_index(tmp_path: Path) -> None:
    model = Composition()
    build_index(model, make_records(500), tmp_path / "index", factory="IVF4,Flat")
    index = Index.open(tmp_path / "index", model)
    assert index.header.factory == "IVF4,Flat"
    [hits] = index.search(model.embed_sequences([make_records(500)[7][1]]), 2)
    assert (hits[0]["id"], hits[0]["score"]) == ("P7", 1.0)


def test_structures_and_sequences_from_files(tmp_path: Path) -> None:
    folder = tmp_path / "structures"
    (folder / "deep").mkdir(parents=True)
    write_helix(folder / "two.pdb", {"A": "MKVLAAGMKV", "B": "GGGGSSSGGG"})
    write_helix(folder / "deep" / "one.pdb", {"A": "WWWWFFFYWW"})
    (folder / "rubbish.pdb").write_text("no atoms here\n")
    fasta = tmp_path / "some.fasta"
    fasta.write_text(">P1\nMKVLA\n>P2\nMK7\n")
    bad: list[InvalidRecord] = []
    records = list(read_records([folder, fasta, tmp_path / "no.pdb"], bad))
    assert [(r.id, r.kind) for r in records] == [
        ("deep/one.pdb:A", "structure"),
        ("two.pdb:A", "structure"),
        ("two.pdb:B", "structure"),
        ("P1", "sequence"),
    ]
    assert [record.id for record in bad] == ["rubbish.pdb", "P2", str(tmp_path / "no.pdb")]
    assert records[1].source == f"{folder / 'two.pdb'}:A"
    [as_sequence, _] = read_records([folder / "two.pdb"], bad, "sequence")
    assert (as_sequence.kind, as_sequence.sequence) == ("sequence", "MKVLAAGMKV")
    bad.clear()
    assert not list(read_records([fasta], bad, "structure"))
    assert "holds sequences" in bad[0].reason
    with pytest.raises(ValueError, match="there is no kind 'fold'; give 'sequence' or 'structure'"):
        list(read_records([fasta], bad, "fold"))

    build_index(Composition(), records, tmp_path / "index")
    index = Index.open(tmp_path / "index")
    assert index.header.kinds == {"sequence": 1, "structure": 3}
    again = index.read(1)
    assert (again.kind, again.sha) == ("structure", records[1].sha)
    assert index.read(3).sequence == "MKVLA"
    write_helix(folder / "two.pdb", {"A": "MKVLAAGMKW"})
    with pytest.raises(ValueError, match="has changed since it was indexed"):
        index.read(1)
    (folder / "two.pdb").unlink()
    with pytest.raises(FileNotFoundError):
        index.read(1)


def test_content_of_a_structure_is_its_atoms(tmp_path: Path) -> None:
    one, two = (
        read_structures(write_helix(tmp_path / f"{first}.pdb", {"A": "MKVLA"}, first))[0]
        for first in (1, 5)
    )
    structures = Protein("r", structure=one), Protein("r", structure=two)
    shas = {protein.sha for protein in (*structures, Protein("r", one.sequence))}
    assert len(shas) == 3
    assert Protein("other", structure=one).sha in shas


def test_the_folder_is_plain(few: Path) -> None:
    header = json.loads((few / "index.json").read_text())
    assert (sum(header["shards"].values()), header["width"], header["format"]) == (3, WIDTH, 3)
    assert header["made_by"]["model"] == "tiny/composition"
    [(shard, count), _] = header["shards"].items()
    assert count == 2
    tensors = load_file(few / shard)
    assert tensors["vectors"].shape == (2, WIDTH)
    rows = [json.loads(line) for line in tensors["about"].numpy().tobytes().splitlines()]
    assert [row["id"] for row in rows] == ["P1", "P2"]
    assert [row["source"] for row in rows] == ["", "a.fasta:P2"]
    suffixes = {file.suffix for file in few.iterdir()}
    assert suffixes <= {".json", ".safetensors", ".lock"}


def test_damage_and_other_formats(approximate: Path) -> None:
    few = approximate
    header = json.loads((few / "index.json").read_text())
    for name in (list(header["shards"])[1], header["vectors"]):
        whole = (few / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b""):
            (few / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name} is missing or damaged .*build the"):
                Index.open(few)
        (few / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing or damaged .*build the"):
            Index.open(few)
        (few / name).write_bytes(whole)
    [first, second] = header["shards"]
    (few / second).write_bytes((few / first).read_bytes())
    with pytest.raises(ValueError, match=f"{second} holds 2 records, not 1; build the index again"):
        Index.open(few)
    save_file({"vectors": torch.ones(1, WIDTH)}, few / second)
    with pytest.raises(ValueError, match=f"{second} is missing or damaged .no store .*build the"):
        Index.open(few)
    write_shard(few / second, {"vectors": torch.ones(1, WIDTH)}, "{}")
    with pytest.raises(ValueError, match=f"{second} is not a shard of an index .*build the index"):
        Index.open(few)
    del header["checksum"]
    (few / "index.json").write_text(json.dumps(header | {"format": 4}))
    with pytest.raises(ValueError, match="of format 4, and this plasma_hf reads 3; install a new"):
        IndexHeader.read(few)
    (few / "index.json").write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(ValueError, match="was made by an older version: build the index again"):
        IndexHeader.read(few)
    for text in ("[]", "{}", '{"format": 3, "made_by": {"model": "m"}, "width": 3}'):
        (few / "index.json").write_text(text)
        with pytest.raises(ValueError, match="is not a valid .*build the index again"):
            IndexHeader.read(few)


def test_opened_before_a_change_it_answers_as_before(few: Path) -> None:
    index, model = Index.open(few), Composition()
    [before] = index.search(model.embed_sequences(["MKVLA"]), 9)
    remove_records(few, ["P1", "P3"])
    assert index.search(model.embed_sequences(["MKVLA"]), 9) == [before]
    assert index.read(0).sequence == "MKVLA"
    assert Index.open(few).ids == ["P2"]
    assert pickle.loads(pickle.dumps(index)).ids == ["P2"]  # by its folder


def test_bad_queries(few: Path) -> None:
    index = Index.open(few)
    with pytest.raises(ValueError, match=r"shape \(1, 7\); give \(queries, 16\)"):
        index.search(torch.ones(1, 7))
    with pytest.raises(ValueError, match="0 hits are asked for"):
        index.search(torch.ones(1, WIDTH), 0)


def test_without_faiss(approximate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    other = approximate / "other"
    for use in (
        lambda: Index.open(approximate),
        lambda: build_index(Composition(), FEW, other, factory="Flat"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'plasma-hf\[search\]'"):
            use()
    build_index(Composition(), FEW, other)  # exact search has no need of it
    assert len(Index.open(other).search(torch.ones(1, WIDTH), 2)[0]) == 2


def test_one_writer_at_a_time(few: Path) -> None:
    with (
        index_module._lock(few),
        pytest.raises(ValueError, match="another process is writing the index"),
    ):
        add_records(few, Composition(), FEW)
