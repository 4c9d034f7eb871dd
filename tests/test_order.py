"""How likely residues are aligned in order: against every alignment there is, and at any length."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import use_kernels
from plasma_hf.models.modeling_plasma import EXTEND, OPEN, in_order, log_odds

SIZES = st.integers(1, 40)


def every_alignment(odds):
    """Weigh each local alignment of a small pair by itself, and share out what each weighs."""
    n, m = odds.shape
    found, total = np.zeros((n, m)), 0.0
    for pairs in range(1, min(n, m) + 1):
        for rows in combinations(range(n), pairs):
            for columns in combinations(range(m), pairs):
                gaps = [g for places in (rows, columns) for g in np.diff(places) - 1 if g]
                cost = sum(OPEN + EXTEND * (gap - 1) for gap in gaps)
                weight = np.exp(cost) * np.prod(odds[rows, columns])
                found[rows, columns] += weight
                total += weight
    return found / total


def random_plan(n, m, seed, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.sigmoid(4 * torch.randn(batch, n, m, generator=generator) - 4)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (4, 4), (5, 3), (4, 6)])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_it_is_the_share_of_all_alignments(n, m, kernels):
    plan = random_plan(n, m, n + m)
    allowed = torch.ones(1, n, m, dtype=torch.bool)
    with use_kernels(kernels):
        found = in_order(plan, allowed)
    expected = every_alignment(log_odds(plan.double(), allowed)[0].exp().numpy())
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(n=SIZES, m=SIZES, seed=st.integers(0, 99))
def test_compiled_and_plain_form_agree_whatever_is_masked(n, m, seed):
    pytest.importorskip("numba")
    plan = random_plan(n, m, seed, batch=2)
    rows, columns = (torch.rand(2, size) > 0.2 for size in (n, m))
    rows[:, 0] = columns[:, 0] = True
    allowed = rows[:, :, None] & columns[:, None]
    with use_kernels("torch"):
        expected = in_order(plan.double(), allowed)
    with use_kernels("numba"):
        found = in_order(plan, allowed)
    assert (found - expected).abs().max() < 1e-6
    assert not found[~allowed].any()
    assert max(found.sum(1).max(), found.sum(2).max()) < 1 + 1e-5
    with use_kernels("numba"):
        turned = in_order(plan.transpose(1, 2).contiguous(), allowed.transpose(1, 2))
    assert (turned.transpose(1, 2) - found).abs().max() < 1e-6


@settings(deadline=None, max_examples=20)
@given(n=SIZES, m=SIZES, around=st.integers(0, 9), seed=st.integers(0, 99))
def test_padding_changes_nothing(n, m, around, seed):
    plan = random_plan(n, m, seed)
    padded = torch.nn.functional.pad(plan, (around, 3, 2, around), value=0.7)
    allowed = torch.zeros_like(padded, dtype=torch.bool)
    allowed[:, 2 : n + 2, around : m + around] = True
    found = in_order(padded, allowed)[:, 2 : n + 2, around : m + around]
    assert (found - in_order(plan, torch.ones_like(plan, dtype=torch.bool))).abs().max() < 1e-6


@pytest.mark.parametrize("residues", [60, 900])
def test_rivals_share_however_much_each_weighs(residues):
    # Two halves in the other order: either is aligned, never both, and neither comes first.
    plan = torch.eye(residues).roll(residues // 2, 1)[None]
    found = in_order(plan, torch.ones_like(plan, dtype=torch.bool))
    in_pairs = found[0][plan[0] > 0]
    assert (in_pairs.view(2, -1)[:, 10:-10] - 0.5).abs().max() < 0.01


def test_it_learns():
    plan = (random_plan(5, 6, 0).double() + 0.1).requires_grad_()
    allowed = torch.ones_like(plan, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda p: in_order(p, allowed), plan)


def test_the_last_round_prefers_what_is_in_order():
    # Three stretches that match; the middle one of the candidate lies at its end.
    torch.manual_seed(0)
    rows = 3 * torch.randn(60, 16)
    query, candidate = rows[None], torch.cat([rows[:20], rows[40:], rows[20:40]])[None]
    stretches = [(slice(0, 20), slice(0, 20)), (slice(20, 40), slice(40, 60))]
    stretches.append((slice(40, 60), slice(20, 40)))
    masses, scores = {}, {}
    for options in ((0.1, 0.0), (0.1, 2.0), (1.0, 2.0)):
        config = dict(zip(("kernel_scale", "order_weight"), options, strict=True))
        model = PlasmaModel(PlasmaConfig(embedding_size=16, head="hinge", **config)).eval()
        with torch.no_grad():
            out = model(query_embeddings=query, candidate_embeddings=candidate, return_plan=True)
        masses[options] = [float(out.plan[0][stretch].trace()) for stretch in stretches]
        scores[options] = out.scores
    # Of unsure matches those in order gain most; sure ones stay, in order or not.
    assert max(masses[0.1, 0.0]) < 1
    first, *others = masses[0.1, 2.0]
    assert first > 10 and max(others) < first / 4
    assert min(masses[1.0, 2.0]) > 19.9
    assert torch.equal(scores[0.1, 0.0], scores[0.1, 2.0])
