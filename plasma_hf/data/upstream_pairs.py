"""The published sampler of pairs, draw for draw (dataset_prep.py of the PLASMA repository).

It is here to compare with published figures. Its splits share proteins and pairs, some of its
negatives share a family, and members of a family are of like length while negatives are not:
`leakage_report` shows it. `strict_pairs` is the protocol to judge a model by.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from .site_table import SiteProtein

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
