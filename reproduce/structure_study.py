"""Compare aligned residues with those of TM-align: the default, and backbones that read structures.

Run as `python -m reproduce.structure_study ../shared/data/structures/masif_chains`; pairs of chains
are drawn, and those counted whose TM-score is above .5 by both lengths. The table goes to
`results/structure_study.md`.
"""

from __future__ import annotations

import random
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import tmtools
from tqdm import tqdm
from transformers import pipeline

import plasma_hf
from plasma_hf.io.formats import markdown_table
from plasma_hf.models.protein import Protein, files_below, read_records

RESULTS = Path(__file__).parent / "results" / "structure_study.md"
BACKBONES = ("substitution", "near", "3di")
DRAWN, LEAST_SCORE, RESIDUES = 6000, 0.5, range(40, 501)
BINS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.35), (0.35, 1.01))
Pairs = set[tuple[int, int]]


def read_chains(folder: Path) -> list[Protein]:
    """Read the chains of a folder that are neither short nor long."""
    chains: list[Protein] = []
    for file in files_below(folder):
        try:
            chains += [one for one in read_records(file) if len(one) in RESIDUES]
        except (ValueError, OSError):  # no structure
            continue
    return chains


def tm_align(*chains: Protein) -> tuple[float, Pairs]:
    """Return the lower TM-score of two chains, and the residue pairs that give it."""
    places: list[Any] = []
    for chain in chains:
        assert chain.structure is not None
        ca = chain.structure.backbone[:, 1].double().numpy()
        places.append((np.flatnonzero(np.isfinite(ca).all(1)), ca))
    both = zip(chains, places, strict=True)
    letters = ["".join((chain.sequence or "")[i] for i in kept) for chain, (kept, _) in both]
    found = tmtools.tm_align(*(ca[kept] for kept, ca in places), *letters)
    counts, pairs = [0, 0], set()
    for one, other in zip(found.seqxA, found.seqyA, strict=True):
        if "-" not in (one, other):
            pairs.add(tuple(int(kept[n]) for (kept, _), n in zip(places, counts, strict=True)))
        counts = [counts[0] + (one != "-"), counts[1] + (other != "-")]
    return min(found.tm_norm_chain1, found.tm_norm_chain2), pairs


def judge(name: str, counted: list[tuple[Protein, Protein, Pairs]]) -> list[list[str]]:
    """Return lines of a backbone: F1 and share that is significant, by identity."""
    align, rows = pipeline("protein-alignment", backbone=name), []
    for one, other, true in tqdm(counted, name, disable=None):
        result = align((one, other))
        called = {(i, j) for segment in result["segments"] for i, j, _ in segment["pairs"]}
        letters = one.sequence or "", other.sequence or ""
        identity = np.mean([letters[0][i] == letters[1][j] for i, j in true])
        f1 = 2 * len(true & called) / (len(true) + len(called))
        rows.append((identity, f1, result["p_value"] <= 0.01))
    table = np.array(rows, dtype=float)
    lines = [[name, "all", str(len(table)), *(f"{x:.3f}" for x in table[:, 1:].mean(0))]]
    for low, high in BINS:
        some = table[(table[:, 0] >= low) & (table[:, 0] < high)]
        if len(some):
            told = f"{low:.0%} to {min(high, 1):.0%}"
            lines.append([name, told, str(len(some)), *(f"{x:.3f}" for x in some[:, 1:].mean(0))])
    return lines


def main(folder: Path) -> None:
    """Run the command."""
    plasma_hf.register()
    chains = read_chains(folder)
    drawn = list(combinations(range(len(chains)), 2))
    random.Random(0).shuffle(drawn)
    counted = []
    for i, j in tqdm(drawn[:DRAWN], "TM-align", disable=None):
        one, other = chains[i], chains[j]
        if 0.5 < len(one) / len(other) < 2:
            score, pairs = tm_align(one, other)
            if score > LEAST_SCORE:
                counted.append((one, other, pairs))
    head = ("backbone", "identity", "pairs", "F1", "p ≤ .01")
    lines = [line for name in BACKBONES for line in judge(name, counted)]
    RESULTS.write_text(f"{markdown_table(head, lines, left=2)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
