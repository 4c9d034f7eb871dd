"""Pairs that leave nothing to look up: no protein, cluster or length tells an answer.

Proteins similar in sequence form clusters, and a cluster lies in one split or in none. Some
families are held out for `test_hard` with all their clusters (extrapolation). Every other family
of two clusters or more may give some to validation or test and keeps the others in training
(interpolation). Negatives share no family and no cluster, and have the lengths of positives.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice
from math import comb

import numpy as np

from .clusters import cluster_sequences, connect
from .pairs import ProteinPair, sample_matched_negatives, sample_positives
from .site_table import SiteProtein

logger = logging.getLogger(__name__)

Split = list[SiteProtein]

MIN_HELD_OUT = 2  # families: negatives need two
# Positives drawn from a family by default, as a multiple of its proteins: a protein is then in
# some eight pairs, and a large family, which has far more, does not crowd out the others.
PER_PROTEIN = 4
MOST_PAIRS = 20_000


def sample_strict(
    proteins: Iterable[SiteProtein],
    seed: int,
    pairs: int | None = None,
    held_out: float = 0.1,
    fractions: tuple[float, float] = (0.75, 0.05),
    max_length: int = 1024,
    identity: float = 0.5,
    clusters: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[ProteinPair]], list[str], str]:
    """Draw pairs for splits that share no protein and no sequence cluster.

    Args:
        proteins: Proteins with their families, in any order; the order has no influence.
        seed: Seed of the numpy generator.
        pairs: Pairs in training, validation and test together, half of each positive; `test_hard`
            has as many as test. By default what the proteins give, at most 20,000: see
            `PER_PROTEIN`.
        held_out: Share of the families held out.
        fractions: Shares of training and validation, in clusters and pairs; the rest is test.
        max_length: Longest sequence to use, in residues.
        identity: Identity from which on two proteins are in one cluster.
        clusters: Cluster by uid, from elsewhere; then `identity` is not used.

    Returns:
        Pairs by split, positives first in each; the families held out; and how clusters were
        found, "mmseqs", "kmers" or "given".

    Raises:
        ValueError: If the proteins are too few for a split, with the counts.

    Example:
        >>> names = [(f, f + i) for f in "ACDEFG" for i in "ACDEFG"]
        >>> table = [SiteProtein(uid, f, f"MK{uid}", (0, 0, 1, 1)) for f, uid in names]
        >>> clusters = {protein.uid: protein.uid for protein in table}
        >>> splits, held_out, _ = sample_strict(
        ...     table, seed=1, pairs=8, held_out=0.3, fractions=(0.5, 0.25), clusters=clusters
        ... )
        >>> [len(split) for split in splits.values()], len(held_out)
        ([4, 2, 2, 2], 2)
    """
    rng = np.random.default_rng(seed)
    table = list(proteins)
    rows = _usable(table, max_length)
    cluster_of, method = _components(rows, identity, clusters)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in table:
        groups[row.uid] |= {f"family {row.family}", f"cluster {cluster_of.get(row.uid)}"}

    hard_families = _hold_out(rows, held_out, rng)
    hard_clusters = {cluster_of.get(row.uid) for row in table if row.family in hard_families}
    rest = [row for row in rows if cluster_of[row.uid] not in hard_clusters]
    split_of = _deal(rest, cluster_of, fractions, rng)
    split_rows: dict[str, Split] = {"train": [], "validation": [], "test": []}
    for row in rest:
        split_rows[split_of[cluster_of[row.uid]]].append(row)
    split_rows["test_hard"] = [row for row in rows if row.family in hard_families]
    unused = len(rows) - sum(map(len, split_rows.values()))
    logger.info("%d rows are in clusters of held-out families and not used", unused)

    counts = _pair_counts(split_rows, pairs, fractions)
    splits = {}
    for name, members in split_rows.items():
        try:
            positives = sample_positives(members, counts[name], rng, distinct=True)
            splits[name] = positives + sample_matched_negatives(
                members, positives, counts[name], rng, groups
            )
        except ValueError as error:
            raise ValueError(f"{_describe(name, members, counts[name])}: {error}") from error
    return splits, hard_families, method


def _usable(proteins: Iterable[SiteProtein], max_length: int) -> list[SiteProtein]:
    """Take the first of equal sequences in a family, in the order of uid and family."""
    rows: dict[tuple[str, str], SiteProtein] = {}
    for protein in sorted(proteins, key=lambda p: (p.uid, p.family, p.sequence, p.site_labels)):
        if len(protein.sequence) <= max_length:
            rows.setdefault((protein.sequence, protein.family), protein)
    return list(rows.values())


def _components(
    rows: Sequence[SiteProtein], identity: float, given: Mapping[str, str] | None
) -> tuple[dict[str, str], str]:
    """Give the cluster of each uid; clusters that share a uid, or an equal sequence, are one."""
    if given is not None:
        missing = sorted({row.uid for row in rows} - set(given))
        if missing:
            raise ValueError(
                f"clusters has no {missing[0]!r} and {len(missing) - 1} others; give a cluster "
                "for each uid, or leave it out"
            )
        links = {(f"uid {row.uid}", f"cluster {given[row.uid]}") for row in rows}
    else:
        found = cluster_sequences({row.sequence: row.sequence for row in rows}, identity)
        links = {(f"uid {row.uid}", f"cluster {found[row.sequence]}") for row in rows}
    links |= {(f"uid {row.uid}", f"sequence {row.sequence}") for row in rows}
    items = {item for link in links for item in link}
    component = connect(sorted(items), sorted(links))
    method = found.method if given is None else getattr(given, "method", "given")
    return {row.uid: component[f"uid {row.uid}"] for row in rows}, method


def _hold_out(rows: Sequence[SiteProtein], share: float, rng: np.random.Generator) -> list[str]:
    """Choose families with positives, at random."""
    families = sorted(_families_with_pairs(rows))
    count = max(MIN_HELD_OUT, round(share * len(families)))
    if len(families) < count + MIN_HELD_OUT:
        raise ValueError(
            f"{len(families)} families have two proteins or more, of "
            f"{len({row.family for row in rows})} families and {len(rows)} proteins; holding out "
            f"{count} leaves {max(len(families) - count, 0)} for training, and it takes "
            f"{MIN_HELD_OUT}: give more families, or hold out fewer"
        )
    return [families[i] for i in rng.permutation(len(families))[:count]]


def _deal(
    rows: Sequence[SiteProtein],
    cluster_of: Mapping[str, str],
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> dict[str, str]:
    """Place each cluster in training, validation or test.

    A family of several clusters gives half of them to validation or test, while these are short,
    so that they have remote pairs of families seen in training. The others go to training.
    """
    clusters_of = defaultdict(set)
    size: dict[str, int] = defaultdict(int)
    for row in rows:
        clusters_of[row.family].add(cluster_of[row.uid])
        size[cluster_of[row.uid]] += 1
    train, validation = fractions
    share = {"train": train, "validation": validation, "test": 1 - train - validation}
    room = {name: value * len(rows) for name, value in share.items()}
    split_of: dict[str, str] = {}

    def place(cluster: str, name: str) -> None:
        split_of[cluster] = name
        room[name] -= size[cluster]

    names = sorted(clusters_of)
    for name in [names[i] for i in rng.permutation(len(names))]:
        free = sorted(cluster for cluster in clusters_of[name] if cluster not in split_of)
        free = [free[i] for i in rng.permutation(len(free))]
        short = _shortest(("validation", "test"), room, share)
        # A cluster that would overfill a small split stays in training.
        given = [c for c in free[: (len(free) + 1) // 2] if size[c] <= room[short]]
        for cluster in given if len(free) > 1 else []:
            place(cluster, short)
        for cluster in free[len(given) :] if len(free) > 1 else []:
            if cluster not in split_of:
                place(cluster, "train")
    for cluster in sorted(set(size) - set(split_of)):
        place(cluster, _shortest(tuple(share), room, share))
    return split_of


def _shortest(names: Iterable[str], room: Mapping[str, float], share: Mapping[str, float]) -> str:
    return max(names, key=lambda name: room[name] / share[name] if share[name] else -np.inf)


def _families_with_pairs(rows: Iterable[SiteProtein]) -> dict[str, int]:
    """Count the proteins of each family that has two or more."""
    uids = defaultdict(set)
    for row in rows:
        uids[row.family].add(row.uid)
    return {family: len(members) for family, members in uids.items() if len(members) > 1}


def _pair_counts(
    splits: Mapping[str, Split], pairs: int | None, fractions: tuple[float, float]
) -> dict[str, int]:
    """Settle the number of positives of each split; negatives are as many."""
    train, validation = fractions
    share = {"train": train, "validation": validation, "test": 1 - train - validation}
    share["test_hard"] = share["test"]
    counts = {name: round((pairs or MOST_PAIRS) * share[name] / 2) for name in splits}
    for name, members in splits.items():
        sizes = _families_with_pairs(members).values()
        available = sum(comb(n, 2) for n in sizes)
        if pairs is None:
            enough = sum(min(comb(n, 2), PER_PROTEIN * n) for n in sizes)
            counts[name] = min(counts[name], enough, _different_pairs(members))
        if not 0 < counts[name] <= available or len({row.family for row in members}) < 2:
            raise ValueError(
                f"{_describe(name, members, counts[name])}; ask for fewer pairs, give more "
                "families, or other shares"
            )
    return counts


def _different_pairs(rows: Iterable[SiteProtein]) -> int:
    """Count positive pairs by their proteins, at most `MOST_PAIRS`: families may share pairs."""
    uids = defaultdict(set)
    for row in rows:
        uids[row.family].add(row.uid)
    found: set[tuple[str, str]] = set()
    for members in uids.values():
        if len(found) >= MOST_PAIRS:
            break
        found.update(islice(combinations(sorted(members), 2), MOST_PAIRS))
    return min(len(found), MOST_PAIRS)


def _describe(name: str, members: Split, count: int) -> str:
    sizes = _families_with_pairs(members)
    return (
        f"{name} has {len(members)} proteins of {len({row.family for row in members})} families, "
        f"{len(sizes)} of which form {sum(comb(n, 2) for n in sizes.values())} positive pairs, "
        f"for {count} positive and {count} negative pairs"
    )
