"""The compiled kernels of a CPU, against plain torch in float64."""

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")

from plasma_hf import PlasmaConfig  # noqa: E402
from plasma_hf.kernels import use_kernels  # noqa: E402
from plasma_hf.kernels.cpu import align_pairs_numba, hinge_cost_numba, parallel_for, sinkhorn_numba  # noqa: E402
from plasma_hf.models import modeling_plasma as plain  # noqa: E402

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
    for residues, channels in ((61, 509), (64, 512), (33, 3), (1, 40), (7, 16)):
        protein = torch.randn(1, residues, channels) * 1e4
        other = protein[:, torch.randint(residues, (2 * residues,))]  # equal ones anywhere
        for form in (hinge_cost_numba, plain.hinge_cost):
            with use_kernels("torch"):
                assert (form(protein, protein)[0].diagonal() == 0).all()
                assert (form(protein, other).amin(1) == 0).all()


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


def test_a_batch_of_one_meets_every_protein_of_the_other():
    one, several = torch.randn(1, 9, 40), torch.randn(3, 11, 40)
    expected = torch.cat([hinge_cost_numba(one, other[None]) for other in several])
    assert torch.equal(hinge_cost_numba(one, several), expected)
    assert torch.equal(hinge_cost_numba(several, one)[1], hinge_cost_numba(several[1:2], one)[0])


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
    return plain.log_kernel(cost, 1.0, *masks), *masks


@settings(deadline=None, max_examples=60)
@given(n=RESIDUES, m=RESIDUES, size=st.sampled_from([0.0, 5.0, 30.0, 1e4]), seed=SEEDS)
def test_published_plan_and_gradient(n, m, size, seed):
    logs, _, candidate_mask = kernels(n, m, size, seed)
    reference, mine = logs.double().requires_grad_(), logs.clone().requires_grad_()
    expected = plain.sinkhorn(reference, candidate_mask)
    plan = sinkhorn_numba(mine, candidate_mask)
    assert (plan - expected).abs().max() < 1e-5
    grad = torch.randn(plan.shape)
    expected.backward(grad.double())
    plan.backward(grad)
    assert (mine.grad - reference.grad).abs().max() < 1e-4 * max(1.0, reference.grad.abs().max())


def proteins(seed, lengths):
    """Pairs with something in common, and everything else noise."""
    torch.manual_seed(seed)
    base = torch.randn(200, 72)
    queries = [base[:n].contiguous() for n, _ in lengths]
    candidates = [base[n // 3 :][:m] + 0.2 * torch.randn(m, 72) for n, m in lengths]
    return queries, candidates


CONFIG = PlasmaConfig(kernel_scale=0.5)
LENGTHS = [(70, 64), (1, 1), (5, 30), (40, 7), (64, 70), (33, 34), (1, 20), (12, 12)]


def test_fused_pairs_are_the_pieces_put_together():
    queries, candidates = proteins(0, LENGTHS)
    matches = align_pairs_numba(queries, candidates, CONFIG, return_plans=True)
    scores_alone = align_pairs_numba(queries, candidates, CONFIG)
    assert scores_alone.plans is None
    assert torch.equal(scores_alone.mass, matches.mass)
    for p, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
        query, candidate = query[None].double(), candidate[None].double()
        masks = [torch.ones(side.shape[:2], dtype=torch.bool) for side in (query, candidate)]
        logs = plain.log_kernel(reference_cost(query, candidate), 0.5, *masks)
        plan = plain.sinkhorn(logs, masks[1])
        assert (matches.plans[p] - plan[0]).abs().max() < 1e-4
        query_gate = (plan.amax(-1) > 0.5).double()
        candidate_gate = (plan.amax(-2) > 0.5).double()
        assert torch.equal(matches.matched[p].double(), candidate_gate[0])
        transported = query_gate[0] * (plan[0] @ candidate_gate[0])
        assert (matches.transported[p] - transported).abs().max() < 1e-4
        window = plain._window_sums(plan, *masks, 10).amax()
        assert abs(matches.window[p] - window) < 1e-4
        mass = plan.masked_fill(plan <= 0.5, 0.0).sum()
        assert abs(matches.mass[p] - mass) < 1e-3
        cosine = torch.cosine_similarity(
            matches.transported[p].double() @ query[0],
            matches.matched[p].double() @ candidate[0],
            dim=0,
        )
        published = plain.published_score(plan, query, candidate, *masks)
        assert abs(cosine * matches.window[p].clamp(0, 10) / 10 - published) < 1e-4


def test_a_pair_depends_on_neither_its_batch_nor_the_threads():
    queries, candidates = proteins(1, [*LENGTHS, (150, 140)])
    logs, *masks = kernels(70, 66, 30.0, 3, batch=5)
    query, candidate = torch.randn(3, 130, 100), torch.randn(3, 70, 100)
    found = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        matches = align_pairs_numba(queries, candidates, CONFIG, return_plans=True)
        sides = [query.clone().requires_grad_(), candidate.clone().requires_grad_()]
        cost = hinge_cost_numba(*sides)
        cost.square().sum().backward()
        plan = sinkhorn_numba(logs, masks[1])
        found.append([*matches.plans, *matches.transported, matches.mass, matches.window])
        found[-1] += [cost.detach(), sides[0].grad, sides[1].grad, plan]
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for p in range(len(queries)):
        alone = align_pairs_numba([queries[p]], [candidates[p]], CONFIG, return_plans=True)
        assert torch.equal(alone.plans[0], matches.plans[p])
        assert torch.equal(alone.transported[0], matches.transported[p])
    assert torch.equal(hinge_cost_numba(query[1:2], candidate[1:2])[0], cost[1])
    assert torch.equal(sinkhorn_numba(logs[3:4], masks[1][3:4])[0], plan[3])


def test_fused_pairs_of_nothing():
    matches = align_pairs_numba([], [], CONFIG, return_plans=True)
    assert matches.plans == [] and matches.transported == []
    empty = align_pairs_numba([torch.zeros(0, 8)], [torch.ones(3, 8)], CONFIG)
    assert empty.mass.tolist() == [0.0] and empty.matched[0].tolist() == [0.0, 0.0, 0.0]


def test_a_number_that_is_none_shows_in_fused_pairs():
    queries, candidates = proteins(2, [(30, 30)])
    queries[0] = queries[0].clone()
    queries[0][3, 5] = float("nan")
    matches = align_pairs_numba(queries, candidates, CONFIG)
    assert matches.transported[0].isnan().any() and matches.mass.isnan().all()


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
        parallel_for(5, lambda number: 1 // (number - 2))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_plain_torch_computes_without_numba(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import torch
from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import kernels_for
model = PlasmaModel(PlasmaConfig(embedding_size=8, head="hinge", kernel_scale=1.0))
protein = torch.arange(96.0).sin().view(12, 8)
aligned = model.align_pairs([protein], [protein[3:9]])
assert kernels_for(protein) == "torch" and aligned.plans[0].shape == (12, 6)
model(protein[None], protein[None], labels=torch.ones(1)).loss
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
