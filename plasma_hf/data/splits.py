"""Training, validation and test pairs of one table, by a strict protocol or the published one.

The strict protocol leaves nothing to look up: no protein, cluster or length tells an answer.
Proteins similar in sequence form clusters, and a cluster lies in one split or in none. Some
families are held out for `test_hard` with all their clusters (extrapolation). Every other family
of two clusters or more may give some to validation or test and keeps the others in training
(interpolation). Negatives share no family and no cluster, and have the lengths of positives.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import Any, Literal

import numpy as np

from .clusters import cluster_sequences, connect
from .pairs import ProteinPair, sample_matched_pairs
from .sites import SiteProtein

logger = logging.getLogger(__name__)

Protocol = Literal["strict", "upstream"]
SPLITS = ("train", "validation", "test", "test_hard")
Rows = tuple[int, int]
MIN_HELD_OUT = 2  # families: negatives need two
# Positives drawn from a family by default, as a multiple of its proteins: a protein is then in
# some eight pairs, and a large family, which has far more, does not crowd out the others.
PER_PROTEIN = 4
MOST_PAIRS = 20_000


@dataclass(frozen=True)
class PairSplits:
    """Pairs to learn from and to judge by."""

    train: Sequence[ProteinPair]
    validation: Sequence[ProteinPair]
    test: Sequence[ProteinPair]  # of families that are in training too (interpolation)
    test_hard: Sequence[ProteinPair]  # of families that are nowhere else (extrapolation)
    protocol: str
    seed: int
    held_out_families: tuple[str, ...] = ()  # those of test_hard
    clusters_by: str = ""  # "mmseqs" or "kmers"; "" where the protocol has no clusters

    def items(self) -> Iterator[tuple[str, Sequence[ProteinPair]]]:
        """Return the splits with their names."""
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
    family_order: Sequence[str] | None = None,
) -> PairSplits:
    """Draw pairs for training, validation and two tests.

    Args:
        proteins: Proteins with their families and sites, as `read_site_table` returns them.
        protocol: "strict": splits share no protein and no sequence cluster, negatives share no
            family and match positives in length, whole families are held out; or "upstream": the
            published sampler, which promises none of this.
        pairs: Pairs in training, validation and test together, half of them positive; `test_hard`
            has as many as test. By default 20,000 for "upstream"; for "strict" what the proteins
            give, at most 20,000.
        held_out: Share of the families that are held out for `test_hard`.
        fractions: Shares of training and validation; the rest is test.
        max_length: Longest sequence to use, in residues.
        identity: For "strict", identity from which on two proteins are in one cluster.
        family_order: For "upstream", families by falling frequency, where ties matter.

    Example:
        >>> table = [SiteProtein(f"{f}{i}", f, "MKV", (0, 1, 1)) for f in "ABCD" for i in range(3)]
        >>> splits = make_splits(table, "upstream", pairs=8, held_out=0.5)
        >>> len(splits.train), len(splits.test_hard), splits.held_out_families
        (6, 2, ('D', 'A'))
    """
    if not (0 < held_out < 1 and min(fractions) > 0 and sum(fractions) < 1):
        raise ValueError(
            f"held_out is {held_out} and fractions {fractions}; give shares above 0, of training "
            "and validation together below 1"
        )
    if pairs is not None and pairs < 2:
        raise ValueError(f"pairs is {pairs}; give 2 or more, or None for the default")
    if protocol not in ("strict", "upstream"):
        raise ValueError(f"protocol is {protocol!r}; give 'strict' or 'upstream'")
    if protocol == "strict":
        drawn, families, method = _strict(
            proteins, seed, pairs, held_out, fractions, max_length, identity
        )
    else:
        count = MOST_PAIRS if pairs is None else pairs
        rows, families = sample_upstream(
            proteins, seed, count, held_out, fractions, max_length, family_order
        )
        drawn = {
            name: [ProteinPair(proteins[i], proteins[j], label) for i, j, label in split]
            for name, split in rows.items()
        }
        method = ""
    train, validation, test, test_hard = (drawn[name] for name in SPLITS)
    return PairSplits(train, validation, test, test_hard, protocol, seed, tuple(families), method)


def pair_rows(pairs: Iterable[ProteinPair]) -> Iterator[dict[str, Any]]:
    """Write pairs as the rows that `PairCollator` takes, one at a time.

    It suits `datasets.IterableDataset.from_generator(pair_rows, gen_kwargs={"pairs": pairs})`.

    Yields:
        Rows with `query` and `candidate` (sequences), `label`, `query_site_labels` and
        `candidate_site_labels`, `query_uid` and `candidate_uid`, and `family`, that of the query.

    Example:
        >>> one, other = (SiteProtein(uid, "F", "MKV", (0, 1, 1)) for uid in ("P1", "P2"))
        >>> [row] = pair_rows([ProteinPair(one, other, 1)])
        >>> row["query"], row["query_site_labels"], row["candidate_uid"], row["label"]
        ('MKV', [0, 1, 1], 'P2', 1)
    """
    for pair in pairs:
        row: dict[str, Any] = {"label": pair.label, "family": pair.query.family}
        for side, protein in zip(("query", "candidate"), pair.sides, strict=True):
            row[side], row[f"{side}_uid"] = protein.sequence, protein.uid
            row[f"{side}_site_labels"] = list(protein.site_labels)
        yield row


# --- The strict protocol.


def _strict(
    proteins: Sequence[SiteProtein],
    seed: int,
    pairs: int | None,
    held_out: float,
    fractions: tuple[float, float],
    max_length: int,
    identity: float,
) -> tuple[dict[str, list[ProteinPair]], list[str], str]:
    """Draw pairs by split, the families held out, and how clusters were found."""
    rng = np.random.default_rng(seed)
    train, validation = fractions
    share = {"train": train, "validation": validation, "test": 1 - train - validation}
    usable: dict[tuple[str, str], SiteProtein] = {}  # the first of equal sequences in a family
    for protein in sorted(proteins, key=lambda p: (p.uid, p.family, p.sequence, p.site_labels)):
        if len(protein.sequence) <= max_length:
            usable.setdefault((protein.sequence, protein.family), protein)
    rows = list(usable.values())
    cluster_of, method = _components(rows, identity)
    groups: dict[str, set[str]] = defaultdict(set)
    for row in proteins:
        groups[row.uid] |= {f"family {row.family}", f"cluster {cluster_of.get(row.uid)}"}
    hard_families = _hold_out(rows, held_out, rng)
    hard_clusters = {cluster_of.get(row.uid) for row in proteins if row.family in hard_families}
    rest = [row for row in rows if cluster_of[row.uid] not in hard_clusters]
    split_of = _deal(rest, cluster_of, share, rng)
    split_rows: dict[str, list[SiteProtein]] = {name: [] for name in share}
    for row in rest:
        split_rows[split_of[cluster_of[row.uid]]].append(row)
    split_rows["test_hard"] = [row for row in rows if row.family in hard_families]
    unused = len(rows) - sum(map(len, split_rows.values()))
    logger.info("%d rows are in clusters of held-out families and not used", unused)
    share["test_hard"] = share["test"]
    most = {name: round((pairs or MOST_PAIRS) * part / 2) for name, part in share.items()}
    splits = {
        name: _draw(name, members, most[name], pairs is None, groups, rng)
        for name, members in split_rows.items()
    }
    return splits, hard_families, method


def _components(rows: Sequence[SiteProtein], identity: float) -> tuple[dict[str, str], str]:
    """Return the cluster of each uid; clusters that share a uid, or an equal sequence, are one."""
    found = cluster_sequences({row.sequence: row.sequence for row in rows}, identity)
    links = {(f"uid {row.uid}", f"cluster {found[row.sequence]}") for row in rows}
    links |= {(f"uid {row.uid}", f"sequence {row.sequence}") for row in rows}
    component = connect(sorted({item for link in links for item in link}), sorted(links))
    return {row.uid: component[f"uid {row.uid}"] for row in rows}, found.method


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
    return _shuffled(families, rng)[:count]


def _deal(
    rows: Sequence[SiteProtein],
    cluster_of: Mapping[str, str],
    share: Mapping[str, float],
    rng: np.random.Generator,
) -> dict[str, str]:
    """Place each cluster in training, validation or test.

    A family of several clusters gives half of them to validation or test, while these are short,
    so that they have remote pairs of families seen in training. The others go to training.
    """
    clusters_of = defaultdict(set)
    for row in rows:
        clusters_of[row.family].add(cluster_of[row.uid])
    size = Counter(cluster_of[row.uid] for row in rows)
    room = {name: value * len(rows) for name, value in share.items()}
    split_of: dict[str, str] = {}

    def place(clusters: Iterable[str], name: str) -> None:
        for cluster in clusters:
            if cluster not in split_of:
                split_of[cluster] = name
                room[name] -= size[cluster]

    for family in _shuffled(sorted(clusters_of), rng):
        free = _shuffled(sorted(clusters_of[family] - set(split_of)), rng)
        if len(free) > 1:
            short = _shortest(("validation", "test"), room, share)
            # A cluster that would overfill a small split is not given to it.
            given = [c for c in free[: (len(free) + 1) // 2] if size[c] <= room[short]]
            place(given, short)
            place(free[len(given) :], "train")
    for cluster in sorted(size):
        place([cluster], _shortest(share, room, share))
    return split_of


def _shuffled(items: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [items[i] for i in rng.permutation(len(items))]


def _shortest(names: Iterable[str], room: Mapping[str, float], share: Mapping[str, float]) -> str:
    return max(names, key=lambda name: room[name] / share[name] if share[name] else -np.inf)


def _families_with_pairs(rows: Iterable[SiteProtein]) -> dict[str, set[str]]:
    """Return the uids of each family that has two or more."""
    uids = defaultdict(set)
    for row in rows:
        uids[row.family].add(row.uid)
    return {family: members for family, members in uids.items() if len(members) > 1}


def _draw(
    name: str,
    rows: Sequence[SiteProtein],
    count: int,
    at_most: bool,
    groups: Mapping[str, set[str]],
    rng: np.random.Generator,
) -> list[ProteinPair]:
    """Draw as many positives as asked for, or at most that, and as many negatives."""
    families = _families_with_pairs(rows).values()
    if at_most:
        # Families may share pairs: of these, one is drawn.
        different: set[tuple[str, str]] = set()
        for uids in families:
            if len(different) < count:
                different.update(islice(combinations(sorted(uids), 2), count))
        enough = sum(min(comb(len(uids), 2), PER_PROTEIN * len(uids)) for uids in families)
        count = min(count, enough, len(different))
    available = sum(comb(len(uids), 2) for uids in families)
    n_families = len({row.family for row in rows})
    try:
        if not 0 < count <= available or n_families < 2:
            raise ValueError("ask for fewer pairs, give more families, or other shares")
        return sample_matched_pairs(rows, count, count, rng, groups, distinct=True)
    except ValueError as error:
        raise ValueError(
            f"{name} has {len(rows)} proteins of {n_families} families, {len(families)} of which "
            f"form {available} positive pairs, for {count} positive and {count} negative pairs: "
            f"{error}"
        ) from error


# --- The published protocol, draw for draw (dataset_prep.py of the PLASMA repository).


def sample_upstream(
    proteins: Sequence[SiteProtein],
    seed: int,
    pairs: int = MOST_PAIRS,
    held_out: float = 0.1,
    fractions: tuple[float, float] = (0.75, 0.05),
    max_length: int = 1024,
    family_order: Sequence[str] | None = None,
) -> tuple[dict[str, list[tuple[int, int, int]]], list[str]]:
    """Draw pairs as the authors did, with seeds 1, 42 and 100; arguments are `make_splits`'.

    Pairs depend on the order of the rows: give train, valid and test tables in this order. Ties in
    `family_order` are by default in order of first appearance, as pandas 3 has them.

    Returns:
        Rows and label of each pair `(query, candidate, label)` by split, and the families held
        out, in the order they were drawn.
    """
    rng = random.Random(seed)
    rows = [i for i, protein in enumerate(proteins) if len(protein.sequence) <= max_length]
    counts = Counter(proteins[i].family for i in rows)
    # most_common sorts stably, so equal counts stay in order of first appearance.
    order = family_order or [family for family, _ in counts.most_common()]
    members: dict[str, list[int]] = {family: [] for family in order if family in counts}
    for i in rows:
        members[proteins[i].family].append(i)
    shuffled = list(members)
    rng.shuffle(shuffled)
    excluded = shuffled[: max(1, int(held_out * len(shuffled)))]
    pools = {"main": set(shuffled) - set(excluded), "held-out": set(excluded)}
    main, hard = (_pool(members, names, pool) for pool, names in pools.items())
    uids = [protein.uid for protein in proteins]

    def draw(families: list[list[int]], target: int) -> list[tuple[int, int, int]]:
        return [
            (*rows, label) for label in (1, 0) for rows in _fill(families, target, label, uids, rng)
        ]

    drawn = draw(main, pairs // 2)
    rng.shuffle(drawn)
    n_train, n_validation = (int(fraction * len(drawn)) for fraction in fractions)
    train, rest = drawn[:n_train], drawn[n_train:]
    validation, test = rest[:n_validation], rest[n_validation:]
    test_hard = draw(hard, len(test) // 2)
    return dict(zip(SPLITS, (train, validation, test, test_hard), strict=True)), excluded


def _pool(members: Mapping[str, list[int]], names: set[str], pool: str) -> list[list[int]]:
    """Return the rows of each family with at least two, the most frequent first."""
    chosen = [rows for name, rows in members.items() if name in names and len(rows) > 1]
    if len(chosen) < 2:
        raise ValueError(
            f"the {pool} pool has {len(chosen)} families with two proteins or more, of "
            f"{len(names)} families and {sum(len(members[n]) for n in names)} proteins; upstream "
            "needs two in each pool: give more families, or another share held out"
        )
    return chosen


def _fill(
    families: list[list[int]], target: int, label: int, uids: Sequence[str], rng: random.Random
) -> list[Rows]:
    """Draw pairs of different proteins, the same number for each family as far as it goes."""

    def add(found: set[Rows], size: int, attempts: int, number: int | None) -> list[Rows]:
        added = []
        for _ in range(attempts):
            if len(found) >= size:
                break
            pair = _choose(families, number, label, rng)
            if uids[pair[0]] != uids[pair[1]] and pair not in found:
                found.add(pair)
                added.append(pair)
        return added

    drawn: list[Rows] = []
    for number in range(len(families)):
        need = target // len(families) + (number < target % len(families))
        found: set[Rows] = set()
        add(found, need, 50 * need, number)
        # The order of iteration of a set of pairs of small integers is part of the protocol.
        drawn += found
    return drawn + add(set(drawn), target, 100 * max(target - len(drawn), 0), None)


def _choose(families: list[list[int]], number: int | None, label: int, rng: random.Random) -> Rows:
    """Draw two rows of one family or of two; the number is that of the first, if it is given."""
    if label:
        one, two = rng.sample(rng.choice(families) if number is None else families[number], 2)
        return min(one, two), max(one, two)
    if number is None:
        number, other = rng.sample(range(len(families)), 2)
    else:
        # `choice` takes an index below the length, so the list of the others is not needed.
        other = rng.choice(range(len(families) - 1))
        other += other >= number
    return rng.choice(families[number]), rng.choice(families[other])
