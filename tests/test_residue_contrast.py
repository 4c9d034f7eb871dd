import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from plasma_hf import ProtAlignConfig, ProtAlignModel, load_backbone
from plasma_hf.data import StructurePair, pair_of
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from plasma_hf.training.residue_contrast import (
    KNOWN,
    NOT_ASKED,
    ChainBatches,
    ResidueContrast,
    ResidueTraining,
    crop,
    train_encoders,
)
from tests.helpers.structure_files import make_pairs

PAIRS = make_pairs(8)
CLUSTERS = ["a", "a", "b", "b", "c", "c", "d", "d"]
SETTINGS = ResidueTraining(steps=4, chains=4, max_residues=16, residues=24, device="cpu")


def tiny_model():
    torch.manual_seed(0)
    encoder = ResidueEncoderModel(ResidueEncoderConfig(width=8, dilations=[1]))
    structures = ProteinMPNNEncoder(
        ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8, dropout=0.0)
    )
    model = ProtAlignModel(
        ProtAlignConfig(sequence_size=420, structure_size=16, hidden_size=16, num_heads=2)
    )
    model.attach_backbone(encoder).attach_structure_encoder(structures)
    model.processor = ProtAlignProcessor()
    return model


def run(folder, model=None, **options):
    settings = replace(SETTINGS, **options.pop("settings", {}))
    options = {"disable_tqdm": True} | options
    return train_encoders(model or tiny_model(), PAIRS, CLUSTERS, folder, settings, **options)


def test_a_batch_is_a_function_of_its_number():
    batches = ChainBatches(PAIRS, CLUSTERS, ProtAlignProcessor(), SETTINGS)
    again = ChainBatches(PAIRS, CLUSTERS, ProtAlignProcessor(), SETTINGS)
    for name, value in batches[3].items():
        assert torch.equal(value, again[3][name])
    batch = batches[0]
    assert batch["input_ids"].shape[0] == 4 and batch["input_ids"].shape[1] <= 16
    assert batch["backbone"].shape[:2] == batch["input_ids"].shape
    assert len(batch["chosen"]) <= 24
    assert (KNOWN["A"], KNOWN["C"], KNOWN.get("X")) == (0, 4, None)
    assert set(batch["amino_acids"].unique().tolist()) <= {NOT_ASKED, *KNOWN.values()}
    assert batch["structure_residue_mask"].flatten()[batch["chosen"]].all()
    with pytest.raises(IndexError):
        batches[4]


def test_a_crop_keeps_residues_and_atoms_together():
    chain = max((pair.structure for pair in PAIRS), key=len)
    backbone = chain.backbone.clone()
    backbone[5:] = math.nan  # what is left to crop to is the beginning
    cut = crop(replace(chain, backbone=backbone), 8, np.random.default_rng(0))
    assert len(cut) == 8 and cut.residue_mask.any()
    start = chain.author_numbers.index(cut.author_numbers[0])
    assert cut.sequence == chain.sequence[start : start + 8]


def test_the_loss_in_words():
    model = tiny_model()
    objective = ResidueContrast(model, replace(SETTINGS, recovery_weight=0.5)).eval()
    batch = ChainBatches(PAIRS, CLUSTERS, model.processor, SETTINGS)[0]
    parts = objective(**batch)
    assert parts["loss"].item() == pytest.approx(
        (parts["contrast"] + 0.5 * parts["recovery"]).item(), rel=1e-6
    )
    # Nobody knows anything yet: about as many choices as there are.
    assert parts["contrast"].item() == pytest.approx(math.log(len(batch["chosen"])), abs=4)
    assert parts["recovery"].item() == pytest.approx(math.log(20), abs=1)


@pytest.mark.slow
def test_it_learns_and_freezes_both_encoders(tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(tmp_path, model, settings={"steps": 30})
    changed = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {"backbone", "structure_encoder"}  # the pools are left alone
    assert not any(p.requires_grad for p in model.sequence_encoder.parameters())
    assert model.structure_encoder.config.augment_eps == 0


def test_the_sequence_encoder_can_stay(tmp_path):
    model = tiny_model()
    before = model.sequence_encoder.gain.clone()
    run(tmp_path, model, sequences=False)
    assert torch.equal(model.sequence_encoder.gain, before)


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_in_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole", save_steps=2, save_total_limit=2)
    last = tmp_path / "whole" / "checkpoint-4"
    shutil.rmtree(last)  # what a run that was stopped after step 2 leaves behind
    with pytest.raises(FileExistsError, match="resume"):
        run(tmp_path / "whole")
    resumed = run(tmp_path / "whole", resume=True)
    assert last.exists()
    for name, value in whole.state_dict().items():
        if name.startswith(("backbone", "structure_encoder")):
            assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_cannot_be_learnt_from_is_refused():
    chain = PAIRS[0].structure
    other = StructurePair("p", chain.sequence[:-1], chain)
    with pytest.raises(ValueError, match="give the residues observed"):
        ChainBatches([other], ["a"], ProtAlignProcessor(), SETTINGS)
    empty = pair_of(replace(chain, backbone=torch.full_like(chain.backbone, math.nan)))
    with pytest.raises(ValueError, match="no chain with backbone atoms"):
        ChainBatches([empty], ["a"], ProtAlignProcessor(), SETTINGS)
    head = ProtAlignModel(ProtAlignConfig(sequence_size=420, structure_size=16))
    with pytest.raises(ValueError, match="no sequence encoder"):
        train_encoders(head, PAIRS, CLUSTERS, "nowhere")
    head.attach_backbone(load_backbone("substitution"))
    with pytest.raises(ValueError, match="no structure encoder"):
        train_encoders(head, PAIRS, CLUSTERS, "nowhere")
