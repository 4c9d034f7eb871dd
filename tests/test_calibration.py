"""What unrelated proteins reach: the fit, p-values of pairs that it has not seen, refusals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, pipeline

import plasma_hf
from plasma_hf import Calibration, PlasmaConfig, PlasmaModel, PlasmaProcessor, SubstitutionConfig
from plasma_hf.backbones import new_aligner
from plasma_hf.models.protein import read_records
from plasma_hf.search.calibration import UNRELATED, fit, fit_long, unrelated_p_values
from tests.helpers.tiny_backbones import esm2

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
EMBED = plasma_hf.load_backbone("substitution").embed


def random_families(count: int, seed: int) -> list[tuple[str, str]]:
    """Make proteins of 40 to 200 residues, none of which has a relative."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(40, 200, size=count)
    return [(f"f{n}", "".join(rng.choice(LETTERS, size))) for n, size in enumerate(sizes)]


def uncalibrated(reading: str = "posterior") -> PlasmaModel:
    settings: dict[str, Any] = {"head": "hinge", "reading": reading, "threshold": 0.2}
    return PlasmaModel(PlasmaConfig(plm_config=SubstitutionConfig(), **settings)).eval()


@pytest.fixture(scope="module")
def calibrated() -> PlasmaModel:
    model = uncalibrated()
    plasma_hf.calibrate(model, random_families(60, seed=1), EMBED, pairs=1500)
    return model


def test_names_of_the_package() -> None:
    assert plasma_hf.calibrate.__module__ == "plasma_hf.search.calibration"
    assert Calibration.__module__ == "plasma_hf.models.local_alignment"
    assert {"calibrate", "Calibration"} <= set(plasma_hf.__all__)


def test_fit_recovers_a_gumbel_that_depends_on_the_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, 600, size=(8000, 2))
    true = Calibration((20.0, 3.0, 1.0, 0.0, 0.0), (1.0, 0.1, 0.0, 0.0, 0.0))
    features = np.array([Calibration.features(*pair)[:5] for pair in lengths.tolist()])
    location, scale = features @ true.location, np.exp(features @ true.log_scale)
    found = fit(lengths, location + scale * rng.gumbel(size=len(lengths)))
    assert features @ found.location == pytest.approx(location, abs=0.6)
    assert np.exp(features @ found.log_scale) == pytest.approx(scale, rel=0.15)
    assert found.tail == pytest.approx(1.0, abs=0.12)
    for p_value in (0.5, 0.05, 1e-3):
        score = location[0] - scale[0] * np.log(-np.log1p(-p_value))
        assert found.p_value(score, *lengths[0].tolist()) == pytest.approx(p_value, rel=0.35)


def test_long_proteins_are_followed_beyond_logarithms_and_others_stay() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(300, 3000, size=(2000, 2))
    usual = Calibration((20.0, 3.0, 1.0, 0.0, 0.0), (1.0, 0.1, 0.0, 0.0, 0.0))
    true = Calibration((*usual.location, 60.0, 20.0), usual.log_scale)
    features = np.array([Calibration.features(*pair) for pair in lengths.tolist()])
    scale = np.exp(features[:, :5] @ true.log_scale)
    found = fit_long(usual, lengths, features @ true.location + scale * rng.gumbel(size=2000))
    assert found.location[5:] == pytest.approx((60.0, 20.0), rel=0.05)
    assert found.p_value(30.0, 200, 5000) == usual.p_value(30.0, 200, 5000)
    assert found.p_value(100.0, 1500, 1500) > 0.1 > usual.p_value(100.0, 1500, 1500)


@pytest.mark.parametrize("folder", ["plasma_pf_substitution", "plasma_pf_near"])
def test_long_unrelated_proteins_are_not_significant(folder: str) -> None:
    """Letters as in domains, in any order: 1,500 of them reach no more than chance gives."""
    rng = random.Random(0)
    letters = "".join(one.sequence or "" for one in read_records(UNRELATED))
    proteins = ["".join(rng.choices(letters, k=1500)) for _ in range(6)]
    backbone = {} if folder.endswith("substitution") else {"backbone": "near"}
    align = pipeline("protein-alignment", **backbone)
    results = align([(one, other) for one in proteins[:3] for other in proteins[3:]])
    p_values = [result["p_value"] for result in results]
    assert min(p_values) > 0.01 and 0.15 < np.median(p_values) < 0.9


def test_p_values_of_unrelated_pairs_are_uniform(calibrated: PlasmaModel) -> None:
    proteins = random_families(40, seed=2)
    every = {family for family, _ in proteins}
    p_values = unrelated_p_values(calibrated, proteins, EMBED, every, pairs=700)
    assert 400 < len(p_values) <= 700
    for share in (0.05, 0.2, 0.5, 0.8):
        assert (p_values <= share).mean() == pytest.approx(share, abs=0.3 * share + 0.02)


def test_relatives_are_far_from_chance(calibrated: PlasmaModel) -> None:
    align = pipeline("protein-alignment", model=calibrated, processor=PlasmaProcessor())
    (_, first), (_, second) = random_families(2, seed=3)
    copy = first[:20] + "A" + first[21:]
    same = align((first, copy), database_size=1000)
    assert same["evalue"] == pytest.approx(1000 * same["p_value"])
    assert same["evalue"] < 1e-6 and same["segments"][0]["p_value"] == same["p_value"]
    other = align((first, second), database_size=1000)
    assert other["p_value"] > 1e-4 and other["segments"] == []


def test_a_heavy_tail_is_followed_as_far_as_there_is_something_to_see() -> None:
    rng = np.random.default_rng(0)

    def draw(pairs: int) -> np.ndarray:
        """As unrelated proteins are by a language model: a few classes are far above the rest."""
        usual, far = rng.gumbel(8.0, 1.0, pairs), 10.0 + 3.0 * rng.weibull(0.6, pairs)
        return np.where(rng.random(pairs) < 0.1, far, np.minimum(usual, 10.0))

    found = fit(np.full((20_000, 2), 150), draw(20_000))
    assert found.shape < 0.9
    other = draw(200_000)
    for score in (12.0, 20.0, 40.0):
        seen = float((other >= score).mean())
        assert 0.4 < found.p_value(score, 150, 150) / seen < 2.5


def test_saved_and_loaded_it_is_the_same(calibrated: PlasmaModel, tmp_path: Path) -> None:
    calibrated.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.calibration == calibrated.calibration
    embeddings = EMBED([sequence for _, sequence in random_families(2, seed=4)])
    sides = [(model, *model.project_each(embeddings)) for model in (calibrated, loaded)]
    scores = [model.raw_scores(one, [other]) for model, one, other in sides]
    assert torch.equal(*scores)


def test_the_same_seed_gives_the_same() -> None:
    proteins = random_families(12, seed=5)
    found = [plasma_hf.calibrate(uncalibrated(), proteins, EMBED, 200, s) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_without_calibration_nothing_is_known_of_chance() -> None:
    model = uncalibrated()
    align = pipeline("protein-alignment", model=model, processor=PlasmaProcessor())
    (_, first), _ = random_families(2, seed=6)
    result = align((first, first[5:]), database_size=10)
    assert model.calibration is None
    for about in (result, *result["segments"]):
        assert (about["bits"], about["p_value"], about["evalue"]) == (None, None, None)
    assert len(result["segments"]) == 1
    with pytest.raises(ValueError, match="give a calibrated model"):
        unrelated_p_values(model, random_families(3, seed=7), EMBED, ["f0"])


def test_what_cannot_be_calibrated_is_refused(calibrated: PlasmaModel) -> None:
    with pytest.raises(ValueError, match="9 families; give proteins of ten at least"):
        plasma_hf.calibrate(uncalibrated(), random_families(9, seed=8) * 2, EMBED, pairs=100)
    with pytest.raises(ValueError, match='only a model with reading="posterior"'):
        plasma_hf.calibrate(uncalibrated("plan"), random_families(12, seed=8), EMBED, pairs=100)
    for count, held_out in ((1, ["f0"]), (3, ["f9"])):
        with pytest.raises(ValueError, match="two families at least, of them one held out"):
            unrelated_p_values(calibrated, random_families(count, seed=8) * 3, EMBED, held_out)


def test_each_pair_has_a_protein_that_is_held_out(calibrated: PlasmaModel) -> None:
    proteins = random_families(6, seed=9)
    for held_out, pairs in ((["f2"], 5), (["f2", "f4"], 9)):
        assert len(unrelated_p_values(calibrated, proteins, EMBED, held_out, 500)) == pairs


# --- Letters, beside what a language model says of residues.


@pytest.fixture(scope="module")
def over_language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlasmaModel, Any]:
    """A model over a small random ESM-2, calibrated, and its backbone."""
    backbone = plasma_hf.load_backbone(esm2(tmp_path_factory.mktemp("esm2") / "esm2", width=64))
    model = new_aligner(backbone)
    plasma_hf.calibrate(model, random_families(40, seed=3), backbone.embed, pairs=400)
    return model, backbone


def test_letters_are_read_in_embeddings(over_language_model: tuple[PlasmaModel, Any]) -> None:
    model, backbone = over_language_model
    sequences = [one for _, one in random_families(5, seed=4)]
    assert model.config.calibration["letters"] == 64
    for sequence, embedded in zip(sequences, backbone.embed(sequences), strict=True):
        torch.testing.assert_close(model.letters(embedded), EMBED([sequence])[0])
        added = model.project(embedded)[:, model.background.proteins.shape[1] : -3].norm(dim=-1)
        rest = model.project(embedded)[:, : model.background.proteins.shape[1]].norm(dim=-1)
        assert 0.4 < float((added / rest).mean()) < 0.6
    pooled = model.pool(model.project_each(backbone.embed(sequences)))
    assert pooled.shape == (5, 64)


def test_letters_travel_with_a_model(
    over_language_model: tuple[PlasmaModel, Any], tmp_path: Path
) -> None:
    model, backbone = over_language_model
    model.save_pretrained(tmp_path, save_backbone=True)
    again = AutoModel.from_pretrained(tmp_path)
    query, candidate = backbone.embed([one for _, one in random_families(2, seed=5)])
    one, other = (each.align_pairs([query], [candidate]) for each in (model, again))
    torch.testing.assert_close(one.plans, other.plans)
    assert one.raw_scores == other.raw_scores
    assert model.head_identity == again.head_identity


def test_letters_that_embeddings_do_not_tell_are_not_compared(
    over_language_model: tuple[PlasmaModel, Any],
) -> None:
    _, backbone = over_language_model
    model = new_aligner(backbone)
    proteins = [one for _, one in random_families(20, seed=6)]
    noise = [torch.randn(len(one), 64) for one in proteins]
    model.measure_background(noise, proteins)
    assert model.letters is None and "letters" not in model.config.calibration
    assert uncalibrated().letters is None
    model.measure_background(backbone.embed(proteins))  # nobody says which they are
    assert model.letters is None


def test_encoders_that_see_letters_get_none_more(calibrated: PlasmaModel) -> None:
    assert calibrated.letters is None and "letters" not in calibrated.config.calibration
