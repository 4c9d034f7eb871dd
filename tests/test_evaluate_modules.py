"""The metric folders as `evaluate.load` finds them, without network."""

from __future__ import annotations

import doctest
import runpy
import shutil
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plasma_hf.hub.card import template_folder
from plasma_hf.metrics import average_precision, f1_max, label_match_score

evaluate = pytest.importorskip("evaluate")

MODULES = template_folder() / "metrics"
SCORES, LABELS = [0.9, 5.0, -2.0, 30.0, 0.2], [1, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Load a module by its folder; what `evaluate` writes goes to a temporary folder."""
    root = tmp_path_factory.mktemp("evaluate")
    init = partial(evaluate.loading.init_dynamic_modules, hf_modules_cache=str(root / "modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.loading.init_dynamic_modules", init)
        yield lambda folder: evaluate.load(str(folder), cache_dir=str(root / "cache"))


def test_average_precision(load: Any) -> None:
    metric = load(MODULES / "average_precision")
    found = metric.compute(predictions=SCORES, references=LABELS)
    assert found == {"average_precision": average_precision(LABELS, SCORES), "pairs": 5}


def test_f1_max_in_batches_and_by_mode(load: Any) -> None:
    metric = load(MODULES / "f1_max")
    for part in (slice(0, 2), slice(2, 5)):
        metric.add_batch(predictions=SCORES[part], references=LABELS[part])
    found = metric.compute(mode="grid1000")
    assert found == {"f1_max": f1_max(LABELS, SCORES, mode="grid1000"), "pairs": 5}


def test_label_match_scores_of_ragged_pairs(load: Any) -> None:
    rng = np.random.default_rng(0)
    plans = [rng.random((3, 2)) / 3, rng.random((2, 4)) / 2]
    sites = [([1, 0, 1], [1, 0]), ([0, 1], [0, 1, 1, 0])]
    metric = load(MODULES / "label_match_score")
    found = metric.compute(
        plans=[plan.tolist() for plan in plans],
        query_site_labels=[query for query, _ in sites],
        candidate_site_labels=[candidate for _, candidate in sites],
    )
    want = np.mean([label_match_score(p, *s) for p, s in zip(plans, sites, strict=True)])
    assert found["label_match_score"] == pytest.approx(want)
    assert found["pairs"] == 2
    assert set(found) > {"symmetric_label_match_score", "label_mass_precision"}


def test_a_pair_without_a_site_is_no_silent_skip(load: Any) -> None:
    metric = load(MODULES / "label_match_score")
    with pytest.raises(ValueError, match="1 of 1 pairs have no value"):
        metric.compute(plans=[[[1.0]]], query_site_labels=[[1]], candidate_site_labels=[[0]])


def test_a_copied_folder_is_complete(load: Any, tmp_path: Path) -> None:
    copied = shutil.copytree(MODULES / "average_precision", tmp_path / "average_precision")
    assert load(copied).compute(predictions=[0.1, 0.9], references=[0, 1])["pairs"] == 2


@pytest.mark.parametrize("name", ["average_precision", "f1_max", "label_match_score"])
def test_folders_have_a_card_and_say_what_they_need(name: str) -> None:
    card = (MODULES / name / "README.md").read_text()
    assert card.startswith("---\n") and f"title: {name}\n" in card
    assert (MODULES / name / "requirements.txt").read_text().split() == ["plasma-hf[train]"]


@pytest.mark.parametrize("name", ["average_precision", "f1_max", "label_match_score"])
def test_the_example_of_a_module_runs(name: str) -> None:
    module = types.ModuleType(name)
    vars(module).update(runpy.run_path(str(MODULES / name / f"{name}.py"), run_name=name))
    done = doctest.testmod(module)
    assert done.attempted and not done.failed
