"""An index of proteins: their vectors and where each comes from, opened and searched."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from ..data.store import write_atomically, write_json
from ..io.sequences import BadRecord, read_sequences
from ..io.structures import read_structure_folder
from ..models.modeling_backbone import weights_digest
from ..models.pipeline_protein_retrieval import (
    ABOUT,
    RESIDUES_PER_BATCH,
    check_k,
    cosines,
    embed_proteins,
    hits_of,
    stable_top,
    unit_rows,
)
from ..models.protein import (
    BACKBONE_ATOMS,
    KINDS,
    STRUCTURE_SUFFIXES,
    Protein,
    read_protein,
    suffix_of,
)

HEADER = "index.json"
FORMAT = 1
VECTOR = "vector"


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
        queries = unit_rows(vectors, self.header.width)
        check_k(k)
        if not len(self):
            return [[] for _ in queries]
        wanted = min(len(self), 2 * k + 16)
        found = self.records.search_batch(VECTOR, queries, wanted).total_indices
        ranked = [self._rank(*pair, k) for pair in zip(queries, found, strict=True)]
        return [hits_of(self._about.__getitem__, rows, scores) for rows, scores in ranked]

    def read(self, row: int) -> Protein:
        """Read a record again: a sequence from the index, a structure from its file.

        Raises:
            FileNotFoundError: If the file of a structure is not there any more.
            ValueError: If the file is not what the index was made of.
        """
        about = self.records[row]
        if about["kind"] == "sequence":
            return Protein(about["id"], about["residues"], source=about["source"])
        if not about["source"]:
            raise ValueError(f"{about['id']} was read from no file, and an index keeps no atoms")
        record = read_protein(about["source"], about["id"], BACKBONE_ATOMS)
        if record.sha != about["sha"]:
            raise ValueError(f"{about['source']} has changed since it was indexed")
        return replace(record, id=about["id"])

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


def _damaged(folder: str | PathLike[str], name: str, error: object) -> ValueError:
    return ValueError(
        f"{Path(folder) / name} is missing or damaged ({error}); build the index again with: "
        f"plasma-hf index build INPUT --output {folder} --overwrite"
    )


# --- Shards: the rows of an index, some hundreds a file, each there whole or not at all.


BAD = b"plasma_hf_bad"


def shard_name(made_by: ModelIdentity, names: Iterable[tuple[str, str]]) -> str:
    """Name a shard after what is in it, so that one that is there need not be made again.

    Args:
        made_by: Model of its vectors.
        names: Id and sha of each record that it was to hold.
    """
    # The id of a model is only what it is called.
    content = json.dumps([made_by.weights, made_by.recipe, *names])
    return f"records-{hashlib.sha256(content.encode()).hexdigest()[:24]}.arrow"


def write_shard(
    path: Path, model: Any, records: Sequence[Protein], residues_per_batch: int
) -> None:
    """Embed records and write those that can be; the others are noted with the reason."""
    good: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    vectors = embed_proteins(model, records, residues_per_batch)
    for record, vector in zip(records, vectors, strict=True):
        if isinstance(vector, Tensor):
            good.append(_row(record, vector))
        else:
            bad.append((record.id, f"it cannot be embedded: {vector}"))
    width = len(good[0]["vector"]) if good else 0
    write_rows(path, good, width, bad)


def write_rows(
    path: Path,
    rows: Sequence[dict[str, Any]],
    width: int,
    bad: Sequence[tuple[str, str]] = (),
) -> None:
    """Write rows as a file that `datasets.Dataset.from_file` reads."""
    import pyarrow as pa
    from datasets import Dataset

    features = record_features(width)
    columns = {name: [row[name] for row in rows] for name in features}
    table = Dataset.from_dict(columns, features=features).data.table
    about = (table.schema.metadata or {}) | {BAD: json.dumps(list(bad)).encode()}
    table = table.replace_schema_metadata(about)

    def write(temporary: Path) -> None:
        with pa.ipc.new_stream(str(temporary), table.schema) as stream:
            stream.write_table(table)

    write_atomically(path, write)


def inspect_shard(path: Path) -> tuple[dict[str, int], int, list[BadRecord]]:
    """Give the number of records by kind, the width, and what could not be embedded."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
        kinds = table.column("kind").to_pylist()
        bad = json.loads(table.schema.metadata[BAD])
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return counts, table.schema.field("vector").type.list_size, [BadRecord(*one) for one in bad]


def _row(record: Protein, vector: Tensor) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "source": record.source,
        "residues": record.sequence,
        "sha": record.sha,
        "vector": vector.numpy(),
    }


# --- Records for an index, from the files and folders a user names.


DATASET = "dataset_info.json"


def read_records(
    inputs: str | Path | Iterable[str | Path], bad: list[BadRecord], kind: str | None = None
) -> Iterator[Protein]:
    r"""Read records one after the other, leaving out and reporting what is wrong.

    Args:
        inputs: One or several places: structure files, folders with structure files, and whatever
            `read_sequences` reads: FASTA, CSV, TSV, Parquet and JSON Lines files, saved data sets.
        bad: List to which what is left out is added.
        kind: "sequence" to take the sequences of structures, "structure" to refuse whatever has no
            atoms; by default each as it comes.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> import pathlib, tempfile
        >>> fasta = pathlib.Path(tempfile.mkdtemp(), "two.fasta")
        >>> _ = fasta.write_text(">P1 first\nMKVLA\n>P2\nMK7\n")
        >>> bad = []
        >>> [(record.id, record.sequence) for record in read_records([fasta], bad)]
        [('P1', 'MKVLA')]
        >>> bad[0].id
        'P2'
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"there is no kind {kind!r}; give {' or '.join(map(repr, KINDS))}")
    for place in [inputs] if isinstance(inputs, str | Path) else inputs:
        try:
            yield from _read_place(Path(place), bad, kind)
        except (ValueError, OSError, ImportError) as error:
            bad.append(BadRecord(str(place), str(error)))


def as_records(values: Iterable[Any], bad: list[BadRecord]) -> Iterator[Protein]:
    """Take records as they are, and `(id, content)` or `(id, content, source)` as records.

    Args:
        values: Content is a sequence or a `Structure`; or whatever `read_protein` reads.
        bad: List to which what is wrong is added.

    Raises:
        TypeError: If a path is given in the place of records.
    """
    if isinstance(values, str | Path):
        raise TypeError(
            f"records is the path {str(values)!r}; give what is in it: read_records(path, bad)."
        )
    for number, value in enumerate(values, start=1):
        name = f"record {number}"
        try:
            if isinstance(value, tuple | list) and len(value) in (2, 3):
                name = str(value[0])
                record = read_protein(Protein.of(name, *value[1:]), "record")
            else:
                record = read_protein(value, name, BACKBONE_ATOMS)
            yield record
        except (ValueError, TypeError, OSError) as error:
            bad.append(BadRecord(name, str(error)))


def _read_place(place: Path, bad: list[BadRecord], kind: str | None) -> Iterator[Protein]:
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}; check the path.")
    whole = Path(os.path.abspath(place))  # found again from any folder
    is_file = suffix_of(place) in STRUCTURE_SUFFIXES
    structures = is_file or (place.is_dir() and not (place / DATASET).exists())
    if not structures:
        if kind == "structure":
            raise ValueError(f"{place} holds sequences; structures come from structure files.")
        for protein in read_sequences(place, on_invalid=bad.append):
            yield Protein(protein.id, protein.sequence, source=f"{whole}:{protein.id}")
        return
    folder = whole if place.is_dir() else whole.parent
    for structure in read_structure_folder(place, bad.append):
        content = structure.sequence if kind == "sequence" else structure
        record = Protein.of(structure.id, content, str(folder / structure.id))
        yield from as_records([record], bad)


# --- Build an index, add to it and take from it, so that a kill at any time does no harm.


RECORDS_PER_SHARD = 512


@dataclass
class IndexReport:
    """Say what was done to an index.

    Attributes:
        embedded: Number of records embedded now.
        already_there: Number of records that were there before, from this job or another.
        replaced: Number of records that took the place of one of the same id.
        bad: What was left out, each with the reason.
    """

    embedded: int = 0
    already_there: int = 0
    replaced: int = 0
    bad: list[BadRecord] = field(default_factory=list)


def build_index(
    model: Any,
    records: Iterable[Any],
    folder: str | PathLike[str],
    *,
    bad: list[BadRecord] | None = None,
    factory: str | None = None,
    overwrite: bool = False,
    records_per_shard: int = RECORDS_PER_SHARD,
    residues_per_batch: int = RESIDUES_PER_BATCH,
    progress: bool = False,
) -> IndexReport:
    """Build an index of exactly these records; a build that was stopped goes on.

    Records are read as they are embedded, some hundreds at a time, and written as one file. A build
    that was killed is resumed by calling this again with the same input: what is on disk is not
    embedded again, and the index ends the same, byte for byte, as one built in one go.

    Args:
        model: With `embed_sequences` and `embed_structures`, such as `ProtAlignModel`.
        records: `(id, content)` or `(id, content, source)`, content a sequence or a `Structure`;
            or `Protein`s, as `read_records` gives them.
        folder: Folder of the index, made if need be.
        bad: List to which what is left out is added, for example the one `read_records` fills.
        factory: faiss index factory string for approximate search, such as "IVF256,Flat"; by
            default search is exact. Scores are exact either way.
        overwrite: Take the place of a finished index of other records or of another model.
        records_per_shard: How many records are read ahead and written together.
        residues_per_batch: Most residues embedded at once, padding included.
        progress: Show it on standard error.

    Returns:
        What was done; a record that is left out does not stop the others.

    Raises:
        ImportError: If `datasets` or faiss is not installed.
        ValueError: If the folder holds a finished index of other records or of another model, or
            somebody else is writing it.
    """
    import_datasets()
    model.eval()
    made_by = ModelIdentity.of(model)
    report = IndexReport(bad=[] if bad is None else bad)
    with _locked(folder) as path:
        finished = None
        if (path / HEADER).exists() and not overwrite:
            finished = IndexHeader.read(path)
            finished.made_by.check(model, path)
        shards = _Shards(path, model, made_by, report, residues_per_batch)
        read = _each_once(as_records(records, report.bad), report.bad)
        for chunk in _chunks(_counted(read, progress), records_per_shard):
            name = shards.name_of(chunk)
            if finished is not None and name not in finished.shards:
                raise _is_there(path, finished)
            shards.take(name, chunk)
        if finished is not None and list(finished.shards) != list(shards.counts):
            raise _is_there(path, finished)
        _finish(path, IndexHeader(made_by, 0, factory=factory), shards.counts)
    return report


def add_records(
    folder: str | PathLike[str],
    model: Any,
    records: Iterable[Any],
    *,
    bad: list[BadRecord] | None = None,
    replace_changed: bool = False,
    records_per_shard: int = RECORDS_PER_SHARD,
    residues_per_batch: int = RESIDUES_PER_BATCH,
    progress: bool = False,
) -> IndexReport:
    """Add records to an index; whoever opens it meanwhile finds it as it was before.

    A record that is there with the same content is passed over. One with the id of another content
    is reported, or takes its place if `replace_changed` says so.

    Args:
        folder: Folder of the index.
        model: Model that made it.
        records: See `build_index`.
        bad: List to which what is left out is added.
        replace_changed: Let new content take the place of old content of the same id.
        records_per_shard: See `build_index`.
        residues_per_batch: See `build_index`.
        progress: Show it on standard error.

    Raises:
        FileNotFoundError: If there is no finished index.
        ValueError: If another model made it, naming both, or somebody else is writing it.
    """
    model.eval()
    report = IndexReport(bad=[] if bad is None else bad)
    IndexHeader.read(folder)  # before a folder is made for the lock
    with _locked(folder) as path:
        index = Index.open(path, model)
        known = dict(zip(index.records["id"], index.records["sha"], strict=True))
        shards = _Shards(path, model, index.header.made_by, report, residues_per_batch)
        changed: set[str] = set()

        def is_new(record: Protein) -> bool:
            sha = known.get(record.id)
            if sha == record.sha:
                report.already_there += 1
            elif sha is not None and not replace_changed:
                report.bad.append(_conflict(record, path))
            elif sha is not None:
                changed.add(record.id)
            return sha is None or record.id in changed

        read = _each_once(as_records(records, report.bad), report.bad)
        for chunk in _chunks(filter(is_new, _counted(read, progress)), records_per_shard):
            shards.take(shards.name_of(chunk), chunk)
        changed -= shards.failed  # the old content is better than none
        report.replaced = len(changed)
        kept = _without(path, index.header, changed)
        _finish(path, index.header, kept | shards.counts)
    return report


def remove_records(folder: str | PathLike[str], ids: Iterable[str]) -> list[str]:
    """Take records out of an index.

    Args:
        folder: Folder of the index.
        ids: Records to take out.

    Returns:
        Those of the ids that it does not hold.

    Raises:
        FileNotFoundError: If there is no finished index.
        ValueError: If somebody else is writing it.
    """
    IndexHeader.read(folder)  # before a folder is made for the lock
    with _locked(folder) as path:
        header = IndexHeader.read(path)
        wanted = list(dict.fromkeys(ids))
        there = set(read_shards(path, header)["id"])
        _finish(path, header, _without(path, header, there.intersection(wanted)))
    return [name for name in wanted if name not in there]


class _Shards:
    """Make shards, or take those that are there; count what is in them."""

    def __init__(
        self, folder: Path, model: Any, made_by: ModelIdentity, report: IndexReport, residues: int
    ) -> None:
        self.folder, self.model, self.made_by = folder, model, made_by
        self.report, self.residues = report, residues
        self.counts: dict[str, int] = {}
        self.failed: set[str] = set()

    def name_of(self, records: Sequence[Protein]) -> str:
        return shard_name(self.made_by, ((record.id, record.sha) for record in records))

    def take(self, name: str, records: Sequence[Protein]) -> None:
        path = self.folder / name
        there = path.exists()
        if not there:
            write_shard(path, self.model, records, self.residues)
        kinds, _, bad = inspect_shard(path)
        self.counts[name] = count = sum(kinds.values())
        self.report.bad += bad
        self.failed |= {record.id for record in bad}
        if there:
            self.report.already_there += count
        else:
            self.report.embedded += count


def _finish(folder: Path, header: IndexHeader, shards: dict[str, int]) -> None:
    """Put the vectors into faiss, and then let the header name what the index is made of."""
    kinds: dict[str, int] = {}
    width = header.width
    for name, count in shards.items():
        counts, found, _ = inspect_shard(folder / name)
        width = found if count else width
        for kind, number in counts.items():
            kinds[kind] = kinds.get(kind, 0) + number
    header = replace(header, width=width, shards=shards, kinds=kinds, vectors=None)
    if header.count:
        header = replace(header, vectors=_write_faiss(folder, header))
    from .. import __version__

    write_json(folder / HEADER, replace(header, written_by=__version__).to_dict())
    _sweep(folder, {*shards, header.vectors})


def _write_faiss(folder: Path, header: IndexHeader) -> str:
    """Write the faiss index of all shards, unless it is there; give its name."""
    made_of = [
        ("faiss", str(header.factory)),
        *((name, str(n)) for name, n in header.shards.items()),
    ]
    name = shard_name(header.made_by, made_of).replace("records-", "vectors-")
    name = Path(name).with_suffix(".faiss").name
    if (folder / name).exists():
        return name
    import faiss

    records = read_shards(folder, header).with_format("numpy")
    with _quiet_progress_bars():
        records.add_faiss_index(
            VECTOR,
            string_factory=header.factory,
            metric_type=faiss.METRIC_INNER_PRODUCT,
            train_size=len(records) if header.factory else None,
        )
    write_atomically(folder / name, lambda file: records.save_faiss_index(VECTOR, str(file)))
    return name


def _without(folder: Path, header: IndexHeader, ids: set[str]) -> dict[str, int]:
    """Give the shards of an index without some records, written anew where need be."""
    shards: dict[str, int] = {}
    for name, count in header.shards.items():
        rows = read_shards(folder, replace(header, shards={name: count}))
        kept = [row for row in rows.with_format("numpy") if row["id"] not in ids] if ids else []
        if not ids or len(kept) == count:
            shards[name] = count
        elif kept:
            left = shard_name(header.made_by, ((row["id"], row["sha"]) for row in kept))
            if not (folder / left).exists():
                write_rows(folder / left, kept, header.width)
            shards[left] = len(kept)
    return shards


def _sweep(folder: Path, kept: set[str | None]) -> None:
    """Remove what the header does not name: what stopped or overtaken jobs have left."""
    for pattern in ("records-*", "vectors-*"):
        for file in folder.glob(pattern):
            if file.name not in kept:
                with suppress(OSError):  # a reader may hold it open where that matters
                    file.unlink()


@contextmanager
def _locked(folder: str | PathLike[str]) -> Iterator[Path]:
    """Keep other writers away from a folder; readers need no lock."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / "index.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is writing the index {folder}; wait for it.") from error
    try:
        yield path
    finally:
        lock.release()


@contextmanager
def _quiet_progress_bars() -> Iterator[None]:
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


def _each_once(records: Iterable[Protein], bad: list[BadRecord]) -> Iterator[Protein]:
    """Pass over and report records of an id that came before."""
    first: dict[str, str] = {}
    for record in records:
        if record.id not in first:
            first[record.id] = record.sha
            yield record
            continue
        content = "the same" if first[record.id] == record.sha else "other"
        reason = f"this id comes again, with {content} content; the first is kept"
        bad.append(BadRecord(record.id, reason))


def _chunks(records: Iterable[Protein], size: int) -> Iterator[list[Protein]]:
    records = iter(records)
    while chunk := list(islice(records, size)):
        yield chunk


def _counted(records: Iterable[Protein], progress: bool) -> Iterable[Protein]:
    return tqdm(records, unit="protein", disable=not progress)


def _conflict(record: Protein, folder: Path) -> BadRecord:
    return BadRecord(
        record.id,
        f"{folder} holds this id with other content, which stays; rename one of the two, or let "
        "the new one take its place with --replace (replace_changed=True).",
    )


def _is_there(folder: Path, header: IndexHeader) -> ValueError:
    return ValueError(
        f"{folder} holds an index of {header.count} records already, and these are others; add "
        f"them with: plasma-hf index add INPUT --index {folder}; or build in another folder, or "
        "take its place with --overwrite."
    )
