"""Training of the residue encoder: what it sees, what it is told, and that it resumes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import SiteProtein
from plasma_hf.data.alignments import ResidueAlignment
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.processing_plasma import substitution_tokenizer
from reproduce.encoder import (
    HEAD,
    MASKED,
    EncoderBatches,
    EncoderExample,
    EncoderObjective,
    EncoderSources,
    EncoderTraining,
    FamilyAlignment,
    ObjectiveWeights,
    collate,
    confident_pairs,
    crop,
    exclude,
    mask_residues,
    merge_pairs,
    read_names,
    read_sources,
    tokens,
    train_residue_encoder,
)

ROOT = Path(__file__).parents[1]
TINY = ResidueEncoderConfig(width=8, dilations=[1, 2])
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def random_sequence(rng, length):
    return "".join(rng.choice(list(LETTERS), size=length))


def relative(rng, sequence, changed):
    return "".join(rng.choice(list(LETTERS)) if rng.random() < changed else s for s in sequence)


def make_sources(seed=0):
    """Four families of sites and two aligned ones, of random proteins that are alike."""
    rng = np.random.default_rng(seed)
    proteins = []
    for family in "ABCD":
        parent = random_sequence(rng, int(rng.integers(50, 70)))
        sites = tuple(int(20 <= i < 26) for i in range(len(parent)))
        proteins += [
            SiteProtein(f"{family}{n}", family, relative(rng, parent, 0.3), sites) for n in range(4)
        ]
    families = []
    for name in ("PF1", "PF2"):
        parent = random_sequence(rng, 40)
        rows = tuple(
            relative(rng, parent, 0.4)[:10] + "-" + relative(rng, parent, 0.4)[11:]
            for _ in range(5)
        )
        families.append(FamilyAlignment(name, rows))
    pairs = [ResidueAlignment("MKVLAW", "KVLAW", np.array([[1, 0], [2, 1]]), "S1")]
    return EncoderSources(families, pairs, proteins, [p.sequence for p in proteins])


SOURCES = make_sources()


def test_confident_columns_are_those_with_agreeing_surroundings():
    rng = np.random.default_rng(0)
    sequence = random_sequence(rng, 120)
    shifted = sequence[:40] + "GG" + sequence[40:80] + random_sequence(rng, 40)
    pairs = confident_pairs(sequence, shifted)
    offsets = {(int(j) - int(i)) for i, j in pairs if i < 78}
    assert offsets == {0, 2} and len(pairs) > 60
    assert pairs[:, 0].max() < 90
    assert not len(confident_pairs(sequence, random_sequence(rng, 120)))


def test_pairs_that_contradict_each_other_are_dropped():
    joined = merge_pairs(np.array([[0, 0], [1, 1], [2, 2]]), np.array([[1, 2], [0, 0]]))
    assert joined.tolist() == [[0, 0]]


def test_a_batch_is_a_function_of_its_number():
    first, second = (EncoderBatches(SOURCES, 40, 3, 30, masked_per_batch=2, seed=4) for _ in "ab")
    wanted = [first[k] for k in range(40)]
    for k in (39, 3, 20):
        assert all(torch.equal(second[k][name], wanted[k][name]) for name in wanted[k])
    other = EncoderBatches(SOURCES, 40, 3, 30, masked_per_batch=2, seed=5)[0]
    assert other["input_ids"].shape != wanted[0]["input_ids"].shape or not torch.equal(
        other["input_ids"], wanted[0]["input_ids"]
    )
    with pytest.raises(IndexError):
        first[40]


def test_what_a_batch_holds():
    batches = EncoderBatches(SOURCES, 30, 4, 32)
    related = []
    for k in range(30):
        batch = batches[k]
        assert batch["input_ids"].shape[0] == 8 and batch["input_ids"].shape[1] <= 32
        assert batch["site_labels"].shape == batch["input_ids"].shape
        pair, i, j = batch["targets"].unbind(-1)
        queries, candidates = batch["input_ids"].chunk(2)
        # Targets are residues, and only of pairs that are related.
        assert (queries[pair, i] > 0).all() and (candidates[pair, j] > 0).all()
        assert batch["related"][pair].all()
        related.append(batch["related"])
    share = torch.cat(related).float().mean()
    assert 0.6 < share < 0.9


def test_targets_point_at_what_corresponds_also_after_cropping():
    rng = np.random.default_rng(0)
    query = random_sequence(rng, 100)
    pairs = np.stack([np.arange(20, 100), np.arange(0, 80)], axis=1)
    nothing = np.zeros(100, dtype=np.int64)
    example = EncoderExample(query, query[20:], pairs, True, nothing, nothing[:80])
    for _ in range(20):
        cut = crop(example, 30, rng)
        assert len(cut.query) == len(cut.candidate) == len(cut.query_sites) == 30
        assert len(cut.pairs) and all(cut.query[i] == cut.candidate[j] for i, j in cut.pairs)
    assert crop(example, 100, rng) is example


def test_tokens_are_those_of_the_tokenizer():
    text = "ACDXZuMKV"
    assert tokens(text).tolist() == substitution_tokenizer()(text).input_ids


def test_masked_residues():
    ids = tokens("ACDEFGHIKL" * 50 + "XXXX")
    given_ids, wanted = mask_residues(ids, np.random.default_rng(0))
    asked = wanted != -100
    assert 0.1 < asked.float().mean() < 0.2
    assert torch.equal(wanted[asked], ids[asked]) and (wanted[-4:] == -100).all()
    assert torch.equal(given_ids[~asked][:-4], ids[~asked][:-4])
    assert (given_ids[asked] == MASKED).float().mean() > 0.6


def objective(weights, encoder=None):
    torch.manual_seed(0)
    encoder = encoder or ResidueEncoderModel(TINY)
    head = PlasmaModel(PlasmaConfig(embedding_size=420, **HEAD))
    return EncoderObjective(encoder, head, weights)


def example_pair(query, candidate, pairs, related):
    sites = [np.zeros(len(s), dtype=np.int64) for s in (query, candidate)]
    return EncoderExample(query, candidate, np.array(pairs).reshape(-1, 2), related, *sites)


def test_the_loss_in_words():
    """One related and one unrelated pair, computed from the published cost, residue by residue."""
    query, candidate, other = "MKVLAWDERT", "KVLAWDERT", "GGPGSSPGG"
    batch = collate(
        [
            example_pair(query, candidate, [[1, 0], [4, 3]], True),
            example_pair(query, other, [], False),
        ]
    )
    parts = objective(ObjectiveWeights())(**batch)
    encoder, alone = ResidueEncoderModel(TINY).requires_grad_(False), 1e-16

    def kernel(one, two):
        rows = [encoder(tokens(s)[None]).last_hidden_state[0] for s in (one, two)]
        q, c = (torch.nn.functional.layer_norm(r, (420,)) for r in rows)
        return (-0.2 * (q[:, None] - c[None]).relu().sum(-1)).exp().double()

    k = kernel(query, candidate)
    terms = [
        -(k[i, j] ** 2 / (k[i].sum() + alone) / (k[:, j].sum() + alone)).log().item() / 2
        for i, j in ((1, 0), (4, 3))
    ]
    assert parts["correspondence"].item() == pytest.approx(np.mean(terms), abs=1e-4)
    k = kernel(query, other)
    forth = ((k.sum(1) + alone) / alone).log().mean()
    back = ((k.sum(0) + alone) / alone).log().mean()
    assert parts["unrelated"].item() == pytest.approx(((forth + back) / 2).item(), rel=1e-4)
    assert parts["loss"].item() == pytest.approx(
        (parts["correspondence"] + parts["unrelated"] / 2).item(), rel=1e-6
    )


def test_every_part_of_the_objective_teaches():
    weights = ObjectiveWeights(1.0, 1.0, 0.5, 0.5, 0.5)
    model = objective(weights)
    batch = EncoderBatches(SOURCES, 1, 8, 64, masked_per_batch=2)[0]
    parts = model(**batch)
    assert set(parts) == {"loss", "correspondence", "unrelated", "plan", "site", "masked"}
    total = sum(getattr(weights, name) * part for name, part in parts.items() if name != "loss")
    assert parts["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    for name, part in parts.items():
        model.zero_grad()
        part.backward(retain_graph=True)
        gradient = model.encoder.read_windows.weight.grad if name == "masked" else None
        gradient = model.encoder.residual.weight.grad if gradient is None else gradient
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


def test_a_batch_is_the_mean_of_its_pairs():
    model = objective(ObjectiveWeights(1.0, 1.0, 1.0, 1.0))
    drawn = EncoderBatches(SOURCES, 1, 16, 64)._bucket(0)[0]
    from reproduce.encoder import settle

    examples = [settle(e) for e in drawn if e.related][:4]
    together = model(**collate(examples))
    alone = [model(**collate([e])) for e in examples]
    for name in ("correspondence", "plan"):
        mean = np.mean([a[name].item() for a in alone])
        assert together[name].item() == pytest.approx(mean, rel=1e-4)


def train(folder, sources=SOURCES, **changes):
    fields = {
        "steps": 6,
        "pairs_per_batch": 2,
        "max_residues": 40,
        "save_steps": 2,
        "device": "cpu",
    }
    settings = EncoderTraining(**fields | changes)
    return train_residue_encoder(sources, folder, settings, TINY, resume=True, disable_tqdm=True)


@pytest.mark.slow
def test_training_lowers_the_loss_and_is_repeatable(tmp_path):
    options = {"steps": 30, "pairs_per_batch": 4, "learning_rate": 1e-2, "save_steps": 1000}
    encoder, again = train(tmp_path / "a", **options), train(tmp_path / "b", **options)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    batches = EncoderBatches(make_sources(), 10, 8, 64, seed=99)
    losses = []
    for model in (ResidueEncoderModel(TINY), encoder):
        judge = objective(ObjectiveWeights(), model)
        with torch.no_grad():
            losses.append(np.mean([judge(**batches[k])["loss"].item() for k in range(10)]))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(tmp_path):
    train(tmp_path / "run")
    wanted = load_file(tmp_path / "run" / "model.safetensors")
    state = tmp_path / "run" / "checkpoints" / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:40])
    (tmp_path / "run" / "model.safetensors").unlink()
    train(tmp_path / "run")
    for name, value in load_file(tmp_path / "run" / "model.safetensors").items():
        assert torch.equal(value, wanted[name]), name


def test_an_earlier_run_is_not_overwritten(tmp_path):
    train(tmp_path)
    with pytest.raises(FileExistsError, match="--resume"):
        train_residue_encoder(SOURCES, tmp_path, EncoderTraining(steps=1, device="cpu"), TINY)
    with pytest.raises(ValueError, match="you asked for 1; resume it with the same settings"):
        train(tmp_path, steps=1)


JOB = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.helpers.kill_points import stop_at
from tests.test_encoder_training import train
stop_at("plasma_hf.training.trainer:BatchTrainer._save_optimizer_and_scheduler", 3)
train(Path(sys.argv[1]), steps=int(sys.argv[2]), masked_per_batch=1)
"""


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_weights(tmp_path):
    steps = 10
    command = [sys.executable, "-c", JOB, str(tmp_path / "killed"), str(steps)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    job = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert job.returncode == -signal.SIGKILL, "it was over before it could be killed"
    torn = tmp_path / "killed" / "checkpoints" / "checkpoint-6"
    assert torn.exists() and not (torn / "trainer_state.json").exists()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    train(tmp_path / "killed", steps=steps, masked_per_batch=1)
    train(tmp_path / "whole", steps=steps, masked_per_batch=1)
    killed, whole = (load_file(tmp_path / n / "model.safetensors") for n in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name


def test_excluded_proteins_and_what_is_like_them():
    kept = exclude(SOURCES, ["A0"], ["B"])
    uids = {protein.uid for protein in kept.proteins}
    assert "A0" not in uids and not uids & {"B0", "B1", "B2", "B3"} and "C0" in uids
    excluded = {p.sequence for p in SOURCES.proteins if p.uid == "A0" or p.family == "B"}
    assert not excluded & set(kept.sequences)
    twin = SiteProtein("Z9", "Z", SOURCES.proteins[0].sequence[3:], (0,) * 60)
    copied = EncoderSources(proteins=[*SOURCES.proteins, twin])
    assert "Z9" not in {protein.uid for protein in exclude(copied, ["A0"]).proteins}
    with pytest.raises(ValueError, match="'nobody'"):
        exclude(SOURCES, ["nobody"])


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="nothing to draw pairs from"):
        EncoderBatches(EncoderSources(), 1)
    with pytest.raises(ValueError, match="masked residues need sequences"):
        EncoderBatches(EncoderSources(SOURCES.families), 1, masked_per_batch=1)


def test_sources_from_files(tmp_path):
    (tmp_path / "PF1.align").write_text(">a\nMK-V\n>b\nM-LV\n")
    (tmp_path / "s.fasta").write_text(">p\nMKVLA\n>q\nMK7\n")
    rows = ["uid,interpro_id,seq_full,label", 'A,F,MKV,"[0, 1, 1]"', 'B,F,MK,"[0]"']
    (tmp_path / "sites.csv").write_text("\n".join(rows))
    (tmp_path / "names.txt").write_text("# test proteins\nA  # the first\n\n")
    bad = []
    sources = read_sources(
        [tmp_path / "PF1.align"], [tmp_path / "sites.csv"], [tmp_path / "s.fasta"], bad=bad
    )
    assert sources.describe() == {
        "families": 1,
        "aligned rows": 2,
        "aligned pairs": 0,
        "site proteins": 1,
        "site families": 1,
        "sequences": 1,
    }
    assert len(bad) == 2 and "(B)" in bad[0].id
    assert read_names(tmp_path / "names.txt") == ["A"]
    assert not read_sources([tmp_path / "PF1.align"], exclude_families=["PF1"]).families
