"""Proteins from structures: backbone atoms, chains, incomplete residues; FASTA line by line."""

import dataclasses
import math

import pytest
import torch

from plasma_hf import PlasmaProcessor
from plasma_hf.models.protein import (
    Protein,
    parse_fasta,
    read_protein,
    read_records,
    with_backbone_atoms,
)
from tests.helpers.structures import FULL, atom_at, structure_of, write_structure


@pytest.fixture
def two_chains(tmp_path):
    a = [("ALA", FULL), ("GLY", ("N", "C", "O")), ("MSE", FULL), ("HIS", FULL)]
    b = [("SER", FULL), ("THR", FULL), ("HOH", ("O",))]
    return write_structure(tmp_path / "two.pdb", {"A": a, "B": b})


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_atoms_are_those_of_the_file(tmp_path, suffix):
    path = write_structure(tmp_path / f"p{suffix}", {"A": [("ALA", FULL), ("MSE", FULL)]})
    protein = read_protein(path)
    assert protein.sequence == "AM" and protein.backbone_atoms.dtype == torch.float32
    wanted = torch.tensor([[[3.8 * n, k, 0] for k in range(3)] for n in (1, 2)])
    torch.testing.assert_close(protein.backbone_atoms, wanted)


def test_a_residue_lacking_an_atom_stays_in_the_sequence_and_can_be_left_out(two_chains, caplog):
    protein = read_protein(f"{two_chains}:A")
    assert protein.sequence == "AGMH"
    missing = protein.backbone_atoms.isnan().any(-1)
    assert missing.tolist() == [[False] * 3, [False, True, False], [False] * 3, [False] * 3]
    complete = with_backbone_atoms(protein)
    assert "two.pdb:A: 1 of 4 residues lack" in caplog.text and "G2" in caplog.text
    assert complete.sequence == "AMH" and complete.id == protein.id
    assert torch.equal(complete.backbone_atoms, protein.backbone_atoms[[0, 2, 3]])
    caplog.clear()
    assert with_backbone_atoms(complete) is complete and not caplog.text


def test_water_is_no_residue(two_chains):
    protein = read_protein(f"{two_chains}:B")
    assert protein.sequence == "ST" and protein.backbone_atoms.shape == (2, 3, 3)


def test_all_chains_as_one_protein(two_chains):
    with pytest.raises(ValueError, match=r"holds 2 chains: A, B; name one, .*:A', or .*two.pdb:\*"):
        read_protein(two_chains)
    protein = read_protein(f"{two_chains}:*", "query")
    assert (protein.id, protein.sequence) == ("two.pdb:*", "AGMHST")
    a, b = read_records(two_chains)
    both = torch.cat([a.backbone_atoms, b.backbone_atoms])
    torch.testing.assert_close(protein.backbone_atoms, both, equal_nan=True)


def test_only_structures_have_chains_to_join(tmp_path):
    (tmp_path / "two.fasta").write_text(">a\nMK\n>b\nVL\n")
    with pytest.raises(ValueError, match=r"has no record '\*'; it has: a, b"):
        read_protein(f"{tmp_path / 'two.fasta'}:*")
    with pytest.raises(ValueError, match=r"2 records: a, b; name one, as in '[^*]*two.fasta:a'\.$"):
        read_protein(tmp_path / "two.fasta")


def test_of_alternative_places_the_most_occupied_counts(tmp_path):
    places = [
        atom_at("CA", (1, 1, 1), "A", 0.3),
        atom_at("CA", (2, 2, 2), "B", 0.7),
        atom_at("CA", (3, 3, 3), "C", 0.7),
    ]
    residue = ("ALA", ["N", *places, "C", "O"])
    path = write_structure(tmp_path / "alternative.pdb", {"A": [residue, ("GLY", FULL)]})
    assert read_protein(path).backbone_atoms[0, 1].tolist() == [2, 2, 2]


def test_a_given_protein_keeps_its_atoms():
    atoms = torch.randn(3, 3, 3)
    structure = structure_of("MKV", atoms)
    assert torch.equal(read_protein(Protein("p", structure=structure)).backbone_atoms, atoms)
    ready = Protein("p", embeddings=torch.randn(3, 8), structure=structure)
    assert torch.equal(read_protein(ready).backbone_atoms, atoms)
    with pytest.raises(ValueError, match=r"'p' has 4 residues .* \(3, 3, 3\); give .* \(4, 3, 3\)"):
        read_protein(Protein("p", "MKVL", structure=structure))


def test_a_protein_of_another_copy_of_the_code_is_one():
    # As remote code, processor and pipeline have each a class of that name.
    twin = dataclasses.make_dataclass("Protein", [f.name for f in dataclasses.fields(Protein)])
    structure = structure_of("MKV", torch.randn(3, 3, 3))
    given = twin("p", "mkv", None, structure, "file", False)
    protein = read_protein(given)
    assert type(protein) is Protein and protein.sequence == "MKV"
    assert (protein.structure, protein.source) == (structure, "file")
    read_before = twin("p", "MKV", None, structure, "file", True)
    assert read_protein(read_before) is read_before


def test_a_protein_of_code_from_before_structures_is_one():
    names = ["id", "sequence", "embeddings", "backbone_atoms"]
    given = dataclasses.make_dataclass("Protein", names)("p", "mkv", None, torch.randn(3, 3, 3))
    protein = read_protein(given)
    assert type(protein) is Protein and protein.structure.sequence == "MKV"
    assert torch.equal(protein.backbone_atoms, given.backbone_atoms)
    assert read_protein(dataclasses.replace(given, backbone_atoms=None)).kind == "sequence"


def test_embeddings_are_left_out_with_their_residues():
    atoms, embeddings = torch.randn(3, 3, 3), torch.randn(3, 8)
    atoms[1, 2] = math.nan
    protein = Protein("p", None, embeddings, structure_of("MKV", atoms))
    complete = with_backbone_atoms(protein)
    assert complete.sequence == "MV" and len(complete) == 2
    assert torch.equal(complete.embeddings, embeddings[[0, 2]])


def test_no_atoms_at_all():
    with pytest.raises(ValueError, match=r"p has no residue with N, CA.*give the path of a PDB"):
        with_backbone_atoms(Protein("p", "MKV"))
    with pytest.raises(ValueError, match="p has no residue with N, CA and C"):
        nothing = structure_of("M", torch.full((1, 3, 3), math.nan))
        with_backbone_atoms(Protein("p", structure=nothing))


def test_fasta_comes_as_it_is_read():
    def lines():
        yield from ["\n", ">one some words\n", "MK\n", "\n", " VL \n", ">\n"]
        raise OSError("the pipe broke")

    records = parse_fasta(lines())
    first = next(records)
    assert (first.id, first.sequence) == ("one", "MKVL")
    with pytest.raises(OSError, match="the pipe broke"):
        next(records)
    assert [(p.id, p.sequence) for p in parse_fasta([">", "AC", ">b"])] == [
        ("line1", "AC"),
        ("b", ""),
    ]
    assert not list(parse_fasta(["", " "]))
    with pytest.raises(ValueError, match="line 2 comes before any '>' header line"):
        list(parse_fasta(["", "MKV"]))


def test_a_processor_names_what_the_model_takes():
    names = PlasmaProcessor().model_input_names
    assert names[:3] == ["query_input_ids", "query_attention_mask", "query_mask"]
    assert names[3:] == [name.replace("query", "candidate") for name in names[:3]]
