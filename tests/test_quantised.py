"""Projections in 8-bit codes, against integers and against the kernels of floats."""

# ruff: noqa: E402 - what is imported depends on what is installed

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

numba = pytest.importorskip("numba")

from plasma_hf.kernels import cpu as tile
from plasma_hf.kernels.cpu import (
    align_pairs_numba,
    excess_sums,
    quantise,
    quantum,
    whole_vectors,
)

RANGE = (-4.0, 4.0)
QUANTUM = quantum(*RANGE)
LENGTHS = [(170, 164), (1, 1), (5, 130), (140, 7), (64, 70), (133, 34), (1, 20), (12, 12)]


def codes(residues, channels):
    return torch.randint(256, (residues, channels), dtype=torch.uint8)


def sums_by(add_up, query, candidate):
    """What `excess_sums` or one of its kind writes for all rows."""
    rows, columns = (-(-len(side) // 16) * 16 for side in (query, candidate))
    out = np.empty((rows, columns), np.float32)
    add_up(whole_vectors(query), whole_vectors(candidate), 0, len(query), out)
    return torch.from_numpy(out[: len(query), : len(candidate)])


def reference_sums(query, candidate):
    difference = query.int()[:, None] - candidate.int()[None]
    return difference.clamp(min=0).sum(-1)


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    channels=st.integers(1, 520),
    seed=st.integers(0, 999),
)
def test_sums_are_exact(n, m, channels, seed):
    torch.manual_seed(seed)
    query, candidate = codes(n, channels), codes(m, channels)
    candidate[: m // 2] = query[torch.randint(n, (m // 2,))]
    query[0], candidate[-1] = 255, 0  # the largest sum there is
    expected = reference_sums(query, candidate)
    assert torch.equal(sums_by(excess_sums, query, candidate), expected.float())


@pytest.mark.parametrize("form", ["plain", "distance", "dot"])
def test_every_form_adds_up_the_same(form):
    features = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[2]
    needed = {"plain": "", "distance": tile._NEEDED[tile.CODES], "dot": "+avx512vnni"}[form]
    if needed not in features:
        pytest.skip("this processor has no such instruction")
    inner = tile._emitted(form)

    @numba.njit
    def add_up(query, candidate, first, last, out):
        for j in range(0, len(candidate), tile.CODE_COLUMNS):
            for i in range(first, last, tile.CODE_ROWS):
                inner(query, i, candidate, j, out, i)

    query, candidate = codes(9, 200), codes(18, 200)
    expected = reference_sums(query, candidate).float()
    assert torch.equal(sums_by(add_up, query, candidate), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_codes_are_the_nearest(dtype):
    projection = (2 * torch.randn(50, 72)).to(dtype)
    before = projection.clone()
    found = quantise(projection, *RANGE)
    back = RANGE[0] + QUANTUM * found.float()
    assert found.dtype == torch.uint8 and torch.equal(projection, before)
    error = (back - projection.float().clamp(*RANGE)).abs().max()
    assert error <= QUANTUM / 2 * (1 + 1e-4)
    ends = torch.tensor([[-float("inf"), -4.0, 4.0, float("inf")]])
    assert quantise(ends, *RANGE).tolist() == [[0, 0, 255, 255]]


def test_what_has_no_code_is_an_error():
    projection = torch.zeros(3, 8)
    projection[1, 5] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        quantise(projection, *RANGE)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="low="):
            quantum(low, high)


def test_codes_and_quantum_come_together():
    plain, coded = [torch.zeros(3, 8)], [torch.zeros(3, 8, dtype=torch.uint8)]
    for query, candidate, step in (
        (coded, coded, None),
        (plain, plain, 1.0),
        (plain, coded, 1.0),
        (coded, plain, None),
    ):
        with pytest.raises(ValueError, match="quantum="):
            align_pairs_numba(query, candidate, kernel_scale=0.1, quantum=step)


def proteins(seed, lengths, channels=512):
    """Projections as a layer norm leaves them, pairs with a segment in common."""
    torch.manual_seed(seed)
    queries, candidates = [], []
    for n, m in lengths:
        query, candidate = torch.randn(n, channels), torch.randn(m, channels)
        size = min(n, m, 40) // 2
        candidate[m - size :] = query[:size] + 0.2 * torch.randn(size, channels)
        for side, kept in ((query, queries), (candidate, candidates)):
            kept.append(torch.nn.functional.layer_norm(side, (channels,)))
    return queries, candidates


def coded(side):
    return [quantise(protein, *RANGE) for protein in side]


def published_scores(matches, queries, candidates):
    scores = []
    for p, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
        sides = matches.sent[p] @ query, matches.gates[p] @ candidate
        cosine = torch.cosine_similarity(*sides, dim=0)
        scores.append(cosine * matches.stretch[p].clamp(0, 10) / 10)
    return torch.stack(scores)


@pytest.mark.parametrize("tol", [None, 1e-4])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("channels", [512, 100, 3])
def test_pairs_of_codes_are_pairs_of_the_numbers_they_stand_for(tol, rounds, channels):
    queries, candidates = proteins(0, LENGTHS, channels)
    sides = coded(queries), coded(candidates)
    options = {"kernel_scale": 0.1, "tol": tol, "max_iters": 200, "support_rounds": rounds}
    found = align_pairs_numba(*sides, quantum=QUANTUM, return_plans=True, **options)
    numbers = [[QUANTUM * protein.float() for protein in side] for side in sides]
    expected = align_pairs_numba(*numbers, return_plans=True, **options)
    for p in range(len(LENGTHS)):
        assert (found.plans[p] - expected.plans[p]).abs().max() < 1e-3
        assert torch.equal(found.gates[p], expected.gates[p])
        assert (found.sent[p] - expected.sent[p]).abs().max() < 1e-3
    assert (found.stretch - expected.stretch).abs().max() < 1e-2
    assert (found.mass - expected.mass).abs().max() < 1e-2


def test_little_accuracy_is_lost():
    queries, candidates = proteins(1, LENGTHS * 4)
    sides = coded(queries), coded(candidates)
    for query, candidate, q, c in zip(queries, candidates, *sides, strict=True):
        cost = (torch.cdist(query, candidate, p=1.0) + query.sum(1)[:, None]) / 2
        cost -= candidate.sum(1) / 2
        assert (QUANTUM * sums_by(excess_sums, q, c) - cost).abs().max() < 2.0
    options = {"kernel_scale": 0.1}
    found = align_pairs_numba(*sides, quantum=QUANTUM, **options)
    expected = align_pairs_numba(queries, candidates, **options)
    scores = [published_scores(m, queries, candidates) for m in (found, expected)]
    assert scores[1].max() > 0.5
    assert (scores[0] - scores[1]).abs().max() < 0.02


def test_a_pair_of_codes_depends_on_neither_its_batch_nor_the_threads():
    sides = [coded(side) for side in proteins(2, LENGTHS)]
    options = {"kernel_scale": 0.1, "quantum": QUANTUM, "return_plans": True}
    found, before = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        matches = align_pairs_numba(*sides, **options)
        found.append([*matches.plans, *matches.sent, matches.mass, matches.stretch])
        for p in range(len(LENGTHS)):
            alone = align_pairs_numba([sides[0][p]], [sides[1][p]], **options)
            assert torch.equal(alone.plans[0], matches.plans[p])
            assert torch.equal(alone.sent[0], matches.sent[p])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_equal_residues_cost_nothing():
    protein = quantise(torch.randn(61, 509), *RANGE)
    assert (sums_by(excess_sums, protein, protein).diagonal() == 0).all()


def test_pairs_of_no_codes():
    empty, three = torch.zeros(0, 8, dtype=torch.uint8), torch.zeros(3, 8, dtype=torch.uint8)
    matches = align_pairs_numba([empty], [three], kernel_scale=0.1, quantum=1.0)
    assert matches.mass.tolist() == [0.0] and matches.gates[0].tolist() == [0.0, 0.0, 0.0]
    assert align_pairs_numba([], [], kernel_scale=0.1, quantum=1.0).sent == []


def test_files_are_importable_without_numba():
    code = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
from plasma_hf.models import align_numba, quantised_numba, tile_uint8_numba
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
