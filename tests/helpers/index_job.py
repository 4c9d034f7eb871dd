"""A stub of a retrieval model, helices as structures, and a build that tests stop and resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gemmi
import numpy as np
import torch
from torch import nn

from plasma_hf.models.protein import STANDARD_RESIDUES
from plasma_hf.search import IndexReport, build_index
from tests.helpers.kill_points import serve

RECORDS_PER_SHARD = 500
WIDTH = 16
# N, CA, C and O of an ideal helix: radius and angle (degrees) about its axis, and place along it.
HELIX = {
    "N": (1.55, -27.0, -0.9),
    "CA": (2.29, 0.0, 0.0),
    "C": (1.65, 26.0, 1.1),
    "O": (2.0, 22.0, 2.3),
}


class Composition(nn.Module):
    """Embed a protein as a random projection of what it is made of; quick, and no model at all."""

    def __init__(self, seed: int = 0, name: str = "tiny/composition") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(len(STANDARD_RESIDUES), WIDTH, generator=generator))
        self.config = SimpleNamespace(name_or_path=name, plm_recipe="raw")
        self.calls, self.embedded = 0, 0

    @torch.no_grad()
    def embed_sequences(self, sequences: list[str], batch_size: int = 32) -> torch.Tensor:
        if any("O" in sequence for sequence in sequences):
            raise ValueError("pyrrolysine is too much for me")
        self.calls += 1
        self.embedded += len(sequences)
        counts = [
            [sequence.count(letter) for letter in STANDARD_RESIDUES] for sequence in sequences
        ]
        return torch.nn.functional.normalize(torch.tensor(counts).float() @ self.weight, dim=-1)

    def embed_structures(self, structures: list[Any], batch_size: int = 8) -> torch.Tensor:
        return self.embed_sequences([structure.sequence for structure in structures])

    def explain_sequence(self, sequence: str) -> torch.Tensor:
        return torch.softmax(torch.arange(float(len(sequence))), dim=0)  # the last residue most

    def explain_structure(self, structure: Any) -> torch.Tensor:
        return self.explain_sequence(structure.sequence).flip(0)  # the first one most


def make_records(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    generator = np.random.default_rng(seed)
    letters = np.array(list(STANDARD_RESIDUES))
    lengths = generator.integers(20, 60, count)
    return [
        (f"P{i}", "".join(generator.choice(letters, length)), f"made.fasta:P{i}")
        for i, length in enumerate(lengths)
    ]


def write_helix(path: Path, chains: dict[str, str], first: int = 1) -> Path:
    """Write a PDB file of ideal helices, one a chain, side by side."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    for place, (name, sequence) in enumerate(chains.items()):
        chain = gemmi.Chain(name)
        for i, letters in enumerate(
            gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)
        ):
            residue = gemmi.Residue()
            residue.name, residue.seqid = letters, gemmi.SeqId(str(first + i))
            for atom_name, (radius, angle, height) in HELIX.items():
                turn = np.radians(100 * i + angle)
                atom = gemmi.Atom()
                atom.name, atom.element = atom_name, gemmi.Element(atom_name[0])
                atom.pos = gemmi.Position(
                    radius * np.cos(turn) + 15 * place, radius * np.sin(turn), 1.5 * i + height
                )
                residue.add_atom(atom)
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    structure.setup_entities()
    structure.write_pdb(str(path))
    return path


def run(folder: str | Path, count: int = 10_000) -> IndexReport:
    model = Composition()
    return build_index(model, make_records(count), folder, records_per_shard=RECORDS_PER_SHARD)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run)
