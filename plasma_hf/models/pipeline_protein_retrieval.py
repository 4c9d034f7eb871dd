"""`pipeline("protein-retrieval")`: a sequence or structure in, the nearest proteins out."""

# mypy: disable-error-code="override"

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_backbone import from_package
from .protein import (
    ACCEPTED,
    BACKBONE_ATOMS,
    KINDS,
    STRUCTURE_SUFFIXES,
    InvalidRecord,
    Protein,
    ProteinPipeline,
    files_below,
    is_fasta,
    is_protein,
    is_structure,
    read_protein,
    read_records,
    split_record,
    suffix_of,
)

logger = logging.getLogger(__name__)

ABOUT = ("id", "kind", "source")
EXPLAINED = 20
"""Nearest proteins that are aligned, at least, where hits are explained."""
RESIDUES_PER_BATCH = 2048
# Single precision says no more; equal proteins embedded in two batches differ behind that.
SCORE_DECIMALS = 6


class ProteinRetrievalPipeline(ProteinPipeline):
    """Find the proteins nearest to a query, among those of an index or of a list.

    A query is a sequence, a path (FASTA, PDB, mmCIF; `file:record` or `file:chain` where the file
    holds several), a `Structure` or `Protein`, or a mapping with `sequence` or `structure`. One
    query gives one result; a list or `datasets.Dataset` a list; a generator or a streamed data set
    an iterator, so that nothing piles up. A FASTA file, given alone, is the list of its records.

    A result is a list of hits, the best first: `{"id": str, "score": float, "rank": int, "source":
    str}`. The score is the cosine of the two vectors; rank counts from 1. Query and hit may each be
    a sequence or a structure.

    Build with:
        index: Folder of an index that `plasma-hf index build` made with the same model.
        candidates: In its place, what to search: a list of whatever a query may be, the path of a
            FASTA or structure file, or a folder with structures. They are embedded once. Those that
            cannot be used are left out with a warning, and are in `invalid_candidates`.

    Call with, or build with:
        top_k: Hits of a query, 5 by default.
        explain: Let residues decide among the nearest, 20 or `top_k` if that is more: those that a
            significant alignment with the query shows come first, by E-value. Each hit has
            `"explain"`, the result of `pipeline("protein-alignment")` with an `evalue` for all that
            was searched and, of two structures, their `"superposition"`; of one that cannot be
            aligned, as its file is gone, `{"error": message}`. True aligns by letters; give another
            `pipeline("protein-alignment", ...)` in its place, such as one with `backbone="3di"`.
        on_error: "raise", or "report" to get `{"error": message}` for an invalid query and go on.
        batch_size: Queries embedded together; results do not depend on it.
    """

    def __init__(
        self, *args: Any, index: Any = None, candidates: Any = None, **kwargs: Any
    ) -> None:
        if (index is None) == (candidates is None):
            raise ValueError(
                "give one of index=FOLDER, which `plasma-hf index build` makes, and "
                "candidates=[...], proteins to search at once."
            )
        super().__init__(*args, **kwargs)
        self.model.eval()
        if self.processor is not None:
            self.model.processor = self.processor
        self.invalid_candidates: list[InvalidRecord] = []
        self.index: Any = index
        if index is None:
            self.index = self._embed_candidates(candidates)
        elif isinstance(index, str | PathLike):
            opened = f"an index on disk ({index}; candidates=[...] needs none) is opened"
            self.index = from_package("search.index", opened).Index.open(index, self.model)
        else:
            index.check(self.model)

    def _sanitize_parameters(
        self, top_k: int | None = None, explain: Any = None, on_error: str | None = None
    ) -> tuple[dict, dict, dict]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}; give at least 1.")
        if isinstance(explain, ProteinPipeline) and explain.model.calibration is None:
            raise ValueError(
                "hits are ordered by E-value, and the model that is to explain them is not "
                "calibrated; plasma-hf calibrate does it for any backbone."
            )
        reading, _, _ = super()._sanitize_parameters(on_error)
        shown = {} if top_k is None else {"top_k": top_k}
        shown |= {} if explain is None else {"explain": explain}
        return reading, reading | shown, shown

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Search with one query or many; see the class."""
        if args:
            raise TypeError("give one query or a list of them as one argument: pipe([a, b]).")
        if isinstance(inputs, str | Path):
            if not (os.path.isfile(inputs) and is_fasta(inputs)):
                return super().__call__(inputs, **kwargs)
            inputs = read_records(inputs)
        elif isinstance(inputs, Mapping) or is_structure(inputs) or is_protein(inputs):
            return super().__call__(inputs, **kwargs)
        refusal = (
            f"cannot search with a {type(inputs).__name__}; give {ACCEPTED}; or a list, generator "
            "or data set of these."
        )
        return self.answer_each(None if isinstance(inputs, Tensor) else inputs, refusal, **kwargs)

    def size_of(self, query: Protein) -> tuple[str, int]:
        """Return kind and length."""
        return query.kind, len(query)

    def read(self, query: Any) -> Protein:
        """Read one query."""
        protein = _read(query, "query")
        _check_encoder(self.model, protein.kind)
        return protein

    def _forward(
        self, queries: list[Protein], top_k: int = 5, explain: Any = False, on_error: str = "raise"
    ) -> list[dict[str, Any]]:
        outputs: list[dict[str, Any]] = []
        nearest = max(top_k, EXPLAINED) if explain else top_k
        for query, vector in zip(queries, embed_proteins(self.model, queries), strict=True):
            if isinstance(vector, Tensor):
                [hits] = self.index.search(vector[None], nearest)
                outputs.append({"query": query, "hits": hits})
            elif on_error == "raise":
                raise vector
            else:
                outputs.append({"error": f"{query.id} cannot be embedded: {vector}"})
        return outputs

    def postprocess(self, output: dict[str, Any], top_k: int = 5, explain: Any = False) -> Any:
        """Turn what was found into hits, explained if that is asked for."""
        if "error" in output:
            return output
        keys = ("id", "score", "rank", "source")
        hits = [{key: hit[key] for key in keys} for hit in output["hits"]]
        if not explain:
            return hits
        for hit, found in zip(hits, output["hits"], strict=True):
            hit["explain"] = self._explain(output["query"], found["row"], explain)
        best = sorted(hits, key=_by_residues)[:top_k]
        return [hit | {"rank": rank} for rank, hit in enumerate(best, start=1)]

    @cached_property
    def _by_letters(self) -> Any:
        """What aligns a query with its hits by default: it knows nothing of the model."""
        return from_package("search.database", "hits are explained").default_pipeline()

    def _explain(self, query: Protein, row: int, align: Any) -> Any:
        """Align a query with a hit."""
        try:
            align = self._by_letters if align is True else align
            candidate = self.index.read(row)
            result = align((query, candidate), database_size=len(self.index))
        except (ValueError, OSError, ImportError) as error:
            return {"error": str(error)}
        if result["segments"] and query.structure is not None and candidate.structure is not None:
            result["superposition"] = result.superpose().about()
        return result

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model, and the processor it knows, in one folder that loads on its own."""
        self.model.save_pretrained(save_directory, **kwargs)

    def _embed_candidates(self, candidates: Any) -> CandidateList:
        invalid = self.invalid_candidates
        proteins = list(read_candidates(candidates, invalid.append))
        kept, vectors = [], []
        for protein, found in zip(proteins, embed_proteins(self.model, proteins), strict=True):
            if isinstance(found, Tensor):
                kept.append(protein)
                vectors.append(found)
            else:
                invalid.append(InvalidRecord(protein.id, f"it cannot be embedded: {found}"))
        for record in invalid:
            logger.warning("%s is left out: %s", record.id, record.reason)
        if not kept:
            reasons = "; ".join(f"{record.id}: {record.reason}" for record in invalid[:3])
            raise ValueError(f"there is no candidate that can be searched. {reasons}".strip())
        return CandidateList(kept, torch.stack(vectors))


def _by_residues(hit: Mapping[str, Any]) -> float:
    """Order hits by E-value where it is significant, and leave the others as they are."""
    found = hit["explain"]
    return float(found["evalue"]) if found.get("segments") else math.inf


def embed_proteins(
    model: Any, proteins: Sequence[Protein], residues_per_batch: int = RESIDUES_PER_BATCH
) -> list[Tensor | Exception]:
    """Embed proteins, each kind by its own side of the model, in batches of like length.

    Each becomes an L2-normalised vector `(width,)`, float32 on the CPU, or what went wrong.
    """
    results: dict[int, Tensor | Exception] = {}
    for kind in KINDS:
        chosen = [i for i, protein in enumerate(proteins) if protein.kind == kind]
        if chosen:
            _check_encoder(model, kind)
        chosen.sort(key=lambda i: -len(proteins[i]))
        while chosen:
            size = max(1, residues_per_batch // max(1, len(proteins[chosen[0]])))
            batch, chosen = chosen[:size], chosen[size:]
            found = _embed_batch(model, [proteins[i] for i in batch])
            results |= dict(zip(batch, found, strict=True))
    return [results[i] for i in range(len(proteins))]


def _embed_batch(model: Any, proteins: Sequence[Protein]) -> list[Tensor | Exception]:
    """Embed a batch of one kind; if that fails, each by itself, to find the one to blame."""
    embed = model.embed_structures if proteins[0].structure else model.embed_sequences
    try:
        content = [protein.structure or protein.sequence for protein in proteins]
        vectors = embed(content, batch_size=len(proteins))
        vectors = F.normalize(vectors.detach().float().cpu(), dim=-1)
    except (ValueError, RuntimeError) as error:
        if len(proteins) == 1:
            return [error]
        return [found for protein in proteins for found in _embed_batch(model, [protein])]
    finite = vectors.isfinite().all(dim=-1).tolist()
    wrong = ValueError("its vector is not finite")
    return [vector if good else wrong for vector, good in zip(vectors, finite, strict=True)]


def _check_encoder(model: Any, kind: str) -> None:
    if hasattr(model, "check_encoder"):  # as `ProtAlignModel` has
        model.check_encoder(kind)


def _read(value: Any, name: str) -> Protein:
    protein = read_protein(value, name, BACKBONE_ATOMS)
    if protein.kind not in KINDS:
        raise TypeError(f"{name} is residue embeddings; give {ACCEPTED}.")
    return protein


def read_candidates(
    candidates: Any, on_invalid: Callable[[InvalidRecord], object]
) -> Iterator[Protein]:
    """Read proteins from a list, a file or a folder; `on_invalid` is told what is left out."""
    if isinstance(candidates, str | PathLike):
        records = _read_place(Path(candidates), on_invalid)
        named: Iterable[tuple[str, str, Any]] = ((p.id, "record", p) for p in records)
    elif isinstance(candidates, Mapping) or not isinstance(candidates, Iterable):
        raise TypeError(
            f"candidates is a {type(candidates).__name__}; give a list of proteins, a FASTA or "
            "structure file, or a folder with structures."
        )
    else:
        named = ((f"candidate {n}", f"candidate {n}", one) for n, one in enumerate(candidates, 1))
    for key, name, value in named:
        try:
            yield _read(value, name)
        except (ValueError, TypeError, OSError) as error:
            on_invalid(InvalidRecord(key, str(error)))


def _read_place(place: Path, on_invalid: Callable[[InvalidRecord], object]) -> Iterator[Protein]:
    """Read the proteins of a file, or of the structures below a folder, unchecked."""
    if not os.path.isdir(place):
        if not os.path.exists(split_record(place)[0]):
            said = (
                f"there is no file or folder {str(place)!r}; check the path. A sequence goes into"
            )
            raise FileNotFoundError(f"{said} a list: candidates=['MKVLA'].")
        yield from read_records(place, BACKBONE_ATOMS)
        return
    files = [file for file in files_below(place) if suffix_of(file) in STRUCTURE_SUFFIXES]
    if not files:
        kinds = ", ".join(STRUCTURE_SUFFIXES)
        raise ValueError(f"there is no structure file below {str(place)!r}: {kinds}, also .gz.")
    for file in files:
        name = file.relative_to(place).as_posix()
        try:
            for record in read_records(file, BACKBONE_ATOMS):
                yield replace(record, id=name.removesuffix(file.name) + record.id)
        except (ValueError, OSError) as error:
            on_invalid(InvalidRecord(name, str(error)))


class CandidateList:
    """Find the nearest of a list of proteins in memory, with L2-normalised vectors of each."""

    def __init__(self, records: Sequence[Protein], vectors: Tensor) -> None:
        self.records = list(records)
        self.vectors = vectors.double().cpu().numpy()
        self.about = [{name: getattr(one, name) for name in ABOUT} for one in self.records]

    def search(self, vectors: Tensor | np.ndarray, k: int = 5) -> list[list[dict[str, Any]]]:
        """Find the nearest records of each query; see `Index.search`."""
        queries = unit_rows(vectors, self.vectors.shape[1], k)
        rows = np.arange(len(self.records))
        return [hits_of(query, self.vectors, rows, k, self.about.__getitem__) for query in queries]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: int) -> Protein:
        """Give a record."""
        return self.records[row]


def unit_rows(vectors: Tensor | np.ndarray, width: int, k: int) -> np.ndarray:
    """Return queries `(queries, width)` as L2-normalised float32; refuse to look for no hits."""
    values = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    queries = np.ascontiguousarray(values, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"queries have the shape {queries.shape}; give (queries, {width}), as the model that "
            "made the index embeds them."
        )
    if k < 1:
        raise ValueError(f"{k} hits are asked for; give at least 1.")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return queries / np.where(lengths == 0, 1, lengths)


def hits_of(
    query: np.ndarray,
    vectors: np.ndarray,
    rows: np.ndarray,
    k: int,
    about: Callable[[int], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Name the `k` rows whose vectors are nearest to a query, the best first.

    Scores are computed in double precision, alike in every batch; equal ones keep their order.
    """
    scores = vectors.astype(np.float64, copy=False) @ query.astype(np.float64)
    scores = np.round(scores, SCORE_DECIMALS)
    best = np.argsort(-scores, kind="stable")[:k]
    ranked = enumerate(zip(rows[best].tolist(), scores[best].tolist(), strict=True), start=1)
    return [
        {"score": score, "rank": rank, "row": row} | dict(about(row))
        for rank, (row, score) in ranked
    ]
