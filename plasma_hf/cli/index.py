"""`plasma-hf index`: proteins embedded once, to be searched many times."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from . import common
from .common import Loading, Skipped, group, load_model, report, verb

index_app = group("Embed structures or sequences once, and keep them to be searched.")

Folder = Annotated[Path, Option("--index", "-i", help="Folder of the index.")]
Inputs = Annotated[list[Path], Argument(metavar="INPUT", help="Files and folders.")]
Kind = Annotated[
    Literal["sequence", "structure"] | None,
    Option(help="Take the sequences of structures, or refuse what has no atoms."),
]


@index_app.command()
@verb()
def build(
    skipped: Skipped,
    inputs: Inputs,
    output: Annotated[Path, Option("--output", "-o", help="Folder of the index, made if need be.")],
    kind: Kind = None,
    factory: Annotated[str | None, Option(help="faiss index factory, as IVF256,Flat.")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a finished index.")] = False,
    residues_per_batch: common.Residues = 2048,
    *,
    loading: Loading,
) -> None:
    """Build an index of structures or sequences, which `plasma-hf search` looks through.

    Each INPUT is a folder with PDB or mmCIF files, one such file, or a FASTA, CSV, TSV, Parquet or
    JSON Lines file with the columns id and sequence. Every chain of a structure is a record of its
    own.

    A build that was stopped goes on when the same command is run again. The index knows the model
    that made it and the file of each record; another model is refused.

    Examples:
      plasma-hf index build demo/serine_proteases.fasta --output proteases.index
      plasma-hf index build structures/ --output structures.index
      plasma-hf index build a.pdb.gz b.cif --output sequences.index --kind sequence
    """
    from ..search import build_index

    def made(model: Any, records: Any, **options: Any) -> Any:
        return build_index(model, records, output, factory=factory, overwrite=overwrite, **options)

    _embed(made, loading, inputs, kind, output, residues_per_batch, skipped)


@index_app.command()
@verb()
def add(
    skipped: Skipped,
    inputs: Inputs,
    index: Folder,
    kind: Kind = None,
    replace: Annotated[bool, Option("--replace", help="Let new content replace old.")] = False,
    residues_per_batch: common.Residues = 2048,
    *,
    loading: Loading,
) -> None:
    """Add records to an index.

    A record that is there with the same content stays as it is. Where its id stands for other
    content, it is reported, or takes the place of that with --replace. INPUT is what `index build`
    takes.

    Example:
      plasma-hf index add more.pdb --index structures.index
    """
    from ..search import add_records

    made = partial(add_records, index, replace_changed=replace)
    _embed(made, loading, inputs, kind, index, residues_per_batch, skipped)


def _embed(
    made: Callable[..., Any],
    loading: Loading,
    inputs: list[Path],
    kind: str | None,
    folder: Path,
    residues_per_batch: int,
    skipped: Skipped,
) -> None:
    """Build an index or add to it, and say what was done."""
    from ..search import IndexHeader, read_records

    invalid: list[Any] = []
    done = made(
        load_model(loading, "protalign"),
        read_records(inputs, invalid, kind),
        residues_per_batch=residues_per_batch,
        bad=invalid,
        progress=sys.stderr.isatty(),
    )
    skipped.report_records(done.bad)
    replaced = f"{done.replaced} replaced, " if done.replaced else ""
    report(
        f"{done.embedded} embedded, {done.already_there} already there, {replaced}"
        f"{len(done.bad)} left out; {folder} holds {IndexHeader.read(folder).count}"
    )


@index_app.command()
@verb()
def remove(
    skipped: Skipped,
    ids: Annotated[list[str], Argument(metavar="ID", help="Records to take out.")],
    index: Folder,
) -> None:
    """Take records out of an index, by their ids.

    Example:
      plasma-hf index remove 1abc.pdb:A 1abc.pdb:B --index structures.index
    """
    from ..search import IndexHeader, remove_records

    unknown = remove_records(index, ids)
    for name in unknown:
        skipped.report(f"{index} holds no record {name!r}")
    taken = len(set(ids)) - len(unknown)
    report(f"{taken} taken out; {index} holds {IndexHeader.read(index).count}")


@index_app.command()
@verb()
def info(
    skipped: Skipped, index: Annotated[Path, Argument(metavar="INDEX", help="Folder of the index.")]
) -> None:
    """Say which model made an index, and what is in it.

    Example:
      plasma-hf index info structures.index
    """
    from ..search import IndexHeader

    header = IndexHeader.read(index)
    kinds = [f"{count} {name}{'s' * (count > 1)}" for name, count in header.kinds.items()]
    rows = {
        "model": header.made_by.model,
        "weights": header.made_by.weights,
        "input format": header.made_by.recipe,
        "records": f"{header.count}" + (f" ({', '.join(kinds)})" if kinds else ""),
        "width": header.width,
        "search": f"approximate ({header.factory})" if header.factory else "exact",
        "written by": f"plasma_hf {header.written_by}",
    }
    for name, value in rows.items():
        typer.echo(f"{name:<13} {value}")
