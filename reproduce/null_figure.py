"""Show what unrelated proteins score, and how true p-values are: `docs/null.svg`.

Run as `python -m reproduce.null_figure [--pairs 60000]`; needs `../shared` and matplotlib. Proteins
are SCOPe domains of folds that the default checkpoint was not calibrated on, and a pair is of two
folds. Prints the table of `docs/results.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaModel, load_backbone
from plasma_hf.io.plot import new_figure, save_figure
from plasma_hf.models.local_alignment import Calibration
from plasma_hf.search.calibration import joined_chains
from reproduce.default_checkpoint import labelled_domains

Array = NDArray[np.float64]
FIGURE = Path(__file__).parents[1] / "docs" / "null.svg"
PEPTIDES = (10, 22)
CLASSES = ((20, 80), (80, 150), (150, 250), (250, 1000))
"""Residues, as the geometric mean of both proteins."""
LONG_CLASSES = ((300, 600), (600, 1200), (1200, 3000))
LEVELS = (0.05, 0.01, 0.001, 0.0001)


def draw(
    domains: list[tuple[str, str]], pairs: int, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """Yield numbers of two domains of different folds."""
    while pairs:
        one, other = rng.integers(len(domains), size=2).tolist()
        if domains[one][0] != domains[other][0]:
            pairs -= 1
            yield one, other


def measure(model: PlasmaModel, count: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return query residues, candidate residues and raw score of pairs, `(pairs, 3)`, by kind.

    First domains and peptides against domains of other folds, then long proteins, which are domains
    one after another, and domains against themselves made unrelated, which have their composition.
    """
    rng = np.random.default_rng(1)
    domains = [(fold, one) for _, fold, one in labelled_domains()[1]]
    real = [sequence for _, sequence in domains]
    whole = project(model, real)
    found = {"domains": scored(model, whole, whole, draw(domains, count, rng))}
    starts = rng.random(len(domains))
    for size in PEPTIDES:
        first = [int(at * (len(one) - size + 1)) for at, one in zip(starts, real, strict=True)]
        cut = [one[at : at + size] for at, one in zip(first, real, strict=True)]
        pairs = draw(domains, count // 4, rng)
        found[f"{size} residues"] = scored(model, project(model, cut), whole, pairs)
    shuffled = ["".join(rng.permutation(list(one))) for one in real]
    made = {"shuffled": shuffled, "reversed": [one[::-1] for one in real]}
    itself = [(number, number) for number in range(len(real))]
    folds = np.array([fold for fold, _ in domains])
    sides = [project(model, some) for some in joined_chains(folds, real, rng)]
    every = product(range(len(sides[0])), range(len(sides[1])))
    joined = scored(model, *sides, every)
    mean = np.sqrt(joined[:, 0] * joined[:, 1])
    return found, {
        f"{low} to {high} residues, domains joined": joined[(mean >= low) & (mean < high)]
        for low, high in LONG_CLASSES
    } | {
        f"a domain, itself {kind}": scored(model, whole, project(model, some), itself)
        for kind, some in made.items()
    }


def project(model: PlasmaModel, sequences: list[str]) -> list[Tensor]:
    """Embed and project proteins."""
    return model.project_each(list(load_backbone("substitution").embed(sequences)))


@torch.no_grad()
def scored(
    model: PlasmaModel,
    queries: list[Tensor],
    candidates: list[Tensor],
    pairs: Iterable[tuple[int, int]],
) -> Array:
    """Return lengths and raw score of each pair."""
    rows = [(queries[one], candidates[other]) for one, other in pairs]
    return np.array(
        [(len(q), len(c), float(model.raw_scores(q, [c]))) for q, c in tqdm(rows, disable=None)]
    )


def by_length(found: dict[str, Array]) -> dict[str, Array]:
    """Divide pairs of domains into classes of length, and put peptides first."""
    mean = np.sqrt(found["domains"][:, 0] * found["domains"][:, 1])
    classes = {
        f"{low} to {high} residues": found["domains"][(mean >= low) & (mean < high)]
        for low, high in CLASSES
    }
    return {f"peptides of {kind}": found[kind] for kind in found if kind != "domains"} | classes


def p_values(null: Calibration, rows: Array) -> Array:
    """Return the p-value of each pair."""
    return np.array([null.p_value(raw, int(n), int(m)) for n, m, raw in rows])


def table(null: Calibration, classes: dict[str, Array]) -> Iterator[str]:
    """Yield lines of Markdown: the share of pairs at or below each p-value."""
    yield "| unrelated pairs | number |" + "".join(f" p ≤ {level:g} |" for level in LEVELS)
    yield "|---|--:|" + "--:|" * len(LEVELS)
    for kind, rows in classes.items():
        shares = [(p_values(null, rows) <= level).mean() for level in LEVELS]
        yield f"| {kind} | {len(rows):,} |" + "".join(f" {share:.2g} |" for share in shares)


def draw_figure(null: Calibration, classes: dict[str, Array], path: Path) -> None:
    """Draw raw scores with what was fitted, and p-values with how often they are reached."""
    matplotlib.rcParams |= {"svg.hashsalt": "null", "svg.fonttype": "none", "font.size": 9}
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for colour, (kind, rows) in enumerate(classes.items()):
        name = f"C{colour}"
        low, high = np.quantile(rows[:, 2], [0.001, 0.999])
        edges = np.linspace(low, high, 41)
        some = rows[:: max(1, len(rows) // 400)]  # whose distributions are averaged
        at_most = np.array(
            [
                1 - np.mean([null.p_value(edge, int(n), int(m)) for n, m, _ in some])
                for edge in edges
            ]
        )
        share = np.histogram(rows[:, 2], edges)[0] / len(rows) / np.diff(edges)
        left.stairs(share, edges, color=name, alpha=0.35, fill=True)
        left.plot((edges[1:] + edges[:-1]) / 2, np.diff(at_most) / np.diff(edges), color=name)
        p = np.sort(p_values(null, rows))
        kept = np.unique(np.geomspace(1, len(p), 200).astype(int)) - 1
        right.loglog(p[kept], (kept + 1) / len(p), color=name, label=kind)
    left.set(xlabel="raw score", ylabel="share of pairs per nat", xlim=(-5, None))
    left.set_title("Unrelated pairs (filled) and what was fitted (line)", fontsize=9)
    right.plot([1e-5, 1], [1e-5, 1], color="grey", linestyle=":")
    right.set(xlabel="p-value", ylabel="share of unrelated pairs at or below it")
    right.set(xlim=(1e-5, 1), ylim=(1e-5, 1))
    right.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.null_figure")
    parser.add_argument("--pairs", type=int, default=60_000)
    model = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT).eval()
    null = model.calibration
    assert null is not None  # the default checkpoint has one
    found, itself = measure(model, parser.parse_args(words).pairs)
    classes = by_length(found)
    draw_figure(null, classes, FIGURE)
    print("\n".join(table(null, classes | {"all domains": found["domains"]} | itself)))


if __name__ == "__main__":
    main()
