"""What the splits of a set of pairs give away: shared proteins, pairs and families, near copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ..io.formats import markdown_table
from .clusters import Method, nearest_identity
from .pairs import ProteinPair
from .sites import SiteProtein
from .splits import PairSplits

# Identities with which near copies are counted; below 40 % k-mers see chance only.
BINS = (0.0, 0.4, 0.5, 0.7, 0.9)
BIN_NAMES = ("< 40 %", "40-50 %", "50-70 %", "70-90 %", ">= 90 %")


@dataclass(frozen=True)
class SplitCounts:
    """What one split holds."""

    split: str
    pairs: int
    positives: int
    negatives: int
    proteins: int  # different ones, by uid
    families: int  # that its proteins are drawn for
    duplicates: int  # pairs that were there before, in whichever order
    negatives_of_one_family: int  # whose proteins share a family, in any table row
    length_gap: tuple[float, float]  # median of 1 - shorter / longer, positives and negatives


@dataclass(frozen=True)
class Overlap:
    """What two splits have in common."""

    splits: tuple[str, str]
    proteins: int  # by uid
    sequences: int  # under whatever uid
    pairs: int  # in whichever order
    families: int


@dataclass(frozen=True)
class Nearest:
    """Identity of the proteins of a split with the nearest protein of training."""

    split: str
    median: float
    highest: float
    counts: tuple[int, ...]  # proteins by identity, as in `BIN_NAMES`


@dataclass(frozen=True)
class LeakageReport:
    """What splits have in common, and how near they come to training."""

    protocol: str
    seed: int
    splits: tuple[SplitCounts, ...]
    overlaps: tuple[Overlap, ...]
    nearest: tuple[Nearest, ...]
    identity_by: str  # "mmseqs" or "kmers"; by k-mers, identities are estimates

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Write the report as three Markdown tables."""
        header = "split|pairs|positive|negative|proteins|families|duplicates|"
        header += "negatives of one family|length gap, positive|length gap, negative"
        counts = [
            [*list(asdict(one).values())[:-1], *(f"{gap:.3f}" for gap in one.length_gap)]
            for one in self.splits
        ]
        common = [
            [" and ".join(one.splits), *list(asdict(one).values())[1:]] for one in self.overlaps
        ]
        near = [
            [one.split, f"{one.median:.2f}", f"{one.highest:.2f}", *one.counts]
            for one in self.nearest
        ]
        parts = [
            f"Protocol {self.protocol}, seed {self.seed}.",
            _table(header, counts),
            _table("in common|proteins|sequences|pairs|families", common),
            f"Identity with the nearest training protein, by {self.identity_by}:",
            _table("|".join(("split", "median", "highest", *BIN_NAMES)), near),
        ]
        return "\n\n".join(parts) + "\n"


def _table(header: str, rows: Iterable[Iterable[object]]) -> str:
    names = header.split("|")
    return markdown_table(names, [list(map(str, row)) for row in rows], left=len(names))


def leakage_report(
    splits: PairSplits, proteins: Iterable[SiteProtein] | None = None, method: Method = "auto"
) -> LeakageReport:
    """Look for what a model could recognise in place of learning it.

    Args:
        proteins: The whole table, for families that the pairs were not drawn for; by default
            families are those that the pairs show.
        method: What finds near copies: "mmseqs", "kmers", or "auto" for MMseqs2 if `mmseqs` is on
            the PATH.

    Example:
        >>> from plasma_hf.data.splits import make_splits
        >>> table = [SiteProtein(f"{f}{i}", f, "MKV", (0, 1, 1)) for f in "ABCD" for i in range(3)]
        >>> report = leakage_report(make_splits(table, "upstream", pairs=8, held_out=0.5))
        >>> report.overlaps[1].splits, report.overlaps[1].proteins
        (('train', 'test'), 3)
    """
    named = dict(splits.items())
    sides = {name: [side for pair in pairs for side in pair.sides] for name, pairs in named.items()}
    families: dict[str, set[str]] = {}
    for protein in (*(side for shown in sides.values() for side in shown), *(proteins or ())):
        families.setdefault(protein.uid, set()).add(protein.family)
    nearest, found_by = _nearest(sides, method)
    return LeakageReport(
        splits.protocol,
        splits.seed,
        tuple(_count(name, pairs, families) for name, pairs in named.items()),
        tuple(_overlap(one, other, named, sides) for one, other in combinations(named, 2)),
        nearest,
        found_by,
    )


def _count(name: str, pairs: Sequence[ProteinPair], families: dict[str, set[str]]) -> SplitCounts:
    positives = [pair for pair in pairs if pair.label]
    negatives = [pair for pair in pairs if not pair.label]
    return SplitCounts(
        split=name,
        pairs=len(pairs),
        positives=len(positives),
        negatives=len(negatives),
        proteins=len({side.uid for pair in pairs for side in pair.sides}),
        families=len({side.family for pair in pairs for side in pair.sides}),
        duplicates=len(pairs) - len({pair.uids for pair in pairs}),
        negatives_of_one_family=sum(
            bool(families[pair.query.uid] & families[pair.candidate.uid]) for pair in negatives
        ),
        length_gap=(_length_gap(positives), _length_gap(negatives)),
    )


def _length_gap(pairs: Sequence[ProteinPair]) -> float:
    lengths = [sorted(len(side.sequence) for side in pair.sides) for pair in pairs]
    return float(np.median([1 - low / high for low, high in lengths])) if lengths else 0.0


def _overlap(
    one: str,
    other: str,
    named: Mapping[str, Sequence[ProteinPair]],
    sides: Mapping[str, Sequence[SiteProtein]],
) -> Overlap:
    def common(name: str) -> int:
        values = [{getattr(side, name) for side in sides[split]} for split in (one, other)]
        return len(values[0] & values[1])

    pairs = [{pair.uids for pair in named[split]} for split in (one, other)]
    return Overlap(
        (one, other), common("uid"), common("sequence"), len(pairs[0] & pairs[1]), common("family")
    )


def _nearest(
    sides: Mapping[str, Sequence[SiteProtein]], method: Method
) -> tuple[tuple[Nearest, ...], str]:
    sequences = {name: sorted({side.sequence for side in shown}) for name, shown in sides.items()}
    training = sequences.pop("train")
    asked = [sequence for others in sequences.values() for sequence in others]
    values, found_by = nearest_identity(asked, training, method)
    nearest = []
    for name, others in sequences.items():
        part, values = np.split(values, [len(others)])
        counts = tuple(np.histogram(part, (*BINS, np.inf))[0].tolist())
        median = float(np.median(part)) if len(part) else 0.0
        nearest.append(Nearest(name, median, float(part.max(initial=0.0)), counts))
    return tuple(nearest), found_by
