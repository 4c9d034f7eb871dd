"""Records in a folder: a header and shards, files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

TEMPORARY = ".tmp"
T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """What all records of a store have in common; its JSON file makes a folder a store."""

    FILE: ClassVar[str]
    FORMAT: ClassVar[int]
    NOUN: ClassVar[str]
    BUILD: ClassVar[str]  # the command that makes one
    REMEDY: ClassVar[str]  # what to do where the file is damaged
    RENEW: ClassVar[str]  # what to do where it is of an older format

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for part in fields(self):
            if not is_of(getattr(self, part.name), kinds[part.name]):
                raise ValueError(f"its {part.name!r} is no {part.type}")

    @classmethod
    def read(cls, folder: str | PathLike[str]) -> Self:
        """Read the header of a folder; refuse one that is missing, damaged or of another format."""
        path, remedy = Path(folder) / cls.FILE, cls.REMEDY.format(folder=folder)
        if not path.is_file():
            named, build = f"{cls.NOUN} in {str(folder)!r}", cls.BUILD.format(folder=folder)
            raise FileNotFoundError(
                f"the {named} is not finished; run the command that builds it again, it goes on "
                "where it stopped."
                if any(path.parent.glob("*.safetensors*"))
                else f"there is no {named}; build one with: {build}"
            )
        values = read_json(path, remedy)
        version = values.pop("format", None)
        if type(version) is int and version != cls.FORMAT:
            newer = "install a newer one with: pip install --upgrade plasma-hf"
            older = f"it was made by an older version: {cls.RENEW.format(folder=folder)}"
            todo = newer if version > cls.FORMAT else older
            raise ValueError(
                f"{path} is of format {version}, and this plasma_hf reads {cls.FORMAT}; {todo}."
            )
        try:
            if type(version) is not int:
                raise ValueError("its 'format' is no number")
            return cls(**values)
        except (TypeError, ValueError) as error:
            message = f"{path} is not a valid header of an {cls.NOUN} ({error}); {remedy}."
            raise ValueError(message) from error

    def write(self, folder: Path) -> None:
        """Write the file, in one step."""
        write_json(folder / self.FILE, {"format": self.FORMAT} | asdict(self))


class ShardedStore:
    """Records of one model in a folder: a header and shards, which are safetensors files.

    A file appears whole or not at all: readers need no lock, a killed writer does no harm, and what
    is there need not be computed again. Writers keep each other away by `writer_lock`.
    """

    HEADER: ClassVar[type[Header]]

    def __init__(self, folder: str | PathLike[str], header: Any) -> None:
        self.folder, self.header = Path(folder), header

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> Self:
        """Open a store that is there."""
        return cls(folder, cls.HEADER.read(folder))

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps of files do not travel to the workers of a DataLoader; the folder does.
        return type(self).open, (self.folder,)


def describe(fingerprint: Mapping[str, str] | None) -> str:
    """Spell the fingerprint of a model in one line."""
    if not fingerprint:
        return "none"
    (_, name), *details = sorted(fingerprint.items())  # "backbone", "head" or "model" comes first
    details.sort(key=lambda item: item[0] != "weights")
    short = [f"{key} {v[:8] if key == 'weights' else v}" for key, v in details if v]
    return f"{name} ({', '.join(short)})" if short else name


def writer_lock(path: Path, busy: str, seconds: float = 0.0) -> AbstractContextManager[Any]:
    """Hold a lock for a `with`; refuse a second writer, saying `busy`."""
    try:
        return FileLock(path, timeout=seconds).acquire()
    except Timeout as error:
        raise ValueError(busy) from error


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


def read_again(read: Callable[[], T], folder: Path) -> T:
    """Read what others may be changing; an error is one if nothing changed while it came about."""
    while True:
        before = _state(folder)
        try:
            return read()
        except (ValueError, OSError):
            if _state(folder) == before:
                raise


def _state(folder: Path) -> tuple[int, set[tuple[str, int]]] | None:
    try:
        files = {(file.name, file.inode()) for file in os.scandir(folder)}
        return folder.stat().st_mtime_ns, files
    except OSError:
        return None


def is_of(value: object, kind: Any) -> bool:
    """Tell whether a value is of an annotated type, and what it holds of the types in that."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is dict:
        return isinstance(value, dict) and all(is_of(one, parts[1]) for one in value.values())
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(is_of(one, parts[0]) for one in value)
    if origin is UnionType:
        return any(is_of(value, part) for part in parts)
    return kind is Any or type(value) is kind


def parse_json(text: str | bytes, kind: Any) -> Any:
    """Parse JSON that has to be of a type; whatever is wrong with it is a ValueError."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not is_of(value, kind):
        raise ValueError(f"it holds no {kind}")
    return value


def checksum(content: Any, start: int = 0) -> str:
    """Return the CRC-32 of bytes, or of what is spelled in JSON."""
    if isinstance(content, dict | list):
        content = json.dumps(content).encode()
    return f"{zlib.crc32(content, start):08x}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, and what tells whether it is read as written."""
    text = json.dumps({"checksum": checksum(dict(value)), **value}, indent=0)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, remedy: str, kind: Any = Any) -> dict[str, Any]:
    """Read an object whose values are of a type, or say what to do about a damaged file."""
    try:
        value: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"), dict[str, Any])
        written = value.pop("checksum", None)
        if written is not None and written != checksum(value):
            raise ValueError("it is not what was written, its checksum is another")
        if not is_of(value, dict[str, kind]):
            raise ValueError(f"what it holds is no {kind}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid JSON file: {error}; {remedy}.") from error
    return value


def write_shard(path: Path, tensors: Mapping[str, Tensor], about: str) -> None:
    """Write named tensors, what they are of, and what tells whether they are read as written."""
    sums = "".join(_checksum_of(tensors[name]) for name in sorted(tensors))
    shapes = {name: list(tensors[name].shape) for name in sorted(tensors)}
    told = {"about": about, "sums": sums, "table": checksum([about, sums, shapes])}
    # Not by save_file, whose files no other user may read. One key: several come in any order.
    content = save(dict(tensors), metadata={"store": json.dumps(told)})
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _checksum_of(tensor: Tensor) -> str:
    about = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    return checksum(tensor.detach().reshape(-1).view(torch.uint8).numpy(), about)


class Shard:
    """A mapped file of named tensors: what is read of it is what was written, or is refused.

    Opening reads and checks its table of contents, `read` one tensor. Both say what to do about a
    damaged file.

    Attributes:
        about: What the tensors are of.
        shapes: Shape of each by name, in order of the names.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        try:
            self._file = safe_open(path, framework="pt")
            metadata = self._file.metadata() or {}
            if "store" not in metadata:
                raise ValueError("no store has written it")
            told = parse_json(metadata["store"], dict[str, str])
            slices = {name: self._file.get_slice(name) for name in sorted(self._file.keys())}
            self.shapes: dict[str, list[int]] = {n: s.get_shape() for n, s in slices.items()}
            self.about, sums = told["about"], told["sums"]
            if told["table"] != checksum([self.about, sums, self.shapes]):
                raise ValueError("its table of contents is not what was written")
        except UNREADABLE as error:
            raise self.damaged(error) from error
        self._sums = {name: sums[8 * i : 8 * i + 8] for i, name in enumerate(self.shapes)}

    def damaged(self, error: object) -> ValueError:
        """Name the file, what is wrong with it and what to do."""
        return ValueError(f"{self.path} is missing or damaged ({error}); {self.remedy}.")

    def read(self, name: str) -> Tensor:
        """Map a tensor; do not write to it."""
        try:
            tensor: Tensor = self._file.get_tensor(name)
            if _checksum_of(tensor) != self._sums[name]:
                raise ValueError(f"{name} is not what was written, its checksum is another")
        except UNREADABLE as error:
            raise self.damaged(error) from error
        return tensor


UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What a damaged file may raise."""
