"""From a plan to aligned segments: the answer to "which residues correspond"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Segment:
    """One stretch of query aligned with one stretch of candidate.

    Args:
        pairs: Aligned residues in order, `(query index, candidate index, plan weight)`, 0-based.
    """

    pairs: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def query_start(self) -> int:
        """Index of the first aligned query residue."""
        return self.pairs[0][0]

    @property
    def query_end(self) -> int:
        """Index after the last aligned query residue."""
        return self.pairs[-1][0] + 1

    @property
    def candidate_start(self) -> int:
        """Index of the first aligned candidate residue."""
        return self.pairs[0][1]

    @property
    def candidate_end(self) -> int:
        """Index after the last aligned candidate residue."""
        return self.pairs[-1][1] + 1

    @property
    def score(self) -> float:
        """Plan weight of the pairs as a share of the longer stretch, in [0, 1]."""
        longer = max(self.query_end - self.query_start, self.candidate_end - self.candidate_start)
        return min(1.0, sum(weight for *_, weight in self.pairs) / longer)

    def to_dict(self) -> dict[str, Any]:
        """Return the segment as plain numbers and lists."""
        names = ("query_start", "query_end", "candidate_start", "candidate_end", "score")
        return {name: getattr(self, name) for name in names} | {
            "pairs": [list(pair) for pair in self.pairs]
        }


def find_segments(
    plan: Tensor, threshold: float = 0.5, max_gap: int = 10, min_pairs: int = 3
) -> list[Segment]:
    """Read the aligned segments of one pair from its plan.

    Two residues are aligned where each is the other's best partner and their plan weight exceeds
    `threshold`. Pairs that follow each other in both proteins, with at most `max_gap` residues
    left out on either side, make a segment; segments need not be in order, so swapped and repeated
    parts are found as well.

    Args:
        plan: `(query_residues, candidate_residues)`.
        threshold: Plan weight above which a pair counts.
        max_gap: Residues that a segment may leave out between two pairs, on either side.
        min_pairs: Pairs that make a segment; fewer are left out.

    Returns:
        Segments in the order of their first query residue.

    Example:
        >>> [segment] = find_segments(torch.eye(5)[:, 1:], min_pairs=3)
        >>> segment.query_start, segment.query_end, segment.candidate_start, segment.score
        (1, 5, 0, 1.0)
    """
    segments: list[Segment] = []
    for query, candidate, weight in best_pairs(plan, threshold):
        followed = [s for s in segments if _follows(s, query, candidate, max_gap)]
        if followed:
            # Of several that it continues, the one that needs the least shift.
            shift = query - candidate
            home = min(followed, key=lambda s: abs(shift - (s.pairs[-1][0] - s.pairs[-1][1])))
        else:
            segments.append(home := Segment())
        home.pairs.append((query, candidate, weight))
    return [segment for segment in segments if len(segment.pairs) >= min_pairs]


def best_pairs(plan: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """List residue pairs above `threshold` that are each other's best, in query order.

    Args:
        plan: `(query_residues, candidate_residues)`.
        threshold: Plan weight above which a pair counts.
    """
    plan = plan.detach().float().cpu()
    if plan.numel() == 0:
        return []
    weight, candidate = plan.max(dim=1)
    query = torch.arange(len(plan))
    mutual = plan.argmax(dim=0)[candidate] == query
    kept = mutual & (weight > threshold)
    columns = (query[kept], candidate[kept], weight[kept])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _follows(segment: Segment, query: int, candidate: int, max_gap: int) -> bool:
    last_query, last_candidate, _ = segment.pairs[-1]
    return 0 < query - last_query <= max_gap + 1 and 0 < candidate - last_candidate <= max_gap + 1
