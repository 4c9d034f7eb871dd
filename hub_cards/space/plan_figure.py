"""The plan as a heat map that tells, under the pointer, both residues and their weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from html_parts import residue_names
from numpy.typing import ArrayLike, NDArray

from plasma_hf.models.protein import Protein

CELLS = 500
"""Cells along a side; the residues of a longer protein share them."""

OUTLINE = "#d9822b"


def plan_figure(
    plan: ArrayLike, segments: Sequence[Mapping[str, Any]], records: Sequence[Protein]
) -> go.Figure:
    """Draw a plan, the query downwards, with its segments outlined and numbered.

    Args:
        plan: `(query_residues, candidate_residues)`, weights in [0, 1].
        segments: Those of the pipeline's result.
        records: Query and candidate.
    """
    weights = np.asarray(plan, dtype=np.float32)
    steps = [-(-size // CELLS) for size in weights.shape]
    query, candidate = (
        cell_names([plain(name) for name in residue_names(record)], step)
        for record, step in zip(records, steps, strict=True)
    )
    heat_map = go.Heatmap(
        z=highest(weights, *steps),
        x=candidate,
        y=query,
        zmin=0,
        zmax=1,
        colorscale="Blues",
        hovertemplate="query %{y}<br>candidate %{x}<br>weight %{z:.3f}<extra></extra>",
        colorbar={"orientation": "h", "y": 1, "yanchor": "bottom", "thickness": 8, "len": 0.6},
    )
    figure = go.Figure(heat_map)
    for number, segment in enumerate(segments, start=1):
        figure.add_shape(**outline(number, segment, *steps))
    query_title, candidate_title = (
        side if record.id == side else f"{side} {record.id}"
        for side, record in zip(("query", "candidate"), records, strict=True)
    )
    figure.update_xaxes(title=plain(candidate_title), type="category", nticks=8)
    figure.update_yaxes(title=plain(query_title), type="category", nticks=8, autorange="reversed")
    figure.update_layout(
        height=480,
        dragmode=False,  # a finger on it scrolls the page
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        font={"family": "system-ui, sans-serif"},
    )
    return figure


def plain(text: str) -> str:
    """Escape what plotly would read as HTML, and a dollar, as a formula of TeX.

    Example:
        >>> plain("<b>A</b> $x$")
        '&lt;b&gt;A&lt;/b&gt; &#36;x&#36;'
    """
    return escape(text, quote=False).replace("$", "&#36;")


def cell_names(names: Sequence[str], step: int) -> list[str]:
    """Name each cell by its residue, or its first and last one.

    Example:
        >>> cell_names(["M1", "K2", "V3"], 1), cell_names(["M1", "K2", "V3"], 2)
        (['M1', 'K2', 'V3'], ['M1 to K2', 'V3'])
    """
    cells = [names[start : start + step] for start in range(0, len(names), step)]
    return [cell[0] if len(cell) == 1 else f"{cell[0]} to {cell[-1]}" for cell in cells]


def highest(weights: NDArray[np.float32], down: int, across: int) -> NDArray[np.float32]:
    """Give each cell the highest weight in it, so that no thin diagonal gets lost."""
    rows = np.maximum.reduceat(weights, np.arange(0, weights.shape[0], down), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, weights.shape[1], across), axis=1)


def outline(number: int, segment: Mapping[str, Any], down: int, across: int) -> dict[str, Any]:
    """Return the box round a segment; on an axis of names, places count from 0."""
    return {
        "x0": segment["candidate_start"] // across - 0.5,
        "x1": (segment["candidate_end"] - 1) // across + 0.5,
        "y0": segment["query_start"] // down - 0.5,
        "y1": (segment["query_end"] - 1) // down + 0.5,
        "line": {"color": OUTLINE, "width": 1.5},
        "label": {
            "text": f"segment {number}",
            "textposition": "top right",
            "font": {"color": OUTLINE},
        },
    }
