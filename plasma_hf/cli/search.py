"""`plasma-hf index`: proteins embedded once, to be searched many times."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..io.formats import HIT_FIELDS as FIELDS
from ..io.formats import HIT_FORMATS as FORMATS
from .common import Device, RemoteCode, Residues, Revision, fail, one_line_errors, report

if TYPE_CHECKING:
    from ..io.sequences import BadRecord
    from ..models.protein import Protein
    from ..search import IndexReport


# torch and transformers are imported where they are needed: `--help` has no use for them.


index_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Embed structures or sequences once, and keep them to be searched.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class KindName(StrEnum):
    """What a record is, as typer takes a choice."""

    sequence = "sequence"
    structure = "structure"


BUILD_HELP = """
Build an index of structures or sequences, which `plasma-hf search` looks through.

Each INPUT is a folder with PDB or mmCIF files, one such file, or a FASTA, CSV, TSV, Parquet or JSON
Lines file with the columns id and sequence. Every chain of a structure is a record of its own.

A build that was stopped goes on when the same command is run again. The index knows the model that
made it and the file of each record; another model is refused.

A record that cannot be used is reported on standard error, the rest is done, and the exit code
is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf index build demo/serine_proteases.fasta --output proteases.index
  plasma-hf index build structures/ --output structures.index
  plasma-hf index build a.pdb.gz b.cif --output sequences.index --kind sequence
"""

ADD_HELP = """
Add records to an index.

A record that is there with the same content is passed over. Where its id stands for other content,
it is reported, or takes the place of that with --replace. INPUT is what `index build` takes.

\b
Example:
  plasma-hf index add more.pdb --index structures.index
"""

REMOVE_HELP = """
Take records out of an index, by their ids.

\b
Example:
  plasma-hf index remove 1abc.pdb:A 1abc.pdb:B --index structures.index
"""

INFO_HELP = """
Say which model made an index, and what is in it.

\b
Example:
  plasma-hf index info structures.index
"""

Folder = Annotated[Path, typer.Option("--index", "-i", help="Folder of the index.")]
Inputs = Annotated[list[Path], typer.Argument(metavar="INPUT", help="Files and folders.")]
Model = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a ProtAlign model; the bundled by default.")
]
Kind = Annotated[
    KindName | None,
    typer.Option(help="Take the sequences of structures, or refuse what has no atoms."),
]


@index_app.command(help=BUILD_HELP)
def build(
    inputs: Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the index, made if need be.")
    ],
    model: Model = None,
    kind: Kind = None,
    factory: Annotated[
        str | None,
        typer.Option(help="faiss index factory for approximate search, as IVF256,Flat."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Take the place of another, finished index.")
    ] = False,
    residues_per_batch: Residues = 2048,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Build an index; see `BUILD_HELP`."""
    with one_line_errors():
        from ..search import build_index, read_records

        bad: list[BadRecord] = []
        done = build_index(
            load_retrieval_model(model, revision, device, trust_remote_code),
            read_records(inputs, bad, kind),
            output,
            bad=bad,
            factory=factory,
            overwrite=overwrite,
            residues_per_batch=residues_per_batch,
            progress=sys.stderr.isatty(),
        )
        _say(done, output)


@index_app.command(help=ADD_HELP)
def add(
    inputs: Inputs,
    index: Folder,
    model: Model = None,
    kind: Kind = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let new content take the place of old.")
    ] = False,
    residues_per_batch: Residues = 2048,
    device: Device = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Add records; see `ADD_HELP`."""
    with one_line_errors():
        from ..search import add_records, read_records

        bad: list[BadRecord] = []
        done = add_records(
            index,
            load_retrieval_model(model, revision, device, trust_remote_code),
            read_records(inputs, bad, kind),
            bad=bad,
            replace_changed=replace,
            residues_per_batch=residues_per_batch,
            progress=sys.stderr.isatty(),
        )
        _say(done, index)


@index_app.command(help=REMOVE_HELP)
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Records to take out.")],
    index: Folder,
) -> None:
    """Take records out; see `REMOVE_HELP`."""
    with one_line_errors():
        from ..search import IndexHeader, remove_records

        unknown = remove_records(index, ids)
        for name in unknown:
            report(f"{index} holds no record {name!r}")
        taken = len(set(ids)) - len(unknown)
        report(f"{taken} taken out; {index} holds {IndexHeader.read(index).count}")
    if unknown:
        raise typer.Exit(2)


@index_app.command(help=INFO_HELP)
def info(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")],
) -> None:
    """Describe an index; see `INFO_HELP`."""
    with one_line_errors():
        from ..search import IndexHeader

        header = IndexHeader.read(index)
    kinds = [f"{count} {name}{'s' * (count > 1)}" for name, count in header.kinds.items()]
    rows = {
        "model": header.made_by.model,
        "weights": header.made_by.weights,
        "recipe": header.made_by.recipe,
        "records": f"{header.count}" + (f" ({', '.join(kinds)})" if kinds else ""),
        "width": header.width,
        "search": f"approximate ({header.factory})" if header.factory else "exact",
        "written by": f"plasma_hf {header.written_by}",
    }
    for name, value in rows.items():
        typer.echo(f"{name:<11} {value}")


def load_retrieval_model(
    model: str | None, revision: str | None, device: str | None, trust_remote_code: bool
) -> Any:
    """Load a model that embeds sequences and structures into one space."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if model is None:
        from .. import DEFAULT_RETRIEVAL_CHECKPOINT
    name = model or DEFAULT_RETRIEVAL_CHECKPOINT
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        loaded = AutoModel.from_pretrained(name, **options)
    except (ValueError, OSError, ImportError) as error:
        fail(f"--model {name} cannot be loaded; give a folder or Hub id of ProtAlign. {error}")
    if loaded.config.model_type != "protalign":
        fail(f"--model {name} is a {loaded.config.model_type} model; give a ProtAlign model")
    return loaded.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _say(done: IndexReport, folder: Path) -> None:
    """Say what was done; exit code 2 where it was not everything."""
    from ..search import IndexHeader

    for record in done.bad:
        report(f"{record.id}: {record.reason}")
    replaced = f"{done.replaced} replaced, " if done.replaced else ""
    report(
        f"{done.embedded} embedded, {done.already_there} already there, {replaced}"
        f"{len(done.bad)} left out; {folder} holds {IndexHeader.read(folder).count}"
    )
    if done.bad:
        raise typer.Exit(2)


# --- `plasma-hf search`: the proteins nearest to a sequence or a structure.


# torch and transformers are imported where they are needed: `--help` has no use for them.


class HitFormatName(StrEnum):
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
        HitFormatName, typer.Option("--format", "-f", help="What to write.")
    ] = HitFormatName.text,
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
) -> list[Protein]:
    """Read all records of a file, or the one that is named."""
    from ..models.protein import BACKBONE_ATOMS, read_protein
    from ..search import read_records

    if sequence is not None and "." in sequence and Path(sequence).is_file():
        fail(f"--sequence {sequence} is a file; give it as --fasta or --structure")
    if sequence is not None:
        return [read_protein({"id": "query", "sequence": sequence}, "query")]
    place = fasta or structure or ""
    kind = "sequence" if fasta else "structure"
    if not Path(place).exists():
        return [read_protein(Path(place), "query", BACKBONE_ATOMS)]
    return list(read_records([place], bad, kind))


def _read_candidates(
    structures: Path | None, sequences: Path | None, bad: list[BadRecord]
) -> list[Protein]:
    from ..search import read_records

    place, kind = (structures, "structure") if structures else (sequences, "sequence")
    assert place is not None
    candidates = list(read_records([place], bad, kind))
    if not candidates:
        _reported(bad)
        fail(f"{place} holds nothing that can be searched")
    return candidates


def _pipeline(model: Any, batch_size: int, options: dict[str, Any], bad: list[BadRecord]) -> Any:
    import logging

    from ..models.pipeline_protein_retrieval import ProteinRetrievalPipeline

    logger = logging.getLogger(ProteinRetrievalPipeline.__module__)
    was, logger.disabled = logger.disabled, True  # what it would log is said in one line each
    try:
        pipe = ProteinRetrievalPipeline(
            model=model, device=model.device, batch_size=batch_size, **options
        )
    finally:
        logger.disabled = was
    bad += pipe.invalid_candidates
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


def _write(results: Iterable[tuple[Protein, Any]], format_name: str, file: TextIO) -> bool:
    """Write results as they come; say whether every query has one."""
    complete = True
    form = FORMATS[format_name]
    file.write(form.head)
    for query, hits in results:
        if "error" in hits:
            report(f"{query.id}: {hits['error']}")
            complete = False
            continue
        file.write(form.render(query.id, len(query), hits))
        file.flush()
    return complete
