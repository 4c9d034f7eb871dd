"""`plasma-hf align`: which residues of two proteins correspond."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..io.formats import FIELDS, FORMATS, AlignedPair, Format
from .common import (
    Device,
    OutputFile,
    OutputFormat,
    RemoteCode,
    Revision,
    Skipped,
    compilation_announced,
    fail,
    one_line_errors,
    write,
)
from .embed import load_embedder

if TYPE_CHECKING:
    from ..models.protein import Protein

ALIGN_HELP = f"""
Align proteins: which residues of A correspond to which of B.

A and B are each a sequence; a FASTA, PDB or mmCIF file, also .gz, with every record in it or the
one named as FILE:RECORD; or '-' for standard input, FASTA or one bare sequence per line. Every
protein of A is aligned with every one of B.

A record that cannot be used is reported on standard error, the rest is done, and the exit code
is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS
  plasma-hf align demo/serine_proteases.fasta:P00766 \\
      demo/serine_proteases.fasta:P00760 --plot plan.png
  plasma-hf align demo/serine_proteases.fasta demo/serine_proteases.fasta \\
      --format tsv --output all.tsv
  echo AYIAKQRQLSFVKSHFS | plasma-hf align - MKTAYIAKQRQISFVKSHFSRQ --format json

\b
Formats:
  text  each segment in rows, residues counted from 1
  json  one object per pair and line (JSON Lines): ids, lengths, and the result of the Python
        pipeline as it is, so residues are counted from 0 and ends are exclusive
  tsv   one line per segment, residues counted from 1, with the columns

\b
{chr(10).join(f"  {name:<16} {description}" for name, description in FIELDS.items())}
"""


def align(
    a: Annotated[str, typer.Argument(metavar="A", help="Sequence, file, or '-'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Sequence, file, or '-'.")],
    format_name: OutputFormat = "text",
    output: OutputFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Picture of the plan to write, .png, .svg or .pdf; for one pair alone."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a model; the bundled one by default.")
    ] = None,
    task_head: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Bundled head instead of --model: active_site, binding_site or motif.",
        ),
    ] = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs computed together.")] = 8,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Plan weight that aligns residues; the model's own."),
    ] = None,
    max_gap: Annotated[
        int, typer.Option(min=0, help="Residues a segment may leave out between two pairs.")
    ] = 10,
    min_pairs: Annotated[int, typer.Option(min=1, help="Pairs that make a segment.")] = 3,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Write pairs from this score only.")
    ] = 0.0,
) -> None:
    """Align proteins; see `ALIGN_HELP`."""
    with one_line_errors() as skipped, compilation_announced():
        from tqdm import tqdm

        from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

        sides = _read_sides(a, b, skipped)
        count = len(sides[0]) * len(sides[1])
        if not count:
            raise typer.Exit(2)
        if plot and count > 1:
            fail(f"--plot draws one pair, and these are {count}; name records, as in FILE:RECORD")
        if model and task_head:
            fail("--model and --task-head name two heads; give one of them")
        embedder, head = load_embedder(model, None, None, revision, device, trust_remote_code)
        assert head is not None  # a model was asked for
        pipe = ProteinAlignmentPipeline(
            model=head, processor=embedder.processor, device=head.device, task_head=task_head
        )
        results = pipe(
            product(*sides),  # no list: results then come one by one
            batch_size=batch_size,
            return_plan=plot is not None,
            on_error="report",
            threshold=threshold,
            max_gap=max_gap,
            min_pairs=min_pairs,
        )
        # Progress is shown on a terminal, and only where it does not mix with the results.
        mixed = output is None and sys.stdout.isatty()
        pairs = tqdm(
            zip(product(*sides), results, strict=True),
            total=count,
            unit="pair",
            disable=count == 1 or mixed or not sys.stderr.isatty(),
        )
        write(_texts(pairs, FORMATS[format_name], min_score, plot, skipped), output)


def _texts(
    pairs: Iterable[Any], form: Format, min_score: float, plot: Path | None, skipped: Skipped
) -> Iterator[str]:
    """Render results as they come, and draw the plan."""
    yield form.head
    for (query, candidate), result in pairs:
        if "error" in result:
            skipped.report(f"{query.id} and {candidate.id}: {result['error']}")
            continue
        if result["score"] >= min_score:
            yield form.render(AlignedPair(query, candidate, result))
        if plot:
            from ..io.plot import plot_plan

            plot_plan(result["plan"], result["segments"], query.id, candidate.id, plot)


def _read_sides(a: str, b: str, skipped: Skipped) -> list[list[Protein]]:
    """Read both sides, and say which records cannot be used."""
    from ..models.protein import Protein, clean_sequence

    if a == b == "-":
        fail("one of A and B can be '-', standard input; give the other as a sequence or a file")
    sides: list[list[Protein]] = [[], []]
    messages: dict[str, None] = {}  # each once, also where A and B are the same file
    for kept, value, name in zip(sides, (a, b), ("query", "candidate"), strict=True):
        for what, protein in _read_side(value, name):
            try:
                kept.append(Protein(protein.id, clean_sequence(protein.sequence or "", what)))
            except ValueError as error:
                messages[str(error)] = None
    for message in messages:
        skipped.report(message)
    return sides


def _read_side(value: str, side: str) -> Iterable[tuple[str, Protein]]:
    """Read proteins, unchecked, each with what to call it in a message."""
    from ..models.protein import Protein, looks_like_path, read_record, read_records

    if value == "-":
        return ((f"standard input: record {p.id!r}", p) for p in _parse(sys.stdin.read()))
    if looks_like_path(value) or os.path.isfile(value):
        records = read_records(value) if os.path.exists(value) else [read_record(value)]
        return ((f"{value}: record {p.id!r}", p) for p in records)
    return [(side, Protein(side, value))]


def _parse(text: str) -> list[Protein]:
    """Split FASTA into records, or else each line into a bare sequence."""
    from ..models.protein import Protein, parse_fasta

    if not text.strip():
        fail("standard input is empty; it takes FASTA or one sequence per line")
    if text.lstrip().startswith(">"):
        return list(parse_fasta(text.splitlines()))
    lines = enumerate(text.splitlines(), start=1)
    return [Protein(f"line{number}", line) for number, line in lines if line.strip()]
