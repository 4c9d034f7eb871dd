"""Pictures of alignments: the plan as a heat map, the rows, and p-values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.alignment_result import BLOCK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from ..models.alignment_result import AlignmentResult, Hit


CELLS = 250  # cells along a side that a picture can show; a longer protein shares them
OUTLINE, MARK = "#d9822b", "#b01030"


def new_figure(width: float, height: float) -> Figure:
    """Return a figure, sizes in inches; without pyplot it needs no screen, and is forgotten."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib; install it with: pip install "plasma-hf[plot]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path, told: str = "") -> None:
    """Write a figure and what it shows, for who cannot see it; the same numbers give one file."""
    about: dict[str, Any] = {"Title": told} if told else {}
    if path.suffix == ".svg":
        about |= {"Date": None, "Description": told}
    known = path.suffix in (".svg", ".png", ".pdf")
    figure.savefig(path, dpi=150, metadata=about if known else None)


def plot_result(
    result: AlignmentResult,
    path: str | Path | None = None,
    kind: str = "plan",
    marks: Iterable[tuple[int, int, str]] = (),
) -> Figure:
    """Draw an alignment: its "plan" as a heat map, or the rows of its segments, "alignment".

    The plan is that of the result (`return_plan=True`), which shows copies of a repeat as parallel
    diagonals, also of a protein with itself; without one its aligned pairs are drawn. Residues have
    the numbers of the authors of a structure.
    """
    ids = result.query.id, result.candidate.id
    if kind == "alignment":
        figure = _rows_of(result)
        told = f"Aligned residues of {ids[0]} and {ids[1]}, row by row"
    elif kind == "plan":
        plan = result.get("plan")
        if plan is None:
            plan = np.zeros((len(result.query), len(result.candidate)))
            for hit in result.hits:
                for i, j, weight in hit.pairs:
                    plan[i, j] = weight
        labels = [result.residues(side) for side in ("query", "candidate")]
        figure = plot_plan(plan, result["segments"], *ids, None, marks, labels)
        told = f"Heat map of the residues of {ids[0]} that are aligned with those of {ids[1]}"
    else:
        raise ValueError(f"there is no picture {kind!r} of a result; give plan or alignment.")
    if path is not None:
        save_figure(figure, Path(path), told)
    return figure


def plot_plan(
    plan: ArrayLike,
    segments: Iterable[Mapping[str, Any]],
    query_id: str,
    candidate_id: str,
    path: str | Path | None = None,
    marks: Iterable[tuple[int, int, str]] = (),
    labels: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw a plan as a heat map, with its segments outlined and numbered.

    Residues are counted from 1 along both axes, the query downwards. In a large plan a cell shows
    the highest plan weight of the residues that share it, so that no thin diagonal gets lost.

    Args:
        plan: `(query_residues, candidate_residues)`, weights in [0, 1].
        segments: Those of the pipeline's result.
        path: File to write; its ending says the format (`.png`, `.svg`, `.pdf`, ...).
        marks: Residue pairs to point out, `(query index, candidate index, label)`, 0-based.
        labels: Names of the residues of both sides, in place of numbers from 1.

    Example:
        >>> plot_plan(np.eye(30)[0], [], "me", "myself", "plan.png")
        Traceback (most recent call last):
        ...
        ValueError: a plan of shape (30,) cannot be drawn; give (query_residues, \
candidate_residues), for one pair.
    """
    weights = np.asarray(plan, dtype=float)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(
            f"a plan of shape {weights.shape} cannot be drawn; give "
            "(query_residues, candidate_residues), for one pair."
        )
    rows, cols = weights.shape
    # The true proportions, as far as both axes stay readable.
    height = float(np.clip(5.2 * rows / cols, 3.0, 8.0))
    figure = new_figure(6.4, height + 0.6)
    axes = figure.subplots()
    pooled, (down, across) = _pool(weights)
    extent = (0.5, pooled.shape[1] * across + 0.5, pooled.shape[0] * down + 0.5, 0.5)
    options: dict[str, Any] = {"cmap": "Blues", "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(pooled, vmin=0.0, vmax=1.0, extent=extent, **options)
    figure.colorbar(image, ax=axes, label="plan weight", shrink=0.8, pad=0.02)
    axes.set(xlim=(0.5, cols + 0.5), ylim=(rows + 0.5, 0.5))
    down_labels, across_labels = labels or ([], [])
    axes.set_xticks(*_named_ticks(cols, across_labels))
    axes.set_yticks(*_named_ticks(rows, down_labels))
    axes.set_xlabel(f"{candidate_id}  (candidate residue)", parse_math=False)
    axes.set_ylabel(f"{query_id}  (query residue)", parse_math=False)
    for number, segment in enumerate(segments, start=1):
        _outline(axes, number, segment, cols)
    _point_out(axes, marks, cols)
    if path is not None:
        save_figure(figure, Path(path), f"Heat map of {query_id} and {candidate_id}")
    return figure


LETTER, LINE = 0.1, 0.17  # inches of a column and of a line


def _rows_of(result: AlignmentResult) -> Figure:
    """Draw the rows of all segments; the darker a pair, the more probable, identical ones bold."""
    blocks = [(hit, at) for hit in result.hits for at in range(0, len(hit.columns), BLOCK)]
    lines = 4 * len(blocks) + 2 * len(result.hits) + 2
    figure = new_figure(LETTER * (BLOCK + 30), LINE * lines)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-20, BLOCK + 10), ylim=(lines, 0))
    axes.axis("off")
    style: dict[str, Any] = {"family": "monospace", "fontsize": 8, "va": "center"}
    if not blocks:
        axes.text(0, 1, "no significant alignment", **style)
    line = 1.0
    for hit, start in blocks:
        if start == 0:
            axes.text(0, line, hit.about(), parse_math=False, **style)
            line += 2
        _draw_block(axes, hit, slice(start, start + BLOCK), line, style)
        line += 4
    return figure


def _draw_block(axes: Axes, hit: Hit, part: slice, top: float, style: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    for side, (name, row) in enumerate(zip(("query", "candidate"), hit.rows, strict=True)):
        labels, shown = hit.result.residues(name), hit.columns[part]
        there = [place for column in shown if (place := column[:2][side]) is not None]
        line = top + 1.2 * side
        if there:
            axes.text(-1, line, f"{name} {labels[there[0]]}", ha="right", **style)
            axes.text(len(shown) + 0.5, line, labels[there[-1]], ha="left", **style)
        for place, (letter, column) in enumerate(zip(row[part], shown, strict=True)):
            pair = {one[part][place] for one in hit.rows}
            weight = column[2] or 0.0
            box = Rectangle((place, line - 0.6), 1, 1.2, color="#2166ac", alpha=0.75 * weight, lw=0)
            axes.add_patch(box)
            bold = "bold" if len(pair) == 1 else "normal"
            colour = "white" if weight > 0.85 else "black"
            axes.text(place + 0.5, line, letter, ha="center", color=colour, weight=bold, **style)


def plot_p_values(p_values: ArrayLike, path: str | Path) -> None:
    """Draw p-values of unrelated pairs against those that chance has it, on logarithmic axes.

    Args:
        p_values: `(pairs,)`; where they are true, the points lie on the diagonal.
        path: File to write; its ending says the format (`.png`, `.svg`, `.pdf`, ...).
    """
    observed = np.sort(np.asarray(p_values, dtype=float)).clip(1e-300)  # a logarithm has no 0
    expected = (np.arange(len(observed)) + 0.5) / len(observed)
    figure = new_figure(5.2, 5.0)
    axes = figure.subplots()
    axes.loglog(expected, expected, color=OUTLINE, lw=1.2, label="uniform")
    axes.loglog(expected, observed, ".", ms=4, label=f"{len(observed)} unrelated pairs")
    axes.set(xlabel="expected p-value", ylabel="observed p-value")
    axes.legend(frameon=False)
    save_figure(figure, Path(path))


def _pool(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the highest weight of each cell, and how many residues a cell holds."""
    down, across = (-(-size // CELLS) for size in weights.shape)
    rows = np.maximum.reduceat(weights, np.arange(0, weights.shape[0], down), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, weights.shape[1], across), axis=1), (down, across)


def _ticks(residues: int) -> list[int]:
    """Return about six round residue numbers, and 1: 1, 50, 100, 150, 200 of 245."""
    from matplotlib.ticker import MaxNLocator

    places = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]).tick_values(0, residues)
    return [1, *(int(place) for place in places if 1 < place <= residues)]


def _named_ticks(residues: int, labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return ticks and what stands at them: round numbers of the authors, if there are any."""
    ticks = _ticks(residues)
    numbers = [label.rpartition(":")[2] for label in labels]
    if len(ticks) > 1 and numbers:
        step = ticks[-1] - ticks[-2] if len(ticks) > 2 else ticks[-1]
        round_ones = [
            n + 1 for n, one in enumerate(numbers) if one.isdigit() and not int(one) % step
        ]
        ticks = [1, *(one for one in round_ones if one > step // 3)] if round_ones else ticks
    return ticks, [numbers[one - 1] if numbers else str(one) for one in ticks]


def _outline(axes: Axes, number: int, segment: Mapping[str, Any], across: int) -> None:
    from matplotlib.patches import Rectangle

    left, right = segment["candidate_start"] + 0.5, segment["candidate_end"] + 0.5
    top, bottom = segment["query_start"] + 0.5, segment["query_end"] + 0.5
    style: dict[str, Any] = {"fill": False, "ec": OUTLINE, "lw": 1.4, "clip_on": False, "zorder": 3}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
    side = "right" if right > across / 2 else "left"
    place: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": side}
    axes.annotate(f"segment {number}", (right, top), **place, va="bottom", color=OUTLINE)


def _point_out(axes: Axes, marks: Iterable[tuple[int, int, str]], across: int) -> None:
    for i, j, label in marks:
        axes.plot(j + 1, i + 1, "o", ms=11, mfc="none", mec=MARK, mew=1.4)
        # A label on the far side would leave the picture.
        shift, side = (10, "left") if j < 0.6 * across else (-10, "right")
        place: dict[str, Any] = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side}
        axes.annotate(label, (j + 1, i + 1), **place, va="center", color=MARK, parse_math=False)
