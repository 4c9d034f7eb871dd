"""Pairs of proteins with labelled sites, whose lengths do not give the label away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from .sites import SiteProtein

LENGTH_TOLERANCE = 0.05
# A partner is drawn among so many nearest in length: enough for chance, few enough that
# negatives keep the length ratios of the positives.
NEAREST = 8


@dataclass(frozen=True)
class ProteinPair:
    """A query, a candidate and whether they are of one family."""

    query: SiteProtein
    candidate: SiteProtein
    label: int  # 1 for the same family, 0 for different families

    @property
    def sides(self) -> tuple[SiteProtein, SiteProtein]:
        """Query and candidate."""
        return self.query, self.candidate

    @property
    def uids(self) -> frozenset[str]:
        """Accessions of both, in no order."""
        return frozenset((self.query.uid, self.candidate.uid))


def sample_matched_pairs(
    proteins: Iterable[SiteProtein],
    n_positive: int,
    n_negative: int,
    seed: int | np.random.Generator,
    groups: Mapping[str, Collection[str]] | None = None,
    distinct: bool = False,
) -> list[ProteinPair]:
    """Draw positive pairs from families, and negative pairs of the same lengths.

    Members of a family are of similar length, so negatives drawn at random can be told apart by
    length alone. Here negative i copies the two lengths of positive i: query and candidate are
    each drawn among the few proteins nearest to it in length, and they share no family.

    Args:
        proteins: Proteins with their families; their order has no influence.
        n_positive: Number of pairs of one family. Families are drawn evenly, so that a large
            one does not dominate; no pair is drawn twice.
        n_negative: Number of pairs of different families; beyond `n_positive`, the lengths
            are taken from the first positives again.
        seed: Seed, or the numpy generator to go on with; the same seed gives the same pairs.
        groups: By uid, what else the two proteins of a negative must not share: families outside
            the proteins given, sequence clusters.
        distinct: Draw two proteins that share several families for one of these only.

    Returns:
        The positive pairs, then the negative ones.

    Raises:
        ValueError: If the proteins are too few, or one is given twice for the same family.

    Example:
        >>> names = ["A1", "A2", "B1", "B2"]
        >>> proteins = [SiteProtein(name, name[0], "MKVL", (0, 1, 1, 0)) for name in names]
        >>> pairs = sample_matched_pairs(proteins, n_positive=1, n_negative=1, seed=0)
        >>> [(pair.query.family == pair.candidate.family, pair.label) for pair in pairs]
        [(True, 1), (False, 0)]
    """
    ordered, rng = _ordered(proteins), np.random.default_rng(seed)
    _check_counts(n_positive, n_negative)
    positives = _sample_positives(ordered, n_positive, rng, distinct)
    return positives + sample_matched_negatives(ordered, positives, n_negative, rng, groups)


def sample_matched_negatives(
    proteins: Iterable[SiteProtein],
    positives: Sequence[ProteinPair],
    n_negative: int,
    seed: int | np.random.Generator,
    groups: Mapping[str, Collection[str]] | None = None,
) -> list[ProteinPair]:
    """Draw negative pairs in the lengths of given positive ones, taken in turn.

    All else is as in `sample_matched_pairs`.

    Example:
        >>> a, b = (SiteProtein(name, name, "MKVL", (0, 1, 1, 0)) for name in "ab")
        >>> [pair] = sample_matched_negatives([a, b], [ProteinPair(a, a, 1)], 1, seed=0)
        >>> sorted(pair.uids)
        ['a', 'b']
    """
    ordered = _ordered(proteins)
    _check_counts(len(positives), n_negative)
    sampler = _NegativeSampler(ordered, np.random.default_rng(seed), groups or {})
    return [sampler.draw(positives[i % len(positives)]) for i in range(n_negative)]


def _ordered(proteins: Iterable[SiteProtein]) -> list[SiteProtein]:
    ordered = sorted(proteins, key=lambda protein: (protein.uid, protein.family))
    for first, second in zip(ordered, ordered[1:], strict=False):
        if (first.uid, first.family) == (second.uid, second.family):
            raise ValueError(f"{first.uid} is given twice for {first.family}; give it once")
    return ordered


def _check_counts(n_positive: int, n_negative: int) -> None:
    if n_positive < 0 or n_negative < 0 or (n_negative and not n_positive):
        raise ValueError(
            f"n_positive is {n_positive} and n_negative {n_negative}; give counts of at least 0, "
            "and at least one positive to copy lengths from when negatives are asked for"
        )


def _sample_positives(
    proteins: Iterable[SiteProtein], count: int, rng: np.random.Generator, distinct: bool
) -> list[ProteinPair]:
    """Draw pairs of one family, families evenly."""
    members = defaultdict(list)
    for protein in proteins:
        members[protein.family].append(protein)
    left = {family: comb(len(group), 2) for family, group in members.items() if len(group) > 1}
    available = sum(left.values())
    open_families = sorted(left)
    drawn: set[tuple[str, frozenset[int]]] = set()
    positives: dict[object, ProteinPair] = {}
    while len(positives) < count:
        if count > available or not open_families:
            raise ValueError(
                f"n_positive is {count} but the proteins form "
                f"{len(positives) if count <= available else available} pairs within "
                "families; ask for fewer, or give more proteins"
            )
        family = open_families[rng.integers(len(open_families))]
        group = members[family]
        i, j = rng.choice(len(group), size=2, replace=False).tolist()
        key = (family, frozenset((i, j)))
        if key in drawn:
            continue
        drawn.add(key)
        left[family] -= 1
        if not left[family]:
            open_families.remove(family)
        pair = ProteinPair(group[i], group[j], label=1)
        positives.setdefault(pair.uids if distinct else key, pair)
    return list(positives.values())


class _NegativeSampler:
    """Draw unused pairs of different families with the lengths of a given pair."""

    def __init__(
        self,
        proteins: list[SiteProtein],
        rng: np.random.Generator,
        groups: Mapping[str, Collection[str]],
    ) -> None:
        self.proteins, self.rng = proteins, rng
        self.lengths = np.array([len(protein.sequence) for protein in proteins])
        self.drawn: dict[str, set[str]] = defaultdict(set)
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.members: dict[str, set[str]] = defaultdict(set)
        self.groups: dict[str, set[str]] = defaultdict(set)
        for row, protein in enumerate(proteins):
            self.rows[protein.uid].append(row)
            # Group names may look like families: the two are kept apart.
            keys = {f"family {protein.family}"}
            keys |= {f"group {name}" for name in groups.get(protein.uid, ())}
            self.groups[protein.uid] |= keys
            for key in keys:
                self.members[key].add(protein.uid)

    def draw(self, positive: ProteinPair) -> ProteinPair:
        """Draw one negative that was not drawn before, in the lengths of the positive."""
        wanted, other = (len(side.sequence) for side in positive.sides)
        options = []
        for query in self._nearest(np.arange(len(self.proteins)), wanted).tolist():
            nearest = self._nearest(self._partners(query), other)
            if nearest.size:
                gap = abs(int(self.lengths[nearest[0]]) - other)
                options.append((gap, query, int(nearest[0])))
                if gap <= LENGTH_TOLERANCE * other:
                    break
        if not options:
            raise ValueError(
                "no unused pair of different families is left near the lengths "
                f"{wanted} and {other}; ask for fewer negatives, or give proteins of more families"
            )
        _, query, candidate = min(options)
        pair = ProteinPair(self.proteins[query], self.proteins[candidate], label=0)
        self.drawn[pair.query.uid].add(pair.candidate.uid)
        self.drawn[pair.candidate.uid].add(pair.query.uid)
        return pair

    def _partners(self, query: int) -> NDArray[np.int64]:
        allowed = np.ones(len(self.proteins), dtype=bool)
        uid = self.proteins[query].uid
        # A protein listed under several families is no partner for a member of any of them.
        taken = self.drawn[uid].union(*(self.members[key] for key in self.groups[uid]))
        allowed[[row for other in taken for row in self.rows[other]]] = False
        return np.flatnonzero(allowed)

    def _nearest(self, rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        if not rows.size:
            return rows
        # Shuffling first makes the choice among equally near proteins a matter of chance.
        rows = self.rng.permutation(rows)
        # Sixteen bits are sorted by radix, several times faster; no two proteins differ by more.
        distance = np.minimum(np.abs(self.lengths[rows] - length), 65_535).astype(np.uint16)
        order = np.argsort(distance, kind="stable")[:NEAREST]
        near = order[distance[order] <= LENGTH_TOLERANCE * length]
        return self.rng.permutation(rows[near if near.size else order[:1]])
