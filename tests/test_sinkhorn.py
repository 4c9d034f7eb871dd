"""The plan: both domains, both forms, masks, transposes, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plasma_hf.models.modeling_plasma import diagonal_sums, diagonal_support, log_kernel, sinkhorn
from tests.helpers import reference

DOMAINS = ["linear", "log"]


def random_kernel(n, m, seed=0, scale=8.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cost = scale * torch.rand(1, n, m, dtype=torch.float64, generator=generator)
    masks = torch.ones(1, n, dtype=torch.bool), torch.ones(1, m, dtype=torch.bool)
    return log_kernel(cost.to(dtype), 1.0, *masks), *masks


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 30), (30, 5), (20, 60)])
def test_published_form_is_the_plain_recurrence(domain, shape):
    kernel, *masks = random_kernel(*shape)
    plan = sinkhorn(kernel, *masks, domain=domain)[0].numpy()
    np.testing.assert_allclose(plan, reference.plan(-kernel[0].numpy(), 1.0), atol=1e-12)
    assert plan.sum(0).max() <= 1 + 1e-9


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 25), m=st.integers(1, 25), seed=st.integers(0, 99), scale=st.floats(0, 60))
def test_converged_plan_transposes_and_obeys_both_marginals(n, m, seed, scale):
    kernel, query_mask, candidate_mask = random_kernel(n, m, seed, scale)
    for domain in DOMAINS:
        options = {"tol": 1e-6, "domain": domain, "max_iters": 20_000}
        plan = sinkhorn(kernel, query_mask, candidate_mask, **options)
        other = sinkhorn(kernel.transpose(1, 2), candidate_mask, query_mask, **options)
        assert (plan - other.transpose(1, 2)).abs().max() < 2e-5
        assert plan.sum(-1).max() < 1 + 1e-5 and plan.sum(-2).max() < 1 + 1e-5


@pytest.mark.parametrize("domain", DOMAINS)
def test_converged_form_is_the_limit_of_the_published_one(domain):
    for n, m in [(6, 6), (6, 9), (9, 6)]:
        kernel, *masks = random_kernel(n, m)
        limit = sinkhorn(kernel, *masks, n_iters=20_000, eps=1e-4)
        plan = sinkhorn(kernel, *masks, tol=1e-10, eps=1e-4, domain=domain)
        assert (plan - limit).abs().max() < 1e-7


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3)])
def test_converged_gradient_is_that_of_the_unrolled_iteration(domain, shape):
    kernel, query_mask, candidate_mask = random_kernel(*shape)
    query_mask = query_mask.clone()
    query_mask[0, -1] = False
    kernel = log_kernel(-kernel, 1.0, query_mask, candidate_mask).requires_grad_()
    weight = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"eps": 1e-3, "domain": domain}
    converged = sinkhorn(kernel, query_mask, candidate_mask, tol=1e-12, max_iters=50_000, **options)
    unrolled = sinkhorn(kernel, query_mask, candidate_mask, n_iters=5_000, **options)
    ours, theirs = (
        torch.autograd.grad((p * weight).sum(), kernel)[0] for p in (converged, unrolled)
    )
    assert (ours - theirs).abs().max() < 1e-8


@pytest.mark.parametrize("domain", DOMAINS)
def test_gradcheck(domain):
    kernel, *masks = random_kernel(3, 4)
    kernel.requires_grad_()
    for options in ({"n_iters": 5}, {"tol": 1e-13, "max_iters": 50_000}):
        assert torch.autograd.gradcheck(
            lambda k, options=options: sinkhorn(k, *masks, eps=1e-2, domain=domain, **options),
            kernel,
        )


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("tol", [None, 1e-4])
@pytest.mark.parametrize("cost", [0.0, 1e4, 1e8])
def test_extreme_costs_and_fully_masked_pairs_stay_finite(domain, tol, cost):
    masks = torch.ones(3, 4, dtype=torch.bool), torch.ones(3, 6, dtype=torch.bool)
    masks[0][1] = False
    masks[1][2] = False
    raw = torch.full((3, 4, 6), cost, requires_grad=True)
    plan = sinkhorn(log_kernel(raw, 0.1, *masks), *masks, tol=tol, domain=domain)
    assert plan.isfinite().all() and plan[1:].abs().sum() == 0
    plan.sum().backward()
    assert raw.grad.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 9), m=st.integers(1, 9), before=st.integers(0, 5), after=st.integers(0, 5))
def test_diagonal_sums(n, m, before, after):
    matrix = torch.rand(1, n, m, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    sums = diagonal_sums(matrix, before, after)
    for i in range(n):
        for j in range(m):
            steps = range(-before, after + 1)
            inside = [k for k in steps if 0 <= i + k < n and 0 <= j + k < m]
            wanted = sum(float(matrix[0, i + k, j + k]) for k in inside)
            assert abs(float(sums[0, i, j]) - wanted) < 1e-12


def test_support_is_the_slow_twin_and_symmetric():
    matrix = torch.rand(1, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones_like(matrix, dtype=torch.bool)
    ours = diagonal_support(matrix, allowed, 3, 2)
    np.testing.assert_allclose(ours[0].numpy(), reference.support(matrix[0].numpy(), 3, 2))
    other = diagonal_support(matrix.transpose(1, 2), allowed.transpose(1, 2), 3, 2)
    assert torch.equal(ours.transpose(1, 2), other)
