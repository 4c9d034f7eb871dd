"""TM-Vec against the original, its checkpoint files, and padding."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, T5Config, T5EncoderModel

from plasma_hf.hub.upstream import read_checkpoint
from plasma_hf.models.modeling_tmvec import TMVecConfig, TMVecModel

SIZES = {"hidden_size": 16, "intermediate_size": 24, "protein_size": 6}
PARAMS = {
    "d_model": 16,
    "nhead": 4,
    "num_layers": 2,
    "dim_feedforward": 24,
    "out_dim": 6,
    "dropout": 0.1,
    "activation": "relu",
}


def t5_config():
    return T5Config(vocab_size=28, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def tmvec():
    """A small random TM-Vec without a language model."""
    torch.manual_seed(0)
    return TMVecModel(TMVecConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def tmvec_t5():
    """A small random TM-Vec over a T5 encoder."""
    torch.manual_seed(0)
    return TMVecModel(TMVecConfig(**SIZES, plm_config=t5_config())).eval()


@pytest.fixture
def published(tmvec, tmp_path):
    """Checkpoint and parameter file in the published layout."""
    ckpt, params = tmp_path / "tm_vec.ckpt", tmp_path / "params.json"
    torch.save({"epoch": 1, "state_dict": tmvec.state_dict(), "callbacks": {}}, ckpt)
    params.write_text(json.dumps(PARAMS | {"lr0": 1e-4, "warmup_steps": 300}))
    return ckpt, params


@pytest.fixture(scope="module")
def released(golden):
    """The reference's random TM-Vec, from the files that it wrote."""
    folder = golden / "tmvec"
    return TMVecModel.from_upstream(folder / "tm_vec_model.ckpt", folder / "tm_vec_params.json")


@pytest.mark.parametrize("length", [7, 53, 120])
@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_original(golden, released, length, grad):
    wanted = load_file(golden / "tmvec" / f"L{length}.safetensors")
    with torch.set_grad_enabled(grad):
        out = released(inputs_embeds=wanted["x"])
    assert not released.training and released.language_model is None
    torch.testing.assert_close(out.last_hidden_state, wanted["per_residue"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooler_output, wanted["per_protein"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_original_without_padding(golden, released, grad):
    wanted = load_file(golden / "tmvec" / "padded_37_in_50.safetensors")
    with torch.set_grad_enabled(grad):
        out = released(inputs_embeds=wanted["x"], residue_mask=~wanted["padding_mask"].bool())
    residues = wanted["per_residue_unpadded"]
    torch.testing.assert_close(out.last_hidden_state[:, :37], residues, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooler_output, wanted["per_protein_unpadded"], atol=2e-6, rtol=0)
    assert not out.last_hidden_state[:, 37:].any()


def test_equals_the_layer_of_torch_in_training_form():
    torch.manual_seed(0)
    config = TMVecConfig(**SIZES, activation="gelu", dropout=0.0)
    model = TMVecModel(config)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", batch_first=True)
    layer.load_state_dict(model.encoder.layers[0].state_dict())
    hidden, mask = torch.randn(2, 9, 16), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    ours, theirs = model.encoder.layers[0](hidden, mask), layer(hidden, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], theirs[mask])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    junk=st.sampled_from([0.3, 1e4, float("nan"), float("inf")]),
    seed=st.integers(0, 99),
)
def test_a_protein_is_the_same_alone_and_padded(tmvec, lengths, padding, junk, seed):
    torch.manual_seed(seed)
    width = max(1, max(lengths) + padding)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        row[torch.randperm(width)[:length]] = True
    embeddings = torch.randn(len(lengths), width, 16).masked_fill(~mask[..., None], junk)
    out = tmvec(inputs_embeds=embeddings, residue_mask=mask)
    assert not out.last_hidden_state[~mask].any()
    for i, length in enumerate(lengths):
        if length == 0:
            assert not out.pooler_output[i].any()
            continue
        alone = tmvec(inputs_embeds=embeddings[i, mask[i]][None])
        residues = out.last_hidden_state[i, mask[i]]
        torch.testing.assert_close(residues, alone.last_hidden_state[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=0)


def test_gradients_are_finite_where_a_protein_is_empty(tmvec):
    embeddings = torch.randn(2, 4, 16, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    tmvec(inputs_embeds=embeddings, attention_mask=mask).pooler_output.square().sum().backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[mask.bool()].any() and not embeddings.grad[~mask.bool()].any()


def test_over_a_language_model_alone_and_padded(tmvec_t5):
    proteins = [[5, 9, 12, 3], [7, 7, 20, 4, 5, 6, 11], [8]]
    end = 1  # T5's </s>, which the language model sees and TM-Vec does not
    width = max(map(len, proteins)) + 3
    ids = torch.zeros(len(proteins), width, dtype=torch.long)
    attended, residues = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, protein in enumerate(proteins):
        ids[i, : len(protein) + 1] = torch.tensor([*protein, end])
        attended[i, : len(protein) + 1] = 1
        residues[i, : len(protein)] = 1
    out = tmvec_t5(input_ids=ids, attention_mask=attended, residue_mask=residues)
    for i, protein in enumerate(proteins):
        n = len(protein)
        hidden = tmvec_t5.language_model(torch.tensor([[*protein, end]])).last_hidden_state
        alone = tmvec_t5(inputs_embeds=hidden[:, :n])
        torch.testing.assert_close(
            out.last_hidden_state[i, :n], alone.last_hidden_state[0], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(out.pooler_output[i], alone.pooler_output[0], atol=1e-5, rtol=0)
        assert not out.last_hidden_state[i, n:].any()


def test_a_missing_mask_means_all(tmvec_t5):
    ids = torch.tensor([[5, 9, 12, 3]])
    ones = torch.ones_like(ids)
    assert torch.equal(tmvec_t5(ids)[0], tmvec_t5(ids, ones)[0])
    assert torch.equal(tmvec_t5(ids)[1], tmvec_t5(ids, ones, ones, return_dict=False)[1])


@pytest.mark.parametrize("options", [{}, {"attn_implementation": "sdpa"}])
def test_saved_and_loaded(tmvec, tmvec_t5, tmp_path, options):
    for model in (tmvec, tmvec_t5):
        folder = tmp_path / type(model.language_model).__name__
        model.save_pretrained(folder)
        assert (folder / "model.safetensors").is_file()
        loaded = TMVecModel.from_pretrained(folder, **options)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    ids = torch.tensor([[5, 9, 12, 3]])
    found, wanted = (one(ids).pooler_output for one in (loaded, tmvec_t5))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_what_a_checkpoint_lacks_is_initialised(tmvec, tmp_path):
    kept = {n: t for n, t in tmvec.state_dict().items() if n.startswith("mlp")}
    tmvec.save_pretrained(tmp_path, state_dict=kept)
    loaded = TMVecModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.mlp.weight, tmvec.mlp.weight)
    attention = loaded.encoder.layers[1].self_attn
    assert 0.1 < attention.in_proj_weight.std() < 0.3 and not attention.in_proj_bias.any()


def test_published_layout_there_and_back(tmvec, published):
    loaded = TMVecModel.from_upstream(*published)
    embeddings = torch.randn(2, 5, 16)
    assert torch.equal(
        loaded(inputs_embeds=embeddings).pooler_output, tmvec(inputs_embeds=embeddings)[1]
    )
    assert loaded.config.dropout == 0.1 and loaded.config.protein_size == 6


def test_a_language_model_is_attached(published, tmp_path):
    model, encoder = TMVecModel.from_upstream(*published), T5EncoderModel(t5_config()).eval()
    assert model.attach_language_model(encoder, "Rostlab/some", "main") is model
    assert model.attach_language_model(encoder, "Rostlab/some").config.plm_revision == "main"
    model.save_pretrained(tmp_path / "both")
    loaded = TMVecModel.from_pretrained(tmp_path / "both")
    ids = torch.tensor([[5, 9, 12, 1]])
    found, wanted = (one(ids).pooler_output for one in (loaded, model))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert loaded.config.plm_name_or_path == "Rostlab/some" and loaded.config.plm_revision == "main"
    assert model.attach_language_model(encoder, "Rostlab/other").config.plm_revision is None


class TouchesFile:
    """What an attacker puts into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmvec, published, tmp_path, zipped):
    ckpt, params = published
    made = tmp_path / "made"
    checkpoint = {"state_dict": tmvec.state_dict(), "hyper_parameters": TouchesFile(made)}
    torch.save(checkpoint, ckpt, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"tm_vec.ckpt was not read.*(posix|nt)\.system"):
        TMVecModel.from_upstream(ckpt, params)
    assert not made.exists()
    torch.load(ckpt, weights_only=False)  # the pickle is a real one
    assert made.exists()


def shorten(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("change", [shorten, lambda content: content[:10], lambda content: b""])
def test_a_checkpoint_cut_short(published, change):
    ckpt, params = published
    ckpt.write_bytes(change(ckpt.read_bytes()))
    with pytest.raises(ValueError, match=r"tm_vec.ckpt cannot be read .* download it again"):
        TMVecModel.from_upstream(ckpt, params)


def test_other_files_in_place_of_the_checkpoint(tmvec, published):
    ckpt, params = published
    with pytest.raises(ValueError, match="params.json cannot be read as a checkpoint"):
        TMVecModel.from_upstream(params, params)
    with pytest.raises(FileNotFoundError, match=r"nowhere.ckpt is not a file"):
        TMVecModel.from_upstream(ckpt.with_name("nowhere.ckpt"), params)
    torch.save(tmvec.state_dict(), ckpt)
    with pytest.raises(ValueError, match="has no state_dict"):
        TMVecModel.from_upstream(ckpt, params)
    torch.save([torch.ones(1)], ckpt)
    with pytest.raises(ValueError, match="holds a list"):
        read_checkpoint(ckpt)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"out_dim": 7}, r"do not belong together, 2 tensors.*mlp.bias: \(6,\) in the checkpoint"),
        ({"num_layers": 3}, "encoder.layers.2.* nothing in the checkpoint"),
        ({"num_layers": 1}, r"encoder.layers.1.* nothing by the parameters"),
        ({"nhead": 3}, "cannot be shared out"),
        ({"d_model": "16"}, "not a TM-Vec parameter file, d_model is missing or of the wrong kind"),
        ({"activation": "tanh"}, "activation='tanh'; accepted are 'relu', 'gelu'"),
    ],
)
def test_parameters_of_another_checkpoint(published, content, message):
    ckpt, params = published
    params.write_text(json.dumps(PARAMS | content))
    with pytest.raises(ValueError, match=message):
        TMVecModel.from_upstream(ckpt, params)


@pytest.mark.parametrize("text", ["[]", "{}", "not JSON"])
def test_files_that_are_no_parameters(published, text):
    ckpt, params = published
    params.write_text(text)
    with pytest.raises(ValueError, match=r"params.json is not"):
        TMVecModel.from_upstream(ckpt, params)


def test_inputs_that_cannot_be(tmvec, tmvec_t5):
    ids, embeddings = torch.tensor([[5, 9]]), torch.zeros(1, 2, 16)
    with pytest.raises(ValueError, match="neither is here"):
        tmvec()
    with pytest.raises(ValueError, match="not as both"):
        tmvec_t5(input_ids=ids, inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="no language model .*Rostlab/prot_t5_xl"):
        tmvec(input_ids=ids)
    named = TMVecModel(TMVecConfig(**SIZES, plm_name_or_path="Rostlab/ProstT5"))
    with pytest.raises(ValueError, match="load_backbone\\('Rostlab/ProstT5'"):
        named(input_ids=ids)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 5\); give \(batch, residues, 16\)"):
        tmvec(inputs_embeds=torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"mask has shape \(1, 3\); give \(1, 2\)"):
        tmvec(inputs_embeds=embeddings, residue_mask=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 32, "plm_config": t5_config()}, "width 16, TMVec takes hidden_size=32"),
        ({"hidden_size": 32, "plm_config": BertConfig().to_dict()}, "width 768"),
        ({"plm_config": {"model_type": "nobody"}}, "model_type='nobody'"),
        ({"protein_size": 0}, "protein_size=0; give a number above 0"),
        ({"num_hidden_layers": -1}, "give 0 or more"),
        ({"dropout": 1}, "dropout=1; give"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TMVecConfig(**options)


def test_a_language_model_of_another_width_is_refused(tmvec):
    other = T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="width 8, TMVec takes hidden_size=16"):
        tmvec.attach_language_model(T5EncoderModel(other))
