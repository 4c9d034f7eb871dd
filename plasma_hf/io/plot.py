"""Pictures of a result: its plan, its alignment, and a dot-plot of its sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.alignment_result import (
    BLOCK,
    SIDES,
    AlignmentResult,
    Hit,
    columns,
    residue_labels,
    statistics,
    to_text,
    written_rows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from ..models.protein import Protein


CELLS = 250  # cells along a side that a picture can show; a longer protein shares them
OUTLINE, MARK = "#d9822b", "#b01030"
SIZE, ADVANCE, LEADING = 9, 0.60205, 1.25  # of letters: points, and em (DejaVu Sans Mono)
EXACT: Any = {"svg.hashsalt": "plasma_hf", "text.hinting": "none"}
AT_ONCE = 10  # letters that are set as one text: what is rounded of their places does not add up
LONGEST = 100  # letters of a line
DARKEST = 0.5  # of the colour scale, where black letters can still be read


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return a figure, sizes in inches; without pyplot it needs no screen, and is forgotten."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures need matplotlib; install it with: pip install "plasma-hf[plot]"'
        ) from error
    figure = Figure(figsize=(width, height), layout=layout)
    # A notebook shows it, as it does those of pyplot.
    setattr(figure, "_repr_png_", partial(_as_png, figure))  # noqa: B010
    return figure


def _as_png(figure: Figure) -> bytes:
    from matplotlib import rc_context

    with rc_context(EXACT):
        figure.savefig(file := BytesIO(), format="png", dpi=100)
    return file.getvalue()


def save_figure(figure: Figure, path: str | Path, title: str = "", description: str = "") -> None:
    """Write a figure, with what it shows in words where the format has a place for it.

    Dates and random names are left out, so that the same numbers give the same file.
    """
    from matplotlib import rc_context

    told = {"Title": title, "Description": description}
    told = {name: text for name, text in told.items() if text}
    kinds: dict[str, dict[str, str | None]] = {
        ".svg": {**told, "Date": None},
        ".png": {**told},
        ".pdf": {"Title": title or None, "Subject": description or None, "CreationDate": None},
    }
    with rc_context(EXACT):
        figure.savefig(path, dpi=150, metadata=kinds.get(Path(path).suffix.lower()))


def draw(result: AlignmentResult, path: str | Path | None = None, kind: str = "plan") -> Figure:
    """Draw one of `PICTURES`; see `AlignmentResult.plot`."""
    if kind not in PICTURES:
        raise ValueError(f"there is no picture {kind!r}; give one of {', '.join(PICTURES)}.")
    return PICTURES[kind](result, path)


def plot_result(
    result: AlignmentResult,
    path: str | Path | None = None,
    marks: Iterable[tuple[int, int, str]] = (),
) -> Figure:
    """Draw a plan as a heat map, with its segments outlined and numbered, the query downwards.

    Axes have the numbers of a structure's authors, else positions from 1. Without a plan, those
    pairs are drawn that are aligned. In a large plan a cell shows the highest plan weight of the
    residues that share it, so that no thin diagonal gets lost.

    Args:
        result: That of a pair; ask the pipeline for `return_plan=True`.
        path: File to write; its ending says the format (`.png`, `.svg`, `.pdf`, ...).
        marks: Residue pairs to point out, `(query index, candidate index, label)`, 0-based.

    Example:
        >>> from plasma_hf.models.protein import Protein
        >>> me = Protein("me", "MKVLA")
        >>> plot_result(AlignmentResult({"plan": np.eye(4), "segments": []}, me, me))
        Traceback (most recent call last):
        ...
        ValueError: a plan of shape (4, 4) cannot be drawn for me and me; give (5, 5), for one pair.
    """
    whose = "plan weight" if result.get("plan") is not None else "plan weight of aligned pairs"
    figure, axes = _heat_map(result, result.plan_or_pairs().numpy(), whose, (0.0, 1.0))
    _point_out(axes, marks, len(result.candidate))
    return _finished(figure, path, result, "Plan")


def plot_dots(result: AlignmentResult, path: str | Path | None = None) -> Figure:
    """Draw a dot-plot of the sequences: repeats and swapped parts are diagonals of their own.

    A residue pair has the mean BLOSUM62 score of the residues around both (`load_backbone
    ("substitution")`, whichever model aligned them). A plan aligns each residue once, so of a
    protein with itself it shows the main diagonal alone.

    Raises:
        ValueError: If a protein has no letters.
    """
    from ..backbones import load_backbone

    result.check_letters()
    backbone = load_backbone("substitution")
    query, candidate = backbone.embed(
        [result.query.sequence or "", result.candidate.sequence or ""]
    )
    offsets = np.arange(-backbone.model.config.window, backbone.model.config.window + 1)
    most = np.exp(-((offsets / backbone.model.config.decay) ** 2)).sum()
    scores = (query @ candidate.T).numpy() / most
    # Of unrelated residue pairs one in ten has 1 or more, one in 10,000 over 2.6.
    told = "mean BLOSUM62 score nearby (half-bits)"
    figure, _ = _heat_map(result, scores, told, (1.0, 4.0), "Greys")
    return _finished(figure, path, result, "Dot-plot")


def plot_alignment(result: AlignmentResult, path: str | Path | None = None) -> Figure:
    """Draw the alignment in rows of 60 columns, on a colour that is darker the surer a pair is.

    Between the rows stand the letters of identical pairs, at their ends residue numbers: those of a
    structure's authors, else positions from 1.

    Raises:
        ValueError: If a protein has no letters.
    """
    figure = new_figure(1, 1, layout=None)
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    result.check_letters()
    head = to_text(result, False, ()).strip().partition("\n\n")[0]
    lines = [line[:LONGEST] for line in head.splitlines()]
    coloured = []  # line, column and weights
    style: dict[str, Any] = {"vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "none"}
    style["cmap"] = ListedColormap(colormaps["Blues"](np.linspace(0, DARKEST, 100)))
    for hit in result.hits:
        lines += ["", f"segment {hit.number}  {statistics(hit.segment)}", ""]
        for rows, weights in _blocks(hit):
            coloured.append((len(lines), len(rows[1]) - len(weights), weights))
            lines += rows
    across, down = max(map(len, lines)) + 4, len(lines) + (6 if coloured else 1)
    em = SIZE / 72
    figure.set_size_inches(across * ADVANCE * em, down * LEADING * em)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-2, across - 2), ylim=(down - 1, -1))
    axes.axis("off")
    for place, line in enumerate(lines):
        _write(axes, place, line)
    for place, start, weights in coloured:
        extent = (start, start + len(weights), place + 2.5, place - 0.5)
        cells = axes.imshow([weights], extent=extent, **style)
    if coloured:
        bar = figure.add_axes((11 / across, 4 / down, 30 / across, 1 / down))
        figure.colorbar(cells, cax=bar, orientation="horizontal")
        told = "plan weight; the letter between two rows: identical"
        bar.set_xlabel(told, fontsize=SIZE, loc="left")
        bar.tick_params(labelsize=SIZE)
    return _finished(figure, path, result, "Alignment")


PICTURES = {"plan": plot_result, "alignment": plot_alignment, "dots": plot_dots}


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
    told = f"Observed and expected p-values of {len(observed)} unrelated pairs"
    save_figure(
        figure, path, told, f"{told}, on logarithmic axes, and the diagonal of uniform ones"
    )


def _heat_map(
    result: AlignmentResult,
    weights: NDArray[Any],
    told: str,
    limits: tuple[float, float],
    colours: str = "Blues",
) -> tuple[Figure, Axes]:
    rows, cols = shape = len(result.query), len(result.candidate)
    if weights.shape != shape:
        raise ValueError(
            f"a plan of shape {weights.shape} cannot be drawn for {result.query.id} and "
            f"{result.candidate.id}; give {shape}, for one pair."
        )
    # The true proportions, as far as both axes stay readable.
    height = float(np.clip(5.2 * rows / cols, 3.0, 8.0))
    figure = new_figure(6.4, height + 0.9)
    axes = figure.subplots()
    pooled, (down, across) = _pool(weights)
    extent = (0.5, pooled.shape[1] * across + 0.5, pooled.shape[0] * down + 0.5, 0.5)
    options: dict[str, Any] = {"cmap": colours, "aspect": "auto", "interpolation": "nearest"}
    image = axes.imshow(pooled, vmin=limits[0], vmax=limits[1], extent=extent, **options)
    figure.colorbar(image, ax=axes, label=told, shrink=0.8, pad=0.02)
    axes.set(xlim=(0.5, cols + 0.5), ylim=(rows + 0.5, 0.5))
    for side, axis in (("candidate", axes.xaxis), ("query", axes.yaxis)):
        protein = getattr(result, side)
        ticks, numbers = _ticks(protein)
        axis.set_ticks(list(ticks), list(ticks.values()))
        name = "" if protein.id == side else f"{_short(protein.id)}\n"
        axis.set_label_text(f"{name}{side} residue{numbers}", parse_math=False)
    ids = f"{_short(result.query.id)} and {_short(result.candidate.id)}"
    about: dict[str, Any] = {"fontsize": 10, "pad": 16, "parse_math": False}
    axes.set_title(f"{ids}\n{statistics(result)}", **about)
    for hit in result.hits:
        _outline(axes, hit.number, hit.segment, cols)
    return figure, axes


def _finished(
    figure: Figure, path: str | Path | None, result: AlignmentResult, what: str
) -> Figure:
    """Write the figure, if it is to be, with what it shows in words."""
    ids = f"{result.query.id} and {result.candidate.id}"
    told = [f"query {result.query.id}, candidate {result.candidate.id}, {statistics(result)}"]
    labels = {side: result.residues(side) for side in SIDES}
    for hit in result.hits:
        ends = (
            f"{side} {labels[side][hit.segment[f'{side}_start']]} to "
            f"{labels[side][hit.segment[f'{side}_end'] - 1]}"
            for side in SIDES
        )
        told.append(f"segment {hit.number}: {', '.join(ends)}, {statistics(hit.segment)}")
    if path is not None:
        save_figure(
            figure,
            path,
            f"{what} of {ids}",
            "; ".join(told if result.hits else [*told, "no segment"]),
        )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}\N{HORIZONTAL ELLIPSIS}"


def _pool(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the highest weight of each cell, and how many residues a cell holds."""
    down, across = (-(-size // CELLS) for size in weights.shape)
    rows = np.maximum.reduceat(weights, np.arange(0, weights.shape[0], down), axis=0)
    return np.maximum.reduceat(rows, np.arange(0, weights.shape[1], across), axis=1), (down, across)


def _ticks(protein: Protein) -> tuple[dict[int, str], str]:
    """Return places from 1 and the numbers that stand there, and whose numbers they are.

    The first residue of each chain has one, and some seven round numbers without insertion code:
    16, 50, 100, 150, 200 of trypsin. What comes too soon after another is left out.
    """
    labels = residue_labels(protein)
    named = [label.rpartition(":")[::2] for label in labels]
    chains = list(dict.fromkeys(chain for chain, _ in named))
    plain = [int(one) if one.lstrip("-").isdigit() else None for _, one in named]
    starts = {next(at for at, (chain, _) in enumerate(named) if chain == one) for one in chains}
    steps = (lead * 10**power for power in range(9) for lead in (1, 2, 5))
    for step in steps:
        round_ones = [at for at, one in enumerate(plain) if one is not None and one % step == 0]
        if len(round_ones) <= 7:
            break
    ticks: dict[int, str] = {}
    for at in sorted({*starts, *round_ones}):
        if not ticks or at + 1 - max(ticks) > len(labels) / 16:
            ticks[at + 1] = labels[at] if len(chains) > 1 else named[at][1]
    whose = "chain and " if len(chains) > 1 else f"chain {chains[0]}, "
    return ticks, f", {whose}author numbers" if protein.structure else ""


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


def _blocks(hit: Hit) -> Iterator[tuple[list[str], list[float]]]:
    """Yield query, identical letters, candidate and a blank line, and the weights of columns."""
    rows, laid_out = written_rows(hit), [weight for *_, weight in columns(hit.pairs)]
    for start in range(0, len(laid_out), BLOCK):
        weights = laid_out[start : start + BLOCK]
        query, marks, candidate, after = islice(rows, 4)
        # Where a pair is, the text has its mark.
        letters = zip(query, marks, candidate, strict=False)
        same = (a if a == b and mark != " " else " " for a, mark, b in letters)
        shown = [np.nan if weight is None else weight for weight in weights]
        yield [query, "".join(same), candidate, after], shown


def _write(axes: Axes, place: int, line: str) -> None:
    style: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": SIZE, "va": "center"}
    for start in range(0, len(line), AT_ONCE):
        part = line[start : start + AT_ONCE]
        at = start + len(part) - len(part.lstrip())
        axes.text(at, place, part.strip(), **style, parse_math=False)
