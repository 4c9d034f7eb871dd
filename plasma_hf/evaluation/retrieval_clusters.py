"""Proteins that a model holds to be alike, and how their sequences differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.clusters import connect
from .sequence_alignment import align_sequences
from .tables import figure_text, markdown_table

MOST_NAMED = 12
"""Differences of two sequences that a table names."""


@dataclass(frozen=True)
class Member:
    """Hold one protein of a cluster.

    Attributes:
        id: Of the pair.
        length: Residues of its sequence.
        identity: Residues of the shorter sequence that are the same in the first member, a share.
        family: As it was given.
        differences: From the first member, counted in the first from 1: "A52T" is T for A, "A52-"
            A left out, "52+GS" GS put in after residue 52. Empty for the first.
    """

    id: str
    length: int
    identity: float
    family: str | None
    differences: tuple[str, ...]


def list_clusters(
    vectors: NDArray[np.floating],
    ids: Sequence[str],
    sequences: Sequence[str],
    families: Sequence[str | None] | None = None,
    least_cosine: float = 0.9,
) -> list[list[Member]]:
    """List the connected components of proteins whose vectors lie close together.

    Args:
        vectors: Of structures or sequences, normalised, `(pairs, shared)`.
        ids: Of the pairs.
        sequences: Of the pairs.
        families: Of the pairs.
        least_cosine: From which on two proteins are linked.

    Returns:
        Components of two and more, the largest first.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> (cluster,) = list_clusters(vectors, ["a", "b", "c"], ["MKVLAW", "MKILAW", "WWWW"])
        >>> [(member.id, member.differences) for member in cluster]
        [('a', ()), ('b', ('V3I',))]
    """
    close = np.argwhere(np.triu(vectors @ vectors.T >= least_cosine, k=1)).tolist()
    component = connect(range(len(ids)), [(i, j) for i, j in close])
    members: dict[int, list[int]] = {}
    for number, first in component.items():
        members.setdefault(first, []).append(number)
    families = families or [None] * len(ids)
    return [
        [
            Member(
                ids[n],
                len(sequences[n]),
                _identity(sequences[group[0]], sequences[n]),
                families[n],
                tuple(sequence_differences(sequences[group[0]], sequences[n])),
            )
            for n in group
        ]
        for group in sorted(members.values(), key=len, reverse=True)
        if len(group) > 1
    ]


def sequence_differences(first: str, second: str) -> list[str]:
    """List how one sequence differs from another, by a global alignment.

    Args:
        first: One-letter residues; positions are counted in it, from 1.
        second: One-letter residues.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> sequence_differences("MKVLAWGG", "MKILAWTTGG")
        ['V3I', '6+TT']
    """
    if first == second:
        return []
    _, path = align_sequences(first, second, "free-ends")
    found, i, j = [], 0, 0
    for row, column in [*path.tolist(), (len(first), len(second))]:
        found += [f"{first[k]}{k + 1}-" for k in range(i, row)]
        if column > j:
            found.append(f"{row}+{second[j:column]}")
        if row < len(first) and first[row] != second[column]:
            found.append(f"{first[row]}{row + 1}{second[column]}")
        i, j = row + 1, column + 1
    return found


def _identity(first: str, second: str) -> float:
    _, path = align_sequences(first, second, "free-ends")
    same = sum(first[i] == second[j] for i, j in path.tolist())
    return same / min(len(first), len(second))


def clusters_as_json(clusters: Sequence[Sequence[Member]]) -> list[list[dict[str, Any]]]:
    """Give clusters as JSON can hold them."""
    return [[asdict(member) for member in cluster] for cluster in clusters]


def clusters_as_markdown(clusters: Sequence[Sequence[Member]]) -> str:
    """Write clusters as one table.

    Example:
        >>> print(clusters_as_markdown([[Member("b", 6, 0.8333, "F", ("V3I",))]]))
        | cluster | protein | family | differences | identity | residues |
        |---|---|---|---|--:|--:|
        | 1 | b | F | V3I | .833 | 6 |
    """
    rows = [
        (
            str(number),
            member.id,
            member.family or "-",
            _shown(member),
            figure_text(member.identity),
            str(member.length),
        )
        for number, cluster in enumerate(clusters, start=1)
        for member in cluster
    ]
    head = ("cluster", "protein", "family", "differences", "identity", "residues")
    return markdown_table(head, rows, left=4)


def _shown(member: Member) -> str:
    more = len(member.differences) - MOST_NAMED
    named = ", ".join(member.differences[:MOST_NAMED]) or "-"
    return f"{named} and {more} more" if more > 0 else named
