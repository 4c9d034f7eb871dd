"""`plasma-hf`: the package from the shell. A verb reads, calls the library, and writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..io.formats import FIELDS, FORMATS, AlignedPair, Format
from .common import Device, EvaluateGroup, RemoteCode, Revision, fail, one_line_errors, report
from .embed import EMBED_HELP, embed
from .evaluate import EVALUATE_HELP, EVALUATE_PROTALIGN_HELP, evaluate, evaluate_protalign
from .search import SEARCH_HELP, index_app, search
from .train import (
    TRAIN_ENCODER_HELP,
    TRAIN_PROTALIGN_HELP,
    train_app,
    train_encoder,
    train_protalign,
)

if TYPE_CHECKING:
    from ..models.protein import Protein


# torch and transformers are imported inside the verbs: `--help` has no use for them.


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class FormatName(StrEnum):
    """The keys of `FORMATS`, as typer takes a choice."""

    text = "text"
    json = "json"
    tsv = "tsv"


ALIGN_HELP = f"""
Align proteins: which residues of A correspond to which of B.

A and B are each a sequence; a FASTA, PDB or mmCIF file, also .gz, with every record in it or the
one named as FILE:RECORD; or '-' for standard input, FASTA or one bare sequence a line. Every
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
  json  one object a pair and line (JSON Lines): ids, lengths, and the result of the Python
        pipeline as it is, so residues are counted from 0 and ends are exclusive
  tsv   one line a segment, residues counted from 1, with the columns

\b
{chr(10).join(f"  {name:<16} {description}" for name, description in FIELDS.items())}
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"plasma-hf {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Align proteins residue by residue."""


@app.command(help=ALIGN_HELP)
def align(
    a: Annotated[str, typer.Argument(metavar="A", help="Sequence, file, or '-'.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Sequence, file, or '-'.")],
    format_name: Annotated[
        FormatName, typer.Option("--format", "-f", help="What to write.")
    ] = FormatName.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of the screen.")
    ] = None,
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
    with one_line_errors():
        sides, complete = _read_sides(a, b)
        count = len(sides[0]) * len(sides[1])
        if not count:
            raise typer.Exit(2)
        if plot and count > 1:
            fail(f"--plot draws one pair, and these are {count}; name records, as in FILE:RECORD")
        if model and task_head:
            fail("--model and --task-head name two heads; give one of them")
        options = {"revision": revision, "device": device, "trust_remote_code": trust_remote_code}
        if task_head:
            options["task_head"] = task_head
        results = _load_pipeline(model, options)(
            product(*sides),  # no list: results then come one by one
            batch_size=batch_size,
            return_plan=plot is not None,
            on_error="report",
            threshold=threshold,
            max_gap=max_gap,
            min_pairs=min_pairs,
        )
        with _opened(output) as file:
            pairs = _with_progress(zip(product(*sides), results, strict=True), count, file)
            complete &= _write(pairs, FORMATS[format_name], file, min_score, plot)
    if not complete:
        raise typer.Exit(2)


evaluate_app = typer.Typer(
    cls=EvaluateGroup,
    no_args_is_help=True,
    help="Evaluate models; without a name it is PLASMA.",
    rich_markup_mode=None,
    add_completion=False,
)
evaluate_app.command("plasma", help=EVALUATE_HELP)(evaluate)
evaluate_app.command("protalign", help=EVALUATE_PROTALIGN_HELP)(evaluate_protalign)
train_app.command("encoder", help=TRAIN_ENCODER_HELP)(train_encoder)
train_app.command("protalign", help=TRAIN_PROTALIGN_HELP)(train_protalign)
app.command(help=EMBED_HELP)(embed)
app.command(help=SEARCH_HELP)(search)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(index_app, name="index")


def _read_sides(a: str, b: str) -> tuple[list[list[Protein]], bool]:
    """Read both sides; say which records cannot be used, and whether all can."""
    if a == b == "-":
        fail("one of A and B can be '-', standard input; give the other as a sequence or a file")
    complaints: dict[str, None] = {}  # each once, also where A and B are the same file
    sides = [
        list(_usable(_read_side(value, side), complaints))
        for value, side in ((a, "query"), (b, "candidate"))
    ]
    for complaint in complaints:
        report(complaint)
    return sides, not complaints


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
        fail("standard input is empty; it takes FASTA or one sequence a line")
    if text.lstrip().startswith(">"):
        return list(parse_fasta(text.splitlines()))
    lines = enumerate(text.splitlines(), start=1)
    return [Protein(f"line{number}", line) for number, line in lines if line.strip()]


def _usable(named: Iterable[tuple[str, Protein]], complaints: dict[str, None]) -> Iterator[Protein]:
    from ..models.protein import Protein, clean_sequence

    for name, protein in named:
        try:
            yield Protein(protein.id, clean_sequence(protein.sequence or "", name))
        except ValueError as error:
            complaints[str(error)] = None


def _load_pipeline(model: str | None, options: dict[str, Any]) -> Any:
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    build: Any = pipeline  # its overloads list the tasks of transformers alone
    try:
        pipe = build("protein-alignment", model=model, **options)
    except (ValueError, OSError, ImportError) as error:
        if task := options.get("task_head"):
            fail(f"--task-head {task} cannot be loaded. {error}")
        given = f"--model {model}" if model else "the bundled model"
        fail(f"{given} cannot be loaded; give a folder or a Hub id of a PLASMA model. {error}")
    if pipe.model.config.model_type != "plasma":
        fail(f"--model {model} is a {pipe.model.config.model_type} model; give a PLASMA model")
    if pipe.model.backbone is None or pipe.processor is None:
        fail(
            f"--model {model} is a head that takes residue embeddings; give a model saved together "
            "with its backbone and processor"
        )
    return pipe


def _opened(output: Path | None) -> AbstractContextManager[TextIO]:
    return output.open("w", encoding="utf-8", newline="") if output else nullcontext(sys.stdout)


def _with_progress(pairs: Iterator[Any], count: int, file: TextIO) -> Iterable[Any]:
    """Show progress where somebody watches, and where it does not mix with the results."""
    from tqdm import tqdm

    quiet = count == 1 or file.isatty() or not sys.stderr.isatty()
    return tqdm(pairs, total=count, unit="pair", disable=quiet)


def _write(
    pairs: Iterable[Any], form: Format, file: TextIO, min_score: float, plot: Path | None
) -> bool:
    """Write results as they come; say whether every pair has one."""
    complete = True
    file.write(form.head)
    for (query, candidate), result in pairs:
        if "error" in result:
            report(f"{query.id} and {candidate.id}: {result['error']}")
            complete = False
            continue
        if result["score"] >= min_score:
            file.write(form.render(AlignedPair(query, candidate, result)))
            file.flush()
        if plot:
            from ..io.plot import plot_plan

            plot_plan(result["plan"], result["segments"], query.id, candidate.id, plot)
    return complete
