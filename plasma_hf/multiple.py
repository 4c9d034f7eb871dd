"""Multiple alignment: the residues of many proteins that correspond.

All pairs are aligned; the probabilities that their residues are aligned are made consistent with
what third proteins say (Do et al. 2005, ProbCons), and proteins are joined along a tree, each time
by the columns in order that have most probability together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .models.alignment_result import clustal_block, stockholm_block
from .models.local_alignment import aligned_probabilities, best_in_order
from .models.protein import Protein, open_text, parse_fasta
from .search.database import default_pipeline

LEAST, LEAST_SAID = 0.01, 0.02  # probability that counts, and what thirds say of it
ROUNDS = 2  # of consistency
REFINED = 50  # times that a part of the proteins is aligned with the rest again
TOGETHER = 60  # proteins that are aligned with each other; others are added to them
PAIRS_TOGETHER = 64
GAPS = "-."


@dataclass(frozen=True)
class MultipleAlignment:
    """Proteins in rows, with gaps, of one length.

    Example:
        >>> found = MultipleAlignment((Protein("a", "MKV"), Protein("b", "MV")), ("MKV", "M-V"))
        >>> print(found.to_string("fasta"), end="")
        >a
        MKV
        >b
        M-V
    """

    proteins: tuple[Protein, ...]
    rows: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> MultipleAlignment:
        """Read aligned FASTA, or A3M, of which insertions (lower case) get columns of their own.

        Raises:
            ValueError: If the rows are not of one length.
        """
        with open_text(path) as lines:
            records = list(parse_fasta(lines))
        names = [one.id for one in records]
        rows = _spread(["".join((one.sequence or "").split()) for one in records])
        if not rows or len(set(map(len, rows))) > 1:
            raise ValueError(f"{path} is no alignment: its rows are not of one length.")
        proteins = [
            Protein(name, row.translate(str.maketrans("", "", GAPS)))
            for name, row in zip(names, rows, strict=True)
        ]
        return cls(tuple(proteins), tuple(rows))

    @cached_property
    def columns(self) -> list[NDArray[np.int64]]:
        """The column of each residue, for each protein."""
        return [np.array([c for c, one in enumerate(row) if one not in GAPS]) for row in self.rows]

    def to_string(self, format: str = "fasta") -> str:
        """Write the rows as one of `FORMATS`.

        Raises:
            ValueError: If there is no such format.
        """
        if format not in FORMATS:
            raise ValueError(f"there is no format {format!r}; give one of {', '.join(FORMATS)}.")
        return FORMATS[format](self.names, self.rows)

    @property
    def names(self) -> list[str]:
        """What rows are called: ids without spaces, one that comes again with a number behind."""
        names: dict[str, None] = {}
        for one in self.proteins:
            name = "_".join(one.id.split())
            numbered = (f"{name}_{number}" for number in count(2))
            names[next(new for new in chain([name], numbered) if new not in names)] = None
        return list(names)

    def add(self, protein: Protein, align: Any = None) -> MultipleAlignment:
        """Align one more protein with the columns, which stay; what only it has gets new ones."""
        return self.extend([protein], align)

    @torch.no_grad()
    def extend(self, proteins: Sequence[Protein], align: Any = None) -> MultipleAlignment:
        """Add proteins, each aligned with those that are here, as `add` does."""
        align, found = align or default_pipeline(), self
        others = align.project(self.proteins)
        for protein in tqdm(proteins, unit="protein", disable=None):
            [own] = align.project([protein])
            shape = len(found.rows[0]), len(own)
            gain = torch.zeros(shape)
            for start in range(0, len(others), PAIRS_TOGETHER):
                part = slice(start, start + PAIRS_TOGETHER)
                read = aligned_probabilities(
                    [align.model.evidence(one, own).read for one in others[part]]
                )
                for columns, plan in zip(found.columns[part], read, strict=False):
                    gain[columns] += plan.cpu()
            pairs = best_in_order(gain - LEAST * len(others))
            ours, theirs, width = _merge(pairs, *shape)
            rows = [_row(row, ours, width) for row in found.rows]
            new = _row(protein.sequence or "", theirs, width)
            found = MultipleAlignment((*found.proteins, protein), (*rows, new))
        return found


def _spread(rows: Sequence[str]) -> list[str]:
    """Give insertions of an A3M, in lower case, columns of their own."""
    kept = [[c for c in row if not c.islower()] for row in rows]
    one_case = len({c.islower() for row in rows for c in row if c not in GAPS}) < 2
    if one_case or len({len(r) for r in kept}) > 1:
        return [row.upper() for row in rows]
    inserted = [[""] for _ in rows]
    for places, row in zip(inserted, rows, strict=True):
        for letter in row:
            if letter.islower():
                places[-1] += letter.upper()
            else:
                places.append("")
    widths = [max(map(len, each)) for each in zip(*inserted, strict=True)]
    return [
        "".join(
            letter + more.ljust(width, "-")
            for letter, more, width in zip(["", *letters], places, widths, strict=True)
        )
        for letters, places in zip(kept, inserted, strict=True)
    ]


@torch.no_grad()
def align_many(
    proteins: Iterable[Protein], align: Any = None, refined: int = REFINED
) -> MultipleAlignment:
    """Align proteins with each other.

    The first `TOGETHER` are aligned together, all others one by one with these: put those first
    that stand for the rest.

    Args:
        proteins: Two at least, with sequences; they stay in their order.
        align: A `pipeline("protein-alignment", ...)` that reads by "posterior"; the default's.
        refined: How often a part of the proteins is aligned with the rest again.

    Raises:
        ValueError: If there are fewer than two proteins, or the model reads plans.

    Source: Do, Mahabhashyam, Brudno, Batzoglou 2005 (ProbCons).

    Example:
        >>> letters = ("MKTAYIAKQRQISFVKSHF", "MKTAYIAISFVKSHF")
        >>> print(*align_many([Protein(one, one) for one in letters]).rows, sep=chr(10))
        MKTAYIAKQRQISFVKSHF
        MKTAYIA----ISFVKSHF
    """
    align, every = align or default_pipeline(), list(proteins)
    if len(every) < 2:
        raise ValueError(f"{len(every)} proteins; an alignment needs two at least.")
    if align.model.config.reading != "posterior":
        raise ValueError('multiple alignment takes a model with reading="posterior".')
    first = [align.read((one, one))["query"] for one in every[:TOGETHER]]
    known, alike = Probabilities.of(first, align)
    for _ in range(ROUNDS if len(first) > 2 else 0):
        known = known.consistent()
    found = _join_all(known, alike, refined)
    rows = [
        _row(one.sequence or "", columns, found.width)
        for one, columns in zip(first, found.columns(known), strict=True)
    ]
    aligned = MultipleAlignment(tuple(first), tuple(rows))
    rest = [align.read((one, one))["query"] for one in every[TOGETHER:]]
    return aligned.extend(rest, align)


@dataclass(frozen=True)
class Probabilities:
    """Probabilities that residues of different proteins are aligned, as one sparse matrix.

    Residues of all proteins follow each other.

    Attributes:
        starts: Of each protein, and the end of the last, `(proteins + 1,)`.
        pairs: Residues, both ways round, `(2, entries)`.
        values: Probability of each, `(entries,)`.
    """

    starts: Tensor
    pairs: Tensor
    values: Tensor

    @classmethod
    def of(cls, proteins: Sequence[Protein], align: Any) -> tuple[Probabilities, Tensor]:
        """Align all pairs; returns also how much of the shorter one each pair has in common."""
        projected = align.project(proteins)
        lengths = torch.tensor([len(one) for one in projected])
        starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        which = torch.combinations(torch.arange(len(proteins)))
        alike = torch.zeros(len(proteins), len(proteins))
        pairs, values = [], []
        for some in tqdm(which.split(PAIRS_TOGETHER), desc="pairs", disable=None):
            read = [
                align.model.evidence(projected[one], projected[other]).read
                for one, other in some.tolist()
            ]
            for (one, other), plan in zip(some.tolist(), aligned_probabilities(read), strict=True):
                plan = plan.cpu()
                best = best_in_order(plan)
                shared = plan[best[:, 0], best[:, 1]].sum() / min(plan.shape)
                alike[one, other] = alike[other, one] = shared
                likely = (plan > LEAST).nonzero()
                values.append(plan[likely[:, 0], likely[:, 1]])
                pairs.append(likely + torch.stack([starts[one], starts[other]]))
        there, found = torch.cat(pairs).T, torch.cat(values)
        both = torch.cat([there, there.flip(0)], 1)
        return cls(starts, both, torch.cat([found, found])), alike

    @cached_property
    def owner(self) -> Tensor:
        """The protein of each residue."""
        sizes = self.starts.diff()
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def consistent(self) -> Probabilities:
        """Average over third proteins what they say: with whose residue both are aligned."""
        proteins, size = len(self.starts) - 1, int(self.starts[-1])
        itself = torch.arange(size)
        # A protein's residues are aligned with themselves: so it is its own third, too.
        places = torch.cat([self.pairs, itself.expand(2, -1)], 1)
        values = torch.cat([self.values, torch.ones(size)])
        pairs, found = [], []
        with warnings.catch_warnings():  # torch calls the format of its product beta
            warnings.simplefilter("ignore", UserWarning)
            matrix = torch.sparse_coo_tensor(places, values, (size, size)).coalesce()
            for start, end in pairwise(self.starts.tolist()):
                inside = (places[0] >= start) & (places[0] < end)
                rows = places[:, inside] - torch.tensor([[start], [0]])
                part = torch.sparse_coo_tensor(rows, values[inside], (end - start, size))
                product = torch.sparse.mm(part, matrix).coalesce()
                there, said = product.indices(), product.values() / proteins
                stays = (said > LEAST_SAID) & ((there[1] < start) | (there[1] >= end))
                pairs.append(there[:, stays] + torch.tensor([[start], [0]]))
                found.append(said[stays])
        return replace(self, pairs=torch.cat(pairs, 1), values=torch.cat(found))


@dataclass(frozen=True)
class _Group:
    """Some proteins, aligned: the column of each of their residues, -1 of others'."""

    column: Tensor  # (residues,)
    width: int

    def columns(self, known: Probabilities) -> list[NDArray[np.int64]]:
        parts: Iterator[Tensor] = iter(self.column.split(known.starts.diff().tolist()))
        return [part.numpy() for part in parts]

    def part(self, residues: Tensor) -> _Group:
        """Return some proteins of it, without columns that have only gaps then."""
        used, places = self.column[residues].unique(return_inverse=True)
        column = torch.full_like(self.column, -1)
        column[residues] = places
        return _Group(column, len(used))

    def join(self, other: _Group, known: Probabilities) -> _Group:
        """Align two groups by the columns in order that have most probability together."""
        one, another = (side.column[known.pairs[n]] for n, side in enumerate((self, other)))
        inside = (one >= 0) & (another >= 0)
        gain = torch.zeros(self.width * other.width)
        gain.index_add_(0, (one * other.width + another)[inside], known.values[inside])
        pairs = best_in_order(gain.view(self.width, other.width))
        ours, theirs, width = _merge(pairs, self.width, other.width)
        column = torch.full_like(self.column, -1)
        for side, moved in ((self, ours), (other, theirs)):
            there = side.column >= 0
            column[there] = torch.from_numpy(moved)[side.column[there]]
        return _Group(column, width)


def _join_all(known: Probabilities, alike: Tensor, refined: int) -> _Group:
    """Join proteins along a tree, those that are most alike first, and refine."""
    itself = torch.arange(len(known.owner))
    groups = {
        n: _Group(torch.where(known.owner == n, itself - start, -1), int(size))
        for n, (start, size) in enumerate(zip(known.starts, known.starts.diff(), strict=False))
    }
    alike, sizes = alike.clone().fill_diagonal_(-1), dict.fromkeys(groups, 1)
    while len(groups) > 1:
        left = torch.tensor(sorted(groups))
        best = int(alike[left][:, left].argmax())
        one, other = (int(left[place]) for place in divmod(best, len(left)))
        groups[one] = groups[one].join(groups.pop(other), known)
        share = sizes[other] / (sizes[one] + sizes[other])
        alike[one] += share * (alike[other] - alike[one])
        alike[:, one] = alike[one]
        alike[one, one] = -1
        sizes[one] += sizes.pop(other)
    [found] = groups.values()
    proteins = len(known.starts) - 1
    draw = torch.Generator().manual_seed(0)
    for _ in range(refined if proteins > 2 else 0):
        side = torch.rand(proteins, generator=draw) < 0.5
        if 0 < int(side.sum()) < proteins:
            inside = side[known.owner]
            found = found.part(inside).join(found.part(~inside), known)
    return found


def _merge(
    pairs: Tensor, ours: int, theirs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Lay two sides of some columns into one, those of `pairs` upon each other.

    Returns:
        Where the columns of each side are now, and how many there are.

    Example:
        >>> _merge(torch.tensor([[1, 0]]), 2, 2)
        (array([0, 1]), array([1, 2]), 3)
    """
    places: tuple[list[int], list[int]] = [], []
    width = 0
    for one, other in [*pairs.tolist(), [ours, theirs]]:
        for side, end in zip(places, (one, other), strict=True):
            more = end - len(side)
            side.extend(range(width, width + more))
            width += more
        if (one, other) != (ours, theirs):
            for side in places:
                side.append(width)
            width += 1
    return np.array(places[0], int), np.array(places[1], int), width


def _row(letters: str, places: NDArray[np.int64], width: int) -> str:
    row = np.full(width, "-")
    row[places] = list(letters)
    return "".join(row)


def _fasta(names: Sequence[str], rows: Sequence[str]) -> str:
    return "".join(f">{name}\n{row}\n" for name, row in zip(names, rows, strict=True))


def _a3m(names: Sequence[str], rows: Sequence[str]) -> str:
    """Write along the first row: what it does not have is in lower case."""
    there = [one not in GAPS for one in rows[0]]
    short = [
        "".join(
            c if stays else "" if c in GAPS else c.lower()
            for c, stays in zip(row, there, strict=True)
        )
        for row in rows
    ]
    return _fasta(names, short)


FORMATS: dict[str, Callable[[Sequence[str], Sequence[str]], str]] = {
    "fasta": _fasta,
    "a3m": _a3m,
    "stockholm": stockholm_block,
    "clustal": clustal_block,
}
"""Formats of multiple alignments by name."""
