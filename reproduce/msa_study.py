"""Judge multiple alignments: `python -m reproduce.msa_study`; needs `../shared`, kalign, pyfamsa.

Reference alignments are those of BAliBASE 3 that are at hand, pair by pair. SP is the share of
reference pairs of residues that stand in one column, TC the share of reference columns, with all
proteins of a family, that are whole; means over families, in one run of one thread.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import plasma_hf  # noqa: F401  # has the pipeline
from plasma_hf.io.formats import markdown_table
from plasma_hf.models.protein import Protein
from plasma_hf.multiple import MultipleAlignment, align_many
from plasma_hf.search.database import default_pipeline

ALIGNMENTS = Path(__file__).parents[2] / "shared" / "data" / "alignments"
RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "multiple.md"
SETS = {"RV12": "balibase3_RV12_BB", "RV911": "balibase3_RV911_BOX"}
Method = Callable[[list[Protein]], MultipleAlignment]


@dataclass
class Family:
    """Proteins, and reference pairs of their residues."""

    proteins: dict[str, Protein] = field(default_factory=dict)
    pairs: list[tuple[str, str, np.ndarray]] = field(default_factory=list)

    def score(self, found: MultipleAlignment) -> tuple[float, float]:
        """Return SP and TC."""
        columns = dict(zip(self.proteins, found.columns, strict=True))
        right = [columns[a][p[:, 0]] == columns[b][p[:, 1]] for a, b, p in self.pairs if len(p)]
        whole = [len({columns[name][at] for name, at in one}) == 1 for one in self.columns()]
        return float(np.mean(np.concatenate(right))), float(np.mean(whole)) if whole else np.nan

    def columns(self) -> list[list[tuple[str, int]]]:
        """Return the reference columns that have a residue of each protein."""
        near = defaultdict(set)
        for a, b, pairs in self.pairs:
            for i, j in pairs.tolist():
                near[a, i].add((b, j))
                near[b, j].add((a, i))
        found, seen = [], set()
        for start in near:
            column, rest = set(), [start]
            while rest:
                one = rest.pop()
                if one not in seen:
                    seen.add(one)
                    column.add(one)
                    rest += near[one]
            if len(column) == len({name for name, _ in column}) == len(self.proteins):
                found.append(sorted(column))
        return found


def families(name: str) -> list[Family]:
    """Read the families of a set."""
    found: dict[str, Family] = defaultdict(Family)
    for row in json.loads(gzip.decompress((ALIGNMENTS / f"{name}.json.gz").read_bytes())):
        family = found[row["set"]]
        for side in "ab":
            family.proteins[row[side]] = Protein(row[side], row[f"seq_{side}"])
        pairs = np.array(row.get("core_pairs") or row["pairs"]).reshape(-1, 2)
        family.pairs.append((row["a"], row["b"], pairs))
    return [family for _, family in sorted(found.items())]


def kalign(proteins: Sequence[Protein]) -> MultipleAlignment:
    """Align by kalign, as it is."""
    made: Any = import_module("kalign")
    rows = made.align([one.sequence for one in proteins], seq_type="protein")
    return MultipleAlignment(tuple(proteins), tuple(rows))


def famsa(proteins: Sequence[Protein]) -> MultipleAlignment:
    """Align by FAMSA, as it is."""
    made: Any = import_module("pyfamsa")
    given = [made.Sequence(one.id.encode(), (one.sequence or "").encode()) for one in proteins]
    rows = {one.id.decode(): one.sequence.decode() for one in made.Aligner(threads=1).align(given)}
    return MultipleAlignment(tuple(proteins), tuple(rows[one.id] for one in proteins))


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    align = default_pipeline()
    methods: dict[str, Method] = {
        "PLASMA-PF": lambda some: align_many(some, align),
        "kalign": kalign,
        "FAMSA": famsa,
    }
    sets = {name: families(file) for name, file in SETS.items()}
    rows = []
    for method, run in methods.items():
        row: list[Any] = [method]
        for name, every in sets.items():
            start, scores = time.monotonic(), []
            for family in tqdm(every, f"{method}, {name}", disable=None):
                scores.append(family.score(run(list(family.proteins.values()))))
            sp, tc = np.nanmean(scores, 0)
            row += [f"{sp:.3f}", f"{tc:.3f}", f"{time.monotonic() - start:.0f}"]
        rows.append(row)
    head = ["aligner"]
    for name, every in sets.items():
        head += [f"{name} ({len(every)}), SP", "TC", "s"]
    RESULTS.write_text(f"{markdown_table(head, rows)}\n")


if __name__ == "__main__":
    main()
