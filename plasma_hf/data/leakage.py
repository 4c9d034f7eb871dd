"""What the splits of a set of pairs give away: shared proteins, pairs and families, near copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .clusters import Method, nearest_identity
from .pairs import ProteinPair
from .sites import SiteProtein
from .splits import PairSplits

# Identities with which near copies are counted; below 40 % k-mers see chance only.
BINS = (0.0, 0.4, 0.5, 0.7, 0.9)
BIN_NAMES = ("< 40 %", "40-50 %", "50-70 %", "70-90 %", ">= 90 %")


@dataclass(frozen=True)
class SplitCounts:
    """Count what one split holds.

    Attributes:
        split: Name of the split.
        pairs: Number of pairs.
        positives: Those with label 1.
        negatives: Those with label 0.
        proteins: Different proteins, by uid.
        families: Different families that its proteins are drawn for.
        duplicates: Pairs that were there before, in whichever order.
        negatives_of_one_family: Negatives whose proteins share a family, in any table row.
        length_gap: Median of |difference in length| / longer, positives and negatives.
    """

    split: str
    pairs: int
    positives: int
    negatives: int
    proteins: int
    families: int
    duplicates: int
    negatives_of_one_family: int
    length_gap: tuple[float, float]


@dataclass(frozen=True)
class Overlap:
    """Count what two splits have in common.

    Attributes:
        splits: Names of the two.
        proteins: Proteins in both, by uid.
        sequences: Sequences in both, under whatever uid.
        pairs: Pairs in both, in whichever order.
        families: Families in both.
    """

    splits: tuple[str, str]
    proteins: int
    sequences: int
    pairs: int
    families: int


@dataclass(frozen=True)
class Nearest:
    """Say how close the proteins of a split come to those of training.

    Attributes:
        split: Name of the split.
        median: Median of the identity with the nearest protein of training.
        highest: Highest identity.
        counts: Proteins by identity, as in `BIN_NAMES`.
    """

    split: str
    median: float
    highest: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class LeakageReport:
    """Say what splits have in common, and how near they come to each other.

    Attributes:
        protocol: Protocol that the pairs were drawn by.
        seed: Its seed.
        splits: Counts of each split.
        overlaps: What each two splits share.
        nearest: Nearest identity with training, for each other split.
        identity_by: "mmseqs" or "kmers"; by k-mers, identities are estimates.
    """

    protocol: str
    seed: int
    splits: tuple[SplitCounts, ...]
    overlaps: tuple[Overlap, ...]
    nearest: tuple[Nearest, ...]
    identity_by: str

    def to_dict(self) -> dict[str, Any]:
        """Give the report for JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Write the report as three Markdown tables."""
        lines = [f"Protocol {self.protocol}, seed {self.seed}.", ""]
        lines += _table(
            "split|pairs|positive|negative|proteins|families|duplicates|negatives of one family|"
            "length gap, positive|length gap, negative",
            (
                (*list(vars(counts).values())[:-1], *(f"{gap:.3f}" for gap in counts.length_gap))
                for counts in self.splits
            ),
        )
        lines += _table(
            "in common|proteins|sequences|pairs|families",
            (
                (" and ".join(o.splits), o.proteins, o.sequences, o.pairs, o.families)
                for o in self.overlaps
            ),
        )
        lines += [f"Identity with the nearest training protein, by {self.identity_by}:", ""]
        lines += _table(
            "|".join(("split", "median", "highest", *BIN_NAMES)),
            ((n.split, f"{n.median:.2f}", f"{n.highest:.2f}", *n.counts) for n in self.nearest),
        )
        return "\n".join(lines).rstrip() + "\n"


def leakage_report(
    splits: PairSplits,
    proteins: Iterable[SiteProtein] | None = None,
    method: Method = "auto",
) -> LeakageReport:
    """Look for what a model could recognise in place of learning it.

    Args:
        splits: Pairs by split.
        proteins: The whole table, for families that the pairs were not drawn for; by default
            families are those that the pairs show.
        method: What finds near copies: "mmseqs", "kmers", or "auto" for MMseqs2 if `mmseqs` is on
            the PATH.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If MMseqs2 is asked for and is not installed.

    Example:
        >>> from plasma_hf.data.splits import make_splits
        >>> table = [SiteProtein(f"{f}{i}", f, "MKV", (0, 1, 1)) for f in "ABCD" for i in range(3)]
        >>> report = leakage_report(make_splits(table, "upstream", pairs=8, held_out=0.5))
        >>> report.overlaps[1].splits, report.overlaps[1].proteins
        (('train', 'test'), 3)
    """
    named = dict(splits.items())
    families: dict[str, set[str]] = {}
    shown = (side for pairs in named.values() for pair in pairs for side in _sides(pair))
    for protein in (*shown, *(proteins or ())):
        families.setdefault(protein.uid, set()).add(protein.family)
    nearest, found_by = _nearest(named, method)
    return LeakageReport(
        splits.protocol,
        splits.seed,
        tuple(_count(name, pairs, families) for name, pairs in named.items()),
        tuple(_overlap(pair, named) for pair in combinations(named, 2)),
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
        proteins=len({side.uid for pair in pairs for side in _sides(pair)}),
        families=len({side.family for pair in pairs for side in _sides(pair)}),
        duplicates=len(pairs) - len(Counter(map(_unordered, pairs))),
        negatives_of_one_family=sum(
            bool(families[pair.query.uid] & families[pair.candidate.uid]) for pair in negatives
        ),
        length_gap=(_length_gap(positives), _length_gap(negatives)),
    )


def _overlap(names: tuple[str, str], named: dict[str, Sequence[ProteinPair]]) -> Overlap:
    one, other = (named[name] for name in names)

    def common(attribute: str) -> int:
        values = [
            {getattr(side, attribute) for pair in pairs for side in _sides(pair)}
            for pairs in (one, other)
        ]
        return len(values[0] & values[1])

    pairs = len(set(map(_unordered, one)) & set(map(_unordered, other)))
    return Overlap(names, common("uid"), common("sequence"), pairs, common("family"))


def _nearest(
    named: dict[str, Sequence[ProteinPair]], method: Method
) -> tuple[tuple[Nearest, ...], str]:
    sequences = {
        name: sorted({side.sequence for pair in pairs for side in _sides(pair)})
        for name, pairs in named.items()
    }
    others = [name for name in named if name != "train"]
    asked = [sequence for name in others for sequence in sequences[name]]
    values, found_by = nearest_identity(asked, sequences["train"], method)
    ends = np.cumsum([len(sequences[name]) for name in others])
    parts = np.split(values, ends[:-1])
    return tuple(
        Nearest(
            name,
            float(np.median(part)) if len(part) else 0.0,
            float(part.max(initial=0.0)),
            tuple(np.histogram(part, (*BINS, np.inf))[0].tolist()),
        )
        for name, part in zip(others, parts, strict=True)
    ), found_by


def _sides(pair: ProteinPair) -> tuple[SiteProtein, SiteProtein]:
    return pair.query, pair.candidate


def _unordered(pair: ProteinPair) -> frozenset[str]:
    return frozenset((pair.query.uid, pair.candidate.uid))


def _length_gap(pairs: Sequence[ProteinPair]) -> float:
    lengths = [sorted(len(side.sequence) for side in _sides(pair)) for pair in pairs]
    return float(np.median([1 - low / high for low, high in lengths])) if lengths else 0.0


def _table(header: str, rows: Iterable[Iterable[object]]) -> list[str]:
    names = header.split("|")
    lines = [names, ["---"] * len(names), *([str(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]
