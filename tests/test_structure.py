"""Structures: which residues, which of their atoms, which chains and models."""

import dataclasses
import gzip

import gemmi
import pytest
import torch

from plasma_hf.models import protein as structure_module
from plasma_hf.models.protein import (
    BACKBONE_ATOMS,
    Structure,
    is_structure,
    join_structures,
    read_structure,
    read_structures,
    split_record,
)
from tests.helpers.structures import FULL, atom_at, backbone_of, cif_text, pdb_text, write_structure


def pdb_atom(  # noqa: PLR0913
    name, residue, number, place, chain="A", altloc=" ", occupancy=1.0, record="ATOM"
):
    """Write one line; the number may end with an insertion code; the place may be 24 columns."""
    code = number[-1] if number[-1].isalpha() else " "
    if not isinstance(place, str):
        place = "".join(f"{value:8.3f}" for value in place)
    return (
        f"{record:6}    1  {name:3}{altloc}{residue} {chain}{number.rstrip(code):>4}{code}   "
        f"{place}{occupancy:6.2f}  0.00          {name[0]:>2}"
    )


def pdb_residue(residue, number, x, **options):
    places = [(x, k, 0) for k in range(4)]
    return [
        pdb_atom(*atom, **options)
        for atom in zip(FULL, [residue] * 4, [number] * 4, places, strict=True)
    ]


def write_lines(path, *parts):
    lines = [line for part in parts for line in ([part] if isinstance(part, str) else part)]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def as_twin(path):
    """Write the mmCIF twin of a PDB file."""
    model = gemmi.read_structure(str(path))
    model.setup_entities()
    twin = path.with_suffix(".cif")
    model.make_mmcif_document().write_file(str(twin))
    return twin


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".ent.gz", ".pdb.gz", ".cif.gz", ""])
def test_atoms_are_those_of_the_file(tmp_path, suffix):
    plain = tmp_path / ("p.cif" if "cif" in suffix else "p.pdb")
    chain = [("ALA", FULL), ("GLY", ("N", "C", "O")), ("TRP", FULL), ("HOH", ("O",))]
    write_structure(plain, {"A": chain})
    path = tmp_path / f"p{suffix}"
    data = plain.read_bytes()
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    structure = read_structure(path)
    assert (structure.id, structure.sequence, len(structure)) == (f"p{suffix}:A", "AGW", 3)
    assert structure.author_numbers == ("1", "2", "3") and structure.chain_ids == ("A",) * 3
    assert structure.backbone.dtype == torch.float32
    wanted = torch.tensor([[[3.8 * n, k, 0] for k in range(4)] for n in (1, 2, 3)])
    # The residue without CA has its other atoms one place earlier.
    wanted[1] = torch.tensor([[7.6, 0, 0], [torch.nan] * 3, [7.6, 1, 0], [7.6, 2, 0]])
    torch.testing.assert_close(structure.backbone, wanted, equal_nan=True)
    assert structure.residue_mask.tolist() == [True, False, True]


def test_gaps_and_insertion_codes_are_in_the_author_numbers(tmp_path):
    numbers = ["-1", "0", "52", "52A", "52B", "53", "60"]
    parts = [pdb_residue("ALA", number, 4 * i) for i, number in enumerate(numbers)]
    path = write_lines(tmp_path / "p.pdb", *parts)
    for file in (path, as_twin(path)):
        structure = read_structure(file)
        assert structure.author_numbers == tuple(numbers)
        assert structure.backbone[:, 0, 0].tolist() == [4.0 * i for i in range(7)]


def test_of_alternates_one_label_counts_for_all_atoms(tmp_path):
    lines = []
    for name, (a, b) in zip(FULL, [(0.6, 0.4), (0.2, 0.8), (0.6, 0.4), (0.1, 0.9)], strict=True):
        lines.append(pdb_atom(name, "SER", "1", (1, 1, 1), altloc="A", occupancy=a))
        lines.append(pdb_atom(name, "SER", "1", (2, 2, 2), altloc="B", occupancy=b))
    equal = [
        pdb_atom(name, "SER", "2", (x, x, x), altloc=label, occupancy=0.5)
        for name in FULL
        for label, x in (("B", 4), ("A", 5))
    ]
    path = write_lines(tmp_path / "p.pdb", lines, equal)
    for file in (path, as_twin(path)):
        backbone = read_structure(file).backbone
        assert backbone[0].eq(2).all(), "B is occupied more, also where N is not"
        assert backbone[1].eq(4).all(), "the first of equals"


def test_an_atom_under_another_label_alone_is_not_lost(tmp_path):
    lines = pdb_residue("SER", "1", 1)
    lines[1:2] = [
        pdb_atom("CA", "SER", "1", (2, 2, 2), altloc="A", occupancy=0.3),
        pdb_atom("CA", "SER", "1", (3, 3, 3), altloc="B", occupancy=0.7),
    ]
    lines[-1] = pdb_atom("O", "SER", "1", (4, 4, 4), altloc="A", occupancy=0.3)
    backbone = read_structure(write_lines(tmp_path / "p.pdb", lines)).backbone[0]
    assert backbone[:, 0].tolist() == [1, 3, 1, 4]


@pytest.mark.parametrize("order", ["one after the other", "atom by atom", "chain by chain"])
def test_of_two_residues_in_one_place_the_more_occupied_counts(tmp_path, order):
    # TRP has more atoms, and still the more occupied GLY is taken.
    a = pdb_residue("TRP", "2", 1, altloc="A", occupancy=0.4)
    a.append(pdb_atom("CB", "TRP", "2", (9, 9, 9), altloc="A", occupancy=0.4))
    b = pdb_residue("GLY", "2", 2, altloc="B", occupancy=0.6)
    middle, last = [*a, *b], pdb_residue("VAL", "3", 4)
    if order == "atom by atom":
        middle = [line for pair in zip(a, b, strict=False) for line in pair]
    if order == "chain by chain":
        middle, last = a, [*last, *b]
    path = write_lines(tmp_path / "p.pdb", pdb_residue("ALA", "1", 0), middle, last)
    structure = read_structure(path)
    assert (structure.sequence, structure.author_numbers) == ("AGV", ("1", "2", "3"))
    assert structure.backbone[:, 0, 0].tolist() == [0, 2, 4]


def test_residues_numbered_alike_are_all_there(tmp_path):
    parts = [pdb_residue(name, "7", x) for x, name in ((0, "ALA"), (4, "GLY"), (8, "SER"))]
    structure = read_structure(write_lines(tmp_path / "p.pdb", *parts))
    assert structure.sequence == "AGS" and structure.author_numbers == ("7",) * 3


def test_modified_residues_belong_to_the_chain_and_free_ones_do_not(tmp_path):
    chain = [
        *pdb_residue("ALA", "1", 0),
        *pdb_residue("MSE", "2", 4, record="HETATM"),
        *pdb_residue("SEP", "3", 8, record="HETATM"),
        *pdb_residue("Q9Q", "4", 12, record="HETATM"),  # a residue that no table knows
        *pdb_residue("UNK", "5", 16),
        *pdb_residue("VAL", "6", 20),
        pdb_atom("N", "NH2", "7", (24, 0, 0), record="HETATM"),  # a cap is no residue
        "TER",
    ]
    free = [
        *pdb_residue("GLU", "301", 40, record="HETATM"),
        pdb_atom("O", "HOH", "401", (50, 0, 0), record="HETATM"),
    ]
    path = write_lines(tmp_path / "p.pdb", chain, free)
    for file in (path, as_twin(path)):
        structure = read_structure(file)
        assert structure.sequence == "AMSXXV"
        assert structure.author_numbers == tuple("123456") and structure.residue_mask.all()


def test_nucleic_acids_and_ligands_are_no_protein(tmp_path):
    base = [pdb_atom(n, " DA", "1", (1, 1, 1), chain="B") for n in ("P", "C1'", "N9")]
    heme = [pdb_atom("FE", "HEM", "1", (1, 1, 1), chain="C", record="HETATM")]
    path = write_lines(tmp_path / "p.pdb", pdb_residue("ALA", "1", 0), "TER", base, "TER", heme)
    assert [s.id for s in read_structures(path)] == ["p.pdb:A"]
    with pytest.raises(ValueError, match=r"p.pdb has no chain 'B'; it has: A\."):
        read_structures(path, chains="B")
    with pytest.raises(ValueError, match="none.pdb holds no protein chain"):
        read_structures(write_lines(tmp_path / "none.pdb", base, "TER", heme))


def test_a_chain_in_several_parts_is_one(tmp_path):
    parts = [
        pdb_residue("ALA", "1", 0),
        "TER",
        pdb_residue("GLY", "1", 4, chain="B"),
        "TER",
        pdb_residue("VAL", "2", 8),
        "TER",
        pdb_atom("O", "HOH", "90", (50, 0, 0), record="HETATM"),
    ]
    a, b = read_structures(write_lines(tmp_path / "p.pdb", *parts))
    assert (a.id, a.sequence, b.id, b.sequence) == ("p.pdb:A", "AV", "p.pdb:B", "G")


def test_a_chain_goes_on_after_a_ter_inside_it(tmp_path):
    parts = [
        pdb_residue("ALA", "1", 0),
        "TER",
        pdb_residue("GLY", "7", 4),
        "TER",
        pdb_atom("O", "HOH", "90", (50, 0, 0), record="HETATM"),
    ]
    [chain] = read_structures(write_lines(tmp_path / "p.pdb", *parts))
    assert (chain.sequence, chain.author_numbers) == ("AG", ("1", "7"))


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_models_are_counted_from_one(tmp_path, suffix):
    models = [
        (f"MODEL     {number:4}", *pdb_residue("ALA", "1", x), "TER", "ENDMDL")
        for number, x in ((5, 10), (9, 20))
    ]
    path = write_lines(tmp_path / "p.pdb", *models)
    path = as_twin(path) if suffix == ".cif" else path
    places = [read_structures(path, model=n)[0].backbone[0, 0, 0].item() for n in (1, 2)]
    assert places == [10, 20]
    with pytest.raises(ValueError, match=r"has no model 3; it has 2, counted from 1"):
        read_structures(path, model=3)
    with pytest.raises(ValueError, match="has no model 0"):
        read_structures(path, model=0)


@pytest.fixture
def two_chains(tmp_path):
    a, b = [("ALA", FULL), ("GLY", FULL)], [("SER", FULL)]
    return write_structure(tmp_path / "two.pdb", {"A": a, "B": b})


def test_chains_are_chosen_by_name(two_chains, tmp_path):
    assert [s.sequence for s in read_structures(two_chains)] == ["AG", "S"]
    assert [s.sequence for s in read_structures(two_chains, chains=["B", "A"])] == ["S", "AG"]
    assert read_structure(f"{two_chains}:B").id == "two.pdb:B"
    with pytest.raises(ValueError, match=r"two.pdb has no chain 'X'; it has: A, B\."):
        read_structure(f"{two_chains}:X")
    with pytest.raises(ValueError, match=r"holds 2 chains: A, B; name one, .*:A', or .*two.pdb:\*"):
        read_structure(two_chains)
    both = read_structure(f"{two_chains}:*")
    assert (both.id, both.sequence, both.chain_ids) == ("two.pdb:*", "AGS", ("A", "A", "B"))
    assert both.author_numbers == ("1", "2", "1")
    assert split_record(two_chains) == (str(two_chains), None)
    odd = two_chains.rename(tmp_path / "a:b.pdb")
    assert split_record(odd) == (str(odd), None) and len(read_structures(odd)) == 2


def test_a_chain_without_a_name(tmp_path):
    path = write_lines(tmp_path / "p.pdb", pdb_residue("ALA", "1", 0, chain=" "))
    structure = read_structure(path)
    assert structure.id == "p.pdb:" and structure.chain_ids == ("",)
    assert read_structure(f"{path}:").sequence == "A"


def test_a_trace_is_refused_by_name_unless_wanted(tmp_path, caplog):
    trace = [("ALA", ("CA",)), ("GLY", ("CA",)), ("SER", ("CA",))]
    path = write_structure(tmp_path / "p.pdb", {"A": [("ALA", FULL)], "T": trace})
    assert [s.id for s in read_structures(path)] == ["p.pdb:A"]
    assert "chains that are left out, without any residue with N, CA, C, O: T" in caplog.text
    a, t = read_structures(path, atoms=("CA",))
    assert t.sequence == "AGS" and t.backbone.isfinite().all(-1).tolist() == [[0, 1, 0, 0]] * 3
    assert not t.residue_mask.any() and a.residue_mask.all()
    with pytest.raises(ValueError, match=r"p.pdb has no residue with .* N, CA, C, O in chain T;"):
        read_structure(f"{path}:T")
    assert read_structure(f"{path}:T", atoms=("CA",)).sequence == "AGS"
    for wrong in ("ca", ("CB",), ()):
        with pytest.raises(ValueError, match=r"atoms is .*; give some of .*'CA'"):
            read_structures(path, atoms=wrong)


@pytest.mark.parametrize(
    "place",
    [
        "     nan   1.000   1.000",
        "********   1.000   1.000",
        "   1.000     abc   1.000",
        " " * 24,
        "9999.000" * 3,
        "   1.0001.2.333   1.000",
    ],
)
def test_coordinates_that_are_none_are_missing(tmp_path, place):
    lines = pdb_residue("ALA", "1", 1)
    lines[1] = pdb_atom("CA", "ALA", "1", place)
    structure = read_structure(
        write_lines(tmp_path / "p.pdb", lines, pdb_residue("GLY", "2", 4)), atoms=("N",)
    )
    assert structure.sequence == "AG" and structure.residue_mask.tolist() == [False, True]
    assert structure.backbone[0, 1].isnan().all() and structure.backbone[0, 2].isfinite().all()


def test_numbers_of_other_widths_are_read(tmp_path):
    line = pdb_atom("N", "ALA", "1", "  -1.5  12.0000       3 ")
    lines = [line, *pdb_residue("ALA", "1", 1)[1:]]
    backbone = read_structure(write_lines(tmp_path / "p.pdb", lines)).backbone
    assert backbone[0, 0].tolist() == [-1.5, 12, 3]


def test_coordinates_of_mmcif_that_are_none_are_missing(tmp_path):
    path = write_structure(tmp_path / "p.cif", {"A": [("ALA", FULL), ("GLY", FULL)]})
    text = path.read_text()
    for absent in ("?", ".", "1e300", "inf"):
        path.write_text(text.replace(" 3.8 ", f" {absent} "))
        assert read_structure(path).residue_mask.tolist() == [False, True]


def test_mmcif_without_what_the_authors_call_things(tmp_path):
    path = write_structure(tmp_path / "p.cif", {"A": [("ALA", FULL), ("GLY", FULL)]})
    document = gemmi.cif.read(str(path))
    atoms = document.sole_block().find_loop("_atom_site.id").get_loop()
    for tag in [tag for tag in atoms.tags if ".auth_" in tag]:
        atoms.remove_column(tag)
    for number, row in enumerate(document.sole_block().find("_atom_site.", ["label_seq_id"])):
        row[0] = str(7 + number // 4)
    document.write_file(str(path))
    structure = read_structure(path)
    assert structure.sequence == "AG" and structure.author_numbers == ("7", "8")


def test_old_files_have_other_things_in_the_last_columns(tmp_path):
    # Files before 1996 number their lines where element and charge are now.
    lines = [
        f"{line[:72]}1ACB{number:4}" for number, line in enumerate(pdb_residue("ALA", "1", 0), 96)
    ]
    assert read_structure(write_lines(tmp_path / "p.pdb", lines)).residue_mask.all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither atoms as a PDB file has them"),
        (b"MKVLA\n", "neither atoms as a PDB file has them"),
        (b"ATOM\n", "neither atoms as a PDB file has them"),
        (b"ATOM  \n", "line is too short"),
        (b"data_x\n", "holds no atoms"),
        (b"data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1\n", "Wrong number of values"),
        (b"\x1f\x8b\x08broken", "not a valid gzip file"),
        (gzip.compress(b"ATOM" * 500, mtime=0)[:-9], "not a valid gzip file"),
        (b"\x83\xaadataBlocks\x91", r"is BinaryCIF, which gemmi does not read; .* as mmCIF"),
        (gzip.compress(b"\x83\xaadataBlocks\x91", mtime=0), "is BinaryCIF"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_reason(tmp_path, data, reason):
    for name in ("x.pdb", "x.cif", "x.bcif", "x"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"(?s){name} .*{reason}"):
            read_structures(tmp_path / name)


def test_no_file_and_no_gemmi(tmp_path, two_chains, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no file '.*none.pdb'"):
        read_structure(tmp_path / "none.pdb")
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        read_structures(tmp_path)
    monkeypatch.setattr(structure_module, "gemmi", None)
    with pytest.raises(ImportError, match="pip install gemmi"):
        read_structures(two_chains)


def test_parts_of_a_structure_are_of_one_length():
    good = {
        "id": "p",
        "sequence": "MK",
        "backbone": torch.zeros(2, 4, 3),
        "author_numbers": ("1", "2"),
        "chain_ids": ("A", "A"),
    }
    assert Structure(**good).residue_mask.all() and BACKBONE_ATOMS == FULL
    for part in (
        {"sequence": "M"},
        {"backbone": torch.zeros(2, 3, 3)},
        {"author_numbers": ("1",)},
        {"chain_ids": ()},
    ):
        with pytest.raises(ValueError, match=r"p has \d residues, a backbone of shape"):
            Structure(**good | part)
    with pytest.raises(ValueError, match="no structures were given to join as all"):
        join_structures("all", [])


def test_a_structure_of_another_copy_of_the_code_is_one():
    names = [field.name for field in dataclasses.fields(Structure)]
    twin = dataclasses.make_dataclass("Structure", names)
    assert is_structure(twin("p", "M", torch.zeros(1, 4, 3), ("1",), ("A",)))
    assert not is_structure("p.pdb") and not is_structure(atom_at("N", (0, 0, 0)))


def bound(residues, first=1, y=0.0, chain="A"):
    """Return a chain as a row for `pdb_text`, its residues bound and numbered from a number on."""
    numbers = [str(first + i) if isinstance(first, int) else first[i] for i in range(len(residues))]
    return chain, "A", residues, numbers, backbone_of(len(residues), y)


def read_text(tmp_path, text, suffix=".pdb"):
    (tmp_path / f"p{suffix}").write_text(text)
    found = read_structures(tmp_path / f"p{suffix}")
    return {chain.id.partition(":")[2]: (chain.sequence, chain.author_numbers) for chain in found}


def test_a_chain_named_as_a_copy_would_be_keeps_its_name(tmp_path, caplog):
    chains = [bound(["ALA", "GLY"], y=50 * i, chain=name) for i, name in enumerate("AAB")]
    text = cif_text([*chains, bound(["SER", "SER"], y=200, chain="A2")], without=["label_asym_id"])
    found = read_text(tmp_path, text, ".cif")
    assert {name: sequence for name, (sequence, _) in found.items()} == {
        **{"A": "AG", "A3": "AG"},
        **{"B": "AG", "A2": "SS"},
    }
    assert "several chains of one name; others than the first are called A3" in caplog.text
    assert read_structure(f"{tmp_path / 'p.cif'}:A3").chain_ids == ("A3", "A3")


@pytest.mark.parametrize(
    ("second", "names"),
    [
        ({"first": 9, "y": 12}, ["A"]),  # a gap
        ({"first": 3, "y": 60}, ["A", "A2"]),  # the next number, where no residue reaches
        ({"first": 2, "y": 12}, ["A", "A2"]),  # a number that is there
        ({"first": -5, "y": 60}, ["A", "A2"]),  # numbers that go back, far away
    ],
)
def test_a_ter_inside_a_chain_is_told_from_the_end_of_a_copy(tmp_path, second, names):
    chains = [bound(["ALA", "GLY"]), bound(["SER", "VAL"], **second)]
    assert list(read_text(tmp_path, pdb_text(chains))) == names


@pytest.mark.parametrize(
    "numbers", [["1B", "1A", "1", "2"], ["90", "91", "5", "6"], ["7", "8", "7", "8"]]
)
@pytest.mark.parametrize("between", ["TER", "nothing"])
def test_numbers_may_go_back_in_a_chain_that_is_bound(tmp_path, numbers, between):
    name, label, residues, _, places = bound(["ALA", "GLY", "SER", "VAL"])
    parts = [
        (name, label, residues[:2], numbers[:2], places[:2]),
        (name, label, residues[2:], numbers[2:], places[2:]),
    ]
    assert read_text(tmp_path, pdb_text(parts, between)) == {"A": ("AGSV", tuple(numbers))}


def test_a_modified_residue_listed_behind_the_chain_stands_where_it_is_bound(tmp_path):
    name, label, residues, numbers, places = bound(["ALA", "MSE", "SER", "MSE"])
    order = [0, 2, 1, 3]
    moved = (name, label, [residues[i] for i in order], [numbers[i] for i in order], places[order])
    lines = pdb_text([moved]).split("\n")
    free = pdb_text([bound(["MSE"], 300, 50)]).split("\n")[:4]
    text = "\n".join([*lines[:8], "TER", *free, *lines[8:]])
    assert read_text(tmp_path, text) == {"A": ("AMSM", ("1", "2", "3", "4"))}


def test_entries_one_after_another_are_all_read(tmp_path):
    one = pdb_text([bound(["ALA", "GLY"]), bound(["SER", "SER"], chain="B", y=30)])
    other = pdb_text([bound(["VAL", "LEU"], y=90)])
    found = read_text(tmp_path, f"HEADER    ONE\n{one}HEADER    TWO\n{other}")
    assert {name: one[0] for name, one in found.items()} == {"A": "AG", "B": "SS", "A2": "VL"}


@pytest.mark.parametrize("kept", [3, 20, 40, 50])
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, caplog, kept):
    lines = pdb_text([bound(["ALA", "GLY", "SER"])]).split("\n")
    text = "\n".join([*lines[:9], lines[9][:kept]])
    assert read_text(tmp_path, text) == {"A": ("AGS", ("1", "2", "3"))}
    assert "p.pdb is cut off in its last line, behind N   SER A   3" in caplog.text
    caplog.clear()
    read_text(tmp_path, "\n".join(lines[:10]))
    assert "cut off" not in caplog.text
    cif = cif_text([bound(["ALA", "GLY"])])
    with pytest.raises(ValueError, match=r"Wrong number of values .*\(is it cut off\?\)"):
        read_text(tmp_path, cif[: cif.rindex(" 1.0")], ".cif")


def test_names_of_residues(tmp_path, caplog):
    pytest.importorskip("Bio", reason="knows the parents of rare residues")
    states = ["NMET", "HSD", "HSE", "HSP", "HID", "HIE", "CHIP", "CYX", "CYM", "ASH", "GLH", "LYN"]
    for suffix, write in ((".pdb", pdb_text), (".cif", cif_text)):
        text = write([bound([*states, "BP5", "Q9Q", "ALA", "Q9Q"])])
        found = read_text(tmp_path, text, suffix)
        assert found["A"][0] == "MHHHHHHCCDEKAXAX"
        assert (
            f"p{suffix} has residues with names that are not known, read as X: Q9Q" in caplog.text
        )
        assert caplog.text.count("Q9Q") == 1
        caplog.clear()


def test_atoms_that_no_residue_can_have_are_reported(tmp_path, caplog):
    name, label, residues, numbers, places = bound(["ALA", "GLY", "SER", "VAL", "LEU", "ILE"])
    places[1, 1, 1] += 30
    places[4:, :, 2] += 30
    numbers[2:] = "3", "4", "5", "8"
    read_text(tmp_path, pdb_text([(name, label, residues, numbers, places)]))
    assert (
        "p.pdb has residues with N and CA, or C and the next N, too far apart: A2, A5"
        in caplog.text
    )
    assert len(caplog.records) == 1


def test_columns_of_mmcif_that_may_lack_and_that_may_not(tmp_path):
    chains = [bound(["ALA", "GLY"]), bound(["SER", "SER"], chain="B", y=30)]
    for gone in ("group_PDB", "occupancy", "type_symbol", "label_asym_id", "label_seq_id"):
        found = read_text(tmp_path, cif_text(chains, [gone]), ".cif")
        assert [one[0] for one in found.values()] == ["AG", "SS"], gone
    for gone in ("Cartn_x", "label_atom_id", "label_comp_id"):
        with pytest.raises(ValueError, match=rf"p.cif is not a valid .*_atom_site\.{gone}"):
            read_text(tmp_path, cif_text(chains, [gone]), ".cif")
    with pytest.raises(ValueError, match=r"no column _atom_site.label_seq_id"):
        read_text(tmp_path, cif_text(chains, ["label_seq_id", "auth_seq_id"]), ".cif")
    two = cif_text(chains) + cif_text(chains).replace("data_x", "data_y")
    with pytest.raises(ValueError, match="2 of its data blocks have atoms; give a file for each"):
        read_text(tmp_path, two, ".cif")


def test_lines_of_any_length_are_of_one_segment(tmp_path):
    lines = pdb_text([bound(["ALA", "GLY", "SER"])]).split("\n")
    cut = [line[:66] if i % 2 else line for i, line in enumerate(lines)]
    assert read_text(tmp_path, "\n".join(cut)) == {"A": ("AGS", ("1", "2", "3"))}
