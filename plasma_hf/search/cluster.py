"""Searches and embeddings as Ray Data jobs, the same on a laptop and on a cluster.

Ray starts the workers, hands out the work, and repeats what a lost worker had. A database is
searched by shards, the parts of its folder: each finds its candidates, and aligns those of them
that are among the best of all shards. Results are those of `ProteinDatabase.search`.
"""

from __future__ import annotations

import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.table import embedded_rows, table_schema, write_lance
from ..models.alignment_result import AlignmentResults
from ..models.protein import Protein, clean_sequence
from .database import SENSITIVITY, ProteinDatabase, align_candidates, read_manifest, significance

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
        top_k, evalue, sensitivity, database_size, options: See `ProteinDatabase.search`.
        on_error: Told the number of a query that cannot be used, and why; it has no hits.

    Raises:
        ImportError: If Ray is missing.
        ValueError: If a query cannot be used, and there is no `on_error`.
    """
    most = SENSITIVITY[sensitivity]
    data = _ray().data
    shards = range(len(read_manifest(Path(folder))["parts"]))
    rows = [{"shard": s, "query": q} for s in shards for q in range(len(queries))]
    given = {"folder": str(folder), "queries": list(queries)}
    found = _map(data.from_items(rows), _Candidates, workers, given | {"most": most})
    best: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
    sizes: dict[int, int] = {}
    errors: dict[int, str] = {}
    for row in found.iter_rows():
        errors |= {row["query"]: row["error"]} if row["error"] else {}
        sizes[row["shard"]] = row["size"]
        # What comes first of equals is better.
        ranked = zip(row["scores"], row["numbers"], strict=True)
        new = ((score, -row["shard"], -number) for score, number in ranked)
        every = [*best[row["query"]], *new]
        best[row["query"]] = every if most is None else heapq.nlargest(most, every)
    size = database_size or sum(sizes.values())
    rows = []
    for query, every in best.items():
        numbers: dict[int, list[int]] = defaultdict(list)
        for _, shard, number in sorted(every, reverse=True):
            numbers[-shard].append(-number)
        rows += [{"shard": s, "query": query, "numbers": n} for s, n in numbers.items()]
    rows.sort(key=lambda row: row["shard"])  # a worker opens one after the other
    given |= {"load": load, "options": options | {"evalue": evalue, "size": size}}
    aligned = _map(data.from_items(rows), _Hits, workers, given)
    left = {query: len({shard for _, shard, _ in every}) for query, every in best.items()}
    hits: dict[int, list[Any]] = defaultdict(list)
    done = 0
    for row in chain(aligned.iter_rows() if rows else (), [None]):
        if row is not None:
            answer: _Answer = row["answer"]
            errors |= {row["query"]: answer.error} if answer.error else {}
            hits[row["query"]] += answer.hits
            left[row["query"]] -= 1
        while done < len(queries) and not left.get(done):
            if done in errors:
                if on_error is None:
                    raise ValueError(errors[done])
                on_error(done, errors[done])
                hits.pop(done, None)
            ranked_hits = sorted(hits.pop(done, ()), key=significance)
            yield AlignmentResults(ranked_hits[:top_k])
            done += 1


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
        write_lance(path, table_schema(load().hidden_size), found.iter_batches(batch_format="pyarrow"))
    else:
        found.write_parquet(str(path))


def _map(rows: Dataset, worker: Any, workers: int, given: dict[str, Any]) -> Dataset:
    pool = _ray().data.ActorPoolStrategy(size=workers)
    return rows.map(worker, fn_constructor_kwargs=given, compute=pool)


@dataclass
class _Worker:
    """Answers for a shard at a time, which it opens."""

    folder: str
    queries: list[Protein]
    opened: tuple[int, ProteinDatabase] | None = field(default=None, init=False)

    def shard(self, number: int) -> ProteinDatabase:
        if self.opened is None or self.opened[0] != number:
            self.opened = number, ProteinDatabase.open(self.folder, part=number)
        return self.opened[1]


@dataclass(kw_only=True)
class _Candidates(_Worker):
    most: int | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        database, given = self.shard(row["shard"]), self.queries[row["query"]]
        scores, numbers, error = [], [], ""
        try:
            query = clean_sequence(given.sequence or "", given.id)
            scores, numbers = database.rank(query, self.most)
        except ValueError as problem:
            error = str(problem)
        found = {"size": len(database), "scores": scores, "numbers": numbers, "error": error}
        return row | found


@dataclass(kw_only=True)
class _Hits(_Worker):
    load: Load
    options: dict[str, Any]

    def __post_init__(self) -> None:
        self.align = self.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        database, query = self.shard(row["shard"]), self.queries[row["query"]]
        candidates, answer = [database[number] for number in row["numbers"]], _Answer()
        try:
            answer.hits = align_candidates(self.align, query, candidates, **self.options)
        except ValueError as problem:
            answer.error = str(problem)
        return {"query": row["query"], "answer": answer}


@dataclass
class _Answer:
    """Hits of a query in a shard, as they are: a column of lists would be taken apart."""

    hits: list[Any] = field(default_factory=list)
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
