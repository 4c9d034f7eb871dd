"""Structures: real files, read or refused with a reason; broken files; what ProteinMPNN reads."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plasma_hf.io.structures import read_structure_folder
from plasma_hf.models.protein import join_structures, read_structures
from tests.helpers.structures import (
    FULL,
    THREE,
    atom_at,
    backbone_of,
    cif_text,
    pdb_text,
    write_structure,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"
TWINS = SHARED / "structures" / "biotite" / "pdb"

NO_STRUCTURE_FILE = re.compile(
    r"\.(sdf|mol2|fasta|rst|txt|jsonl\.gz)$|/LICENSE$|/INDEX[^/]*$"  # ligands, tables, texts
)
NO_PROTEIN = {  # RNA, DNA and ligands
    "structures/biotite/pdb/4gxy.pdb",
    "structures/biotite/pdb/4gxy.cif",
    "structures/biotite/pdb/4p5j.pdb",
    "structures/biotite/pdb/4p5j.cif",
    "structures/biotite/edge_cases/hetatm.pdb",
    "pdbbind_layout/pdb/1bpx_missingBase.pdb",
}
NO_BACKBONE = {"pdbbind_layout/pdb/2wb5_GLN.pdb"}  # one glutamine without CA


def reason_to_refuse(name):
    """Say what the message about a file that is to be refused says."""
    if NO_STRUCTURE_FILE.search(name):
        return "neither atoms as a PDB file has them"
    if name.endswith(".bcif"):
        return "is BinaryCIF, which gemmi does not read; give the same entry as mmCIF"
    if name in NO_PROTEIN:
        return "holds no protein chain"
    return "has no residue with the backbone atoms" if name in NO_BACKBONE else None


def real_files():
    folders = ("structures", "pdbbind_layout")
    return sorted(f for name in folders for f in (SHARED / name).rglob("*") if f.is_file())


@pytest.mark.slow
@pytest.mark.skipif(not TWINS.is_dir(), reason="../shared/data/structures is not beside this clone")
def test_every_file_is_read_or_refused_with_a_reason():
    # Of the hundreds of plain complexes and chains a few; every kind of file that is awkward.
    files = real_files()
    plain = [f for f in files if f.name.endswith(".pdb.gz")]
    rest = [f for f in files if not f.name.endswith(".pdb.gz")]
    old = [f for f in plain if f.name.startswith(("1ACB_l_b", "1MAH_r_b"))]
    read = refused = 0
    for file in [*rest, *plain[::60], *old]:
        reason = reason_to_refuse(file.relative_to(SHARED).as_posix())
        if reason is None:
            chains = read_structures(file)
            assert all(chain.residue_mask.any() for chain in chains), file
            assert len({chain.id for chain in chains}) == len(chains) > 0, file
            read += 1
        else:
            with pytest.raises(ValueError, match=reason) as error:
                read_structures(file)
            assert str(file) in str(error.value)
            refused += 1
    assert (len(files), len(plain), read, refused) == (1142, 943, 157, 60)


@pytest.mark.skipif(not TWINS.is_dir(), reason="../shared/data/structures is not beside this clone")
def test_pdb_and_mmcif_twins_give_the_same_chains():
    twins = [f for f in sorted(TWINS.glob("*.pdb")) if f.with_suffix(".cif").exists()]
    chains = 0
    for file in twins:
        if f"structures/biotite/pdb/{file.name}" in NO_PROTEIN:
            continue
        pairs = zip(read_structures(file), read_structures(file.with_suffix(".cif")), strict=True)
        for pdb, cif in pairs:
            assert pdb.chain_ids == cif.chain_ids and pdb.author_numbers == cif.author_numbers
            assert pdb.sequence == cif.sequence
            torch.testing.assert_close(pdb.backbone, cif.backbone, rtol=0, atol=0, equal_nan=True)
            chains += 1
    assert (len(twins), chains) == (16, 23)


# ProteinMPNN takes the first of alternates, label A; here the file says that B is there more often.
LESS_OCCUPIED = {"5L33": [("A", "40"), ("A", "74")], "3HTN": [("C", "167")]}


@pytest.mark.parametrize("name", ["5L33", "6MRR", "3HTN", "6MRR_first30"])
def test_proteinmpnn_reads_the_same_residues_and_places(full_golden, name):
    folder = full_golden / "proteinmpnn"
    entry = json.loads((folder / "index.json").read_text())["entries"][name]
    chains = read_structures(folder / entry["pdb"])
    assert {chain.chain_ids[0] for chain in chains} == set(entry["chains"])
    structure = join_structures(name, chains)
    observed = torch.tensor([letter != "-" for letter in entry["sequence"]])
    assert structure.sequence == entry["sequence"].replace("-", "")
    known = load_file(folder / f"{name}.safetensors")
    assert torch.equal(structure.residue_mask, known["mask"][0][observed].bool())
    places = zip(structure.chain_ids, structure.author_numbers, strict=True)
    alike = structure.backbone.eq(known["X"][0][observed]).all(-1).all(-1)
    other = [place for place, same in zip(places, alike.tolist(), strict=True) if not same]
    assert other == LESS_OCCUPIED.get(name, [])


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Small files of both formats, with alternates, a modified residue, a gap and water."""
    folder = tmp_path_factory.mktemp("originals")
    both = [atom_at("CA", (1, 1, 1), "A", 0.3), atom_at("CA", (2, 2, 2), "B", 0.7)]
    chain = [("ALA", ["N", *both, "C", "O"]), ("MSE", FULL), ("GLY", ("N", "C")), ("TRP", FULL)]
    chains = {"A": [*chain * 3, ("HOH", ("O",))], "B": [("SER", FULL)] * 4}
    return [write_structure(folder / name, chains).read_bytes() for name in ("x.pdb", "x.cif")]


def cut(r, data):
    return data[: r.randrange(len(data) + 1)]


def drop_a_piece(r, data):
    a, b = sorted(r.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + data[b:]


def change_bytes(r, data):
    changed = bytearray(data)
    for _ in range(r.choice([1, 5, 50, 500])):
        changed[r.randrange(len(changed))] = r.randrange(256)
    return bytes(changed)


def change_characters(r, data):
    changed = bytearray(data)
    for _ in range(r.choice([1, 5, 50])):
        changed[r.randrange(len(changed))] = r.choice(b" \n'\"?.;#_0123456789-ABC")
    return bytes(changed)


def shuffle_lines(r, data):
    lines = data.split(b"\n")
    # Shuffled as a whole, an mmCIF file is never one; its atoms alone are.
    atoms = [i for i, line in enumerate(lines) if line.startswith((b"ATOM", b"HETATM"))]
    order = r.sample(atoms, len(atoms))
    moved = {a: lines[b] for a, b in zip(atoms, order, strict=True)}
    return b"\n".join(moved.get(i, line) for i, line in enumerate(lines))


def shuffle_all_lines(r, data):
    lines = data.split(b"\n")
    return b"\n".join(r.sample(lines, len(lines)))


def repeat_lines(r, data):
    lines = data.split(b"\n")
    for _ in range(r.randrange(1, 20)):
        lines.insert(r.randrange(len(lines)), r.choice(lines))
    return b"\n".join(lines)


def break_gzip(r, data):
    return r.choice([cut, change_bytes, drop_a_piece])(r, gzip.compress(data, mtime=0))


def garbage(r, data):
    return r.randbytes(r.randrange(200)) + r.choice([b"", data[:100], b"\nATOM  " * 9])


BREAKS = (
    cut,
    drop_a_piece,
    change_bytes,
    change_characters,
    shuffle_lines,
    shuffle_all_lines,
    repeat_lines,
    break_gzip,
    garbage,
)


@pytest.mark.slow
@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["x.pdb", "x.cif", "x.pdb.gz", "x"]))
def test_broken_files_are_read_as_far_as_they_go_or_refused(
    originals, tmp_path_factory, seed, name
):
    r = random.Random(seed)  # noqa: S311
    file = tmp_path_factory.getbasetemp() / name
    data = r.choice(originals)
    for _ in range(r.choice([1, 1, 2])):
        data = r.choice(BREAKS)(r, data) if data else data
    file.write_bytes(data)
    try:
        chains = read_structures(file, atoms=("CA",))
    except (ValueError, OSError) as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    assert chains
    for chain in chains:
        lengths = {len(chain.author_numbers), len(chain.chain_ids), len(chain.backbone)}
        assert lengths == {len(chain)} == {len(chain.sequence)}
        assert chain.backbone.shape == (len(chain), 4, 3)
        assert chain.backbone[:, 1].isfinite().all(-1).any()
        assert not chain.backbone.isinf().any()
        assert re.fullmatch("[A-Z]+", chain.sequence)


def test_breaks_leave_enough_to_read(originals, tmp_path):
    # The test above says little where nearly everything is refused.
    read = 0
    for seed in range(200):
        r = random.Random(seed)  # noqa: S311
        (tmp_path / "x").write_bytes(r.choice(BREAKS)(r, r.choice(originals)))
        try:
            read_structures(tmp_path / "x", atoms=("CA",))
        except ValueError:
            continue
        read += 1
    assert 40 < read < 160


STATES = {"H": ["HSD", "HIE", "HISH", "NHIE"], "C": ["CYX", "CYS2", "CCYX"], "D": ["ASH", "CASP"]}
STATES |= {"M": ["MSE", "NMET"], "K": ["LYN", "LYSH"], "E": ["GLH"], "A": ["NALA"], "R": ["ARN"]}
FEW = ("label_asym_id", "occupancy", "type_symbol", "label_alt_id", "pdbx_PDB_model_num")


@st.composite
def drawn_chains(draw):
    """Chains of one name or of several, from one number on, with insertion codes."""
    count, begin = draw(st.integers(1, 4)), draw(st.integers(-3, 900))
    names = draw(st.sampled_from(["AAAA", "    ", "ABCD", "ABAB", "AABB"]))
    chains = []
    for i in range(count):
        letters = draw(st.text("".join(THREE), min_size=3, max_size=12))
        residues = [draw(st.sampled_from([THREE[x], *STATES.get(x, ())])) for x in letters]
        numbers, last = [], begin
        for code in draw(st.lists(st.booleans(), min_size=len(letters), max_size=len(letters))):
            inserted = bool(code and numbers) and numbers[-1][-1] != "C"
            letter = numbers[-1].lstrip("-0123456789") if inserted else ""
            numbers.append(f"{last - 1}{chr(ord(letter or '@') + 1)}" if inserted else str(last))
            last += not inserted
        places = backbone_of(len(letters), 100.0 * i)
        chains.append((names[i].strip(), "WXYZ"[i], letters, residues, numbers, places))
    return chains


def names_expected(chains):
    seen, names = {}, []
    for name, *_ in chains:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return names


@settings(max_examples=60, deadline=None)
@given(
    chains=drawn_chains(),
    between=st.sampled_from(["TER", "END", "segment", "nothing", "all columns", "few columns"]),
    packed=st.booleans(),
)
def test_chains_come_back_from_every_format(tmp_path_factory, chains, between, packed):
    # With nothing between, a copy that begins where numbers stand still is part of the one before.
    begin = chains[0][4][0]
    assume(between != "nothing" or all(one[4][-1].rstrip("ABC") != begin for one in chains))
    rows = [(name, label, *rest) for name, label, _, *rest in chains]
    if "columns" in between:
        text, ending = cif_text(rows, FEW if between[0] == "f" else ()), "cif"
    else:
        text, ending = pdb_text(rows, between), "pdb"
    file = tmp_path_factory.getbasetemp() / (f"drawn.{ending}" + ".gz" * packed)
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    read = {chain.chain_ids[0]: chain for chain in read_structures(file)}
    assert sorted(read) == sorted(names_expected(chains))
    for name, (_, _, letters, _, numbers, places) in zip(
        names_expected(chains), chains, strict=True
    ):
        assert read[name].id == f"{file.name}:{name}" and read[name].sequence == letters
        assert read[name].author_numbers == tuple(numbers)
        assert torch.equal(read[name].backbone, places)
        assert read_structures(file, chains=name)[0].sequence == letters


def test_every_broken_file_is_read_or_reported(originals, tmp_path):
    for seed in range(40):
        r = random.Random(seed)  # noqa: S311
        broken = r.choice(BREAKS)(r, r.choice(originals))
        (tmp_path / f"{seed}.pdb").write_bytes(broken)
    reported = []
    read = {one.id.partition(":")[0] for one in read_structure_folder(tmp_path, reported.append)}
    told = {record.id.partition(":")[0] for record in reported}
    assert len(read) > 10 < len(told) and not read & told
    assert len(read | told) == 40
