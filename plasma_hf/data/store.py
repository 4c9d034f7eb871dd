"""Records of one model in a folder; residue embeddings so kept are computed once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ..io.sequences import Source, read_sequences
from ..models.modeling_backbone import weights_digest
from ..models.protein import InvalidRecord, clean_sequence
from .shards import (
    TEMPORARY,
    Header,
    Shard,
    ShardedStore,
    describe,
    parse_json,
    read_again,
    read_json,
    write_json,
    write_shard,
    writer_lock,
)

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

# --- Batches of proteins that are the same whoever computes them, and whenever.


def sequence_hash(sequence: str) -> str:
    """Return the SHA-256 of a sequence in hexadecimal, its key in an embedding store."""
    return hashlib.sha256(sequence.encode()).hexdigest()


def cut_batches(sequences: Iterable[str], residues_per_batch: int) -> list[list[str]]:
    """Cut sequences into batches of like length, the longest first.

    The last bits of an embedding depend on its batch. These batches depend on the set of sequences
    alone, so a job that was stopped, or is shared among ranks, computes the same ones. Longest
    first: what does not fit into memory fails at once. A sequence longer than `residues_per_batch`,
    which counts padding, is alone.

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
    """Return which of how many processes this is, as torch.distributed or torchrun say."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# --- What computes the records of an embedding store.

KINDS = ("embeddings", "projections")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Record: TypeAlias = dict[str, Tensor]
"""Tensors `(residues, width)` of one protein, by kind."""


class Embedder(Protocol):
    """Whatever turns sequences into residue embeddings, and can say which model it is."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """All that the embeddings depend on, the weights among it."""

    @property
    def hidden_size(self) -> int:
        """Return the width of the embeddings."""

    def embed(self, sequences: Sequence[str]) -> Sequence[Tensor]:
        """Embed sequences of like length as one batch, `(residues, hidden)` float32 each."""


def head_width(head: PlasmaModel, hidden_size: int) -> int:
    """Return the width of what a head makes of embeddings of a given width; refuse any other."""
    width = head.config.embedding_size
    if width not in (None, hidden_size):
        raise ValueError(
            f"the head takes residue embeddings of width {width}, the backbone gives "
            f"{hidden_size}; give the backbone that the head was made for."
        )
    with torch.inference_mode():
        return head.project(torch.zeros(1, hidden_size, device=head.device)).shape[-1]


def _spell(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


# --- The embedding store.

HEADER = "store.json"
OTHERS_SECONDS = 30.0
"""How long a writer waits for others that begin, perhaps many, or for one that removes."""
RESUME = "delete that file and run the plasma-hf embed command again: it embeds what is missing"
RESIDUES_PER_BATCH = 4096
WRITTEN = re.compile(r"(?:shard|ids)-(\d{5})[-.]")
OPEN_SHARDS = 16
"""Shards that stay mapped at a time; what was read of them counts as resident memory."""
# A record's entry in the table of contents of its shard: key, dtype, shape, offsets, checksum.
ENTRY_BYTES = 168


@dataclass(frozen=True)
class StoreHeader(Header):
    """What `store.json` says of an embedding store."""

    FILE = HEADER
    FORMAT = 2
    NOUN = "embedding store"
    BUILD = "plasma-hf embed proteins.fasta --output {folder}"
    REMEDY = "delete it and run the plasma-hf embed command that made the store again"
    RENEW = "delete {folder} and run the plasma-hf embed command that made it again"

    backbone: dict[str, str]  # its fingerprint
    head: dict[str, str] | None  # fingerprint of the head that projections are of
    dtype: str  # what records are kept in
    hidden_size: int  # width of residue embeddings
    head_size: int | None  # width of projections
    kinds: tuple[str, ...]  # what is kept, of `KINDS`

    @classmethod
    def of(
        cls,
        embedder: Embedder,
        head: PlasmaModel | None,
        dtype: str | torch.dtype | None,
        kinds: Sequence[str] | None,
    ) -> StoreHeader:
        """Describe a new store; by default float32, with projections if there is a head."""
        name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(f"dtype is {dtype}; give one of {', '.join(DTYPES)}.")
        if kinds is None:
            kinds = KINDS if head is not None else KINDS[:1]
        if not kinds or not set(kinds) <= set(KINDS):
            raise ValueError(f"kinds is {tuple(kinds)}; give one or both of {', '.join(KINDS)}.")
        if "projections" not in kinds:
            head = None
        elif head is None:
            raise ValueError("projections need a head; give head=PlasmaModel (--model FOLDER).")
        return cls(
            backbone=dict(embedder.fingerprint),
            head=None if head is None else head.head_identity,
            dtype=name,
            hidden_size=embedder.hidden_size,
            head_size=None if head is None else head_width(head, embedder.hidden_size),
            kinds=tuple(kind for kind in KINDS if kind in kinds),
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kinds", tuple(self.kinds))
        if self.dtype not in DTYPES or not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"it keeps {', '.join(self.kinds)} as {self.dtype}")

    @property
    def widths(self) -> dict[str, int]:
        """Width of each kind that is kept."""
        both = {"embeddings": self.hidden_size, "projections": self.head_size or 0}
        return {kind: both[kind] for kind in self.kinds}

    def text(self) -> str:
        """Return everything in one line; every shard carries it."""
        return json.dumps({"format": self.FORMAT} | asdict(self), sort_keys=True)


@dataclass(frozen=True)
class EmbeddingJob:
    """What is to be embedded, before it is."""

    batches: list[list[str]]  # all sequences of the job, as they are embedded together
    ids: dict[str, str]  # hash of the sequence by id
    n_missing: int  # sequences that the store does not hold yet
    n_bytes: int  # what their records will take on disk
    bad: list[InvalidRecord]  # invalid records


@dataclass
class EmbeddingReport:
    """What a job did in this process."""

    embedded: int = 0  # records made now
    already_there: int = 0  # records that were there before, from this job or another
    bad: list[InvalidRecord] = field(default_factory=list)  # skipped records, each with the reason


@dataclass(frozen=True)
class StoredBatch:
    """Hashes of some proteins of a store, the longest first, and the shard they are in."""

    keys: list[str]
    shard: Shard

    def read(self, kind: str, key: str) -> Tensor:
        """Map a record, `(residues, width)`, as it is kept; do not write to it."""
        return self.shard.read(f"{kind}/{key}")


def shard_paths(folder: Path, rank: int | None = None) -> list[Path]:
    """List the shards of an embedding store, or those of one rank, in the order of writing."""
    by = 5 * "[0-9]" if rank is None else f"{rank:05d}"
    return sorted(folder.glob(f"shard-{by}-{6 * '[0-9]'}.safetensors"))


class EmbeddingStore(ShardedStore):
    """Residue embeddings, and the projections of a head, in a folder.

    A mapping of ids to records. What is asked for by `read`, `[]` and `in` is an id, by
    `read_sequence` and `has_sequence` a sequence, by `read_key` the key of a record, which is the
    hash of its sequence; equal sequences share one. All are of one backbone, revision and input
    format, and of one head. Opening reads tables of contents, reading a protein its record alone;
    a record that is not what was written is refused, naming its file.

    A job that was killed is resumed by starting it again, and loses the last minute at most. Under
    `torchrun` or `accelerate launch` every rank computes its share of the batches and writes
    shards of its own. Records are the same, byte for byte, however often the job was stopped and
    however many ranks shared it: batches depend on the whole input of `add` alone.

    Attributes:
        lengths: Number of residues by key, of every record.
        ids: Key by id.

    Example:
        >>> import tempfile, torch
        >>> class Ones:
        ...     fingerprint = {"backbone": "ones"}
        ...     hidden_size = 4
        ...     def embed(self, sequences):
        ...         return [torch.ones(len(sequence), 4) for sequence in sequences]
        >>> store = EmbeddingStore.create(tempfile.mkdtemp(), Ones(), dtype="float16")
        >>> store.add([("P1", "MKVLA"), ("P2", "MK"), ("P3", "M7")], Ones()).embedded
        2
        >>> store["P1"].shape, store.read_sequence("MK").dtype, "P3" in store
        (torch.Size([5, 4]), torch.float16, False)
    """

    HEADER = StoreHeader
    header: StoreHeader
    shard_bytes = 64 * 1024**2  # size at which a shard is written
    shard_seconds = 60.0  # how long work may stay unwritten

    def __init__(self, folder: str | PathLike[str], header: StoreHeader) -> None:
        super().__init__(folder, header)
        self.refresh()

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
        """Open the store of a folder, or make one; refuse a store with other contents.

        Args:
            embedder: Backbone that the store is of, for example of `plasma_hf.load_backbone`.
            head: Model whose projections are kept.
            dtype: float32, float16 or bfloat16; float32, or what the store keeps.
            kinds: "embeddings", "projections" or both; what there is to keep, or what is kept.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        kinds = None if kinds is None else list(kinds)
        with FileLock(path / "store.lock"):  # of several ranks, the first one writes
            if not (path / HEADER).exists():
                StoreHeader.of(embedder, head, dtype, kinds).write(path)
            store = cls.open(path)
        store.check(embedder.fingerprint, None if head is None else head.head_identity)
        asked = None if dtype is None else [str(dtype).removeprefix("torch.")]
        for kept, given in ((store.header.kinds, kinds), ([store.header.dtype], asked)):
            if given is not None and set(given) != set(kept):
                raise ValueError(
                    f"the store {folder} keeps {' and '.join(kept)}, you asked for "
                    f"{' and '.join(given)}; make another store for that. A record is read in any "
                    "precision: read(key, dtype=torch.float32)."
                )
        return store

    @property
    def fingerprint(self) -> dict[str, str]:
        """The `Backbone.fingerprint` of what made the embeddings."""
        return dict(self.header.backbone)

    identity = fingerprint  # as pipelines exported by version 0.1 read it

    def check_model(self, model: Any) -> None:
        """Refuse a model over another backbone, as far as can be told without loading that."""
        config, made = model.config, self.fingerprint
        name, wanted = config.plm_name_or_path, config.plm_recipe
        # A released head knows its backbone by the last part of the id.
        same = name is None or Path(made["backbone"]).name == Path(name).name
        written = made.get("recipe")  # an embedder of one's own has none
        if not same or wanted not in (None, written):
            raise ValueError(
                f"the store holds embeddings of {made['backbone']} ({written}), this model "
                f"takes those of {name} ({wanted or 'any input format'}); make a store with: "
                f"plasma-hf embed --backbone {name} --input-format {wanted or 'generic'}."
            )
        if model.backbone is not None and weights_digest(model.backbone) != made.get("weights"):
            raise ValueError(
                f"the store was made by {made['backbone']} with other weights than this model's "
                "backbone has, which was trained further perhaps; make a store with it: "
                "plasma-hf embed --model <folder of this model>."
            )

    def check(
        self, fingerprint: Mapping[str, str], head_fingerprint: Mapping[str, str] | None = None
    ) -> None:
        """Refuse another backbone, or another head if one is given, than the store is of."""
        another = f" --backbone {fingerprint.get('backbone', 'NAME')}"
        pairs = [("embeddings of", self.header.backbone, fingerprint, another)]
        if head_fingerprint is not None and self.header.head is not None:
            pairs.append(("projections by the head", self.header.head, head_fingerprint, ""))
        for what, ours, given, option in pairs:
            differing = [k for k in {**ours, **given} if ours.get(k) != given.get(k)]
            if differing:
                raise ValueError(
                    f"the store {self.folder} holds {what} {describe(ours)}, you asked for "
                    f"{describe(given)}: they differ in {' and '.join(differing)}; make another "
                    "store with: plasma-hf embed proteins.fasta --output ANOTHER_FOLDER" + option
                )

    def check_kind(self, kind: str) -> None:
        """Refuse a kind of record that the store does not keep."""
        if kind not in self.header.kinds:
            raise ValueError(
                f"the store {self.folder} keeps {' and '.join(self.header.kinds)}, no {kind}; make "
                "one that does with: plasma-hf embed FILE --output ANOTHER_FOLDER --projections"
            )

    def refresh(self) -> None:
        """Read the tables of contents again, after a change."""
        self._open = lru_cache(maxsize=OPEN_SHARDS)(partial(Shard, remedy=RESUME))
        read_again(self._read_contents, self.folder)

    def _read_contents(self) -> None:
        found: dict[str, tuple[int, Path]] = {}
        for path in shard_paths(self.folder):
            shard = Shard(path, RESUME)
            self._check_shard(shard)
            for name, shape in shard.shapes.items():
                kind, _, key = name.partition("/")
                if kind == self.header.kinds[0]:
                    found[key] = shape[0], path
        # The first table last: a removal puts what others have into it before it empties them.
        tables = [_read_ids(path) for path in reversed(self._tables())][::-1]
        # An id is written before its record is, and says nothing while that is missing.
        self.ids = {n: k for table in tables for n, k in table.items() if k in found}
        # Where there are ids, a record without one is what a killed removal has left.
        named = set(self.ids.values() if tables else found)
        self._paths = {key: path for key, (_, path) in found.items() if key in named}
        self.lengths = {key: found[key][0] for key in self._paths}

    def _tables(self) -> list[Path]:
        return sorted(self.folder.glob(f"ids-{5 * '[0-9]'}.json"))

    def _check_shard(self, shard: Shard) -> None:
        widths = self.header.widths
        fit = (
            len(shape) == 2 and shape[1] == widths.get(name.partition("/")[0])
            for name, shape in shard.shapes.items()
        )
        if shard.about == self.header.text() and all(fit):
            return
        try:
            values = parse_json(shard.about, dict[str, Any])
            origin = f"of a store of {describe(values['backbone'])} in {values['dtype']}"
        except (ValueError, KeyError, TypeError, AttributeError):
            origin = "of none at all"
        raise ValueError(
            f"{shard.path} is not a shard of this store, which is of "
            f"{describe(self.header.backbone)}, but {origin}; move it away and run the same "
            "plasma-hf embed command again: it embeds what is missing."
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self.ids

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def read(self, name: str, kind: str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Read the record of the protein with an id, `(residues, width)`.

        Args:
            kind: "embeddings" or "projections"; by default the first that the store keeps.
            dtype: What to convert to; by default it comes as it is kept.
        """
        return self._find(self.ids.get(name, ""), f"the id {name!r}", kind, dtype)

    def has_sequence(self, sequence: str) -> bool:
        """Tell whether there is a record of a sequence, spelled as in a file."""
        return _key_of(sequence) in self.lengths

    def read_sequence(
        self, sequence: str, kind: str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Read the record of a sequence, whatever its id; see `read`."""
        what = f"the sequence {_shorten(sequence)!r}"
        return self._find(_key_of(sequence), what, kind, dtype)

    def embeddings(self, sequence: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read residue embeddings of a sequence, as pipelines exported before do."""
        return self.read_sequence(sequence, "embeddings", dtype)

    def read_key(
        self, key: str, kind: str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Read a record by its key, one of `lengths`; see `read`."""
        return self._find(key, f"the key {key!r}", kind, dtype)

    def _find(self, key: str, what: str, kind: str | None, dtype: torch.dtype | None) -> Tensor:
        kind = kind or self.header.kinds[0]
        self.check_kind(kind)

        def mapped() -> Tensor:
            if key not in self._paths:
                raise KeyError(
                    f"the store {self.folder} holds no protein with {what}; add it with: "
                    f"plasma-hf embed FILE --output {self.folder}"
                )
            return self._open(self._paths[key]).read(f"{kind}/{key}")

        def mapped_again() -> Tensor:
            self.refresh()
            return mapped()

        try:
            tensor = mapped()
        except ValueError:  # its shard has changed since this store was opened, or is damaged
            tensor = read_again(mapped_again, self.folder)
        # A copy: in the mapped tensor a change would show in every later reading.
        return tensor.to(dtype or tensor.dtype, copy=True)

    def stream(self, max_residues: int = RESIDUES_PER_BATCH) -> Iterator[StoredBatch]:
        """Go through all proteins, shard by shard, in batches of like length.

        A file is unmapped when its last batch is let go of: memory does not grow with the store.
        What was removed since the store was opened is left out.
        """
        by_path: dict[Path, list[str]] = {}
        for key, path in self._paths.items():
            by_path.setdefault(path, []).append(key)
        for path, keys in by_path.items():
            shard = read_again(
                lambda at=path: Shard(at, RESUME) if at.exists() else None,  # type: ignore[misc]
                self.folder,
            )
            if shard is None:
                continue
            keys = [key for key in keys if f"{self.header.kinds[0]}/{key}" in shard.shapes]
            keys.sort(key=lambda key: (-self.lengths[key], key))
            for part in cut([self.lengths[key] for key in keys], max_residues):
                yield StoredBatch(keys[part], shard)

    def estimate(self, lengths: Iterable[int]) -> int:
        """Return the bytes on disk of records of proteins of these lengths."""
        lengths, header = list(lengths), self.header
        bytes_each = DTYPES[header.dtype].itemsize * sum(header.widths.values())
        return sum(lengths) * bytes_each + len(lengths) * len(header.kinds) * ENTRY_BYTES

    def add(
        self, proteins: Source, embedder: Embedder, head: PlasmaModel | None = None
    ) -> EmbeddingReport:
        """Embed the proteins that are not in the store yet; see `prepare` and `run`."""
        return self.run(self.prepare(proteins), embedder, head)

    def prepare(
        self,
        proteins: Source,
        residues_per_batch: int = RESIDUES_PER_BATCH,
        bad: Iterable[InvalidRecord] = (),
    ) -> EmbeddingJob:
        """Work out what there is to embed, how much disk it takes, and what cannot be.

        Args:
            proteins: Whatever `read_sequences` reads: a path, rows, a data set.
            residues_per_batch: Padding included; resume with the same number for the same bytes.
            bad: Records that were found invalid before, to be reported with the others.
        """
        found = list(bad)
        ids: dict[str, str] = {}
        sequences: dict[str, str] = {}
        for protein in read_sequences(proteins, on_invalid=found.append):
            sequence = protein.sequence or ""
            key = sequence_hash(sequence)
            known = ids.get(protein.id, self.ids.get(protein.id, key))
            if known == key:
                ids[protein.id], sequences[key] = key, sequence
                continue
            first = sequences.get(known)
            kept = repr(_shorten(first)) if first else f"one of {self.lengths[known]} residues"
            reason = (
                f"this id stands for two sequences, {kept} (SHA-256 {known[:12]}) and "
                f"{_shorten(sequence)!r} (SHA-256 {key[:12]}); the first is kept. Rename one, or "
                f"remove the first: plasma-hf embed --output {self.folder} --remove "
                f"{shlex.quote(protein.id)}"
            )
            found.append(InvalidRecord(protein.id, reason))
        missing = [len(sequences[key]) for key in sequences if key not in self.lengths]
        batches = cut_batches(sequences.values(), residues_per_batch)
        return EmbeddingJob(batches, ids, len(missing), self.estimate(missing), found)

    def run(
        self, job: EmbeddingJob, embedder: Embedder, head: PlasmaModel | None = None
    ) -> EmbeddingReport:
        """Do a job that `prepare` returned, or this rank's share of it.

        A protein that cannot be embedded is reported, the others complete. Backbone and head have
        to be those of the store; no other process may write as the same rank.
        """
        self.check(embedder.fingerprint, None if head is None else head.head_identity)
        if "projections" in self.header.kinds and head is None:
            raise ValueError(
                f"the store {self.folder} keeps projections by the head "
                f"{describe(self.header.head)}; give that head too (--model in the shell)."
            )
        free = shutil.disk_usage(self.folder).free
        if free < job.n_bytes:
            raise OSError(
                f"the records need {gigabytes(job.n_bytes)} and the disk of {self.folder} has "
                f"{gigabytes(free)} left; make room, or a store elsewhere (--output FOLDER), of "
                "float16 (--dtype float16)."
            )
        # What is wrong with the input is said once, by the first rank.
        report = EmbeddingReport(bad=[] if rank_and_world_size()[0] else list(job.bad))
        self.write(self._compute(job, report, embedder, head))
        return report

    def _compute(
        self, job: EmbeddingJob, report: EmbeddingReport, embedder: Embedder, head: Any
    ) -> Iterator[dict[str, Record]]:
        """Yield what is missing of this rank's batches, one by one, and report on all of them."""
        rank, world_size = rank_and_world_size()
        batches = job.batches[rank::world_size]
        names: dict[str, list[str]] = {sequence_hash(s): [] for batch in batches for s in batch}
        ids = {name: key for name, key in job.ids.items() if key in names}
        for name, key in ids.items():
            names[key].append(name)
        table = self.folder / f"ids-{rank:05d}.json"
        known = {name: key for name, key in _read_ids(table).items() if key in self.lengths}
        _write_ids(table, known | ids)
        left = [[s for s in batch if sequence_hash(s) not in self.lengths] for batch in batches]
        total = sum(len(sequence) for wanted in left for sequence in wanted)
        hidden = True if rank else None  # None: shown where standard error is a terminal
        with tqdm(total=total, unit="residue", unit_scale=True, disable=hidden) as progress:
            for batch, wanted in zip(batches, left, strict=True):
                made = self._make(batch, wanted, embedder, head) if wanted else {}
                records = {}
                for sequence, record in made.items():
                    key = sequence_hash(sequence)
                    if isinstance(record, str):
                        report.bad += [InvalidRecord(name, record) for name in names[key]]
                    else:
                        records[key] = record
                report.already_there += len(batch) - len(wanted)
                report.embedded += len(records)
                yield records
                progress.update(sum(map(len, wanted)))

    def _make(
        self, batch: Sequence[str], wanted: Sequence[str], embedder: Embedder, head: Any
    ) -> dict[str, Record | str]:
        """Embed a batch; return the record of each wanted sequence, or why there is none."""
        try:
            with torch.inference_mode():
                embedded = dict(zip(batch, embedder.embed(list(batch)), strict=True))
        except Exception as error:  # whatever a model may raise; alone, the good ones pass
            if len(batch) == 1:
                return {batch[0]: _spell(error)}
            alone = [self._make([one], [one], embedder, head) for one in wanted]
            return {key: made for part in alone for key, made in part.items()}
        made: dict[str, Record | str] = {}
        for sequence in wanted:
            try:
                made[sequence] = self._record(sequence, embedded[sequence], head)
            except (ValueError, RuntimeError) as error:
                made[sequence] = _spell(error)
        return made

    def _record(self, sequence: str, embeddings: Tensor, head: PlasmaModel | None) -> Record:
        shape = (len(sequence), self.header.hidden_size)
        if tuple(embeddings.shape) != shape:
            raise ValueError(f"its embeddings are of shape {tuple(embeddings.shape)}, not {shape}")
        record = {"embeddings": embeddings}
        if "projections" in self.header.kinds and head is not None:
            # One protein at a time, so that its projection depends on nothing but its embeddings.
            with torch.inference_mode():
                record["projections"] = head.project(embeddings.to(head.device))
        return {kind: self.rounded(record[kind], kind) for kind in self.header.kinds}

    def rounded(self, tensor: Tensor, kind: str = "embeddings") -> Tensor:
        """Copy a tensor as the store keeps it; refuse what is not finite, or becomes infinite."""
        # Rounding keeps order, so the extremes tell of all; NaN is passed on to both of them.
        extremes, dtype = torch.stack(tensor.aminmax()), DTYPES[self.header.dtype]
        if not extremes.isfinite().all():
            raise ValueError(f"its {kind} hold NaN or infinite numbers")
        if not extremes.to(dtype).isfinite().all():
            raise ValueError(
                f"its {kind} reach {extremes.abs().max():.4g}, beyond {torch.finfo(dtype).max:.4g},"
                f" the largest {self.header.dtype}; make a store of bfloat16 or float32 (--dtype "
                "bfloat16)"
            )
        # A copy: slices of one padded batch share memory, which safetensors does not write.
        return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)

    def write(self, batches: Iterable[Mapping[str, Record]]) -> None:
        """Write records by their keys into shards of this rank.

        A killed job loses the shard in the making; one that an error stops writes it. No batch is
        asked for before other writers are kept away. In a store with ids, a record is there as long
        as an id stands for it.
        """
        rank, world_size = rank_and_world_size()
        # What other jobs' ranks have left, the first one sweeps.
        left = {other for other in self._ranks(TEMPORARY) if other >= world_size and not rank}
        with self._locked({rank} | left):
            self.refresh()
            shard: Record = {}
            begun = time.monotonic()
            try:
                for batch in batches:
                    shard |= {f"{kind}/{k}": t for k, r in batch.items() for kind, t in r.items()}
                    full = sum(tensor.nbytes for tensor in shard.values()) >= self.shard_bytes
                    if full or time.monotonic() - begun > self.shard_seconds:
                        self._flush(rank, shard)
                        begun = time.monotonic()
            finally:
                self._flush(rank, shard)
            self.refresh()

    def _flush(self, rank: int, shard: Record) -> None:
        if shard:
            written = shard_paths(self.folder, rank)
            number = int(written[-1].stem.split("-")[2]) if written else -1
            path = self.folder / f"shard-{rank:05d}-{number + 1:06d}.safetensors"
            write_shard(path, shard, self.header.text())
            shard.clear()

    def _ranks(self, suffix: str = "") -> set[int]:
        """Return the ranks that have written files of the store, or some kind of them."""
        names = [path.name for path in self.folder.glob(f"*{suffix}")]
        return {int(found[1]) for found in map(WRITTEN.match, names) if found}

    @contextmanager
    def _locked(self, ranks: Iterable[int] | None = None) -> Iterator[None]:
        """Keep other writers of these ranks away, or all, and sweep what killed ones left."""
        busy = f"another process is taking proteins out of {self.folder}; wait for it."
        with ExitStack() as locks:
            # Held by one who writes while it begins, by one who removes to the end.
            path = self.folder / "removal.lock"
            begun = locks.enter_context(writer_lock(path, busy, OTHERS_SECONDS))
            for rank in sorted(self._ranks() if ranks is None else ranks):
                busy = (
                    f"another process is writing the shards of rank {rank} in {self.folder}; wait "
                    "for it, or stop it. Processes that torchrun starts share a job, each with a "
                    "rank."
                )
                locks.enter_context(writer_lock(self.folder / f"shard-{rank:05d}.lock", busy))
                for stale in (f"shard-{rank:05d}-*", f"ids-{rank:05d}.json"):
                    for left in self.folder.glob(stale + TEMPORARY):
                        left.unlink()
            if ranks is not None:
                begun.release()
            yield

    def remove(self, ids: Iterable[str]) -> int:
        """Take proteins out, or none if one is not there; return the number of records gone.

        A record goes with the last id that stands for it. What a killed removal has left on the
        disk, which no reader finds, goes with the next one.
        """
        names = set(ids)
        with self._locked():
            self.refresh()
            if unknown := sorted(names - self.ids.keys()):
                held = ", ".join(map(_shorten, unknown))
                raise KeyError(f"the store {self.folder} holds no {held}")
            before = len(self.lengths)
            after = {name: key for name, key in self.ids.items() if name not in names}
            if tables := self._tables():
                # All ids in one table first, which those to take out then leave in one step.
                for table in tables:
                    _write_ids(table, self.ids if table == tables[0] else {})
                _write_ids(tables[0], after)
                for shard in shard_paths(self.folder):
                    self._rewrite_with(shard, set(after.values()))
            self.refresh()
            return before - len(self.lengths)

    def _rewrite_with(self, path: Path, keys: set[str]) -> None:
        """Write a shard again without the records of other keys."""
        shard = Shard(path, RESUME)
        names = [name for name in shard.shapes if name.partition("/")[2] in keys]
        if not names:
            path.unlink()
        elif len(names) < len(shard.shapes):
            # Copies: safetensors writes no tensors that share memory, as those of a map do.
            kept = {name: shard.read(name).clone() for name in names}
            write_shard(path, kept, self.header.text())


def _read_ids(path: Path) -> dict[str, str]:
    tables = read_json(path, RESUME, dict[str, str]) if path.exists() else {"ids": {}}
    if tables.keys() != {"ids"}:
        raise ValueError(f"{path} is not a table of ids; {RESUME}.")
    return dict(tables["ids"])


def _write_ids(path: Path, ids: Mapping[str, str]) -> None:
    if ids != _read_ids(path):  # sorted: the same, whatever was written before a job was killed
        write_json(path, {"ids": dict(sorted(ids.items()))})


def _key_of(sequence: str) -> str:
    """Return the key of a sequence spelled as in a file; none is that of an invalid one."""
    with suppress(ValueError):
        return sequence_hash(clean_sequence(sequence))
    return ""


def gigabytes(n_bytes: int) -> str:
    """Spell a size."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _shorten(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:27]}..."
