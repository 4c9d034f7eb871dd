"""ProtSSN against its original implementation, slow twins and awkward proteins."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import EsmConfig

from plasma_hf.models import modeling_protssn
from plasma_hf.models.modeling_backbone import build_backbone
from plasma_hf.models.modeling_protssn import (
    ProtSSNConfig,
    ProtSSNModel,
    protein_graph,
    published_statistics,
)
from plasma_hf.models.protein import read_protein, with_backbone_atoms

ESM = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "position_embedding_type": "rotary",
    "pad_token_id": 1,
    "mask_token_id": 29,
}


def tiny_model(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "message_size": 8, "num_layers": 2, "k_neighbors": 5}
    # Weights of the size of trained ones; at 0.02 the structure would hardly show.
    return ProtSSNModel(ProtSSNConfig(**sizes, initializer_range=0.2, **fields)).eval()


def coil(residues, seed=0):
    """Return backbone atoms of a random chain, consecutive C-alpha atoms about 3.8 Å apart.

    Not exactly: neighbours equally near could come in either order.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(residues, 3, generator=generator, dtype=torch.float64)
    lengths = 3.7 + 0.2 * torch.rand(residues, 1, generator=generator, dtype=torch.float64)
    alpha = (lengths * steps / steps.norm(dim=-1, keepdim=True)).cumsum(0)
    around = torch.randn(residues, 2, 3, generator=generator, dtype=torch.float64)
    around = 1.5 * around / around.norm(dim=-1, keepdim=True)
    return torch.stack([alpha + around[:, 0], alpha, alpha + around[:, 1]], dim=1)


def naive_graph(atoms, k_neighbors, radius):
    """Follow the description of the graph residue by residue."""
    atoms = np.asarray(atoms, dtype=np.float64)
    edges, features = [], []

    def unit(vector):
        return vector / np.linalg.norm(vector)

    def axes(residue):
        nitrogen, alpha, carbon = atoms[residue]
        u, t = unit(nitrogen - alpha), unit(carbon - alpha)
        n = unit(np.cross(u, t))
        return np.array([n, u, np.cross(n, u)])

    frames = [axes(residue) for residue in range(len(atoms))]
    for i in range(len(atoms)):
        others = [j for j in range(len(atoms)) if j != i]
        distance = {j: np.linalg.norm(atoms[i, 1] - atoms[j, 1]) for j in others}
        near = [j for j in others if distance[j] < radius]
        if len(near) > k_neighbors:
            near = sorted(others, key=distance.get)[:k_neighbors]
        for j in near or sorted(others, key=distance.get)[:1]:
            edges.append((i, j))
            apart = [float(min(abs(i - j), 64) == s) for s in range(65)]
            spread = [math.exp(-((distance[j] / 4) ** 2) / 1.5**x) for x in range(15)]
            offset = atoms[i, 1] - atoms[j, 1]
            seen = [frames[j] @ vector for vector in (offset, *frames[i])]
            features.append([*apart, *spread, float(distance[j] <= 8), *np.concatenate(seen)])
    return np.array(edges).reshape(-1, 2).T, np.array(features).reshape(-1, 93)


def relative_error(have, wanted):
    return ((have - wanted).abs().max() / wanted.abs().max()).item()


# The original implementation.


@pytest.mark.parametrize("k_neighbors", [10, 20])
@pytest.mark.parametrize("name", ["6MRR", "5L33"])
def test_golden(full_golden, name, k_neighbors):
    folder = full_golden / "protssn"
    wanted = load_file(folder / f"{name}_k{k_neighbors}.safetensors")
    protein = with_backbone_atoms(read_protein(folder / "pdbs" / f"{name}.pdb"))
    about = json.loads((folder / "index.json").read_text())["entries"][f"{name}_k{k_neighbors}"]
    assert protein.sequence == about["sequence"]
    torch.testing.assert_close(protein.backbone_atoms[:, 1], wanted["pos_raw"], atol=1e-5, rtol=0)

    graph = protein_graph(protein.backbone_atoms, k_neighbors)
    assert torch.equal(graph.edge_index, wanted["edge_index"].long())
    raw = wanted.get("edge_attr_raw")
    if raw is None:
        apart = torch.nn.functional.one_hot(wanted["seq_separation_argmax_cols0_64"].long(), 65)
        raw = torch.cat([apart[:, :64], wanted["edge_attr_raw_cols64_92"]], dim=1)
    torch.testing.assert_close(graph.edge_attr, raw, atol=1e-5, rtol=0)

    model = ProtSSNModel.from_upstream(folder / "protssn_k20_h16_random.pt", k_neighbors)
    assert not model.training and model.config.edge_statistics == k_neighbors
    atoms = protein.backbone_atoms[None]
    _, edges = model._graph(atoms, [len(protein.sequence)])
    normalised = wanted["edge_attr_norm_cols64_92"]
    torch.testing.assert_close(edges[:, 64:93], normalised, atol=1e-5, rtol=0)
    i, j = graph.edge_index
    squared = (wanted["pos_norm"][i] - wanted["pos_norm"][j]).square().sum(-1)
    torch.testing.assert_close(edges[:, 93], squared, atol=1e-5, rtol=0)

    after = []
    model.layers[0].register_forward_hook(lambda module, args, output: after.append(output))
    with torch.no_grad():
        out = model(inputs_embeds=wanted["esm_rep"][None], backbone_atoms=atoms)
    have = {"embedding": out.last_hidden_state[0], "logits": out.logits[0]}
    for key, value in (have | {"embedding_layer1": after[0]}).items():
        assert relative_error(value, wanted[key]) < 1e-6, key
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=2e-5)


def test_statistics_are_the_published_ones(full_golden):
    published = json.loads((full_golden.parent / "protssn" / "cath_mean_attr.json").read_text())
    for k_neighbors in (10, 20, 30):
        theirs = published[f"k{k_neighbors}"]
        mean, std, position = (
            torch.tensor(theirs[key]["values"])
            for key in ("edge_attr_mean", "edge_attr_std", "pos_std")
        )
        ours = published_statistics(k_neighbors)
        assert torch.equal(ours["edge_mean"], mean[64:])
        assert torch.equal(ours["edge_std"], std[64:])
        torch.testing.assert_close(ours["position_scale"], position.mean(), rtol=1e-7, atol=0)


# The graph.


@settings(deadline=None, max_examples=40)
@given(
    residues=st.integers(1, 40),
    k_neighbors=st.integers(1, 12),
    radius=st.sampled_from([2.0, 6.0, 12.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_slow_twin_of_the_graph(residues, k_neighbors, radius, seed):
    atoms = coil(residues, seed)
    edges, features = naive_graph(atoms, k_neighbors, radius)
    graph = protein_graph(atoms, k_neighbors, radius)
    np.testing.assert_array_equal(graph.edge_index, edges)
    np.testing.assert_allclose(graph.edge_attr, features, atol=1e-5)


def test_far_apart_in_sequence():
    _, features = naive_graph(coil(70), 100, 1000.0)
    assert features[:, 64].sum() == 2 * (6 + 5 + 4 + 3 + 2 + 1)
    graph = protein_graph(coil(70), 100, 1000.0)
    np.testing.assert_allclose(graph.edge_attr, features, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    residues=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    shift=st.lists(st.floats(-500, 500), min_size=3, max_size=3),
)
def test_turning_and_moving_change_nothing(residues, seed, shift):
    atoms = coil(residues, seed)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    turn = turn * turn.det()  # a mirror image would be another protein
    moved = atoms @ turn + torch.tensor(shift, dtype=torch.float64)
    graph, same = protein_graph(atoms, 10), protein_graph(moved, 10)
    assert torch.equal(graph.edge_index, same.edge_index)
    torch.testing.assert_close(graph.edge_attr, same.edge_attr, atol=1e-5, rtol=0)


def test_a_mirror_image_is_another_protein():
    atoms = coil(20)
    mirrored = protein_graph(atoms * torch.tensor([-1.0, 1, 1]), 10)
    assert not torch.allclose(mirrored.edge_attr, protein_graph(atoms, 10).edge_attr, atol=0.1)


AWKWARD = {
    "one residue": coil(1),
    "two residues far apart": coil(2) * 1000,
    "atoms in a line": torch.arange(24.0).view(8, 3, 1).expand(8, 3, 3),
    "residues in one place": coil(1).expand(6, 3, 3),
    "all atoms in one place": torch.zeros(5, 3, 3),
}


@pytest.mark.parametrize("atoms", AWKWARD.values(), ids=AWKWARD)
def test_awkward_proteins_give_numbers(atoms):
    graph = protein_graph(atoms, 3)
    residue, neighbour = graph.edge_index
    assert not (residue == neighbour).any() and graph.edge_attr.isfinite().all()
    assert torch.equal(residue.unique(), torch.arange(len(atoms) if len(atoms) > 1 else 0))
    out = tiny_model()(inputs_embeds=torch.randn(1, len(atoms), 16), backbone_atoms=atoms[None])
    assert out.last_hidden_state.isfinite().all() and out.logits.isfinite().all()


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (torch.zeros(4, 3), r"shape \(4, 3\); give \(residues, 3, 3\)"),
        (torch.full((4, 3, 3), math.nan), r"residue 0 \(counted from 0\) .* and so have 3 others"),
    ],
)
def test_no_graph(atoms, message):
    with pytest.raises(ValueError, match=message):
        protein_graph(atoms)


# The model.


def batch_of(lengths, padding=math.nan):
    longest = max(lengths)
    embeddings = torch.full((len(lengths), longest, 16), padding)
    atoms = torch.full((len(lengths), longest + 2, 3, 3), padding)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        embeddings[row, :length] = torch.randn(length, 16)
        atoms[row, :length] = coil(length, seed=row).float()
        mask[row, :length] = True
    return embeddings, atoms, mask


@pytest.mark.parametrize("padding", [math.nan, 0.0, 1e6])
@torch.no_grad()
def test_batch_and_padding_change_nothing(padding):
    model, lengths = tiny_model(), [12, 1, 30]
    embeddings, atoms, mask = batch_of(lengths, padding)
    out = model(inputs_embeds=embeddings, residue_mask=mask, backbone_atoms=atoms)
    assert out.last_hidden_state.shape == (3, 30, 16) and out.logits.shape == (3, 30, 20)
    assert not out.last_hidden_state[~mask].any() and not out.logits[~mask].any()
    for row, length in enumerate(lengths):
        part = slice(row, row + 1), slice(length)
        alone = model(inputs_embeds=embeddings[part], backbone_atoms=atoms[part])
        for key in ("last_hidden_state", "logits"):
            torch.testing.assert_close(out[key][part], alone[key], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_token_ids_with_special_tokens():
    model = tiny_model(plm_config=EsmConfig(**ESM))
    cls, pad, eos = 0, 1, 2
    _, atoms, _ = batch_of([5, 9])
    residues = [torch.randint(4, 20, (n,)).tolist() for n in (5, 9)]
    rows = [[cls, *residue, eos] for residue in residues]
    ids = torch.tensor([row + [pad] * (11 - len(row)) for row in rows])
    attended = ids != pad
    mask = attended & (ids != cls) & (ids != eos)
    out = model(ids, attended, mask, backbone_atoms=atoms)
    assert out.last_hidden_state.shape == (2, 11, 16) and not out.last_hidden_state[~mask].any()
    hidden = model.language_model(ids, attended).last_hidden_state
    for row, residue in enumerate(residues):
        n = len(residue)
        inner = slice(1, n + 1)
        alone = model(
            torch.tensor([rows[row]]),
            None,
            mask[row : row + 1, : n + 2],
            None,
            atoms[row : row + 1],
        )
        ready = model(
            inputs_embeds=hidden[row : row + 1, inner], backbone_atoms=atoms[row : row + 1]
        )
        for same in (alone.last_hidden_state[0, inner], ready.last_hidden_state[0]):
            torch.testing.assert_close(
                out.last_hidden_state[row, inner], same, atol=1e-5, rtol=1e-5
            )


def test_how_many_edges_at_once_changes_nothing(monkeypatch):
    model, results = tiny_model(), []
    embeddings, atoms, mask = batch_of([25, 14], 0.0)
    for at_once in (10**9, 7, 1):
        monkeypatch.setattr(modeling_protssn, "EDGES_AT_ONCE", at_once)
        model.zero_grad()
        out = model(inputs_embeds=embeddings, residue_mask=mask, backbone_atoms=atoms)
        out.logits.square().sum().backward()
        with torch.no_grad():
            again = model(inputs_embeds=embeddings, residue_mask=mask, backbone_atoms=atoms)
        torch.testing.assert_close(again.logits, out.logits, rtol=0, atol=1e-6)
        results.append([out.last_hidden_state, *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        for have, wanted in zip(other, results[0], strict=True):
            assert wanted.abs().sum() > 0 and relative_error(have, wanted) < 1e-6


@torch.no_grad()
def test_the_structure_is_heard():
    model = tiny_model()
    embeddings = torch.randn(1, 20, 16)
    one, other = (
        model(inputs_embeds=embeddings, backbone_atoms=coil(20, seed)[None]).last_hidden_state
        for seed in (1, 2)
    )
    assert not torch.allclose(one, other, atol=1e-2)


@torch.no_grad()
def test_half_precision():
    embeddings, atoms, mask = batch_of([25, 14], 0.0)
    given = {"inputs_embeds": embeddings, "residue_mask": mask, "backbone_atoms": atoms}
    wanted = tiny_model()(**given).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = tiny_model()(**given).last_hidden_state
    half = tiny_model().bfloat16()(**given).last_hidden_state
    assert half.dtype == torch.bfloat16
    assert relative_error(mixed, wanted) < 0.05 and relative_error(half.float(), wanted) < 0.05


def test_tuple_and_training_mode():
    embeddings, atoms, _ = batch_of([5])
    hidden, logits = tiny_model().train()(
        inputs_embeds=embeddings, backbone_atoms=atoms, return_dict=False
    )
    assert hidden.shape == (1, 5, 16) and logits.shape == (1, 5, 20)


# Files.


def as_upstream(model):
    """Return the state of a model as the published files have it."""
    state = {f"GNN_model.lin.{n}": p for n, p in model.residue_head.state_dict().items()}
    names = {"edge_mlp.3": "message", "node_mlp.0": "node_hidden", "node_mlp.3": "node_output"}
    for i, layer in enumerate(model.layers):
        parts = [layer.target.weight, layer.source.weight, layer.edge.weight]
        prefix = f"GNN_model.mpnn_layes.{i}"
        state[f"{prefix}.edge_mlp.0.weight"] = torch.cat(parts, dim=1).detach()
        state[f"{prefix}.edge_mlp.0.bias"] = layer.edge.bias.detach()
        for theirs, ours in names.items():
            for kind, tensor in getattr(layer, ours).state_dict().items():
                state[f"{prefix}.{theirs}.{kind}"] = tensor
    return state


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "protssn.pt"
    torch.save(as_upstream(tiny_model()), path)
    return path


def test_from_upstream_and_back_through_a_folder(published, tmp_path):
    model = ProtSSNModel.from_upstream(published, k_neighbors=5, edge_statistics=10)
    assert (model.config.hidden_size, model.config.message_size, model.config.num_layers) == (
        *(16, 8, 2),
    )
    wanted = tiny_model(edge_statistics=10).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    model.edge_mean += 1.0  # statistics of one's own stay with the model
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()
    loaded = ProtSSNModel.from_pretrained(tmp_path / "saved", attn_implementation="sdpa")
    have, kept = loaded.state_dict(), model.state_dict()
    assert have.keys() == kept.keys() and all(torch.equal(have[n], kept[n]) for n in have)
    assert loaded.config.k_neighbors == 5 and loaded.config.edge_statistics == 10


def test_statistics_a_folder_lacks_are_the_published_ones(tmp_path):
    tiny_model(edge_statistics=30).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith(("edge_", "position"))}
    assert len(kept) == len(tensors) - 3
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = ProtSSNModel.from_pretrained(tmp_path)
    for have, wanted in zip(
        (loaded.edge_mean, loaded.edge_std, loaded.position_scale),
        published_statistics(30).values(),
        strict=True,
    ):
        assert torch.equal(have, wanted)


@torch.no_grad()
def test_a_language_model_attached_travels_along(tmp_path):
    torch.manual_seed(1)
    esm = build_backbone(EsmConfig(**ESM)).eval()
    model = tiny_model().attach_language_model(esm, "some/esm", "main")
    model.save_pretrained(tmp_path)
    loaded = ProtSSNModel.from_pretrained(tmp_path)
    assert (loaded.config.plm_name_or_path, loaded.config.plm_revision) == ("some/esm", "main")
    ids, atoms = torch.randint(4, 20, (1, 9)), coil(9)[None]
    wanted = model(ids, backbone_atoms=atoms).last_hidden_state
    found = loaded(ids, backbone_atoms=atoms).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def broken(state, kind, folder):
    if kind == "no ProtSSN":
        return {"weight": torch.ones(2)}
    if kind == "empty":
        return {}
    if kind == "lacks a tensor":
        del state["GNN_model.mpnn_layes.1.node_mlp.0.bias"]
    if kind == "one tensor more":
        state["GNN_model.extra"] = torch.ones(1)
    if kind == "wrong shape":
        state["GNN_model.mpnn_layes.0.edge_mlp.0.weight"] = torch.ones(3, 3)
    if kind == "malice":
        state["GNN_model.lin.bias"] = Malice(folder / "harm")
    return state


BROKEN = {
    "no ProtSSN": "is no published ProtSSN: it lacks GNN_model.lin.weight .*begins with 'weight'",
    "empty": "begins with nothing; give a file such as protssn_k20_h512.pt",
    "lacks a tensor": r"1 tensors differ \(.*1.node_mlp.0.bias: nothing here, \(32,\) in a ProtSSN",
    "one tensor more": r"GNN_model.extra: \(1,\) here, nothing in a ProtSSN",
    "wrong shape": r"edge_mlp.0.weight: \(3, 3\) here, \(252, 126\) in a ProtSSN of width 16",
    "malice": "was not read",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_files_that_are_refused(tmp_path, kind):
    state = broken(as_upstream(tiny_model()), kind, tmp_path)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=BROKEN[kind]):
        ProtSSNModel.from_upstream(tmp_path / "broken.pt")
    assert not (tmp_path / "harm").exists()


def test_a_bare_pickle_is_not_run(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Malice(tmp_path / "harm"), protocol=2))
    with pytest.raises(ValueError, match=r"bare.pt"):
        ProtSSNModel.from_upstream(tmp_path / "bare.pt")
    assert not (tmp_path / "harm").exists()


# What is refused.


def test_configurations_that_cannot_be(published):
    with pytest.raises(ValueError, match="edge_statistics=15; .* 10, 20, 30 neighbours, name the"):
        ProtSSNModel.from_upstream(published, k_neighbors=15)
    with pytest.raises(ValueError, match="k_neighbors=0; give a number above 0"):
        ProtSSNConfig(k_neighbors=0)
    with pytest.raises(
        ValueError, match=r"\(esm\) gives .* width 16, ProtSSN takes hidden_size=1280"
    ):
        ProtSSNConfig(plm_config=EsmConfig(**ESM))
    with pytest.raises(ValueError, match="model_type='nothing', which transformers does not know"):
        ProtSSNConfig(hidden_size=16, plm_config={"model_type": "nothing"})


EMBEDDINGS, ATOMS = torch.randn(1, 5, 16), coil(5)[None]
REFUSED = {
    "nothing": ({}, "neither is here"),
    "both": ({"input_ids": torch.ones(1, 5), "inputs_embeds": EMBEDDINGS}, "not as both"),
    "no language model": ({"input_ids": torch.ones(1, 5)}, r"takes no input_ids; .*attach_languag"),
    "no atoms": ({"inputs_embeds": EMBEDDINGS}, r"reads structures and got no backbone_atoms"),
    "width": (
        {"inputs_embeds": torch.randn(1, 5, 8)},
        r"\(1, 5, 8\); give \(batch, residues, 16\)",
    ),
    "mask": (
        {"inputs_embeds": EMBEDDINGS, "residue_mask": torch.ones(1, 4)},
        r"the mask has shape \(1, 4\); give \(1, 5\)",
    ),
    "too few atoms": (
        {"inputs_embeds": EMBEDDINGS, "backbone_atoms": ATOMS[:, :3]},
        r"shape \(1, 3, 3, 3\), .*1 proteins of up to 5 residues; .* False at special tokens",
    ),
    "a hole": (
        {
            "inputs_embeds": EMBEDDINGS,
            "backbone_atoms": ATOMS.where(ATOMS != ATOMS[0, 2], math.nan),
        },
        r"protein 0 of the batch: residue 2 \(counted from 0\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_are_refused(case):
    inputs, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)
