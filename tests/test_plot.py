"""Pictures of plans: they exist, have the asked size, and show what they should."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import pipeline

import plasma_hf  # noqa: F401  registers the task
from plasma_hf.io.plot import CELLS, _pool, _ticks, plot_p_values, plot_plan

SEGMENT = {"query_start": 3, "query_end": 20, "candidate_start": 0, "candidate_end": 17}


@pytest.mark.parametrize("shape", [(30, 24), (1000, 900), (20, 1000), (1, 1)])
def test_picture_is_readable_at_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    path = tmp_path / "plan.png"
    plot_plan(np.eye(*shape), [], "query", "candidate", path)
    height, width, _ = image_of(path).shape
    assert 900 <= width <= 1000
    assert 450 <= height <= 1400


def test_segments_and_marks_are_drawn(tmp_path: Path) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    plan = np.eye(30, 24, k=-3)
    plain, full = tmp_path / "plain.png", tmp_path / "full.png"
    plot_plan(plan, [], "a_1", "$b$", plain)
    plot_plan(plan, [SEGMENT], "a_1", "$b$", full, marks=[(4, 1, "His57"), (26, 23, "Ser_195")])
    assert orange(image_of(plain)) == 0 < orange(image_of(full))


def orange(image: np.ndarray) -> int:
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return int(((red > 0.75) & (green > 0.4) & (green < 0.6) & (blue < 0.3)).sum())


def test_ending_says_the_format(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_plan(np.eye(5), [], "a", "b", tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        plot_plan(np.eye(5), [], "a", "b", tmp_path / "plan.xyz")


def test_pooling_keeps_a_lone_pair() -> None:
    plan = np.zeros((1001, 90))
    plan[1000, 42] = 0.9
    pooled, (down, across) = _pool(plan)
    assert pooled.shape[0] <= CELLS
    assert (down, across) == (5, 1)
    assert pooled[1000 // down, 42] == 0.9 == pooled.max()


@pytest.mark.parametrize("residues", [1, 2, 7, 30, 245, 1000, 36000])
def test_ticks_are_residues(residues: int) -> None:
    pytest.importorskip("matplotlib")
    ticks = _ticks(residues)
    assert ticks == sorted(set(ticks))
    assert ticks[0] == 1
    assert ticks[-1] <= residues
    assert len(ticks) <= 9


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) cannot be drawn"):
        plot_plan(np.zeros((2, 3, 4)), [], "a", "b", "plan.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "plasma-hf\[plot\]"'):
        plot_plan(np.eye(3), [], "a", "b", "plan.png")


def test_p_values_are_drawn(tmp_path: Path) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    even = (np.arange(500) + 0.5) / 500
    for name, p_values in (("even", even), ("small", even**2), ("zero", even * (even > 0.1))):
        plot_p_values(p_values, tmp_path / f"{name}.png")
    pictures = [image_of(tmp_path / f"{name}.png") for name in ("even", "small", "zero")]
    # Where they are true, the points hide the diagonal.
    assert 1.5 * orange(pictures[0]) < orange(pictures[1])
    assert all(min(picture.shape[:2]) > 700 for picture in pictures)


def test_a_result_is_drawn(tmp_path: Path) -> None:
    sides = ("demo/structures/2cga_B.pdb.gz", "demo/structures/1ppe_E.pdb.gz")
    align = pipeline("protein-alignment")
    result = align(sides, return_plan=True)
    figure = result.plot(str(tmp_path / "plan.svg"))
    # Ticks are at round numbers of the authors; the candidate begins with 16.
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["16", "50", "100", "150", "200"]
    text = (tmp_path / "plan.svg").read_text()
    assert "Heat map of the residues of 2cga_B.pdb.gz:B that are aligned with" in text
    del result["plan"]  # then the aligned pairs are drawn
    drawn = result.plot().axes[0].images[0].get_array()
    assert int((drawn > 0.2).sum()) == len(result.hits[0].pairs)
    figure = result.plot(str(tmp_path / "rows.png"), kind="alignment")
    letters = "".join(text.get_text() for text in figure.axes[0].texts)
    assert "query B:16" in letters and "E:245" in letters
    assert orange(pytest.importorskip("matplotlib.image").imread(tmp_path / "rows.png")) == 0
    empty = align(("MKVLAA", "WWPPWW")).plot(kind="alignment")
    assert empty.axes[0].texts[0].get_text() == "no significant alignment"
    with pytest.raises(ValueError, match="no picture 'tree' of a result; give plan or alignment"):
        result.plot(kind="tree")
