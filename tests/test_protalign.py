"""ProtAlign: what a vector depends on, encoders, what is saved, what is refused."""

import json

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, Trainer, TrainingArguments

import plasma_hf
from plasma_hf import ProtAlignConfig, ProtAlignModel, ProteinMPNNEncoder
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from plasma_hf.models.protein import Structure, is_structure, read_structure
from plasma_hf.training.arguments import lora_config
from tests.helpers.structures import FULL, write_structure
from tests.helpers.tiny_backbones import FAMILIES

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMASMTGGQQMGRGS", "MKTAYIAKQR", "W"]
RESIDUES = ("ALA", "GLY", "LYS", "SER", "TRP", "VAL")


def tiny_config(**fields):
    sizes = {"sequence_size": 12, "structure_size": 8, "hidden_size": 16, "num_heads": 2}
    return ProtAlignConfig(**sizes | fields)


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    return ProtAlignModel(tiny_config(**fields)).eval()


def whole_model(seed=0, **fields):
    """A small model with both encoders."""
    under = {
        "plm_config": ResidueEncoderConfig(window=1, width=8, kernel=3, dilations=[1]),
        "structure_config": ProteinMPNNConfig(hidden_size=8, num_layers=1, k_neighbors=6),
    }
    return tiny_model(seed, **under, **fields)


def draw(lengths=(9, 4, 7), width=12, seed=0):
    """Residue embeddings with something at padding, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), max(lengths), width, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return rows.masked_fill(~mask[..., None], torch.nan), mask


def make_structure(residues=20, seed=0, missing=()):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(residues, 1, 3, generator=generator)
    backbone = (3.8 * steps / steps.norm(dim=-1, keepdim=True)).cumsum(0)
    backbone = backbone + torch.randn(residues, 4, 3, generator=generator)
    backbone[list(missing)] = torch.nan
    numbers = tuple(str(i + 1) for i in range(residues))
    return Structure(f"s{seed}.pdb:A", "A" * residues, backbone, numbers, ("A",) * residues)


@pytest.fixture(scope="module")
def structures():
    return [make_structure(20 - 3 * i, seed=i, missing=(2,) if i else ()) for i in range(4)]


@torch.no_grad()
def vectors(model, structures):
    return model.embed_sequences(SEQUENCES), model.embed_structures(structures)


def check_equal(some, others, atol=1e-6):
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_the_heads_have_the_published_number_of_parameters():
    model = ProtAlignModel(ProtAlignConfig())
    count = {
        name: sum(value.numel() for value in part.parameters())
        for name, part in model.named_children()
    }
    assert count == {"sequence_pool": 361_344, "structure_pool": 66_432, "pair_loss": 0}
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["sequence_pool.query"] == (1, 1, 128)
    assert shapes["sequence_pool.attention.k_proj_weight"] == (128, 1280)
    assert shapes["structure_pool.attention.in_proj_weight"] == (384, 128)


def test_forward_gives_loss_logits_and_features():
    model = tiny_model()
    (sequences, mask), (structures, structure_mask) = draw(), draw((6, 8, 3), 8, seed=1)
    sides = (sequences, mask, structures, structure_mask)
    out = model(*sides)
    cosines = out.sequence_features @ out.structure_features.T
    torch.testing.assert_close(out.logits, cosines / 0.07)
    own = torch.arange(3)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(out.logits, own) + cross_entropy(out.logits.T, own)) / 2
    torch.testing.assert_close(out.loss, expected)
    check_equal(model(*sides, return_dict=False), out.to_tuple())
    more = model(sequences[:2], mask[:2], structures, structure_mask, return_loss=False)
    assert more.loss is None
    check_equal([more.logits], [out.logits[:2]], 1e-5)
    assert model(*sides, groups=torch.tensor([0, 0, 1])).loss < out.loss


def test_normalisation_can_be_left_out():
    model = tiny_model(normalize=False)
    (sequences, mask), (structures, structure_mask) = draw(), draw((6, 8, 3), 8, seed=1)
    out = model(sequences, mask, structures, structure_mask)
    # A layer norm of width 16 has the length 4, and so have both sides.
    cosines = out.sequence_features @ out.structure_features.T
    torch.testing.assert_close(out.logits, 16 * cosines / 0.07, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"spread": True, "standardize": True},
        {"loss": "siglip"},
        {"loss": "siglip", "loss_chunk": 2},
    ],
)
def test_training_lowers_the_loss(fields):
    model = tiny_model(**fields).train()
    (sequences, mask), (structures, structure_mask) = draw(), draw((6, 8, 3), 8, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        out = model(sequences, mask, structures, structure_mask)
        optimizer.zero_grad()
        out.loss.backward()
        assert all(value.grad is not None for value in model.parameters())
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0] / 2
    assert (out.logits is None) == ("loss_chunk" in fields)
    assert model.eval()(sequences, mask, structures, structure_mask).logits is not None


def test_half_precision_features_and_autocast(structures):
    model = tiny_model()
    (sequences, mask), (coordinates, structure_mask) = draw(), draw((6, 8, 3), 8, seed=1)
    out = model(sequences, mask, coordinates, structure_mask)
    halved = model(sequences.half(), mask, coordinates.half(), structure_mask)
    torch.testing.assert_close(halved.loss, out.loss, rtol=0.01, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(sequences, mask, coordinates, structure_mask)
    assert cast.loss.dtype == cast.logits.dtype == torch.float32
    torch.testing.assert_close(cast.loss, out.loss, rtol=0.05, atol=0.02)


def test_proteins_go_through_the_encoders(structures):
    model = whole_model()
    batch = ProtAlignProcessor()(sequences=SEQUENCES, structures=structures)
    with torch.no_grad():
        out = model(**batch)
    sequences, folded = vectors(model, structures)
    check_equal([sequences, folded], [out.sequence_features, out.structure_features], 1e-5)
    for size in (1, 3):
        check_equal([model.embed_sequences(SEQUENCES, size)], [sequences], 1e-5)
        check_equal([model.embed_structures(structures, size)], [folded], 1e-5)
    assert model.embed_sequences([]).shape == (0, 16)
    assert model.embed_structures([]).shape == (0, 16)


def test_embedding_leaves_the_mode_and_no_gradient(structures):
    model = whole_model(attention_dropout=0.5)
    expected = vectors(model, structures)
    model.train()
    model.structure_encoder.eval()
    check_equal(vectors(model, structures), expected)
    assert model.training and model.backbone.training and not model.structure_encoder.training
    assert not any(each.requires_grad for each in vectors(model, structures))


def test_explanations_are_weights_of_residues(structures):
    model = whole_model()
    for sequence in SEQUENCES:
        weights = model.explain_sequence(sequence)
        assert weights.shape == (len(sequence),) and weights.sum() == pytest.approx(1)
    for i, structure in enumerate(structures):
        weights = model.explain_structure(structure)
        assert weights.shape == (len(structure),) and weights.sum() == pytest.approx(1)
        assert (weights[2] == 0) == bool(i)  # residue 2 of all but the first has no atoms


def test_encoders_train_where_they_are_let(structures):
    model = whole_model().train()
    assert all(value.requires_grad for value in model.parameters())
    batch = ProtAlignProcessor()(sequences=SEQUENCES, structures=structures)
    model(**batch).loss.backward()
    # Nobody reads the position of a neighbour's message after the last layer.
    unused = {name for name, value in model.named_parameters() if value.grad is None}
    assert all(name.startswith("structure_encoder.layers.0.edge_") for name in unused)
    encoder = ProteinMPNNEncoder(model.config.structure_config)
    model.attach_structure_encoder(encoder).train()
    assert not model.structure_encoder.training
    assert not any(value.requires_grad for value in encoder.parameters())
    encoder.requires_grad_(True)
    assert model.train().structure_encoder.training


def test_saved_and_loaded_with_both_encoders(structures, tmp_path):
    model = whole_model(loss="siglip")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is ProtAlignModel
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    check_equal(vectors(loaded, structures), vectors(model, structures), 1e-6)
    frozen = {name.split(".")[0] for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone", "structure_encoder"}
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.logit_temperature == 0.1 and config.learn_temperature
    assert type(config.structure_config) is ProteinMPNNConfig
    assert config.plm_config.model_type == "residue_encoder"
    assert (
        "protein-retrieval"
        in json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    )


@pytest.mark.parametrize("fields", [{}, {"loss": "siglip"}, {"learn_temperature": True}])
def test_heads_alone_are_saved_and_loaded(tmp_path, fields):
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path)
    loaded = ProtAlignModel.from_pretrained(tmp_path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(value.requires_grad for value in loaded.parameters())


def test_weights_that_are_not_in_the_file_are_drawn_anew(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    learnt = ProtAlignModel.from_pretrained(
        tmp_path, loss="siglip", logit_temperature=0.1, learn_temperature=True
    )
    assert learnt.pair_loss.scale.item() == pytest.approx(10)
    assert learnt.pair_loss.bias.item() == -10


def test_an_unchanged_language_model_stays_where_it_is(structures, tmp_path):
    source = FAMILIES["esm2"](tmp_path / "esm2_t6_8M_UR50D")
    backbone = plasma_hf.load_backbone(source)
    model = tiny_model(sequence_size=32).attach_backbone(backbone)
    model.save_pretrained(tmp_path / "at once", save_backbone=True)
    expected = model.embed_sequences(SEQUENCES)
    whole = ProtAlignModel.from_pretrained(tmp_path / "at once")
    check_equal([whole.embed_sequences(SEQUENCES)], [expected], 1e-6)
    # The special tokens of the language model are no residues.
    rows = [row[None] for row in backbone.embed(SEQUENCES)]
    by_hand = torch.cat([model.get_sequence_features(row) for row in rows])
    check_equal([by_hand], [expected], 1e-5)
    assert model.explain_sequence(SEQUENCES[0]).shape == (len(SEQUENCES[0]),)
    for name, changed in {"as it was": False, "trained": True}.items():
        if changed:
            next(model.backbone.parameters()).data += 0.01
            expected = model.embed_sequences(SEQUENCES)
        model.save_pretrained(tmp_path / name)
        loaded = AutoModel.from_pretrained(tmp_path / name)
        assert loaded.config.backbone_saved is changed
        check_equal([loaded.embed_sequences(SEQUENCES)], [expected], 1e-6)
    heads = ProtAlignModel.from_pretrained(tmp_path / "as it was", load_backbone=False)
    assert heads.sequence_encoder is None
    with pytest.raises(ValueError, match="this model has no sequence encoder"):
        heads.embed_sequences(SEQUENCES)


def test_a_processor_reads_files_and_travels(structures, tmp_path):
    chain = [(name, FULL) for name in RESIDUES]
    file = write_structure(tmp_path / "two.pdb", {"A": chain, "B": chain[:3]})
    processor = ProtAlignProcessor(atoms="ca")
    whole_model().save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(loaded) is ProtAlignProcessor and loaded.atoms == "ca"
    batch = loaded(sequences="mkv", structures=[f"{file}:A", read_structure(f"{file}:B")])
    assert batch.input_ids.shape == (1, 3) and batch.backbone.shape == (2, 6, 4, 3)
    assert batch.structure_residue_mask.sum(1).tolist() == [6, 3]
    assert set(batch) == set(processor.model_input_names)
    only = processor(structures=f"{file}:B")
    assert is_structure(read_structure(f"{file}:B")) and only.backbone.shape == (1, 3, 4, 3)
    with pytest.raises(ValueError, match="nothing to encode"):
        processor()


def test_lora_trains_and_is_saved_alone(tmp_path):
    source = FAMILIES["esm2"](tmp_path / "esm2_t6_8M_UR50D")
    model = tiny_model(sequence_size=32, loss="siglip")
    model.attach_backbone(plasma_hf.load_backbone(source)).save_pretrained(tmp_path / "base")
    model = ProtAlignModel.from_pretrained(tmp_path / "base")
    before = model.embed_sequences(SEQUENCES)
    adapted = peft.get_peft_model(model, lora_config(model, rank=2))
    learns = {name for name, value in adapted.named_parameters() if value.requires_grad}
    for part in ("lora_A", "sequence_pool", "structure_pool", "pair_loss"):
        assert any(part in name for name in learns), part
    batch = ProtAlignProcessor(model.processor.tokenizer, model.processor.input_format)(SEQUENCES)
    rows = {"structure_embeddings": draw((6, 8, 3, 4), 8)[0].nan_to_num(0.0)}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(**batch, **rows).loss.backward()
        optimizer.step()
    adapted.eval().save_pretrained(tmp_path / "adapter")
    after = adapted.base_model.model.embed_sequences(SEQUENCES)
    assert not torch.allclose(before, after, atol=1e-4)
    loaded = ProtAlignModel.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    check_equal([loaded.base_model.model.embed_sequences(SEQUENCES)], [after], 1e-6)


def test_the_trainer_of_transformers_trains_it(structures, tmp_path):
    processor, model = ProtAlignProcessor(), whole_model()
    rows = [{"sequence": s, "structure": t} for s, t in zip(SEQUENCES, structures, strict=True)]

    def collate(batch):
        return processor([row["sequence"] for row in batch], [row["structure"] for row in batch])

    arguments = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "report_to": "none"}
    arguments |= {"remove_unused_columns": False, "disable_tqdm": True, "use_cpu": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path), save_strategy="no", **arguments),
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows,
    )
    first = model.sequence_pool.query.detach().clone()
    trainer.train()
    assert not torch.equal(first, model.sequence_pool.query)
    assert "eval_loss" in trainer.evaluate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "triplet"}, "loss='triplet'; accepted are 'clip', 'siglip'"),
        ({"siglip_sign": "plus"}, "accepted are 'pseudocode', 'paper'"),
        ({"hidden_size": 10, "num_heads": 4}, "is not a multiple of num_heads=4"),
        ({"logit_temperature": 0}, "logit_temperature=0; give a number above 0"),
        ({"num_queries": 0}, "num_queries=0; give a number above 0"),
        ({"logit_temperature": float("nan")}, "logit_temperature=nan; give a number above 0"),
        ({"attention_dropout": -0.5}, "attention_dropout=-0.5; give 0 or more"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps=inf; give 0 or more"),
        ({"logit_bias": float("nan")}, "logit_bias=nan; give a finite number"),
    ],
)
def test_a_wrong_configuration_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProtAlignConfig(**fields)


def test_unusable_input_is_refused():
    model, (rows, mask) = tiny_model(), draw()
    structures = torch.randn(3, 5, 8)

    def refused(message, **given):
        with pytest.raises(ValueError, match=message):
            model(**{"sequence_embeddings": rows, "structure_embeddings": structures} | given)

    refused("give either sequence_embeddings or input_ids; neither", sequence_embeddings=None)
    refused("structure_embeddings or backbone, not both", backbone=torch.zeros(3, 5, 4, 3))
    refused(
        r"\(3, 9, 8\); give floating point numbers of shape \(batch, residues, 12\)",
        sequence_embeddings=torch.zeros(3, 9, 8),
    )
    refused(r"sequence_mask has shape \(3, 4\); give \(3, 9\)", sequence_mask=mask[:, :4])
    refused("protein 1 of the batch", sequence_mask=mask & torch.tensor([[1], [0], [1]]).bool())
    refused(
        r"sequences have shape \(3, 16\), structures \(2, 16\)",
        structure_embeddings=structures[:2],
        sequence_mask=mask,
    )
    refused(
        "pass sequence_embeddings, or put its backbone under it",
        sequence_embeddings=None,
        input_ids=torch.ones(3, 4, dtype=torch.long),
    )
    refused(
        "has no structure encoder",
        structure_embeddings=None,
        backbone=torch.zeros(3, 5, 4, 3),
        sequence_mask=mask,
    )


def test_unusable_proteins_are_named(structures):
    model = whole_model()
    with pytest.raises(ValueError, match="sequence 1"):
        model.embed_sequences(["MKV", "MK4V"])
    with pytest.raises(ValueError, match=r"structure s7\.pdb:A has no residue with all"):
        model.embed_structures([*structures, make_structure(3, seed=7, missing=(0, 1, 2))])
    with pytest.raises(ValueError, match=r"ProtAlignConfig\(sequence_size=420\)"):
        tiny_model().attach_backbone(plasma_hf.load_backbone("substitution"))
    with pytest.raises(ValueError, match=r"ProtAlignConfig\(structure_size=128\)"):
        tiny_model().attach_structure_encoder(ProteinMPNNEncoder(ProteinMPNNConfig()))
    with pytest.raises(ValueError, match="has no structure encoder"):
        tiny_model().explain_structure(structures[0])
