"""Training, validation and test pairs of one table, by the published protocol or a strict one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .pairs import ProteinPair
from .site_table import SiteProtein
from .strict_pairs import sample_strict
from .upstream_pairs import sample_upstream

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
