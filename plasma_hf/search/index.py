"""An index of proteins: a store of one vector each, built, changed and searched."""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.shards import (
    Header,
    Shard,
    ShardedStore,
    checksum,
    describe,
    is_of,
    parse_json,
    read_again,
    write_atomically,
    write_shard,
    writer_lock,
)
from ..data.store import EmbeddingReport
from ..io.sequences import read_sequences
from ..io.structures import (
    CHAIN_LIST_SUFFIX,
    begins_as_structure,
    lists_chains,
    read_listed_chain,
    read_structure_folder,
)
from ..models.modeling_backbone import weights_digest
from ..models.pipeline_protein_retrieval import (
    ABOUT,
    RESIDUES_PER_BATCH,
    embed_proteins,
    hits_of,
    unit_rows,
)
from ..models.protein import (
    ACCEPTED,
    BACKBONE_ATOMS,
    KINDS,
    STRUCTURE_SUFFIXES,
    InvalidRecord,
    Protein,
    Structure,
    is_fasta,
    is_structure,
    read_protein,
    split_record,
    suffix_of,
)

RECORDS_PER_SHARD = 128
"""A killed build loses the work on so many at most."""
SCORES_AT_ONCE = 2**24
MARGIN = 1e-5
"""More than a cosine in single precision is off by."""
DATASET = "dataset_info.json"

COLUMNS = {*ABOUT, "residues", "sha"}
FILE_NAME = re.compile(r"records-[0-9a-f]{24}\.safetensors|vectors-[0-9a-f]{24}-[0-9a-f]{8}\.faiss")

# --- What an index says of itself, and one shard of it.


@dataclass(frozen=True)
class ModelFingerprint:
    """Which model made vectors: two are the same where weights and input format are."""

    model: str  # Hub id, or name of the folder
    weights: str  # `weights_digest` of the model
    recipe: str  # input format of its sequence encoder

    @classmethod
    def of(cls, model: Any) -> ModelFingerprint:
        """Read it off a model."""
        config = model.config
        name = getattr(config, "name_or_path", "") or type(model).__name__
        # A folder may move; the digest of the weights stays.
        name = Path(name).resolve().name if Path(name).is_dir() else name
        return cls(name, weights_digest(model), getattr(config, "plm_recipe", None) or "own")

    def check(self, model: Any, folder: str | PathLike[str]) -> None:
        """Refuse a model other than the one that made an index, naming both."""
        other = ModelFingerprint.of(model)
        if (self.weights, self.recipe) != (other.weights, other.recipe):
            raise ValueError(
                f"the index {folder} was made by {describe(asdict(self))}, and this model is "
                f"{describe(asdict(other))}: their vectors cannot be compared. Give the model that "
                "made it, or build another index: plasma-hf index build INPUT --output FOLDER "
                "--model MODEL"
            )


@dataclass(frozen=True)
class IndexHeader(Header):
    """What `index.json` says: which model made the index, and which files it is made of.

    What it does not name is no part of the index. It is replaced in one step, so whoever opens the
    folder finds all of a change or nothing of it.
    """

    FILE = "index.json"
    FORMAT = 3
    NOUN = "index"
    BUILD = "plasma-hf index build INPUT --output {folder}"
    REMEDY = "build the index again with: plasma-hf index build INPUT --output {folder} --overwrite"
    RENEW = REMEDY

    made_by: ModelFingerprint
    width: int  # numbers in a vector
    shards: dict[str, int] = field(default_factory=dict)  # records by name of file, in order
    kinds: dict[str, int] = field(default_factory=dict)  # records by kind
    vectors: str | None = None  # file of the faiss index, where search is approximate
    factory: str | None = None  # faiss index factory string; None for exact search
    written_by: str = ""  # plasma_hf version

    def __post_init__(self) -> None:
        if isinstance(self.made_by, dict):
            object.__setattr__(self, "made_by", ModelFingerprint(**self.made_by))
        super().__post_init__()
        files = [*self.shards, *([self.vectors] if self.vectors else [])]
        if not all(map(FILE_NAME.fullmatch, files)):
            raise ValueError(f"its files are {', '.join(files)}")
        if min(self.width, *self.shards.values(), 0) < 0:
            raise ValueError("it counts below 0")
        if not is_of(asdict(self.made_by), dict[str, str]):
            raise ValueError("its 'made_by' names no model")

    @property
    def count(self) -> int:
        """Number of records."""
        return sum(self.shards.values())


class _Shard(Shard):
    """Some hundred records: vectors `(records, width)`, mapped, and a line of JSON about each.

    What could not be embedded is written into the shard as well: who resumes a build knows it.
    """

    def __init__(self, path: Path, header: IndexHeader | None = None) -> None:
        super().__init__(path, IndexHeader.REMEDY.format(folder=path.parent))
        try:
            about = parse_json(self.about, dict[str, Any])
            self.kinds: dict[str, int] = about["kinds"]
            self.bad = [InvalidRecord(*one) for one in about["bad"]]
            self.count, self.width = self.shapes["vectors"]
            if not is_of(self.kinds, dict[str, int]) or not is_of(about["bad"], list[list[str]]):
                raise ValueError("it tells of no records")
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is not a shard of an index ({error}); {self.remedy}."
            ) from error
        wanted = header.shards[path.name] if header else self.count
        if wanted != self.count:
            raise ValueError(f"{path} holds {self.count} records, not {wanted}; {self.remedy}.")
        if header and self.count and self.width != header.width:
            raise self.damaged(f"its vectors are of width {self.width}, not {header.width}")

    def __len__(self) -> int:
        return self.count

    @cached_property
    def vectors(self) -> np.ndarray:
        """The vectors, of a shard that is whole and unchanged."""
        _ = self._lines
        tensor = self.read("vectors")
        if tensor.dtype != torch.float32:
            raise self.damaged(f"its vectors are of {tensor.dtype}")
        vectors: np.ndarray = tensor.numpy()
        return vectors

    @cached_property
    def _lines(self) -> np.ndarray:
        lines: np.ndarray = self.read("about").numpy()
        return lines

    def rows(self, numbers: slice = slice(None)) -> list[dict[str, str]]:
        """Return `ABOUT`, residues and sha of each record."""
        lines = self._lines.tobytes().splitlines()
        try:
            rows = [parse_json(line, dict[str, str]) for line in lines[numbers]]
        except ValueError as error:
            raise self.damaged(error) from error
        if len(lines) != len(self) or not all(row.keys() >= COLUMNS for row in rows):
            raise self.damaged("it does not tell of all records")
        return rows


def _shard_name(made_by: ModelFingerprint, records: Iterable[tuple[str, str]]) -> str:
    """Name a shard after id and sha of what it was to hold: it need not be made again."""
    # The id of a model is only what it is called.
    content = json.dumps([made_by.weights, made_by.recipe, *records])
    return f"records-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"


def _write_rows(
    path: Path, rows: Sequence[dict[str, str]], vectors: Tensor, bad: Sequence[tuple[str, str]] = ()
) -> None:
    text = "\n".join(json.dumps(row) for row in rows).encode()
    about = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())
    kinds = dict(sorted(Counter(row["kind"] for row in rows).items()))
    header = json.dumps({"kinds": kinds, "bad": list(bad)})
    write_shard(path, {"vectors": vectors, "about": about}, header)


# --- Searching.


class Index(ShardedStore):
    """The nearest of many proteins, kept in a folder.

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

    HEADER = IndexHeader
    header: IndexHeader

    def __init__(self, folder: str | PathLike[str], header: IndexHeader) -> None:
        super().__init__(folder, header)
        self._shards = [_Shard(self.folder / name, header) for name in header.shards]
        self._starts = list(accumulate(map(len, self._shards), initial=0))
        self._faiss = None
        if header.vectors:
            self._faiss = _read_faiss(self.folder / header.vectors, header)

    @classmethod
    def open(cls, folder: str | PathLike[str], model: Any = None) -> Index:
        """Open an index, for a model to search it; refuse another model than the one that made it.

        Records stay on disk until they are found.
        """
        index = read_again(lambda: cls(folder, IndexHeader.read(folder)), Path(folder))
        if model is not None:
            index.check(model)
        return index

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def ids(self) -> list[str]:
        """What the records are called, in the order of the index."""
        return [row["id"] for shard in self._shards for row in shard.rows()]

    def check(self, model: Any) -> None:
        """Refuse a model other than the one that made the index, naming both."""
        self.header.made_by.check(model, self.folder)

    def search(self, vectors: Tensor | np.ndarray, k: int = 5) -> list[list[dict[str, Any]]]:
        """Find the `k` nearest records of each query vector, `(queries, width)`.

        Returns:
            Hits of each query, best first, `{"id", "score", "rank", "row", "kind", "source"}`. The
            score is the cosine, to six decimals; records of equal score keep the order of the
            index, where `row` counts from 0.
        """
        queries = unit_rows(vectors, self.header.width, k)
        return [
            hits_of(query, self._vectors(rows), rows, k, self._about)
            for query, rows in zip(queries, self._near(queries, k), strict=True)
        ]

    def read(self, row: int) -> Protein:
        """Read a record again: a sequence from the index, a structure from its file, unchanged."""
        about = self._row(row)
        if about["kind"] == "sequence":
            return Protein(about["id"], about["residues"], source=about["source"])
        if not about["source"]:
            raise ValueError(f"{about['id']} was read from no file, and an index keeps no atoms")
        file, name = split_record(about["source"])
        listed = suffix_of(file) == CHAIN_LIST_SUFFIX
        place = read_listed_chain(file, name or "") if listed else Path(about["source"])
        record = read_protein(place, about["id"], BACKBONE_ATOMS)
        if record.sha != about["sha"]:
            raise ValueError(f"{about['source']} has changed since it was indexed")
        return replace(record, id=about["id"])

    def _near(self, queries: np.ndarray, k: int) -> Iterator[np.ndarray]:
        """Yield the rows that may be the best of each query, in order."""
        if self._faiss is not None:
            _, found = self._faiss.search(queries, min(len(self), 2 * k + 16))
            yield from (np.unique(rows[rows >= 0]) for rows in found)
            return
        size = max(1, SCORES_AT_ONCE // max(1, len(self)))
        for start in range(0, len(queries), size):
            part = queries[start : start + size]
            columns = [part @ shard.vectors.T for shard in self._shards if len(shard)]
            scores = np.concatenate(columns, axis=1) if columns else np.zeros((len(part), 0))
            for row in scores:
                least = np.partition(row, -k)[-k] - MARGIN if k < len(row) else -np.inf
                yield np.flatnonzero(row >= least)

    def _at(self, row: int) -> tuple[_Shard, int]:
        number = bisect_right(self._starts, row) - 1
        return self._shards[number], row - self._starts[number]

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        found = [shard.vectors[place] for shard, place in map(self._at, rows.tolist())]
        return np.stack(found) if found else np.zeros((0, self.header.width))

    def _row(self, row: int) -> dict[str, str]:
        shard, place = self._at(row)
        return shard.rows(slice(place, place + 1))[0]

    def _about(self, row: int) -> dict[str, str]:
        about = self._row(row)
        return {name: about[name] for name in ABOUT}


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "approximate search needs faiss; install it with: pip install 'plasma-hf[search]'; or "
            "build the index without a factory, for exact search."
        ) from error
    return faiss


# --- Records for an index, from the files and folders a user names.


def read_records(
    inputs: str | Path | Iterable[str | Path],
    bad: list[InvalidRecord],
    kind: str | None = None,
    atoms: Sequence[str] = BACKBONE_ATOMS,
) -> Iterator[Protein]:
    r"""Read records one after the other, leaving out and reporting what is wrong.

    Args:
        inputs: One or several places: structure files, folders with structure files, and whatever
            `read_sequences` reads: FASTA, CSV, TSV, Parquet and JSON Lines files, saved data sets.
        bad: List to which skipped records are added.
        kind: "sequence" to take the sequences of structures, "structure" to refuse whatever has no
            atoms; by default each as it comes.
        atoms: What a residue of a structure must have to count as observed.

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
            yield from _read_place(Path(place), bad, kind, atoms)
        except (ValueError, OSError, ImportError) as error:
            bad.append(InvalidRecord(str(place), str(error)))


def _read_place(
    place: Path, bad: list[InvalidRecord], kind: str | None, atoms: Sequence[str]
) -> Iterator[Protein]:
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {str(place)!r}; check the path.")
    whole = Path(os.path.abspath(place))  # found again from any folder
    if place.is_dir():
        structures = not (place / DATASET).exists()
    else:
        named = suffix_of(place) in STRUCTURE_SUFFIXES and not is_fasta(place)
        structures = named or begins_as_structure(place) or lists_chains(place)
    if not structures:
        if kind == "structure":
            raise ValueError(f"{place} holds sequences; structures come from structure files.")
        for protein in read_sequences(place, on_invalid=bad.append):
            yield replace(protein, source=f"{whole}:{protein.id}")
        return
    folder = whole if place.is_dir() else whole.parent
    found = read_structure_folder(place, bad.append, atoms=atoms)
    as_sequence = kind == "sequence"
    rows = ((s.id, s.sequence if as_sequence else s, str(folder / s.id)) for s in found)
    yield from _valid(rows, bad)


def _valid(values: Iterable[Any], bad: list[InvalidRecord]) -> Iterator[Protein]:
    """Take records, and tuples as `build_index` says; skip and report what cannot be indexed."""
    if isinstance(values, str | Path):
        raise TypeError(
            f"records is the path {str(values)!r}; give what is in it: read_records(path, bad)."
        )
    first: dict[str, str] = {}
    for number, value in enumerate(values, start=1):
        name = f"record {number}"
        try:
            if isinstance(value, tuple | list) and len(value) in (2, 3):
                name = str(value[0])
                record = read_protein(_protein_of(name, *value[1:]), "record")
            else:
                record = read_protein(value, name, BACKBONE_ATOMS)
            name = record.id
            if name in first:
                content = "the same" if first[name] == record.sha else "other"
                raise ValueError(f"this id comes again, with {content} content; the first is kept")
        except (ValueError, TypeError, OSError) as error:
            bad.append(InvalidRecord(name, str(error)))
            continue
        first[name] = record.sha
        yield record


def _protein_of(name: str, content: str | Structure, source: str = "") -> Protein:
    if isinstance(content, str):
        return Protein(name, content, source=source)
    if is_structure(content):
        return Protein(name, structure=content, source=source)
    raise TypeError(f"{name!r} is a {type(content).__name__}; give {ACCEPTED}.")


# --- Building and changing, so that a kill at any time does no harm.


@dataclass
class IndexReport(EmbeddingReport):
    """What was done to an index."""

    replaced: int = 0  # records that took the place of one of the same id


def build_index(
    model: Any,
    records: Iterable[Any],
    folder: str | PathLike[str],
    *,
    bad: Sequence[InvalidRecord] = (),
    factory: str | None = None,
    overwrite: bool = False,
    records_per_shard: int = RECORDS_PER_SHARD,
    residues_per_batch: int = RESIDUES_PER_BATCH,
    progress: bool = False,
) -> IndexReport:
    """Build an index of exactly these records; a build that was stopped goes on.

    Records are read as they are embedded, a hundred or so at a time; one that is skipped does not
    stop the others. A build that was killed is resumed by calling this again with the same input:
    what is on disk is not embedded again, and the index ends the same, byte for byte, as one built
    in one go.

    Args:
        model: With `embed_sequences` and `embed_structures`, such as `ProtAlignModel`.
        records: `(id, content)` or `(id, content, source)`, content a sequence or a `Structure`;
            or `Protein`s, as `read_records` gives them.
        folder: Folder of the index, made if need be.
        bad: Invalid records to report with the others: the list that `read_records` fills.
        factory: faiss index factory string for approximate search, such as "IVF256,Flat"; by
            default search is exact. Scores are exact either way.
        overwrite: Take the place of a finished index of other records or of another model, which
            is refused otherwise.
        records_per_shard: How many records are read ahead and written together.
        residues_per_batch: Most residues embedded at once, padding included.
        progress: Show it on standard error.
    """
    if factory:
        _import_faiss()
    model.eval()
    made_by = ModelFingerprint.of(model)
    report, path = IndexReport(), Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        finished = None
        if (path / IndexHeader.FILE).exists() and not overwrite:
            finished = IndexHeader.read(path)
            finished.made_by.check(model, path)
        valid = tqdm(_valid(records, report.bad), unit="protein", disable=not progress)
        sizes = (records_per_shard, residues_per_batch)
        shards = _embed(path, model, made_by, valid, sizes, report, finished)
        if finished is not None and list(finished.shards) != list(shards):
            raise _is_there(path, finished)
        _finish(path, IndexHeader(made_by, 0, factory=factory), shards)
    report.bad[:0] = bad
    return report


def add_records(
    folder: str | PathLike[str],
    model: Any,
    records: Iterable[Any],
    *,
    bad: Sequence[InvalidRecord] = (),
    replace_changed: bool = False,
    residues_per_batch: int = RESIDUES_PER_BATCH,
    progress: bool = False,
) -> IndexReport:
    """Add records to an index; whoever opens it meanwhile finds it as it was before.

    A record that is there with the same content is passed over. One with the id of another content
    is reported, or takes its place if `replace_changed` says so. For the rest see `build_index`.
    """
    model.eval()
    report, path = IndexReport(), Path(folder)
    IndexHeader.read(path)  # before there is a lock where no index is
    with _lock(path):
        index = Index.open(path, model)
        known = {row["id"]: row["sha"] for shard in index._shards for row in shard.rows()}

        def is_new(record: Protein) -> bool:
            sha = known.get(record.id)
            if sha == record.sha:
                report.already_there += 1
            elif sha is not None and not replace_changed:
                reason = (
                    f"{path} holds this id with other content, which stays; rename one of the two, "
                    "or let the new one take its place with --replace (replace_changed=True)."
                )
                report.bad.append(InvalidRecord(record.id, reason))
            return sha is None or (sha != record.sha and replace_changed)

        valid = tqdm(_valid(records, report.bad), unit="protein", disable=not progress)
        sizes = (RECORDS_PER_SHARD, residues_per_batch)
        made_by = index.header.made_by
        shards = _embed(path, model, made_by, filter(is_new, valid), sizes, report)
        # Of a record that could not be embedded, the old content is better than none.
        changed = {row["id"] for name in shards for row in _Shard(path / name).rows()} & set(known)
        report.replaced = len(changed)
        _finish(path, index.header, _without(index, changed) | shards)
    report.bad[:0] = bad
    return report


def remove_records(folder: str | PathLike[str], ids: Iterable[str]) -> list[str]:
    """Take records out of an index; return those of the ids that it does not hold."""
    path = Path(folder)
    IndexHeader.read(path)  # before there is a lock where no index is
    with _lock(path):
        index = Index.open(path)
        wanted, there = dict.fromkeys(ids), set(index.ids)
        _finish(path, index.header, _without(index, there & wanted.keys()))
    return [name for name in wanted if name not in there]


def _lock(folder: Path) -> AbstractContextManager[None]:
    busy = f"another process is writing the index {folder}; wait for it."
    return writer_lock(folder / "index.lock", busy)


def _embed(
    folder: Path,
    model: Any,
    made_by: ModelFingerprint,
    records: Iterable[Protein],
    sizes: tuple[int, int],
    report: IndexReport,
    finished: IndexHeader | None = None,
) -> dict[str, int]:
    """Write the shards of records that are not there yet; return the size of each, by its name.

    Where an index is `finished`, other records than those in it are refused.
    """
    shards: dict[str, int] = {}
    records_per_shard, residues_per_batch = sizes
    records = iter(records)
    while part := list(islice(records, records_per_shard)):
        name = _shard_name(made_by, ((record.id, record.sha) for record in part))
        if finished is not None and name not in finished.shards:
            raise _is_there(folder, finished)
        shard = _intact(folder / name)
        if shard is None:
            shard = _make_shard(folder / name, model, part, residues_per_batch)
            report.embedded += len(shard)
        else:
            report.already_there += len(shard)
        shards[name] = len(shard)
        report.bad += shard.bad
    return shards


def _intact(path: Path) -> _Shard | None:
    """Open a shard if it is there and reads as it was written."""
    with suppress(ValueError):
        shard = _Shard(path)
        _ = shard.vectors
        return shard
    return None


def _make_shard(path: Path, model: Any, part: list[Protein], residues_per_batch: int) -> _Shard:
    """Embed records and write their shard."""
    made = list(zip(part, embed_proteins(model, part, residues_per_batch), strict=True))
    vectors = {record: vector for record, vector in made if isinstance(vector, Tensor)}
    rows = [
        {key: getattr(record, key) for key in ABOUT}
        | {"residues": record.sequence or "", "sha": record.sha}
        for record in vectors
    ]
    stacked = torch.stack(list(vectors.values())) if vectors else torch.zeros(0, 0)
    bad = [(one.id, f"it cannot be embedded: {error}") for one, error in made if one not in vectors]
    _write_rows(path, rows, stacked, bad)
    return _Shard(path)


def _without(index: Index, ids: set[str]) -> dict[str, int]:
    """Give the shards of an index without some records, written anew where need be."""
    shards: dict[str, int] = {}
    for (name, count), shard in zip(index.header.shards.items(), index._shards, strict=True):
        rows = shard.rows() if ids else []
        kept = [i for i, row in enumerate(rows) if row["id"] not in ids]
        if len(kept) == len(rows):
            shards[name] = count
        elif kept:
            rows = [rows[i] for i in kept]
            left = _shard_name(index.header.made_by, ((row["id"], row["sha"]) for row in rows))
            if _intact(index.folder / left) is None:
                _write_rows(index.folder / left, rows, torch.from_numpy(shard.vectors[kept]))
            shards[left] = len(kept)
    return shards


def _finish(folder: Path, header: IndexHeader, shards: dict[str, int]) -> None:
    """Let the header name what the index is made of, and remove what it does not name."""
    kinds: Counter[str] = Counter()
    width = header.width
    for name, count in shards.items():
        shard = _Shard(folder / name)
        kinds.update(shard.kinds)
        width = shard.width if count else width
    header = replace(header, width=width, shards=shards, kinds=dict(sorted(kinds.items())))
    header = replace(header, vectors=_write_faiss(folder, header))
    from .. import __version__

    replace(header, written_by=__version__).write(folder)
    _sweep(folder, {*shards, header.vectors})


def _write_faiss(folder: Path, header: IndexHeader) -> str | None:
    """Write a faiss index of all shards, if search is to be approximate; give its name."""
    if not header.factory or not header.count:
        return None
    shards = [(name, str(count)) for name, count in header.shards.items()]
    name = _shard_name(header.made_by, [("faiss", header.factory), *shards])
    name = name.replace("records-", "vectors-").removesuffix(".safetensors")
    for file in folder.glob(f"{name}-*.faiss"):
        if _checksum_told(file) == checksum(file.read_bytes()):
            return file.name
    faiss = _import_faiss()
    parts = [_Shard(folder / part).vectors for part, count in header.shards.items() if count]
    vectors = np.concatenate(parts)
    index = faiss.index_factory(header.width, header.factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    content = faiss.serialize_index(index).tobytes()
    name = f"{name}-{checksum(content)}.faiss"
    write_atomically(folder / name, lambda file: file.write_bytes(content))
    return name


def _read_faiss(path: Path, header: IndexHeader) -> Any:
    faiss = _import_faiss()
    try:
        content = path.read_bytes()
        if _checksum_told(path) != checksum(content):
            raise ValueError("it is not what was written, its checksum is another")
        index = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
        if (index.d, index.ntotal) != (header.width, header.count):
            raise ValueError(f"it holds {index.ntotal} vectors of width {index.d}")
    except (OSError, RuntimeError, ValueError) as error:
        remedy = IndexHeader.REMEDY.format(folder=path.parent)
        raise ValueError(f"{path} is missing or damaged ({error}); {remedy}.") from error
    return index


def _checksum_told(path: Path) -> str:
    """Return the checksum that the name of a faiss index ends in."""
    return path.stem.split("-")[-1]


def _sweep(folder: Path, kept: set[str | None]) -> None:
    """Remove what stopped or overtaken jobs have left."""
    for file in list(folder.iterdir()):
        if file.name.startswith(("records-", "partial-", "vectors-")) and file.name not in kept:
            with suppress(OSError):  # a reader may hold it open where that matters
                file.unlink()


def _is_there(folder: Path, header: IndexHeader) -> ValueError:
    return ValueError(
        f"{folder} holds an index of {header.count} records already, and these are others; add "
        f"them with: plasma-hf index add INPUT --index {folder}; or build in another folder, or "
        "take its place with --overwrite."
    )
