"""`plasma-hf database`: proteins kept to be searched residue by residue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from . import common
from .align import Writing, read_side
from .common import Computing, Skipped, fail, group, report, verb

if TYPE_CHECKING:
    from ..models.protein import Protein
    from ..search.database import ProteinDatabase

database_app = group("Keep proteins that are searched residue by residue.")

LARGE = 10**8  # bytes that take a while

Search = Callable[[list["Protein"]], Iterator[list[Any]]]

Folder = Annotated[Path, Argument(metavar="DATABASE", help="Folder of the database.")]


@database_app.command()
@verb()
def build(
    skipped: Skipped,
    output: Annotated[Path, Option("--output", "-o", help="Folder, made if need be.")],
    inputs: Annotated[list[Path] | None, Argument(metavar="INPUT", help="Files, folders.")] = None,
    *,
    computing: Computing,
) -> None:
    """Build a database of proteins, for `plasma-hf search QUERIES DATABASE`.

    Each INPUT is a FASTA, CSV, TSV, Parquet or JSON Lines file, or a folder or file of structures,
    of which the sequences of chains are taken. One byte per residue is kept, for any model. A build
    that was stopped goes on when the same command is run again, and adds to a database that is
    there.

    With --backbone each protein also gets a vector by a language model, of up to 256 bytes: a
    search with the same --backbone then finds relatives that letters no longer show. To that end
    every protein is embedded once, or read from a --store.

    Examples:
      plasma-hf database build demo/serine_proteases.fasta --output proteins
      plasma-hf search demo/serine_proteases.fasta proteins --format m8
      plasma-hf database build --output proteins --backbone near
    """
    from ..search.database import MANIFEST, ProteinDatabase

    there = (output / MANIFEST).exists()
    maker = computing.backbone or computing.model
    if not inputs and not (there and maker):
        fail("there is nothing to do; give files with proteins, or --backbone for vectors")
    if not there and not any(path.exists() for path in inputs or []):
        fail(f"there is no {' and no '.join(map(str, inputs or []))}; check the path")
    before = len(ProteinDatabase.open(output)) if there else 0
    size = sum(path.stat().st_size for path in inputs or [] if path.is_file())
    if size > LARGE:
        report(f"{size / 1e9:.1f} GB to read; sequences take a byte per residue on disk")
    start = time.monotonic()
    found = ProteinDatabase.build(
        output, common.read_places(inputs or [], skipped), skipped.report_record
    )
    new = len(found) - before
    told = f", {new} of them new" if before else ""
    report(f"{_content(found)}{told}" + (f"; {_rate(new, start)}" if new else ""))
    if maker is not None:
        align = computing.load()
        start = time.monotonic()
        added = found.add_vectors(align)
        report(f"{output}: {added} vectors by {maker}; {_rate(added, start)}")
    elif lacking := found.without_vectors():
        report(f"{lacking} proteins have no vectors; run this again with --backbone")


def _content(database: ProteinDatabase) -> str:
    return f"{database.folder}: {len(database)} proteins, {database.residues} residues"


def _rate(number: int, start: float) -> str:
    return f"{number / (time.monotonic() - start):.0f} proteins a second"


@database_app.command()
@verb()
def remove(
    skipped: Skipped,
    database: Folder,
    ids: Annotated[list[str], Argument(metavar="ID", help="Ids of proteins.")],
) -> None:
    """Leave proteins out of a database, by their ids."""
    from ..search.database import ProteinDatabase

    opened = ProteinDatabase.open(database)
    for name in sorted(set(ids) - set(opened.ids)):
        skipped.report(f"{database} has no protein {name!r}")
    report(f"{database}: {opened.remove(ids)} removed, {len(opened)} left")


@database_app.command()
@verb()
def info(skipped: Skipped, database: Folder) -> None:
    """Say what is in a database."""
    from ..search.database import ProteinDatabase

    opened = ProteinDatabase.open(database)
    lacking = opened.without_vectors()
    told = "" if lacking is None else f", {len(opened) - lacking} of them with vectors"
    typer.echo(_content(opened) + told)


def search_database(
    queries: str,
    place: Path,
    writing: Writing,
    computing: Computing,
    ray: int | None,
    skipped: Skipped,
    options: dict[str, Any],
    quiet: bool,
) -> None:
    """Search residue by residue, and write the hits of each query as they come."""
    from ..data.store import rank_and_world_size

    _ = writing.chosen  # what is wrong with the options is said first
    rank, world_size = rank_and_world_size()
    # All processes read the same queries.
    wanted = read_side(queries, "query", Skipped(silent=True) if rank else skipped)
    if not wanted:
        raise typer.Exit(2)
    align = computing.load()
    search: Search
    known: Iterable[tuple[str, str]]
    if ray is not None:
        search, known = _on_cluster(place, computing, ray, skipped, options)
    else:
        database = open_database(place, skipped)
        known = zip(database.ids, database.sequences, strict=True)
        if not (quiet or rank):  # said once
            _tell_of_vectors(database, align, computing, options["sensitivity"])
        search = partial(_hits, database, align, skipped, options, writing.form, quiet)
    if rank:
        for _ in _shared(wanted, search, writing.resume):
            pass
        return
    given = ((one.id, one.sha) for one in wanted)
    with writing.opened(align.model, options, known, given) as file:
        if writing.resume:
            report(f"{file.done} of {len(wanted)} queries are in {writing.output}")
        if world_size > 1:
            hits = _shared(wanted, search, writing.resume, file.done)
        else:
            hits = search(wanted[file.done :])
        writing.write(((1, each) for each in hits), file)


def _on_cluster(
    place: Path, computing: Computing, workers: int, skipped: Skipped, options: dict[str, Any]
) -> tuple[Search, list[tuple[str, str]]]:
    """Return what yields the hits of queries by a Ray cluster, and what names the database."""
    from ..search.cluster import search
    from ..search.database import read_manifest

    def on_cluster(queries: list[Protein]) -> Iterator[list[Any]]:
        def on_error(number: int, reason: str) -> None:
            skipped.report(f"{queries[number].id}: {reason}")

        given: dict[str, Any] = {"workers": workers, "on_error": on_error} | options
        return search(place.resolve(), queries, computing.load, **given)

    return on_cluster, [("parts", json.dumps(read_manifest(place)))]


def _shared(
    queries: list[Protein], search: Search, resumed: bool, done: int = 0
) -> Iterator[list[Any]]:
    """Yield the hits of each query in the first process of torchrun, which all have a part in."""
    from torch import distributed

    from ..data.store import rank_and_world_size

    rank, world_size = rank_and_world_size()
    distributed.init_process_group("gloo")
    if resumed:
        told = [done]
        distributed.broadcast_object_list(told)
        done = told[0]
    left = queries[done:]
    own = search(left[rank::world_size])
    for start in range(0, len(left), world_size):
        every: list[Any] | None = [None] * world_size if rank == 0 else None
        distributed.gather_object(next(own, []), every)
        yield from (every or [])[: len(left) - start]
    distributed.destroy_process_group()


def open_database(place: Path, skipped: Skipped) -> ProteinDatabase:
    """Open a folder that was built, or hold what a file or a folder of structures has."""
    from ..search.database import MANIFEST, ProteinDatabase

    if (place / MANIFEST).exists():
        database = ProteinDatabase.open(place)
    else:
        database = ProteinDatabase.of(common.read_places([place], skipped), skipped.report_record)
    if not len(database):
        raise ValueError(f"{place} holds no protein that can be searched")
    return database


def _tell_of_vectors(
    database: ProteinDatabase, align: Any, computing: Computing, sensitivity: str
) -> None:
    """Say that a language model has not seen a database whose proteins are not all aligned."""
    from ..search.database import SENSITIVITY, model_name

    backbone, most = computing.backbone, SENSITIVITY[sensitivity] or len(database)
    if backbone and len(database) > most and database.vectors(model_name(align)) is None:
        advice = f"plasma-hf database build --output {database.folder or 'FOLDER'}"
        advice = f"make them with: {advice} --backbone {backbone}"
        if align.processor.input_format.reads_structures:  # a database keeps sequences alone
            advice = "compare all with: --sensitivity all"
        report(
            f"candidates are found by letters alone, as the proteins have no vectors by {backbone};"
            f" {advice}"
        )


def _hits(
    database: ProteinDatabase,
    align: Any,
    skipped: Skipped,
    options: dict[str, Any],
    form: str,
    quiet: bool,
    queries: list[Protein],
) -> Iterator[list[Any]]:
    """Yield the hits of each query; one that cannot be used has none.

    Text has nothing of a query without hits, a reader of it is told.
    """
    from tqdm import tqdm

    hidden = quiet or len(queries) == 1 or None
    for query in tqdm(queries, unit="query", disable=hidden):
        try:
            [hits] = database.search([query], align, **options)
            if not hits and form == "text" and not quiet:
                report(f"{query.id}: no significant hit among {len(database)} proteins")
            yield hits
        except ValueError as error:
            if align.model.calibration is None:
                raise
            skipped.report(f"{query.id}: {error}")
            yield []
