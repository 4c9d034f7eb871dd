"""`plasma-hf search`: the proteins nearest to a sequence or a structure."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ..io.formats import HIT_FIELDS, HIT_FORMATS
from . import common
from .common import EXIT_CODE, fail, load_model, one_line_errors, write

if TYPE_CHECKING:
    from ..models.protein import Protein

SEARCH_HELP = f"""Find the structures or sequences that are nearest to a query.

The query is a sequence; all records of a FASTA file, or one, as FILE:RECORD; or all chains of a PDB
or mmCIF file, or one, as FILE:CHAIN. What is searched is an index that `plasma-hf index build`
made; or, embedded on the spot, a folder of structure files or a file of sequences. A query of one
kind finds records of either.

{EXIT_CODE}

\b
Examples:
  plasma-hf search --sequence MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ --structures structures/
  plasma-hf search --fasta demo/serine_proteases.fasta --index proteases.index --format tsv
  plasma-hf search --structure 1abc.pdb:A --sequences demo/serine_proteases.fasta --explain

\b
Formats:
  text  a table for each query
  json  one object per query and line (JSON Lines): id and length of the query, and the result of
        the Python pipeline as it is
  tsv   one line per hit, with the columns

\b
{chr(10).join(f"  {name:<14} {description}" for name, description in HIT_FIELDS.items())}"""


def search(
    sequence: Annotated[str | None, Option(help="Query: one-letter residues.")] = None,
    fasta: Annotated[str | None, Option(help="Queries: FASTA file, or FILE:RECORD.")] = None,
    structure: Annotated[str | None, Option(help="Queries: PDB or mmCIF, or FILE:CHAIN.")] = None,
    index: Annotated[Path | None, Option("--index", "-i", help="Index to search.")] = None,
    structures: Annotated[Path | None, Option(help="Structures to search: folder or file.")] = None,
    sequences: Annotated[Path | None, Option(help="Sequences to search: FASTA, CSV, ...")] = None,
    top_k: Annotated[int, Option(min=1, help="Hits per query.")] = 5,
    explain: Annotated[bool, Option("--explain", help="Name the residues weighed most.")] = False,
    format_name: common.OutputFormat = "text",
    output: common.OutputFile = None,
    model: common.RetrievalModel = None,
    batch_size: Annotated[int, Option(min=1, help="Queries embedded together.")] = 8,
    device: common.Device = None,
    revision: common.Revision = None,
    trust_remote_code: common.RemoteCode = False,
) -> None:
    """Search; see `SEARCH_HELP`."""
    with one_line_errors() as skipped:
        from ..search import read_records

        _check_one_of("query", sequence=sequence, fasta=fasta, structure=structure)
        _check_one_of("place to search", index=index, structures=structures, sequences=sequences)
        invalid: list[Any] = []
        queries = _read_queries(sequence, fasta, structure, invalid)
        searched: dict[str, Any] = {"index": index}
        if index is None:
            place, kind = (structures, "structure") if structures else (sequences, "sequence")
            assert place is not None
            searched = {"candidates": list(read_records(place, invalid, kind))}
        skipped.report_records(invalid)
        if not queries:
            raise typer.Exit(2)
        if index is None and not searched["candidates"]:
            fail(f"{place} holds nothing that can be searched")
        loaded = load_model(model, "protalign", revision, device, trust_remote_code)
        pipe = _pipeline(loaded, batch_size=batch_size, **searched)
        skipped.report_records(pipe.invalid_candidates)
        results = pipe(iter(queries), top_k=top_k, explain=explain, on_error="report")

        def texts() -> Iterator[str]:
            yield HIT_FORMATS[format_name].head
            for query, hits in zip(queries, results, strict=True):
                if "error" in hits:
                    skipped.report(f"{query.id}: {hits['error']}")
                    continue
                yield HIT_FORMATS[format_name].render(query.id, len(query), hits)

        write(texts(), output)


def _check_one_of(what: str, **options: Any) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(f"--{name}" for name in options)
        fail(f"give one {what} of {names}; " + (" and ".join(given) or "none") + " is given")


def _read_queries(
    sequence: str | None, fasta: str | None, structure: str | None, invalid: list[Any]
) -> list[Protein]:
    """Read all records of a file, or the one that is named."""
    from ..models.protein import BACKBONE_ATOMS, read_protein
    from ..search import read_records

    if sequence is not None and "." in sequence and os.path.isfile(sequence):
        fail(f"--sequence {sequence} is a file; give it as --fasta or --structure")
    if sequence is not None:
        return [read_protein({"id": "query", "sequence": sequence}, "query")]
    place = fasta or structure or ""
    if not os.path.exists(place):  # FILE:RECORD
        return [read_protein(Path(place), "query", BACKBONE_ATOMS)]
    return list(read_records(place, invalid, "sequence" if fasta else "structure"))


def _pipeline(model: Any, **options: Any) -> Any:
    from ..models.pipeline_protein_retrieval import ProteinRetrievalPipeline

    logger = logging.getLogger(ProteinRetrievalPipeline.__module__)
    was, logger.disabled = logger.disabled, True  # what it would log is said in one line each
    try:
        return ProteinRetrievalPipeline(model=model, device=model.device, **options)
    finally:
        logger.disabled = was
