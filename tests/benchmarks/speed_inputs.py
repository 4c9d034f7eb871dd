"""What the speed benchmarks run on: pairs, a training batch, real structures, stores."""

from __future__ import annotations

import gzip
import zlib
from functools import cache
from pathlib import Path

import gemmi
import numpy as np
import torch

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.models.modeling_backbone import pad_residues

DATA = Path(__file__).parents[3] / "shared" / "data"
CHAINS = DATA / "structures" / "masif_chains"
SEQUENCES = DATA / "sequences" / "pretrain.fasta.gz"
LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
NOISE = 0.1
SHORTEST, LONGEST = 50, 1024
RELATED = 10
"""One protein of a store in so many has a stretch of the query."""


def make_model(width: int, head_size: int) -> PlasmaModel:
    """Build a head with random parameters, the same in every process."""
    torch.manual_seed(0)
    return PlasmaModel(PlasmaConfig(embedding_size=width, head_size=head_size)).eval()


def random_lengths(count: int, low: int, high: int, seed: int = 0) -> list[tuple[int, int]]:
    """Draw the lengths of query and candidate."""
    drawn = np.random.default_rng(seed).integers(low, high + 1, (count, 2))
    return [(int(n), int(m)) for n, m in drawn]


def make_pairs(lengths, width: int, seed: int = 0):
    """Draw embeddings; a third of the shorter protein stands, with noise, in the other as well."""
    generator = torch.Generator().manual_seed(seed)
    queries = [torch.randn(n, width, generator=generator) for n, _ in lengths]
    candidates = [torch.randn(m, width, generator=generator) for _, m in lengths]
    for query, candidate in zip(queries, candidates, strict=True):
        at, to = _common(len(query), len(candidate))
        noise = torch.randn(at.stop - at.start, width, generator=generator)
        candidate[to] = query[at] + NOISE * noise
    return queries, candidates


def make_sequences(lengths, seed: int = 0) -> list[tuple[str, str]]:
    """Draw sequences of these lengths with the same stretches in common as `make_pairs` gives."""
    rng = np.random.default_rng(seed)
    pairs = []
    for n, m in lengths:
        query, candidate = (rng.choice(LETTERS, size) for size in (n, m))
        at, to = _common(n, m)
        candidate[to] = query[at]
        pairs.append(("".join(query), "".join(candidate)))
    return pairs


def make_training_batch(lengths, width: int, seed: int = 0):
    """Draw pairs with labels, every other one positive, its sites where the proteins agree.

    Returns the arguments of `PlasmaModel`, padded, and a list of those of `PublishedForm.loss`.
    """
    queries, candidates = make_pairs(lengths, width, seed)
    single = []
    for i, (query, candidate) in enumerate(zip(queries, candidates, strict=True)):
        at, to = _common(len(query), len(candidate))
        query_sites, candidate_sites = torch.zeros(len(query)), torch.zeros(len(candidate))
        query_sites[at], candidate_sites[to] = 1.0, 1.0
        single.append((query, candidate, (i + 1) % 2, query_sites, candidate_sites))
    query, query_mask = pad_residues(queries)
    candidate, candidate_mask = pad_residues(candidates)
    padded = {
        "query_embeddings": query,
        "candidate_embeddings": candidate,
        "query_mask": query_mask,
        "candidate_mask": candidate_mask,
        "labels": torch.tensor([float(pair[2]) for pair in single]),
        "query_site_labels": pad_residues([pair[3][:, None] for pair in single])[0][..., 0],
        "candidate_site_labels": pad_residues([pair[4][:, None] for pair in single])[0][..., 0],
    }
    return padded, single


def _common(n: int, m: int) -> tuple[slice, slice]:
    """Say where the common stretch stands in the query and in the candidate."""
    size = max(1, min(n, m) // 3)
    start, to = n // 4, m // 2
    return slice(start, start + size), slice(to, to + size)


@cache
def _chains() -> list[tuple[np.ndarray, str]]:
    """Read the real chains, the shortest first: coordinates of CA in Å, and sequence."""
    found = []
    for path in sorted(CHAINS.glob("*.pdb.gz")):
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        residues = [
            residue
            for residue in structure[0][0].get_polymer().first_conformer()
            if residue.find_atom("CA", "*")
        ]
        atoms = [residue.find_atom("CA", "*").pos.tolist() for residue in residues]
        letters = (gemmi.find_tabulated_residue(r.name).one_letter_code.upper() for r in residues)
        sequence = "".join(letter if letter.isalpha() else "X" for letter in letters)
        found.append((np.array(atoms), sequence))
    return sorted(found, key=lambda chain: len(chain[1]))


def structures_like(lengths) -> list[tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]]]:
    """Find two real chains of about the lengths of each pair, never a chain with itself.

    Raises:
        FileNotFoundError: If the structures are not beside this clone.
    """
    if not CHAINS.is_dir():
        raise FileNotFoundError(f"{CHAINS} is not there; TM-align is left out")
    chains = _chains()
    sizes = np.array([len(sequence) for _, sequence in chains])
    pairs = []
    for n, m in lengths:
        first, second = np.argsort(abs(sizes - n))[0], np.argsort(abs(sizes - m))[:2]
        pairs.append((chains[first], chains[second[0] if second[0] != first else second[1]]))
    return pairs


def store_sequences(count: int, longest: int = LONGEST) -> dict[str, str]:
    """Draw real sequences of 50 to 1024 residues, or random ones where the file is not there."""
    rng = np.random.default_rng(0)
    if not SEQUENCES.is_file():
        sizes = rng.integers(SHORTEST, longest + 1, count)
        return {f"P{i}": "".join(rng.choice(LETTERS, n)) for i, n in enumerate(sizes)}
    with gzip.open(SEQUENCES, "rt") as file:
        records = [record.split("\n", 1) for record in file.read().split(">")[1:]]
    sequences = [lines.replace("\n", "") for _, lines in records]
    fitting = sorted({s for s in sequences if SHORTEST <= len(s) <= longest})
    return {f"P{i}": fitting[k] for i, k in enumerate(rng.permutation(len(fitting))[:count])}


class RandomEmbedder:
    """Embed by random numbers that depend on the sequence; some have a stretch of the query."""

    def __init__(self, width: int, query_residues: int = 300):
        self.hidden_size = width
        self.fingerprint = {"backbone": f"random/{width}", "recipe": "random"}
        self.query = torch.randn(
            query_residues, width, generator=torch.Generator().manual_seed(width)
        )

    def embed(self, sequences):
        return [self._embed(sequence) for sequence in sequences]

    def _embed(self, sequence):
        seed = zlib.crc32(sequence.encode())
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(sequence), self.hidden_size, generator=generator)
        if seed % RELATED == 0:
            at, to = _common(len(self.query), len(sequence))
            rows[to] = self.query[at] + NOISE * rows[to]
        return rows
