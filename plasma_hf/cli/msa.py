"""`plasma-hf msa`: many proteins aligned with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from . import common
from .align import read_side
from .common import Computing, Skipped, fail, report, verb, write


@verb()
def msa(
    skipped: Skipped,
    file: Annotated[str, Argument(metavar="FILE", help="Proteins.")],
    add: Annotated[Path | None, Option(help="Alignment that they are added to.")] = None,
    format_name: Annotated[
        Literal["fasta", "a3m", "stockholm", "clustal"] | None,
        Option("--format", "-f", help="What to write; fasta, or what --output ends in."),
    ] = None,
    output: common.OutputFile = None,
    *,
    computing: Computing,
    quiet: common.Quiet = False,
) -> None:
    """Align many proteins with each other.

    FILE has them: FASTA, or structures, of which the sequences are taken. The first sixty are
    aligned together, further ones one by one with these. --add takes an alignment (aligned FASTA or
    A3M), whose columns stay, and aligns the proteins of FILE with it one by one.

    Examples:
      plasma-hf msa family.fasta --output family.a3m
      plasma-hf msa new.fasta --add family.a3m --format stockholm
    """
    from ..models.alignment_result import format_of
    from ..multiple import FORMATS, MultipleAlignment, align_many

    common.check_output(output, file, add)
    proteins = read_side(file, "protein", skipped)
    ending = format_of(str(output or ""))
    form = format_name or (ending if ending in FORMATS else "fasta")
    least = 1 if add else 2
    if len(proteins) < least:
        fail(f"{file} has {len(proteins)} proteins that can be used; give {least} at least")
    align = computing.load()
    if add is None:
        found = align_many(proteins, align)
    else:
        found = MultipleAlignment.read(add).extend(proteins, align)
    if not quiet:
        report(f"{len(found.rows)} proteins in {len(found.rows[0])} columns")
    if renamed := sorted(set(found.names) - {"_".join(one.id.split()) for one in found.proteins}):
        report(f"ids that come again are written as {', '.join(renamed)}")
    write([found.to_string(form)], output)
