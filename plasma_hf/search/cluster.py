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
from dataclasses import dataclass, replace
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
Query = tuple[Protein, list[Protein]]  # with its relatives
Task = Callable[..., Any]


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
    queries: list[Query]

    def grow(self, sensitivity: str, evalue: float, **options: Any) -> list[list[Any]]:
        """Turn queries into profiles, and return the hits that are new in them."""

        def untold(query: int, error: str) -> None:
            """Leave an error to the last search, which meets it again."""

        found = [significant(each) for each in self.hits(sensitivity, evalue, untold, **options)]
        new = [[hit.candidate for hit in hits] for hits in found]
        rows = [
            {"query": query, "shard": 0, "new": _Answer(some)}
            for query, some in enumerate(new)
            if some
        ]
        for row in list(self._map(rows, _profile, self.load)):
            query, profile = row["query"], row["answer"]
            if profile.error:
                raise ValueError(profile.error)
            self.queries[query] = profile.value, self.queries[query][1] + new[query]
        return found

    def hits(
        self,
        sensitivity: str,
        evalue: float,
        on_error: Callable[[int, str], None] | None,
        **options: Any,
    ) -> Iterator[list[Any]]:
        """Yield the significant hits of each query, the most significant first."""
        queries, shards = self.queries, range(len(read_manifest(self.folder)["parts"]))
        rows = [
            {"shard": shard, "query": query} for shard in shards for query in range(len(queries))
        ]
        most = SENSITIVITY[sensitivity]
        load = self.load if any(self.folder.glob("*.npy")) else None
        found = self._map(rows, _rank, load, most=most)
        chosen, size, errors = _best_of_all(found, most)
        # A worker opens one shard after the other.
        rows = [one for query in chosen for one in _by_shard(query, chosen[query])]
        rows.sort(key=itemgetter("shard"))
        options |= {"evalue": evalue, "size": self.database_size or size}
        left = Counter(row["query"] for row in rows)
        hits: dict[int, list[Any]] = defaultdict(list)
        done = 0
        for row in chain(self._map(rows, _align, self.load, **options), [None]):
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

    def _map(
        self, rows: list[dict[str, Any]], task: Task, load: Load | None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield what workers make of rows, in any order."""
        data = _ray().data
        if rows:
            given = {
                "folder": str(self.folder),
                "queries": self.queries,
                "task": task,
                "load": load,
            }
            pool = data.ActorPoolStrategy(size=self.workers)
            found = data.from_items(rows).map(
                _Worker, fn_constructor_kwargs=given | options, compute=pool
            )
            yield from found.iter_rows()


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
        if told.error:
            errors[row["query"]] = told.error
            continue
        sizes[shard], rankings = told.value
        for way, (scores, numbers) in enumerate(rankings):
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


class _Worker:
    """Do a task in a worker, which loads the pipeline once and opens a shard at a time."""

    def __init__(
        self, task: Task, load: Load | None, folder: str, queries: list[Query], **options: Any
    ) -> None:
        self.task, self.folder, self.queries, self.options = task, folder, queries, options
        self.align: Any = load and load()
        self.opened: tuple[int, ProteinDatabase] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = _Answer()
        try:
            answer.value = self.task(self, row, *self.queries[row["query"]])
        except ValueError as problem:
            answer.error = str(problem)
        return {"query": row["query"], "shard": row["shard"], "answer": answer}

    def shard(self, number: int) -> ProteinDatabase:
        if self.opened is None or self.opened[0] != number:
            self.opened = number, ProteinDatabase.open(self.folder, part=number)
        return self.opened[1]


def _rank(worker: _Worker, row: dict[str, Any], query: Protein, relatives: list[Protein]) -> Any:
    """Return how many proteins a shard has, and the best of them."""
    database = worker.shard(row["shard"])
    read = replace(query, sequence=clean_sequence(query.sequence or "", query.id))
    return len(database), database.rank(read, worker.options["most"], worker.align, relatives)


def _align(worker: _Worker, row: dict[str, Any], query: Protein, relatives: list[Protein]) -> Any:
    """Return the significant hits among candidates of a shard."""
    database, known = worker.shard(row["shard"]), {one.id for one in relatives}
    candidates = [database[n] for n in row["numbers"] if database.ids[n] not in known]
    return align_candidates(worker.align, query, candidates, **worker.options)


def _profile(worker: _Worker, row: dict[str, Any], query: Protein, relatives: list[Protein]) -> Any:
    """Return the profile that a query and its relatives make."""
    read = worker.align.read((query, query))["query"]
    return profile_of(worker.align, read, relatives + row["new"].value)


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
