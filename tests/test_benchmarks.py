"""The speed benchmarks run, and what they compare computes the same; no time is asserted."""

import pytest
import torch

from tests.benchmarks import speed
from tests.benchmarks.published_form import PublishedForm
from tests.benchmarks.speed_inputs import (
    RandomEmbedder,
    make_model,
    make_pairs,
    make_training_batch,
    structures_like,
)

LENGTHS = [(40, 50), (60, 30), (25, 25)]


@pytest.fixture
def model():
    model = make_model(16, 32)
    model.config.kernel_scale = 3.0  # costs of few channels are low
    return model


def test_published_form_aligns_as_the_model_does(model):
    queries, candidates = make_pairs(LENGTHS, 16)
    aligned = model.align_pairs(queries, candidates)
    published = PublishedForm(model)
    for i, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
        with torch.no_grad():
            score, plan = published(query, candidate)
        assert score > 0
        torch.testing.assert_close(aligned.scores[i], score, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(aligned.plans[i], plan, atol=1e-4, rtol=1e-4)


def test_published_form_loses_what_the_model_does(model):
    padded, single = make_training_batch(LENGTHS, 16)
    published = PublishedForm(model)
    # The model takes means, over pairs and over positives; alone, a pair has a loss of its own.
    for i, pair in enumerate(single):
        theirs = published.loss(*pair)
        ours = model(**{name: tensor[i : i + 1] for name, tensor in padded.items()}).loss
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    model(**padded).loss.backward()
    assert model.alignment_head.output.weight.grad.abs().sum() > 0


def test_some_proteins_of_a_store_have_a_stretch_of_the_query():
    embedder = RandomEmbedder(32, query_residues=30)
    sequences = ["MKVLA" * 4 + 30 * "ACDEFGHIKLMNPQRSTVWY"[i % 20] + i * "W" for i in range(200)]
    rows = embedder.embed(sequences)
    related = [torch.cdist(embedder.query, row).min() < 1 for row in rows]
    assert 0 < sum(related) < 100


def test_structures_are_of_about_the_lengths():
    try:
        ((first, second),) = structures_like([(200, 210)])
    except FileNotFoundError:
        pytest.skip("the structures (../shared/data/structures) are not beside this clone")
    assert abs(len(first[1]) - 200) < 20 and abs(len(second[1]) - 210) < 20
    assert first[0].shape == (len(first[1]), 3)


@pytest.mark.slow
def test_quick_run_measures_everything(tmp_path, capsys):
    speed.main(["--quick", "--out", str(tmp_path)])
    text = (tmp_path / "speed.md").read_text()
    rows = speed.OURS, speed.PUBLISHED, "the default", "12 |"
    assert all(f"\n| {row}" in text for row in rows)
    assert text.count("### ") == 4 and text.count(f"| {speed.SMITH_WATERMAN} |") == 2
    if speed.TM_ALIGN not in text:
        pytest.skip(f"all but {capsys.readouterr().out.splitlines()[0]}")
