"""The residue encoder as a backbone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from plasma_hf import PlasmaConfig, PlasmaModel, SubstitutionConfig, SubstitutionModel
from plasma_hf.backbones import load_backbone
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.protein import RESIDUE_LETTERS

TINY = ResidueEncoderConfig(width=16, kernel=5, dilations=[1, 2, 4])
SEQUENCES = st.text(alphabet=RESIDUE_LETTERS, min_size=1, max_size=60)
TOKENIZER = substitution_tokenizer()


def trained():
    """An encoder that is away from its start."""
    torch.manual_seed(0)
    model = ResidueEncoderModel(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODEL = trained()


@torch.no_grad()
def embed(sequences, model=MODEL):
    batch = TOKENIZER(sequences, padding=True, return_tensors="pt")
    hidden = model(batch.input_ids, batch.attention_mask).last_hidden_state
    return [row[: len(s)] for row, s in zip(hidden, sequences, strict=True)]


@given(SEQUENCES)
@settings(max_examples=20, deadline=None)
def test_untrained_it_is_the_substitution_encoder(sequence):
    model = ResidueEncoderModel(TINY).eval()
    windows = SubstitutionModel(SubstitutionConfig()).eval()
    assert torch.equal(embed([sequence], model)[0], embed([sequence], windows)[0])


@given(st.lists(SEQUENCES, min_size=2, max_size=4))
@settings(max_examples=20, deadline=None)
def test_alone_or_in_a_batch(sequences):
    for row, sequence in zip(embed(sequences), sequences, strict=True):
        torch.testing.assert_close(row, embed([sequence])[0], atol=1e-5, rtol=0)


def test_padding_on_the_left_and_no_mask():
    ids = torch.tensor([TOKENIZER("MKVLAWDERT").input_ids])
    mask = torch.ones_like(ids)
    wanted = MODEL(ids).last_hidden_state[0]
    assert torch.equal(MODEL(ids, mask).last_hidden_state[0], wanted)
    padded = torch.nn.functional.pad(ids, (7, 3)), torch.nn.functional.pad(mask, (7, 3))
    hidden = MODEL(*padded).last_hidden_state[0, 7:-3]
    torch.testing.assert_close(hidden, wanted, atol=1e-5, rtol=0)


def test_a_residue_sees_as_far_as_the_config_says():
    reach, middle = TINY.window + (TINY.kernel - 1) // 2 * sum(TINY.dilations), 60
    sequence = ["A"] * 121
    plain = embed(["".join(sequence)])[0][middle]
    for distance, seen in ((reach, True), (reach + 1, False)):
        changed = sequence.copy()
        changed[middle + distance] = "W"
        assert (not torch.equal(embed(["".join(changed)])[0][middle], plain)) == seen


def test_long_proteins_and_single_residues():
    assert embed(["M"])[0].shape == (1, 420)
    assert embed(["MKVLA" * 500])[0].isfinite().all()


def test_saved_and_loaded_as_any_backbone(tmp_path):
    MODEL.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    for row, given_row in zip(
        backbone.embed(["MKVLA", "ACDW"]), embed(["MKVLA", "ACDW"]), strict=True
    ):
        torch.testing.assert_close(row, given_row, atol=1e-5, rtol=0)
    again = ResidueEncoderModel.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), MODEL.state_dict().values(), strict=True)
    )


def test_by_the_auto_classes(tmp_path):
    try:
        AutoConfig.for_model("residue_encoder")
    except ValueError:
        pytest.skip("the package does not register the residue encoder")
    MODEL.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), ResidueEncoderModel)


def test_under_a_head_with_gradient(tmp_path):
    torch.manual_seed(0)
    model = PlasmaModel(PlasmaConfig(plm_config=TINY, head="hinge", kernel_scale=0.2))
    ids = torch.tensor([TOKENIZER("MKVLAWDERT").input_ids])
    model.eval()
    model.save_pretrained(tmp_path)
    again = PlasmaModel.from_pretrained(tmp_path).eval()
    again.backbone.requires_grad_(True)
    assert isinstance(again.backbone, ResidueEncoderModel)
    out = again(query_input_ids=ids, candidate_input_ids=ids.flip(1), return_plan=True)
    out.plan.sum().backward()
    assert again.backbone.residual.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "fields", [{"width": 1}, {"kernel": 4}, {"dilations": [1, 0]}, {"window": -1}]
)
def test_settings_that_make_no_network(fields):
    with pytest.raises(ValueError, match="give a width of 2 or more|window=-1; give 0 or more"):
        ResidueEncoderConfig(**fields)


def test_without_blocks():
    model = ResidueEncoderModel(ResidueEncoderConfig(width=8, dilations=[]))
    assert model(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 420)
