"""Site transfer, judged by residues: those of a site that are found, and what is ranked before.

A query's site is looked for in proteins of its family, from other sequence clusters, and in others.
The k-th residue of a site corresponds to the k-th of another of the same family.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.sites import SiteTableReport, Source, iter_site_rows
from ..io.formats import markdown_table
from ..models.protein import Protein
from ..search.sites import Site, SiteTransfer
from .aligners import align_sequences, global_identity
from .run import ALL, BINS

HEAD = ("method", *(f"{what}, {name}" for what in ("residues", "sites") for name in ("all", *BINS)))
HEAD += ("Sens@1FP", "p ≤ 0.01", "p ≤ 0.001")


@dataclass(frozen=True)
class LabelledSite:
    """A protein with a site whose residues are known, 0-based, in order."""

    protein: Protein
    family: str
    cluster: str
    places: tuple[int, ...]
    classes: frozenset[str] = frozenset()  # EC numbers to their third place


def read_labelled_sites(source: Source, max_residues: int = 1000) -> list[LabelledSite]:
    """Read a table of sites; residues are those of `site_positions0`, else all labelled ones.

    Proteins of more than `max_residues` are left out. `cluster` tells which proteins are near
    copies; without it none are.
    """
    found = []
    for one, row in iter_site_rows(source, SiteTableReport()):
        given = row.get("site_positions0")
        labelled = [place for place, label in enumerate(one.site_labels) if label]
        places = json.loads(given) if isinstance(given, str) and given else given or labelled
        if places and len(one.sequence) <= max_residues:
            classes = re.findall(r"\d+\.\d+\.\d+", str(row.get("ec") or ""))
            cluster = str(row.get("cluster") or one.uid)
            told = one.family, cluster, tuple(sorted(places)), frozenset(classes)
            found.append(LabelledSite(Protein(one.uid, one.sequence), *told))
    return found


@dataclass(frozen=True)
class Task:
    """A query, relatives in which its site is known, and proteins of other families."""

    query: LabelledSite
    relatives: list[LabelledSite]
    others: list[LabelledSite]


def draw_tasks(
    sites: Sequence[LabelledSite],
    families: int | None = None,
    relatives: int = 10,
    others: int = 100,
    seed: int = 0,
) -> list[Task]:
    """Draw a query of each family, or of some, with relatives and proteins of other families.

    Relatives are of other clusters than the query. The others share neither a cluster nor an
    enzyme class with it.
    """
    rng = random.Random(seed)
    members_of: dict[str, list[LabelledSite]] = defaultdict(list)
    for one in sites:
        members_of[one.family].append(one)
    tasks: list[Task] = []
    for _, members in rng.sample(sorted(members_of.items()), len(members_of)):
        if len(tasks) == families:
            break
        query = rng.choice(members)
        near = [one for one in members if _is_relative(query, one)]
        if near:
            far = (one for one in rng.sample(sites, len(sites)) if _is_other(query, one))
            some = [one for one, _ in zip(far, range(others), strict=False)]
            tasks.append(Task(query, rng.sample(near, min(relatives, len(near))), some))
    return tasks


def _is_relative(query: LabelledSite, other: LabelledSite) -> bool:
    same = query.protein.id == other.protein.id or query.cluster == other.cluster
    return not same and len(query.places) == len(other.places)


def _is_other(query: LabelledSite, other: LabelledSite) -> bool:
    near = query.family == other.family or query.cluster == other.cluster
    return not near and not query.classes & other.classes


Placed = tuple[float, dict[int, int]]
"""How unlikely a protein is to have a site, less is better; and where its residues are."""
Method = Callable[[LabelledSite, Sequence[Protein]], Iterator[Placed]]


def plasma(align: Any) -> Method:
    """Transfer sites; `align` is a `pipeline("protein-alignment", ...)`."""

    def place(query: LabelledSite, candidates: Sequence[Protein]) -> Iterator[Placed]:
        transfer = SiteTransfer(query.protein, [Site(query.places)], align)
        for [result] in transfer(candidates):
            pairs = [pair for hit in result.hits for pair in hit.pairs]
            yield result["p_value"], {i: j for i, j, _ in pairs}

    return place


def smith_waterman(query: LabelledSite, candidates: Sequence[Protein]) -> Iterator[Placed]:
    """Read residues off the best alignment over BLOSUM62, by its score over the log length."""
    letters = query.protein.sequence or ""
    for candidate in candidates:
        score, path = align_sequences(letters, candidate.sequence or "", "local")
        yield -score / np.log(len(candidate)), dict(path)


def phmmer(query: LabelledSite, candidates: Sequence[Protein]) -> Iterator[Placed]:
    """Read residues off the alignments of phmmer, by its E-value."""
    hmmer: Any = import_module("pyhmmer")
    alphabet = hmmer.easel.Alphabet.amino()
    digital = [
        hmmer.easel.TextSequence(name=str(n).encode(), sequence=one.sequence).digitize(alphabet)
        for n, one in enumerate([query.protein, *candidates])
    ]
    block = hmmer.easel.DigitalSequenceBlock(alphabet, digital[1:])
    found: dict[int, Placed] = {}
    [hits] = hmmer.hmmer.phmmer(digital[:1], block, E=1e3, incE=1e3, cpus=1)
    for hit in hits:
        name = hit.name if isinstance(hit.name, str) else hit.name.decode()
        placed: dict[int, int] = {}
        for domain in hit.domains:
            aligned = domain.alignment
            i, j = aligned.hmm_from - 1, aligned.target_from - 1
            for a, b in zip(aligned.hmm_sequence, aligned.target_sequence, strict=True):
                if a != "." and b != "-":
                    placed.setdefault(i, j)
                i, j = i + (a != "."), j + (b != "-")
        found[int(name)] = hit.evalue, placed
    yield from (found.get(n, (np.inf, {})) for n in range(1, len(digital)))


BASELINES: dict[str, Method] = {"smith-waterman": smith_waterman, "phmmer": phmmer}
"""Baselines by name."""


@dataclass
class Transferred:
    """What a method found, pair by pair and query by query."""

    name: str
    identity: list[float] = field(default_factory=list)  # of each pair
    right: list[list[bool]] = field(default_factory=list)  # residues of each pair
    sensitivity: list[float] = field(default_factory=list)  # of each query
    p_values: list[float] = field(default_factory=list)  # of others, where they are such

    def figures(self) -> dict[str, float | None]:
        """Return the columns of the table, None where there is nothing to count."""
        values: list[float | None] = []
        identity = np.array(self.identity)
        for reduce in (np.concatenate, lambda rows: np.array([all(row) for row in rows])):
            for least, most in (ALL, *BINS.values()):
                inside = np.flatnonzero((identity >= least) & (identity < most))
                rows = [self.right[n] for n in inside]
                values.append(float(np.mean(reduce(rows))) if rows else None)
        values.append(float(np.mean(self.sensitivity)))
        reached = np.array(self.p_values)
        values += [float(np.mean(reached <= p)) if len(reached) else None for p in (0.01, 0.001)]
        return dict(zip(HEAD[1:], values, strict=True))


def evaluate_transfer(name: str, method: Method, tasks: Sequence[Task]) -> Transferred:
    """Look for the sites of all tasks.

    `Sens@1FP` is the share of relatives that are ranked before the first protein of another family.
    """
    found = Transferred(name)
    for task in tqdm(tasks, name, disable=None):
        query, every = task.query, [*task.relatives, *task.others]
        placed = list(method(query, [one.protein for one in every]))
        ranks = [rank for rank, _ in placed]
        others = ranks[len(task.relatives) :]
        first = min(others, default=np.inf)
        found.sensitivity.append(float(np.mean([r < first for r in ranks[: len(task.relatives)]])))
        found.p_values += others if name not in BASELINES else []
        for other, (_, where) in zip(task.relatives, placed, strict=False):
            pairs = zip(query.places, other.places, strict=True)
            found.right.append([where.get(i) == j for i, j in pairs])
            letters = query.protein.sequence or "", other.protein.sequence or ""
            found.identity.append(global_identity(*letters))
    return found


def transfer_markdown(found: Sequence[Transferred]) -> str:
    """Write the table."""
    rows = [[one.name, *(_cell(x) for x in one.figures().values())] for one in found]
    return markdown_table(HEAD, rows)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"
