"""3Di states: those of mini3di, whatever stands beside a protein, and alignments by them."""

import sys

import pytest
import torch
from transformers import AutoModel, pipeline

from plasma_hf import ThreeDiConfig, ThreeDiModel, export_to_hub_folder, load_aligner, load_backbone
from plasma_hf.models.modeling_three_di import STATES, three_di
from plasma_hf.models.protein import read_protein

FILES = [f"demo/structures/{name}.pdb.gz" for name in ("2cga_B", "1ppe_E", "9pti_A")]
BPTI = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"


@pytest.fixture(scope="module")
def chains():
    return [read_protein(file) for file in FILES]


def test_states_are_those_of_mini3di(chains):
    """Its own reading of a chain has the CB of the file; ours is where it should be."""
    mini3di, pdb = pytest.importorskip("mini3di"), pytest.importorskip("Bio.PDB")
    import gzip

    with gzip.open(FILES[2], "rt") as lines:
        chain = pdb.PDBParser(QUIET=True).get_structure("x", lines)[0]["A"]
    told = mini3di.Encoder().encode_chain(chain)
    states = three_di(chains[2].backbone_atoms[None])[0].numpy()
    same = (states == told.filled(STATES))[: len(states)]
    assert len(told) == len(states) == 58 and same.mean() > 0.9


def test_states_do_not_depend_on_the_batch(chains):
    backbone = load_backbone("3di")
    together = backbone.embed(chains)
    for alone, one in zip(
        map(backbone.embed, [[chain] for chain in chains]), together, strict=True
    ):
        torch.testing.assert_close(alone[0], one)
    assert [one.shape[1] for one in together] == [backbone.hidden_size] * 3 == [560] * 3


def test_a_residue_without_atoms_has_no_state(chains):
    atoms = chains[2].backbone_atoms.clone()
    atoms[10] = float("nan")
    assert three_di(atoms[None])[0, 10] == STATES
    vectors = ThreeDiModel(ThreeDiConfig()).states
    assert not vectors[STATES].any() and (vectors[:STATES].diagonal() == 1).all()


def test_structures_are_aligned_with_p_values(chains):
    align = pipeline("protein-alignment", backbone="3di")
    result = align((chains[0], chains[1]))
    assert result["p_value"] < 1e-20
    [triad] = [
        {(result.residues("query")[i], result.residues("candidate")[j]) for i, j, _ in s["pairs"]}
        for s in result["segments"]
    ]
    assert {("B:57", "E:57"), ("B:102", "E:102"), ("B:195", "E:195")} <= triad
    assert align((chains[0], chains[2]))["segments"] == []
    assert align.model.config.calibration["beside"] == 420


def test_a_sequence_alone_is_refused():
    with pytest.raises(ValueError, match="give the path of a PDB or mmCIF file"):
        load_backbone("3di").embed([BPTI])
    with pytest.raises(ValueError, match="3Di needs structures"):
        ThreeDiModel(ThreeDiConfig())(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="spread=0"):
        ThreeDiConfig(spread=0)


def test_a_missing_package_is_named(chains, monkeypatch):
    monkeypatch.setitem(sys.modules, "mini3di", None)
    with pytest.raises(ImportError, match="pip install mini3di"):
        three_di(chains[2].backbone_atoms[None])


def test_the_model_travels(tmp_path, chains):
    model = load_aligner("3di")
    folder = export_to_hub_folder(model, model.processor, tmp_path)
    assert (folder / "modeling_three_di.py").is_file()
    # MultiVectorEncoder would give it sequences.
    assert not (folder / "modules.json").exists() and not (folder / "multi_vector.py").exists()
    assert "MultiVectorEncoder" not in (folder / "README.md").read_text()
    again = AutoModel.from_pretrained(folder)
    sides = load_backbone("3di").embed(chains[:2])
    one, other = (each.align_pairs(sides[:1], sides[1:]) for each in (model, again))
    torch.testing.assert_close(one.plans, other.plans)
