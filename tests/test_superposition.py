"""Superpositions: the right motion, no mirror images, outliers, and files that are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import Bio.PDB
import biotite.structure as biotite
import gemmi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from transformers import pipeline
from typer.testing import CliRunner

import plasma_hf  # noqa: F401  registers the task
from plasma_hf.cli.main import app
from plasma_hf.io.superposition import CA, superpose, write_superposed
from plasma_hf.models.alignment_result import AlignmentResult
from plasma_hf.models.protein import Protein, Structure, read_protein

STRUCTURES = "demo/structures"
SIDES = f"{STRUCTURES}/2cga_B.pdb.gz", f"{STRUCTURES}/1ppe_E.pdb.gz"


def structure(places: np.ndarray, name: str = "s") -> Structure:
    """Make a structure of which each residue has its CA here, and the rest around it."""
    around = torch.tensor([[-1.4, 0.3, 0.1], [0, 0, 0], [1.2, 0.8, 0.2], [1.4, 2.0, 0.3]])
    backbone = torch.as_tensor(places, dtype=torch.float32)[:, None] + around
    numbers = tuple(str(n) for n in range(1, len(places) + 1))
    return Structure(name, "A" * len(places), backbone, numbers, ("A",) * len(places))


def walk(residues: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3.8, size=(residues, 3)).cumsum(0)


seeds = st.integers(0, 2**16)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(4, 60))
def test_a_motion_is_found(seed: int, residues: int) -> None:
    places, rotation = walk(residues, seed), Rotation.random(rng=seed).as_matrix()
    shift = np.array([3.0, -20.0, 7.0])
    weights = np.random.default_rng(seed).uniform(0.2, 1.0, residues)
    pairs = [(i, i, w) for i, w in enumerate(weights)]
    found = superpose(structure(places @ rotation.T + shift), structure(places), pairs)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-4)
    np.testing.assert_allclose(found.apply(places), places @ rotation.T + shift, atol=1e-3)
    assert found.rmsd < 1e-4 and len(found.pairs) == found.matched == residues
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_it_is_that_of_other_packages(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fixed = walk(40, seed)
    moving = fixed @ Rotation.random(rng=seed).as_matrix().T + rng.normal(scale=0.5, size=(40, 3))
    weights = rng.uniform(0.1, 1.0, 40)
    sides = structure(fixed), structure(moving)
    found = superpose(*sides, [(i, i, w) for i, w in enumerate(weights)])
    kept = [pair[0] for pair in found.pairs]
    places = [s.backbone[kept, CA].double().numpy() for s in sides]
    of_kept = weights[kept] / weights[kept].sum()
    middles = [of_kept @ one for one in places]
    want, _ = Rotation.align_vectors(places[0] - middles[0], places[1] - middles[1], of_kept)
    np.testing.assert_allclose(found.rotation, want.as_matrix(), atol=1e-4)
    plain = superpose(*sides, [(i, i, w) for i, w in enumerate(weights)], weighted=False)
    same = [pair[0] for pair in plain.pairs]
    fit, _ = biotite.superimpose(fixed[same].astype(np.float32), moving[same].astype(np.float32))
    assert plain.rmsd == pytest.approx(float(biotite.rmsd(fixed[same], fit)), abs=1e-4)


def test_mirror_images_are_not_laid_on_each_other() -> None:
    places = walk(50, 1)
    pairs = [(i, i, 1.0) for i in range(50)]
    found = superpose(structure(places), structure(places * [1, 1, -1]), pairs)
    assert np.linalg.det(found.rotation) == pytest.approx(1.0)
    assert found.rmsd_all > 2 and found.tm_score < 0.7


def test_outliers_are_left_out_and_counted() -> None:
    places = walk(60, 2)
    moved = places.copy()
    moved[50:] += [40.0, 0.0, 0.0]
    found = superpose(structure(places), structure(moved), [(i, i, 0.9) for i in range(60)])
    assert [pair[0] for pair in found.pairs] == list(range(50)) and found.matched == 60
    assert found.rmsd < 1e-4 and 10 < found.rmsd_all < 40
    assert found.tm_score == pytest.approx(50 / 60, abs=0.01)


def test_what_cannot_be_superposed_is_said() -> None:
    line = structure(np.arange(5.0)[:, None] * [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="lie on a line"):
        superpose(line, line, [(i, i, 1.0) for i in range(5)])
    gaps = structure(walk(4, 3) * [[np.nan], [np.nan], [1], [1]])
    with pytest.raises(ValueError, match="have 2 aligned residues with a CA atom"):
        superpose(gaps, gaps, [(i, i, 1.0) for i in range(4)])
    result = AlignmentResult({"segments": []}, Protein("q", "MK"), Protein("c", "MK"))
    with pytest.raises(ValueError, match="q is no structure; give a PDB or mmCIF file"):
        result.superpose()


@pytest.fixture(scope="module")
def proteases() -> Any:
    return pipeline("protein-alignment")(SIDES)


@pytest.mark.parametrize("with_query", [False, True])
def test_files_are_read_back(proteases: Any, tmp_path: Path, with_query: bool) -> None:
    path = tmp_path / "out.cif"
    found = proteases.superpose(str(path), with_query=with_query)
    assert found.rmsd < 1.5 < found.rmsd_all and found.tm_score > 0.85
    [model] = gemmi.read_structure(str(path))
    assert [chain.name for chain in model] == ["B", "E"][not with_query :]
    given = gemmi.read_structure(SIDES[1])[0]["E"]
    weights = {labels[2]: pair[2] for labels, pair in named(proteases, found.pairs)}
    for there, before in zip(model["E"], given, strict=True):
        assert (there.name, str(there.seqid)) == (before.name, str(before.seqid))
        want = weights.get(str(there.seqid), 0.0)
        for atom, old in zip(there, before, strict=True):
            np.testing.assert_allclose(atom.pos.tolist(), found.apply(old.pos.tolist()), atol=2e-3)
            assert atom.b_iso == pytest.approx(want, abs=0.01)
    # Those with an insertion code keep it.
    assert {"184A", "188A", "221A"} <= {str(residue.seqid) for residue in model["E"]}
    read = Bio.PDB.MMCIFParser(QUIET=True).get_structure("x", str(path))
    atoms = [atom for atom in read.get_atoms() if atom.get_full_id()[2] == "E"]
    assert len(atoms) == sum(len(residue) for residue in given)


def named(result: Any, pairs: Any) -> Any:
    """Yield the place, chain and number of each candidate residue with its pair."""
    labels = result.residues("candidate")
    return [((pair[1], *labels[pair[1]].split(":")), pair) for pair in pairs]


def test_without_a_file_the_backbone_is_written(tmp_path: Path) -> None:
    one, other = (read_protein(f"{side}") for side in SIDES)
    one, other = (Protein(p.id, structure=p.structure) for p in (one, other))
    result = pipeline("protein-alignment")((one, other))
    result.superpose(str(tmp_path / "out.cif"), with_query=True)
    [model] = gemmi.read_structure(str(tmp_path / "out.cif"))
    assert [len(chain) for chain in model] == [len(one), len(other)]
    assert {len(residue) for chain in model for residue in chain} == {4}


def test_chains_of_one_name_stay_apart(tmp_path: Path) -> None:
    places = walk(20, 4)
    sides = [Protein(n, structure=structure(places + k, n)) for k, n in ((0, "a"), (5, "b"))]
    found = superpose(*(s.structure for s in sides), [(i, i, 1.0) for i in range(20)])
    write_superposed(tmp_path / "out.cif", found, *sides, with_query=True)
    [model] = gemmi.read_structure(str(tmp_path / "out.cif"))
    assert [chain.name for chain in model] == ["A", "B"]
    ours, theirs = (np.array([r["CA"][0].pos.tolist() for r in chain]) for chain in model)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_from_the_shell(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["align", *words])

    out = tmp_path / "out.cif"
    result = run(*SIDES, "--superpose", str(out), "--with-query")
    assert result.exit_code == 0, result.output
    assert "\nsuperposed " in result.stdout and "TM-score 0." in result.stdout
    assert len(gemmi.read_structure(str(out))[0]) == 2
    result = run("MKV", SIDES[0], "--superpose", str(out))
    assert result.exit_code == 2 and "query is no structure" in result.stderr
    result = run("demo/serine_proteases.fasta", SIDES[0], "--superpose", str(out))
    assert "--superpose takes one pair, and these are 2" in result.stderr


@pytest.fixture
def as_cif(tmp_path: Path) -> Path:
    """A protease as mmCIF, in a file whose name says nothing."""
    path = tmp_path / "trypsin"
    given = gemmi.read_structure(SIDES[1])
    given.setup_entities()
    given.make_mmcif_document().write_file(str(path))
    return path


def test_two_files_of_mmcif_have_labels_of_their_own(as_cif: Path, tmp_path: Path) -> None:
    result = pipeline("protein-alignment")((f"{as_cif}:E", f"{as_cif}:E"))
    path = tmp_path / "out.cif"
    result.superpose(str(path), with_query=True)
    [model] = gemmi.read_structure(str(path))
    assert [chain.name for chain in model] == ["E", "A"]
    assert len({residue.subchain for residue in model["E"]} & {r.subchain for r in model["A"]}) == 0
    read = Bio.PDB.MMCIFParser(QUIET=True, auth_chains=False).get_structure("x", str(path))
    assert len(list(read.get_atoms())) == 2 * model["E"].count_atom_sites()
    # Residues of the polymer have their place in it.
    assert [residue.label_seq for residue in model["A"].get_polymer()] == list(range(1, 224))


def test_a_file_that_has_changed_is_not_moved(proteases: Any, as_cif: Path, tmp_path: Path) -> None:
    read = read_protein(f"{as_cif}:E")
    moved = gemmi.read_structure(SIDES[1])
    moved[0].transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), gemmi.Vec3(50, 0, 0)))
    moved.make_mmcif_document().write_file(str(as_cif))
    result = pipeline("protein-alignment")((read_protein(SIDES[0]), read))
    found = result.superpose(str(tmp_path / "out.cif"))
    [model] = gemmi.read_structure(str(tmp_path / "out.cif"))
    assert {len(residue) for residue in model["E"]} == {4}  # the backbone, as it was read
    want = found.apply(read.structure.backbone[0, CA].double().numpy())
    np.testing.assert_allclose(model["E"][0]["CA"][0].pos.tolist(), want, atol=2e-3)


@pytest.mark.parametrize("name", ["out.pdb", "out.cif.gz", "out"])
def test_a_name_of_another_format_is_refused(proteases: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="would hold mmCIF; give a name that ends in .cif"):
        proteases.superpose(str(tmp_path / name))
    assert not (tmp_path / name).exists()
