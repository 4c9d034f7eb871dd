"""`plasma-hf search`: the proteins nearest to a sequence or a structure."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from ..io.formats import HIT_FIELDS, HIT_FORMATS
from . import common
from .align import Writing
from .common import Computing, Skipped, fail, load_model, verb, write
from .database import search_database

if TYPE_CHECKING:
    from ..models.protein import Protein

SIGNIFICANT = 0.01


@verb(columns="\n".join(f"  {name:<14} {told}" for name, told in HIT_FIELDS.items()))
def search(
    skipped: Skipped,
    queries: Annotated[str | None, Argument(help="Sequence or file of proteins.")] = None,
    database: Annotated[Path | None, Argument(help="Database, or file or folder.")] = None,
    *,
    sequence: Annotated[str | None, Option(help="Query: one-letter residues.")] = None,
    fasta: Annotated[str | None, Option(help="Queries: FASTA file, or FILE:RECORD.")] = None,
    structure: Annotated[str | None, Option(help="Queries: PDB or mmCIF, or FILE:CHAIN.")] = None,
    index: Annotated[Path | None, Option("--index", "-i", help="Index to search.")] = None,
    structures: Annotated[Path | None, Option(help="Structures to search: folder or file.")] = None,
    sequences: Annotated[Path | None, Option(help="Sequences to search: FASTA, CSV, ...")] = None,
    top_k: Annotated[
        int | None, Option(min=1, help="Hits per query; 5 of vectors, else all by default.")
    ] = None,
    evalue: Annotated[float, Option(min=0, help="Highest E-value to show.")] = SIGNIFICANT,
    sensitivity: Annotated[
        Literal["fast", "default", "more", "all"], Option(help="How many candidates are aligned.")
    ] = "default",
    iterations: Annotated[
        int | None, Option(min=1, help="Searches: 2, the second by a profile; with --backbone 1.")
    ] = None,
    database_size: Annotated[
        int | None, Option(min=1, help="Proteins that E-values count; the database's by default.")
    ] = None,
    explain: Annotated[bool, Option("--explain", help="Align the query with each hit.")] = False,
    ray: Annotated[
        int | None, Option(min=1, metavar="WORKERS", help="Search on a Ray cluster.")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Queries embedded together.")] = 8,
    writing: Writing,
    computing: Computing,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    """Search proteins: residue by residue, or by their vectors.

    `plasma-hf search QUERIES DATABASE` aligns each query with the best candidates of a database,
    and ranks what is significant by E-value. QUERIES are what `plasma-hf align` takes, DATABASE a
    folder of `plasma-hf database build`, or a file of proteins or a folder of structures as it is.
    The formats are those of `plasma-hf align`. --sensitivity says how many candidates of a first
    stage (Smith-Waterman) are compared: fast 150, default 500, more 2000, or all. Significant hits
    make a profile of the query, by which it is searched again: --iterations, 2 by default; 1
    compares the query alone, and is the default with --backbone, where E-values of profiles are not
    known to hold. The processes of torchrun share the queries, and --ray has a Ray cluster search
    the parts of a DATABASE; hits stay the same (under torchrun what is skipped is reported, but
    does not set the exit code).

    With --index, --structures or --sequences the structures or sequences are found whose vectors
    are nearest to a query (ProtAlign). The query is then --sequence, --fasta (FILE or FILE:RECORD)
    or --structure (FILE or FILE:CHAIN). What is searched is an index that `plasma-hf index build`
    made; or, embedded on the spot, a folder of structure files or a file of sequences. A query of
    one kind finds records of either. --explain aligns the query with the 20 nearest, by letters or
    as --backbone says (3di compares structures): what is significant comes first, by E-value.

    Examples:
      plasma-hf search demo/serine_proteases.fasta demo/structures --format m8
      plasma-hf search queries.fasta proteins --top-k 10 --output hits.m8.gz --resume
      torchrun --nproc-per-node 4 --no-python plasma-hf search queries.fasta proteins -o hits.m8
      plasma-hf search --sequence MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ --structures structures/
      plasma-hf search --fasta demo/serine_proteases.fasta --index proteases.index --format tsv
      plasma-hf search --structure 1abc.pdb:A --sequences demo/serine_proteases.fasta --explain

    Formats of nearest vectors:
      text  a table for each query
      json  one object per query and line (JSON Lines): id and length of the query, and the result
            of the Python pipeline as it is
      tsv   one line per hit, with the columns

    {columns}
    """
    from ..search import read_records

    form, output, backbone = writing.form, writing.output, computing.backbone
    common.check_output(output, queries, database, fasta, structure, structures, sequences)
    if queries is not None:
        others = (explain, sequence, fasta, structure, index, structures, sequences)
        inside = _database_of(database, others)
        options: dict[str, Any] = {"top_k": top_k, "evalue": evalue, "sensitivity": sensitivity}
        options |= {"iterations": iterations, "database_size": database_size}
        options["batch_size"] = batch_size
        return search_database(queries, inside, writing, computing, ray, skipped, options, quiet)
    of_residues = (writing.columns, writing.resume, computing.store, ray, iterations, database_size)
    changed = sensitivity != "default", evalue != SIGNIFICANT, backbone and not explain
    _check_vectors(form, *of_residues, *changed)
    _check_one_of("query", sequence=sequence, fasta=fasta, structure=structure)
    _check_one_of("place to search", index=index, structures=structures, sequences=sequences)
    invalid: list[Any] = []
    proteins = _read_queries(sequence, fasta, structure, invalid)
    searched: dict[str, Any] = {"index": index}
    if index is None:
        place, kind = (structures, "structure") if structures else (sequences, "sequence")
        assert place is not None
        searched = {"candidates": list(read_records(place, invalid, kind))}
    skipped.report_records(invalid)
    if not proteins:
        raise typer.Exit(2)
    if index is None and not searched["candidates"]:
        fail(f"{place} holds nothing that can be searched")
    pipe = _pipeline(load_model(computing, "protalign"), batch_size=batch_size, **searched)
    skipped.report_records(pipe.invalid_candidates)
    aligning = replace(computing, model=None).load() if backbone else explain
    results = pipe(iter(proteins), top_k=top_k or 5, explain=aligning, on_error="report")

    def texts() -> Iterator[str]:
        yield HIT_FORMATS[form].head
        for query, hits in zip(proteins, results, strict=True):
            if "error" in hits:
                skipped.report(f"{query.id}: {hits['error']}")
                continue
            yield HIT_FORMATS[form].render(query.id, len(query), hits)

    write(texts(), output)


def _database_of(database: Path | None, others: tuple[Any, ...]) -> Path:
    if database is None or any(others):
        fail("give QUERIES and DATABASE, or options such as --fasta, --index and --explain")
    return database


def _check_vectors(form: str, *of_residues: Any) -> None:
    if form not in HIT_FORMATS:
        fail(f"vectors have no {form}; give --format text, json or tsv")
    if any(of_residues):
        fail(
            "--columns, --resume, --store, --ray, --iterations, --database-size, --sensitivity "
            "and --evalue go with QUERIES and DATABASE, --backbone also with --explain"
        )


def _check_one_of(what: str, **options: Any) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = ", ".join(f"--{name}" for name in options)
        told = " and ".join(given) or "none"
        fail(f"give QUERIES and DATABASE, or one {what} of {names}; {told} is given")


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
