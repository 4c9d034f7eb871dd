"""Pictures of a retrieval: both kinds of vectors on a plane, losses by epoch, all similarities.

Each picture is written with its numbers: a PNG, SVG or PDF file, and a JSON file of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Vectors = NDArray[np.float32]
KINDS = {"sequences": ("#1f77b4", "o"), "structures": ("#d62728", "^")}
LOSS_COLOURS = ("#1f77b4", "#d62728")
MOST_LINES = 40
"""Pairs up to which each sequence is joined to its structure by a line."""


def draw_planes(
    stages: Mapping[str, tuple[Vectors, Vectors]], path: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Draw sequences and structures by t-SNE, side by side for each stage of training.

    Args:
        stages: Sequence vectors and structure vectors, `(pairs, shared)` each, by what the stage
            is called, such as "before training".
        path: Picture to write.
        seed: Of t-SNE.

    Returns:
        What the JSON file beside the picture holds: places `(pairs, 2)` by stage and kind.

    Raises:
        ImportError: If matplotlib or scikit-learn is not installed.
        ValueError: If there are fewer than three pairs.
    """
    places = {name: _on_plane(*vectors, seed) for name, vectors in stages.items()}
    figure = _figure(4.8 * len(places), 4.6)
    all_axes = np.ravel(figure.subplots(1, len(places)))
    for axes, (name, kinds) in zip(all_axes, places.items(), strict=True):
        axes.set(title=name, xticks=[], yticks=[])
        pairs = list(zip(*kinds.values(), strict=True))
        for sequence, structure in pairs if len(pairs) <= MOST_LINES else []:
            axes.plot(*zip(sequence, structure, strict=True), color="#999999", lw=0.6, zorder=0)
        for kind, spots in kinds.items():
            colour, marker = KINDS[kind]
            axes.scatter(*np.array(spots).T, s=14, c=colour, marker=marker, label=kind)
        axes.legend(fontsize=8)
    return _write(figure, path, {"stages": places, "seed": seed})


def _on_plane(sequences: Vectors, structures: Vectors, seed: int) -> dict[str, list[list[float]]]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            'this picture needs scikit-learn; pip install "plasma-hf[evaluate]"'
        ) from error
    count = len(sequences)
    if count < 3:
        raise ValueError(f"{count} pairs make no picture; give at least 3")
    # t-SNE needs fewer neighbours than points, and is usually run with about 30.
    neighbours = min(30.0, (2 * count - 1) / 3)
    plane = TSNE(perplexity=neighbours, metric="cosine", init="random", random_state=seed)
    places = plane.fit_transform(np.concatenate([sequences, structures]).astype(np.float64))
    rounded = np.round(places.astype(float), 3)
    return {"sequences": rounded[:count].tolist(), "structures": rounded[count:].tolist()}


def draw_losses(losses: Mapping[str, Sequence[float]], path: str | Path) -> dict[str, Any]:
    """Draw training losses by epoch, each of two on an axis of its own.

    Scales of different losses cannot be compared, hence the two axes.

    Args:
        losses: Mean loss of each epoch by the name of the loss, one or two.
        path: Picture to write.

    Returns:
        What the JSON file beside the picture holds.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are more than two.
    """
    if not 1 <= len(losses) <= 2:
        raise ValueError(f"{len(losses)} losses do not fit on two axes; give one or two")
    figure = _figure(6.4, 4.2)
    first = figure.subplots()
    first.set_xlabel("epoch")
    for number, (name, values) in enumerate(losses.items()):
        axes = first.twinx() if number else first
        colour = LOSS_COLOURS[number]
        axes.plot(range(1, len(values) + 1), values, color=colour)
        axes.set_ylabel(f"training loss, {name}", color=colour)
        axes.tick_params(axis="y", colors=colour)
    return _write(figure, path, {"losses": {name: list(v) for name, v in losses.items()}})


def draw_heat_map(
    similarity: NDArray[np.floating], ids: Sequence[str], path: str | Path
) -> dict[str, Any]:
    """Draw all cosines, sequences from top to bottom, structures from left to right.

    Args:
        similarity: `(sequences, structures)`.
        ids: Of the pairs, in order.
        path: Picture to write.

    Returns:
        What the JSON file beside the picture holds.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _figure(6.0, 5.2)
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set(xlabel="structures", ylabel="sequences")
    rounded = np.round(np.asarray(similarity, dtype=float), 4).tolist()
    return _write(figure, path, {"ids": list(ids), "cosines": rounded})


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib; pip install "plasma-hf[plot]"') from error
    # A Figure without pyplot draws by Agg: no screen is needed, and nothing stays in memory.
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: str | Path, numbers: dict[str, Any]) -> dict[str, Any]:
    path = Path(path)
    # Without the date, the same numbers give the same file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return numbers
