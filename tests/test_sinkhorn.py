"""The plan, in both domains: masks, extremes, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasma_hf.models.modeling_plasma import log_kernel, sinkhorn
from tests.helpers import reference

DOMAINS = {"linear": sinkhorn, "log": reference.log_sinkhorn}


def random_kernel(n, m, seed=0, scale=8.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cost = scale * torch.rand(1, n, m, dtype=torch.float64, generator=generator)
    masks = torch.ones(1, n, dtype=torch.bool), torch.ones(1, m, dtype=torch.bool)
    return log_kernel(cost.to(dtype), 1.0, *masks), *masks


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 30), (30, 5), (20, 60)])
def test_published_form_is_the_plain_recurrence(domain, shape):
    kernel, _, mask = random_kernel(*shape)
    plan = DOMAINS[domain](kernel, mask)[0].numpy()
    np.testing.assert_allclose(plan, reference.plan(-kernel[0].numpy(), 1.0), atol=1e-12)
    assert plan.sum(0).max() <= 1 + 1e-9


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 25), m=st.integers(1, 25), seed=st.integers(0, 99), scale=st.floats(0, 60))
def test_both_domains_agree(n, m, seed, scale):
    kernel, _, candidate_mask = random_kernel(n, m, seed, scale)
    plans = [solve(kernel, candidate_mask) for solve in DOMAINS.values()]
    assert (plans[0] - plans[1]).abs().max() < 1e-9


@pytest.mark.parametrize("domain", DOMAINS)
def test_gradcheck(domain):
    kernel, _, mask = random_kernel(3, 4)
    kernel.requires_grad_()
    assert torch.autograd.gradcheck(lambda k: DOMAINS[domain](k, mask, eps=1e-2, n_iters=5), kernel)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("cost", [0.0, 1e4, 1e8])
def test_extreme_costs_and_fully_masked_pairs_stay_finite(domain, cost):
    masks = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    masks[0][1] = False
    masks[1][2] = False
    raw = torch.full((3, 4, 6), cost, requires_grad=True)
    plan = DOMAINS[domain](log_kernel(raw, 0.1, *masks), masks[1])
    assert plan.isfinite().all() and plan[1:].abs().sum() == 0
    plan.sum().backward()
    assert raw.grad.isfinite().all()
