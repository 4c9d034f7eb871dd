"""Pairs that leave nothing to look up: no protein, cluster or length tells an answer.

Proteins similar in sequence form clusters, and a cluster lies in one split or in none. Some
families are held out for `test_hard` with all their clusters (extrapolation). Every other family
of two clusters or more may give some to validation or test and keeps the others in training
(interpolation). Negatives share no family and no cluster, and have the lengths of positives.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from math import comb
from typing import Any, Literal

import numpy as np

from .clusters import cluster_sequences, connect
from .pairs import ProteinPair, sample_matched_negatives, sample_positives
from .sites import SiteProtein

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


# --- The published sampler of pairs, draw for draw (dataset_prep.py of the PLASMA repository).


Rows = tuple[int, int]
LabelledRows = tuple[int, int, int]


def sample_upstream(
    proteins: Sequence[SiteProtein],
    seed: int,
    pairs: int = 20_000,
    held_out: float = 0.1,
    fractions: tuple[float, float] = (0.75, 0.05),
    max_length: int = 1024,
    family_order: Sequence[str] | None = None,
) -> tuple[dict[str, list[LabelledRows]], list[str]]:
    """Draw training, validation and test pairs as the authors did.

    The state of the module `random` is left alone; the same numbers come from a generator of its
    own. Pairs depend on the order of the rows: give train, valid and test tables in this order.

    Args:
        proteins: Rows of the table, in its order.
        seed: Seed; the authors used 1, 42 and 100.
        pairs: Pairs of the families that are not held out; half are positive.
        held_out: Share of the families that are held out.
        fractions: Shares of training and validation; the rest is test.
        max_length: Longest sequence to use, in residues.
        family_order: Families from the most to the least frequent; by default ties are in order
            of first appearance, as pandas 3 has them.

    Returns:
        Rows and label of each pair `(query, candidate, label)` by split, and the families held
        out, in the order they were drawn.

    Raises:
        ValueError: If there are fewer than two families with two proteins to draw from.

    Example:
        >>> table = [SiteProtein(f"{f}{i}", f, "MKV", (0, 1, 1)) for f in "ABCD" for i in range(3)]
        >>> splits, held_out = sample_upstream(table, seed=1, pairs=8, held_out=0.5)
        >>> [len(split) for split in splits.values()], held_out
        ([6, 0, 2, 2], ['D', 'A'])
    """
    rng = random.Random(seed)
    rows = [i for i, protein in enumerate(proteins) if len(protein.sequence) <= max_length]
    counts = Counter(proteins[i].family for i in rows)
    # most_common sorts stably, so equal counts stay in order of first appearance.
    order = [family for family, _ in counts.most_common()]
    if family_order is not None:
        order = [family for family in family_order if family in counts]
    shuffled = list(order)
    rng.shuffle(shuffled)
    excluded = shuffled[: max(1, int(held_out * len(shuffled)))]

    sampler = _Sampler(proteins, rows, order, rng)
    main = sampler.families(set(shuffled) - set(excluded), "main")
    drawn = [(*pair, 1) for pair in sampler.positives(main, pairs // 2)]
    drawn += [(*pair, 0) for pair in sampler.negatives(main, pairs // 2)]
    rng.shuffle(drawn)
    n_train, n_validation = (int(fraction * len(drawn)) for fraction in fractions)
    splits = {
        "train": drawn[:n_train],
        "validation": drawn[n_train : n_train + n_validation],
        "test": drawn[n_train + n_validation :],
    }
    hard = sampler.families(set(excluded), "held-out")
    half = len(splits["test"]) // 2
    splits["test_hard"] = [(*pair, 1) for pair in sampler.positives(hard, half)]
    splits["test_hard"] += [(*pair, 0) for pair in sampler.negatives(hard, half)]
    return splits, excluded


class _Sampler:
    """Draw positive and negative pairs of rows from lists of rows, one list per family."""

    def __init__(
        self,
        proteins: Sequence[SiteProtein],
        rows: Sequence[int],
        order: Sequence[str],
        rng: random.Random,
    ) -> None:
        self.uids = [protein.uid for protein in proteins]
        self.rng = rng
        self.members: dict[str, list[int]] = {family: [] for family in order}
        for row in rows:
            self.members[proteins[row].family].append(row)

    def families(self, names: set[str], pool: str) -> list[list[int]]:
        """Give the rows of each family with at least two, the most frequent first."""
        chosen = [rows for name, rows in self.members.items() if name in names and len(rows) > 1]
        if len(chosen) < 2:
            raise ValueError(
                f"the {pool} pool has {len(chosen)} families with two proteins or more, of "
                f"{len(names)} families and {sum(len(self.members[n]) for n in names)} proteins; "
                "the upstream protocol needs two in each pool: give more families, or another "
                "share held out"
            )
        return chosen

    def positives(self, families: list[list[int]], target: int) -> list[Rows]:
        """Draw pairs within families, the same number from each as far as it goes."""

        def draw(number: int) -> Rows:
            first, second = self.rng.sample(families[number], 2)
            return min(first, second), max(first, second)

        def draw_any() -> Rows:
            first, second = self.rng.sample(self.rng.choice(families), 2)
            return min(first, second), max(first, second)

        return self._fill(families, target, draw, draw_any)

    def negatives(self, families: list[list[int]], target: int) -> list[Rows]:
        """Draw pairs across families, each of which comes first in the same number."""
        numbers = range(len(families))

        def draw(number: int) -> Rows:
            # `choice` takes an index below the length, so the list of the others is not needed.
            other = self.rng.choice(range(len(families) - 1))
            other += other >= number
            return self.rng.choice(families[number]), self.rng.choice(families[other])

        def draw_any() -> Rows:
            one, other = self.rng.sample(numbers, 2)
            return self.rng.choice(families[one]), self.rng.choice(families[other])

        return self._fill(families, target, draw, draw_any)

    def _fill(
        self,
        families: list[list[int]],
        target: int,
        draw: Callable[[int], Rows],
        draw_any: Callable[[], Rows],
    ) -> list[Rows]:
        drawn: list[Rows] = []
        for number in range(len(families)):
            need = target // len(families) + (number < target % len(families))
            # The order of iteration of a set of pairs of small integers is part of the protocol.
            drawn += self._distinct(need, 50 * need, partial(draw, number))
        missing = target - len(drawn)
        known = set(drawn)
        for _ in range(100 * max(missing, 0)):
            if len(known) >= target:
                break
            pair = draw_any()
            if self._differ(pair) and pair not in known:
                known.add(pair)
                drawn.append(pair)
        return drawn

    def _distinct(self, size: int, attempts: int, draw: Callable[[], Rows]) -> set[Rows]:
        """Draw pairs of different proteins until there are enough."""
        found: set[Rows] = set()
        for _ in range(attempts):
            if len(found) >= size:
                break
            pair = draw()
            if self._differ(pair):
                found.add(pair)
        return found

    def _differ(self, pair: Rows) -> bool:
        return self.uids[pair[0]] != self.uids[pair[1]]


# --- Training, validation and test pairs of one table, by the published protocol or a strict one.


Protocol = Literal["upstream", "strict"]
SPLITS = ("train", "validation", "test", "test_hard")


@dataclass(frozen=True)
class PairSplits:
    """Hold the pairs to learn from and to judge by; pairs share their proteins.

    Attributes:
        train: Pairs to learn from.
        validation: Pairs to stop by.
        test: Pairs of families that are in training too (interpolation).
        test_hard: Pairs of families that are nowhere else (extrapolation).
        protocol: "upstream" or "strict".
        seed: Seed they were drawn with.
        held_out_families: Families of `test_hard`.
        clusters_by: What clusters were found by: "mmseqs", "kmers" or "given"; empty where the
            protocol has no clusters.
    """

    train: Sequence[ProteinPair]
    validation: Sequence[ProteinPair]
    test: Sequence[ProteinPair]
    test_hard: Sequence[ProteinPair]
    protocol: str
    seed: int
    held_out_families: tuple[str, ...] = ()
    clusters_by: str = ""

    def items(self) -> Iterator[tuple[str, Sequence[ProteinPair]]]:
        """Give the splits with their names."""
        return ((name, getattr(self, name)) for name in SPLITS)


def make_splits(
    proteins: Sequence[SiteProtein],
    protocol: Protocol = "strict",
    seed: int = 1,
    pairs: int | None = None,
    *,
    held_out: float = 0.1,
    fractions: tuple[float, float] = (0.75, 0.05),
    max_length: int = 1024,
    identity: float = 0.5,
    clusters: Mapping[str, str] | None = None,
    family_order: Sequence[str] | None = None,
) -> PairSplits:
    """Draw pairs for training, validation and two tests.

    Args:
        proteins: Proteins with their families and sites, as `read_site_table` gives them.
        protocol: "strict": splits share no protein and no sequence cluster, negatives share no
            family and match positives in length, whole families are held out; or "upstream": the
            published sampler, which promises none of this.
        seed: Seed; the same seed gives the same pairs.
        pairs: Pairs in training, validation and test together; `test_hard` has as many as test.
            By default 20,000 for "upstream", what the proteins give for "strict".
        held_out: Share of the families that are held out for `test_hard`.
        fractions: Shares of training and validation; the rest is test.
        max_length: Longest sequence to use, in residues.
        identity: For "strict", identity from which on two proteins are in one cluster.
        clusters: For "strict", cluster by uid, in place of `identity`.
        family_order: For "upstream", families by falling frequency, where ties matter.

    Returns:
        The pairs by split.

    Raises:
        ValueError: If the protocol is unknown, a share is out of range, or the proteins are too
            few, with the counts.

    Example:
        >>> table = [SiteProtein(f"{f}{i}", f, "MKV", (0, 1, 1)) for f in "ABCD" for i in range(3)]
        >>> splits = make_splits(table, "upstream", pairs=8, held_out=0.5)
        >>> len(splits.train), len(splits.test_hard), splits.held_out_families
        (6, 2, ('D', 'A'))
    """
    _check(held_out, fractions, pairs)
    if protocol == "strict":
        drawn, families, method = sample_strict(
            proteins, seed, pairs, held_out, fractions, max_length, identity, clusters
        )
        return _named(drawn, protocol, seed, families, method)
    if protocol != "upstream":
        raise ValueError(f"protocol is {protocol!r}; give 'strict' or 'upstream'")
    rows, families = sample_upstream(
        proteins,
        seed,
        20_000 if pairs is None else pairs,
        held_out,
        fractions,
        max_length,
        family_order,
    )
    named = {
        name: [ProteinPair(proteins[i], proteins[j], label) for i, j, label in split]
        for name, split in rows.items()
    }
    return _named(named, protocol, seed, families)


def _named(
    drawn: Mapping[str, Sequence[ProteinPair]],
    protocol: str,
    seed: int,
    families: Sequence[str],
    clusters_by: str = "",
) -> PairSplits:
    train, validation, test, test_hard = (drawn[name] for name in SPLITS)
    return PairSplits(
        train, validation, test, test_hard, protocol, seed, tuple(families), clusters_by
    )


def iter_pairs(
    pairs: Sequence[ProteinPair], seed: int | None = None, epoch: int = 0
) -> Iterator[ProteinPair]:
    """Go through pairs once, in an order of its own for each epoch.

    Args:
        pairs: Pairs.
        seed: Seed of the order; without one pairs come as they are.
        epoch: Number of the epoch; with the seed it fixes the order.

    Yields:
        Each pair once.

    Example:
        >>> list(iter_pairs("abcd")), list(iter_pairs("abcd", seed=1, epoch=1))
        (['a', 'b', 'c', 'd'], ['c', 'a', 'b', 'd'])
    """
    if seed is None:
        yield from pairs
        return
    for i in np.random.default_rng((seed, epoch)).permutation(len(pairs)):
        yield pairs[int(i)]


def pair_rows(
    pairs: Sequence[ProteinPair], seed: int | None = None, epoch: int = 0
) -> Iterator[dict[str, Any]]:
    """Give pairs as the rows that `PairCollator` takes, one at a time.

    It suits `datasets.IterableDataset.from_generator(pair_rows, gen_kwargs={"pairs": pairs})`.

    Args:
        pairs: Pairs.
        seed: As in `iter_pairs`.
        epoch: As in `iter_pairs`.

    Yields:
        Rows with `query` and `candidate` (sequences), `label`, `query_site_labels` and
        `candidate_site_labels`, `query_uid` and `candidate_uid`, and `family`, that of the query.

    Example:
        >>> one, other = (SiteProtein(uid, "F", "MKV", (0, 1, 1)) for uid in ("P1", "P2"))
        >>> [row] = pair_rows([ProteinPair(one, other, 1)])
        >>> row["query"], row["query_site_labels"], row["candidate_uid"], row["label"]
        ('MKV', [0, 1, 1], 'P2', 1)
    """
    for pair in iter_pairs(pairs, seed, epoch):
        yield {
            "query": pair.query.sequence,
            "candidate": pair.candidate.sequence,
            "label": pair.label,
            "query_site_labels": list(pair.query.site_labels),
            "candidate_site_labels": list(pair.candidate.site_labels),
            "query_uid": pair.query.uid,
            "candidate_uid": pair.candidate.uid,
            "family": pair.query.family,
        }


def _check(held_out: float, fractions: tuple[float, float], pairs: int | None) -> None:
    train, validation = fractions
    if not (0 < held_out < 1 and train > 0 and validation > 0 and train + validation < 1):
        raise ValueError(
            f"held_out is {held_out} and fractions {fractions}; give shares above 0, of training "
            "and validation together below 1"
        )
    if pairs is not None and pairs < 2:
        raise ValueError(f"pairs is {pairs}; give 2 or more, or None for the default")
