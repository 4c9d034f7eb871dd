"""One protein, or a few, against every protein of an embedding store."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers.utils import logging

from ..kernels.cpu import quantise, quantum, widened
from ..models.modeling_plasma import (
    AlignedPairs,
    align_pairs,
    at_least_float32,
    can_fuse,
    fused_matches,
    match_scores,
    project_each,
)

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel


T = TypeVar("T")

PRECISIONS = ("float32", "uint8")
SHORTLIST = 50
"""Hits by 8-bit codes, at least, that are scored again exactly."""


@dataclass(order=True)
class Hit:
    """One protein of the store that matches a query.

    Attributes:
        score: Of the pair, in [0, 1].
        key: Hash of the protein's sequence.
        ids: What the protein is called in the store.
        plan: `(query_residues, candidate_residues)`.
    """

    score: float
    key: str
    ids: tuple[str, ...] = field(default=(), compare=False)
    plan: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass
class Codes:
    """The scale of 8-bit codes for projections, from the range of the queries.

    Where a candidate exceeds every query its excess does not matter, so clipping it there is exact.
    """

    low: float
    high: float

    @classmethod
    def of(cls, projections: Sequence[Tensor]) -> Codes:
        """Take the range of the queries."""
        return cls(
            min(float(rows.min()) for rows in projections),
            max(float(rows.max()) for rows in projections),
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """Turn `(residues, channels)` into codes."""
        return quantise(rows, self.low, self.high)

    @property
    def quantum(self) -> float:
        """What one step of a code stands for."""
        return quantum(self.low, self.high)


@torch.no_grad()
def score_many(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    store: Any,
    top_k: int = 10,
    return_plans: bool = True,
    precision: str = "float32",
    max_residues: int = 16384,
    progress: bool | None = None,
) -> list[list[Hit]]:
    """Score queries against a store; see `PlasmaModel.score_many`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; accepted are {', '.join(PRECISIONS)}.")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}; give at least 1.")
    _check_store(model, store)
    projected = project_each(model, queries)
    coded = precision == "uint8" and bool(projected) and can_fuse(model, projected[0])
    codes = Codes.of(projected) if coded else None
    compared = [codes(rows) for rows in projected] if codes else projected
    kept = max(SHORTLIST, 4 * top_k) if codes else top_k
    batches = _with_progress(_ahead(_load(model, store, max_residues, codes)), store, progress)
    best = _keep_best(model, queries, compared, batches, kept)
    names = _names(store)
    for i, (query, projection) in enumerate(zip(queries, projected, strict=True)):
        if codes is not None:
            _score_again(model, query, projection, best[i], store)
        best[i] = sorted(best[i], reverse=True)[:top_k]
        for hit in best[i]:
            hit.ids = tuple(names.get(hit.key, ()))
        if return_plans:
            _make_plans(model, query, projection, best[i], store)
    return best


def _keep_best(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    compared: Sequence[Tensor],
    batches: Iterator[LoadedBatch],
    count: int,
) -> list[list[Hit]]:
    """Return the best of all batches for each query, in no order."""
    best: list[list[Hit]] = [[] for _ in queries]
    for batch in batches:
        for query, projection, hits in zip(queries, compared, best, strict=True):
            scores = _score_batch(model, query, projection, batch)
            for key, score in zip(batch.keys, scores.tolist(), strict=True):
                _keep(hits, Hit(score, key), count)
    return best


def _with_progress(
    batches: Iterator[LoadedBatch], store: Any, progress: bool | None
) -> Iterator[LoadedBatch]:
    show = logging.tqdm(
        total=sum(store.lengths.values()),
        unit="residue",
        unit_scale=True,
        disable=None if progress is None else not progress,
    )
    with show:
        for batch in batches:
            yield batch
            show.update(sum(map(len, batch.projections)))


def _names(store: Any) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, key in store.ids.items():
        names.setdefault(key, []).append(name)
    return names


@dataclass
class LoadedBatch:
    """Candidates of one batch, projected; `read` gives the embeddings of one by its number."""

    keys: list[str]
    projections: list[Tensor]
    read: Any
    quantum: float | None


def _load(
    model: PlasmaModel, store: Any, max_residues: int, codes: Codes | None
) -> Iterator[LoadedBatch]:
    ready = "projections" in store.header.kinds
    for stored in store.stream(max_residues):
        kind = "projections" if ready else "embeddings"
        rows = [stored.read(kind, key).to(model.device) for key in stored.keys]
        if not ready:
            rows = project_each(model, [widened(row) for row in rows])
        projections = [codes(row) if codes else widened(row) for row in rows]
        read = partial(_read_embeddings, stored)
        yield LoadedBatch(stored.keys, projections, read, codes.quantum if codes else None)


def _read_embeddings(stored: Any, number: int) -> Tensor:
    return stored.read("embeddings", stored.keys[number])


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items while the next one is being read."""
    with ThreadPoolExecutor(1) as reader:
        done = object()
        coming = reader.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = reader.submit(next, items, done)
            yield item  # type: ignore[misc]


def _score_batch(
    model: PlasmaModel, query: Tensor, projection: Tensor, batch: LoadedBatch
) -> Tensor:
    count = len(batch.keys)
    if batch.quantum is not None or can_fuse(model, projection):
        matches = fused_matches(
            model, [projection] * count, batch.projections, False, quantum=batch.quantum
        )
        return match_scores(model, matches, [query] * count, batch.read)
    embeddings = [at_least_float32(batch.read(p).to(model.device)) for p in range(count)]
    return align_pairs(
        model,
        [query] * count,
        embeddings,
        [projection] * count,
        batch.projections,
        return_plans=False,
    ).scores


def _keep(hits: list[Hit], hit: Hit, top_k: int) -> None:
    if len(hits) < top_k:
        heapq.heappush(hits, hit)
    elif hits[0] < hit:
        heapq.heapreplace(hits, hit)


def _score_again(
    model: PlasmaModel, query: Tensor, projection: Tensor, hits: list[Hit], store: Any
) -> None:
    """Replace scores of 8-bit codes by exact ones."""
    aligned = _align_hits(model, query, projection, hits, store, return_plans=False)
    for hit, score in zip(hits, aligned.scores.tolist(), strict=True):
        hit.score = score


def _make_plans(
    model: PlasmaModel, query: Tensor, projection: Tensor, hits: list[Hit], store: Any
) -> None:
    """Make the plans of the hits alone."""
    aligned = _align_hits(model, query, projection, hits, store, return_plans=True)
    for hit, plan in zip(hits, aligned.plans or (), strict=True):
        hit.plan = plan


def _align_hits(
    model: PlasmaModel,
    query: Tensor,
    projection: Tensor,
    hits: list[Hit],
    store: Any,
    return_plans: bool,
) -> AlignedPairs:
    count = len(hits)
    ready: list[Tensor] | None = None
    if "projections" in store.header.kinds:
        ready = [store.projections(hit.key, torch.float32).to(model.device) for hit in hits]
    embeddings = [store.embeddings(hit.key, torch.float32).to(model.device) for hit in hits]
    return align_pairs(
        model, [query] * count, embeddings, [projection] * count, ready, return_plans
    )


def _check_store(model: PlasmaModel, store: Any) -> None:
    """Refuse a store whose projections are of another head, or that lacks what a score needs."""
    header = store.header
    if "projections" in header.kinds and header.head != model.head_identity:
        raise ValueError(
            f"the store {store.folder} keeps projections of another head than this model's; make "
            "one with: plasma-hf embed FILE --model <this model> --projections --output FOLDER."
        )
    if "embeddings" not in header.kinds:
        raise ValueError(
            f"the store {store.folder} keeps projections alone, and scores and plans of hits need "
            "embeddings as well; make one that keeps both."
        )
    width = model.config.embedding_size
    if width not in (None, header.hidden_size):
        raise ValueError(
            f"the store {store.folder} keeps embeddings of width {header.hidden_size}, this model "
            f"takes {width}; make a store with the backbone the head was made for."
        )
