"""Where in the files of an embedding store each record is."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.residues import clean_sequence
from .batches import sequence_hash
from .chunks import (
    RESUME,
    chunk_paths,
    open_chunk,
    rank_of,
    read_json,
    shard_lock,
    write_chunk,
    write_json,
)
from .embedder import describe
from .store_header import StoreHeader

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
