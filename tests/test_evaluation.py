"""Evaluating aligners on pairs: metrics, seeds, identity bins, failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plasma_hf.data import ProteinPair, SiteProtein
from plasma_hf.evaluation import (
    AlignedPair,
    Evaluation,
    Length,
    SmithWaterman,
    evaluate_splits,
    pair_metrics,
    run_aligner,
)
from plasma_hf.evaluation.report import METRICS, mean_and_error
from plasma_hf.evaluation.run import BINS
from plasma_hf.metrics import label_match_score, roc_auc

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SITE = "WCHWCHWC"


def protein(uid: str, family: str, seed: int, site: str = SITE) -> SiteProtein:
    """Make a random protein with the site of its family in the middle."""
    rng = np.random.default_rng(seed)
    ends = ["".join(rng.choice(list(LETTERS), 8)) for _ in range(2)]
    labels = (0,) * 8 + (1,) * len(site) + (0,) * 8
    return SiteProtein(uid, family, ends[0] + site + ends[1], labels)


@pytest.fixture
def pairs() -> list[ProteinPair]:
    """Eight positive pairs that share a site, and eight negative ones that do not."""
    one = [protein(f"A{i}", "A", i) for i in range(8)]
    two = [protein(f"B{i}", "A", 20 + i) for i in range(8)]
    other = [protein(f"C{i}", "C", 40 + i, "GPDEGPDE") for i in range(8)]
    positives = [ProteinPair(a, b, 1) for a, b in zip(one, two, strict=True)]
    return positives + [ProteinPair(a, c, 0) for a, c in zip(one, other, strict=True)]


class Perfect:
    """Score by the label, and align residue i with residue i."""

    name = "perfect"
    backbone = "none"

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        return [
            AlignedPair(30.0 * pair.label - 7, np.eye(len(pair.query.sequence), dtype=np.float32))
            for pair in pairs
        ]


class FailsFor(Perfect):
    """Fail for one query."""

    name = "fails"

    def __init__(self, uid: str, how: Any) -> None:
        self.uid, self.how = uid, how

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        if any(pair.query.uid == self.uid for pair in pairs):
            if isinstance(self.how, Exception):
                raise self.how
            return [self.how for _ in pairs]
        return super().align(pairs)


def split(seed: int, pairs: Sequence[ProteinPair], hard: Sequence[ProteinPair] = ()) -> Any:
    return SimpleNamespace(seed=seed, protocol="strict", test=pairs, test_hard=hard)


def test_a_perfect_aligner(pairs: list[ProteinPair]) -> None:
    found = pair_metrics(run_aligner(Perfect(), pairs))
    assert {found.pop(name) for name in METRICS} == {1.0}
    assert found == {"positives": 8, "negatives": 8, "failed": 0, "unlabelled": 0}


def test_metrics_are_those_of_the_plain_functions(pairs: list[ProteinPair]) -> None:
    outcomes = run_aligner(SmithWaterman(), pairs)
    results = SmithWaterman().align(pairs)
    labels = [pair.label for pair in pairs]
    found = pair_metrics(outcomes)
    assert found["roc_auc"] == roc_auc(labels, [result.score for result in results])
    matches = [
        label_match_score(result.plan, pair.query.site_labels, pair.candidate.site_labels)
        for pair, result in zip(pairs, results, strict=True)
        if pair.label
    ]
    assert found["label_match"] == pytest.approx(np.mean(matches))


def test_without_plans_there_is_no_label_match(pairs: list[ProteinPair]) -> None:
    found = pair_metrics(run_aligner(Length(), pairs))
    assert np.isnan(found["label_match"]) and not np.isnan(found["roc_auc"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (RuntimeError("no memory"), "no memory"),
        (KeyError(), "KeyError"),
        (AlignedPair(float("nan")), "its score is nan"),
        (AlignedPair(1.0, np.eye(3)), r"its plan is of shape \(3, 3\), not \(24, 24\)"),
    ],
)
def test_a_pair_that_fails_is_counted_and_named(
    pairs: list[ProteinPair], how: Any, message: str
) -> None:
    runs = evaluate_splits(lambda _: [FailsFor("A3", how)], [split(1, pairs)], "site")
    evaluation = Evaluation(runs)
    [row] = evaluation.rows()
    assert (row.by_seed[1]["failed"], row.by_seed[1]["positives"]) == (2, 7)
    assert row.values("roc_auc") == [1.0]
    problems = evaluation.problems
    assert [(p["query"], p["candidate"]) for p in problems] == [("A3", "B3"), ("A3", "C3")]
    pytest.raises(ValueError, lambda: _raise(problems[0]["error"])).match(message)
    text = evaluation.to_markdown()
    assert "2 failed" in text and "A3 and B3" in text


def _raise(text: str) -> None:
    raise ValueError(text)


def test_too_few_results_are_no_silent_skip(pairs: list[ProteinPair]) -> None:
    class Short(Perfect):
        def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
            return super().align(pairs)[1:]

    outcomes = run_aligner(Short(), pairs[:3])
    assert [pair.error for pair in outcomes.pairs] == ["perfect gave 0 results for 1 pairs"] * 3


def test_a_positive_without_a_labelled_residue_is_named(pairs: list[ProteinPair]) -> None:
    bare = SiteProtein("X", "A", pairs[0].query.sequence, (0,) * 24)
    evaluated = [ProteinPair(bare, pairs[0].candidate, 1), *pairs[1:]]
    outcomes = run_aligner(Perfect(), evaluated)
    found = pair_metrics(outcomes)
    assert (found["positives"], found["unlabelled"], found["failed"]) == (8, 1, 0)
    assert found["label_match"] == 1.0
    assert "no labelled residue" in outcomes.pairs[0].error


def test_identity_bins_have_their_positives_and_all_negatives(pairs: list[ProteinPair]) -> None:
    same = ProteinPair(pairs[0].query, pairs[0].query, 1)
    outcomes = run_aligner(Perfect(), [*pairs, same])
    by_bin = [pair_metrics(outcomes, bounds) for bounds in BINS.values()]
    assert by_bin[-1]["positives"] >= 1
    assert sum(found["positives"] for found in by_bin) == 9
    assert {found["negatives"] for found in by_bin} == {8}


def test_mean_and_standard_error_over_seeds(pairs: list[ProteinPair]) -> None:
    splits = [split(seed, pairs[seed:-seed], pairs) for seed in (1, 2, 3)]
    evaluation = Evaluation(evaluate_splits(lambda _: [SmithWaterman()], splits, "site"))
    inter, extra = evaluation.rows()
    assert (inter.split, extra.split, list(inter.by_seed)) == ("test", "test_hard", [1, 2, 3])
    values = [found["label_match"] for found in inter.by_seed.values()]
    mean, error = mean_and_error(inter.values("label_match"))
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert mean_and_error(extra.values("label_match"))[1] == 0.0
    assert np.isnan(mean_and_error([0.5])[1])


def test_models_are_asked_for_by_seed(pairs: list[ProteinPair]) -> None:
    asked: list[int] = []

    def aligners(seed: int) -> list[Any]:
        asked.append(seed)
        return [Perfect()]

    evaluate_splits(aligners, [split(7, pairs), split(8, pairs)], "site")
    assert asked == [7, 8]


def test_the_same_pairs_give_the_same_tables(pairs: list[ProteinPair]) -> None:
    texts = set()
    for _ in range(2):
        runs = evaluate_splits(lambda _: [SmithWaterman(), Length()], [split(1, pairs)], "site")
        evaluation = Evaluation(runs)
        texts.add(json.dumps(evaluation.to_dict(), allow_nan=False) + evaluation.to_markdown())
    assert len(texts) == 1


def test_the_table_in_markdown(pairs: list[ProteinPair]) -> None:
    splits = [split(1, pairs, pairs[4:12])]
    text = Evaluation(
        evaluate_splits(lambda _: [Perfect(), Length()], splits, "site")
    ).to_markdown()
    head = "| task | backbone | aligner | ROC-AUC | F1-max | PR-AUC | label match | symmetric |"
    assert text.count(head) == 2
    assert "| site | none | perfect | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in text
    assert "| site | - | length | .500 |" in text
    assert "site, seeds 1: 8 positive and 8 negative pairs scored, 0 failed." in text
    assert "## Extrapolation" in text
