"""Batches of proteins that are the same whoever computes them, and whenever."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..io.sequences import BadRecord, Source, read_sequences
from ..models.protein import clean_sequence

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel


def sequence_hash(sequence: str) -> str:
    """Return the SHA-256 of a sequence in hexadecimal, which is its key in an embedding store.

    Example:
        >>> sequence_hash("MKVLA")[:12]
        '069d329ad0b9'
    """
    return hashlib.sha256(sequence.encode()).hexdigest()


def cut_batches(sequences: Iterable[str], residues_per_batch: int) -> list[list[str]]:
    """Cut sequences into batches of like length, the longest first.

    The last bits of an embedding depend on the batch it is computed in. These batches depend on
    the set of sequences alone, so a job that was stopped, or is shared among ranks, computes the
    same ones. Longest first: what does not fit into memory fails at once.

    Args:
        sequences: sequences in any order; a repeated one counts once.
        residues_per_batch: most residues of a batch, padding included; a longer sequence is
            alone.

    Returns:
        Batches that hold each sequence once.

    Raises:
        ValueError: if `residues_per_batch` is no positive number.

    Example:
        >>> cut_batches(["MKV", "MK", "MKVLA", "MK", "MKVLAG"], residues_per_batch=9)
        [['MKVLAG'], ['MKVLA'], ['MKV', 'MK']]
    """
    if residues_per_batch < 1:
        raise ValueError(f"residues_per_batch is {residues_per_batch}; give at least 1.")
    ordered = sorted(set(sequences), key=lambda sequence: (-len(sequence), sequence_hash(sequence)))
    return [ordered[part] for part in cut(list(map(len, ordered)), residues_per_batch)]


def cut(lengths: Sequence[int], residues_per_batch: int) -> Iterator[slice]:
    """Cut a row of lengths, sorted either way, where a padded batch would become too large."""
    start = 0
    for end in range(1, len(lengths) + 1):
        longest = max(lengths[start], lengths[end - 1])
        if end - start > 1 and longest * (end - start) > residues_per_batch:
            yield slice(start, end - 1)
            start = end - 1
    if start < len(lengths):
        yield slice(start, len(lengths))


def rank_and_world_size() -> tuple[int, int]:
    """Return which of how many processes this is, as torch.distributed or torchrun say.

    Example:
        >>> rank_and_world_size()
        (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# --- Files that are there whole or not at all, which an embedding store is made of.


CHUNK_NAME = re.compile(r"shard-\d{5}-\d{6}\.safetensors")
TEMPORARY = ".tmp"
RESUME = (
    "delete that file and run the same plasma-hf embed command again: it embeds what is missing"
)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, and give it its name once it is on the disk."""
    temporary = path.with_name(path.name + TEMPORARY)
    write(temporary)
    _sync(temporary)
    os.replace(temporary, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, one line a key."""
    text = json.dumps(value, indent=0, sort_keys=True)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read an object.

    Raises:
        ValueError: If the file holds none; `remedy` says what to do then.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}; {remedy}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; {remedy}.")
    return value


@contextmanager
def shard_lock(folder: Path, rank: int) -> Iterator[None]:
    """Keep every other writer away from the shard of a rank; readers need no lock.

    Raises:
        ValueError: If another writer is at work.
    """
    lock = FileLock(folder / f"shard-{rank:05d}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another process is writing shard {rank} of {folder}; wait until it is done, or stop "
            "it. Several processes share a job when torchrun starts them, one shard each."
        ) from error
    try:
        yield
    finally:
        lock.release()


def chunk_paths(folder: Path, rank: int | None = None) -> list[Path]:
    """List the chunks of a folder, or of one shard in it, in the order they were written."""
    paths = sorted(path for path in folder.iterdir() if CHUNK_NAME.fullmatch(path.name))
    return [path for path in paths if rank is None or rank_of(path) == rank]


def rank_of(path: Path) -> int:
    """Return the rank that wrote a chunk or a table of ids, by its name."""
    return int(path.stem.split("-")[1])


def remove_stale(folder: Path, rank: int) -> None:
    """Remove what a killed writer of a shard was in the middle of; hold its `shard_lock`."""
    for pattern in (f"shard-{rank:05d}-*{TEMPORARY}", f"ids-{rank:05d}.json{TEMPORARY}"):
        for path in folder.glob(pattern):
            path.unlink()


def write_chunk(path: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    """Write named tensors, and the header of the store they are of."""
    # Not by save_file, whose files no other user may read.
    content = save(dict(tensors), metadata={"store": header})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def open_chunk(path: Path) -> Any:
    """Map a chunk; nothing but its table of contents is read.

    Raises:
        ValueError: If it is damaged, or no safetensors file at all.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or no chunk of a store ({error}); {RESUME}."
        ) from error


class ChunkWriter:
    """Gather the records of whole batches and write them as chunks of a shard.

    A chunk is written when it is full, when the last one was written long enough ago, and at the
    end, also one that an error brings about. A killed job loses at most the chunk in the making.

    Args:
        folder: Folder of the store.
        rank: Whose shard it is; hold its `shard_lock`.
        header: Header of the store.
        max_bytes: Size of a chunk, unless one batch alone is larger.
        max_seconds: How long work may stay unwritten.
    """

    def __init__(
        self, folder: Path, rank: int, header: str, max_bytes: int, max_seconds: float
    ) -> None:
        """Go on counting behind the last chunk of the shard."""
        self.folder, self.rank, self.header = folder, rank, header
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        last = chunk_paths(folder, rank)[-1:]
        self.number = int(last[0].stem.split("-")[2]) + 1 if last else 0
        self._start()

    def _start(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.size, self.begun = 0, time.monotonic()

    def __enter__(self) -> ChunkWriter:
        """Start."""
        return self

    def __exit__(self, *error: object) -> None:
        """Write what is left."""
        self.flush()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the records of one batch."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.size + size > self.max_bytes:
            self.flush()
        self.tensors |= tensors
        self.size += size
        if time.monotonic() - self.begun > self.max_seconds:
            self.flush()

    def flush(self) -> None:
        """Write a chunk of what is gathered."""
        if not self.tensors:
            return
        path = self.folder / f"shard-{self.rank:05d}-{self.number:06d}.safetensors"
        write_chunk(path, self.tensors, self.header)
        self.number += 1
        self._start()


# --- What computes the records of an embedding store, and how one bad protein is kept apart.


KINDS = ("embeddings", "projections")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Record: TypeAlias = dict[str, Tensor]
"""Tensors `(residues, width)` of one protein, by kind."""


class Embedder(Protocol):
    """Whatever turns sequences into residue embeddings, and can say which model it is."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Name all that the embeddings depend on: backbone, revision, recipe, weights."""

    @property
    def hidden_size(self) -> int:
        """Return the width of the embeddings."""

    def embed(self, sequences: Sequence[str]) -> Sequence[Tensor]:
        """Embed sequences of like length as one batch, `(residues, hidden)` float32 each."""


def head_width(head: PlasmaModel, hidden_size: int) -> int:
    """Return the width of what a head makes of embeddings of a given width.

    Raises:
        ValueError: If the head takes another width.
    """
    width = head.config.embedding_size
    if width not in (None, hidden_size):
        raise ValueError(
            f"the head takes residue embeddings of width {width}, the backbone gives "
            f"{hidden_size}; give the backbone that the head was made for."
        )
    with torch.inference_mode():
        return head.project(torch.zeros(1, hidden_size, device=head.device)).shape[-1]


def describe(identity: Mapping[str, str] | None) -> str:
    """Spell an identity in one line, digests cut short.

    Example:
        >>> describe({"backbone": "facebook/esm2", "revision": "main", "weights": 64 * "a"})
        'facebook/esm2 (revision main, weights aaaaaaaaaaaa)'
    """
    if not identity:
        return "none"
    (_, name), *details = sorted(identity.items())  # "backbone" or "head" comes first
    short = [f"{key} {v[:12] if len(v) == 64 else v}" for key, v in details if v]
    return f"{name} ({', '.join(short)})" if short else name


class RecordMaker:
    """Compute the records of a batch, and go on without the proteins that cannot be.

    Args:
        embedder: The backbone.
        head: The head, where projections are wanted.
        kinds: What a record holds.
        dtype: What it is kept in.
    """

    def __init__(
        self, embedder: Embedder, head: PlasmaModel | None, kinds: Sequence[str], dtype: torch.dtype
    ) -> None:
        """Keep the parts."""
        self.embedder, self.head, self.kinds, self.dtype = embedder, head, kinds, dtype

    def make(
        self, batch: Sequence[str], wanted: Sequence[str]
    ) -> tuple[dict[str, Record], dict[str, str]]:
        """Embed a batch, and return the records of the wanted sequences in it.

        Args:
            batch: Sequences to embed together.
            wanted: Those of them that a record is made of.

        Returns:
            Records by sequence, and for every other wanted sequence the reason why it has none.
        """
        try:
            embedded = self._embed(batch)
        except Exception as error:  # whatever a model may raise; alone, the good ones pass
            if len(batch) == 1:
                return {}, {batch[0]: _spell(error)}
            parts = [self.make([sequence], [sequence]) for sequence in wanted]
            records = {key: record for part, _ in parts for key, record in part.items()}
            return records, {key: reason for _, part in parts for key, reason in part.items()}
        records, reasons = {}, {}
        for sequence in wanted:
            try:
                records[sequence] = self._record(sequence, embedded[sequence])
            except (ValueError, RuntimeError) as error:
                reasons[sequence] = _spell(error)
        return records, reasons

    def _embed(self, batch: Sequence[str]) -> dict[str, Tensor]:
        with torch.inference_mode():
            return dict(zip(batch, self.embedder.embed(list(batch)), strict=True))

    def _record(self, sequence: str, embeddings: Tensor) -> Record:
        shape = (len(sequence), self.embedder.hidden_size)
        if tuple(embeddings.shape) != shape:
            raise ValueError(f"its embeddings are of shape {tuple(embeddings.shape)}, not {shape}")
        record = {}
        for kind in self.kinds:
            tensor = embeddings
            if kind == "projections":
                tensor = self._project(embeddings)
            record[kind] = self._store(kind, tensor)
        return record

    def _project(self, embeddings: Tensor) -> Tensor:
        assert self.head is not None  # the store has checked it
        # One protein at a time, so that its projection depends on nothing but its embeddings.
        with torch.inference_mode():
            return self.head.project(embeddings.to(self.head.device))

    def _store(self, kind: str, tensor: Tensor) -> Tensor:
        # Rounding keeps order, so the extremes tell of all; NaN is passed on to both of them.
        extremes = torch.stack(tensor.aminmax())
        if not extremes.isfinite().all():
            raise ValueError(f"its {kind} hold NaN or infinite numbers")
        if not extremes.to(self.dtype).isfinite().all():
            name, largest = str(self.dtype).removeprefix("torch."), torch.finfo(self.dtype).max
            raise ValueError(
                f"its {kind} reach {extremes.abs().max():.4g}, beyond {largest:.4g}, the largest "
                f"{name}; make a store of bfloat16 or float32 (--dtype bfloat16)"
            )
        # A copy: slices of one padded batch share memory, which safetensors does not write.
        return torch.empty(tensor.shape, dtype=self.dtype).copy_(tensor)


def _spell(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


# --- What an embedding store says of itself: the models it is of, and how it keeps numbers.


FORMAT = 1
REMEDY = (
    "delete it and run the plasma-hf embed command that made the store again: it writes it anew"
)
# A record's entry in the table of contents of its chunk: key, dtype, shape and offsets.
ENTRY_BYTES = 160


@dataclass(frozen=True)
class StoreHeader:
    """Hold what every record of a store has in common; `store.json` is this.

    Attributes:
        backbone: identity of the backbone.
        head: identity of the head that projections are of, or None.
        dtype: name of the floating point type that records are kept in.
        hidden_size: width of residue embeddings.
        head_size: width of projections, or None.
        kinds: what is kept, of "embeddings" and "projections".
    """

    backbone: dict[str, str]
    head: dict[str, str] | None
    dtype: str
    hidden_size: int
    head_size: int | None
    kinds: tuple[str, ...]

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        head: PlasmaModel | None,
        dtype: str | torch.dtype | None,
        kinds: Sequence[str] | None,
    ) -> StoreHeader:
        """Describe a new store; by default float32, with projections if there is a head.

        Raises:
            ValueError: If dtype or kinds are none, or kinds and head do not go together.
        """
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        if kinds is None:
            kinds = KINDS if head is not None else KINDS[:1]
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds is {tuple(kinds)}; give one or both of {', '.join(KINDS)}.")
        projecting = "projections" in kinds
        if projecting and head is None:
            raise ValueError(
                "projections need a head; give head=PlasmaModel, in the shell --model FOLDER."
            )
        hidden_size = embedder.hidden_size
        return cls(
            backbone=dict(embedder.identity),
            head=head.head_identity if projecting and head is not None else None,
            dtype=name,
            hidden_size=hidden_size,
            head_size=head_width(head, hidden_size) if projecting and head is not None else None,
            kinds=tuple(kind for kind in KINDS if kind in kinds),
        )

    @classmethod
    def read(cls, path: Path) -> StoreHeader:
        """Read `store.json`.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged, or of a newer format than is known here.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no embedding store in {str(path.parent)!r} (no {path.name}); make one "
                f"with: plasma-hf embed proteins.fasta --output {path.parent}"
            )
        fields = read_json(path, REMEDY)
        version = fields.pop("format", None)
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"{path} is of format {version}, and this plasma_hf reads {FORMAT}; install a "
                "newer one with: pip install --upgrade plasma-hf"
            )
        try:
            return cls(**fields | {"kinds": tuple(fields["kinds"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} is no header of a store ({error}); {REMEDY}.") from error

    def write(self, path: Path) -> None:
        """Write `store.json`."""
        write_json(path, self.fields())

    def fields(self) -> dict[str, Any]:
        """Return everything with the version of the format."""
        return asdict(self) | {"kinds": list(self.kinds), "format": FORMAT}

    def text(self) -> str:
        """Return everything in one line; every chunk carries it."""
        return json.dumps(self.fields(), sort_keys=True)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that records are kept in."""
        return DTYPES[self.dtype]

    @property
    def widths(self) -> dict[str, int]:
        """Numbers a residue, by kind."""
        sizes = {"embeddings": self.hidden_size, "projections": self.head_size or 0}
        return {kind: sizes[kind] for kind in self.kinds}

    def size_of(self, lengths: Sequence[int]) -> int:
        """Return the bytes on disk of records of these lengths, tables of contents included."""
        numbers = sum(lengths) * sum(self.widths.values())
        return numbers * self.torch_dtype.itemsize + len(lengths) * len(self.kinds) * ENTRY_BYTES

    def check(
        self, folder: Path, backbone: Mapping[str, str], head: Mapping[str, str] | None = None
    ) -> None:
        """Refuse another backbone or head than the store is of.

        Raises:
            ValueError: Naming both.
        """
        pairs = [("embeddings of", self.backbone, backbone)]
        if head is not None and self.head is not None:
            pairs += [("projections by the head", self.head, head)]
        for what, ours, given in pairs:
            if dict(ours) == dict(given):
                continue
            differing = [k for k in {**ours, **given} if ours.get(k) != given.get(k)]
            raise ValueError(
                f"the store {folder} holds {what} {describe(ours)}, you asked for "
                f"{describe(given)}: they differ in {' and '.join(differing)}; make another store "
                "with: plasma-hf embed proteins.fasta --output ANOTHER_FOLDER"
                + (f" --backbone {backbone.get('backbone', 'NAME')}" if given is backbone else "")
            )


# --- Where in the files of an embedding store each record is.


OPEN_FILES = 16
"""Chunks that stay mapped at a time; what was read of them counts as resident memory."""


class StoreIndex:
    """Find records by id, sequence or hash, and map them.

    Args:
        folder: Folder of the store.
        header: Header that every chunk has to carry.

    Raises:
        ValueError: If a file is damaged, or of another store.
    """

    def __init__(self, folder: Path, header: StoreHeader) -> None:
        """Read the tables of contents."""
        self.folder, self.header = folder, header
        self._open = lru_cache(maxsize=OPEN_FILES)(open_chunk)
        self.refresh()

    def refresh(self) -> None:
        """Read them again, after a change."""
        self._open.cache_clear()
        self.lengths: dict[str, int] = {}
        self.chunks: dict[str, Path] = {}
        for path in chunk_paths(self.folder):
            self._read_contents(path)
        known: dict[str, str] = {}
        for path in sorted(self.folder.glob("ids-*.json")):
            known |= read_json(path, RESUME)
        # An id is written before its record is, and says nothing while that is missing.
        self.ids = {name: key for name, key in known.items() if key in self.lengths}

    def _read_contents(self, path: Path) -> None:
        chunk = open_chunk(path)
        found = (chunk.metadata() or {}).get("store")
        if found != self.header.text():
            raise ValueError(
                f"{path} is no chunk of this store, which is of {describe(self.header.backbone)}, "
                f"but {_origin(found)}; move that file away and run the same plasma-hf embed "
                "command again: it embeds what is missing."
            )
        prefix = f"{self.header.kinds[0]}/"
        for name in chunk.keys():
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                self.lengths[key] = chunk.get_slice(name).get_shape()[0]
                self.chunks[key] = path

    def keys_by_chunk(self) -> dict[Path, list[str]]:
        """Return the hashes in each file, files in the order they were written."""
        found: dict[Path, list[str]] = {}
        for key, path in self.chunks.items():
            found.setdefault(path, []).append(key)
        return found

    def find(self, key: str) -> str | None:
        """Return the hash that an id, a hash or a sequence stands for, if there is a record."""
        if key in self.ids:
            return self.ids[key]
        if key in self.lengths:
            return key
        try:
            found = sequence_hash(clean_sequence(key))
        except ValueError:
            return None
        return found if found in self.lengths else None

    def read(self, kind: str, key: str, dtype: torch.dtype | None) -> Tensor:
        """Copy the record of a hash out of its file; nothing else of that is read."""
        tensor = self._open(self.chunks[key]).get_tensor(f"{kind}/{key}")
        # Without the copy a change would show in every later reading of this process.
        return tensor.to(dtype or tensor.dtype, copy=True)

    def write_ids(self, rank: int, ids: dict[str, str]) -> None:
        """Add ids to those of the shard of a rank."""
        path = self.folder / f"ids-{rank:05d}.json"
        before = read_json(path, RESUME) if path.exists() else {}
        kept = {name: key for name, key in before.items() if key in self.lengths}
        if kept | ids != before:
            write_json(path, kept | ids)

    def drop(self, ids: set[str], keys: set[str]) -> None:
        """Take ids and the records of hashes out, each file changed at once or not at all.

        Raises:
            ValueError: If a process is writing to the store.
        """
        paths = [path for path in chunk_paths(self.folder) if keys & _keys(open_chunk(path))]
        tables = sorted(self.folder.glob("ids-*.json"))
        with ExitStack() as locks:
            for rank in sorted({rank_of(path) for path in (*paths, *tables)}):
                locks.enter_context(shard_lock(self.folder, rank))
            for path in paths:
                _drop_records(path, keys, self.header.text())
            for path in tables:
                before = read_json(path, RESUME)
                after = {n: k for n, k in before.items() if n not in ids and k not in keys}
                if after != before:
                    write_json(path, after)
            self.refresh()


def _keys(chunk: Any) -> set[str]:
    return {name.partition("/")[2] for name in chunk.keys()}


def _drop_records(path: Path, keys: set[str], header: str) -> None:
    chunk = open_chunk(path)
    names = [name for name in chunk.keys() if name.partition("/")[2] not in keys]
    if names:
        # Copies, as safetensors writes no tensors that share memory, and a mapped file is shared.
        write_chunk(path, {name: chunk.get_tensor(name).clone() for name in names}, header)
    else:
        path.unlink()


def _origin(text: str | None) -> str:
    try:
        fields = json.loads(text or "")
        return f"of a store of {describe(fields['backbone'])} in {fields['dtype']}"
    except (ValueError, KeyError, TypeError):
        return "of none at all"


# --- Residue embeddings on disk: computed once, read one protein at a time.


HEADER = "store.json"
RESIDUES_PER_BATCH = 4096
CHUNK_BYTES = 64 * 1024**2
CHUNK_SECONDS = 60.0


@dataclass(frozen=True)
class EmbeddingJob:
    """Hold what is to be embedded, before it is.

    Attributes:
        batches: all sequences of the job in the batches they are embedded in.
        ids: hash of the sequence by id.
        n_missing: number of sequences that the store does not hold yet.
        n_bytes: what their records will take on disk.
        bad: records that cannot be embedded.
    """

    batches: list[list[str]]
    ids: dict[str, str]
    n_missing: int
    n_bytes: int
    bad: list[BadRecord]


@dataclass
class EmbeddingReport:
    """Say what a job did in this process.

    Attributes:
        embedded: number of sequences embedded now.
        already_there: number of sequences that were in the store before.
        bad: ids without a record, each with the reason.
    """

    embedded: int = 0
    already_there: int = 0
    bad: list[BadRecord] = field(default_factory=list)


@dataclass(frozen=True)
class StoredBatch:
    """Hold the keys of some proteins of a store, and the file that they are in.

    Attributes:
        keys: hashes of the sequences, the longest first.
        chunk: the file.
    """

    keys: list[str]
    chunk: Any

    def read(self, kind: str, key: str) -> Tensor:
        """Map a record, `(residues, width)`, as it is kept; do not write to it."""
        return self.chunk.get_tensor(f"{kind}/{key}")


class EmbeddingStore:
    """Keep residue embeddings, and the projections of a head, in a folder.

    A record is found by the id of a protein, by its sequence or by the hash of that; equal
    sequences share one. Everything in a store is of one backbone, revision and recipe, and of one
    head; another is refused. Opening reads tables of contents alone, reading a protein its record
    alone.

    A job that was killed is resumed by starting it again, and loses the last minute at most. Under
    `torchrun` or `accelerate launch` every rank computes its share of the batches and writes a
    shard of its own. On the same kind of machine the records are the same, byte for byte, however
    often the job was stopped and however many ranks shared it, as batches depend on the whole
    input of `add` and on nothing else.

    Example:
        >>> import tempfile, torch
        >>> class Ones:
        ...     identity = {"backbone": "ones"}
        ...     hidden_size = 4
        ...     def embed(self, sequences):
        ...         return [torch.ones(len(sequence), 4) for sequence in sequences]
        >>> store = EmbeddingStore.create(tempfile.mkdtemp(), Ones(), dtype="float16")
        >>> store.add([("P1", "MKVLA"), ("P2", "MK"), ("P3", "M7")], Ones()).embedded
        2
        >>> store["P1"].shape, store["MK"].dtype, "P3" in store
        (torch.Size([5, 4]), torch.float16, False)
    """

    def __init__(self, folder: str | PathLike[str], header: StoreHeader) -> None:
        """Read the tables of contents; use `open` or `create`."""
        self.folder, self.header = Path(folder), header
        self._index = StoreIndex(self.folder, header)

    @property
    def identity(self) -> dict[str, str]:
        """What the embeddings depend on: the `Backbone.identity` of the one that made them."""
        return dict(self.header.backbone)

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> EmbeddingStore:
        """Open a store that is there.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If a file of it is damaged, of another store, or of a newer format.
        """
        return cls(folder, StoreHeader.read(Path(folder) / HEADER))

    @classmethod
    def create(
        cls,
        folder: str | PathLike[str],
        embedder: Embedder,
        head: PlasmaModel | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        kinds: Iterable[str] | None = None,
    ) -> EmbeddingStore:
        """Open the store of a folder, or make one where there is none.

        Args:
            folder: Folder, made if need be.
            embedder: Backbone that the store is of, for example of `plasma_hf.load_backbone`.
            head: Model whose projections are kept.
            dtype: float32, float16 or bfloat16; float32, or what the store keeps.
            kinds: "embeddings", "projections" or both; what there is to keep, or what is kept.

        Raises:
            ValueError: If there is a store with other contents.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        kinds = None if kinds is None else list(kinds)
        with FileLock(path / "store.lock"):  # of several ranks, the first one writes
            if not (path / HEADER).exists():
                StoreHeader.of(embedder, head, dtype, kinds).write(path / HEADER)
        store = cls.open(path)
        store.check(embedder.identity, None if head is None else head.head_identity)
        header = store.header
        if kinds is not None and set(kinds) != set(header.kinds):
            raise ValueError(
                f"the store {folder} keeps {' and '.join(header.kinds)}, you asked for "
                f"{' and '.join(kinds)}; make another store for them."
            )
        if dtype is not None and str(dtype).removeprefix("torch.") != header.dtype:
            raise ValueError(
                f"the store {folder} keeps {header.dtype}, you asked for {dtype}; make another "
                "store for it, or read this one with dtype=torch.float32."
            )
        return store

    def check(
        self, identity: Mapping[str, str], head_identity: Mapping[str, str] | None = None
    ) -> None:
        """Refuse another backbone, or another head, than the store is of.

        Args:
            identity: Of the backbone, as `Backbone.identity` gives it.
            head_identity: Of the head, if projections matter.

        Raises:
            ValueError: Naming both.
        """
        self.header.check(self.folder, identity, head_identity)

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._index.lengths)

    def __iter__(self) -> Iterator[str]:
        """Yield the hashes of the sequences."""
        return iter(self._index.lengths)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._index.find(key) is not None

    def __getitem__(self, key: str) -> Tensor:
        return self.read(key)

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps of files do not travel to the workers of a DataLoader; the folder does.
        return EmbeddingStore.open, (self.folder,)

    @property
    def lengths(self) -> dict[str, int]:
        """Number of residues by hash."""
        return dict(self._index.lengths)

    @property
    def ids(self) -> dict[str, str]:
        """Hash of the sequence by id."""
        return dict(self._index.ids)

    def read(self, key: str, kind: str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Read the record of one protein, `(residues, width)`.

        Args:
            key: Id (tried first), sequence, or hash of a sequence.
            kind: "embeddings" or "projections"; by default the first that the store keeps.
            dtype: What to convert to; by default it comes as it is kept.

        Raises:
            KeyError: If the store does not hold the protein.
            ValueError: If it keeps nothing of the kind.
        """
        kind = kind or self.header.kinds[0]
        self.check_kind(kind)
        found = self._index.find(key)
        if found is None:
            raise KeyError(
                f"the store {self.folder} holds no protein with the id or sequence "
                f"{_shorten(key)!r}; add it with: plasma-hf embed FILE --output {self.folder}"
            )
        return self._index.read(kind, found, dtype)

    def embeddings(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read residue embeddings, `(residues, hidden)`; see `read`."""
        return self.read(key, "embeddings", dtype)

    def projections(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read what the head made of them, `(residues, head_size)`; see `read`."""
        return self.read(key, "projections", dtype)

    def stream(self, max_residues: int = RESIDUES_PER_BATCH) -> Iterator[StoredBatch]:
        """Go through all proteins, file by file, in batches of like length.

        A file is unmapped when its last batch is let go of: memory does not grow with the store.

        Args:
            max_residues: Most residues of a batch, as if padded; a longer protein is alone.
        """
        lengths = self._index.lengths
        for path, keys in self._index.keys_by_chunk().items():
            chunk = open_chunk(path)
            keys.sort(key=lambda key: (-lengths[key], key))
            for part in cut([lengths[key] for key in keys], max_residues):
                yield StoredBatch(keys[part], chunk)

    def check_kind(self, kind: str) -> None:
        """Refuse a kind of record that the store does not keep.

        Raises:
            ValueError: Saying what it keeps.
        """
        if kind not in self.header.kinds:
            raise ValueError(
                f"the store {self.folder} keeps {' and '.join(self.header.kinds)}, no {kind}; make "
                "one that does with: plasma-hf embed FILE --output ANOTHER_FOLDER --projections"
            )

    def estimate(self, lengths: Iterable[int]) -> int:
        """Return the bytes on disk of records of proteins of these lengths."""
        return self.header.size_of(list(lengths))

    def prepare(
        self,
        proteins: Source,
        residues_per_batch: int = RESIDUES_PER_BATCH,
        bad: Iterable[BadRecord] = (),
    ) -> EmbeddingJob:
        """Work out what there is to embed, how much disk it takes, and what cannot be.

        Args:
            proteins: Whatever `read_sequences` reads: a path, rows, a data set.
            residues_per_batch: Most residues embedded at once, padding included. To get the same
                bytes, resume with the same number.
            bad: Records that were found wrong before, to be reported with the others.
        """
        found = list(bad)
        ids: dict[str, str] = {}
        sequences: dict[str, str] = {}
        for protein in read_sequences(proteins, on_invalid=found.append):
            sequence = protein.sequence or ""
            key = sequence_hash(sequence)
            known = ids.get(protein.id, self._index.ids.get(protein.id, key))
            if known == key:
                ids[protein.id], sequences[key] = key, sequence
            else:
                found.append(self._conflict(protein.id, known, sequences.get(known), sequence))
        missing = [len(sequences[key]) for key in sequences if key not in self._index.lengths]
        batches = cut_batches(sequences.values(), residues_per_batch)
        return EmbeddingJob(batches, ids, len(missing), self.estimate(missing), found)

    def _conflict(self, name: str, known: str, first: str | None, second: str) -> BadRecord:
        kept = repr(_shorten(first)) if first else f"one of {self._index.lengths[known]} residues"
        return BadRecord(
            name,
            f"this id stands for two sequences, {kept} (SHA-256 {known[:12]}) and "
            f"{_shorten(second)!r} (SHA-256 {sequence_hash(second)[:12]}); the first is kept. "
            "Rename one, or take the first out with: plasma-hf embed "
            f"--output {self.folder} --remove {name}",
        )

    def add(
        self,
        proteins: Source,
        embedder: Embedder,
        head: PlasmaModel | None = None,
        *,
        residues_per_batch: int = RESIDUES_PER_BATCH,
    ) -> EmbeddingReport:
        """Embed the proteins that are not in the store yet; see `prepare` and `run`."""
        return self.run(self.prepare(proteins, residues_per_batch), embedder, head)

    def run(
        self,
        job: EmbeddingJob,
        embedder: Embedder,
        head: PlasmaModel | None = None,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> EmbeddingReport:
        """Do a job, or this rank's share of it.

        A protein that cannot be embedded is reported, the others complete.

        Args:
            job: What `prepare` returned.
            embedder: The backbone of the store.
            head: The head of the store, if it keeps projections.
            chunk_bytes: Size of a file of the store; a batch alone may be larger.
            chunk_seconds: How much work a killed job may lose.

        Raises:
            ValueError: If backbone or head are not those of the store, or another process is
                writing the same shard.
            OSError: If the disk has no room for the records.
        """
        self.check(embedder.identity, None if head is None else head.head_identity)
        if "projections" in self.header.kinds and head is None:
            raise ValueError(
                f"the store {self.folder} keeps projections by the head "
                f"{describe(self.header.head)}; give that head too (--model in the shell)."
            )
        maker = RecordMaker(embedder, head, self.header.kinds, self.header.torch_dtype)
        rank, world_size = rank_and_world_size()
        batches = job.batches[rank::world_size]
        with shard_lock(self.folder, rank):
            remove_stale(self.folder, rank)
            self._index.refresh()
            self._check_room(job.n_bytes)
            names = _names(job.ids, batches)
            self._index.write_ids(rank, {n: key for key, group in names.items() for n in group})
            # What is wrong with the input is said once, by the first rank.
            report = EmbeddingReport(bad=[] if rank else list(job.bad))
            writer = ChunkWriter(self.folder, rank, self.header.text(), chunk_bytes, chunk_seconds)
            with writer, _progress(self._missing(batches), rank) as progress:
                for batch in batches:
                    wanted = self._missing([batch])
                    report.already_there += len(batch) - len(wanted)
                    if not wanted:
                        continue
                    records, reasons = maker.make(batch, wanted)
                    writer.add(_named(records))
                    report.embedded += len(records)
                    for sequence, reason in reasons.items():
                        ids = names[sequence_hash(sequence)]
                        report.bad += [BadRecord(name, reason) for name in ids]
                    progress.update(sum(map(len, wanted)))
            self._index.refresh()
        return report

    def remove(self, keys: Iterable[str]) -> int:
        """Take proteins out; what another id stands for as well stays.

        Args:
            keys: Ids, sequences or hashes. A sequence or hash takes all its ids with it.

        Returns:
            Number of records taken out.

        Raises:
            KeyError: If one of them is not there; nothing is removed then.
            ValueError: If a process is writing to the store.
        """
        keys = list(keys)
        unknown = [key for key in keys if key not in self]
        if unknown:
            raise KeyError(f"the store {self.folder} holds no {', '.join(map(_shorten, unknown))}")
        index = self._index
        ids = {key for key in keys if key in index.ids}
        still_named = {key for name, key in index.ids.items() if name not in ids}
        gone = {str(index.find(key)) for key in keys if key not in ids}
        gone |= {index.ids[name] for name in ids} - still_named
        index.drop(ids, gone)
        return len(gone)

    def _missing(self, batches: Iterable[list[str]]) -> list[str]:
        there = self._index.lengths
        return [s for batch in batches for s in batch if sequence_hash(s) not in there]

    def _check_room(self, n_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < n_bytes:
            raise OSError(
                f"the records need {gigabytes(n_bytes)} and the disk of {self.folder} has "
                f"{gigabytes(free)} left; make room, or a store of float16 elsewhere (--dtype "
                "float16 --output FOLDER)."
            )


def gigabytes(n_bytes: int) -> str:
    """Spell a size.

    Example:
        >>> gigabytes(1_300_000_000), gigabytes(1_300_000)
        ('1.30 GB', '1.3 MB')
    """
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _names(ids: Mapping[str, str], batches: Iterable[list[str]]) -> dict[str, list[str]]:
    """Return the ids of every hash that is in the batches."""
    names: dict[str, list[str]] = {sequence_hash(s): [] for batch in batches for s in batch}
    for name, key in ids.items():
        if key in names:
            names[key].append(name)
    return names


def _named(records: Mapping[str, Record]) -> dict[str, Tensor]:
    return {
        f"{kind}/{sequence_hash(sequence)}": tensor
        for sequence, record in records.items()
        for kind, tensor in record.items()
    }


def _progress(sequences: Iterable[str], rank: int) -> tqdm:
    total = sum(map(len, sequences))
    # None: shown where standard error is a terminal.
    return tqdm(total=total, unit="residue", unit_scale=True, disable=True if rank else None)


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."
