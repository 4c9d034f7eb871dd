"""Metrics against golden values of the reference implementations, and against small cases."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasma_hf.metrics import (
    average_precision,
    compare_with_reference,
    f1_max,
    label_mass_precision,
    label_match_score,
    mean_over_pairs,
    mean_reciprocal_rank,
    recall_at_k,
    roc_auc,
    symmetric_label_match_score,
)
from plasma_hf.metrics.retrieval import best_ranks, ranks_within_family
from tests.conftest import GOLDEN as SUBSET

GOLDEN = SUBSET / "metrics"
TIES = ("midrank", "optimistic", "pessimistic")


def golden_json(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def golden_tensors(name: str) -> dict[str, np.ndarray]:
    return pytest.importorskip("safetensors.numpy").load_file(GOLDEN / name)


@pytest.mark.parity
def test_binary_metrics_equal_golden_values() -> None:
    vectors = golden_tensors("binary_vectors.safetensors")
    for case, want in golden_json("binary_expected.json")["cases"].items():
        labels, scores = vectors[f"{case}.labels"], vectors[f"{case}.scores"]
        got = {
            "roc_auc": roc_auc(labels, scores),
            "average_precision": average_precision(labels, scores),
            "f1_max_exact": f1_max(labels, scores),
            "f1_max_grid1000_upstream": f1_max(labels, scores, mode="grid1000"),
        }
        assert got == pytest.approx({key: want[key] for key in got}, abs=1e-12), case
        single = f1_max(labels, scores.astype(np.float32), mode="grid1000")
        want_single = want["f1_max_grid1000_upstream_float32_scores"]
        assert single == pytest.approx(want_single, abs=1e-6), case
        called = scores >= want["f1_max_exact_threshold"]
        f1 = 2 * (called * labels).sum() / (called.sum() + labels.sum())
        assert f1 == pytest.approx(want["f1_max_exact"], abs=1e-12), case
        assert (len(labels), labels.sum()) == (want["n"], want["n_pos"]), case


@pytest.mark.parity
def test_label_match_equals_golden_values() -> None:
    tensors = golden_tensors("label_match.safetensors")
    scores = []
    for case, want in golden_json("label_match_expected.json").items():
        if f"{case}.plan" not in tensors:
            continue
        parts = (tensors[f"{case}.{part}"] for part in ("plan", "labels_q", "labels_c"))
        scores.append(label_match_score(*parts))
        # The golden values were computed in float32.
        want_score = want["label_match_score"]
        want_score = np.nan if want_score is None else want_score
        assert scores[-1] == pytest.approx(want_score, abs=1e-6, nan_ok=True), case
        assert 1 - scores[-1] == pytest.approx(want["label_match_loss"], abs=1e-6, nan_ok=True)
        assert want["label_match_loss_if_negative_pair"] == 0  # negatives are in no mean
    assert len(scores) == sum(name.endswith(".plan") for name in tensors)
    golden = golden_json("label_match_expected.json")
    want = golden["mean_label_match_score_if_all_positive"]
    assert mean_over_pairs(scores).mean == pytest.approx(want, abs=1e-6)
    positive = [score for score, label in zip(scores, [1, 0, 1, 1], strict=True) if label]
    want = golden["mean_label_match_score_labels_1_0_1_1"]
    assert mean_over_pairs(positive).mean == pytest.approx(want, abs=1e-6)
    assert golden["empty_candidate_labels_is_nan_upstream"]
    plan, query, candidate = (tensors[f"p0.{part}"] for part in ("plan", "labels_q", "labels_c"))
    assert np.isnan(label_match_score(plan, query, 0 * candidate))


@pytest.mark.parity
@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("matrix", ["ties", "no_ties"])
@pytest.mark.parametrize(
    "level", ["pair_level", "family_level", "structure_to_sequence_pair_level"]
)
def test_retrieval_equals_golden_values(level: str, matrix: str, ties: str) -> None:
    golden = golden_json("retrieval.json")
    key = {"ties": "similarity_with_ties", "no_ties": "similarity_no_ties"}[matrix]
    similarity = np.array(golden[key])
    similarity = similarity.T if level.startswith("structure") else similarity
    family_ids = golden["family"] if level == "family_level" else None
    want = golden[level][matrix][ties]
    for k in (1, 5):
        got = recall_at_k(similarity, k, family_ids, ties=ties)
        assert got == pytest.approx(want[f"recall@{k}"], abs=1e-12)
    got = mean_reciprocal_rank(similarity, family_ids, ties=ties)
    assert got == pytest.approx(want["mrr"], abs=1e-12)


def test_binary_metrics_on_a_case_done_by_hand() -> None:
    labels, scores = [1, 0, 1, 0, 0], [0.9, 0.8, 0.8, 0.2, 0.1]
    assert roc_auc(labels, scores) == pytest.approx(5.5 / 6)
    assert average_precision(labels, scores) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert f1_max(labels, scores) == pytest.approx(0.8)
    assert f1_max(labels, scores, mode="grid1000") == pytest.approx(0.8)


def test_constant_scores_rank_nothing() -> None:
    labels = [1, 0, 0, 1]
    assert roc_auc(labels, [3.0] * 4) == 0.5
    assert f1_max(labels, [3.0] * 4) == pytest.approx(2 / 3)
    assert f1_max(labels, [3.0] * 4, mode="grid1000") == 0.0


@pytest.mark.parametrize("metric", [roc_auc, average_precision, f1_max])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1, np.nan], "1 of 2 scores are NaN or infinite"),
        ([0, 1], [0.1, np.inf], "1 of 2 scores are NaN or infinite"),
        ([1, 1], [0.1, 0.2], r"labels hold the values \[1.0\]"),
        ([0, 2], [0.1, 0.2], r"labels hold the values \[0.0, 2.0\]"),
        ([0, 1, 1], [0.1, 0.2], "one label and one score for each pair"),
        ([], [], "labels hold the values"),
        ([[0, 1]], [[0.1, 0.2]], r"both of shape \(pairs,\)"),
    ],
)
def test_binary_metrics_refuse_bad_input(
    metric: Any, labels: Any, scores: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(labels, scores)


def test_f1_max_names_the_modes_it_knows() -> None:
    with pytest.raises(ValueError, match="'exact' or 'grid1000'"):
        f1_max([0, 1], [0.1, 0.2], mode="grid")


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "plasma-hf\[train\]"'):
        roc_auc([0, 1], [0.1, 0.2])


labelled_scores = st.lists(
    st.tuples(st.booleans(), st.integers(-20, 20)), min_size=2, max_size=40
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@pytest.mark.slow
@given(labelled_scores)
def test_rank_metrics_ignore_monotone_transforms(rows: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    for transform in (lambda x: 3 * x - 7, np.cbrt, lambda x: np.exp(x / 10)):
        for metric in (roc_auc, average_precision, f1_max):
            assert metric(labels, transform(scores)) == pytest.approx(metric(labels, scores))


@given(labelled_scores)
def test_roc_auc_of_negated_scores_is_the_complement(rows: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assert roc_auc(labels, -scores) == pytest.approx(1 - roc_auc(labels, scores))


@given(labelled_scores)
def test_exact_f1_max_is_the_best_over_all_thresholds(rows: list[tuple[bool, int]]) -> None:
    labels, scores = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    each = []
    for threshold in scores:
        called = scores >= threshold
        each.append(2 * (called * labels).sum() / (called.sum() + labels.sum()))
    assert f1_max(labels, scores) == pytest.approx(max(each))
    assert f1_max(labels, scores, mode="grid1000") <= max(each) + 1e-12


def test_label_match_on_a_case_done_by_hand() -> None:
    plan = np.array([[0.5, 0.2, 0.0], [0.5, 0.3, 0.9]])  # (query_residues, candidate_residues)
    # Column 0 collects 1.0, column 2 nothing from the labelled residue 0.
    assert label_match_score(plan, [1, 1], [1, 0, 0]) == pytest.approx(1.0)
    assert label_match_score(plan, [1, 0], [1, 0, 1]) == pytest.approx(0.25)
    assert label_match_score(plan, [0, 0], [1, 1, 1]) == 0.0


def test_label_match_gives_no_credit_above_the_label() -> None:
    assert label_match_score([[2.0, 0.0]], [1], [1, 1]) == 0.5


def test_label_match_without_candidate_labels_is_nan() -> None:
    assert np.isnan(label_match_score([[1.0]], [1], [0]))


def test_label_match_accepts_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    plan = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.tensor([1, 0, 1])
    assert label_match_score(plan, labels, labels) == 1.0


@pytest.mark.parametrize(
    ("plan", "query", "candidate", "message"),
    [
        (np.eye(3), [1, 0], [1, 0, 0], "query_residues, candidate_residues"),
        (np.eye(2)[None], [1, 0], [1, 0], "for one pair"),
        (np.full((2, 2), np.nan), [1, 0], [1, 0], "the plan holds NaN"),
        (np.eye(2), [1, -1], [1, 0], "query_site_labels leave"),
        (np.eye(2), [1, 0], [np.nan, 0], "candidate_site_labels leave"),
    ],
)
def test_label_match_refuses_bad_input(
    plan: Any, query: list[float], candidate: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label_match_score(plan, query, candidate)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_label_match_lies_in_the_unit_interval(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    plan, query = rng.random((n, m)), rng.integers(0, 2, n)
    candidate = rng.integers(0, 2, m)
    candidate[0] = 1
    assert 0.0 <= label_match_score(plan, query, candidate) <= 1.0


def test_symmetric_label_match_is_the_mean_of_both_directions() -> None:
    rng = np.random.default_rng(0)
    plan, query, candidate = rng.random((4, 3)) / 4, [1, 0, 1, 1], [0, 1, 1]
    forward = label_match_score(plan, query, candidate)
    backward = label_match_score(plan.T, candidate, query)
    assert forward != backward
    want = (forward + backward) / 2
    assert symmetric_label_match_score(plan, query, candidate) == pytest.approx(want)
    assert symmetric_label_match_score(plan.T, candidate, query) == pytest.approx(want)
    assert np.isnan(symmetric_label_match_score(plan, [0] * 4, candidate))


def test_label_mass_precision_on_cases_done_by_hand() -> None:
    plan = [[0.5, 0.25, 0.25], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert label_mass_precision(plan, [1, 0, 0], [1, 1, 0]) == pytest.approx(0.75)
    assert label_mass_precision(plan, [1, 0, 1], [1, 0, 0]) == pytest.approx(0.25)
    assert label_mass_precision(plan, [0, 1, 0], [1, 1, 1]) == 0.0  # sends nothing
    assert np.isnan(label_mass_precision(plan, [0, 0, 0], [1, 1, 1]))
    assert np.isnan(label_mass_precision(plan, [1, 0, 0], [0, 0, 0]))


def test_reference_agreement_on_a_case_done_by_hand() -> None:
    plan = np.array([[0.9, 0.6, 0.0], [0.0, 0.6, 0.7], [0.0, 0.0, 0.0], [0.0, 0.0, 0.8]])
    found = compare_with_reference(plan, [[0, 0], [1, 1], [2, 2]])
    assert found.n_true == 3
    assert found.best_partner == pytest.approx(1 / 3)  # a row of zeros finds nothing
    # Column 0 finds its row, column 1 shares the highest weight between two rows.
    assert found.best_partner_symmetric == pytest.approx((1 / 3 + 1.5 / 3) / 2)
    assert found.mass == pytest.approx((0.9 + 0.6 + 0.0) / 3)
    assert (found.n_called, found.n_correct) == (5, 2)
    assert found.precision == pytest.approx(0.4)


def test_what_the_reference_says_nothing_of_is_not_judged() -> None:
    found = compare_with_reference(np.eye(4), [[1, 1]])
    assert (found.n_called, found.n_correct, found.precision) == (1, 1, 1.0)
    assert np.isnan(compare_with_reference(np.zeros((2, 2)), [[0, 0]]).precision)
    assert compare_with_reference(np.eye(2), [[0, 0]], threshold=1.0).n_called == 0


@pytest.mark.parametrize(
    ("plan", "pairs", "message"),
    [
        (np.eye(2)[0], [[0, 0]], "give finite"),
        ([[np.nan]], [[0, 0]], "1 NaN"),
        (np.eye(2), [], "give at least one"),
        (np.eye(2), [[0, 2]], "outside of the plan"),
        (np.eye(2), [[-1, 0]], "outside of the plan"),
    ],
)
def test_reference_agreement_refuses_bad_input(plan: Any, pairs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_with_reference(plan, pairs)


def test_a_mean_leaves_no_pair_out_unsaid() -> None:
    values, names = [0.2, np.nan, 0.4, np.nan], ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="2 of 4 pairs have no value: b, d; score them"):
        mean_over_pairs(values, names)
    found = mean_over_pairs(values, names, allow_skipped=True)
    assert (found.mean, found.scored, found.skipped) == (pytest.approx(0.3), 2, ("b", "d"))
    assert np.isnan(mean_over_pairs([np.nan], allow_skipped=True).mean)
    with pytest.raises(ValueError, match="pair 0, pair 1, pair 2, pair 3, pair 4 and 1 more"):
        mean_over_pairs([np.nan] * 6)


def test_retrieval_ties_by_rule() -> None:
    similarity = np.full((3, 3), 0.5)
    ranks = {ties: 1 / mean_reciprocal_rank(similarity, ties=ties) for ties in TIES}
    assert ranks == pytest.approx({"midrank": 2.0, "optimistic": 1.0, "pessimistic": 3.0})
    assert recall_at_k(similarity, 1) == 0.0
    assert recall_at_k(similarity, 2) == 1.0


def test_family_members_do_not_count_against_each_other() -> None:
    similarity = [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.0, 0.0, 1.0]]
    assert recall_at_k(similarity, 1) == pytest.approx(1 / 3)
    assert mean_reciprocal_rank(similarity, ["a", "a", "b"]) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert mean_reciprocal_rank(similarity, ["a", "a", "a"]) == 1.0


def test_ranks_within_the_family_leave_other_families_out() -> None:
    similarity = [[0.1, 0.2, 0.9], [0.1, 0.2, 0.9], [0.0, 0.0, 1.0]]
    assert ranks_within_family(similarity, ["a", "a", "b"]).tolist() == [2, 1, 1]
    assert ranks_within_family(similarity, ["a"] * 3).tolist() == best_ranks(similarity).tolist()
    assert ranks_within_family(np.zeros((2, 2)), ["a", "a"]).tolist() == [1.5, 1.5]


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_retrieval_is_bounded_by_its_tie_rules(seed: int, size: int) -> None:
    similarity = np.random.default_rng(seed).integers(0, 3, (size, size))
    low, middle, high = (
        mean_reciprocal_rank(similarity, ties=ties)
        for ties in ("pessimistic", "midrank", "optimistic")
    )
    assert low <= middle <= high
    assert recall_at_k(similarity, size) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": np.ones((2, 3)), "k": 1}, "square matrix"),
        ({"similarity": np.ones((0, 0)), "k": 1}, "square matrix"),
        ({"similarity": [[np.nan]], "k": 1}, "similarity holds NaN"),
        ({"similarity": np.eye(2), "k": 0}, "k is 0"),
        ({"similarity": np.eye(2), "k": 1, "family_ids": [1]}, r"\(2,\)"),
        ({"similarity": np.eye(2), "k": 1, "ties": "first"}, "'midrank', 'optimistic'"),
    ],
)
def test_retrieval_refuses_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(**arguments)
