"""Pairs of sequence and structure in three parts that share no sequence cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..data.structure_rows import StructurePair
from ..data.structure_splits import split_by_cluster


@dataclass(frozen=True)
class PairParts:
    """Hold pairs in three parts.

    Attributes:
        train: To learn from.
        validation: To choose the best model by.
        test: To judge by.
        details: How they were made, for the record.
    """

    train: Sequence[StructurePair]
    validation: Sequence[StructurePair]
    test: Sequence[StructurePair]
    details: Mapping[str, Any] = field(default_factory=dict)


def split_pairs(
    pairs: Sequence[StructurePair],
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    identity: float | None = None,
) -> PairParts:
    """Split pairs by sequence cluster; of pairs with equal sequences the first one stays.

    A pair without a family gets its cluster for one.

    Args:
        pairs: Sequences and structures.
        seed: Of the split.
        fractions: For train, validation and test.
        identity: From which on two sequences are in one cluster, see `split_by_cluster`.

    Raises:
        ValueError: If train has no two pairs, or another part that is asked for.
    """
    first = {pair.sequence: pair for pair in reversed(pairs)}
    kept = [pair for pair in pairs if first[pair.sequence] is pair]
    split = split_by_cluster([pair.sequence for pair in kept], fractions, seed, identity=identity)
    named = [
        pair if pair.family is not None else replace(pair, family=kept[cluster].id)
        for pair, cluster in zip(kept, split.clusters, strict=True)
    ]
    parts = [[named[i] for i in part] for part in (split.train, split.validation, split.test)]
    for name, part, share in zip(("training", "validation", "test"), parts, fractions, strict=True):
        if len(part) < 2 and share:
            raise ValueError(
                f"{len(part)} of {len(kept)} different sequences are for {name}; give more "
                "structures, or a larger share."
            )
    details = {
        "split seed": seed,
        "identity of clusters": split.identity,
        "clusters by": split.method,
        "pairs of equal sequence left out": len(pairs) - len(kept),
    }
    return PairParts(parts[0], parts[1], parts[2], details)
