"""Small structures that look like proteins to a reader: curves with all backbone atoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from plasma_hf.io.structures import StructurePair, pair_of
from plasma_hf.models.protein import Structure

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NAMES = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR".split()


def make_structure(name, length, seed):
    """Draw a chain whose letters turn it: structure and sequence have something in common."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(0, len(LETTERS), length)
    turn = np.cumsum(0.3 + letters / len(LETTERS))
    steps = np.stack([np.cos(turn), np.sin(turn), 0.2 + 0 * turn], axis=1)
    alpha = 3.8 * np.cumsum(steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    atoms = alpha[:, None] + np.array([[-1.2, 0.5, 0], [0, 0, 0], [1.2, 0.5, 0], [1.6, 1.6, 0.2]])
    return Structure(
        name,
        "".join(LETTERS[letter] for letter in letters),
        torch.tensor(atoms, dtype=torch.float32),
        tuple(str(i + 1) for i in range(length)),
        ("A",) * length,
    )


def make_pairs(count=24, seed=0) -> list[StructurePair]:
    lengths = np.random.default_rng(seed).integers(20, 32, count)
    return [
        pair_of(make_structure(f"p{i:02d}", int(n), 1000 * seed + i)) for i, n in enumerate(lengths)
    ]


def write_pdb(structure: Structure, path: Path) -> None:
    lines = []
    rows = zip(structure.sequence, structure.backbone.tolist(), strict=True)
    for number, (letter, atoms) in enumerate(rows, start=1):
        for atom, (x, y, z) in zip(("N", "CA", "C", "O"), atoms, strict=True):
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {atom:<3s} {NAMES[LETTERS.index(letter)]} "
                f"A{number:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {atom[0]}"
            )
    path.write_text("\n".join([*lines, "END", ""]))
