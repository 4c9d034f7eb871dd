"""`plasma-hf align`: which residues of two proteins correspond."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from ..io.formats import FIELDS, FORMATS, AlignedPair, Format
from . import common
from .common import EXIT_CODE, Skipped, compilation_announced, fail, one_line_errors, write
from .embed import load_embedder

if TYPE_CHECKING:
    from ..models.protein import Protein

ALIGN_HELP = f"""Align proteins: which residues of A correspond to which of B.

A and B are each a sequence; a FASTA, PDB or mmCIF file, also gzipped, with every record in it or
the one named as FILE:RECORD; or '-' for standard input, such a file or one bare sequence per line.
Every protein of A is aligned with every one of B.

{EXIT_CODE}

\b
Examples:
  plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS
  plasma-hf align demo/serine_proteases.fasta:P00766 \\
      demo/serine_proteases.fasta:P00760 --plot plan.png
  plasma-hf align demo/serine_proteases.fasta demo/serine_proteases.fasta \\
      --format tsv --output all.tsv
  echo AYIAKQRQLSFVKSHFS | plasma-hf align - MKTAYIAKQRQISFVKSHFSRQ --format json

\b
With a language model, which is downloaded at first use (docs/backbones.md lists all):
  plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS --backbone esm2-8m

\b
Formats:
  text  each segment in rows, residues counted from 1
  json  one object per pair and line (JSON Lines): ids, lengths, and the result of the Python
        pipeline as it is, so residues are counted from 0 and ends are exclusive; bits, p_value
        and evalue, of the pair and of each segment, are null where they are not known
  tsv   one line per segment, residues counted from 1, with the columns

\b
{chr(10).join(f"  {name:<16} {description}" for name, description in FIELDS.items())}"""


def align(
    a: Annotated[str, Argument(metavar="A", help="Sequence, file, or '-'.")],
    b: Annotated[str, Argument(metavar="B", help="Sequence, file, or '-'.")],
    format_name: common.OutputFormat = "text",
    output: common.OutputFile = None,
    plot: Annotated[Path | None, Option(help="Draw one pair's plan: .png, .svg or .pdf.")] = None,
    model: common.AlignmentModel = None,
    backbone: common.BackboneName = None,
    recipe: common.Recipe = None,
    task_head: Annotated[str | None, Option(help="Head: active_site, binding_site, motif.")] = None,
    revision: common.Revision = None,
    trust_remote_code: common.RemoteCode = False,
    device: common.Device = None,
    batch_size: Annotated[int, Option(min=1, help="Pairs computed together.")] = 8,
    threshold: Annotated[
        float | None, Option(min=0, max=1, help="Plan weight that aligns; the model's by default.")
    ] = None,
    min_pairs: Annotated[int, Option(min=1, help="Pairs that make a segment.")] = 3,
    max_gap: Annotated[
        int | None, Option(min=0, help="Most residues between its pairs; 30, or 10 of a plan.")
    ] = None,
    min_score: Annotated[float, Option(min=0, max=1, help="Least score to write.")] = 0.0,
    evalue: Annotated[float, Option(min=0, help="Highest E-value or p-value to show.")] = 0.01,
    max_hits: Annotated[int, Option(min=1, help="Most segments that are looked for.")] = 10,
    database_size: Annotated[
        int | None,
        Option(min=1, help="Proteins E-values count; by default B's, if it has several."),
    ] = None,
) -> None:
    """Align proteins; see `ALIGN_HELP`."""
    with one_line_errors() as skipped, compilation_announced():
        from tqdm import tqdm

        from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

        if a == b == "-":
            fail("one of A and B can be '-', standard input; give the other as sequence or file")
        messages: dict[str, None] = {}  # each once, also where A and B are the same file
        sides = [_read_side(a, "query", messages), _read_side(b, "candidate", messages)]
        for message in messages:
            skipped.report(message)
        count = len(sides[0]) * len(sides[1])
        if not count:
            raise typer.Exit(2)
        if plot and count > 1:
            fail(f"--plot draws one pair, and these are {count}; name records, as in FILE:RECORD")
        if model and task_head:
            fail("--model and --task-head name two heads; give one of them")
        if backbone and task_head:
            fail("--task-head brings its own backbone; give --task-head or --backbone")
        embedder, head = load_embedder(
            model, backbone, recipe, revision, device, trust_remote_code, with_head=True
        )
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
            evalue=evalue,
            max_hits=max_hits,
            database_size=database_size or (len(sides[1]) if len(sides[1]) > 1 else None),
        )
        # Progress is shown on a terminal, and only where it does not mix with the results.
        mixed = output is None and sys.stdout.isatty()
        pairs = tqdm(
            zip(product(*sides), results, strict=True),
            total=count,
            unit="pair",
            disable=count == 1 or mixed or not sys.stderr.isatty(),
        )
        write(_texts(pairs, FORMATS[format_name], min_score, evalue, plot, skipped), output)


def _texts(
    pairs: Iterable[Any],
    form: Format,
    min_score: float,
    evalue: float,
    plot: Path | None,
    skipped: Skipped,
) -> Iterator[str]:
    """Render results as they come, and draw the plan."""
    yield form.head
    for (query, candidate), result in pairs:
        if "error" in result:
            skipped.report(f"{query.id} and {candidate.id}: {result['error']}")
            continue
        if result["score"] >= min_score:
            yield form.render(AlignedPair(query, candidate, result, evalue))
        if plot:
            from ..io.plot import plot_plan

            plot_plan(result["plan"], result["segments"], query.id, candidate.id, plot)


def _read_side(value: str, side: str, messages: dict[str, None]) -> list[Protein]:
    """Read what can be used, and say in `messages` what cannot."""
    from ..models.protein import looks_like_path, read_protein, read_records, split_record

    name = f"{value}: record"
    records: Sequence[Any]
    if value == "-":
        name, records = "standard input: record", _read_standard_input()
    elif looks_like_path(value) or os.path.isfile(split_record(value)[0]):
        records = read_records(value)
    else:
        name, records = side, [value]
    proteins = []
    for record in records:
        try:
            proteins.append(read_protein(record, name))
        except ValueError as error:
            messages[str(error)] = None
    return proteins


def _read_standard_input() -> list[Protein]:
    """Read what a file may hold, or else each line as a bare sequence."""
    from ..io.structures import begins_as_structure
    from ..models.protein import Protein, is_fasta, open_text, read_records

    with TemporaryDirectory() as folder:
        file = Path(folder, "stdin")
        file.write_bytes(sys.stdin.buffer.read())
        try:
            if begins_as_structure(file) or is_fasta(file):
                return read_records(file)
            with open_text(file) as lines:
                text = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        except (ValueError, OSError) as error:
            fail(str(error).replace(str(file), "standard input"))
    if not text:
        fail("standard input is empty; it takes FASTA or one sequence per line")
    return [Protein(f"line{number}", line) for number, line in text if line[0] != ";"]
