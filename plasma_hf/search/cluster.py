"""Searches and embeddings as Ray Data jobs, the same on a laptop and on a cluster.

Ray starts the workers, hands out the work, and repeats what a lost worker had. A database is
searched by shards, the parts of its folder: each finds its candidates, and aligns those of them
that are among the best of all shards. Results are those of `ProteinDatabase.search`, and so are
profiles, which hits of all shards make between two searches.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.table import embedded_rows, table_schema, write_lance
from ..models.alignment_result import AlignmentResults
from ..models.protein import Protein, clean_sequence
from .database import (
    SENSITIVITY,
    ProteinDatabase,
    align_candidates,
    check_search,
    numbered,
    profile_of,
    read_manifest,
    significance,
    significant,
    united,
    usual_iterations,
)

if TYPE_CHECKING:
    from ray.data import Dataset

Load = Callable[[], Any]


def search(
    folder: str | os.PathLike[str],
    queries: Sequence[Protein],
    load: Load,
    workers: int = 2,
    top_k: int | None = None,
    evalue: float = 0.01,
    sensitivity: str = "default",
    iterations: int | None = None,
    database_size: int | None = None,
    on_error: Callable[[int, str], None] | None = None,
    **options: Any,
) -> Iterator[AlignmentResults]:
    """Yield what `ProteinDatabase.search` does, query by query, from workers of a Ray cluster.

    Args:
        folder: Of the database, where all workers see it.
        queries: Proteins with sequences.
        load: Makes the `pipeline("protein-alignment", ...)` in each worker.
        workers: How many, of one CPU core or more each, as the cluster has them.
        top_k, evalue, sensitivity, iterations, database_size, options: See
            `ProteinDatabase.search`.
        on_error: Told the number of a query that cannot be used, and why; it has no hits.

    Raises:
        ImportError: If Ray is missing.
        ValueError: If a query cannot be used, and there is no `on_error`.
    """
    check_search(sensitivity, iterations)
    _ray()  # if it is missing, that is said before a model is loaded
    given = [(one, list[Protein]()) for one in queries]
    searched = _Searched(Path(folder), load, workers, database_size, given)
    probe = sensitivity if SENSITIVITY[sensitivity] is None else "fast"
    found: list[list[Any]] = [[] for _ in queries]
    for _ in range((iterations or usual_iterations(load())) - 1):
        found = list(map(numbered, found, searched.grow(probe, evalue, **options)))
    for hits in map(numbered, found, searched.hits(sensitivity, evalue, on_error, **options)):
        yield AlignmentResults(sorted(hits, key=significance)[:top_k])


@dataclass
class _Searched:
    """Queries, each with its relatives, and what searches with them."""

    folder: Path
    load: Load
    workers: int
    database_size: int | None
    queries: list[tuple[Protein, list[Protein]]]

    def grow(self, sensitivity: str, evalue: float, **options: Any) -> list[list[Any]]:
        """Turn queries into profiles, and return the hits that are new in them."""

        def untold(query: int, error: str) -> None:
            """Leave an error to the last search, which meets it again."""

        found = [significant(each) for each in self.hits(sensitivity, evalue, untold, **options)]
        rows = [{"query": query, "new": _Answer(hits)} for query, hits in enumerate(found) if hits]
        given = {"load": self.load, "queries": self.queries}
        for row in list(_map(rows, _Profiles, self.workers, given)):
            _, relatives = self.queries[row["query"]]
            new = [hit.candidate for hit in found[row["query"]]]
            self.queries[row["query"]] = row["profile"].value, relatives + new
        return found

    def hits(
        self,
        sensitivity: str,
        evalue: float,
        on_error: Callable[[int, str], None] | None,
        **options: Any,
    ) -> Iterator[list[Any]]:
        """Yield the significant hits of each query, the most significant first."""
        folder, queries, workers = self.folder, self.queries, self.workers
        shards = range(len(read_manifest(folder)["parts"]))
        rows = [
            {"shard": shard, "query": query} for shard in shards for query in range(len(queries))
        ]
        given: dict[str, Any] = {"folder": str(folder), "queries": queries}
        most = SENSITIVITY[sensitivity]
        ranking = {"most": most, "load": self.load if any(folder.glob("*.npy")) else None}
        found = _map(rows, _Candidates, workers, given | ranking)
        chosen, size, errors = _best_of_all(found, most)
        # A worker opens one shard after the other.
        rows = [one for query in chosen for one in _by_shard(query, chosen[query])]
        rows.sort(key=itemgetter("shard"))
        told = {"evalue": evalue, "size": self.database_size or size}
        given |= {"load": self.load, "options": options | told}
        left = Counter(row["query"] for row in rows)
        hits: dict[int, list[Any]] = defaultdict(list)
        done = 0
        for row in chain(_map(rows, _Hits, workers, given), [None]):
            if row is not None:
                answer: _Answer = row["answer"]
                hits[row["query"]] += answer.value or []
                left[row["query"]] -= 1
                if answer.error:
                    errors[row["query"]] = answer.error
            while done < len(queries) and not left[done]:
                every = hits.pop(done, [])
                if done in errors:
                    _tell(done, errors[done], on_error)
                    every = []
                yield sorted(every, key=significance)  # as when all are aligned at once
                done += 1


def _tell(query: int, error: str, on_error: Callable[[int, str], None] | None) -> None:
    if on_error is None:
        raise ValueError(error)
    on_error(query, error)


Place = tuple[int, int]  # a shard, and a number in it


def _best_of_all(
    found: Iterable[dict[str, Any]], most: int | None
) -> tuple[dict[int, list[Place]], int, dict[int, str]]:
    """Return the best candidates of each query, proteins of all shards, and what went wrong."""
    # By query and way: scores, and places turned round, as what is first is better.
    best: dict[int, dict[int, list[tuple[float, int, int]]]] = defaultdict(dict)
    sizes: dict[int, int] = {}
    errors: dict[int, str] = {}
    for row in found:
        shard, ways, told = row["shard"], best[row["query"]], row["answer"]
        sizes[shard] = row["size"]
        if told.error:
            errors[row["query"]] = told.error
        for way, (scores, numbers) in enumerate(told.value or []):
            ranked = ((s, -shard, -number) for s, number in zip(scores, numbers, strict=True))
            every = [*ways.get(way, []), *ranked]
            ways[way] = every if most is None else heapq.nlargest(most, every)
    chosen = {}
    for query, ways in best.items():
        ordered = [
            [(-shard, -number) for _, shard, number in sorted(every, reverse=True)]
            for _, every in sorted(ways.items())
        ]
        chosen[query] = united(ordered, most)
    return chosen, sum(sizes.values()), errors


def _by_shard(query: int, places: list[Place]) -> Iterator[dict[str, Any]]:
    numbers: dict[int, list[int]] = defaultdict(list)
    for shard, number in places:
        numbers[shard].append(number)
    for shard, some in numbers.items():
        yield {"shard": shard, "query": query, "numbers": some}


def embed(proteins: Dataset, load: Load, workers: int = 2, together: int = 64) -> Dataset:
    """Embed the proteins of a Ray data set: the columns of `plasma_hf.data.table`.

    Args:
        proteins: With columns `id` and `sequence`, of `ray.data.read_parquet(...)` for example.
        load: Makes the embedder in each worker, for example `partial(load_backbone, "esm2-8m")`.
        workers: How many.
        together: Proteins embedded at a time.

    Returns:
        The data set to be written, by `write_parquet` or `write_lance` for example.
    """
    return proteins.map_batches(
        _Embedder,
        fn_constructor_kwargs={"load": load},
        batch_size=together,
        batch_format="pyarrow",
        compute=_ray().data.ActorPoolStrategy(size=workers),
    )


def embed_table(
    path: str | Path, proteins: Sequence[Protein], load: Load, workers: int = 2
) -> None:
    """Embed proteins into a table, see `plasma_hf.data.table`, by workers of a Ray cluster."""
    path = Path(path)
    rows = [{"id": one.id, "sequence": one.sequence} for one in proteins]
    found = embed(_ray().data.from_items(rows), load, workers)
    if path.suffix == ".lance":
        write_lance(
            path, table_schema(load().hidden_size), found.iter_batches(batch_format="pyarrow")
        )
    else:
        found.write_parquet(str(path))


def _map(
    rows: list[dict[str, Any]], worker: Any, workers: int, given: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what workers make of rows, in any order."""
    data = _ray().data
    if rows:
        pool = data.ActorPoolStrategy(size=workers)
        found = data.from_items(rows).map(worker, fn_constructor_kwargs=given, compute=pool)
        yield from found.iter_rows()


@dataclass
class _Worker:
    """Answers for a shard at a time, which it opens."""

    folder: str
    queries: list[tuple[Protein, list[Protein]]]  # each with its relatives
    opened: tuple[int, ProteinDatabase] | None = field(default=None, init=False)

    def shard(self, number: int) -> ProteinDatabase:
        if self.opened is None or self.opened[0] != number:
            self.opened = number, ProteinDatabase.open(self.folder, part=number)
        return self.opened[1]


@dataclass(kw_only=True)
class _Candidates(_Worker):
    most: int | None
    load: Load | None  # of the pipeline, where proteins have vectors

    def __post_init__(self) -> None:
        self.align = self.load and self.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        database, (query, relatives) = self.shard(row["shard"]), self.queries[row["query"]]
        answer = _Answer()
        try:
            read = replace(query, sequence=clean_sequence(query.sequence or "", query.id))
            answer.value = database.rank(read, self.most, self.align, relatives)
        except ValueError as problem:
            answer.error = str(problem)
        return row | {"size": len(database), "answer": answer}


@dataclass(kw_only=True)
class _Hits(_Worker):
    load: Load
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.align = self.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        database, (query, relatives) = self.shard(row["shard"]), self.queries[row["query"]]
        known = {one.id for one in relatives}
        candidates = [database[n] for n in row["numbers"] if database.ids[n] not in known]
        answer = _Answer()
        try:
            answer.value = align_candidates(self.align, query, candidates, **self.options)
        except ValueError as problem:
            answer.error = str(problem)
        return {"query": row["query"], "answer": answer}


@dataclass
class _Profiles:
    load: Load
    queries: list[tuple[Protein, list[Protein]]]

    def __post_init__(self) -> None:
        self.align = self.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        query, relatives = self.queries[row["query"]]
        read = self.align.read((query, query))["query"]
        new = [hit.candidate for hit in row["new"].value]
        profile = profile_of(self.align, read, relatives + new)
        return {"query": row["query"], "profile": _Answer(profile)}


@dataclass
class _Answer:
    """What a worker answers, kept as it is: Ray would take columns of lists apart."""

    value: Any = None
    error: str = ""


@dataclass
class _Embedder:
    load: Load

    def __post_init__(self) -> None:
        self.embedder = self.load()

    def __call__(self, rows: Any) -> Any:
        ids, sequences = (rows[name].to_pylist() for name in ("id", "sequence"))
        return embedded_rows(ids, sequences, self.embedder)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError('this needs Ray: pip install "plasma-hf[ray]"') from error
    return ray
