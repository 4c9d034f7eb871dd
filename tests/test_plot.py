"""Pictures of results: they exist, have the asked size, and show what they should."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plasma_hf.io.plot import (
    CELLS,
    PICTURES,
    new_figure,
    plot_alignment,
    plot_p_values,
    plot_result,
    save_figure,
)
from plasma_hf.models.alignment_result import AlignmentResult
from plasma_hf.models.protein import Protein, Structure

ROOT = Path(__file__).parents[1]
SPANS = {"query_start": 3, "query_end": 20, "candidate_start": 0, "candidate_end": 17}
PAIRS = [[i + 3, i, 0.5 + i / 40] for i in range(17)]


def result_of(shape: tuple[int, int], plan: Any = None, segments: int = 0) -> AlignmentResult:
    """Make a result of so many residues, with one segment or none."""
    query, candidate = (
        Protein(name, ("MKVLAGWH" * n)[:n]) for name, n in zip(("a_1", "$b$"), shape, strict=True)
    )
    values: dict[str, Any] = {"score": 0.7, "segments": segments * [SPANS | {"score": 0.6}]}
    for segment in values["segments"]:
        segment["pairs"] = PAIRS
    if plan is not None:
        values["plan"] = plan
    return AlignmentResult(values, query, candidate)


def numbered(numbers: list[str], chains: str) -> Protein:
    """Make a protein of a structure with these author numbers."""
    count = len(numbers)
    sequence = ("MKVLAGWH" * count)[:count]
    structure = Structure("s", sequence, torch.zeros(count, 4, 3), tuple(numbers), tuple(chains))
    return Protein("s", sequence, structure=structure)


def ticks_of(protein: Protein) -> tuple[dict[int, str], str]:
    """Draw a protein with itself; return what stands along the candidate's axis."""
    values = {"score": 0.0, "segments": [], "plan": np.zeros((len(protein), len(protein)))}
    axes = plot_result(AlignmentResult(values, protein, protein)).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    places = [round(place) for place in axes.get_xticks()]
    return dict(zip(places, labels, strict=True)), axes.get_xlabel()


@pytest.mark.parametrize("shape", [(30, 24), (1000, 900), (20, 1000), (1, 1)])
def test_picture_is_readable_at_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    path = tmp_path / "plan.png"
    plot_result(result_of(shape, np.eye(*shape)), path)
    height, width, _ = image_of(path).shape
    assert 900 <= width <= 1000
    assert 450 <= height <= 1400


def test_segments_and_marks_are_drawn(tmp_path: Path) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    plan = np.eye(30, 24, k=-3)
    plain, full = tmp_path / "plain.png", tmp_path / "full.png"
    plot_result(result_of((30, 24), plan), plain)
    marks = [(4, 1, "His57"), (26, 23, "Ser_195")]
    figure = plot_result(result_of((30, 24), plan, segments=1), full, marks)
    assert orange(image_of(plain)) == 0 < orange(image_of(full))
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"segment 1", "His57", "Ser_195"}
    assert axes.get_title() == "a_1 and $b$\nscore 0.7000"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "$b$\ncandidate residue",
        "a_1\nquery residue",
    )


def orange(image: np.ndarray) -> int:
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return int(((red > 0.75) & (green > 0.4) & (green < 0.6) & (blue < 0.3)).sum())


def test_without_a_plan_the_pairs_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    axes, bar = plot_result(result_of((30, 24), segments=1)).axes
    drawn = np.asarray(axes.images[0].get_array())
    expected = np.zeros((30, 24))
    for i, j, weight in PAIRS:
        expected[i, j] = weight  # type: ignore[index]
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    assert bar.get_ylabel() == "plan weight of aligned pairs"


@pytest.mark.parametrize("kind", PICTURES)
def test_ending_says_the_format(tmp_path: Path, kind: str) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    result = result_of((30, 24), segments=1)
    for name in ("one.svg", "two.svg", "one.png", "one.pdf", "one.jpg"):
        result.plot(str(tmp_path / name), kind)
    svg = (tmp_path / "one.svg").read_text()
    assert svg.startswith("<?xml") and svg == (tmp_path / "two.svg").read_text()
    what = {"plan": "Plan", "alignment": "Alignment", "dots": "Dot-plot"}[kind]
    title = f"{what} of a_1 and $b$"
    told = "segment 1: query 4 to 20, candidate 1 to 17, score 0.6000"
    assert f"<title>{title}</title>" in svg and told in svg
    words = image.open(tmp_path / "one.png").text
    assert words["Title"] == title and told in words["Description"]
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        result.plot(str(tmp_path / "plan.xyz"), kind)


def test_pooling_keeps_a_lone_pair() -> None:
    pytest.importorskip("matplotlib")
    plan = np.zeros((1001, 90), dtype=np.float32)
    plan[1000, 42] = 0.9
    drawn = plot_result(result_of((1001, 90), plan)).axes[0].images[0]
    cells = np.asarray(drawn.get_array())
    assert cells.shape[0] <= CELLS
    assert cells[1000 // 5, 42] == cells.max() == np.float32(0.9)
    assert tuple(drawn.get_extent()) == (0.5, 90.5, 1005.5, 0.5)


@pytest.mark.parametrize("residues", [1, 2, 7, 30, 245, 1000])
def test_ticks_are_residues(residues: int) -> None:
    pytest.importorskip("matplotlib")
    ticks, label = ticks_of(Protein("p", "A" * residues))
    assert list(ticks)[0] == 1 and list(ticks)[-1] <= residues
    assert 1 <= len(ticks) <= 9
    assert all(str(place) == number for place, number in ticks.items())
    assert label == "p\ncandidate residue"


def test_ticks_are_the_numbers_of_the_authors() -> None:
    pytest.importorskip("matplotlib")
    numbers = [str(n) for n in range(-3, 50)] + ["50", "50A", "50B", *map(str, range(51, 120))]
    ticks, label = ticks_of(numbered(numbers, "B" * len(numbers)))
    assert all(numbers[place - 1] == number for place, number in ticks.items())
    assert ticks == {1: "-3", 24: "20", 44: "40", 66: "60", 86: "80", 106: "100"}
    assert label == "s\ncandidate residue, chain B, author numbers"


def test_ticks_name_chains_where_there_are_several() -> None:
    pytest.importorskip("matplotlib")
    numbers = [*map(str, range(16, 76)), "75A", *map(str, range(1, 60)), "59A", "59B"]
    ticks, label = ticks_of(numbered(numbers, "A" * 61 + "C" * 61))
    assert ticks == {1: "A:16", 25: "A:40", 45: "A:60", 62: "C:1", 81: "C:20", 101: "C:40"}
    assert label.endswith("candidate residue, chain and author numbers")
    many = numbered(["1", "1A"] * 300, "".join(chr(200 + i // 2) for i in range(600)))
    assert len(ticks_of(many)[0]) <= 17


@pytest.fixture(scope="module")
def proteases(align: Any) -> AlignmentResult:
    folder = ROOT / "demo" / "structures"
    return align((folder / "2cga_B.pdb.gz", folder / "1ppe_E.pdb.gz"))


def test_alignment_has_the_rows_of_the_text(proteases: AlignmentResult) -> None:
    pytest.importorskip("matplotlib")
    axes = plot_alignment(proteases).axes[0]
    lines: dict[float, str] = {}
    for text in axes.texts:
        column, line = text.get_position()
        lines[line] = lines.get(line, "").ljust(int(column)) + text.get_text()
    _, *blocks = str(proteases).partition("pairs 221")[2].split("\n\n")
    rows = [row for block in blocks for row in block.splitlines()]
    drawn = [lines[line] for line in sorted(lines)][-len(rows) :]
    assert [drawn[0::3], drawn[2::3]] == [rows[0::3], rows[2::3]]
    # Between the rows stand the letters of pairs that are identical, the others do not.
    letters = [one for row in drawn[1::3] for one in row if one != " "]
    assert len(letters) == proteases.hits[0].identical
    coloured = np.concatenate([np.asarray(image.get_array())[0] for image in axes.images])
    weights = [weight for *_, weight in proteases.hits[0].pairs]
    np.testing.assert_allclose(coloured[np.isfinite(coloured)], weights)


def test_letters_can_be_read_on_every_colour(proteases: AlignmentResult) -> None:
    colours = pytest.importorskip("matplotlib.colors")
    image = plot_alignment(proteases).axes[0].images[0]
    grey = [_luminance(colours.to_rgb(image.cmap(weight))) for weight in np.linspace(0, 1, 11)]
    assert all(after < before for before, after in zip(grey[:-1], grey[1:], strict=True))
    assert (grey[-1] + 0.05) / 0.05 > 7  # WCAG 2, level AAA, of black letters


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_dots_show_the_repeats_of_a_protein_with_itself(align: Any) -> None:
    pytest.importorskip("matplotlib")
    unit = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
    result = align((unit + "GSGSGS" + unit,) * 2, return_plan=True)
    plan, dots = (
        np.asarray(result.plot(kind=kind).axes[0].images[0].get_array())
        for kind in PICTURES
        if kind != "alignment"
    )
    repeat = np.diagonal(dots, len(unit) + 6)
    assert repeat.min() > 3 > np.quantile(dots, 0.95)
    assert np.diagonal(plan, len(unit) + 6).max() < 0.1  # a plan aligns each residue once


def test_a_pair_without_a_hit_says_so(align: Any) -> None:
    pytest.importorskip("matplotlib")
    result = align(("MKVLAA", "WWWPPP"))
    for kind in PICTURES:
        figure = result.plot(kind=kind)
        assert not figure.axes[0].patches
    said = "".join(text.get_text() for text in result.plot(kind="alignment").axes[0].texts)
    assert "no significant alignment" in said


def test_a_figure_shows_itself_in_a_notebook(proteases: AlignmentResult) -> None:
    pytest.importorskip("matplotlib")
    figure = pickle.loads(pickle.dumps(proteases.plot(kind="alignment")))
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no picture 'pie'; give one of plan, alignment, dots"):
        result_of((3, 3)).plot(kind="pie")
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) cannot be drawn for a_1 and \$b\$"):
        plot_result(result_of((3, 4), np.zeros((2, 3, 4))))
    embedded = Protein("e", embeddings=torch.zeros(4, 8))
    result = AlignmentResult({"score": 0.1, "segments": []}, embedded, embedded)
    assert result.plot().axes[0].get_xlabel() == "e\ncandidate residue"
    for kind in ("alignment", "dots"):
        with pytest.raises(ValueError, match="'e' has residue embeddings and no sequence"):
            result.plot(kind=kind)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for kind in PICTURES:
        with pytest.raises(ImportError, match=r'pip install "plasma-hf\[plot\]"'):
            result_of((3, 3)).plot(kind=kind)


def test_p_values_are_drawn(tmp_path: Path) -> None:
    image_of = pytest.importorskip("matplotlib.image").imread
    even = (np.arange(500) + 0.5) / 500
    for name, p_values in (("even", even), ("small", even**2), ("zero", even * (even > 0.1))):
        plot_p_values(p_values, tmp_path / f"{name}.png")
    pictures = [image_of(tmp_path / f"{name}.png") for name in ("even", "small", "zero")]
    # Where they are true, the points hide the diagonal.
    assert 1.5 * orange(pictures[0]) < orange(pictures[1])
    assert all(min(picture.shape[:2]) > 700 for picture in pictures)


# --- The page of a notebook, in a browser.

LIGHT, DARK = "background:#fff;color:#111", "background:#111;color:#eee"
SIZES = """
const boxes = [...document.querySelectorAll("pre, table")];
return {inner: innerWidth, page: document.documentElement.scrollWidth,
        scrolling: boxes.some(box => box.scrollWidth > box.clientWidth),
        colours: boxes.map(box => getComputedStyle(box).color)}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("socket_enabled")
@pytest.mark.parametrize("width", [1200, 380])
def test_the_page_is_no_wider_than_the_window(
    open_page: Any, align: Any, proteases: AlignmentResult, tmp_path: Path, width: int
) -> None:
    unit = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
    long = Protein("sp|P12345|" + "A_LONG_NAME_" * 6, unit * 11)
    results = {
        "proteases": proteases,
        "tandem": align((unit + "GSGSGS" + unit, unit)),
        "none": align(("MKVLAA", "WWWPPP")),
        "long": align((long, long)),
    }
    for name, result in results.items():
        for style, colour in ((LIGHT, "rgb(17, 17, 17)"), (DARK, "rgb(238, 238, 238)")):
            page = tmp_path / "page.html"
            head = "<!doctype html><meta name=viewport content='width=device-width'>"
            page.write_text(f"{head}<body style='{style}'>{result._repr_html_()}", "utf-8")
            seen = open_page(page.as_uri(), width).execute_script(SIZES)
            assert seen["page"] <= seen["inner"] == width, name
            assert set(seen["colours"]) <= {colour}
            assert bool(seen["colours"]) == (name != "none")
    assert seen["scrolling"] == (width < 500)  # the rows do, in their own box


@pytest.mark.parametrize("ending", ["svg", "png", "pdf", "jpg"])
def test_a_figure_without_a_title_is_saved(tmp_path: Path, ending: str) -> None:
    plot_p_values([0.1, 0.5, 0.9], tmp_path / f"p.{ending}")
    save_figure(new_figure(1, 1), tmp_path / f"empty.{ending}")
    assert all(file.stat().st_size > 100 for file in tmp_path.iterdir())
