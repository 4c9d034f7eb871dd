"""`plasma-hf database`: proteins kept to be searched residue by residue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from .align import job_name, read_side, write_groups
from .common import EXIT_CODE, Output, Skipped, fail, group, one_line_errors, report
from .embed import load_embedder

if TYPE_CHECKING:
    from ..models.protein import Protein
    from ..search.database import ProteinDatabase

database_app = group("Keep proteins that are searched residue by residue.")

BUILD_HELP = f"""Build a database of proteins, for `plasma-hf search QUERIES DATABASE`.

Each INPUT is a FASTA, CSV, TSV, Parquet or JSON Lines file, or a folder or file of structures, of
which the sequences of chains are taken. One byte per residue is kept, for any model. A build that
was stopped goes on when the same command is run again, and adds to a database that is there.

{EXIT_CODE}

\b
Examples:
  plasma-hf database build demo/serine_proteases.fasta --output proteins
  plasma-hf search demo/serine_proteases.fasta proteins --format m8"""


@dataclass(frozen=True)
class Writing:
    """Where results go, and how."""

    form: str
    columns: str | None
    output: Path | None
    resume: bool
    quiet: bool


Folder = Annotated[Path, Argument(metavar="DATABASE", help="Folder of the database.")]


@database_app.command(help=BUILD_HELP)
def build(
    inputs: Annotated[list[Path], Argument(metavar="INPUT", help="Files and folders.")],
    output: Annotated[Path, Option("--output", "-o", help="Folder, made if need be.")],
) -> None:
    """Build a database; see `BUILD_HELP`."""
    with one_line_errors() as skipped:
        from ..search.database import MANIFEST, ProteinDatabase

        before = len(ProteinDatabase.open(output)) if (output / MANIFEST).exists() else 0
        found = ProteinDatabase.build(output, _read(inputs, skipped), _reporter(skipped))
        new = f", {len(found) - before} of them new" if before else ""
        report(f"{output}: {len(found)} proteins, {found.residues} residues{new}")


@database_app.command()
def remove(
    database: Folder, ids: Annotated[list[str], Argument(metavar="ID", help="Ids of proteins.")]
) -> None:
    """Leave proteins out of a database, by their ids."""
    with one_line_errors() as skipped:
        from ..search.database import ProteinDatabase

        opened = ProteinDatabase.open(database)
        for name in sorted(set(ids) - set(opened.ids)):
            skipped.report(f"{database} has no protein {name!r}")
        report(f"{database}: {opened.remove(ids)} removed, {len(opened)} left")


@database_app.command()
def info(database: Folder) -> None:
    """Say what is in a database."""
    with one_line_errors():
        from ..search.database import ProteinDatabase

        opened = ProteinDatabase.open(database)
        typer.echo(f"{database}: {len(opened)} proteins, {opened.residues} residues")


def _reporter(skipped: Skipped) -> Any:
    return lambda record: skipped.report(f"{record.id}: {record.reason}")


def _read(inputs: list[Path], skipped: Skipped) -> Iterator[Protein]:
    from ..search import read_records

    for place in inputs:
        bad: list[Any] = []
        for record in read_records(place, bad):
            yield record
            while bad:
                _reporter(skipped)(bad.pop())
        skipped.report_records(bad)


def search_database(
    queries: str,
    place: Path,
    writing: Writing,
    model: tuple[str | None, str | None, None, str | None, str | None, bool],
    skipped: Skipped,
    options: dict[str, Any],
) -> None:
    """Search residue by residue, and write the hits of each query as they come."""
    from ..models.alignment_result import check_columns
    from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

    columns = writing.columns.split(",") if writing.columns else None
    chosen = check_columns(writing.form, columns)
    messages: dict[str, None] = {}
    wanted = read_side(queries, "query", messages)
    for message in messages:
        skipped.report(message)
    if not wanted:
        raise typer.Exit(2)
    database = _open(place, skipped)
    embedder, head = load_embedder(*model, True)
    assert head is not None  # a model was asked for
    align = ProteinAlignmentPipeline(model=head, processor=embedder.processor, device=head.device)
    known = zip(database.ids, database.sequences, strict=True)
    given = ((one.id, one.sha) for one in wanted)
    job = job_name(head, (writing.form, chosen, options), known, given)
    with Output(writing.output, job, writing.resume) as file:
        if writing.resume:
            report(f"{file.done} of {len(wanted)} queries are in {writing.output}")
        hits = _hits(database, wanted[file.done :], align, writing, skipped, options)
        write_groups(((1, each) for each in hits), file, writing.form, chosen)


def _open(place: Path, skipped: Skipped) -> ProteinDatabase:
    """Open a folder that was built, or hold what a file or a folder of structures has."""
    from ..search.database import MANIFEST, ProteinDatabase

    if (place / MANIFEST).exists():
        database = ProteinDatabase.open(place)
    else:
        database = ProteinDatabase.of(_read([place], skipped), _reporter(skipped))
    if not len(database):
        fail(f"{place} holds no protein that can be searched")
    return database


def _hits(
    database: ProteinDatabase,
    queries: list[Protein],
    align: Any,
    writing: Writing,
    skipped: Skipped,
    options: dict[str, Any],
) -> Iterator[list[Any]]:
    """Yield the hits of each query; one that cannot be used has none.

    Text has nothing of a query without hits, a reader of it is told.
    """
    from tqdm import tqdm

    hidden = writing.quiet or len(queries) == 1 or None
    for query in tqdm(queries, unit="query", disable=hidden):
        try:
            [hits] = database.search([query], align, **options)
            if not hits and writing.form == "text" and not writing.quiet:
                report(f"{query.id}: no significant hit among {len(database)} proteins")
            yield hits
        except ValueError as error:
            if align.model.calibration is None:
                raise
            skipped.report(f"{query.id}: {error}")
            yield []
