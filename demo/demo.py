"""Align two serine proteases and check that their catalytic residues find each other.

Run it from the repository: `python demo/demo.py [--plot demo/plan.png] [--model PATH_OR_ID]`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from transformers import pipeline
from transformers.utils import logging

import plasma_hf  # noqa: F401  registers the task
from plasma_hf.io.plot import plot_result
from plasma_hf.models.protein import read_records

HERE = Path(__file__).parent

TRIAD = {
    "His57": ("(?<=AA)H(?=C)", "AAHC"),
    "Asp102": ("(?<=NN)D(?=I.L)", "NNDI.L"),
    "Ser195": ("(?<=GD)S(?=GGP)", "GDSGGP"),
}
"""Catalytic residue, a pattern that finds it, and the family's motif as people write it."""

EXPLANATION = """\
The catalytic triad. Numbers of the residues are positions in chymotrypsinogen A, as everywhere in
this family. Where trypsin has them is told without any alignment, by the motifs that the family
conserves round each; every motif occurs once in either protein.
"""


def main() -> int:
    """Align, print, draw, check; return 0 if all three residues are paired."""
    options = read_options()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    query, candidate = read_records(HERE / "serine_proteases.fasta")
    align: Any = pipeline("protein-alignment", model=options.model)
    result = align((query, candidate), return_plan=True)

    print(result, end="\n\n")
    expected = expected_pairs(query.sequence, candidate.sequence)
    found = check_triad(expected, candidate.sequence, result["segments"])
    marks = [(i, j, name) for name, (i, j) in expected.items()]
    plot_result(result, options.plot, marks)
    print(f"\nThe plan as a picture: {options.plot}")
    return 0 if found else 1


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", default=HERE / "plan.png", help="picture to write")
    parser.add_argument("--model", help="folder or Hub id; the bundled model by default")
    return parser.parse_args()


def expected_pairs(query: str, candidate: str) -> dict[str, tuple[int, int]]:
    """Find the triad in both proteins by its motifs: indices, 0-based."""
    pairs = {}
    for name, (pattern, _) in TRIAD.items():
        [i], [j] = ([m.start() for m in re.finditer(pattern, s)] for s in (query, candidate))
        assert i == int(name[3:]) - 1, f"{name} is not at its position in chymotrypsinogen A"
        pairs[name] = i, j
    return pairs


def check_triad(
    expected: dict[str, tuple[int, int]], candidate: str, segments: list[dict[str, Any]]
) -> bool:
    """Print what each residue is aligned to; say whether that is always what was expected."""
    aligned = {i: (j, weight) for segment in segments for i, j, weight in segment["pairs"]}
    print(EXPLANATION)
    print("residue  motif    expected in trypsin  aligned to  plan weight")
    right = []
    for name, (i, j) in expected.items():
        partner, weight = aligned.get(i, (None, 0.0))
        spelled = "nothing" if partner is None else f"{candidate[partner]}{partner + 1}"
        right.append(partner == j)
        print(f"{name:<7}  {TRIAD[name][1]:<7}  {f'{candidate[j]}{j + 1}':<19}  ", end="")
        print(f"{spelled:<10}  {weight:.4f}  {'ok' if right[-1] else 'WRONG'}")
    return all(right)


if __name__ == "__main__":
    sys.exit(main())
