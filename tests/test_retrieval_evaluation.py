"""Metrics, intervals and floors of a retrieval."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasma_hf.evaluation.retrieval import (
    METRICS,
    RetrievalReport,
    chance_floors,
    estimate,
    length_similarity,
    paired_difference,
    retrieval_values,
    sequence_oracle,
)
from tests.helpers.structure_files import make_pairs

FAMILIES = ["P", "P", "P", "Q", "Q", None]


def test_a_perfect_retrieval_and_its_reverse() -> None:
    values = retrieval_values(np.eye(6), FAMILIES)
    assert set(values) == set(METRICS)
    assert all(value.mean() == 1 for value in values.values())
    assert len(values["within_family_recall_at_1"]) == 5  # the sixth is alone
    backwards = retrieval_values(np.roll(np.eye(6), 1, axis=1), FAMILIES)
    assert backwards["recall_at_1"].mean() == backwards["reverse_recall_at_1"].mean() == 0
    assert backwards["family_recall_at_1"].tolist() == [1, 1, 0, 1, 0, 0]


def test_one_direction_is_the_other_of_the_transposed() -> None:
    similarity = np.random.default_rng(0).random((6, 6))
    there, back = (retrieval_values(matrix, FAMILIES) for matrix in (similarity, similarity.T))
    for name in ("recall_at_1", "mrr", "within_family_recall_at_1"):
        assert np.array_equal(there[f"reverse_{name}"], back[name])


@pytest.mark.parametrize("families", [FAMILIES, [None] * 8, ["A"] * 4 + ["B"] * 3])
def test_floors_are_what_random_rankings_reach(families) -> None:
    rng = np.random.default_rng(1)
    n = len(families)
    drawn = [retrieval_values(rng.random((n, n)), families) for _ in range(800)]
    for name, expected in chance_floors(families)["chance"].items():
        assert np.mean([v[name].mean() for v in drawn]) == pytest.approx(expected, abs=0.04), name
    same = np.array([[a == b and a is not None for a in families] for b in families])
    same |= np.eye(n, dtype=bool)
    known = [retrieval_values(same + rng.random((n, n)) / 2, families) for _ in range(800)]
    for name, expected in chance_floors(families)["random within family"].items():
        assert np.mean([v[name].mean() for v in known]) == pytest.approx(expected, abs=0.04), name


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_an_interval_holds_its_mean_and_stays_a_share(hits) -> None:
    found = estimate(np.array(hits))
    assert 0 <= found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high <= 1
    assert found.high > found.low  # also where all or none hit


def test_a_paired_difference_tells_models_apart_where_single_intervals_do_not() -> None:
    ours = np.array([1.0] * 60 + [0.0] * 40)
    theirs = np.array([1.0] * 50 + [0.0] * 50)
    assert estimate(ours).low < estimate(theirs).high
    assert paired_difference(ours, theirs).low > 0
    assert paired_difference(ours, ours).value == 0
    with pytest.raises(ValueError, match="100 queries and 3"):
        paired_difference(ours, np.ones(3))


def test_what_needs_no_model() -> None:
    pairs = make_pairs(6)
    assert retrieval_values(sequence_oracle(pairs), [None] * 6)["recall_at_1"].mean() == 1
    assert (length_similarity(pairs).diagonal() == 0).all()


def test_a_report_over_two_seeds() -> None:
    rng, report = np.random.default_rng(0), RetrievalReport("models")
    for seed in (0, 1):
        report.add("good", seed, np.eye(6), FAMILIES)
        report.add("random", seed, rng.random((6, 6)), FAMILIES)
    written = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    figure = written["rows"][0]["figures"]["recall_at_1"]
    assert (figure["mean"], figure["standard_error"]) == (1.0, 0.0)
    assert set(figure["by_seed"]) == {"0", "1"} and figure["by_seed"]["0"]["queries"] == 6
    assert written["differences"]["good - random"]["recall_at_1"]["queries"] == 12
    assert written["floors"]["chance"]["recall_at_1"] == pytest.approx(1 / 6)
    table = report.to_markdown()
    assert "| good | 1.000 ± .000 |" in table and "| random within family | .500 |" in table
