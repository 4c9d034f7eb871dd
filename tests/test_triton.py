"""The Triton kernels against plain torch: on a GPU, or interpreted on the CPU."""

# ruff: noqa: E402 - what is imported depends on what is installed

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

# Read when triton is imported, by whoever does so first.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton")

from plasma_hf import PlasmaConfig
from plasma_hf.kernels import cuda, use_kernels
from plasma_hf.kernels.cuda import align_scores_triton, hinge_cost_triton, sinkhorn_triton
from plasma_hf.models.modeling_plasma import (
    hinge_cost,
    log_kernel,
    matched_mass,
    published_score,
    sinkhorn,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def proteins(batch, n, m, channels, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, n, channels, generator=generator).to(DEVICE, dtype)
    candidate = torch.randn(batch, m, channels, generator=generator).to(DEVICE, dtype)
    candidate[:, 0] = query[:, 0]  # ties
    return query.requires_grad_(), candidate.requires_grad_()


def check_cost(query, candidate):
    cost = hinge_cost_triton(query, candidate)
    expected = hinge_cost(query.double(), candidate.double())
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost.double(), expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(cost)
    for got, want in zip(
        torch.autograd.grad(cost, (query, candidate), grad),
        torch.autograd.grad(expected, (query, candidate), grad.double()),
        strict=True,
    ):
        # What is wanted went from float64 to the input's dtype; a rounding may go the other way.
        rtol = max(1e-4, torch.finfo(query.dtype).eps)
        torch.testing.assert_close(got, want, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 37, 70), (1, 33, 129, 3)])
def test_cost_and_its_gradients_are_those_of_torch(shape, dtype):
    check_cost(*proteins(*shape, dtype=dtype))


@settings(deadline=None, max_examples=8)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    channels=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_cost_of_any_shape(n, m, channels, dtype, seed):
    check_cost(*proteins(1, n, m, channels, dtype, seed))


def test_cost_at_ties_and_of_a_residue_with_itself():
    query = torch.ones(1, 2, 3, device=DEVICE, requires_grad=True)
    candidate = torch.ones(1, 2, 3, device=DEVICE, requires_grad=True)
    cost = hinge_cost_triton(query, candidate)
    assert not cost.any()
    cost.sum().backward()
    assert (query.grad == 1).all() and (candidate.grad == -1).all()


def test_one_query_meets_every_candidate_and_strides_do_not_matter():
    query, candidate = proteins(3, 5, 7, 4)
    check_cost(query[:1], candidate)
    check_cost(query.mT.contiguous().mT, candidate.flip(1))


def test_cost_of_nothing_and_of_nan():
    query, candidate = proteins(2, 3, 4, 5)
    assert hinge_cost_triton(query[:0], candidate[:0]).shape == (0, 3, 4)
    empty = hinge_cost_triton(query[:, :0], candidate)
    empty.sum().backward()
    assert empty.shape == (2, 0, 4) and not candidate.grad.any()
    broken = query.detach().clone()
    broken[0, 1, 2] = torch.nan
    assert hinge_cost_triton(broken, candidate).isnan().nonzero()[:, :2].tolist() == [[0, 1]] * 4


def kernel_of(n, m, scale, query_lengths, candidate_lengths, seed=0):
    """A batch of log-kernels in which the diagonal is cheap, and its masks."""
    generator = torch.Generator().manual_seed(seed)
    cost = scale * torch.rand(len(query_lengths), n, m, generator=generator)
    cost.diagonal(dim1=1, dim2=2).mul_(0.1)
    query_mask = torch.arange(n) < torch.tensor(query_lengths).unsqueeze(-1)
    candidate_mask = torch.arange(m) < torch.tensor(candidate_lengths).unsqueeze(-1)
    masks = query_mask.to(DEVICE), candidate_mask.to(DEVICE)
    return log_kernel(cost.to(DEVICE), 1.0, *masks), *masks


def stream(monkeypatch):
    monkeypatch.setattr(cuda, "ON_CHIP", 0)
    monkeypatch.setattr(cuda, "STREAMED", 512)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("n", "m", "scale", "n_iters"),
    [(1, 1, 1.0, 20), (20, 33, 30.0, 8), (33, 7, 2000.0, 3), (17, 70, 5.0, 3), (9, 9, 0.0, 1)],
)
def test_plan_and_its_gradient_are_those_of_torch(monkeypatch, n, m, scale, n_iters, streamed):
    if streamed:
        stream(monkeypatch)
    # The second pair is padded, the third has no query residue at all.
    lengths = [n, -(-n // 2), 0], [m, -(-m // 3), m]
    kernel, _, candidate_mask = kernel_of(n, m, scale, *lengths)
    candidate_mask[0, m // 2] = m == 1  # a residue that is masked between others
    kernel = kernel.masked_fill(~candidate_mask.unsqueeze(1), -1e30).requires_grad_()
    plan = sinkhorn_triton(kernel, candidate_mask, 1e-8, n_iters)
    expected = sinkhorn(kernel.double(), candidate_mask, n_iters=n_iters)
    torch.testing.assert_close(plan.double(), expected, rtol=1e-4, atol=2e-6)
    assert not plan[2].any() and not plan[0, :, m // 2].any() or m == 1
    grad = torch.randn_like(plan)
    got = torch.autograd.grad(plan, kernel, grad)[0]
    want = torch.autograd.grad(expected, kernel, grad.double())[0]
    atol = max(1e-7, 1e-4 * want.abs().max().item())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=atol)


@settings(deadline=None, max_examples=6)
@given(n=st.integers(1, 40), m=st.integers(1, 40), scale=st.floats(0, 60), seed=st.integers(0, 99))
def test_plan_of_any_shape(n, m, scale, seed):
    kernel, *masks = kernel_of(n, m, scale, [n], [m], seed)
    plan = sinkhorn_triton(kernel, masks[1], n_iters=5)
    expected = sinkhorn(kernel.double(), masks[1], n_iters=5)
    torch.testing.assert_close(plan.double(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("window", [0, 1, 4, 10])
@pytest.mark.parametrize(("n", "m"), [(40, 70), (5, 7)])
def test_matches_give_the_scores_of_the_plan(n, m, window):
    lengths = [n, n // 2, 1, 0], [m, m // 3, m, m]
    kernel, *masks = kernel_of(n, m, 30.0, *lengths)
    lengths = [torch.tensor(side, device=DEVICE) for side in lengths]
    config = PlasmaConfig(n_iters=5, diagonal_window=window)
    matches = align_scores_triton(kernel, *lengths, config)
    with use_kernels("torch"):
        plan = sinkhorn(kernel, masks[1], n_iters=5)
    query, candidate = torch.randn(4, n, 6, device=DEVICE), torch.randn(4, m, 6, device=DEVICE)
    candidate[:, : min(n, m)] += 3 * query[:, :m]
    transported = (matches.transported.unsqueeze(1) @ query).squeeze(1)
    present = (matches.matched.unsqueeze(1) @ candidate).squeeze(1)
    score = F.cosine_similarity(transported, present, dim=-1)
    if window:
        score = score * matches.window.clamp(0, window) / window
    expected = published_score(plan, query, candidate, *masks, diagonal_window=window)
    assert expected.max() > 0.1
    torch.testing.assert_close(score.clamp(0, 1), expected, rtol=1e-5, atol=1e-5)
    shorter = torch.minimum(*lengths).clamp(min=1)
    mass = (matches.mass / shorter).clamp(0, 1)
    torch.testing.assert_close(mass, matched_mass(plan, *masks), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_plain_torch_computes_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from plasma_hf.kernels import kernel_for, use_kernels
from plasma_hf.models.modeling_plasma import hinge_cost
with use_kernels("triton"):
    assert kernel_for("hinge_cost", torch.zeros(1)) is None
    assert hinge_cost(torch.ones(1, 2, 3), torch.zeros(1, 1, 3)).tolist() == [[[3.0], [3.0]]]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_kernels_compile(tmp_path):
    """The interpreter accepts more than the compiler, which needs no GPU."""
    code = "from tests.test_triton import compile_all; compile_all(90)"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def compile_all(architecture):
    blocks = {"row_block": 4, "column_block": 32}  # small ones compile in less time
    gradient = {"residue_block": 4, "channel_block": 32, "sign": -1}
    ones = {"rows": 1, "columns": 1, "n_iters": 1}  # an argument of 1 is a constant to Triton
    for name, constants in [
        ("_cost_kernel", blocks),
        ("_cost_gradient_kernel", gradient),
        ("_cost_gradient_kernel", gradient | {"residues": 1, "others": 1, "channels": 1}),
        ("_on_chip_kernel", blocks),
        ("_streamed_kernel", blocks),
        ("_adjoint_kernel", blocks),
        ("_adjoint_kernel", blocks | ones),
        ("_plan_kernel", blocks),
        ("_plan_gradient_kernel", blocks),
        ("_best_kernel", blocks),
        ("_sent_kernel", blocks),
        ("_window_kernel", blocks),
    ]:
        kernel = getattr(cuda, name)
        types = {arg: argument_type(arg) for arg in kernel.arg_names}
        source = triton.compiler.ASTSource(
            kernel, types | dict.fromkeys(constants, "constexpr"), constants
        )
        target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
        assert triton.compile(source, target=target, options={"num_warps": 1}).asm["cubin"]


def argument_type(name):
    if name in ("eps", "threshold"):
        return "fp32"
    if name.endswith("_lengths"):
        return "*i32"
    integers = ("rows", "columns", "channels", "residues", "others", "n_iters", "window")
    return "i32" if name in integers or name.endswith(("_stride", "_batch")) else "*fp32"
