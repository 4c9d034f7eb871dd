"""What an evaluation compares: anything that gives pairs of proteins a score, and maybe a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import ProteinPair, SiteProtein

Path = NDArray[np.int64]
"""Aligned residues, 0-based, `(pairs, 2)`."""


@dataclass(frozen=True)
class AlignedPair:
    """Hold what an aligner says about one pair.

    Attributes:
        score: Larger for a likelier match; any finite number.
        plan: `(query_residues, candidate_residues)`, weights in [0, 1], or None from an aligner
            that gives scores alone.
    """

    score: float
    plan: NDArray[np.floating] | None = None


class Aligner(Protocol):
    """Anything that aligns pairs. It raises for a pair that it cannot align, and skips none."""

    @property
    def name(self) -> str:
        """What a table calls it."""

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in their order."""


def plan_of_path(path: Path, query_residues: int, candidate_residues: int) -> NDArray[np.float32]:
    """Write an alignment path as a plan of zeros and ones.

    Example:
        >>> plan_of_path(np.array([[0, 1]]), 2, 2).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    plan = np.zeros((query_residues, candidate_residues), dtype=np.float32)
    plan[path[:, 0], path[:, 1]] = 1.0
    return plan


def path_result(
    score: float, path: Path, query: SiteProtein, candidate: SiteProtein
) -> AlignedPair:
    """Give a path as the result of a pair."""
    plan = plan_of_path(path, len(query.sequence), len(candidate.sequence))
    return AlignedPair(float(score), plan)


def pair_name(pair: ProteinPair) -> str:
    """Name a pair in a message.

    Example:
        >>> pair_name(ProteinPair(*(SiteProtein(uid, "F", "MK", (0, 1)) for uid in "AB"), 1))
        'A and B'
    """
    return f"{pair.query.uid} and {pair.candidate.uid}"
