"""The compiled kernels of a CPU, against their twins in plain torch."""

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from plasma_hf.kernels.cpu import (  # noqa: E402  # noqa: E402
    align_pairs_numba,  # noqa: E402
    converged_plan_numba,
    diagonal_sums_numba,
    diagonal_support_numba,
    hinge_cost_numba,  # noqa: E402
    share_out,  # noqa: E402
    sinkhorn_numba,
)
from plasma_hf.models import modeling_plasma as diagonal  # noqa: E402
from plasma_hf.models import modeling_plasma as score
from plasma_hf.models import modeling_plasma as sinkhorn
from plasma_hf.models import modeling_plasma as support

SEEDS = st.integers(0, 999)
RESIDUES = st.integers(1, 70)


def reference_cost(query, candidate):
    """The hinge cost by its definition; `hinge_cost` itself may be what is compiled."""
    distance = torch.cdist(query, candidate, p=1.0)
    return (distance + query.sum(-1)[..., None] - candidate.sum(-1)[..., None, :]) / 2


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@settings(deadline=None, max_examples=60)
@given(
    n=RESIDUES,
    m=RESIDUES,
    channels=st.integers(1, 520),
    size=st.sampled_from([1e-3, 1.0, 1e4]),
    seed=SEEDS,
)
def test_cost_and_gradient(n, m, channels, size, seed):
    torch.manual_seed(seed)
    query, candidate = size * torch.randn(2, n, channels), size * torch.randn(2, m, channels)
    candidate[:, : m // 2] = query[:, torch.randint(n, (m // 2,))]  # ties
    query[0, :, ::3], candidate[0, :, ::3] = 0.0, 0.0
    grad = torch.randn(2, n, m)
    grad[:, torch.rand(n) < 0.3] = 0.0
    sides = [query.double().requires_grad_(), candidate.double().requires_grad_()]
    expected = reference_cost(*sides)
    wanted = torch.autograd.grad(expected, sides, grad.double())
    mine = [query.requires_grad_(), candidate.requires_grad_()]
    cost = hinge_cost_numba(*mine)
    scale = query.abs().sum(-1).max() + candidate.abs().sum(-1).max()
    assert (cost - expected).abs().max() <= 1e-6 * scale
    for found, gradient in zip(torch.autograd.grad(cost, mine, grad), wanted, strict=True):
        assert (found - gradient).abs().max() <= 1e-5 * max(1.0, n, m) ** 0.5


def test_cost_of_equal_rows_is_exactly_zero():
    protein = torch.randn(1, 61, 509) * 1e4
    assert (hinge_cost_numba(protein, protein)[0].diagonal() == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_number_that_is_none_shows_where_it_does_in_torch(value, side):
    sides = [torch.randn(1, 9, 40), torch.randn(1, 11, 40)]
    sides[side][0, 5, 35] = value
    expected, cost = reference_cost(*sides), hinge_cost_numba(*sides)
    finite = expected.isfinite()
    assert not finite.all()
    assert torch.equal(cost[~finite].isnan(), expected[~finite].isnan())
    assert torch.equal(finite, cost.isfinite())
    assert (cost - expected)[finite].abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_cost_of_nothing(shape):
    batch, n, m, channels = shape
    query = torch.zeros(batch, n, channels, requires_grad=True)
    cost = hinge_cost_numba(query, torch.zeros(batch, m, channels))
    assert cost.shape == (batch, n, m) and not cost.any()
    cost.sum().backward()
    assert query.grad.shape == query.shape


def kernels(n, m, size, seed, batch=2):
    """Log-kernels with arbitrary holes in the masks, at least one residue a side."""
    torch.manual_seed(seed)
    masks = torch.rand(batch, n) > 0.2, torch.rand(batch, m) > 0.2
    masks[0][:, seed % n] = masks[1][:, seed % m] = True
    cost = size * torch.rand(batch, n, m)
    return sinkhorn.log_kernel(cost, 1.0, *masks), *masks


@settings(deadline=None, max_examples=60)
@given(n=RESIDUES, m=RESIDUES, size=st.sampled_from([0.0, 5.0, 30.0, 1e4]), seed=SEEDS)
def test_published_plan_and_gradient(n, m, size, seed):
    logs, query_mask, candidate_mask = kernels(n, m, size, seed)
    reference, mine = logs.double().requires_grad_(), logs.clone().requires_grad_()
    expected = sinkhorn.sinkhorn(reference, query_mask, candidate_mask)
    plan = sinkhorn_numba(mine, candidate_mask)
    assert (plan - expected).abs().max() < 1e-5
    grad = torch.randn(plan.shape)
    expected.backward(grad.double())
    plan.backward(grad)
    assert (mine.grad - reference.grad).abs().max() < 1e-4 * max(1.0, reference.grad.abs().max())


@settings(deadline=None, max_examples=40)
@given(n=RESIDUES, m=RESIDUES, size=st.sampled_from([0.0, 5.0, 30.0, 1e4]), seed=SEEDS)
def test_converged_plan(n, m, size, seed):
    logs, *masks = kernels(n, m, size, seed)
    expected = sinkhorn.sinkhorn(logs.double(), *masks, tol=1e-5, max_iters=300)
    plan = converged_plan_numba(logs, *masks, 1e-8, 1e-5, 300)
    assert (plan - expected).abs().max() < 5e-5


@settings(deadline=None, max_examples=40)
@given(
    n=RESIDUES,
    m=RESIDUES,
    before=st.integers(0, 30),
    after=st.integers(0, 30),
    gap=st.integers(0, 4),
)
def test_diagonals_and_support(n, m, before, after, gap):
    plan, allowed = torch.rand(2, n, m), torch.rand(2, n, m) > 0.1
    expected = diagonal.diagonal_sums(plan.double(), before, after)
    assert (diagonal_sums_numba(plan, before, after) - expected).abs().max() < 1e-5
    expected = support.diagonal_support(plan.double(), allowed, before, gap)
    assert (diagonal_support_numba(plan, allowed, before, gap) - expected).abs().max() < 1e-5


def proteins(seed, lengths):
    """Pairs with something in common, and everything else noise."""
    torch.manual_seed(seed)
    base = torch.randn(200, 72)
    queries = [base[:n].contiguous() for n, _ in lengths]
    candidates = [base[n // 3 :][:m] + 0.2 * torch.randn(m, 72) for n, m in lengths]
    return queries, candidates


LENGTHS = [(70, 64), (1, 1), (5, 30), (40, 7), (64, 70), (33, 34), (1, 20), (12, 12)]


@pytest.mark.parametrize("tol", [None, 1e-4])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("order", [0.0, 2.0])
def test_fused_pairs_are_the_pieces_put_together(tol, rounds, order):
    queries, candidates = proteins(0, LENGTHS)
    options = {"kernel_scale": 0.5, "tol": tol, "max_iters": 200}
    matches = align_pairs_numba(
        queries,
        candidates,
        **options,
        support_rounds=rounds,
        order_weight=order,
        return_plans=True,
    )
    scores_alone = align_pairs_numba(queries, candidates, **options)
    assert scores_alone.plans is None
    assert torch.equal(scores_alone.mass, matches.mass)
    for p, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
        query, candidate = query[None].double(), candidate[None].double()
        masks = [torch.ones(side.shape[:2], dtype=torch.bool) for side in (query, candidate)]
        logs = sinkhorn.log_kernel(reference_cost(query, candidate), 0.5, *masks)

        def solve(kernel, masks=masks):
            return sinkhorn.sinkhorn(kernel, *masks, tol=tol, max_iters=200)

        first = solve(logs)
        stretches = {"rounds": rounds, "window": 25, "gap": 3, "weight": 16.0}
        stretches["order_weight"] = order
        plan = support.supported_plan(solve, logs, first, **stretches)
        assert (matches.plans[p] - plan[0]).abs().max() < 1e-4
        query_gate = (first.amax(-1) > 0.5).double()
        candidate_gate = (first.amax(-2) > 0.5).double()
        assert torch.equal(matches.gates[p].double(), candidate_gate[0])
        sent = query_gate[0] * (first[0] @ candidate_gate[0])
        assert (matches.sent[p] - sent).abs().max() < 1e-4
        stretch = score._window_sums(first, *masks, 10).amax()
        assert abs(matches.stretch[p] - stretch) < 1e-4
        mass = first.masked_fill(first <= 0.5, 0.0).sum()
        assert abs(matches.mass[p] - mass) < 1e-3
        cosine = torch.cosine_similarity(
            matches.sent[p].double() @ query[0], matches.gates[p].double() @ candidate[0], dim=0
        )
        published = score.published_score(first, query, candidate, *masks)
        assert abs(cosine * matches.stretch[p].clamp(0, 10) / 10 - published) < 1e-4


def test_a_pair_depends_on_neither_its_batch_nor_the_threads():
    queries, candidates = proteins(1, [*LENGTHS, (150, 140)])
    logs, *masks = kernels(70, 66, 30.0, 3, batch=5)
    query, candidate = torch.randn(3, 130, 100), torch.randn(3, 70, 100)
    found = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        matches = align_pairs_numba(queries, candidates, kernel_scale=0.5, return_plans=True)
        sides = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
        cost = hinge_cost_numba(*sides)
        cost.square().sum().backward()
        plan = sinkhorn_numba(logs, masks[1])
        found.append([*matches.plans, *matches.sent, matches.mass, matches.stretch])
        found[-1] += [cost.detach(), sides[0].grad, sides[1].grad, plan]
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for p in range(len(queries)):
        alone = align_pairs_numba(
            [queries[p]], [candidates[p]], kernel_scale=0.5, return_plans=True
        )
        assert torch.equal(alone.plans[0], matches.plans[p])
        assert torch.equal(alone.sent[0], matches.sent[p])
    assert torch.equal(hinge_cost_numba(query[1:2], candidate[1:2])[0], cost[1])
    assert torch.equal(sinkhorn_numba(logs[3:4], masks[1][3:4])[0], plan[3])


def test_fused_pairs_of_nothing():
    matches = align_pairs_numba([], [], kernel_scale=0.1, return_plans=True)
    assert matches.plans == [] and matches.sent == []
    empty = align_pairs_numba([torch.zeros(0, 8)], [torch.ones(3, 8)], kernel_scale=0.1)
    assert empty.mass.tolist() == [0.0] and empty.gates[0].tolist() == [0.0, 0.0, 0.0]


def test_a_number_that_is_none_shows_in_fused_pairs():
    queries, candidates = proteins(2, [(30, 30)])
    queries[0] = queries[0].clone()
    queries[0][3, 5] = float("nan")
    matches = align_pairs_numba(queries, candidates, kernel_scale=0.5)
    assert matches.sent[0].isnan().any() and matches.mass.isnan().all()


def test_kernels_may_be_called_by_several_threads_at_once():
    query, candidate = torch.randn(4, 80, 64), torch.randn(4, 70, 64)
    expected, results = hinge_cost_numba(query, candidate), []

    def work():
        results.extend(hinge_cost_numba(query, candidate) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20 and all(torch.equal(result, expected) for result in results)


def test_an_error_in_a_thread_is_raised(threads):
    with pytest.raises(ZeroDivisionError):
        share_out(lambda number: 1 // (number - 2), 5)


def test_a_forked_process_computes():
    code = """
import multiprocessing, torch
from plasma_hf.kernels.cpu import hinge_cost_numba
torch.set_num_threads(2)
def work(seed):
    side = torch.linspace(0, seed + 1, 130 * 4).reshape(1, 130, 4)
    return hinge_cost_numba(side, side.flip(1)).sum().item()
expected = work(1)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, [1, 1]) == [expected] * 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_files_are_importable_without_numba():
    code = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
from plasma_hf.models import align_numba, cost_numba, diagonal_numba, plan_numba
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
