"""Proteins with labelled sites, and pairs of them whose lengths do not give the label away."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from os import PathLike

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("uid", "interpro_id", "seq_full", "label")
LETTERS = frozenset("ACDEFGHIKLMNPQRSTVWYBJOUXZ")
LENGTH_TOLERANCE = 0.05
# A partner is drawn among so many nearest in length: enough for chance, few enough that
# negatives keep the length ratios of the positives.
NEAREST = 8


@dataclass(frozen=True)
class SiteProtein:
    """Hold one protein and the residues of its site.

    Attributes:
        uid: accession of the protein.
        family: entry that the site belongs to; a protein may appear under several.
        sequence: one-letter residues.
        site_labels: 1 inside the site, 0 outside, one per residue.
    """

    uid: str
    family: str
    sequence: str
    site_labels: tuple[int, ...]


@dataclass(frozen=True)
class BadRow:
    """Say which row of a table was left out, and why.

    Attributes:
        row: number of the row in the table, the first below the header being 1.
        uid: accession in that row, empty if it has none.
        reason: what is wrong with it.
    """

    row: int
    uid: str
    reason: str


@dataclass(frozen=True)
class ProteinPair:
    """Hold a query, a candidate and whether they are of one family.

    Attributes:
        query: the first protein.
        candidate: the second protein.
        label: 1 for the same family, 0 for different families.
    """

    query: SiteProtein
    candidate: SiteProtein
    label: int


def read_site_table(path: str | PathLike[str]) -> tuple[list[SiteProtein], list[BadRow]]:
    """Read a VenusX-style CSV table of sites, leaving out and reporting the rows that are wrong.

    Args:
        path: CSV file with the columns `uid`, `interpro_id`, `seq_full` and `label`, the last a
            JSON list of 0 and 1 as long as the sequence. Other columns are ignored.

    Returns:
        The valid proteins in the order of the file, and one report for each row left out.

    Raises:
        ValueError: if a column is missing.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "sites.csv"
        >>> rows = ["uid,interpro_id,seq_full,label", 'A,F,MKV,"[0, 1, 1]"', 'B,F,MK,"[0]"']
        >>> _ = path.write_text(chr(10).join(rows))
        >>> proteins, bad_rows = read_site_table(path)
        >>> proteins
        [SiteProtein(uid='A', family='F', sequence='MKV', site_labels=(0, 1, 1))]
        >>> bad_rows[0].reason
        'label holds 1 values for 2 residues'
    """
    proteins: dict[tuple[str, str], SiteProtein] = {}
    bad_rows = []
    for number, row in enumerate(_rows(path), start=1):
        try:
            protein = _parse(row)
            if (protein.uid, protein.family) in proteins:
                raise ValueError("repeats the uid and interpro_id of an earlier row")
            proteins[protein.uid, protein.family] = protein
        except ValueError as error:
            bad_rows.append(BadRow(number, row["uid"] or "", str(error)))
    return list(proteins.values()), bad_rows


def _rows(path: str | PathLike[str]) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}; "
                f"give a CSV table with a header holding {', '.join(COLUMNS)}"
            )
        yield from reader


def _parse(row: dict[str, str]) -> SiteProtein:
    empty = [name for name in COLUMNS if not row[name]]
    if empty:
        raise ValueError(f"nothing in {', '.join(empty)}")
    sequence = row["seq_full"]
    strange = sorted(set(sequence) - LETTERS)
    if strange:
        raise ValueError(f"seq_full holds {' '.join(map(repr, strange))}, not residue letters")
    labels = _parse_labels(row["label"])
    if len(labels) != len(sequence):
        raise ValueError(f"label holds {len(labels)} values for {len(sequence)} residues")
    return SiteProtein(row["uid"], row["interpro_id"], sequence, labels)


def _parse_labels(text: str) -> tuple[int, ...]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"label is not JSON: {error}") from error
    if not isinstance(values, list) or any(value not in (0, 1) for value in values):
        raise ValueError("label is not a list of 0 and 1")
    return tuple(int(value) for value in values)


def sample_matched_pairs(
    proteins: Iterable[SiteProtein], n_positive: int, n_negative: int, seed: int
) -> list[ProteinPair]:
    """Draw positive pairs from families, and negative pairs of the same lengths.

    Members of a family are of like length, so negatives drawn at random can be told apart by
    length alone. Here negative i copies the two lengths of positive i: query and candidate are
    each drawn among the few proteins nearest to it in length, and they share no family.

    Args:
        proteins: proteins with their families, in any order; the order has no influence.
        n_positive: number of pairs of one family. Families are drawn evenly, so that a large
            one does not dominate; no pair is drawn twice.
        n_negative: number of pairs of different families; beyond `n_positive`, the lengths
            are taken from the first positives again.
        seed: seed of the numpy generator; the same seed gives the same pairs.

    Returns:
        The positive pairs, then the negative ones.

    Raises:
        ValueError: if a count is negative, the proteins are too few for it, or one protein is
            given twice for the same family.

    Example:
        >>> names = ["A1", "A2", "B1", "B2"]
        >>> proteins = [SiteProtein(name, name[0], "MKVL", (0, 1, 1, 0)) for name in names]
        >>> pairs = sample_matched_pairs(proteins, n_positive=1, n_negative=1, seed=0)
        >>> [(pair.query.family == pair.candidate.family, pair.label) for pair in pairs]
        [(True, 1), (False, 0)]
    """
    ordered = _ordered(proteins)
    _check_counts(n_positive, n_negative)
    rng = np.random.default_rng(seed)
    positives = _sample_positives(ordered, n_positive, rng)
    return positives + sample_matched_negatives(ordered, positives, n_negative, rng)


def sample_matched_negatives(
    proteins: Iterable[SiteProtein],
    positives: Sequence[ProteinPair],
    n_negative: int,
    seed: int | np.random.Generator,
) -> list[ProteinPair]:
    """Draw negative pairs in the lengths of given positive ones; see `sample_matched_pairs`.

    Args:
        proteins: proteins with their families, in any order; the order has no influence.
        positives: pairs to copy the lengths from, in turn.
        n_negative: number of pairs of different families.
        seed: seed, or the numpy generator to go on with.

    Returns:
        The negative pairs, negative i matched to positive i modulo their number.

    Raises:
        ValueError: if a count is negative, the proteins are too few for it, or one protein is
            given twice for the same family.

    Example:
        >>> a, b = (SiteProtein(name, name, "MKVL", (0, 1, 1, 0)) for name in "ab")
        >>> [pair] = sample_matched_negatives([a, b], [ProteinPair(a, a, 1)], 1, seed=0)
        >>> sorted([pair.query.uid, pair.candidate.uid])
        ['a', 'b']
    """
    ordered = _ordered(proteins)
    _check_counts(len(positives), n_negative)
    sampler = _NegativeSampler(ordered, np.random.default_rng(seed))
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
    proteins: list[SiteProtein], count: int, rng: np.random.Generator
) -> list[ProteinPair]:
    members = defaultdict(list)
    for protein in proteins:
        members[protein.family].append(protein)
    left = {family: comb(len(group), 2) for family, group in members.items() if len(group) > 1}
    if count > sum(left.values()):
        raise ValueError(
            f"n_positive is {count} but the proteins form {sum(left.values())} pairs within "
            "families; ask for fewer, or give more proteins"
        )
    open_families = sorted(left)
    drawn: dict[tuple[str, frozenset[int]], ProteinPair] = {}
    while len(drawn) < count:
        family = open_families[rng.integers(len(open_families))]
        group = members[family]
        i, j = (int(index) for index in rng.choice(len(group), size=2, replace=False))
        key = (family, frozenset((i, j)))
        if key in drawn:
            continue
        drawn[key] = ProteinPair(group[i], group[j], label=1)
        left[family] -= 1
        if not left[family]:
            open_families.remove(family)
    return list(drawn.values())


class _NegativeSampler:
    """Draw unused pairs of different families with the lengths of a given pair."""

    def __init__(self, proteins: list[SiteProtein], rng: np.random.Generator) -> None:
        self.proteins = proteins
        self.rng = rng
        self.lengths = np.array([len(protein.sequence) for protein in proteins])
        self.drawn: dict[int, set[int]] = defaultdict(set)
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.members: dict[str, set[str]] = defaultdict(set)
        self.families: dict[str, set[str]] = defaultdict(set)
        for row, protein in enumerate(proteins):
            self.rows[protein.uid].append(row)
            self.members[protein.family].add(protein.uid)
            self.families[protein.uid].add(protein.family)

    def draw(self, positive: ProteinPair) -> ProteinPair:
        """Draw one negative that was not drawn before, in the lengths of the positive."""
        query, candidate = self._choose(
            len(positive.query.sequence), len(positive.candidate.sequence)
        )
        self.drawn[query].add(candidate)
        self.drawn[candidate].add(query)
        return ProteinPair(self.proteins[query], self.proteins[candidate], label=0)

    def _choose(self, query_length: int, candidate_length: int) -> tuple[int, int]:
        everyone = np.arange(len(self.proteins))
        options = []
        for query in self._nearest(everyone, query_length).tolist():
            for candidate in self._nearest(self._partners(query), candidate_length)[:1].tolist():
                gap = abs(int(self.lengths[candidate]) - candidate_length)
                if gap <= LENGTH_TOLERANCE * candidate_length:
                    return query, candidate
                options.append((gap, query, candidate))
        if not options:
            raise ValueError(
                "no unused pair of different families is left near the lengths "
                f"{query_length} and {candidate_length}; "
                "ask for fewer negatives, or give proteins of more families"
            )
        return min(options)[1:]

    def _partners(self, query: int) -> NDArray[np.int64]:
        allowed = np.ones(len(self.proteins), dtype=bool)
        allowed[list(self.drawn[query])] = False
        # A protein listed under several families is no partner for a member of any of them.
        for family in self.families[self.proteins[query].uid]:
            for uid in self.members[family]:
                allowed[self.rows[uid]] = False
        return np.flatnonzero(allowed)

    def _nearest(self, rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        if not rows.size:
            return rows
        # Shuffling first makes the choice among equally near proteins a matter of chance.
        rows = self.rng.permutation(rows)
        distance = np.abs(self.lengths[rows] - length)
        order = np.argsort(distance, kind="stable")[:NEAREST]
        near = order[distance[order] <= LENGTH_TOLERANCE * length]
        return self.rng.permutation(rows[near if near.size else order[:1]])
