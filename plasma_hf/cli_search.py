"""`plasma-hf search`: the proteins nearest to a sequence or a structure."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_errors import fail, one_line_errors, report
from .cli_index import Model, load_retrieval_model
from .cli_options import Device, RemoteCode, Revision
from .search_formats import FIELDS, FORMATS

if TYPE_CHECKING:
    from .data.sequences import BadRecord
    from .models.retrieval_record import RetrievalRecord


class FormatName(StrEnum):
    """The keys of `FORMATS`, as typer takes a choice."""

    text = "text"
    json = "json"
    tsv = "tsv"


SEARCH_HELP = f"""
Find the structures or sequences that are nearest to a query.

The query is a sequence; all records of a FASTA file, or one, as FILE:RECORD; or all chains of a PDB
or mmCIF file, or one, as FILE:CHAIN. What is searched is an index that `plasma-hf index build`
made; or, embedded on the spot, a folder of structure files or a file of sequences. A query of one
kind finds records of either.

A record that cannot be used is reported on standard error, the rest is done, and the exit code
is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf search --sequence MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ --structures structures/
  plasma-hf search --fasta demo/serine_proteases.fasta --index proteases.index --format tsv
  plasma-hf search --structure 1abc.pdb:A --sequences demo/serine_proteases.fasta --explain

\b
Formats:
  text  a table for each query
  json  one object a query and line (JSON Lines): id and length of the query, and the result of
        the Python pipeline as it is
  tsv   one line a hit, with the columns

\b
{chr(10).join(f"  {name:<14} {description}" for name, description in FIELDS.items())}
"""


def search(
    sequence: Annotated[str | None, typer.Option(help="Query: one-letter residues.")] = None,
    fasta: Annotated[str | None, typer.Option(help="Queries: FASTA file, or FILE:RECORD.")] = None,
    structure: Annotated[
        str | None, typer.Option(help="Queries: PDB or mmCIF file, or FILE:CHAIN.")
    ] = None,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="Index to search.")] = None,
    structures: Annotated[
        Path | None, typer.Option(help="Folder of structure files to search, or one such file.")
    ] = None,
    sequences: Annotated[
        Path | None, typer.Option(help="FASTA, CSV, ... file of sequences to search.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Hits of a query.")] = 5,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name the residues that the model weighs most.")
    ] = False,
    format_name: Annotated[
        FormatName, typer.Option("--format", "-f", help="What to write.")
    ] = FormatName.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of the screen.")
    ] = None,
    model: Model = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries embedded together.")] = 8,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Search; see `SEARCH_HELP`."""
    with one_line_errors():
        _one_of("query", sequence=sequence, fasta=fasta, structure=structure)
        _one_of("place to search", index=index, structures=structures, sequences=sequences)
        bad: list[BadRecord] = []
        queries = _read_queries(sequence, fasta, structure, bad)
        complete = _reported(bad)
        if not queries:
            raise typer.Exit(2)
        loaded = load_retrieval_model(model, revision, device, trust_remote_code)
        options: dict[str, Any] = {"index": index}
        if index is None:
            options = {"candidates": _read_candidates(structures, sequences, bad)}
        pipe = _pipeline(loaded, batch_size, options, bad)
        complete &= _reported(bad)
        results = pipe(iter(queries), top_k=top_k, explain=explain, on_error="report")
        with _opened(output) as file:
            complete &= _write(zip(queries, results, strict=True), format_name, file)
    if not complete:
        raise typer.Exit(2)


def _one_of(what: str, **options: Any) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(f"--{name}" for name in options)
        fail(f"give one {what} of {names}; " + (" and ".join(given) or "none") + " is given")


def _read_queries(
    sequence: str | None, fasta: str | None, structure: str | None, bad: list[BadRecord]
) -> list[RetrievalRecord]:
    """Read all records of a file, or the one that is named."""
    from .models.retrieval_record import record_of
    from .search import read_records

    if sequence is not None and "." in sequence and Path(sequence).is_file():
        fail(f"--sequence {sequence} is a file; give it as --fasta or --structure")
    if sequence is not None:
        return [record_of({"id": "query", "sequence": sequence})]
    place = fasta or structure or ""
    kind = "sequence" if fasta else "structure"
    if not Path(place).exists():
        return [record_of(Path(place))]
    return list(read_records([place], bad, kind))


def _read_candidates(
    structures: Path | None, sequences: Path | None, bad: list[BadRecord]
) -> list[RetrievalRecord]:
    from .search import read_records

    place, kind = (structures, "structure") if structures else (sequences, "sequence")
    assert place is not None
    candidates = list(read_records([place], bad, kind))
    if not candidates:
        _reported(bad)
        fail(f"{place} holds nothing that can be searched")
    return candidates


def _pipeline(model: Any, batch_size: int, options: dict[str, Any], bad: list[BadRecord]) -> Any:
    import logging

    from .data.sequences import BadRecord
    from .models.pipeline_protein_retrieval import ProteinRetrievalPipeline

    logger = logging.getLogger(ProteinRetrievalPipeline.__module__)
    was, logger.disabled = logger.disabled, True  # what it would log is said in one line each
    try:
        pipe = ProteinRetrievalPipeline(
            model=model, device=model.device, batch_size=batch_size, **options
        )
    finally:
        logger.disabled = was
    bad += [BadRecord(*one) for one in pipe.bad_candidates]
    return pipe


def _reported(bad: list[BadRecord]) -> bool:
    """Say what was left out, once, and whether nothing was."""
    complete = not bad
    for record in bad:
        report(f"{record.id}: {record.reason}")
    bad.clear()
    return complete


def _opened(output: Path | None) -> AbstractContextManager[TextIO]:
    return output.open("w", encoding="utf-8", newline="") if output else nullcontext(sys.stdout)


def _write(results: Iterable[tuple[RetrievalRecord, Any]], format_name: str, file: TextIO) -> bool:
    """Write results as they come; say whether every query has one."""
    complete = True
    form = FORMATS[format_name]
    file.write(form.head)
    for query, hits in results:
        if "error" in hits:
            report(f"{query.id}: {hits['error']}")
            complete = False
            continue
        file.write(form.render(query.id, len(query.residues), hits))
        file.flush()
    return complete
