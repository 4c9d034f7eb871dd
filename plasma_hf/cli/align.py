"""`plasma-hf align`: which residues of two proteins correspond."""

from __future__ import annotations

import hashlib
import heapq
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product, tee
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from . import common
from .common import Computing, Output, Skipped, fail, report, verb

if TYPE_CHECKING:
    from ..io.sequences import OnInvalid
    from ..models.alignment_result import AlignmentResult
    from ..models.protein import Protein

ONE = "name records, as in FILE:RECORD"
AlignmentFormat = Literal["text", "tsv", "json", "m8", "a3m", "fasta", "stockholm", "clustal"]

FIELDS = {
    "query": "id of the query",
    "candidate": "id of the candidate",
    "score": "score of the pair, 0 to 1",
    "bits": "what the pair has in common; empty, as the next two, where not known",
    "p_value": "chance that two unrelated proteins of these lengths reach as much",
    "evalue": "so many proteins of the database do by chance; empty if it has no size",
    "segment": "number of the segment, from 1; empty, as the rest, if there is none",
    "segment_score": "score of the segment",
    "segment_bits": "as bits, of what is left without the segments before",
    "segment_p_value": "its p-value",
    "segment_evalue": "its E-value",
    "query_start": "first aligned query residue, from 1",
    "query_end": "last aligned query residue, included",
    "candidate_start": "first aligned candidate residue, from 1",
    "candidate_end": "last aligned candidate residue, included",
    "pairs": "aligned residue pairs",
    "identity": "share of them with the same letter",
    "query_residues": "first and last by the authors' numbers, A:16-A:245",
    "candidate_residues": "the same of the candidate",
    "iteration": "of a search of a database that found it; only by --columns",
    "residue_pairs": "each as query:candidate:weight, from 1; only by --columns",
}
"""Columns of "tsv", and what they hold."""


@dataclass(frozen=True)
class Writing:
    """Options that say how alignments are written, and where."""

    format_name: Annotated[
        AlignmentFormat | None,
        Option("--format", "-f", help="What to write; text, or what --output ends in."),
    ] = None
    columns: Annotated[str | None, Option(help="Columns of m8 or tsv, with commas.")] = None
    output: common.OutputFile = None
    resume: Annotated[bool, Option("--resume", help="Go on with a file that was begun.")] = False

    @cached_property
    def form(self) -> str:
        """The format, by its name or that of the file."""
        from ..models.alignment_result import format_of

        return self.format_name or format_of(str(self.output or ""))

    @cached_property
    def chosen(self) -> Sequence[str]:
        """The columns; a ValueError says which there are."""
        from ..models.alignment_result import check_columns

        if self.resume and self.output is None:
            fail("--resume goes on with a file; give it as --output")
        return check_columns(self.form, self.columns.split(",") if self.columns else None)

    def opened(self, model: Any, settings: Any, *proteins: Iterable[tuple[str, str]]) -> Output:
        """Open the output of a job, which its proteins name as well, by id and content."""
        about = (model.head_identity, model.config.plm_name_or_path, self.form, self.chosen)
        digest = hashlib.sha256(repr((about, settings)).encode())
        for side in proteins:
            digest.update(b"\n\n")
            for one in side:
                digest.update("\0".join((*one, "")).encode(errors="surrogatepass"))
        return Output(self.output, digest.hexdigest(), self.resume)

    def write(self, groups: Iterable[tuple[int, Sequence[AlignmentResult]]], file: Output) -> None:
        """Write results as they come, those of some pairs or queries at once."""
        from ..models.alignment_result import FORMATS

        if not file.begun:
            file.write(FORMATS[self.form].head(self.chosen), results=0)
        for count, results in groups:
            text, last = "", file.last
            for result in results:
                query = f"{result.query.id} {result.query.sha}"
                text += FORMATS[self.form].render(result, last == query, self.chosen)
                last = query
            file.write(text, count, last)


@verb(columns="\n".join(f"  {name:<19}{told}" for name, told in FIELDS.items()))
def align(
    skipped: Skipped,
    a: Annotated[str, Argument(metavar="A", help="Sequence, file, or '-'.")],
    b: Annotated[str, Argument(metavar="B", help="Sequence, file, or '-'.")],
    *,
    writing: Writing,
    top_k: Annotated[
        int | None, Option("--top-k", min=1, help="Best candidates of each query, sorted.")
    ] = None,
    plot: Annotated[Path | None, Option(help="Draw one pair's plan: .png, .svg or .pdf.")] = None,
    superpose: Annotated[
        Path | None, Option(help="Write B as it lies on A, two structures, as mmCIF.")
    ] = None,
    with_query: Annotated[
        bool, Option("--with-query", help="Write A into the file of --superpose as well.")
    ] = False,
    task_head: Annotated[str | None, Option(help="Head: active_site, binding_site, motif.")] = None,
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
    computing: Computing,
    quiet: common.Quiet = False,
    verbose: common.Verbose = False,
) -> None:
    r"""Align proteins: which residues of A correspond to which of B.

    A and B are each a sequence; a FASTA, PDB or mmCIF file, also gzipped, with every record in it
    or the one named as FILE:RECORD; a CSV, TSV, Parquet or JSON Lines file with the columns id and
    sequence; a folder of structures; or '-' for standard input, FASTA, a structure or one bare
    sequence per line. Every protein of A is aligned with every one of B.

    Examples:
      plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS
      plasma-hf align demo/serine_proteases.fasta:P00766 \
          demo/serine_proteases.fasta:P00760 --plot plan.png
      plasma-hf align demo/serine_proteases.fasta demo/serine_proteases.fasta \
          --format tsv --output all.tsv
      plasma-hf align demo/serine_proteases.fasta demo/serine_proteases.fasta \
          --top-k 10 --output hits.m8.gz --resume
      echo AYIAKQRQLSFVKSHFS | plasma-hf align - MKTAYIAKQRQISFVKSHFSRQ --format json

    With a language model, which is downloaded at first use (docs/backbones.md lists all):
      plasma-hf align MKTAYIAKQRQISFVKSHFSRQ AYIAKQRQLSFVKSHFS --backbone esm2-8m

    Formats, by --format or the ending of --output (docs/formats.md has an example of each):
      text       each segment in rows, for the eye
      tsv        one line per segment with a header; a pair without any has a line, too
      json       one object per pair and line (JSON Lines): ids, lengths, and the result of the
                 Python pipeline as it is, so residues are counted from 0 and ends are exclusive
      m8         BLAST's table of twelve columns, one line per segment; --columns takes any that
                 MMseqs2's --format-output takes, and those of tsv
      a3m        each segment along the query, insertions in lower case
      fasta      both sides of each segment with gaps
      stockholm  a block per segment, with the probability of each pair
      clustal    a block per segment
    All but json count residues from 1, ends included; the numbers that authors of structures give
    stand beside.

    Columns of tsv:
    {columns}
    """
    from tqdm import tqdm

    output, _ = writing.output, writing.chosen  # what is wrong with the options is said first
    for written in (output, plot, superpose):
        common.check_output(written, a, b)
    sides = _read_sides(a, b, skipped)
    count = len(sides[0]) * len(sides[1])
    for problem, given in {
        f"--plot draws one pair, and these are {count}; {ONE}": plot and count > 1,
        f"--superpose takes one pair, and these are {count}; {ONE}": superpose and count > 1,
        "--with-query goes with --superpose": with_query and not superpose,
        "--model and --task-head name two heads; give one of them": computing.model and task_head,
        "--task-head brings its own backbone; give --task-head or --backbone": (
            computing.backbone and task_head
        ),
    }.items():
        if given:
            fail(problem)
    pipe = computing.load(task_head)
    options: dict[str, Any] = {
        "threshold": threshold,
        "max_gap": max_gap,
        "min_pairs": min_pairs,
        "evalue": evalue,
        "max_hits": max_hits,
        "database_size": database_size or (len(sides[1]) if len(sides[1]) > 1 else None),
    }
    proteins = ([(one.id, one.sha) for one in side] for side in sides)
    with writing.opened(pipe.model, (top_k, min_score, options), *proteins) as file:
        if writing.resume:
            report(f"{file.done} of {count} pairs are in {output}")
        left, same = tee(islice(product(*sides), file.done, None))
        results = pipe(
            same,  # no list: results come one by one
            batch_size=batch_size,
            return_plan=plot is not None,
            on_error="report",
            **options,
        )
        # Progress is shown on a terminal, and only where it does not mix with the results.
        mixed = output is None and sys.stdout.isatty()
        pairs = tqdm(
            zip(left, results, strict=True),
            total=count,
            initial=file.done,
            unit="pair",
            disable=count == 1 or mixed or quiet or not sys.stderr.isatty(),
        )
        good = _good(pairs, min_score, plot, superpose, with_query, skipped)
        writing.write(_grouped(good, top_k, len(sides[1])), file)


def _good(
    pairs: Iterable[Any],
    min_score: float,
    plot: Path | None,
    superpose: Path | None,
    with_query: bool,
    skipped: Skipped,
) -> Iterator[AlignmentResult | None]:
    """Yield results as they come, None for what is left out; draw the plan and superpose."""
    for (query, candidate), result in pairs:
        if "error" in result:
            skipped.report(f"{query.id} and {candidate.id}: {result['error']}")
            yield None
            continue
        if plot:
            result.plot(str(plot))
        if superpose and result["score"] >= min_score:
            result["superposition"] = result.superpose(str(superpose), with_query).about()
        yield result if result["score"] >= min_score else None


def _grouped(
    results: Iterable[AlignmentResult | None], top_k: int | None, candidates: int
) -> Iterator[tuple[int, list[AlignmentResult]]]:
    """Yield what is written at once, and of how many pairs: one, or the best ones of a query."""
    each = iter(results)
    while together := list(islice(each, 1 if top_k is None else candidates)):
        found = [result for result in together if result is not None]
        best = found if top_k is None else heapq.nsmallest(top_k, found, key=_by_significance)
        yield len(together), best


def _by_significance(result: AlignmentResult) -> tuple[float, float]:
    known = result.get("p_value")
    return (math.inf if known is None else known, -result["score"])


def _read_sides(a: str, b: str, skipped: Skipped) -> list[list[Protein]]:
    """Read both sides; without a pair to align the verb ends here."""
    if a == b == "-":
        fail("one of A and B can be '-', standard input; give the other as sequence or file")
    sides = [read_side(a, "query", skipped), read_side(b, "candidate", skipped)]
    if not all(sides):
        raise typer.Exit(2)
    return sides


def read_side(value: str, side: str, skipped: Skipped) -> list[Protein]:
    """Read what can be used, and report what cannot."""
    from ..models.protein import looks_like_path, read_protein

    name = f"{value}: record"
    records: Iterable[Any]
    if value == "-":
        name, records = "standard input: record", _read_standard_input(skipped.report_record)
    elif looks_like_path(value):
        records = _read_place(value, skipped)
    else:
        name, records = side, [value]
        if value.isalnum() and (meant := sorted(Path().glob(f"{value}.*"))):
            report(f"{value} is taken as a sequence of {len(value)} residues; {meant[0]} is a file")
    proteins = []
    for record in records:
        try:
            proteins.append(read_protein(record, name))
        except ValueError as error:
            skipped.report(str(error))
    return proteins


def _read_place(value: str, skipped: Skipped) -> Iterable[Any]:
    """Read the proteins of a file or folder, or the one that is named."""
    from ..io.sequences import is_table
    from ..io.structures import lists_chains, read_listed_chain
    from ..models.protein import read_records, split_record

    file, record = split_record(value)
    if record is not None and os.path.isfile(file) and lists_chains(file):
        return [read_listed_chain(file, record)]
    if os.path.isdir(value) or (os.path.exists(value) and is_table(value)):
        return common.read_places([Path(value)], skipped)
    return read_records(value)


def _read_standard_input(on_invalid: OnInvalid) -> list[Protein]:
    """Read what a file may hold, or else each line as a bare sequence."""
    from ..io.sequences import is_table, read_sequences
    from ..io.structures import begins_as_structure
    from ..models.protein import Protein, is_fasta, open_text, read_records

    with TemporaryDirectory() as folder:
        file = Path(folder, "stdin")
        file.write_bytes(sys.stdin.buffer.read())
        try:
            if begins_as_structure(file) or is_fasta(file):
                return read_records(file)
            if is_table(file):
                return list(read_sequences(file, on_invalid=on_invalid))
            with open_text(file) as lines:
                text = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        except (ValueError, OSError) as error:
            fail(str(error).replace(str(file), "standard input"))
    if not text:
        fail("standard input is empty; it takes FASTA or one sequence per line")
    return [Protein(f"line{number}", line) for number, line in text if line[0] != ";"]
