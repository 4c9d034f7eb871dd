"""Structures of a folder, as rows, and split by sequence cluster."""

import gzip
import json

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plasma_hf.data.clusters import split_by_cluster
from plasma_hf.io.structures import (
    pair_of,
    pair_to_row,
    read_structure_folder,
    row_features,
    row_to_pair,
)
from plasma_hf.models.protein import Structure, read_structure
from tests.conftest import SHARED
from tests.helpers.structures import FULL, write_structure

A, G, K = ("ALA", FULL), ("GLY", FULL), ("LYS", FULL)
ONE, OTHER = "MKVLAWQERTYHGFDSPNIC", "WYTRHNMQDCEKPVLFGAIS"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    write_structure(root / "two.pdb", {"A": [A, G], "B": [A, G, K]})
    write_structure(root / "sub" / "one.cif", {"C": [K, K]})
    text = (root / "two.pdb").read_bytes()
    (root / "packed.pdb.gz").write_bytes(gzip.compress(text))
    (root / "d1abca_").write_bytes(text)
    (root / "broken.pdb").write_text("ATOM")
    (root / "cut.pdb.gz").write_bytes(gzip.compress(text)[:40])
    (root / "LICENSE").write_text("free")
    (root / "ligand.sdf").write_text("$$$$")
    return root


def read(folder, **options):
    bad = []
    return {s.id: s for s in read_structure_folder(folder, bad.append, **options)}, bad


def test_all_files_in_order(folder):
    found, bad = read(folder)
    assert list(found) == [
        *("d1abca_:A", "d1abca_:B", "packed.pdb.gz:A", "packed.pdb.gz:B"),
        *("sub/one.cif:C", "two.pdb:A", "two.pdb:B"),
    ]
    assert [record.id for record in bad] == ["broken.pdb", "cut.pdb.gz"]
    assert all(record.reason for record in bad)
    again = read_structure(f"{folder}/sub/one.cif:C")  # an id says where the structure is
    assert torch.equal(again.backbone, found["sub/one.cif:C"].backbone)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("each", {"two.pdb:A": "AG", "two.pdb:B": "AGK"}),
        ("first", {"two.pdb:A": "AG"}),
        ("longest", {"two.pdb:B": "AGK"}),
        ("joined", {"two.pdb:*": "AGAGK"}),
    ],
)
def test_policies(folder, policy, expected):
    found, _ = read(folder / "two.pdb", policy=policy)
    assert {key: structure.sequence for key, structure in found.items()} == expected


def test_limits_and_wrong_calls(folder, tmp_path):
    found, bad = read(folder / "two.pdb", min_residues=3)
    assert list(found) == ["two.pdb:B"]
    assert bad[0].reason == "it has 2 residues, fewer than 3"
    with pytest.raises(ValueError, match="no policy 'best'; give 'each'"):
        read(folder, policy="best")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no structure file below .*\.pdb"):
        read(tmp_path / "empty")


def test_lists_of_chains(tmp_path):
    place = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    good = {"id": "1ABC_B", "seq": "MK", "N": place, "CA": place, "C": place}
    lines = [
        json.dumps(good | {"O_derived": [place[0], [None] * 3]}),
        json.dumps(good | {"O": [place[0], None]}),
        "{",
        "[1]",
        json.dumps({"seq": "MK"}),
        json.dumps(good | {"N": place[:1]}),
        json.dumps(good | {"N": [[1.0], [2.0]]}),
        "",
        json.dumps(good | {"id": "last"}),
    ]
    with gzip.open(tmp_path / "chains.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    bad = []
    found = list(read_structure_folder(tmp_path, bad.append))
    assert [s.id.partition(":")[2] for s in found] == ["1ABC_B", "1ABC_B", "last"]
    assert [record.id.rpartition(" ")[2] for record in bad] == ["3", "4", "5", "6", "7"]
    assert found[0].chain_ids == ("B", "B")
    for structure in found[:2]:
        assert structure.residue_mask.tolist() == [True, False]
    assert not found[2].residue_mask.any()


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_infinity=False), min_size=12, max_size=12),
        min_size=1,
        max_size=5,
    )
)
def test_rows_hold_any_coordinates(values):
    backbone = torch.tensor(values, dtype=torch.float32).reshape(-1, 4, 3)
    length = len(values)
    structure = Structure("s", "M" * length, backbone, ("1",) * length, ("A",) * length)
    row = json.loads(json.dumps(pair_to_row(pair_of(structure)), allow_nan=False))
    assert torch.equal(row_to_pair(row).structure.backbone.nan_to_num(7), backbone.nan_to_num(7))


def test_rows_through_parquet(tmp_path):
    backbone = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    backbone[1, 3] = float("nan")
    structure = Structure("f.pdb:*", "MKX", backbone, ("1", "1A", "-5"), ("A", "A", "b"))
    pairs = [pair_of(structure, "kinases"), pair_of(structure)]
    data = datasets.Dataset.from_list([pair_to_row(p) for p in pairs], features=row_features())
    data.to_parquet(str(tmp_path / "rows.parquet"))
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "rows.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    for pair, row in zip(pairs, rows, strict=True):
        back = row_to_pair(row)
        assert (back.id, back.sequence, back.family) == (pair.id, pair.sequence, pair.family)
        assert torch.equal(back.structure.backbone.nan_to_num(7), backbone.nan_to_num(7))
        assert torch.equal(back.structure.residue_mask, structure.residue_mask)
        assert back.structure.author_numbers == ("1", "1A", "-5")
        assert back.structure.chain_ids == ("A", "A", "b")


def test_rows_that_do_not_fit():
    with pytest.raises(ValueError, match="has no coordinates"):
        row_to_pair({"id": "p", "sequence": "MK"})
    with pytest.raises(ValueError, match="p has 12 coordinates for 2 residues; give 12 for each"):
        row_to_pair({"id": "p", "sequence": "MK", "coordinates": [0.0] * 12})


def sides(split):
    return {place: part for part in ("train", "test") for place in getattr(split, part)}


@pytest.mark.parametrize("seed", range(5))
def test_no_cluster_on_two_sides(seed):
    sequences = [ONE, OTHER, ONE[2:], OTHER[:-2], ONE, "G" * 20]
    split = split_by_cluster(sequences, (0.5, 0.0, 0.5), seed, method="kmers")
    side = sides(split)
    assert sorted(side) == list(range(6))
    assert split.validation == ()
    assert side[0] == side[2] == side[4]
    assert side[1] == side[3]
    assert (split.method, split.identity) == ("kmers", 0.4)
    assert split == split_by_cluster(sequences, (0.5, 0.0, 0.5), seed, method="kmers")


def test_shares_sum_to_one():
    with pytest.raises(ValueError, match="sum to 1"):
        split_by_cluster([ONE], (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def real():
    if not (SHARED / "structures").is_dir():
        pytest.skip("the structures (../shared/data/structures) are not beside this clone")
    return SHARED / "structures"


def test_real_chains(real):
    bad = []
    found = list(read_structure_folder(real / "short_chains.jsonl.gz", bad.append))
    assert (len(found), bad) == (2161, [])
    assert all(s.backbone[:, :3].isfinite().all() for s in found)
    globins = list(read_structure_folder(real / "foldseek_example", bad.append))
    assert (len(globins), bad) == (30, [])


def test_bound_and_unbound_on_one_side(real):
    names, sequences = [], []
    for file in sorted((real / "db5_bound_unbound").glob("[1-2]A*.gz")):
        structure = next(iter(read_structure_folder(file, policy="joined")))
        names.append(file.name[:6])
        sequences.append(structure.sequence)
    assert len(names) >= 12
    split = split_by_cluster(sequences, (0.6, 0.0, 0.4), method="kmers")
    assert split.test
    seen = {place: part for place, part in sides(split).items()}
    assert len({(names[place], part) for place, part in seen.items()}) == len(set(names))
