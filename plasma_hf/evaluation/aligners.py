"""What an evaluation compares: models and baselines that give pairs a score, and maybe a plan."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.pairs import ProteinPair, SiteProtein
from ..data.store import Embedder, EmbeddingStore
from ..models.configuration_plasma import PlasmaConfig
from ..models.local_alignment import best_in_order
from ..models.modeling_plasma import PlasmaModel
from ..models.protein import STRUCTURE_SUFFIXES, Protein, read_protein

AlignmentPath = NDArray[np.int64]
"""Aligned residues, 0-based, `(pairs, 2)`."""
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class AlignedPair:
    """A score, larger for a likelier match, and a plan, `(query_residues, candidate_residues)`."""

    score: float
    plan: NDArray[np.floating] | None = None  # None from an aligner that gives scores alone

    @classmethod
    def from_path(cls, score: float, path: AlignmentPath, pair: ProteinPair) -> AlignedPair:
        """Write an alignment path as a plan of zeros and ones."""
        plan = np.zeros((len(pair.query.sequence), len(pair.candidate.sequence)), dtype=np.float32)
        plan[path[:, 0], path[:, 1]] = 1.0
        return cls(float(score), plan)


class Aligner(Protocol):
    """Anything that aligns pairs. It raises for a pair that it cannot align, and skips none."""

    name: str

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in their order."""


class EmbeddingSource(Protocol):
    """Anything that gives the residue embeddings of a sequence."""

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings `(residues, hidden)`, float32, by sequence."""


@dataclass(eq=False)
class StoredEmbeddings:
    """Read embeddings from a store, which has every sequence that will be asked for."""

    store: EmbeddingStore

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings by sequence; the KeyError for a missing one says how to add it."""
        read, wanted = self.store.read_sequence, dict.fromkeys(sequences)
        return {s: read(s, "embeddings", torch.float32) for s in wanted}


@dataclass(eq=False)
class CachedEmbeddings:
    """Embed a sequence when it is first asked for, and keep `max_residues` of those used last.

    Example:
        >>> from plasma_hf import load_backbone
        >>> source = CachedEmbeddings(load_backbone("substitution"))
        >>> source.get(["MKVLA"])["MKVLA"].shape
        torch.Size([5, 420])
    """

    embedder: Embedder
    max_residues: int = 200_000
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def get(self, sequences: Iterable[str]) -> Mapping[str, Tensor]:
        """Return embeddings `(residues, hidden)`, float32, by sequence."""
        wanted = dict.fromkeys(sequences)
        missing = sorted((s for s in wanted if s not in self.kept), key=len)
        self.kept |= zip(missing, self.embedder.embed(missing), strict=True)
        found = {sequence: self.kept.pop(sequence) for sequence in wanted}
        self.kept |= found  # those used last are at the end
        while sum(map(len, self.kept.values())) > self.max_residues:
            del self.kept[next(iter(self.kept))]
        return found


def _embeddings(source: EmbeddingSource, pairs: Iterable[ProteinPair]) -> Mapping[str, Tensor]:
    return source.get(side.sequence for pair in pairs for side in (pair.query, pair.candidate))


# BLOSUM62 has no column for selenocysteine, pyrrolysine and I/L.
TO_BLOSUM = str.maketrans("UOJ", "CKX")
Mode = Literal["local", "global", "free-ends"]
Per = Literal["shorter", "columns"]


@cache
def _blosum_aligner(mode: Mode) -> Any:
    try:
        from Bio.Align import PairwiseAligner, substitution_matrices
    except ImportError as error:
        raise ImportError(
            "alignments of sequences need biopython; run: pip install biopython"
        ) from error
    made = PairwiseAligner(mode="local" if mode == "local" else "global")
    made.substitution_matrix = substitution_matrices.load("BLOSUM62")
    made.open_gap_score, made.extend_gap_score = -11.0, -1.0
    if mode == "free-ends":
        made.end_gap_score = 0.0
    return made


def align_sequences(query: str, candidate: str, mode: Mode) -> tuple[float, AlignmentPath]:
    """Align two sequences by BLOSUM62; a gap of k residues costs 11 + (k - 1), as in EMBOSS.

    Args:
        mode: "local" (Smith-Waterman), "global" (Needleman-Wunsch, end gaps charged) or
            "free-ends" (Needleman-Wunsch, end gaps free).

    Returns:
        The score and the path; without a positive local score 0 and an empty one.

    Example:
        >>> score, path = align_sequences("MKVLA", "WKVL", "local")
        >>> score, path.tolist()
        (13.0, [[1, 1], [2, 2], [3, 3]])
    """
    sides = (side.upper().translate(TO_BLOSUM) for side in (query, candidate))
    found = _blosum_aligner(mode).align(*sides)
    if mode == "local" and found.score <= 0:
        return 0.0, np.empty((0, 2), dtype=np.int64)
    columns = found[0].indices  # (2, columns), -1 in a gap
    return float(found.score), columns[:, (columns >= 0).all(axis=0)].T


def identity(query: str, candidate: str, path: AlignmentPath, per: Per = "columns") -> float:
    """Divide the identical aligned residues by a length.

    Args:
        path: Of a global alignment, `(pairs, 2)`.
        per: "columns" of the alignment, gaps included, or residues of the "shorter" protein;
            unrelated proteins of like length have about .16 by the first, .20 by the second.
    """
    equal = sum(query[i] == candidate[j] for i, j in path.tolist())
    columns = len(query) + len(candidate) - len(path)
    return equal / (columns if per == "columns" else min(len(query), len(candidate)))


def global_identity(query: str, candidate: str) -> float:
    """Return the identity per column of a global alignment, end gaps charged.

    Example:
        >>> global_identity("MKVLA", "MKVL")
        0.8
    """
    return identity(query, candidate, align_sequences(query, candidate, "global")[1])


class PairwiseAligner:
    """Align pairs one by one: what most baselines have in common."""

    name: str

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in their order."""
        return [self._align(pair) for pair in pairs]

    def _align(self, pair: ProteinPair) -> AlignedPair:
        raise NotImplementedError


class SmithWaterman(PairwiseAligner):
    """Align locally, BLOSUM62, gap 11/1; the score is the alignment's, the plan its path."""

    name = "smith-waterman"
    mode: Mode = "local"

    def _align(self, pair: ProteinPair) -> AlignedPair:
        found = align_sequences(pair.query.sequence, pair.candidate.sequence, self.mode)
        return AlignedPair.from_path(*found, pair)


class NeedlemanWunsch(SmithWaterman):
    """Align globally with free end gaps, BLOSUM62, gap 11/1."""

    name = "needleman-wunsch"
    mode = "free-ends"


class Length(PairwiseAligner):
    """Score by the ratio of the two lengths alone: what the choice of pairs gives away by them."""

    name = "length"

    def _align(self, pair: ProteinPair) -> AlignedPair:
        shorter, longer = sorted((len(pair.query.sequence), len(pair.candidate.sequence)))
        return AlignedPair(shorter / longer)


class Composition(PairwiseAligner):
    """Score by the cosine between the counts of the 20 residues: order does not matter."""

    name = "composition"

    def _align(self, pair: ProteinPair) -> AlignedPair:
        counts = (
            np.array([side.sequence.count(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"], float)
            for side in (pair.query, pair.candidate)
        )
        return AlignedPair(_cosine(*counts))


def _cosine(first: Matrix, second: Matrix) -> float:
    """Return the cosine of two vectors, 0 where one has no length."""
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm else 0.0


@dataclass(eq=False)
class MeanCosine:
    """Score by the cosine between mean embeddings: no alignment at all."""

    name = "mean-cosine"
    source: EmbeddingSource
    backbone: str = "-"

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in their order."""
        found = _embeddings(self.source, pairs)
        rows = {sequence: each.cpu().double().numpy() for sequence, each in found.items()}
        return [
            self._compare(pair, rows[pair.query.sequence], rows[pair.candidate.sequence])
            for pair in pairs
        ]

    def _compare(self, pair: ProteinPair, query: Matrix, candidate: Matrix) -> AlignedPair:
        return AlignedPair(_cosine(query.mean(axis=0), candidate.mean(axis=0)))


class EmbeddingAlignment(MeanCosine):
    """Align by dynamic programming over embedding similarity (EBA).

    The similarity exp(-distance) is standardised by rows and by columns, the two averaged, and the
    best global path without gap costs is found; the score is its sum divided by the length of the
    shorter protein, the plan its path.

    Source: embedding-based alignment, Pantolini et al. (Bioinformatics, 2024).
    """

    name = "eba"

    def _compare(self, pair: ProteinPair, query: Matrix, candidate: Matrix) -> AlignedPair:
        similarity = _enhanced_similarity(query, candidate)
        # A gap costs nothing; single precision is what is compiled.
        path = best_in_order(torch.from_numpy(similarity).float()).numpy()
        total = float(similarity[path[:, 0], path[:, 1]].sum())
        return AlignedPair.from_path(total / min(len(query), len(candidate)), path, pair)


def _enhanced_similarity(query: Matrix, candidate: Matrix) -> Matrix:
    """Compute exp(-distance), standardised by rows and by columns: the mean of both forms."""
    squares = (query**2).sum(1)[:, None] + (candidate**2).sum(1) - 2 * query @ candidate.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    # Far embeddings underflow exp, and a matrix of zeros has no spread; a common factor, which
    # standardising takes out again, keeps the nearest residues apart.
    similarity = np.exp(distance.min() - distance)
    return (_standardise(similarity, axis=1) + _standardise(similarity, axis=0)) / 2


def _standardise(values: Matrix, axis: int) -> Matrix:
    """Standardise rows or columns; one without spread becomes 0."""
    centred = values - values.mean(axis=axis, keepdims=True)
    count = values.shape[axis]
    spread = np.sqrt((centred**2).sum(axis=axis, keepdims=True) / max(count - 1, 1))
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


@dataclass(eq=False)
class PlasmaAligner:
    """Align with a PLASMA model over ready embeddings.

    Attributes:
        model: The head; a backbone in it is not used.
        name: What a table calls it.

    Example:
        >>> from plasma_hf import load_backbone
        >>> source = CachedEmbeddings(load_backbone("substitution"))
        >>> aligner = PlasmaAligner(parameter_free(), source, "PLASMA-PF")
        >>> protein = SiteProtein("P1", "F", "MKVLATWCHE" * 3, (0,) * 30)
        >>> [result] = aligner.align([ProteinPair(protein, protein, label=1)])
        >>> result.plan.shape, result.score > 0.9
        ((30, 30), True)
    """

    model: PlasmaModel
    source: EmbeddingSource
    name: str
    backbone: str = "-"

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in their order."""
        found = _embeddings(self.source, pairs)
        rows = {sequence: each.to(self.model.device) for sequence, each in found.items()}
        aligned = self.model.eval().align_pairs(
            [rows[pair.query.sequence] for pair in pairs],
            [rows[pair.candidate.sequence] for pair in pairs],
        )
        return [
            AlignedPair(score, plan.cpu().numpy())
            for score, plan in zip(aligned.scores.tolist(), aligned.plans or (), strict=True)
        ]


def parameter_free(**changes: Any) -> PlasmaModel:
    """Build PLASMA-PF, the published head without a parameter, for embeddings of any width.

    Example:
        >>> parameter_free(kernel_scale=0.2).config.head
        'hinge'
    """
    return PlasmaModel(PlasmaConfig(**{"embedding_size": None, "head": "hinge"} | changes)).eval()


def with_settings(model: PlasmaModel, **changes: Any) -> PlasmaModel:
    """Return a model of the same weights with some fields of its configuration changed.

    Args:
        model: It stays as it is; the two share their weights.
        **changes: Fields of `PlasmaConfig` that no layer depends on, such as kernel_scale; a
            ValueError says which is out of its range.

    Example:
        >>> model = parameter_free()
        >>> with_settings(model, threshold=0.3).config.threshold, model.config.threshold
        (0.3, 0.5)
    """
    changed = copy(model)
    changed.config = deepcopy(model.config)
    for name, value in changes.items():
        setattr(changed.config, name, value)
    changed.config._check_settings()
    return changed


@lru_cache(maxsize=256)
def _read_structure(folder: str | Path, protein: SiteProtein) -> tuple[Path, Protein]:
    """Find and read the structure of a protein, one chain of the residues of its sequence."""
    names = [f"{protein.uid}{suffix}{gz}" for suffix in STRUCTURE_SUFFIXES for gz in ("", ".gz")]
    path = next((file for name in names if (file := Path(folder, name)).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} has no structure of {protein.uid}; put it there as {names[0]} or .cif"
        )
    found = read_protein(path)
    if found.sequence != protein.sequence:
        raise ValueError(
            f"the structure of {protein.uid} has {len(found.sequence or '')} residues, which "
            f"are not the {len(protein.sequence)} of its sequence; give one of this sequence"
        )
    return path, found


class TMAlign(PairwiseAligner):
    """Align structures by TM-align; the score is the mean of both normalised TM-scores.

    Args:
        folder: Structures by the uid of the protein, one chain each: `{uid}.pdb`, `.cif`, ...,
            also `.gz`.
    """

    name = "tm-align"

    def __init__(self, folder: str | Path) -> None:
        try:
            from tmtools import tm_align
        except ImportError as error:
            raise ImportError("TM-align needs tmtools; run: pip install tmtools") from error
        self.folder, self.tm_align = folder, tm_align

    def _align(self, pair: ProteinPair) -> AlignedPair:
        places, sequences, known = [], [], []
        for protein in (pair.query, pair.candidate):
            atoms = _read_structure(self.folder, protein)[1].backbone_atoms
            assert atoms is not None  # a structure has atoms
            calpha = atoms[:, 1].double().numpy()  # of N, CA and C
            known.append(np.flatnonzero(np.isfinite(calpha).all(axis=1)))
            places.append(calpha[known[-1]])
            sequences.append("".join(protein.sequence[i] for i in known[-1]))
        found = self.tm_align(*places, *sequences)
        path = _path_of_rows(found.seqxA, found.seqyA)
        path = np.stack([side[path[:, k]] for k, side in enumerate(known)], axis=1)
        score = (found.tm_norm_chain1 + found.tm_norm_chain2) / 2
        return AlignedPair.from_path(score, path, pair)


def _path_of_rows(query: str, candidate: str, starts: tuple[int, int] = (0, 0)) -> AlignmentPath:
    """Read a path from two aligned rows, `-` for a gap; `starts` number their first letters."""
    rows = np.array([list(query), list(candidate)], dtype="U1")
    present = rows != "-"
    numbers = np.cumsum(present, axis=1) - 1 + np.array(starts)[:, None]
    return numbers[:, present.all(axis=0)].T.astype(np.int64)


class Foldseek:
    """Search structures by Foldseek; the score is the bit score, and a miss scores 0.

    Args:
        folder: As that of `TMAlign`.
    """

    name = "foldseek"

    def __init__(self, folder: str | Path, binary: str = "foldseek") -> None:
        self.folder, self.binary = folder, shutil.which(binary)
        if self.binary is None:
            raise FileNotFoundError(
                f"the program {binary!r} is not found on the PATH; install Foldseek "
                "(https://github.com/steineggerlab/foldseek), or leave this baseline out"
            )

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in one search of all queries against all candidates."""
        with tempfile.TemporaryDirectory() as scratch:
            for side in ("query", "candidate"):
                Path(scratch, side).mkdir()
                for protein in dict.fromkeys(getattr(pair, side) for pair in pairs):
                    source = _read_structure(self.folder, protein)[0]
                    ending = "".join(source.suffixes[-2:])
                    link = Path(scratch, side, f"{_file_stem(protein)}{ending}")
                    if not link.exists():
                        link.symlink_to(source.resolve())
            hits = self._search(scratch)
        results = []
        for pair in pairs:
            names = _file_stem(pair.query), _file_stem(pair.candidate)
            bits, *starts, query, candidate = hits.get(names, ("0", "1", "1", "", ""))
            path = _path_of_rows(query, candidate, (int(starts[0]) - 1, int(starts[1]) - 1))
            results.append(AlignedPair.from_path(float(bits), path, pair))
        return results

    def _search(self, scratch: str) -> dict[tuple[str, str], list[str]]:
        """Return the best hit of each query and candidate: bits, starts, aligned rows."""
        options = "--format-output query,target,bits,qstart,tstart,qaln,taln -e 1e9 -v 1"
        command = f"easy-search query candidate hits.tsv tmp {options} --max-seqs 100000"
        done = subprocess.run(
            [str(self.binary), *command.split()], cwd=scratch, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"foldseek ended with {done.returncode}: {done.stderr[-300:]}")
        hits: dict[tuple[str, str], list[str]] = {}
        for line in Path(scratch, "hits.tsv").read_text().splitlines():
            query, target, *values = line.split("\t")
            names = query.split(".")[0], target.split(".")[0]
            if names not in hits or float(values[0]) > float(hits[names][0]):
                hits[names] = values
        return hits


def _file_stem(protein: SiteProtein) -> str:
    """Return what names a hit; a uid may contain any character."""
    return protein.uid.encode().hex()


ON_SEQUENCES = {kind.name: kind for kind in (SmithWaterman, NeedlemanWunsch, Length, Composition)}
ON_EMBEDDINGS = {kind.name: kind for kind in (EmbeddingAlignment, MeanCosine)}
ON_STRUCTURES: dict[str, Any] = {kind.name: kind for kind in (TMAlign, Foldseek)}
"""Baselines by name, apart by what they read: sequences, embeddings, or a folder of structures."""
