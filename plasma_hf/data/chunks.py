"""Files that are there whole or not at all, which an embedding store is made of."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

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
