"""Build an index, add to it and take from it, so that a kill at any time does no harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..data.chunks import write_atomically, write_json
from ..data.sequences import BadRecord
from ..models.retrieval_index import (
    HEADER,
    VECTOR,
    Index,
    IndexHeader,
    ModelIdentity,
    import_datasets,
    read_shards,
)
from ..models.retrieval_record import RESIDUES_PER_BATCH, RetrievalRecord
from .records import as_records
from .shards import inspect_shard, shard_name, write_rows, write_shard

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
            or `RetrievalRecord`s, as `read_records` gives them.
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

        def is_new(record: RetrievalRecord) -> bool:
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

    def name_of(self, records: Sequence[RetrievalRecord]) -> str:
        return shard_name(self.made_by, ((record.id, record.sha) for record in records))

    def take(self, name: str, records: Sequence[RetrievalRecord]) -> None:
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


def _each_once(
    records: Iterable[RetrievalRecord], bad: list[BadRecord]
) -> Iterator[RetrievalRecord]:
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


def _chunks(records: Iterable[RetrievalRecord], size: int) -> Iterator[list[RetrievalRecord]]:
    records = iter(records)
    while chunk := list(islice(records, size)):
        yield chunk


def _counted(records: Iterable[RetrievalRecord], progress: bool) -> Iterable[RetrievalRecord]:
    return tqdm(records, unit="protein", disable=not progress)


def _conflict(record: RetrievalRecord, folder: Path) -> BadRecord:
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
