"""A plan as a picture: which residues of the query meet which of the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray


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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; its date is left out, so that the same numbers give the same file."""
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})


def plot_plan(
    plan: ArrayLike,
    segments: Iterable[Mapping[str, Any]],
    query_id: str,
    candidate_id: str,
    path: str | Path,
    marks: Iterable[tuple[int, int, str]] = (),
) -> None:
    """Draw a plan as a heat map, with its segments outlined and numbered.

    Residues are counted from 1 along both axes, the query downwards. In a large plan a cell shows
    the highest plan weight of the residues that share it, so that no thin diagonal gets lost.

    Args:
        plan: `(query_residues, candidate_residues)`, weights in [0, 1].
        segments: Those of the pipeline's result.
        path: File to write; its ending says the format (`.png`, `.svg`, `.pdf`, ...).
        marks: Residue pairs to point out, `(query index, candidate index, label)`, 0-based.

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
    axes.set(
        xlim=(0.5, cols + 0.5), ylim=(rows + 0.5, 0.5), xticks=_ticks(cols), yticks=_ticks(rows)
    )
    axes.set_xlabel(f"{candidate_id}  (candidate residue)", parse_math=False)
    axes.set_ylabel(f"{query_id}  (query residue)", parse_math=False)
    for number, segment in enumerate(segments, start=1):
        _outline(axes, number, segment, cols)
    _point_out(axes, marks, cols)
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
