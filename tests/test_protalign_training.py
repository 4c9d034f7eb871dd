"""Training of ProtAlign: it learns, it resumes, it does what its options say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import plasma_hf
from plasma_hf import ProtAlignModel
from plasma_hf.io.structures import pair_of
from plasma_hf.metrics.retrieval import best_ranks
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from plasma_hf.models.protein import Structure
from plasma_hf.training import ProtAlignRun, split_pairs
from plasma_hf.training.structure_data import (
    PairCollation,
    PairParts,
    StructurePairs,
    coordinate_noise,
    crop_structures,
    mask_spans,
    mix_up,
    near_copies,
    store_structures,
    structure_hash,
)
from plasma_hf.training.trainer import GroupDisjointSampler
from tests.helpers.kill_points import stop_at
from tests.helpers.structure_files import make_pairs, make_structure
from tests.helpers.tiny_backbones import FAMILIES

QUIET = {"use_cpu": True, "disable_tqdm": True}


def tiny_encoder():
    torch.manual_seed(0)
    return ProteinMPNNEncoder(ProteinMPNNConfig(hidden_size=16, num_layers=1, k_neighbors=8)).eval()


def tiny_parts(count=24):
    pairs = make_pairs(count)
    return PairParts(pairs[: count - 8], pairs[count - 8 : count - 4], pairs[count - 4 :])


def tiny_run(folder, epochs=4, **options):
    arguments = QUIET | {"num_train_epochs": epochs, "per_device_train_batch_size": 8}
    arguments |= options.pop("arguments", {})
    config = {"hidden_size": 16, "num_heads": 2} | options.pop("config", {})
    return ProtAlignRun(folder, config=config, arguments=arguments, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums that threads share are rounded by how they share them; runs are compared to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone():
    return plasma_hf.load_backbone("substitution", device="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, backbone):
    """Folder and figures of a run that was not disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, tiny_run(folder).train(tiny_parts(), backbone, tiny_encoder())


def weights(folder):
    return ProtAlignModel.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_it_learns_its_training_pairs(tmp_path, backbone) -> None:
    parts = tiny_parts()
    parts = replace(parts, test=parts.train)
    once = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    arguments = once | {"per_device_train_batch_size": 16}
    run = tiny_run(tmp_path, epochs=40, arguments=arguments)
    figures = run.train(parts, backbone, tiny_encoder())
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert len(written["losses"]) == 40
    assert written["losses"][-1] < written["losses"][0] - 0.5
    assert figures["test"]["recall_at_1"] > 3 / 16  # chance is 1 / 16
    card = (tmp_path / "README.md").read_text()
    assert f"{figures['test']['mrr']:.3f}" in card and "training pairs: 16" in card


@pytest.mark.slow
def test_the_saved_model_embeds_as_the_one_that_was_trained(tmp_path, backbone) -> None:
    parts, run = tiny_parts(), tiny_run(tmp_path, store_dtype="float32")
    encoder = tiny_encoder()
    run.train(parts, backbone, encoder)
    model = ProtAlignModel.from_pretrained(tmp_path)
    pairs = list(parts.test)
    batch = PairCollation(*run.features(pairs, backbone, encoder))([{"pair": p} for p in pairs])
    with torch.no_grad():
        features = model.eval()(**batch)
    sequences = model.embed_sequences([pair.sequence for pair in pairs])
    structures = model.embed_structures([pair.structure for pair in pairs])
    assert torch.allclose(features.sequence_features, sequences, atol=1e-5)
    assert torch.allclose(features.structure_features, structures, atol=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    tmp_path, backbone, whole
) -> None:
    figures = {}
    for name, seed in (("same", 0), ("other", 1)):
        run = tiny_run(tmp_path / name, seed=seed, store=whole[0] / "store")
        figures[name] = run.train(tiny_parts(), backbone, tiny_encoder())
    assert figures["same"] == whole[1]
    one, same, other = map(weights, (whole[0], tmp_path / "same", tmp_path / "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["sequence_pool.query"], other["sequence_pool.query"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, backbone, whole) -> None:
    command = [sys.executable, __file__, str(tmp_path / "killed")]
    root = Path(__file__).parents[1]
    alone = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=root, env=os.environ | alone)
    assert killed.returncode == -signal.SIGKILL
    run = tiny_run(tmp_path / "killed")
    with pytest.raises(FileExistsError, match="--resume"):
        run.train(tiny_parts(), backbone, tiny_encoder())
    with pytest.raises(ValueError, match="with seed 0, you asked for 3"):
        replace(run, seed=3).train(tiny_parts(), backbone, tiny_encoder(), resume=True)
    assert not run.is_finished(tiny_parts())
    run.train(tiny_parts(), backbone, tiny_encoder(), resume=True)
    assert run.is_finished(tiny_parts()) and not run.is_finished(tiny_parts(20))
    folders = whole[0], tmp_path / "killed"
    undisturbed, resumed = map(weights, folders)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    written = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "moves"), [("none", set()), ("structure", {"structure_encoder"})]
)
def test_encoders_train_where_they_are_told_to(tmp_path, backbone, trained, moves) -> None:
    encoder = tiny_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    run = tiny_run(tmp_path, epochs=2, trained=trained)
    run.train(tiny_parts(), backbone, encoder)
    after = ProtAlignModel.from_pretrained(tmp_path).structure_encoder
    assert after.config.augment_eps == (0.1 if moves else 0.0)
    moved = [n for n, value in after.state_dict().items() if not torch.equal(value, before[n])]
    assert bool(moved) == bool(moves)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "lora"])
def test_sequence_encoders_train_where_they_are_told_to(tmp_path, trained) -> None:
    if trained == "lora":
        pytest.importorskip("peft")
    language_model = plasma_hf.load_backbone(FAMILIES["esm2"](tmp_path / "esm2"), device="cpu")
    before = {k: v.clone() for k, v in language_model.model.state_dict().items()}
    encoder = tiny_encoder()
    run = tiny_run(tmp_path / "run", epochs=2, trained=trained)
    figures = run.train(tiny_parts(), language_model, encoder)
    model = ProtAlignModel.from_pretrained(tmp_path / "run")
    after = model.sequence_encoder.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before if name in after)
    assert not any("lora" in name for name in model.state_dict())
    test = tiny_parts().test
    cosines = (
        model.embed_sequences([pair.sequence for pair in test])
        @ model.embed_structures([pair.structure for pair in test]).T
    )
    assert figures["test"]["mrr"] == pytest.approx((1 / best_ranks(cosines)).mean())


def test_near_copies_are_no_negatives_of_each_other() -> None:
    pairs = make_pairs(3)
    copy = make_structure("copy", 40, seed=99)
    shorter = Structure("shorter", copy.sequence[1:], copy.backbone[1:], *[("A",) * 39] * 2)
    pairs += [pair_of(copy), pair_of(shorter)]
    groups = near_copies(pairs, identity=0.9)
    assert groups[3] == groups[4] and len(set(groups)) == 4


def test_pairs_of_a_group_are_apart_and_the_order_repeats() -> None:
    groups = [0] * 4 + [1] * 4 + list(range(2, 10))
    sampler = GroupDisjointSampler(groups, batch_size=4, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(16)) and list(sampler) == order
    for start in range(0, 16, 4):
        assert len({groups[i] for i in order[start : start + 4]}) == 4
    sampler.set_epoch(1)
    assert list(sampler) != order
    crowded = list(GroupDisjointSampler([0] * 5, batch_size=2, seed=0))
    assert sorted(crowded) == list(range(5))  # what does not fit is not lost


def test_structures_are_stored_by_content_and_once(tmp_path) -> None:
    encoder = tiny_encoder()
    one = make_structure("one", 20, seed=1)
    atoms = one.backbone.clone()
    atoms[3, 1] = torch.nan
    gap = replace(one, id="gap", backbone=atoms)
    named = replace(one, id="other name")
    store = store_structures(tmp_path, [one, gap, named], encoder, "float32")
    assert len(store.lengths) == 2
    assert store.read_key(structure_hash(gap)).shape == (19, 16)  # one lacks CA
    (expected,) = encoder.embed([one])
    assert torch.allclose(store.read_key(structure_hash(named)), expected, atol=1e-5)
    before = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    store_structures(tmp_path, [gap], encoder, "float32")
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == before
    with pytest.raises(ValueError, match="differ in weights"):
        other = tiny_encoder()
        other.edges.output.bias.data += 1
        store_structures(tmp_path, [one], other, "float32")


def test_splits_share_no_sequence_and_name_families() -> None:
    pairs = make_pairs(20)
    parts = split_pairs([*pairs, replace(pairs[0], id="again")], seed=1)
    everything = [*parts.train, *parts.validation, *parts.test]
    assert len(everything) == 20 and parts.details["pairs of equal sequence left out"] == 1
    assert all(pair.family for pair in everything)
    with pytest.raises(ValueError, match="are for validation"):
        split_pairs(pairs[:4])


def test_what_an_encoder_that_trains_needs() -> None:
    with pytest.raises(ValueError, match="needs the model's processor"):
        PairCollation(None, None)([{"pair": make_pairs(1)[0]}])


def test_views_are_masked_and_disturbed_as_asked() -> None:
    drawn = torch.Generator().manual_seed(0)
    mask = torch.arange(60) < torch.tensor([60, 40, 10, 1])[:, None]
    rows = torch.randn(4, 60, 8, generator=drawn)
    inputs = {"structure_embeddings": rows, "structure_mask": mask, "sequence_mask": mask}
    for _ in range(20):
        left = mask_spans(inputs, 0.3, drawn)["structure_mask"]
        assert (left <= mask).all() and (left.sum(1) >= 0.7 * mask.sum(1)).all()
        kept = crop_structures(inputs, 1.0, drawn)["structure_mask"]
        assert (kept <= mask).all()
        assert (kept.sum(1) >= torch.tensor([20, 20, 10, 1])).all()
        # One stretch: it begins once.
        assert (kept[:, 0].int() + (kept[:, 1:] & ~kept[:, :-1]).sum(1) == 1).all()
    assert crop_structures(inputs, 1.0, drawn)["sequence_mask"] is mask
    assert torch.equal(crop_structures(inputs, 0.0, drawn)["structure_mask"], mask)
    assert mix_up(inputs, None, drawn) is inputs
    mixed = mix_up(inputs, rows + 1, drawn)["structure_embeddings"] - rows
    torch.testing.assert_close(mixed, mixed[:, :1, :1].expand_as(mixed))  # one way for a protein
    assert (0 < mixed).all() and (mixed < 1).all() and mixed[:, 0, 0].unique().numel() == 4


def test_a_second_form_is_stored_where_the_encoder_is_frozen(tmp_path, backbone) -> None:
    pairs = list(tiny_parts().train[:3])
    forms = [coordinate_noise(pair.structure, 0.3) for pair in pairs]
    assert all(
        0.1 < (f.backbone - p.structure.backbone).std() < 0.5
        for f, p in zip(forms, pairs, strict=True)
    )
    both = pairs + [replace(p, structure=form) for p, form in zip(pairs, forms, strict=True)]
    features = tiny_run(tmp_path).features(both, backbone, tiny_encoder())
    dataset = StructurePairs(pairs, forms=forms)
    batch = PairCollation(*features)([dataset[i] for i in range(3)])
    assert batch["form_embeddings"].shape == batch["structure_embeddings"].shape
    assert not torch.equal(batch["form_embeddings"], batch["structure_embeddings"])
    assert "form_embeddings" not in PairCollation(*features)([{"pair": pair} for pair in pairs])


def test_unknown_options_are_refused(tmp_path, backbone) -> None:
    with pytest.raises(ValueError, match="none, structure, all, lora"):
        tiny_run(tmp_path, trained="both").train(tiny_parts(), backbone, tiny_encoder())


if __name__ == "__main__":
    stop_at("plasma_hf.training:ProtAlignTrainer.training_step", 6)
    substitution = plasma_hf.load_backbone("substitution", device="cpu")
    tiny_run(sys.argv[1]).train(tiny_parts(), substitution, tiny_encoder())
