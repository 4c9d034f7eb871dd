"""A plan as a picture: which residues of the query meet which of the candidate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray


CELLS = 250
"""Cells along a side that a picture can show; a longer protein shares them."""

OUTLINE = "#d9822b"
MARK = "#b01030"


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
        query_id: What to call the query.
        candidate_id: What to call the candidate.
        path: File to write; its ending says the format (`.png`, `.svg`, `.pdf`, ...).
        marks: Residue pairs to point out, `(query index, candidate index, label)`, 0-based.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the plan is not two-dimensional, or the format of `path` unknown.

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
    figure, axes = _canvas(weights.shape)
    _heat_map(figure, axes, weights)
    axes.set_xlabel(f"{candidate_id}  (candidate residue)", parse_math=False)
    axes.set_ylabel(f"{query_id}  (query residue)", parse_math=False)
    for number, segment in enumerate(segments, start=1):
        _outline(axes, number, segment, weights.shape[1])
    _point_out(axes, list(marks), weights.shape[1])
    figure.savefig(path, dpi=150)


def _canvas(shape: tuple[int, ...]) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'drawing a plan needs matplotlib; install it with: pip install "plasma-hf[plot]"'
        ) from error
    # The true proportions, as far as both axes stay readable.
    height = float(np.clip(5.2 * shape[0] / shape[1], 3.0, 8.0))
    figure = Figure(figsize=(6.4, height + 0.6), layout="constrained")
    return figure, figure.subplots()


def _heat_map(figure: Figure, axes: Axes, weights: NDArray[np.float64]) -> None:
    pooled, (down, across) = _pool(weights)
    rows, cols = pooled.shape
    image = axes.imshow(
        pooled,
        cmap="Blues",
        vmin=0.0,
        vmax=1.0,
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, cols * across + 0.5, rows * down + 0.5, 0.5),
    )
    figure.colorbar(image, ax=axes, label="plan weight", shrink=0.8, pad=0.02)
    axes.set(xlim=(0.5, weights.shape[1] + 0.5), ylim=(weights.shape[0] + 0.5, 0.5))
    axes.set_xticks(_ticks(weights.shape[1]))
    axes.set_yticks(_ticks(weights.shape[0]))


def _pool(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the highest weight of each cell, and how many residues a cell holds."""
    down, across = (-(-size // CELLS) for size in weights.shape)
    rows = np.maximum.reduceat(weights, np.arange(0, weights.shape[0], down), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, weights.shape[1], across), axis=1), (down, across)


def _ticks(residues: int) -> list[int]:
    """Return about six round residue numbers, and 1.

    Example:
        >>> _ticks(30), _ticks(245)
        ([1, 5, 10, 15, 20, 25, 30], [1, 50, 100, 150, 200])
    """
    from matplotlib.ticker import MaxNLocator

    places = MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]).tick_values(0, residues)
    return [1, *(int(place) for place in places if 1 < place <= residues)]


def _outline(axes: Axes, number: int, segment: Mapping[str, Any], across: int) -> None:
    from matplotlib.patches import Rectangle

    left, right = segment["candidate_start"] + 0.5, segment["candidate_end"] + 0.5
    top, bottom = segment["query_start"] + 0.5, segment["query_end"] + 0.5
    style: dict[str, Any] = {"fill": False, "ec": OUTLINE, "lw": 1.4, "clip_on": False, "zorder": 3}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
    axes.annotate(
        f"segment {number}",
        (right, top),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right" if right > across / 2 else "left",
        va="bottom",
        color=OUTLINE,
    )


def _point_out(axes: Axes, marks: Sequence[tuple[int, int, str]], across: int) -> None:
    for i, j, label in marks:
        axes.plot(j + 1, i + 1, "o", ms=11, mfc="none", mec=MARK, mew=1.4)
        right = j < 0.6 * across  # a label on the far side would leave the picture
        axes.annotate(
            label,
            (j + 1, i + 1),
            xytext=(10 if right else -10, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            color=MARK,
            parse_math=False,
        )
