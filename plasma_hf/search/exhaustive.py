"""One protein, or a few, against every protein of an embedding store."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..models.modeling_backbone import check_embeddings

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

READ_TOGETHER = 16384  # residues


@dataclass(order=True)
class Hit:
    """One protein of the store that matches a query.

    Attributes:
        score: Of the pair, in [0, 1].
        key: Of its record, see `EmbeddingStore.read_key`.
        p_value: Chance that an unrelated protein reaches as much, if the model is calibrated.
        ids: What the protein is called in the store.
        plan: `(query_residues, candidate_residues)`.
    """

    score: float
    key: str
    p_value: float | None = field(default=None, compare=False)
    ids: tuple[str, ...] = field(default=(), compare=False)
    plan: Tensor | None = field(default=None, compare=False, repr=False)


def _rank(hit: Hit) -> tuple[float, Hit]:
    return -(hit.p_value or 0.0), hit


@torch.no_grad()
def score_many(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    store: Any,
    top_k: int = 10,
    return_plans: bool = True,
) -> list[list[Hit]]:
    """Score queries against a store; see `PlasmaModel.score_many`."""
    if top_k < 1:
        raise ValueError(f"top_k={top_k}; give at least 1.")
    _check_store(model, store)
    projected = model.project_each(queries)
    best = _best_of(model, queries, projected, _load(model, store), top_k)
    names: dict[str, list[str]] = {}
    for name, key in store.ids.items():
        names.setdefault(key, []).append(name)
    for query, projection, hits in zip(queries, projected, best, strict=True):
        for hit in hits:
            hit.ids = tuple(names.get(hit.key, ()))
        if return_plans:
            _add_plans(model, query, projection, hits, store)
    return best


def _best_of(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    projected: Sequence[Tensor],
    batches: Iterator[_Batch],
    top_k: int,
) -> list[list[Hit]]:
    """Return the best hits of each query, the best one first."""
    best: list[list[Hit]] = [[] for _ in queries]
    for batch in batches:
        for query, projection, hits in zip(queries, projected, best, strict=True):
            aligned = model.align_pairs(
                [query] * len(batch),
                batch,
                query_projections=[projection] * len(batch),
                candidate_projections=batch.projections,
                return_plans=False,
            )
            found = list(map(Hit, aligned.scores.tolist(), batch.keys))
            if (null := model.calibration) is not None and aligned.raw_scores is not None:
                raw_scores = aligned.raw_scores.tolist()
                for hit, raw_score, other in zip(found, raw_scores, batch.projections, strict=True):
                    hit.p_value = null.p_value(raw_score, len(projection), len(other))
            hits[:] = heapq.nlargest(top_k, (*hits, *found), key=_rank)
    return best


@dataclass
class _Batch(Sequence[Tensor]):
    """Candidates and their projections; as a sequence, their embeddings, read when asked for."""

    keys: list[str]
    projections: list[Tensor]
    stored: Any
    device: torch.device

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: Any) -> Any:
        return self.stored.read("embeddings", self.keys[number]).to(self.device).float()


def _load(model: PlasmaModel, store: Any) -> Iterator[_Batch]:
    kind = "projections" if "projections" in store.header.kinds else "embeddings"
    with tqdm(total=len(store.lengths), unit="protein", disable=None) as bar:
        for stored in store.stream(READ_TOGETHER):
            rows = [stored.read(kind, key).to(model.device).float() for key in stored.keys]
            for key, each in zip(stored.keys, rows, strict=True):
                check_embeddings(each, f"{key!r} of the store {store.folder}")
            if kind == "embeddings":
                rows = model.project_each(rows)
            yield _Batch(stored.keys, rows, stored, model.device)
            bar.update(len(rows))


def _add_plans(
    model: PlasmaModel, query: Tensor, projection: Tensor, hits: list[Hit], store: Any
) -> None:
    """Make the plans of the hits alone."""
    candidates, projections = (
        [store.read_key(hit.key, kind, torch.float32).to(model.device) for hit in hits]
        if kind in store.header.kinds
        else None
        for kind in ("embeddings", "projections")
    )
    aligned = model.align_pairs(
        [query] * len(hits),
        candidates or [],
        query_projections=[projection] * len(hits),
        candidate_projections=projections,
    )
    for hit, plan in zip(hits, aligned.plans or (), strict=True):
        hit.plan = plan


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
