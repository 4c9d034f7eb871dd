"""`plasma-hf index`: proteins embedded once, to be searched many times."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_errors import fail, one_line_errors, report
from .cli_options import Device, RemoteCode, Residues, Revision

if TYPE_CHECKING:
    from .data.sequences import BadRecord
    from .search import IndexReport

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
        from .search import build_index, read_records

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
        from .search import add_records, read_records

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
        from .search import IndexHeader, remove_records

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
        from .search import IndexHeader

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
        from . import DEFAULT_RETRIEVAL_CHECKPOINT
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
    from .search import IndexHeader

    for record in done.bad:
        report(f"{record.id}: {record.reason}")
    replaced = f"{done.replaced} replaced, " if done.replaced else ""
    report(
        f"{done.embedded} embedded, {done.already_there} already there, {replaced}"
        f"{len(done.bad)} left out; {folder} holds {IndexHeader.read(folder).count}"
    )
    if done.bad:
        raise typer.Exit(2)
