"""`pipeline("protein-retrieval")`: a sequence or structure in, the nearest proteins out."""

# mypy: disable-error-code="override, assignment, union-attr"

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pipelines.pt_utils import KeyDataset

from .protein import (
    ACCEPTED,
    FASTA_SUFFIXES,
    BatchedPipeline,
    RetrievalRecord,
    check_encoder,
    embed_records,
    is_protein,
    is_record,
    is_structure,
    looks_like_path,
    read_records,
    record_of,
    records_in,
)

# The base class types its hooks for one dict of tensors; a query is a record.


logger = logging.getLogger(__name__)

ABOUT = ("id", "kind", "source")
SCORE_DECIMALS = 6
"""Single precision says no more; equal proteins embedded in two batches differ behind that."""

EXPLAINED = 10
"""Residues that an explanation names."""


class ProteinRetrievalPipeline(BatchedPipeline):
    """Find the proteins nearest to a query, among those of an index or of a list.

    A query is a sequence, a path (FASTA, PDB, mmCIF; `file:record` or `file:chain` where the file
    holds several), a `Structure`, or a mapping with `sequence` or `structure`. One query gives one
    result; a list or `datasets.Dataset` a list; a generator or a streamed data set an iterator, so
    that nothing piles up. The path of a FASTA file, given alone, is the list of all its records.

    A result is a list of hits, the best first: `{"id": str, "score": float, "rank": int, "source":
    str}`. The score is the cosine of the two vectors; rank counts from 1. Query and hit may each be
    a sequence or a structure.

    Build with:
        index: Folder of an index that `plasma-hf index build` made with the same model.
        candidates: In its place, what to search: a list of whatever a query may be, the path of a
            FASTA or structure file, or a folder with structures. They are embedded once. Those that
            cannot be used are left out with a warning, and are in `bad_candidates`.

    Call with, or build with:
        top_k: Hits of a query, 5 by default.
        explain: Add `"explain"` to a hit: under `"query"` and `"candidate"` the ten residues that
            the attention pools of the model weigh most, each `{"residue": number, "chain": str,
            "letter": str, "weight": float}`. The number is the author's for a structure, counted
            from 1 for a sequence. Where the file of a hit is gone, `"candidate"` is None and
            `"error"` says so.
        on_error: "raise", or "report" to get `{"error": message}` for a bad query and go on.
        batch_size: Queries embedded together; results do not depend on it.
    """

    model: Any
    processor: Any

    _load_processor = None  # the model reads sequences and structures by itself
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(
        self,
        *args: Any,
        index: str | PathLike[str] | Any | None = None,
        candidates: Any = None,
        **kwargs: Any,
    ) -> None:
        """Build the pipeline, open the index or embed the candidates."""
        if (index is None) == (candidates is None):
            raise ValueError(
                "give one of index=FOLDER, which `plasma-hf index build` makes, and "
                "candidates=[...], proteins to search at once."
            )
        super().__init__(*args, **kwargs)
        self.model.eval()
        if self.processor is not None:
            self.model.processor = self.processor
        self.bad_candidates: list[tuple[str, str]] = []
        self.index: Any
        if candidates is not None:
            self.index = self._embed_candidates(candidates)
        elif isinstance(index, str | PathLike):
            self.index = _open_index(index, self.model)
        else:
            self.index = index
            self.index.check(self.model)

    def _sanitize_parameters(
        self, top_k: int | None = None, explain: bool | None = None, on_error: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if on_error not in (None, "raise", "report"):
            raise ValueError(f"on_error={on_error!r}; accepted are 'raise' and 'report'.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; give at least 1.")
        reading = {} if on_error is None else {"on_error": on_error}
        forward = reading | ({} if top_k is None else {"top_k": top_k})
        return reading, forward, {} if explain is None else {"explain": explain}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Search with one query or many; see the class."""
        if args:
            raise TypeError("give one query or a list of them as one argument: pipe([a, b]).")
        if _is_fasta_file(inputs):
            inputs = [{"id": p.id, "sequence": p.sequence} for p in read_records(inputs)]
        one = isinstance(inputs, str | Path | Mapping) or is_record(inputs)
        if one or is_structure(inputs) or is_protein(inputs):
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, KeyDataset):  # it counts and indexes, and does not iterate
            return list(super().__call__((inputs[i] for i in range(len(inputs))), **kwargs))
        if not isinstance(inputs, Iterable) or isinstance(inputs, Tensor):
            raise TypeError(
                f"cannot search with a {type(inputs).__name__}; give {ACCEPTED}; or a list, "
                "generator or data set of these."
            )
        lazily = super().__call__((query for query in inputs), **kwargs)
        return list(lazily) if hasattr(inputs, "__len__") else lazily

    def size_of(self, query: RetrievalRecord) -> tuple[str, int]:
        """Return kind and length."""
        return query.kind, len(query.residues)

    def preprocess(self, query: Any, on_error: str = "raise") -> RetrievalRecord | dict[str, str]:
        """Read one query."""
        try:
            record = record_of(query)
            check_encoder(self.model, record.kind)
            return record
        except (ValueError, TypeError, OSError, ImportError) as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}

    def _forward(
        self, queries: list[RetrievalRecord], top_k: int = 5, on_error: str = "raise", **_: Any
    ) -> list[dict[str, Any]]:
        found = embed_records(self.model, queries)
        outputs = []
        for query, vector in zip(queries, found, strict=True):
            if isinstance(vector, Tensor):
                hits = self.index.search(vector[None], top_k)[0]
                outputs.append({"query": query, "hits": hits})
            elif on_error == "raise":
                raise vector
            else:
                outputs.append({"error": f"{query.id} cannot be embedded: {vector}"})
        return outputs

    def postprocess(self, output: dict[str, Any], explain: bool = False) -> Any:
        """Turn what was found into hits, explained if so wished."""
        if "error" in output:
            return output
        hits = [
            {name: hit[name] for name in ("id", "score", "rank", "source")}
            for hit in output["hits"]
        ]
        if explain:
            weighed = self.explain(output["query"])
            for hit, found in zip(hits, output["hits"], strict=True):
                hit["explain"] = {"query": weighed} | self._explain_hit(found["row"])
        return hits

    @torch.no_grad()
    def explain(self, record: RetrievalRecord, count: int = EXPLAINED) -> list[dict[str, Any]]:
        """Name the residues that the attention pool of the model weighs most.

        Args:
            record: Sequence or structure.
            count: How many.
        """
        content = record.content
        if isinstance(content, str):
            weights = self.model.explain_sequence(content)
            numbers, chains = [str(i + 1) for i in range(len(content))], [""] * len(content)
        else:
            weights = self.model.explain_structure(content)
            numbers, chains = list(content.author_numbers), list(content.chain_ids)
        weights = weights.detach().float().cpu()
        best = torch.sort(weights, descending=True, stable=True).indices[:count].tolist()
        return [
            {
                "residue": numbers[i],
                "chain": chains[i],
                "letter": record.residues[i],
                "weight": float(weights[i]),
            }
            for i in best
        ]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model, and the processor it knows, in one folder that loads on its own."""
        self.model.save_pretrained(save_directory, **kwargs)

    def _explain_hit(self, row: int) -> dict[str, Any]:
        try:
            return {"candidate": self.explain(self.index.read(row))}
        except (ValueError, OSError, ImportError) as error:
            return {"candidate": None, "error": str(error)}

    def _embed_candidates(self, candidates: Any) -> CandidateList:
        records = list(self._read_candidates(candidates))
        kept, vectors = [], []
        for record, vector in zip(records, embed_records(self.model, records), strict=True):
            if isinstance(vector, Tensor):
                kept.append(record)
                vectors.append(vector)
            else:
                self.bad_candidates.append((record.id, f"it cannot be embedded: {vector}"))
        for name, reason in self.bad_candidates:
            logger.warning("%s is left out: %s", name, reason)
        if not kept:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.bad_candidates[:3])
            raise ValueError(f"there is no candidate that can be searched. {reasons}".strip())
        return CandidateList(kept, torch.stack(vectors))

    def _read_candidates(self, candidates: Any) -> Iterator[RetrievalRecord]:
        if isinstance(candidates, str | PathLike):
            yield from records_in(Path(candidates), self.bad_candidates)
            return
        if isinstance(candidates, Mapping) or not isinstance(candidates, Iterable):
            raise TypeError(
                f"candidates is a {type(candidates).__name__}; give a list of proteins, a FASTA or "
                "structure file, or a folder with structures."
            )
        for number, candidate in enumerate(candidates, start=1):
            name = f"candidate {number}"
            try:
                yield record_of(candidate, name)
            except (ValueError, TypeError, OSError) as error:
                self.bad_candidates.append((name, str(error)))


def _is_fasta_file(value: Any) -> bool:
    if not isinstance(value, str | Path) or not looks_like_path(str(value)):
        return False
    name = Path(value).name.removesuffix(".gz").lower()
    return name.endswith(FASTA_SUFFIXES) and Path(value).is_file()


def _open_index(folder: str | PathLike[str], model: Any) -> Any:
    try:
        from plasma_hf.search.index import Index
    except ImportError as error:
        raise ImportError(
            f"an index on disk ({folder}) is opened by the package plasma_hf, which is not "
            "installed here: pip install 'plasma-hf[search]'; or give candidates=[...]."
        ) from error
    return Index.open(folder, model)


class CandidateList:
    """Find the nearest of a list of proteins in memory.

    Args:
        records: The candidates.
        vectors: `(records, width)`, L2-normalised.
    """

    def __init__(self, records: Sequence[RetrievalRecord], vectors: Tensor) -> None:
        """Keep records and vectors."""
        self.records = list(records)
        self.vectors = vectors.double().cpu().numpy()

    def __len__(self) -> int:
        """Count the records."""
        return len(self.records)

    def search(self, vectors: Tensor | np.ndarray, k: int = 5) -> list[list[dict[str, Any]]]:
        """Find the nearest records of each query; see `Index.search`."""
        check_k(k)
        results = []
        for query in unit_rows(vectors, self.vectors.shape[1]):
            scores = cosines(query, self.vectors)
            best = stable_top(scores, k)
            results.append(hits_of(self._about, best, scores[best]))
        return results

    def read(self, row: int) -> RetrievalRecord:
        """Give a record."""
        return self.records[row]

    def _about(self, row: int) -> dict[str, Any]:
        return {name: getattr(self.records[row], name) for name in ABOUT}


def cosines(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Give the cosine of a query `(width,)` with vectors `(n, width)`, all L2-normalised."""
    return np.round(vectors.astype(np.float64) @ query.astype(np.float64), SCORE_DECIMALS)


def stable_top(scores: np.ndarray, k: int) -> np.ndarray:
    """Give the places of the highest scores, equal ones in their order.

    Example:
        >>> stable_top(np.array([0.1, 0.9, 0.5, 0.9]), 3).tolist()
        [1, 3, 2]
    """
    return np.argsort(-scores, kind="stable")[:k]


def hits_of(
    about: Callable[[int], Mapping[str, Any]], rows: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    """Name the hits in these rows, the best first."""
    return [
        {"score": float(score), "rank": rank, "row": row} | dict(about(row))
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores, strict=True), start=1)
    ]


def unit_rows(vectors: Tensor | np.ndarray, width: int) -> np.ndarray:
    """Return queries `(queries, width)` as L2-normalised float32."""
    values = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    queries = np.ascontiguousarray(values, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"queries have the shape {queries.shape}; give (queries, {width}), as the model that "
            "made the index embeds them."
        )
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return queries / np.where(lengths == 0, 1, lengths)


def check_k(k: int) -> None:
    """Refuse to look for no hits."""
    if k < 1:
        raise ValueError(f"{k} hits are asked for; give at least 1.")
