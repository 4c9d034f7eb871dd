"""Site transfer: the residues of other proteins that correspond to a few residues of one.

A residue corresponds by its evidence, by being of the same kind, and by the probability that the
two are aligned; together these are log-odds. All placements of the site's residues, in order and
with any distances, some of them missing, are summed up. What chance reaches with this very site, a
few hundred proteins tell that have nothing to do with it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..models.alignment_result import AlignmentResult, residue_labels
from ..models.local_alignment import (
    NEVER,
    SEARCHING,
    Evidence,
    aligned_probabilities,
    alignment_scores,
    best_in_order,
)
from ..models.pipeline_protein_alignment import describe_segment
from ..models.protein import Protein, open_text, read_protein, read_records
from .calibration import UNRELATED
from .database import default_pipeline

# Chosen on half of the families (`reproduce/site_study.py`); in nats, as evidence is.
SAME_RESIDUE = 4.0
ALIGNED, LEAST = 0.35, 1e-3  # weight of the logarithm of a probability, and what is 0 of it
MISSING = 4.0  # of a residue that the candidate does not have
LEAST_PROBABLE = 0.1  # of a residue that is shown
TAIL = 0.2  # share of unrelated proteins by which chance falls off
RELATED = 1e-3  # p-value of a whole protein from which on it does not stand for chance
TOGETHER = 32  # candidates
MOST_RESIDUES = 50  # of a site


@dataclass(frozen=True)
class Site:
    """Residues of a protein, 0-based, in order.

    Example:
        >>> site = Site.parse("H5, 2-3", Protein("a", "MKVAHL"))
        >>> site.places, site.name
        ((1, 2, 4), 'H5, 2-3')
    """

    places: tuple[int, ...]
    name: str = ""

    @classmethod
    def parse(cls, text: str, protein: Protein, name: str = "") -> Site:
        """Read a list such as `H57,D102,S195`, `A:57`, `57-60` or `186A`.

        Numbers are those of the structure's authors, else count from 1. A letter in front is
        checked against the residue.

        Raises:
            ValueError: If there is no such residue, it is another one, or nothing is named.
        """
        labels = residue_labels(protein)
        known = {label: place for place, label in enumerate(labels)}
        alone = {label.rpartition(":")[2]: place for label, place in known.items()}
        known |= alone if len(alone) == len(labels) else {}
        places: set[int] = set()
        for word in filter(None, re.split(r"[,;\s]+", text.strip())):
            places.update(_places(word, protein, known))
        if not places:
            raise ValueError(f"{text!r} names no residue; give for example H57,D102,S195.")
        return cls(tuple(sorted(places)), name or text.strip())

    @classmethod
    def of_pattern(cls, pattern: str, protein: Protein) -> list[Site]:
        """Find a pattern of PROSITE in a protein; what is not `x` in it is a site, at each place.

        Raises:
            ValueError: If it is no pattern, or the protein does not have it.

        Example:
            >>> [site] = Site.of_pattern("G-x(2)-S-[AG]", Protein("a", "MKGVASGK"))
            >>> site.places, site.name
            ((2, 5, 6), 'G-x(2)-S-[AG] at 3')
        """
        regex, counted = compile_pattern(pattern)
        letters, sites, start = protein.sequence or "", [], 0
        while found := regex.search(letters, start):
            start = found.start() + 1
            spans = [found.span(n) for n, counts in enumerate(counted, 1) if counts]
            places = tuple(place for span in spans for place in range(*span))
            sites.append(cls(places, f"{pattern} at {residue_labels(protein)[found.start()]}"))
        if not sites or not sites[0].places:
            raise ValueError(f"{protein.id} has no {pattern}; give a protein that has it.")
        return sites

    @classmethod
    def read(
        cls, given: str, protein: Protein, on_invalid: Callable[[str], None] | None = None
    ) -> list[Site]:
        """Read one list of residues, or a file of lists, a line each, behind a name and a tab.

        A line that is none is told to `on_invalid`; without it the first of them raises.
        """
        if not os.path.exists(given) and {".", "/", "\\"}.isdisjoint(given):
            return [cls.parse(given, protein)]
        with open_text(given) as lines:
            text = list(lines)
        sites = []
        for number, line in enumerate(text, start=1):
            name, _, residues = line.rstrip().rpartition("\t")
            if not residues.strip() or line.startswith("#"):
                continue
            try:
                sites.append(cls.parse(residues, protein, name.strip()))
            except ValueError as error:
                problem = f"{given}, line {number}: {error}"
                if on_invalid is None:
                    raise ValueError(problem) from error
                on_invalid(problem)
        if not sites:
            raise ValueError(f"{given} names no site; give lines such as: triad<tab>H57,D102,S195")
        return sites


ELEMENT = re.compile(r"(<?)([A-Za-z]|\[[A-Z]+\]|\{[A-Z]+\})(?:\((\d+)(?:,(\d+))?\))?(>?)")


def compile_pattern(pattern: str) -> tuple[re.Pattern[str], list[bool]]:
    """Return a pattern of PROSITE as a regular expression, and which of its groups are not `x`.

    Raises:
        ValueError: If it is no pattern.
    """
    elements = pattern.strip().removesuffix(".").split("-")
    groups, counted = zip(*(_element(one, pattern) for one in elements), strict=True)
    return re.compile("".join(f"({one})" for one in groups)), list(counted)


def _element(text: str, pattern: str) -> tuple[str, bool]:
    """Return an element of a pattern as a regular expression, and whether it is not `x`."""
    read = ELEMENT.fullmatch(text)
    if read is None:
        raise ValueError(
            f"{text!r} in {pattern!r} is no element; give G, x, [ST], {{P}} or x(2,4)."
        )
    first, letters, least, most, last = read.groups()
    if letters in ("x", "X"):
        one = "[A-Z]"
    else:
        one = letters.replace("{", "[^").replace("}", "]") if len(letters) > 1 else letters.upper()
    count = f"{{{least},{most or least}}}" if least else ""
    return f"{'^' * bool(first)}{one}{count}{'$' * bool(last)}", letters not in ("x", "X")


WORD = re.compile(r"(?:(\w+):)?([A-Za-z]?)(-?\d+[A-Za-z]?)(?:-(-?\d+[A-Za-z]?))?")


def _places(word: str, protein: Protein, known: dict[str, int]) -> Iterable[int]:
    """Return where a residue or a range of them is."""
    read = WORD.fullmatch(word)
    if read is None:
        raise ValueError(f"{word!r} is no residue; give for example H57, A:57, 57-60 or 186A.")
    chain, letter, first, last = read.groups()
    ends = []
    for number in (first, last or first):
        label = f"{chain}:{number}" if chain else number
        if label not in known:
            first, *_, last = labels = residue_labels(protein)
            several = [one for one in labels if one.partition(":")[2] == label]
            told = (
                f"{len(several)} residues {label}: {', '.join(several)}"
                if several
                else (f"no residue {label}; it has {first} to {last}")
            )
            raise ValueError(f"{protein.id} has {told}.")
        ends.append(known[label])
    found = (protein.sequence or "")[ends[0]]
    if letter and letter.upper() != found:
        chains = any(":" in label for label in known)
        hint = f"; a chain is written with a colon, {letter}:{first}" if chains else ""
        raise ValueError(f"residue {first} of {protein.id} is {found}, not {letter.upper()}{hint}.")
    if ends[1] < ends[0]:
        raise ValueError(f"{word} is turned round; give the first residue first.")
    return range(ends[0], ends[1] + 1)


class SiteHit(AlignmentResult):
    """What corresponds to a site in one protein: a result of an alignment, of these residues alone.

    `segments` holds one segment, whose pairs are the residues of the site, each with the
    probability that it is the right one; `score` is the share that is expected to be right. So it
    selects residues, superposes structures and becomes a table as any result does.
    """

    @property
    def pairs(self) -> list[Any]:
        """`[query index, candidate index, probability]` of each residue of the site."""
        return [pair for segment in self["segments"] for pair in segment["pairs"]]

    @property
    def correspondences(self) -> list[tuple[str, str, float]]:
        """Residues of the site, those of the candidate, and how likely: `("H57", "H40", 0.99)`."""
        named = [_named(side) for side in (self.query, self.candidate)]
        return [(named[0][i], named[1][j], weight) for i, j, weight in self.pairs]

    @property
    def kept(self) -> int:
        """How many residues are of the same kind."""
        query, candidate = self.letters
        return sum(query[i] == candidate[j] for i, j, _ in self.pairs)

    def row(self) -> dict[str, str]:
        """Return what a table says, by `SITE_FIELDS`."""
        told = ",".join(f"{one}={other}:{p:.3f}" for one, other, p in self.correspondences)
        rmsd = ""
        if self.query.structure is not None and self.candidate.structure is not None:
            with suppress(ValueError):  # of residues too few, or without a CA
                rmsd = f"{self.superpose().rmsd_all:.2f}"
        values = [self["site"], self.query.id, self.candidate.id]
        values += [f"{self[name]:.3g}" for name in ("p_value", "evalue")]
        values += [f"{self['score']:.3f}", f"{self.kept}/{self['residues']}", told, rmsd]
        values += [self.selection("candidate", program) for program in ("pymol", "chimerax")]
        return dict(zip(SITE_FIELDS, values, strict=True))

    def __str__(self) -> str:
        row = self.row()
        told = "  ".join(f"{one}={other} {p:.2f}" for one, other, p in self.correspondences)
        rmsd = f"  RMSD {row['rmsd']} Å" if row["rmsd"] else ""
        return f"{self.candidate.id}  E {row['evalue']}  {told}  kept {row['kept']}{rmsd}"


SITE_FIELDS = {
    "site": "name of the site, or its residues",
    "query": "id of the protein that has it",
    "candidate": "id of the protein found",
    "p_value": "chance that an unrelated protein has as much of the site",
    "evalue": "the same, times the proteins of the database",
    "score": "share of the residues expected to be right",
    "kept": "residues of the same kind, of those of the site",
    "residues": "query residue=candidate residue:probability, with commas",
    "rmsd": "of these residues' CA once superposed, in angstroms, of two structures",
    "pymol": "selects the residues of the candidate in PyMOL",
    "chimerax": "the same in ChimeraX",
}
"""Columns of a table of hits."""


def _named(protein: Protein) -> list[str]:
    """Name residues by chain, letter and number, as `Site.parse` reads them."""
    split = (label.rpartition(":") for label in residue_labels(protein))
    named = zip(split, protein.sequence or "", strict=True)
    return [f"{chain}{colon}{letter}{number}" for (chain, colon, number), letter in named]


def transfer_sites(
    query: Any,
    sites: Site | str | Sequence[Site | str],
    candidates: Iterable[Protein],
    align: Any = None,
    evalue: float = 0.01,
    database_size: int = 1,
) -> list[list[SiteHit]]:
    """Find the residues of sites in other proteins: significant `SiteHit`s of each, the best first.

    Sites may lie scattered along the sequence, in proteins that are alike nowhere else; in order
    they must be. The p-value is that of the site, whatever else is alike.

    Args:
        query: The protein that has the sites, as the pipeline takes it.
        sites: One or several, each as `Site`, or as a list of residues: "H57,D102,S195".
        candidates: Proteins; those shorter than a site are left out.
        align: A `pipeline("protein-alignment", ...)` of a calibrated model; the default's.
        evalue: Hits that chance gives, at most, with each.
        database_size: Proteins that E-values count.

    Raises:
        ValueError: If the model is not calibrated, or a site is none of the query.

    Example:
        >>> query = Protein("a", "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEK")
        >>> other = Protein("b", "GAYIAKQRQLSFVKAHFSRQLEERYGLIEVQ")
        >>> [found] = transfer_sites(query, ["K8,S17,H18"], [other])
        >>> [pair[:2] for pair in found[0].correspondences], found[0]["p_value"] < 1e-4
        ([('K8', 'K6'), ('S17', 'A15'), ('H18', 'H16')], True)
    """
    transfer = SiteTransfer(query, [sites] if isinstance(sites, str | Site) else sites, align)
    found: list[list[SiteHit]] = [[] for _ in transfer.sites]
    for results in transfer(candidates, database_size):
        for number, result in enumerate(results):
            if result["evalue"] <= evalue:
                found[number].append(result)
    return [sorted(each, key=itemgetter("p_value")) for each in found]


class SiteTransfer:
    """Sites of a protein, with what chance reaches with each; call it with candidates."""

    def __init__(self, query: Any, sites: Sequence[Site | str], align: Any = None) -> None:
        self.align = align or default_pipeline()
        self.query = self.align.read((query, query))["query"]
        if self.align.model.calibration is None:
            raise ValueError("sites need a calibrated model; type: plasma-hf calibrate MODEL")
        if self.query.sequence is None:
            raise ValueError(f"{self.query.id} has no letters; give Protein(id, sequence).")
        self.sites = [Site.parse(one, self.query) if isinstance(one, str) else one for one in sites]
        for site in self.sites:
            if not 0 < len(site.places) <= MOST_RESIDUES:
                raise ValueError(
                    f"the site {site.name} has {len(site.places)} residues; give 1 to "
                    f"{MOST_RESIDUES}, or align the proteins: plasma-hf align."
                )
        [self._own] = self.align.project([self.query])
        self._null = self._measure()

    def __call__(
        self, candidates: Iterable[Protein], database_size: int = 1
    ) -> Iterator[list[SiteHit]]:
        """Yield for each candidate the result of each site."""
        for candidate, tables in self._tables(candidates):
            results = []
            for site, null, table in zip(self.sites, self._null, tables, strict=True):
                if len(candidate) < len(site.places):
                    p_value, pairs = 1.0, []
                else:
                    total, probability = place_site(table)
                    p_value = null.p_value(total, len(candidate))
                    pairs = _pairs(site, probability)
                results.append(self._result(site, candidate, pairs, p_value, database_size))
            yield results

    def _result(
        self, site: Site, candidate: Protein, pairs: list[Any], p_value: float, size: int
    ) -> SiteHit:
        chance = {"bits": None, "p_value": p_value, "evalue": p_value * size}
        score = sum(weight for *_, weight in pairs) / len(site.places)
        segments = [describe_segment(pairs) | {"score": score} | chance] if pairs else []
        told = {"score": score, "site": site.name, "residues": len(site.places)}
        return SiteHit(told | chance | {"segments": segments}, self.query, candidate)

    @torch.no_grad()
    def _tables(self, candidates: Iterable[Protein]) -> Iterator[tuple[Protein, list[Tensor]]]:
        """Yield the log-odds of each site with each candidate."""
        rest = iter(candidates)
        while some := [read_protein(one) for one in islice(rest, TOGETHER)]:
            read = [self._evidence(other).read for other in self.align.project(some)]
            yield from self._compare(some, read)

    def _evidence(self, other: Tensor) -> Evidence:
        return self.align.model.evidence(self._own, other)

    def _compare(
        self, proteins: Sequence[Protein], read: Sequence[Tensor]
    ) -> Iterator[tuple[Protein, list[Tensor]]]:
        for protein, seen, plan in zip(proteins, read, aligned_probabilities(read), strict=True):
            given = self.query, protein, seen, plan
            yield protein, [log_odds(site, *given) for site in self.sites]

    @torch.no_grad()
    def _measure(self) -> list[SiteNull]:
        """Learn what proteins that are not related to the query reach with each site."""
        model, proteins = self.align.model, read_records(UNRELATED)
        if model not in _projected:
            _projected[model] = self.align.project(proteins)
        evidence = [self._evidence(one) for one in _projected[model]]
        raw_scores = alignment_scores([one.scored for one in evidence], SEARCHING).tolist()
        unrelated = [
            (protein, one.read)
            for protein, one, raw_score in zip(proteins, evidence, raw_scores, strict=True)
            if model.calibration.p_value(raw_score, *one.read.shape) > RELATED
        ]
        totals: list[list[tuple[float, int]]] = [[] for _ in self.sites]
        for protein, tables in self._compare(*zip(*unrelated, strict=True)):
            for table, reached in zip(tables, totals, strict=True):
                if table.shape[0] <= table.shape[1]:
                    reached.append((place_site(table)[0], len(protein)))
        return [SiteNull.fit(*np.array(reached).T) for reached in totals]


_projected: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()
"""Unrelated proteins as a model sees them, the same for all of its sites."""


def log_odds(site: Site, query: Protein, candidate: Protein, read: Tensor, plan: Tensor) -> Tensor:
    """Return how much speaks for residues to correspond, `(site residues, candidate residues)`.

    Args:
        site: Of the query.
        query, candidate: Both proteins.
        read: Evidence of all residue pairs, `(query_residues, candidate_residues)`.
        plan: Probability that they are aligned, the same shape.
    """
    places = list(site.places)
    letters = [np.frombuffer((p.sequence or "").encode(), np.uint8) for p in (query, candidate)]
    same = torch.from_numpy(letters[0][places][:, None] == letters[1]).to(read)
    return read[places] + SAME_RESIDUE * same + ALIGNED * (plan[places] + LEAST).log()


def place_site(table: Tensor) -> tuple[float, Tensor]:
    """Sum up all placements of a site: the total log-odds, and the probability of each residue.

    Args:
        table: Log-odds, `(site residues, candidate residues)`.

    Returns:
        Total, and probabilities, which sum to 1 over the candidate less that of being missing.

    Example:
        >>> total, probability = place_site(torch.tensor([[15.0, 0.0, 9.0], [0.0, 12.0, 0.0]]))
        >>> probability.argmax(1).tolist(), round(total)
        ([0, 1], 27)
    """
    table = table.double().cpu()
    ending, before = _placed(table)
    _, after = _placed(table.flip(0, 1))
    total = before[-1, -1]
    # Behind a residue come the later ones of the site, in what is left of the candidate.
    return float(total), (ending + after[:-1].flip(0, 1)[:, 1:] - total).exp()


def _placed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Sum up placements, in logarithms, from the first residue on.

    Returns:
        Those that put a residue of the site last, at each residue of the candidate, as `table`; and
        those of so many residues of the site in so many of the candidate, one more of each.
    """
    rows, within = [], [table.new_zeros(table.shape[1] + 1)]
    for row in table:
        rows.append(row + within[-1][:-1])
        found = F.pad(rows[-1].logcumsumexp(0), (1, 0), value=NEVER)
        within.append(torch.logaddexp(within[-1] + MISSING, found))
    return torch.stack(rows), torch.stack(within)


def _pairs(site: Site, probability: Tensor) -> list[tuple[int, int, float]]:
    """Return the residues in order that are right most often, with their probabilities."""
    found = best_in_order(probability.float() - LEAST_PROBABLE).tolist()
    return [(site.places[at], j, float(probability[at, j])) for at, j in found]


@dataclass(frozen=True)
class SiteNull:
    """What totals unrelated proteins reach with a site.

    A line over the logarithm of the length; in the best fifth chance falls off exponentially, of
    the rest all count.
    """

    line: tuple[float, float]
    above: NDArray[np.float64]  # the line, in order
    start: float
    scale: float

    @classmethod
    def fit(cls, totals: NDArray[np.float64], lengths: NDArray[np.float64]) -> SiteNull:
        """Learn from proteins that have nothing to do with the site."""
        logs = np.log(lengths)
        slope, level = np.polyfit(logs, totals, 1)
        above = np.sort(totals - level - slope * logs)
        start = float(np.quantile(above, 1 - TAIL))
        return cls((level, slope), above, start, float((above[above > start] - start).mean()))

    def p_value(self, total: float, length: int) -> float:
        """Return the chance that an unrelated protein of a length reaches a total."""
        level, slope = self.line
        above = total - level - slope * math.log(length)
        if above > self.start:
            return TAIL * math.exp((self.start - above) / self.scale)
        return float(np.mean(self.above >= above))
