"""The embedding store: what it keeps, whatever interrupts it, and what it refuses."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import EmbeddingStore, PairCollator
from plasma_hf.data import store as store_module
from plasma_hf.data.shards import Shard, describe, write_shard, writer_lock
from plasma_hf.data.store import cut_batches, rank_and_world_size, sequence_hash, shard_paths
from tests.helpers.kill_points import Jobs, Killed, contents, jobs, kill_everywhere, killed_at
from tests.helpers.store_job import RESIDUES_PER_BATCH, SHARD_BYTES, TinyEsm, make_head, run

ROOT = Path(__file__).parents[1]
JOB = "tests.helpers.store_job"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


class Letters:
    """Embed a residue by the code of its letter and the length of its protein."""

    hidden_size = 3

    def __init__(self, name: str = "letters", scale: float = 1.0) -> None:
        self.fingerprint = {
            "backbone": name,
            "revision": "r1",
            "recipe": "plain",
            "weights": 64 * "a",
        }
        self.scale = scale
        self.batches: list[list[str]] = []

    def embed(self, sequences: list[str]) -> list[torch.Tensor]:
        self.batches.append(sequences)
        if any("X" in sequence for sequence in sequences):
            raise ValueError("X is not for this model")
        codes = (torch.tensor([ord(c) for c in s], dtype=torch.float32) for s in sequences)
        return [self.scale * code.unsqueeze(-1) * torch.ones(3) for code in codes]


def random_proteins(count: int, seed: int = 0, longest: int = 120) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [
        (f"P{i}", "".join(draw.choices(LETTERS, k=draw.randint(1, longest)))) for i in range(count)
    ]


def records(folder: str | Path) -> dict[str, bytes]:
    """Return every record as its bytes on disk."""
    store = EmbeddingStore.open(folder)
    return {
        f"{kind}/{key}": store.read_key(key, kind).view(torch.uint8).numpy().tobytes()
        for key in store.lengths
        for kind in store.header.kinds
    }


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture
def letters(tmp_path: Path) -> EmbeddingStore:
    store = EmbeddingStore.create(tmp_path / "store", Letters())
    store.add([("P1", "MKVLA"), ("P2", "ACD"), ("P3", "MKVLA")], Letters())
    return store


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 proteins."""
    path = tmp_path_factory.mktemp("proteins") / "300.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in random_proteins(300)))
    return path


@pytest.fixture(scope="module")
def one_go(fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of them made without interruption."""
    folder = tmp_path_factory.mktemp("one") / "store"
    assert run(fasta, folder).embedded == 300
    return folder


# What is kept


def test_found_by_id_sequence_and_key(letters: EmbeddingStore) -> None:
    want = torch.tensor([float(ord(c)) for c in "MKVLA"]).unsqueeze(-1).expand(5, 3)
    for name in ("P1", "P3"):
        assert name in letters
        assert torch.equal(letters[name], want)
        assert torch.equal(letters.read(name, "embeddings"), want)
    for sequence in ("MKVLA", "mkv la"):
        assert letters.has_sequence(sequence)
        assert torch.equal(letters.read_sequence(sequence), want)
        assert torch.equal(letters.embeddings(sequence), want)  # as exported pipelines ask
    assert torch.equal(letters.read_key(sequence_hash("MKVLA")), want)
    assert (len(letters), list(letters)) == (3, ["P1", "P2", "P3"])
    assert letters.lengths == {sequence_hash("MKVLA"): 5, sequence_hash("ACD"): 3}
    assert letters.ids["P3"] == sequence_hash("MKVLA")
    assert "P4" not in letters
    assert 7 not in letters
    assert not letters.has_sequence("MK7")


def test_an_id_is_no_sequence_and_no_key(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, Letters())
    # Ids that are peptides, that are each other's sequences, and one that is the key of another.
    taken = sequence_hash("WWY")
    rows = {"KRAS": "MKVLA", "AC": "GGG", "GGG": "AC", taken: "LLLL", "own": "WWY"}
    assert store.add(rows.items(), Letters()).bad == []

    def codes(sequence: str) -> list[float]:
        return [float(ord(letter)) for letter in sequence]

    for name, sequence in rows.items():
        assert store[name][:, 0].tolist() == codes(sequence)
        assert store.read_sequence(sequence)[:, 0].tolist() == codes(sequence)
    assert store.read_key(taken)[:, 0].tolist() == codes("WWY")
    assert not store.has_sequence("KRAS")
    for ask in (store.read_sequence, store.embeddings):
        with pytest.raises(KeyError, match="no protein with the sequence 'KRAS'"):
            ask("KRAS")
    for name in ("MKVLA", sequence_hash("MKVLA")):
        assert name not in store
        with pytest.raises(KeyError, match="no protein with the id"):
            store[name]
        with pytest.raises(KeyError, match="holds no"):
            store.remove([name])
    assert store.remove(["GGG"]) == 1
    assert store["AC"][:, 0].tolist() == codes("GGG")
    assert not store.has_sequence("AC")


def test_missing_protein_is_named(letters: EmbeddingStore) -> None:
    with pytest.raises(KeyError, match=r"no protein with the id 'P9'; add it with: plasma-hf"):
        letters["P9"]
    with pytest.raises(KeyError, match=r"no protein with the key 'P1'"):
        letters.read_key("P1")
    with pytest.raises(ValueError, match="keeps embeddings, no projections; make one"):
        letters.read("P1", "projections")


def test_a_record_read_is_a_copy(letters: EmbeddingStore) -> None:
    letters["P1"].zero_()
    assert letters["P1"].min() > 0


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_dtypes(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    store = EmbeddingStore.create(tmp_path, TinyEsm(), make_head(), dtype=dtype)
    store.add([("P1", "MKVLA")], TinyEsm(), make_head())
    with torch.no_grad():
        [want] = TinyEsm().embed(["MKVLA"])
        projected = make_head().project(want)
    store = EmbeddingStore.open(tmp_path)
    assert torch.equal(store.read("P1", "embeddings"), want.to(dtype))
    assert torch.equal(store.read("P1", "projections", torch.float32), projected.to(dtype).float())
    assert store.read("P1", "projections").shape == (5, 8)
    size = sum(path.stat().st_size for path in shard_paths(tmp_path))
    assert 5 * 40 * dtype.itemsize < size < 5 * 40 * dtype.itemsize + 1500


def test_projections_alone(tmp_path: Path) -> None:
    kinds = ["projections"]
    store = EmbeddingStore.create(tmp_path, TinyEsm(), make_head(), kinds=kinds)
    store.add([("P1", "MKVLA")], TinyEsm(), make_head())
    assert store["P1"].shape == (5, 8)
    with pytest.raises(ValueError, match="keeps projections, no embeddings"):
        store.embeddings("MKVLA")


def test_files_can_be_read_by_those_who_may_read_the_folder(letters: EmbeddingStore) -> None:
    umask = os.umask(0o022)
    try:
        letters.add([("P9", "WYW")], Letters())
    finally:
        os.umask(umask)
    path = shard_paths(letters.folder)[-1]
    assert path.stat().st_mode & 0o777 == 0o644


def test_estimate_is_the_size_on_disk(fasta: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, TinyEsm(), make_head(), dtype="bfloat16")
    job = store.prepare(fasta)
    store.run(job, TinyEsm(), make_head())
    size = sum(path.stat().st_size for path in shard_paths(tmp_path))
    assert size == pytest.approx(job.n_bytes, rel=0.02)
    assert store.prepare(fasta).n_bytes == 0


def test_a_stream_holds_everything_once(one_go: Path) -> None:
    store = EmbeddingStore.open(one_go)
    seen: list[str] = []
    for batch in store.stream(max_residues=2000):
        lengths = [store.lengths[key] for key in batch.keys]
        assert lengths == sorted(lengths, reverse=True)
        assert len(lengths) == 1 or lengths[0] * len(lengths) <= 2000
        for key in batch.keys:
            assert torch.equal(batch.read("projections", key), store.read_key(key, "projections"))
        seen += batch.keys
    assert sorted(seen) == sorted(store.lengths)


def test_pickled_by_its_folder(letters: EmbeddingStore) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(letters))["P2"], letters["P2"])


# Adding and removing


def test_what_is_there_is_not_computed_again(letters: EmbeddingStore) -> None:
    embedder = Letters()
    report = letters.add([("P1", "MKVLA"), ("P5", "ACD")], embedder)
    assert (report.embedded, report.already_there, report.bad) == (0, 2, [])
    assert embedder.batches == []
    assert "P5" in letters
    report = letters.add([("P6", "WWWW")], embedder)
    assert (report.embedded, report.already_there) == (1, 0)
    assert embedder.batches == [["WWWW"]]
    assert len(EmbeddingStore.open(letters.folder).lengths) == 3


def test_remove_and_add_again(letters: EmbeddingStore) -> None:
    assert letters.remove(["P1"]) == 0  # P3 is the same sequence
    assert "P1" not in letters
    assert "P3" in letters
    assert letters.remove(["P3"]) == 1
    assert not letters.has_sequence("MKVLA")
    assert "P2" in EmbeddingStore.open(letters.folder)
    assert letters.remove(["P2"]) == 1
    assert (len(letters), letters.lengths, shard_paths(letters.folder)) == (0, {}, [])
    assert letters.add([("P1", "MKVLA")], Letters()).embedded == 1
    assert "P1" in letters
    with pytest.raises(KeyError, match="holds no P2"):
        letters.remove(["P1", "P2"])
    assert "P1" in letters


def test_removed_records_come_back_the_same(fasta: Path, one_go: Path, tmp_path: Path) -> None:
    shutil.copytree(one_go, tmp_path / "store")
    store = EmbeddingStore.open(tmp_path / "store")
    names = [f"P{i}" for i in range(0, 300, 7)]
    assert store.remove(names) == len(names)
    assert len(store) == 300 - len(names)
    assert run(fasta, store.folder).embedded == len(names)
    assert records(store.folder) == records(one_go)


def test_one_id_for_two_sequences(letters: EmbeddingStore) -> None:
    report = letters.add([("P1", "WWW"), ("P7", "AA"), ("P7", "CC"), ("P8", "DD")], Letters())
    assert report.embedded == 2
    first, second = report.bad
    assert first.id == "P1"
    assert "one of 5 residues" in first.reason
    assert "'WWW'" in first.reason
    assert sequence_hash("MKVLA")[:12] in first.reason
    assert second.id == "P7"
    assert "'AA'" in second.reason
    assert "'CC'" in second.reason
    assert "P8" in letters
    assert not letters.has_sequence("CC")


def test_bad_records_are_named_and_the_rest_is_done(letters: EmbeddingStore) -> None:
    rows = [("B1", "AAXA"), ("B2", "AAXA"), ("B3", "A7"), ("B4", ""), ("G1", "DDDD"), ("G2", "EE")]
    report = letters.add(rows, Letters())
    assert report.embedded == 2
    reasons = {record.id: record.reason for record in report.bad}
    assert set(reasons) == {"B1", "B2", "B3", "B4"}
    assert reasons["B1"] == "X is not for this model"
    assert "character '7'" in reasons["B3"]
    assert "G1" in letters
    assert "B1" not in letters
    again = letters.add(rows, Letters())
    assert (again.embedded, again.already_there) == (0, 2)
    assert len(again.bad) == 4


def test_overflow_of_half_precision(tmp_path: Path) -> None:
    embedder = Letters(scale=900.0)  # A is 58500, Y 80100
    store = EmbeddingStore.create(tmp_path, embedder, dtype="float16")
    report = store.add([("low", "AAA"), ("high", "AYA")], embedder)
    assert report.embedded == 1
    [bad] = report.bad
    assert bad.id == "high"
    assert "reach 8.01e+04, beyond 6.55e+04, the largest float16" in bad.reason
    assert "bfloat16" in bad.reason


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (torch.full((2, 3), float("nan")), "NaN or infinite"),
        (torch.ones(3, 3), r"shape \(3, 3\), not \(2, 3\)"),
        (torch.ones(2, 4), r"shape \(2, 4\), not \(2, 3\)"),
    ],
)
def test_embedders_are_not_trusted(tmp_path: Path, result: torch.Tensor, reason: str) -> None:
    embedder = Letters()
    embedder.embed = lambda sequences: [result for _ in sequences]  # type: ignore[method-assign]
    [bad] = EmbeddingStore.create(tmp_path, embedder).add([("P", "MK")], embedder).bad
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)


def test_no_room_on_the_disk(letters: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"need 0\.\d MB and the disk .* has 0\.0 MB left"):
        letters.add([("P", "M" * 50000)], Letters())


# Whose store it is


@pytest.mark.parametrize("field", ["backbone", "revision", "recipe", "weights"])
def test_another_model_is_refused_by_name(letters: EmbeddingStore, field: str) -> None:
    other = Letters()
    other.fingerprint[field] = "other"
    message = f"holds embeddings of letters .*you asked for .*other.*they differ in {field};"
    for refuse in (
        lambda: letters.check(other.fingerprint),
        lambda: letters.add([("P9", "MK")], other),
        lambda: EmbeddingStore.create(letters.folder, other),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()
    letters.check(Letters().fingerprint)
    assert letters.fingerprint == letters.identity == Letters().fingerprint  # its name of before


def test_a_store_of_an_embedder_that_says_its_name_alone(tmp_path: Path) -> None:
    embedder = SimpleNamespace(fingerprint={"backbone": "ones"}, hidden_size=4)
    store = EmbeddingStore.create(tmp_path / "store", embedder)
    model = PlasmaModel(PlasmaConfig(embedding_size=4, head="hinge"))
    store.check_model(model)
    model.config.plm_name_or_path = "facebook/esm2_t6_8M_UR50D"
    with pytest.raises(ValueError, match="holds embeddings of ones .*takes those of facebook"):
        store.check_model(model)


def test_another_head_dtype_or_kind_is_refused(one_go: Path) -> None:
    store = EmbeddingStore.open(one_go)
    with pytest.raises(ValueError, match="holds projections by the head lrl .*differ in weights"):
        EmbeddingStore.create(one_go, TinyEsm(), make_head(seed=2))
    with pytest.raises(ValueError, match="keeps projections by the head lrl .*give that head"):
        store.add([("P", "MK")], TinyEsm())
    with pytest.raises(ValueError, match="keeps float16, you asked for float32"):
        EmbeddingStore.create(one_go, TinyEsm(), make_head(), dtype="float32")
    with pytest.raises(ValueError, match="keeps embeddings and projections, you asked for emb"):
        EmbeddingStore.create(one_go, TinyEsm(), make_head(), kinds=["embeddings"])
    assert EmbeddingStore.create(one_go, TinyEsm(), make_head()).header == store.header


def test_what_cannot_be_made(tmp_path: Path) -> None:
    def create(*words: Any, **options: Any) -> None:
        EmbeddingStore.create(tmp_path / "none", *words, **options)

    with pytest.raises(ValueError, match="dtype is int8; give one of float32, float16, bfloat16"):
        create(Letters(), dtype="int8")
    with pytest.raises(ValueError, match="kinds is .*; give one or both of embeddings, proj"):
        create(Letters(), kinds=["plans"])
    with pytest.raises(ValueError, match="projections need a head"):
        create(Letters(), kinds=["projections"])
    with pytest.raises(ValueError, match="takes residue embeddings of width 32, .* gives 3"):
        create(Letters(), make_head())


def test_identity_of_a_head() -> None:
    assert make_head().head_identity == make_head().head_identity
    assert make_head().head_identity != make_head(seed=2).head_identity
    hinge = [PlasmaConfig(embedding_size=4, head="hinge", normalize=n) for n in (True, False)]
    first, second = (PlasmaModel(config).head_identity for config in hinge)
    assert first != second
    assert describe(None) == "none"


# Files that are not what they should be


def damage(folder: Path, how: str) -> Path:
    path = shard_paths(folder)[0]
    content = path.read_bytes()
    if how == "garbage":
        path.write_bytes(b"no safetensors" * 50)
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "header":
        path.write_bytes(content[:20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    return path


@pytest.mark.parametrize("how", ["garbage", "truncated", "header", "empty", "folder"])
def test_damaged_files_are_named(letters: EmbeddingStore, how: str) -> None:
    path = damage(letters.folder, how)
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged .*delete that file"):
        EmbeddingStore.open(letters.folder)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = EmbeddingStore.open(letters.folder)
    assert "P1" not in store
    assert store.add([("P1", "MKVLA"), ("P2", "ACD")], Letters()).embedded == 2


def test_a_shard_of_another_store_is_named(letters: EmbeddingStore, tmp_path: Path) -> None:
    foreign = EmbeddingStore.create(tmp_path / "foreign", Letters("other"), dtype="float16")
    foreign.add([("P1", "MKVLA")], Letters("other"))
    path = letters.folder / "shard-00007-000000.safetensors"
    shutil.copy(shard_paths(foreign.folder)[0], path)
    with pytest.raises(
        ValueError, match=f"{path.name} is not a shard of .*of a store of other .*fl"
    ):
        EmbeddingStore.open(letters.folder)
    save_file({"embeddings/x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged .no store has writ"):
        EmbeddingStore.open(letters.folder)
    write_shard(path, {"embeddings/x": torch.ones(1, 3)}, "what is this")
    with pytest.raises(ValueError, match=f"{path.name} is not a shard of .* but of none at all"):
        EmbeddingStore.open(letters.folder)


def test_header_missing_damaged_or_newer(letters: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no embedding store in .*; build one with: plasma"):
        EmbeddingStore.open(tmp_path / "nothing")
    path = letters.folder / "store.json"
    content = json.loads(path.read_text())
    del content["checksum"]  # by which a change of one number is found out
    path.write_text(json.dumps(content | {"format": 3}))
    with pytest.raises(ValueError, match="of format 3, and this plasma_hf reads 2; install a new"):
        EmbeddingStore.open(letters.folder)
    path.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(ValueError, match=f"made by an older version: delete {letters.folder} and"):
        EmbeddingStore.open(letters.folder)
    for text in ("{", "[]", "{}", json.dumps(content | {"more": 1}), json.dumps({"format": 2})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"store\.json .*; delete it and run"):
            EmbeddingStore.open(letters.folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is not finished; run the command that builds it"):
        EmbeddingStore.open(letters.folder)
    assert len(EmbeddingStore.create(letters.folder, Letters())) == 3


# Opening and reading little


def test_reading_one_record_opens_one_file(
    one_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(one_go, tmp_path / "store")
    opened: list[str] = []

    class Spy(store_module.Shard):
        def __init__(self, path: Path, remedy: str) -> None:
            opened.append(path.name)
            super().__init__(path, remedy)

    monkeypatch.setattr(store_module, "Shard", Spy)
    store = EmbeddingStore.open(tmp_path / "store")
    paths = shard_paths(store.folder)
    assert opened == [path.name for path in paths]
    assert len(paths) > 3
    opened.clear()
    want = store["P5"]
    assert len(opened) == 1
    for path in paths:
        if path.name not in opened:
            path.unlink()
    assert torch.equal(store["P5"], want)
    assert len(opened) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are listed by Linux alone")
def test_open_files_are_bounded(one_go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_SHARDS", 2)
    store = EmbeddingStore.open(one_go)
    for name in store:
        store[name]
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if str(one_go) in line}
    assert 1 <= len(mapped) <= 2


# Stopped, shared and resumed


@pytest.fixture(scope="module")
def job() -> Iterator[Jobs]:
    with jobs("tests.helpers.store_job") as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "numbers"),
    [
        ("plasma_hf.data.store:write_shard", (2, 2, 3)),  # before anything is written
        ("os:replace", (4, 3, 3)),  # before a whole file has its name
        ("os:fsync", (8, 5, 4)),  # before a file is known to be on the disk
    ],
)
def test_killed_three_times_and_resumed(
    job: Jobs, fasta: Path, one_go: Path, tmp_path: Path, point: str, numbers: tuple[int, ...]
) -> None:
    folder = tmp_path / "store"
    counts = []
    for number in numbers:
        job.kill(point, number, fasta, folder)
        counts.append(len(EmbeddingStore.open(folder)))
    assert 0 < counts[0] < counts[1] < counts[2] < 300
    (folder / "shard-00000-000099.safetensors.tmp").write_bytes(b"half a shard")
    report = run(fasta, folder)
    assert report.already_there == counts[2]
    assert report.embedded + report.already_there == 300
    assert records(folder) == records(one_go)
    assert not list(folder.glob("*.tmp"))
    assert EmbeddingStore.open(folder).ids == EmbeddingStore.open(one_go).ids


PEPTIDES = [(f"P{i}", LETTERS[i:] + LETTERS[:i]) for i in range(4)]


def embed_peptides(folder: Path, rows: list[tuple[str, str]] = PEPTIDES) -> EmbeddingStore:
    """Embed in batches of two, which make a shard each."""
    store = EmbeddingStore.create(folder, Letters())
    store.shard_bytes = 1
    store.run(store.prepare(rows, 40), Letters())
    return store


def take_out(folder: Path) -> None:
    store = EmbeddingStore.open(folder)
    store.remove([name for name in ("P0", "P1", "P3") if name in store])


def put_others(folder: Path) -> None:
    changed = [(name, sequence[::-1]) for name, sequence in PEPTIDES[:2]]
    store = EmbeddingStore.open(folder)
    old = [n for n, s in changed if n in store and not torch.equal(store[n], letters_of(s))]
    store.remove(old)
    embed_peptides(folder, changed)


def everything(store: EmbeddingStore) -> dict[str, torch.Tensor]:
    return {name: store[name] for name in store}


def letters_of(sequence: str) -> torch.Tensor:
    return Letters().embed([sequence])[0]


def read_all(folder: Path) -> None:
    """Read what there is; a store may not have been begun."""
    try:
        store = EmbeddingStore.open(folder)
    except FileNotFoundError:
        return
    expected = dict(PEPTIDES)
    for name, tensor in everything(store).items():
        forwards, backwards = letters_of(expected[name]), letters_of(expected[name][::-1])
        assert torch.equal(tensor, forwards) or torch.equal(tensor, backwards)
    assert sum(len(batch.keys) for batch in store.stream()) == len(store)


@pytest.mark.slow
@pytest.mark.parametrize("job", [embed_peptides, take_out, put_others])
def test_killed_at_every_file_operation(job: Any, tmp_path: Path) -> None:
    base = None
    if job is not embed_peptides:
        embed_peptides(base := tmp_path / "base")
    assert kill_everywhere(job, read_all, tmp_path, base) > 8


@pytest.fixture
def two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of peptides with a table of ids of each rank."""
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        for rank in "01":
            patched.setenv("RANK", rank)
            embed_peptides(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("ids-*.json"))) == 2
    return tmp_path / "base"


def test_a_killed_removal_is_whole(two_ranks: Path, tmp_path: Path) -> None:
    names = ["P0", "P1", "P3"]
    EmbeddingStore.open(shutil.copytree(two_ranks, tmp_path / "one go")).remove(names)
    seen = set()
    for number in range(1, 30):
        folder = shutil.copytree(two_ranks, tmp_path / str(number))
        with suppress(Killed), killed_at(number):
            EmbeddingStore.open(folder).remove(names)
        store = EmbeddingStore.open(folder)
        seen.add(there := len(store.ids.keys() & set(names)))
        assert len(store.lengths) == len(store) == 1 + there
        read_all(folder)
        assert store.remove(names if there else []) == there
        assert contents(folder) == contents(tmp_path / "one go")
    assert seen == {0, 3}


def test_an_unfinished_removal_and_new_records(tmp_path: Path) -> None:
    store = embed_peptides(tmp_path)
    with suppress(Killed), killed_at(5):
        EmbeddingStore.open(tmp_path).remove(["P0", "P1", "P3"])
    assert set(EmbeddingStore.open(tmp_path)) == {"P2"}
    assert store.add(PEPTIDES, Letters()).embedded == 3
    assert set(EmbeddingStore.open(tmp_path)) == set(dict(PEPTIDES))
    assert store.remove(["P0", "P1", "P3"]) == 3
    [path] = shard_paths(tmp_path)
    assert list(Shard(path, "").shapes) == [f"embeddings/{store.ids['P2']}"]


def test_records_that_never_had_ids_stay(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, Letters())
    store.write([{sequence_hash("MK"): {"embeddings": letters_of("MK")}}])
    assert store.remove([]) == 0
    assert torch.equal(EmbeddingStore.open(tmp_path).read_sequence("MK"), letters_of("MK"))


def test_no_writer_begins_during_a_removal(
    letters: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "OTHERS_SECONDS", 0.0)
    busy = pytest.raises(ValueError, match="another process is taking proteins out")
    monkeypatch.setenv("RANK", "1")  # which no file tells of
    with letters._locked(), busy:
        letters.add([("P9", "WW")], Letters())
    letters.add([("P9", "WW")], Letters())
    with letters._locked({1}), pytest.raises(ValueError, match="writing the shards of rank 1"):
        letters.remove(["P1"])
    assert letters.remove(["P1", "P3"]) == 1


def test_what_other_ranks_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "shard-00003-000000.safetensors.tmp"
    own = tmp_path / "notes-2026.tmp"
    for path in (left, own):
        path.write_bytes(b"half")
    monkeypatch.setenv("WORLD_SIZE", "4")
    embed_peptides(tmp_path)
    assert left.exists()  # rank 3 of this job may be at it
    monkeypatch.setenv("WORLD_SIZE", "2")
    embed_peptides(tmp_path)
    assert not left.exists() and own.exists()


# Readers and changes


def test_opened_while_a_shard_goes(
    letters: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.add([("P4", "WWW")], Letters())
    listed, changes = store_module.shard_paths, iter([["P4"]])

    def list_and_change(*words: Any) -> list[Path]:
        found = listed(*words)
        for names in changes:
            EmbeddingStore.open(letters.folder).remove(names)
        return found

    monkeypatch.setattr(store_module, "shard_paths", list_and_change)
    assert set(EmbeddingStore.open(letters.folder)) == {"P1", "P2", "P3"}


def test_read_after_others_have_changed_it(letters: EmbeddingStore) -> None:
    letters.add([("P4", "WWW"), ("P5", "YYYY")], Letters())
    stale = EmbeddingStore.open(letters.folder)
    other = EmbeddingStore.open(letters.folder)
    other.remove(["P2", "P4", "P5"])
    other.add([("P4", "WWW")], Letters())
    assert torch.equal(stale["P1"], letters_of("MKVLA"))
    keys = {key for batch in stale.stream() for key in batch.keys}
    assert keys == {sequence_hash("MKVLA"), sequence_hash("WWW")}
    with pytest.raises(KeyError, match="no protein with the id 'P5'"):
        stale["P5"]
    assert torch.equal(stale["P4"], letters_of("WWW"))


# Bytes that are not what was written


def test_a_flipped_byte_is_named(letters: EmbeddingStore, tmp_path: Path) -> None:
    for path in sorted(letters.folder.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 5):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            with pytest.raises(ValueError, match=f"{path.name} .*delet"):
                everything(EmbeddingStore.open(letters.folder))
        path.write_bytes(whole)
    assert len(everything(EmbeddingStore.open(letters.folder))) == 3


def test_damage_of_one_record_leaves_the_others(letters: EmbeddingStore) -> None:
    [path] = shard_paths(letters.folder)
    content = path.read_bytes()
    place = content.index(letters["P2"].numpy().tobytes())
    path.write_bytes(content[:place] + b"?" + content[place + 1 :])
    store = EmbeddingStore.open(letters.folder)
    assert torch.equal(store["P1"], letters_of("MKVLA"))
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged .* delete that file"):
        store["P2"]
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged .* delete that file"):
        store.remove(["P1", "P3"])
    path.unlink()
    assert store.add([("P1", "MKVLA"), ("P2", "ACD")], Letters()).embedded == 2


DEEP = 100_000 * "["
NESTED = 100_000 * '{"a":'


@pytest.mark.parametrize("file", ["store.json", "ids-00000.json"])
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        NESTED,
        '{"format": %s}' % (10_000 * "9"),
        '{"format": "2"}',
        "[1]",
        "null",
        "NaN",
        "",
        "{}",
    ]
    + [json.dumps({"ids": wrong}) for wrong in ({"P1": 5}, {"P1": ["x"]}, ["P1"], 7)]
    + [json.dumps({"checksum": 5, "ids": {}}), json.dumps({"more": {}})],
)
def test_crafted_json_is_one_line(letters: EmbeddingStore, file: str, text: str) -> None:
    (letters.folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"{file} .*delet") as caught:
        EmbeddingStore.open(letters.folder)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "int8"},
        {"kinds": []},
        {"kinds": "x"},
        {"hidden_size": 3.0},
        {"backbone": {"a": 1}},
    ],
)
def test_headers_of_wrong_types(letters: EmbeddingStore, changes: dict[str, Any]) -> None:
    path = letters.folder / "store.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content | changes))
    with pytest.raises(ValueError, match=r"store\.json is not a valid header .*delete it"):
        EmbeddingStore.open(letters.folder)


def test_crafted_shards_are_one_line(letters: EmbeddingStore) -> None:
    [path] = shard_paths(letters.folder)
    key = f"embeddings/{sequence_hash('MKVLA')}"
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

    def file(header: Any) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + b"1234"

    for content in (
        struct.pack("<Q", 2**64 - 1),
        struct.pack("<Q", 100) + 100 * b" ",
        file(DEEP.encode()),
        file({key: one | {"shape": [2**62, 2**62]}}),
        file({key: one | {"data_offsets": [0, 2**60]}}),
        file({"__metadata__": {"store": DEEP}, key: one}),
        file({"__metadata__": {"store": "[1]"}, key: one}),
        file({"__metadata__": {"store": '{"about": "x"}'}, key: one}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path.name} is missing or damaged .*delete that"):
            EmbeddingStore.open(letters.folder)
    about = letters.header.text()
    for tensor in (torch.tensor(1.0), torch.ones(3), torch.ones(5, 4)):
        write_shard(path, {key: tensor}, about)
        with pytest.raises(ValueError, match=f"{path.name} is not a shard of this store"):
            EmbeddingStore.open(letters.folder)


# Other processes


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_read_in_the_processes_of_a_loader(letters: EmbeddingStore, how: str) -> None:
    letters["P1"]  # a file is mapped before there are other processes
    names = [["P1"], ["P2"], ["P3"]]
    collate = PairCollator(letters, by="id")
    rows = [{"query": one, "candidate": "P2"} for [one] in names]
    loader = DataLoader(
        rows, batch_size=1, collate_fn=collate, num_workers=1, multiprocessing_context=how
    )
    found = [batch["query_embeddings"][0] for batch in loader]
    for [name], tensor in zip(names, found, strict=True):
        assert torch.equal(tensor, letters[name])


def test_records_do_not_depend_on_shards(fasta: Path, one_go: Path, tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, TinyEsm(), make_head(), dtype="float16")
    job = store.prepare(fasta, RESIDUES_PER_BATCH)
    store.shard_seconds = 0.0
    store.run(job, TinyEsm(), make_head())
    assert len(shard_paths(tmp_path)) == len(job.batches) > len(shard_paths(one_go))
    assert records(tmp_path) == records(one_go)
    assert all(path.stat().st_size < 1.5 * SHARD_BYTES for path in shard_paths(one_go))


def test_work_is_kept_when_something_breaks(tmp_path: Path) -> None:
    class Interrupted(Letters):
        def embed(self, sequences: list[str]) -> list[torch.Tensor]:
            if len(sequences[0]) < 4:
                raise KeyboardInterrupt
            return super().embed(sequences)

    store = EmbeddingStore.create(tmp_path, Letters())
    rows = [("P1", "MKVLA"), ("P2", "MKV")]
    with pytest.raises(KeyboardInterrupt):
        store.run(store.prepare(rows, 5), Interrupted())
    assert "P1" in EmbeddingStore.open(tmp_path)
    assert "P2" not in EmbeddingStore.open(tmp_path)
    assert store.run(store.prepare(rows, 5), Letters()).embedded == 1


@pytest.mark.slow
def test_a_second_writer_is_refused(job: Jobs, fasta: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with job.stopped("plasma_hf.data.store:write_shard", 2, fasta, folder):
        with pytest.raises(ValueError, match="another process is writing the shards of rank 0 in"):
            run(fasta, folder)
        store = EmbeddingStore.open(folder)  # reading goes on
        with pytest.raises(ValueError, match="another process is writing"):
            store.remove([next(iter(store))])
    assert run(fasta, folder).already_there == len(store)


@pytest.mark.slow
def test_two_ranks_make_the_same_records(fasta: Path, one_go: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc_per_node", "2", "-m", JOB, str(fasta), str(folder)]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    assert {path.name[:11] for path in shard_paths(folder)} == {"shard-00000", "shard-00001"}
    assert records(folder) == records(one_go)
    assert EmbeddingStore.open(folder).ids == EmbeddingStore.open(one_go).ids
    assert run(fasta, folder).already_there == 300
    assert EmbeddingStore.open(folder).remove([f"P{i}" for i in range(300)]) == 300


def test_one_rank_ends_what_two_began(
    fasta: Path, one_go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert rank_and_world_size() == (1, 2)
    share = run(fasta, tmp_path)
    assert 0 < share.embedded < 300
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(fasta, tmp_path).already_there == share.embedded
    assert records(tmp_path) == records(one_go)


def test_bad_input_is_said_by_the_first_rank_alone(
    letters: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert len(letters.add([("B", "A7")], Letters()).bad) == count


def test_a_lock_is_let_go(tmp_path: Path) -> None:
    with writer_lock(tmp_path / "a.lock", "busy"), writer_lock(tmp_path / "b.lock", "busy"):
        pass
    with writer_lock(tmp_path / "a.lock", "busy"):
        with pytest.raises(ValueError, match="busy"), writer_lock(tmp_path / "a.lock", "busy"):
            pass


# Batches


@given(
    st.lists(st.text(alphabet="ACD", min_size=1, max_size=30), max_size=40),
    st.integers(1, 100),
    st.randoms(use_true_random=False),
)
def test_batches_hold_everything_once(sequences: list[str], budget: int, shuffle: Any) -> None:
    batches = cut_batches(sequences, budget)
    flat = [sequence for batch in batches for sequence in batch]
    assert sorted(flat) == sorted(set(sequences))
    lengths = [len(sequence) for sequence in flat]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * len(batch[0]) <= budget for batch in batches)
    # As large as they may be: the next sequence would not have fitted.
    for batch, _ in zip(batches, batches[1:], strict=False):
        assert (len(batch) + 1) * len(batch[0]) > budget
    shuffled = list(sequences)
    shuffle.shuffle(shuffled)
    assert cut_batches(shuffled + shuffled, budget) == batches


def test_batch_budget() -> None:
    assert cut_batches([], 1) == []
    with pytest.raises(ValueError, match="residues_per_batch is 0; give at least 1"):
        cut_batches(["MK"], 0)
