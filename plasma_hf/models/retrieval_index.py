"""An index of proteins: their vectors and where each comes from, opened and searched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .retrieval_record import RetrievalRecord, record_of
from .weights_digest import weights_digest

HEADER = "index.json"
FORMAT = 1
VECTOR = "vector"
ABOUT = ("id", "kind", "source")
SCORE_DECIMALS = 6
"""Single precision says no more; equal proteins embedded in two batches differ behind that."""


@dataclass(frozen=True)
class ModelIdentity:
    """Say which model made vectors: two are the same where weights and recipe are.

    Args:
        model: Hub id, or name of the folder.
        weights: `weights_digest` of the model.
        recipe: How sequences are written for its sequence encoder.
    """

    model: str
    weights: str
    recipe: str

    @classmethod
    def of(cls, model: Any) -> ModelIdentity:
        """Read it off a model."""
        config = model.config
        name = getattr(config, "name_or_path", "") or type(model).__name__
        # A folder may move; the digest of the weights stays.
        name = Path(name).resolve().name if Path(name).is_dir() else name
        return cls(name, weights_digest(model), getattr(config, "plm_recipe", None) or "own")

    def __str__(self) -> str:
        return f"{self.model} (weights {self.weights[:8]}, recipe {self.recipe})"

    def check(self, model: Any, folder: str | PathLike[str]) -> None:
        """Refuse a model other than the one that made an index.

        Raises:
            ValueError: Naming both.
        """
        other = ModelIdentity.of(model)
        if (self.weights, self.recipe) != (other.weights, other.recipe):
            raise ValueError(
                f"the index {folder} was made by {self}, and this model is {other}: their vectors "
                "cannot be compared. Give the model that made it, or build an index with this one: "
                "plasma-hf index build INPUT --output ANOTHER_FOLDER --model MODEL"
            )


@dataclass(frozen=True)
class IndexHeader:
    """Hold what `index.json` says: which model made the index, and which files it is made of.

    That file alone decides; what it does not name is no part of the index. It is replaced in one
    step, so whoever opens the folder finds all of a change or nothing of it.

    Args:
        made_by: Model of all vectors.
        width: Numbers in a vector.
        shards: Number of records by name of file, in order.
        kinds: Number of records by kind.
        vectors: File of the faiss index; None where there is no record.
        factory: faiss index factory string; None for exact search.
        written_by: plasma_hf version.
    """

    made_by: ModelIdentity
    width: int
    shards: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    vectors: str | None = None
    factory: str | None = None
    written_by: str = ""

    @property
    def count(self) -> int:
        """Number of records."""
        return sum(self.shards.values())

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON can hold it, the order of the shards included."""
        about = {"format": FORMAT, "count": self.count}
        return asdict(self) | about | {"shards": list(self.shards.items())}

    @classmethod
    def read(cls, folder: str | PathLike[str]) -> IndexHeader:
        """Read the header of a folder.

        Raises:
            FileNotFoundError: If there is no index, or none that is finished.
            ValueError: If it is damaged, or of a newer format.
        """
        file = Path(folder) / HEADER
        if not file.is_file():
            started = any(Path(folder).glob("records-*"))
            raise FileNotFoundError(
                f"the index in {str(folder)!r} is not finished; run the command that builds it "
                "again, it goes on where it stopped."
                if started
                else f"there is no index in {str(folder)!r}; build one with: plasma-hf index build "
                f"INPUT --output {folder}"
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}; update plasma-hf")
            del values["count"]
            values["made_by"] = ModelIdentity(**values["made_by"])
            values["shards"] = dict(values["shards"])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{file} is no header of an index that this version reads: {error}; build the "
                f"index again with: plasma-hf index build INPUT --output {folder} --overwrite"
            ) from error


class Index:
    """Find the nearest of many proteins, kept in a folder.

    Example:
        >>> import tempfile, torch, types
        >>> from plasma_hf.search import build_index
        >>> class Composition(torch.nn.Module):
        ...     config = types.SimpleNamespace(name_or_path="composition")
        ...     def embed_sequences(self, sequences, batch_size=32):
        ...         return torch.tensor([[s.count(x) for x in "MKV"] for s in sequences]).float()
        >>> model, folder = Composition(), tempfile.mkdtemp()
        >>> _ = build_index(model, [("P1", "MKVV"), ("P2", "MMMK")], folder)
        >>> index = Index.open(folder, model)
        >>> [(hit["id"], hit["score"]) for hit in index.search(torch.tensor([[0.0, 0, 1]]))[0]]
        [('P1', 0.816497), ('P2', 0.0)]
    """

    def __init__(self, folder: str | PathLike[str], header: IndexHeader, records: Any) -> None:
        """Hold what `open` has read."""
        self.folder, self.header, self.records = Path(folder), header, records
        self._vectors = records.with_format("numpy", columns=[VECTOR])
        self._about = records.select_columns(list(ABOUT))

    @classmethod
    def open(cls, folder: str | PathLike[str], model: Any = None) -> Index:
        """Open an index; records stay on disk until they are found.

        Args:
            folder: Where it is.
            model: Model that is to search it.

        Raises:
            FileNotFoundError: If there is none.
            ImportError: If `datasets` or faiss is not installed.
            ValueError: If another model made it, naming both, or it is damaged.
        """
        header = IndexHeader.read(folder)
        if model is not None:
            header.made_by.check(model, folder)
        records = read_shards(folder, header)
        if header.vectors:
            try:
                records.load_faiss_index(VECTOR, str(Path(folder) / header.vectors))
            except (OSError, RuntimeError, ValueError) as error:
                raise _damaged(folder, header.vectors, error) from error
        return cls(folder, header, records)

    def __len__(self) -> int:
        """Count the records."""
        return len(self.records)

    def check(self, model: Any) -> None:
        """Refuse a model other than the one that made the index; see `ModelIdentity.check`."""
        self.header.made_by.check(model, self.folder)

    def search(self, vectors: Tensor | np.ndarray, k: int = 5) -> list[list[dict[str, Any]]]:
        """Find the nearest records of each query.

        Args:
            vectors: `(queries, width)`, of the model that made the index.
            k: How many hits a query gets, where there are as many.

        Returns:
            Hits of each query, best first, `{"id", "score", "rank", "row", "kind", "source"}`. The
            score is the cosine, to six decimals; records of equal score keep the order of the
            index, where `row` counts from 0.

        Raises:
            ValueError: If the vectors have another width, or `k` is no positive number.
        """
        queries = _unit_rows(vectors, self.header.width)
        _check_k(k)
        if not len(self):
            return [[] for _ in queries]
        wanted = min(len(self), 2 * k + 16)
        found = self.records.search_batch(VECTOR, queries, wanted).total_indices
        ranked = [self._rank(*pair, k) for pair in zip(queries, found, strict=True)]
        return [_hits(self._about.__getitem__, rows, scores) for rows, scores in ranked]

    def read(self, row: int) -> RetrievalRecord:
        """Read a record again: a sequence from the index, a structure from its file.

        Raises:
            FileNotFoundError: If the file of a structure is not there any more.
            ValueError: If the file is not what the index was made of.
        """
        about = self.records[row]
        if about["kind"] == "sequence":
            return RetrievalRecord(about["id"], about["residues"], about["source"])
        if not about["source"]:
            raise ValueError(f"{about['id']} was read from no file, and an index keeps no atoms")
        record = record_of(about["source"], about["id"])
        if record.sha != about["sha"]:
            raise ValueError(f"{about['source']} has changed since it was indexed")
        return RetrievalRecord(about["id"], record.content, record.source)

    def _rank(self, query: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Give rows and scores of the best, computed anew: alike in every batch of queries."""
        rows = np.unique(found[found >= 0])
        scores = cosines(query, self._vectors[rows][VECTOR])
        best = stable_top(scores, k)
        complete = len(rows) < len(found) or len(rows) == len(self) or len(rows) <= k
        # Where what was found ends in a tie with the last hit, an earlier record may be left out.
        if complete or scores.min() < scores[best[-1]]:
            return rows[best], scores[best]
        wider = self.records.search_batch(VECTOR, query[None], min(len(self), 4 * len(found)))
        return self._rank(query, wider.total_indices[0], k)


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
        _check_k(k)
        results = []
        for query in _unit_rows(vectors, self.vectors.shape[1]):
            scores = cosines(query, self.vectors)
            best = stable_top(scores, k)
            results.append(_hits(self._about, best, scores[best]))
        return results

    def read(self, row: int) -> RetrievalRecord:
        """Give a record."""
        return self.records[row]

    def _about(self, row: int) -> dict[str, Any]:
        return {name: getattr(self.records[row], name) for name in ABOUT}


def read_shards(folder: str | PathLike[str], header: IndexHeader) -> Any:
    """Map the records of an index as a `datasets.Dataset`.

    Raises:
        ImportError: If `datasets` or faiss is not installed.
        ValueError: If a shard is missing or damaged.
    """
    datasets = import_datasets()
    parts = []
    for name, count in header.shards.items():
        try:
            # Not Dataset.from_file, which takes its time over a fingerprint of each.
            part = datasets.table.MemoryMappedTable.from_file(str(Path(folder) / name))
        except (OSError, ValueError) as error:  # pyarrow's own errors are among them
            raise _damaged(folder, name, error) from error
        if len(part) != count:
            raise _damaged(folder, name, f"it holds {len(part)} records, not {count}")
        parts += [part] if count else []
    if not parts:
        features = record_features(header.width)
        return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    table = datasets.table.concat_tables(parts)
    digest = hashlib.sha256(" ".join(header.shards).encode()).hexdigest()
    return datasets.Dataset(table, fingerprint=digest[:16])


def record_features(width: int) -> Any:
    """Give the columns of an index, for `datasets`."""
    datasets = import_datasets()
    text = {name: datasets.Value("string") for name in (*ABOUT, "residues", "sha")}
    return datasets.Features(text | {VECTOR: datasets.List(datasets.Value("float32"), width)})


def import_datasets() -> Any:
    """Import `datasets`, with faiss behind it.

    Raises:
        ImportError: Saying what to install.
    """
    try:
        import datasets
        import faiss  # noqa: F401 - datasets looks for it
    except ImportError as error:
        raise ImportError(
            "an index needs datasets and faiss; install both with: pip install 'plasma-hf[search]'"
        ) from error
    return datasets


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


def _hits(
    about: Callable[[int], Mapping[str, Any]], rows: np.ndarray, scores: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {"score": float(score), "rank": rank, "row": row} | dict(about(row))
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores, strict=True), start=1)
    ]


def _unit_rows(vectors: Tensor | np.ndarray, width: int) -> np.ndarray:
    values = vectors.detach().float().cpu().numpy() if isinstance(vectors, Tensor) else vectors
    queries = np.ascontiguousarray(values, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ValueError(
            f"queries have the shape {queries.shape}; give (queries, {width}), as the model that "
            "made the index embeds them."
        )
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return queries / np.where(lengths == 0, 1, lengths)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"{k} hits are asked for; give at least 1.")


def _damaged(folder: str | PathLike[str], name: str, error: object) -> ValueError:
    return ValueError(
        f"{Path(folder) / name} is missing or damaged ({error}); build the index again with: "
        f"plasma-hf index build INPUT --output {folder} --overwrite"
    )
