"""Residue embeddings on disk: computed once, read one protein at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from .batches import cut, cut_batches, rank_and_world_size, sequence_hash
from .chunks import ChunkWriter, open_chunk, remove_stale, shard_lock
from .embedder import Embedder, Record, RecordMaker, describe
from .sequences import BadRecord, Source, read_sequences
from .store_header import StoreHeader
from .store_index import StoreIndex

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

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
        for protein in read_sequences(proteins, bad=found):
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
