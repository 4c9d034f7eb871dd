"""On a CPU batches are computed pair by pair; nobody may see it."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import use_kernels
from plasma_hf.models.modeling_backbone import pad_residues

WIDTH = 12
LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)
FORMS = [
    {"head": "hinge"},
    {"head": "lrl", "head_size": 40},  # no multiple of what the kernels take at a time
    {"head": "hinge", "score_loss_form": "affine"},
    {"head": "hinge", "score_form": "mass", "score_loss_form": "affine"},
]


def make_batch(lengths, seed=0):
    torch.manual_seed(seed)
    batch = {"labels": torch.arange(len(lengths)) % 2 ^ 1}
    for side, sizes in zip(("query", "candidate"), zip(*lengths, strict=True), strict=True):
        # Near few rows, so that residues match, and at none, where gradients jump.
        near = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed))
        rows = [near[torch.randint(6, (size,))] + 0.3 * torch.randn(size, WIDTH) for size in sizes]
        batch[f"{side}_embeddings"], batch[f"{side}_mask"] = pad_residues(rows)
        batch[f"{side}_site_labels"] = (torch.rand(batch[f"{side}_mask"].shape) < 0.5).long()
    batch["correspondences"] = torch.zeros(len(lengths), 1, 2, dtype=torch.long)
    return batch


def run(model, batch, kernels, **options):
    model.zero_grad()
    sides = [f"{side}_embeddings" for side in ("query", "candidate")]
    given = batch | {name: batch[name].clone().requires_grad_() for name in sides}
    with use_kernels(kernels):
        out = model(**given, **options)
        out.loss.backward()
    parameters = [p.grad for p in model.parameters() if p.requires_grad]
    return out, [given[name].grad for name in sides] + parameters


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(deadline=None, max_examples=25)
@example(lengths=[(12, 12), (36, 1)], seed=1)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_losses_and_gradients_are_those_of_the_padded_batch(form, lengths, seed):
    pytest.importorskip("numba")
    torch.manual_seed(seed)
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, kernel_scale=0.5, **form)).train()
    batch = make_batch(lengths, seed)
    (apart, grads), (padded, expected) = (run(model, batch, k) for k in ("numba", "torch"))
    torch.testing.assert_close(apart.scores, padded.scores, atol=1e-5, rtol=1e-4)
    for name in ("loss", "score_loss", "label_match_loss", "correspondence_loss"):
        torch.testing.assert_close(apart[name], padded[name], atol=1e-5, rtol=1e-4)
    largest = max(float(grad.abs().max()) for grad in expected)
    near = 1e-4 * max(largest, 1e-1)
    for found, grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, grad, atol=near, rtol=1e-3)


@pytest.mark.parametrize("lengths", [[(12, 12)], [(36, 1), (7, 9)]], ids=["one pair", "padded"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_without_gradient_it_is_the_same(form, lengths):
    pytest.importorskip("numba")
    torch.manual_seed(0)
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, kernel_scale=0.5, **form))
    batch = make_batch(lengths)
    sides = {name: batch[name] for name in batch if name.endswith(("embeddings", "mask"))}
    expected = run(model, batch, "torch")[0]
    with torch.no_grad(), use_kernels("numba"):
        found, scored = model(**batch), model(**sides)
    assert torch.equal(found.scores, scored.scores)
    for name in ("scores", "loss", "score_loss", "label_match_loss", "correspondence_loss"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


def test_plans_and_costs_are_put_together_again():
    pytest.importorskip("numba")
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, head="hinge"))
    batch = make_batch([(30, 8), (5, 21), (17, 17)])
    outs = [run(model, batch, kernels, return_plan=True)[0] for kernels in ("numba", "torch")]
    assert outs[0].plan.shape == outs[0].cost.shape == (3, 30, 21)
    torch.testing.assert_close(outs[0].plan, outs[1].plan, atol=1e-5, rtol=1e-4)
    known = batch["query_mask"].unsqueeze(-1) & batch["candidate_mask"].unsqueeze(-2)
    torch.testing.assert_close(outs[0].cost[known], outs[1].cost[known])


@pytest.mark.parametrize("kernels", ["numba", "torch"])
def test_what_stands_at_padding_does_not_matter(kernels):
    if kernels == "numba":
        pytest.importorskip("numba")
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, head="hinge"))
    batch = make_batch([(30, 8), (5, 21)])
    clean, clean_grads = run(model, batch, kernels)
    for side in ("query", "candidate"):
        batch[f"{side}_embeddings"][~batch[f"{side}_mask"]] = 1e6
    dirty, grads = run(model, batch, kernels)
    assert torch.equal(clean.loss, dirty.loss)
    assert all(torch.equal(a, b) for a, b in zip(clean_grads, grads, strict=True))


@pytest.mark.parametrize("kept", [[1, 1, 1], [1, 0, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], ids=str)
def test_padding_may_be_anywhere(kept):
    pytest.importorskip("numba")
    model = PlasmaModel(PlasmaConfig(embedding_size=WIDTH, kernel_scale=0.5, head="hinge"))
    batch = make_batch([(24, 24), (24, 24)])
    for side in ("query", "candidate"):
        batch[f"{side}_mask"][1] = torch.tensor(kept).repeat_interleave(8).bool()
    batch["correspondences"][1] = torch.tensor([16, 16])
    outs = [run(model, batch, kernels, return_plan=True) for kernels in ("numba", "torch")]
    (found, grads), (expected, wanted) = outs
    for name in ("plan", "scores", "loss", "label_match_loss", "correspondence_loss"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
