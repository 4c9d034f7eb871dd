"""Local alignments: against every alignment there is, compiled against plain, at any length."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import use_kernels
from plasma_hf.models.local_alignment import (
    NEVER,
    READING,
    SEARCHING,
    Calibration,
    Evidence,
    Scoring,
    aligned_probabilities,
    alignment_scores,
    best_in_order,
    best_stretch,
    find_alignments,
    share_of_evidence,
)

KERNELS = ["numba", "torch"]
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 999)
EXACT = Scoring(1.0, 2.0, 8.0, 0.5)
SCORINGS = st.sampled_from([READING, SEARCHING, Scoring(0.7, 1.0, 1.5, 0.1)])
SPREADS = st.sampled_from([0.0, 1.0, 4.0])


@pytest.fixture(autouse=True)
def _numba(request):
    if "kernels" in request.fixturenames and request.getfixturevalue("kernels") == "numba":
        pytest.importorskip("numba")


def draw(n, m, seed, spread=2.0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(batch, n, m, generator=generator)


def gap_cost(rows, columns, scoring):
    gaps = [gap for places in (rows, columns) for gap in np.diff(places) - 1 if gap]
    return sum(scoring.gap_open + scoring.gap_extend * (gap - 1) for gap in gaps)


def every_alignment(odds, scoring):
    """Return the pairs of each local alignment of a small pair of proteins, and what it weighs."""
    n, m = odds.shape
    found = []
    for pairs in range(1, min(n, m) + 1):
        for rows in combinations(range(n), pairs):
            for columns in combinations(range(m), pairs):
                log_weight = odds[rows, columns].sum() - gap_cost(rows, columns, scoring)
                found.append((list(rows), list(columns), log_weight))
    return found


TINY = [(1, 1), (1, 4), (4, 1), (3, 4), (4, 4), (5, 3)]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("scoring", [READING, SEARCHING, Scoring(0.7, 1.0, 1.5, 0.1)])
@pytest.mark.parametrize(("n", "m"), TINY)
def test_it_is_what_all_alignments_say(n, m, scoring, kernels):
    evidence = draw(n, m, n + 7 * m)
    every = every_alignment(scoring.log_odds(evidence[0].double()).numpy(), scoring)
    total, share = 0.0, np.zeros((n, m))
    for rows, columns, log_weight in every:
        total += np.exp(log_weight)
        share[rows, columns] += np.exp(log_weight)
    with use_kernels(kernels):
        [found] = aligned_probabilities([evidence[0]], scoring)
        score = alignment_scores([evidence[0]], scoring)
        box = best_stretch(evidence[0], scoring)
    np.testing.assert_allclose(found.numpy(), share / total, atol=1e-6)
    assert float(score) == pytest.approx(np.log(total), abs=1e-5)
    rows, columns, _ = max(every, key=lambda alignment: alignment[2])
    assert box == (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("n", "m"), TINY)
def test_what_gains_most_in_order(n, m, kernels):
    gain = draw(n, m, n * m)[0]
    every = every_alignment(gain.double().numpy(), Scoring(1.0, 0.0, 0.0, 0.0))
    rows, columns, most = max(every, key=lambda alignment: alignment[2])
    with use_kernels(kernels):
        pairs = best_in_order(gain)
    assert pairs.tolist() == ([*map(list, zip(rows, columns, strict=True))] if most > 0 else [])


@settings(max_examples=60)
@given(n=SIZES, m=SIZES, seed=SEEDS, scoring=SCORINGS, spread=SPREADS, masked=st.booleans())
@example(n=1, m=40, seed=0, scoring=READING, spread=1.0, masked=True)
@example(n=40, m=1, seed=0, scoring=SEARCHING, spread=1.0, masked=True)
def test_compiled_and_plain_form_agree(n, m, seed, scoring, spread, masked):
    pytest.importorskip("numba")
    evidence = draw(n, m, seed, spread)[0]
    taken = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) > 0.7
    if masked:  # as stretches are that were found before
        evidence = evidence.masked_fill(taken, NEVER)
    with use_kernels("torch"):
        [expected] = aligned_probabilities([evidence.double()], scoring)
        scores = alignment_scores([evidence.double()], scoring)
    with use_kernels("numba"):
        found, other = aligned_probabilities([evidence, evidence.mT], scoring)
        own = alignment_scores([evidence], scoring)
    assert (found - expected).abs().max() < 1e-5
    torch.testing.assert_close(own.double(), scores, rtol=1e-5, atol=1e-4)
    assert (other.mT - found).abs().max() < 1e-5
    assert max(found.sum(0).max(), found.sum(1).max()) < 1 + 1e-5
    assert found.min() >= 0 and not (masked and found[taken].any())


@settings(max_examples=40)
@given(n=SIZES, m=SIZES, seed=SEEDS, ties=st.booleans())
@example(n=1, m=30, seed=0, ties=False)
@example(n=8, m=8, seed=0, ties=True)
def test_compiled_and_plain_single_alignments_weigh_the_same(n, m, seed, ties):
    pytest.importorskip("numba")
    # Sums are exact, so that what ties for one form does for the other.
    evidence = draw(n, m, seed)[0].mul(2 if ties else 2**16).round().div(2 if ties else 2**16)
    boxes, orders = [], []
    for kernels in KERNELS:
        with use_kernels(kernels):
            boxes.append(best_stretch(evidence, EXACT))
            orders.append(best_in_order(evidence / 4))
    most = best_weight(evidence.numpy())
    assert [best_weight(evidence[box].numpy()) for box in boxes] == [most] * 2
    for rows, columns in boxes:  # and nothing beside it: one of its corners less weighs less
        smaller = (evidence[rows, columns][1:], evidence[rows, columns][:, :-1])
        assert ties or all(one.numel() == 0 or best_weight(one.numpy()) < most for one in smaller)
    gains = [float(evidence[pairs[:, 0], pairs[:, 1]].sum()) for pairs in orders]
    assert gains[0] == gains[1] >= 0
    for pairs in orders:
        assert (pairs.diff(dim=0) > 0).all()


def best_weight(evidence, scoring=EXACT):
    """Return what the best local alignment weighs, by a loop over all gaps."""
    odds = scoring.slope * (evidence.astype(float) - scoring.shift)
    sizes = np.arange(max(odds.shape))
    gaps = np.where(sizes > 0, scoring.gap_open + scoring.gap_extend * (sizes - 1), 0.0)
    best = np.zeros_like(odds)
    for i, j in np.ndindex(*odds.shape):
        before = best[:i, :j] - gaps[:i][::-1, None] - gaps[:j][::-1]
        best[i, j] = odds[i, j] + max(0.0, before.max(initial=0.0))
    return best.max()


def score(pairs):
    scored = alignment_scores([pair.scored for pair in pairs], SEARCHING)
    return scored, alignment_scores([pair.read for pair in pairs], READING)


@settings(max_examples=20)
@given(sizes=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=4), seed=SEEDS)
@example(sizes=[(1, 40), (40, 1), (1, 1)], seed=0)
def test_pairs_of_any_sizes_are_read_as_alone(sizes, seed):
    pytest.importorskip("numba")
    pairs = [Evidence(*draw(n, m, seed, batch=2)) for n, m in sizes]
    for kernels in KERNELS:
        with use_kernels(kernels):
            found = *score(pairs), aligned_probabilities([pair.read for pair in pairs])
        with use_kernels("torch"):
            for pair, raw, shared, plan in zip(pairs, *found, strict=True):
                [wanted] = aligned_probabilities([pair.read])
                assert (plan - wanted).abs().max() < 1e-5
                torch.testing.assert_close([raw[None], shared[None]], list(score([pair])))


@settings(max_examples=20)
@given(n=SIZES, m=SIZES, around=st.integers(0, 9), seed=SEEDS)
def test_what_is_taken_is_as_if_it_were_not_there(n, m, around, seed):
    [evidence] = draw(n, m, seed)
    padded = torch.nn.functional.pad(evidence, (around, 3, 2, around), value=NEVER)
    for kernels in KERNELS:
        with use_kernels(kernels):
            alone, found = aligned_probabilities([evidence, padded])
            assert (found[2 : n + 2, around : m + around] - alone).abs().max() < 1e-6
            one, other = alignment_scores([evidence, padded])
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_extreme_evidence_stays_finite(value, kernels):
    evidence, all_alike = draw(30, 50, 0)[0], torch.full((9, 9), value)
    evidence[3:9, 10:20] = value
    evidence[20:, 30:] = -value
    with use_kernels(kernels):
        found, alike = aligned_probabilities([evidence, all_alike])
        assert found.isfinite().all() and found.min() >= 0 and alike.isfinite().all()
        assert max(found.sum(0).max(), found.sum(1).max()) < 1 + 1e-4
        assert alignment_scores([evidence, all_alike]).isfinite().all()
        rows, columns = best_stretch(evidence)
    assert 0 <= rows.start < rows.stop <= 30 and 0 <= columns.start < columns.stop <= 50


@pytest.mark.parametrize(
    ("residues", "value", "kernels"),
    [
        (60, 12.0, "numba"),
        (60, 12.0, "torch"),
        (330, 12.0, "numba"),
        (900, 4.0, "numba"),
        (900, 12.0, "torch"),
        (900, 12.0, "numba"),
        (3000, 4.0, "numba"),
    ],
)
def test_rivals_share_however_much_each_weighs(residues, value, kernels):
    # Two halves in the other order: either is aligned, never both, and neither comes first.
    evidence = value * torch.eye(residues).roll(residues // 2, 1)
    with use_kernels(kernels):
        [found] = aligned_probabilities([evidence], Scoring(0.25, 0.0, 4.0, 0.2))
    in_pairs = found[evidence > 0]
    assert (in_pairs.view(2, -1)[:, 10:-10] - 0.5).abs().max() < 0.01


def test_it_learns():
    matrices = draw(4, 5, 0, batch=2).double().requires_grad_()

    def read(matrices):
        pair = Evidence(*matrices)
        return *score([pair]), *aligned_probabilities([pair.read])

    assert torch.autograd.gradcheck(read, matrices)
    taken = torch.zeros(4, 5, dtype=torch.bool)
    taken[1:3, 2:] = True
    assert torch.autograd.gradcheck(lambda given: read(given.masked_fill(taken, NEVER)), matrices)


def test_gradient_in_single_precision_is_that_of_the_plain_form():
    evidence = draw(20, 30, 0)[0].requires_grad_()
    with use_kernels("numba"):
        alignment_scores([evidence]).sum().backward()
    # The derivative of the logarithm of the sum is the probability, times the slope.
    [expected] = aligned_probabilities([evidence.detach().double()], SEARCHING)
    assert (evidence.grad - SEARCHING.slope * expected).abs().max() < 1e-5


def test_scores_are_shares_of_the_shorter_protein():
    raw, shorter = torch.tensor([-40.0, 20.0, 20.0, 20.0, 1e5]), torch.tensor([9, 9, 100, 300, 500])
    scores = share_of_evidence(raw, shorter)
    assert 0 <= scores[0] < 1e-6 and scores[1] == scores[2] > scores[3] and scores[4] == 1
    assert float(scores[2]) == pytest.approx(20 / (0.3 * 7.9 * 100), abs=1e-5)


# --- All alignments of two proteins, one after the other.


def stretches(n, m, *starts, size=30, value=8.0):
    """Evidence against all pairs, more or less, but for stretches that begin at those given."""
    evidence = draw(n, m, 0, spread=0.5)[0] - 6
    for i, j in starts:
        evidence[range(i, i + size), range(j, j + size)] += value + 6
    return evidence


def find(evidence, **options):
    [probability] = aligned_probabilities([evidence])
    known = Evidence(evidence, evidence)
    raw_score = float(alignment_scores([evidence]))
    return find_alignments(known, probability, raw_score, lambda raw, left: raw > 40, **options)


def first_pairs(found, size=30):
    """Where each alignment begins, for those that are as long as the stretches."""
    assert all(abs(len(one.pairs) - size) <= 2 for one in found)
    return sorted(tuple(one.pairs[0].tolist()) for one in found)


def near(found, wanted):
    return len(found) == len(wanted) and np.abs(np.array(found) - np.array(wanted)).max() <= 1


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        ((40, 100), [(4, 6), (4, 60)]),  # a tandem, against one copy
        ((100, 40), [(6, 4), (60, 4)]),
        ((120, 120), [(5, 70), (70, 10)]),  # swapped domains
        ((140, 140), [(5, 5), (90, 90)]),  # in order, far apart
    ],
)
def test_every_copy_is_found_in_any_order(shape, starts, kernels):
    evidence = stretches(*shape, *starts)
    with use_kernels(kernels):
        found = find(evidence, max_gap=10)
    assert near(first_pairs(found), sorted(starts))
    raw = [one.raw_score for one in found]
    assert raw == sorted(raw, reverse=True) and found[0].left == 1.0
    for one in found:
        assert (one.pairs.diff(dim=0) > 0).all() and len(one.weights) == len(one.pairs)
        assert one.weights.min() > 0.2 and one.weights.max() <= 1


@pytest.mark.parametrize("kernels", KERNELS)
def test_copies_that_weigh_the_same_are_told_apart(kernels):
    evidence = stretches(90, 90, (2, 50), (50, 2))
    evidence = (evidence + evidence.T) / 2  # as of a protein against itself
    with use_kernels(kernels):
        found = find(evidence, max_gap=10)
    assert near(first_pairs(found), [(2, 50), (50, 2)])


def test_copies_share_no_pair():
    found = find(stretches(40, 110, (4, 4), (4, 40), (4, 76)))
    pairs = [tuple(pair) for one in found for pair in one.pairs.tolist()]
    assert len(found) == 3 and len(pairs) == len(set(pairs)) >= 90


@pytest.mark.parametrize("first", [8.0, 9.0])
def test_the_best_alone_is_found_among_rivals(first):
    evidence = stretches(120, 120, (5, 70), (70, 10))
    evidence[range(5, 35), range(70, 100)] += first - 8.5
    evidence[range(70, 100), range(10, 40)] -= first - 8.5
    [found] = find(evidence, max_hits=1)
    assert near(first_pairs([found]), [(5, 70) if first > 8.5 else (70, 10)])


def test_a_gap_divides_only_where_it_is_long():
    evidence = stretches(120, 120, (5, 5), (45, 55))
    [whole] = find(evidence, max_gap=30)
    assert len(whole.pairs) > 55
    assert near(first_pairs(find(evidence, max_gap=18)), [(5, 5), (45, 55)])


@pytest.mark.parametrize("evidence", [torch.zeros(1, 1), torch.zeros(1, 50), draw(60, 70, 1)[0]])
def test_nothing_is_found_where_nothing_is_significant(evidence):
    [probability] = aligned_probabilities([evidence])
    assert not find_alignments(Evidence(*[evidence] * 2), probability, 0.0, lambda raw, left: False)


def test_what_lies_upon_a_better_one_is_none():
    """In a repeat of one residue each shift is as good: they are one alignment."""
    read, scored = torch.full((40, 40), 6.0), torch.full((40, 40), -2.0)
    read.diagonal().add_(1.0)
    scored[3:9, 3:9], scored[20:23, 10:13] = 1.9, 1.8
    [probability] = aligned_probabilities([read])
    [whole] = find_alignments(Evidence(read, scored), probability, 9.0, lambda raw, left: True)
    assert len(whole.pairs) == 40


def test_what_was_given_is_left_as_it_was():
    evidence = stretches(40, 100, (4, 6), (4, 60))
    before = evidence.clone()
    find(evidence)
    assert torch.equal(evidence, before)


def test_it_ends_where_all_is_taken():
    evidence = torch.full((3, 3), 30.0)
    [probability] = aligned_probabilities([evidence])
    shares = []

    def always(raw, left):
        shares.append(left)
        return True

    assert find_alignments(Evidence(*[evidence] * 2), probability, 90.0, always)
    assert shares[0] == 1.0 and all(0 < share < 1 for share in shares[1:])


# --- Models that read by local alignments.


def model_and_proteins(lengths, head="hinge"):
    torch.manual_seed(0)
    options = {"embedding_size": 12, "head": head, "head_size": 16, "reading": "posterior"}
    model = PlasmaModel(PlasmaConfig(**options)).eval()
    background = [torch.randn(60, 12) for _ in range(6)]
    base = torch.randn(60, 12)
    return model, background, [base[:n] + 0.3 * torch.randn(n, 12) for n in lengths]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("calibrated", [False, True])
@torch.no_grad()
def test_a_pair_knows_neither_its_batch_nor_its_padding(calibrated, kernels):
    lengths = [40, 1, 17, 60, 5]
    model, background, proteins = model_and_proteins(lengths, "lrl")
    if calibrated:
        model.measure_background(background)
    others = proteins[::-1]
    with use_kernels(kernels):
        together = model.align_pairs(proteins, others)
        scores = model.align_pairs(proteins, others, return_plans=False)
        padded = torch.nn.utils.rnn.pad_sequence
        masks = [
            padded([torch.ones(len(one)).bool() for one in side], batch_first=True)
            for side in (proteins, others)
        ]
        batch = model(
            padded(proteins, batch_first=True, padding_value=9.9),
            padded(others, batch_first=True, padding_value=-9.9),
            query_mask=masks[0],
            candidate_mask=masks[1],
            return_plan=True,
        )
        for p, (query, candidate) in enumerate(zip(proteins, others, strict=True)):
            alone = model.align_pairs([query], [candidate])
            for given in (together, scores, batch):
                torch.testing.assert_close(alone.scores[0], given.scores[p])
                torch.testing.assert_close(alone.raw_scores[0], given.raw_scores[p])
            assert (together.plans[p] - alone.plans[0]).abs().max() < 1e-5
            inner = batch.plan[p, : len(query), : len(candidate)]
            assert (inner - alone.plans[0]).abs().max() < 1e-5
            inner.zero_()
    assert not batch.plan.any()


@torch.no_grad()
def test_swapped_proteins_give_the_transposed_reading():
    model, background, (query, candidate) = model_and_proteins([30, 45])
    for _ in range(2):
        one, other = (
            model.align_pairs([a], [b]) for a, b in ((query, candidate), (candidate, query))
        )
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.plans[0], other.plans[0].T, rtol=1e-3, atol=1e-5)
        model.measure_background(background)  # and once more, calibrated


def test_a_head_learns_through_the_reading():
    model, background, proteins = model_and_proteins([20, 30], "residual")
    model.measure_background(background)
    query, candidate = (protein[None] for protein in proteins)
    labels = {
        f"{side}_site_labels": torch.ones(1, size)
        for side, size in (("query", 20), ("candidate", 30))
    }
    model(query, candidate, labels=torch.ones(1), **labels).loss.backward()
    gradients = [parameter.grad for parameter in model.alignment_head.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


# --- What chance gives.


def test_p_values_and_bits_are_those_of_the_distribution():
    null = Calibration((8.0, 1.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0, 0.0), tail=1.5)
    scores = torch.linspace(-50, 200, 60).tolist()
    values = [null.p_value(score, 120, 300) for score in scores]
    assert values == sorted(values, reverse=True) and values[0] == 1 and 0 < values[-1] < 1e-20
    assert null.p_value(20.0, 120, 300) == null.p_value(20.0, 300, 120)
    for score in (15.0, 60.0):
        expected = 120 * 300 / 2 ** null.bits(score, 120, 300)
        wanted = -np.log1p(-null.p_value(score, 120, 300))
        assert expected == pytest.approx(wanted, rel=1e-6)
    # A protein whose length says nothing reaches as much as its location and scale say.
    at = Calibration((8.0, 0, 0, 0, 0), (0.0, 0, 0, 0, 0))
    assert at.p_value(8.0, 50, 50) == pytest.approx(1 - np.exp(-1))
