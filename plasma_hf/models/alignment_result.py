"""The result of an alignment, as a reader, a notebook, a table and other programs want it.

The dict counts residues from 0, ends exclusive; text and tables from 1, the last one included, as
the field's formats do. Where a structure came in, its authors' numbers (`A:57`, `A:60B`) stand
beside.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from importlib import import_module
from itertools import chain as chained
from itertools import groupby, pairwise, zip_longest
from typing import Any

import torch
from torch.nn import functional as F

from .modeling_backbone import from_package
from .protein import Protein, suffix_of

SIDES = ("query", "candidate")
BLOCK = 60  # alignment columns per line
STRONG, CLEAR = 0.9, 0.7  # probabilities from which a pair is drawn as `|` and as `:`
LEGEND = (
    f"between the rows, plan weight:  | from {STRONG}   : from {CLEAR}   . above the threshold"
    "   blank not aligned\n"
)
SIGNIFICANCE = ("bits", "p_value", "evalue")
"""What a result, and each of its segments, says of chance, where the model is calibrated."""

Segment = Mapping[str, Any]
Column = tuple[int | None, int | None, float | None]


class AlignmentResult(dict[str, Any]):
    """What `pipeline("protein-alignment")` says of a pair: a dict that knows its two proteins.

    `print(result)` shows the alignment, a notebook a page of it; `evalue` is from where on an
    alignment was not to be shown.

    Example:
        >>> pairs = [[0, 0, 0.95], [1, 1, 0.95], [2, 3, 0.5]]
        >>> spans = {"query_start": 0, "query_end": 3, "candidate_start": 0, "candidate_end": 4}
        >>> segment = spans | {"score": 0.6, "pairs": pairs}
        >>> proteins = Protein("a", "MKV"), Protein("b", "MKGV")
        >>> result = AlignmentResult({"score": 0.7, "segments": [segment]}, *proteins)
        >>> print(result.to_string("fasta"), end="")
        >a/1-3 segment=1
        MK-V
        >b/1-4 segment=1
        MKGV
        >>> result.selection("candidate"), result.hits[0].cigar
        ('resi 1-2+4', '2M1D1M')
    """

    def __init__(
        self, values: Mapping[str, Any], query: Protein, candidate: Protein, evalue: float = 0.01
    ) -> None:
        super().__init__(values)
        # Embeddings of a protein that has letters are no part of what is said of it.
        query, candidate = (
            p if p.sequence is None or p.embeddings is None else replace(p, embeddings=None)
            for p in (query, candidate)
        )
        self.query, self.candidate, self.evalue = query, candidate, evalue
        if any(side.structure is not None for side in (query, candidate)):
            self["segments"] = [self._numbered(segment) for segment in self.get("segments", [])]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.query, self.candidate, self.evalue)

    def __str__(self) -> str:
        return self.to_string().rstrip("\n") if self._has_letters else super().__repr__()

    def _repr_html_(self) -> str:
        return _page(self) if self._has_letters else f"<pre>{escape(super().__repr__())}</pre>"

    @property
    def hits(self) -> list[Hit]:
        """The segments, each with what follows from it."""
        return [Hit(self, n, segment) for n, segment in enumerate(self["segments"], start=1)]

    def to_string(self, format: str = "text", columns: Sequence[str] | None = None) -> str:
        """Write the alignment in one of `FORMATS`; `columns` are those of "m8" and "tsv".

        Raises:
            ValueError: If there is no such format or column, or a protein has no letters.
        """
        return "".join(write_results([self], format, columns))

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`, one row per segment, with the columns of "tsv"."""
        return AlignmentResults([self]).to_pandas()

    def to_biopython(self) -> list[Any]:
        """Return a `Bio.Align.Alignment` for each segment."""
        self.check_letters()
        align, seq, record = (
            _library("biopython", f"Bio.{name}") for name in ("Align", "Seq", "SeqRecord")
        )
        alignments = []
        for hit in self.hits:
            records = [
                record.SeqRecord(seq.Seq(protein.sequence), id=protein.id, description="")
                for protein in (self.query, self.candidate)
            ]
            found = align.Alignment(records, hit.coordinates)
            found.score = hit.segment["score"]
            found.annotations = {n: hit.segment[n] for n in SIGNIFICANCE if n in hit.segment}
            alignments.append(found)
        return alignments

    def plot(self, path: str | None = None, kind: str = "plan") -> Any:
        """Draw the "plan", the "alignment" or a dot-plot ("dots"), as a `matplotlib` figure.

        With a path it is also written; the ending says the format.
        """
        try:
            draw = import_module("plasma_hf.io.plot").draw
        except ImportError as error:
            told = 'pictures come with the package: pip install "plasma-hf[plot]"'
            raise ImportError(told) from error
        return draw(self, path, kind)

    def plan_or_pairs(self) -> torch.Tensor:
        """Return the plan, or in its shape the weights of the pairs where there is none."""
        if self.get("plan") is not None:
            return torch.as_tensor(self["plan"]).detach().float().cpu()
        plan = torch.zeros(len(self.query), len(self.candidate))
        for hit in self.hits:
            for i, j, weight in hit.pairs:
                plan[i, j] = weight
        return plan

    def superpose(self, path: str | None = None, with_query: bool = False) -> Any:
        """Lay the candidate's structure on the query's by the aligned residues.

        Args:
            path: mmCIF file to write, with the moved candidate.
            with_query: Whether it holds the query as well.

        Returns:
            A `plasma_hf.io.superposition.Superposition`: rotation, translation, RMSD.

        Raises:
            ValueError: If a side is no structure, or nothing is aligned.
        """
        tools = from_package("io.superposition", "structures are superposed")
        for protein in (self.query, self.candidate):
            if protein.structure is None:
                raise ValueError(
                    f"{protein.id} is no structure; give a PDB or mmCIF file on both sides."
                )
        pairs = [pair for hit in self.hits[:1] for pair in hit.pairs]
        found = tools.superpose(self.query.structure, self.candidate.structure, pairs)
        if path is not None:
            tools.write_superposed(path, found, self.query, self.candidate, with_query)
        return found

    def residues(self, side: str) -> list[str]:
        """Name the residues of a side: as the authors of its structure, else counted from 1."""
        return residue_labels(getattr(self, side))

    def selection(
        self, side: str = "query", program: str = "pymol", segment: int | None = None
    ) -> str:
        """Write what selects the aligned residues of a side in "pymol" or "chimerax".

        Args:
            side: "query" or "candidate".
            program: Whose words to use.
            segment: Number of the one that is wanted, from 1; all by default.
        """
        if side not in SIDES or program not in SELECTIONS:
            raise ValueError(
                f"no selection of {side!r} for {program!r}; give one of {', '.join(SIDES)}, and of "
                f"{', '.join(SELECTIONS)}."
            )
        wanted = [hit for hit in self.hits if segment in (None, hit.number)]
        place = SIDES.index(side)
        places = sorted({pair[place] for hit in wanted for pair in hit.pairs})
        return SELECTIONS[program](getattr(self, side), places)

    @property
    def letters(self) -> tuple[str, str]:
        """Sequences of query and candidate."""
        return self.query.sequence or "", self.candidate.sequence or ""

    @property
    def _has_letters(self) -> bool:
        letters = self.query.sequence is not None and self.candidate.sequence is not None
        return letters and "error" not in self

    def check_letters(self) -> None:
        """Raise a ValueError where there is no alignment that could be written in letters."""
        for protein in (self.query, self.candidate):
            if protein.sequence is None:
                raise ValueError(
                    f"{protein.id!r} has residue embeddings and no sequence; alignments are "
                    "written in letters, so give Protein(id, sequence)."
                )
        if "error" in self:
            ids = f"{self.query.id!r} and {self.candidate.id!r}"
            raise ValueError(f"{ids} have no alignment: {self['error']}")

    def _numbered(self, segment: Segment) -> dict[str, Any]:
        """Add the authors' numbers of the aligned residues."""
        named = dict(segment)
        for place, side in enumerate(SIDES):
            if getattr(self, side).structure is not None:
                labels = self.residues(side)
                named[f"{side}_residues"] = [labels[pair[place]] for pair in segment["pairs"]]
        return named


class AlignmentResults(list[AlignmentResult]):
    """Results of many pairs, as one table or one file; in a list are also `{"error": ...}`."""

    def to_string(self, format: str = "text", columns: Sequence[str] | None = None) -> str:
        """Write all alignments; see `AlignmentResult.to_string`."""
        return "".join(write_results([r for r in self if "error" not in r], format, columns))

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`, one row per segment, with the columns of "tsv"."""
        pandas = _library("pandas")
        text = io.StringIO(self.to_string("tsv"))
        texts = dict.fromkeys((*SIDES, *(f"{side}_residues" for side in SIDES)), str)
        return pandas.read_csv(text, sep="\t", dtype=texts, keep_default_na=False, na_values="")

    def _repr_html_(self) -> str:
        head, *rows = csv.reader(io.StringIO(self.to_string("tsv")), delimiter="\t")
        shown = rows[:50]
        more = f"<p>{len(rows) - 50} more: to_pandas()</p>" if len(rows) > 50 else ""
        return f'<div style="overflow-x:auto">{_table(head, shown)}</div>{more}'


@dataclass(frozen=True)
class Hit:
    """A segment, and what formats say of it."""

    result: AlignmentResult
    number: int  # from 1
    segment: Segment

    @property
    def pairs(self) -> list[Sequence[Any]]:
        """The aligned residues, `[query index, candidate index, probability]`."""
        return list(self.segment["pairs"])

    @cached_property
    def columns(self) -> list[Column]:
        """Columns in which only aligned residues stand together, as files have them."""
        return list(columns(self.pairs, together=False))

    @property
    def rows(self) -> tuple[str, str]:
        """Both sides with gaps, of one length."""
        query, candidate = self.result.letters
        return (
            "".join("-" if i is None else query[i] for i, *_ in self.columns),
            "".join("-" if j is None else candidate[j] for _, j, _ in self.columns),
        )

    @property
    def operations(self) -> str:
        """M, I (of the query alone) or D (of the candidate alone) of each column."""
        return "".join("D" if i is None else "I" if j is None else "M" for i, j, _ in self.columns)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The operations that follow each other, and how often."""
        return [(one, len(list(same))) for one, same in groupby(self.operations)]

    @property
    def cigar(self) -> str:
        """The operations as CIGAR, `12M2I30M`."""
        return "".join(f"{count}{operation}" for operation, count in self.runs)

    @property
    def coordinates(self) -> Any:
        """Where runs of columns begin and end on both sides, `(2, runs + 1)`, as Biopython's."""
        places = [[self.segment["query_start"], self.segment["candidate_start"]]]
        for operation, count in self.runs:
            query, candidate = places[-1]
            step = (count * (operation != "D"), count * (operation != "I"))
            places.append([query + step[0], candidate + step[1]])
        return torch.tensor(places).T.numpy()

    @property
    def identical(self) -> int:
        """Pairs with the same letter."""
        query, candidate = self.result.letters
        return sum(query[i] == candidate[j] for i, j, _ in self.pairs)

    @property
    def evalue(self) -> float | None:
        """E-value; without a database the p-value, that of a database of one."""
        return self.segment.get("evalue", self.segment.get("p_value"))

    def name(self, side: str) -> str:
        """Call a side `id/first-last`, as alignment files do."""
        return f"{'_'.join(getattr(self.result, side).id.split())}/{self.span(side)}"

    def span(self, side: str) -> str:
        """Write the first and last residue, counted from 1."""
        return f"{self.segment[f'{side}_start'] + 1}-{self.segment[f'{side}_end']}"

    def authors(self, side: str) -> str:
        """Write the first and last residue as the authors of the structure do, `A:16-A:245`."""
        if getattr(self.result, side).structure is None:
            return ""
        labels = self.segment[f"{side}_residues"]
        return f"{labels[0]}-{labels[-1]}"

    def about(self) -> str:
        """Say number and significance in a header."""
        known = [(n, self.segment.get(n)) for n in SIGNIFICANCE]
        return " ".join(
            [f"segment={self.number}", *(f"{n}={v:.4g}" for n, v in known if v is not None)]
        )


def residue_labels(protein: Protein) -> list[str]:
    """Name residues `chain:number` as the authors of a structure do, else by place, from 1."""
    structure = protein.structure
    if structure is None:
        return [str(number) for number in range(1, len(protein) + 1)]
    named = zip(structure.chain_ids, structure.author_numbers, strict=True)
    return [f"{chain}:{number}" for chain, number in named]


def columns(pairs: Sequence[Any], together: bool = True) -> Iterator[Column]:
    """Lay out the pairs of a segment, and between them what neither side has a partner for.

    Between two pairs the unaligned residues of both sides share columns as far as both have some,
    the rest stand alone; or all stand alone, so that a column of two is a pair.

    Example:
        >>> list(columns([(0, 0, 1.0), (3, 2, 0.8)]))
        [(0, 0, 1.0), (1, 1, None), (2, None, None), (3, 2, 0.8)]
        >>> [(i, j) for i, j, _ in columns([(0, 0, 1.0), (2, 2, 0.8)], together=False)]
        [(0, 0), (1, None), (None, 1), (2, 2)]
    """
    for (i, j, weight), (next_i, next_j, _) in pairwise(pairs):
        yield i, j, weight
        left = range(i + 1, next_i), range(j + 1, next_j)
        if together:
            yield from ((one, other, None) for one, other in zip_longest(*left))
        else:
            yield from ((one, None, None) for one in left[0])
            yield from ((None, other, None) for other in left[1])
    yield from (tuple(pair) for pair in pairs[-1:])


Cell = Callable[[Hit], Any]
"""Gives a column of a table."""

# --- Formats. Each takes a result, whether the one before it was of the same query, and columns.


@dataclass(frozen=True)
class Format:
    """How to write results: `render` each, after `head`, which depends on the columns."""

    render: Callable[[AlignmentResult, bool, Sequence[str]], str]
    endings: tuple[str, ...]
    head: Callable[[Sequence[str]], str] = lambda columns: ""
    columns: Mapping[str, Cell] | None = None
    usual: tuple[str, ...] = ()


def write_results(
    results: Iterable[AlignmentResult], format: str = "text", columns: Sequence[str] | None = None
) -> Iterator[str]:
    """Write results one by one, after what stands at the head of a file.

    Args:
        results: In an order that has those of one query together.
        format: One of `FORMATS`.
        columns: Of "m8" and "tsv", by name.
    """
    form = FORMATS.get(format)
    if form is None:
        raise ValueError(f"there is no format {format!r}; give one of {', '.join(FORMATS)}.")
    chosen = check_columns(format, columns)
    yield form.head(chosen)
    before: Protein | None = None
    for result in results:
        result.check_letters()
        yield form.render(result, before is not None and before == result.query, chosen)
        before = result.query


def check_columns(format: str, columns: Sequence[str] | None) -> Sequence[str]:
    """Return the columns of a format, its usual ones if none are given; refuse unknown ones."""
    form = FORMATS[format]
    if columns is None:
        return form.usual
    if form.columns is None:
        raise ValueError(f"the format {format} has no columns; give m8 or tsv.")
    if unknown := [name for name in columns if name not in form.columns]:
        known = ", ".join(form.columns)
        raise ValueError(f"there is no column {', '.join(unknown)}; give some of {known}.")
    return columns


def to_text(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write one alignment for the eye: what was compared, then each segment in rows."""
    width = max(len(result.query.id), len(result.candidate.id))
    lines = [
        "",
        f"query      {result.query.id:<{width}}  {len(result.query)} residues",
        f"candidate  {result.candidate.id:<{width}}  {len(result.candidate)} residues",
        f"score      {result['score']:.4f}{_significance(result)}"
        + "  (found by a profile)" * (result.get("iteration", 1) > 1),
    ]
    if found := result.get("superposition"):
        lines.append(
            f"superposed {found['pairs']} of {found['matched']} pairs, RMSD {found['rmsd']:.2f} Å "
            f"(all {found['rmsd_all']:.2f} Å), TM-score {found['tm_score']:.3f}"
        )
    chance = result.get("evalue", result.get("p_value", 0.0))
    if chance is None:
        lines.append("significance unknown: run plasma-hf calibrate")
    if not result["segments"] and chance is not None and chance > result.evalue:
        lines.append(f"no significant alignment ({_chance(result)})")
    elif not result["segments"]:
        lines.append("no segment: no stretch of the two is aligned above the threshold")
    for hit in result.hits:
        segment = hit.segment
        spans = "  ".join(
            f"{side} {hit.span(side)}" + (f" ({hit.authors(side)})" if hit.authors(side) else "")
            for side in SIDES
        )
        title = (
            f"segment {hit.number}  {spans}  {statistics(segment)}  pairs {len(hit.pairs)}  "
            f"identity {hit.identical / len(hit.pairs):.3f}"
        )
        lines += ["", title, "", *written_rows(hit)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_json(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write one line with ids, lengths and the result as it is; what is not known is null."""
    unknown = dict.fromkeys(SIGNIFICANCE)
    about: dict[str, Any] = {"query": result.query.id, "candidate": result.candidate.id}
    about |= {"query_length": len(result.query), "candidate_length": len(result.candidate)}
    given = {name: value for name, value in result.items() if name != "plan"}
    segments = {"segments": [unknown | dict(segment) for segment in result["segments"]]}
    return json.dumps(about | unknown | given | segments) + "\n"


def to_table(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write one line per segment; a pair without any has one, with the fields of it empty."""
    text = io.StringIO()
    rows = csv.writer(text, delimiter="\t", lineterminator="\n")
    for hit in result.hits:
        rows.writerow([TSV_COLUMNS[name](hit) for name in columns])
    if not result.hits:
        alone = Hit(result, 0, {})
        rows.writerow([TSV[name](alone) if name in OF_PAIRS else "" for name in columns])
    return text.getvalue()


def to_m8(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write one line per segment, without a header, as BLAST and MMseqs2 do."""
    rows = [[M8_COLUMNS[name](hit) for name in columns] for hit in result.hits]
    # Other programs know no quotes: a name holds no white space.
    return "".join("\t".join("_".join(str(one).split()) for one in row) + "\n" for row in rows)


def to_fasta(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write both sides of each segment with gaps; only aligned residues share a column."""
    return "".join(
        f">{hit.name(side)} {hit.about()}\n{row}\n"
        for hit in result.hits
        for side, row in zip(SIDES, hit.rows, strict=True)
    )


def to_a3m(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write each segment along the whole query, which stands first: insertions in lower case."""
    query = result.query.sequence or ""
    text = "" if same else f">{'_'.join(result.query.id.split())}\n{query}\n"
    for hit in result.hits:
        row = "".join(
            "-" if there is None else letter if i is not None else letter.lower()
            for (i, there, _), letter in zip(hit.columns, hit.rows[1], strict=True)
        )
        before, after = hit.segment["query_start"], len(query) - hit.segment["query_end"]
        text += f">{hit.name('candidate')} {hit.about()}\n{'-' * before}{row}{'-' * after}\n"
    return text


def _two_names(hit: Hit) -> list[str]:
    """Call both sides of a block, which programs tell apart by their names."""
    names = [hit.name(side) for side in SIDES]
    names[1] += ";" if names[0] == names[1] else ""
    return names


def to_stockholm(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write a block for each segment, with the probability of each pair in tenths (PP)."""
    text = ""
    for hit in result.hits:
        names = _two_names(hit)
        shown = "".join(
            "." if weight is None else "*" if weight >= 0.95 else str(int(weight * 10 + 0.5))
            for *_, weight in hit.columns
        )
        heads = [*names, f"#=GR {names[1]} PP"]
        text += stockholm_block(heads, (*hit.rows, shown), f"#=GF CC {hit.about()}")
    return text


def to_clustal(result: AlignmentResult, same: bool, columns: Sequence[str]) -> str:
    """Write a block for each segment; identical residues have a star below."""
    text = ""
    for hit in result.hits:
        stars = "".join("*" if a == b else " " for a, b in zip(*hit.rows, strict=True))
        text += clustal_block([*_two_names(hit), ""], (*hit.rows, stars), f", {hit.about()}")
    return text


def stockholm_block(names: Sequence[str], rows: Sequence[str], *comments: str) -> str:
    """Write rows of one length as a Stockholm alignment."""
    width = max(map(len, names))
    lines = (f"{name:<{width}} {row}" for name, row in zip(names, rows, strict=True))
    return "\n".join(["# STOCKHOLM 1.0", *comments, *lines, "//", ""])


def clustal_block(names: Sequence[str], rows: Sequence[str], about: str = "") -> str:
    """Write rows of one length as a Clustal alignment."""
    width = max(map(len, names)) + 2
    lines = [f"CLUSTAL multiple sequence alignment by plasma_hf{about}", "", ""]
    for start in range(0, len(rows[0]), BLOCK):
        part = slice(start, start + BLOCK)
        lines += [f"{name:<{width}}{row[part]}" for name, row in zip(names, rows, strict=True)]
        lines.append("")
    return "\n".join([*lines, ""])


def _in_full(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _of_segment(name: str, shift: int = 0) -> Cell:
    return lambda hit: hit.segment[name] + shift


def _chance_of_pair(name: str) -> Cell:
    return lambda hit: _in_full(hit.result.get(name))


def _chance_of_segment(name: str) -> Cell:
    return lambda hit: _in_full(hit.segment.get(name))


OF_PAIRS = ("query", "candidate", "score", *SIGNIFICANCE, "iteration")
"""Columns that are known without a segment."""
TSV: dict[str, Cell] = {
    "query": lambda hit: hit.result.query.id,
    "candidate": lambda hit: hit.result.candidate.id,
    "score": lambda hit: f"{hit.result['score']:.6f}",
    **{name: _chance_of_pair(name) for name in SIGNIFICANCE},
    "segment": lambda hit: hit.number,
    "segment_score": lambda hit: f"{hit.segment['score']:.6f}",
    **{f"segment_{name}": _chance_of_segment(name) for name in SIGNIFICANCE},
    "query_start": _of_segment("query_start", 1),
    "query_end": _of_segment("query_end"),
    "candidate_start": _of_segment("candidate_start", 1),
    "candidate_end": _of_segment("candidate_end"),
    "pairs": lambda hit: len(hit.pairs),
    "identity": lambda hit: f"{hit.identical / len(hit.pairs):.4f}",
    "query_residues": lambda hit: hit.authors("query"),
    "candidate_residues": lambda hit: hit.authors("candidate"),
    "iteration": lambda hit: hit.result.get("iteration", 1),
    "residue_pairs": lambda hit: ",".join(f"{i + 1}:{j + 1}:{w:.3f}" for i, j, w in hit.pairs),
}
MMSEQS: dict[str, Cell] = {
    "query": TSV["query"],
    "target": TSV["candidate"],
    "evalue": lambda hit: _in_full(hit.evalue),
    "gapopen": lambda hit: sum(operation != "M" for operation, _ in hit.runs),
    "pident": lambda hit: f"{100 * hit.identical / len(hit.columns):.3f}",
    "fident": lambda hit: f"{hit.identical / len(hit.columns):.3f}",
    "nident": lambda hit: hit.identical,
    "qstart": TSV["query_start"],
    "qend": TSV["query_end"],
    "qlen": lambda hit: len(hit.result.query),
    "tstart": TSV["candidate_start"],
    "tend": TSV["candidate_end"],
    "tlen": lambda hit: len(hit.result.candidate),
    "alnlen": lambda hit: len(hit.columns),
    "bits": lambda hit: "" if hit.segment.get("bits") is None else f"{hit.segment['bits']:.1f}",
    "cigar": lambda hit: hit.cigar,
    "qseq": lambda hit: hit.result.query.sequence,
    "tseq": lambda hit: hit.result.candidate.sequence,
    "qheader": TSV["query"],
    "theader": TSV["candidate"],
    "qaln": lambda hit: hit.rows[0],
    "taln": lambda hit: hit.rows[1],
    "mismatch": lambda hit: len(hit.pairs) - hit.identical,
    "qcov": lambda hit: f"{_span(hit, 'query') / len(hit.result.query):.3f}",
    "tcov": lambda hit: f"{_span(hit, 'candidate') / len(hit.result.candidate):.3f}",
    # What is not known here, as MMseqs2 writes it without a taxonomy.
    **dict.fromkeys(("qframe", "tframe", "taxid"), lambda hit: 0),
    **dict.fromkeys(("raw", "qset", "qsetid", "tset", "tsetid"), lambda hit: "-"),
    **dict.fromkeys(("taxname", "taxlineage", "ppos"), lambda hit: "-"),
    **dict.fromkeys(("qorfstart", "qorfend", "torfstart", "torfend"), lambda hit: -1),
    "pvalue": _chance_of_segment("p_value"),
}
"""Columns of "m8": those of `mmseqs convertalis --format-output`, and `pvalue`."""


def _span(hit: Hit, side: str) -> int:
    return int(hit.segment[f"{side}_end"] - hit.segment[f"{side}_start"])


TSV_COLUMNS, M8_COLUMNS = MMSEQS | TSV, TSV | MMSEQS  # what names mean in either
BLAST_TAB = (
    *("query", "target", "pident", "alnlen", "mismatch", "gapopen"),
    *("qstart", "qend", "tstart", "tend", "evalue", "bits"),
)


FORMATS = {
    "text": Format(to_text, (".txt",), head=lambda columns: LEGEND),
    "tsv": Format(
        to_table,
        (".tsv",),
        head=lambda columns: "\t".join(columns) + "\n",
        columns=TSV_COLUMNS,
        usual=tuple(TSV)[:-2],
    ),
    "json": Format(to_json, (".json", ".jsonl")),
    "m8": Format(to_m8, (".m8", ".b6", ".tab"), columns=M8_COLUMNS, usual=BLAST_TAB),
    "a3m": Format(to_a3m, (".a3m",)),
    "fasta": Format(to_fasta, (".fasta", ".fa", ".afa")),
    "stockholm": Format(to_stockholm, (".sto", ".stk", ".stockholm")),
    "clustal": Format(to_clustal, (".aln", ".clustal")),
}
"""Formats of alignments by name."""


def format_of(path: str) -> str:
    """Tell the format of a file by its ending, before `.gz`; "text" where there is none."""
    ending = suffix_of(path)
    found = next((one for one, form in FORMATS.items() if ending in form.endings), None)
    if found is None and ending:
        known = ", ".join(chained.from_iterable(form.endings for form in FORMATS.values()))
        raise ValueError(f"{path} is of no known format; name one by --format, or end in {known}.")
    return found or "text"


# --- What a reader sees.


def statistics(about: Mapping[str, Any]) -> str:
    """Write score and significance of a result or a segment."""
    return f"score {about['score']:.4f}{_significance(about)}"


def _significance(about: Mapping[str, Any]) -> str:
    """Write what stands behind a score: bits, and how likely chance gives as much."""
    return "" if about.get("p_value") is None else f"  bits {about['bits']:.1f}  {_chance(about)}"


def _chance(about: Mapping[str, Any]) -> str:
    """Write the E-value, or the p-value where there is no database."""
    name, key = ("E", "evalue") if "evalue" in about else ("p", "p_value")
    return f"{name} {about[key]:.2g}" if about[key] else f"{name} < 1e-300"


def written_rows(hit: Hit) -> Iterator[str]:
    """Write a segment as query, marks and candidate, some columns at a time; see `LEGEND`."""
    laid_out = list(columns(hit.pairs))
    labels = [[one.rpartition(":")[2] for one in hit.result.residues(side)] for side in SIDES]
    ends = (
        labels[place][at] for place in (0, 1) for at in (hit.pairs[0][place], hit.pairs[-1][place])
    )
    width = max(map(len, ends))
    for start in range(0, len(laid_out), BLOCK):
        i, j, weights = zip(*laid_out[start : start + BLOCK], strict=True)
        marks = (
            " " if weight is None else "|" if weight >= STRONG else ":" if weight >= CLEAR else "."
            for weight in weights
        )
        yield _row("query", hit.result.query, labels[0], i, width)
        yield f"{'':{11 + width}}{''.join(marks)}"
        yield _row("candidate", hit.result.candidate, labels[1], j, width)
        yield ""


def _row(
    side: str, protein: Protein, labels: list[str], places: tuple[int | None, ...], width: int
) -> str:
    sequence = protein.sequence or ""
    letters = "".join("-" if i is None else sequence[i] for i in places)
    there = [labels[i] for i in places if i is not None]
    first, last = (there[0], there[-1]) if there else ("", "")
    return f"{side:<9} {first:>{width}} {letters} {last:>{width}}"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    style = 'style="text-align:left;white-space:nowrap;padding:.1em 1em .1em 0"'
    told = [("th", head), *(("td", row) for row in rows)]
    lines = (
        "".join(f"<{cell} {style}>{escape(str(one))}</{cell}>" for one in row) for cell, row in told
    )
    return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"


PICTURE_CELLS = 64  # along the longer side of the small heat map


def _page(result: AlignmentResult) -> str:
    """Show a result in a notebook: statistics, the plan in small, and the rows of each segment."""
    table = []
    for hit in result.hits:
        spans = (f"{hit.span(side)} {hit.authors(side)}" for side in SIDES)
        identity = f"{hit.identical / len(hit.pairs):.0%}"
        table.append((hit.number, *spans, len(hit.pairs), identity, statistics(hit.segment)))
    head = ("segment", "query", "candidate", "pairs", "identity", "statistics")
    sides = ", ".join(f"{p.id} ({len(p)} residues)" for p in (result.query, result.candidate))
    shown = _table(head, table) if table else escape(str(result).splitlines()[-1])
    style = 'tabindex="0" style="overflow-x:auto"'  # no wider than the page, on a telephone too
    rows = [
        f"<b>segment {hit.number}</b><pre {style}>{escape(chr(10).join(written_rows(hit)))}</pre>"
        for hit in result.hits
    ]
    legend = f'<pre style="white-space:pre-wrap">{escape(LEGEND)}</pre>' if rows else ""
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1em;max-width:100%">'
        f'{_picture(result)}<div style="flex:1 1 20em;min-width:0;overflow-wrap:anywhere">'
        f"<b>{escape(sides)}</b><br>{statistics(result)}<div {style}>{shown}</div></div></div>"
        f"{''.join(rows)}{legend}"
    )


def _picture(result: AlignmentResult) -> str:
    """Draw the plan in few cells, or where there is none the aligned pairs; the query downwards."""
    plan, shape = result.plan_or_pairs(), (len(result.query), len(result.candidate))
    most = max(shape)
    rows, across = (max(1, min(n, round(n * PICTURE_CELLS / most))) for n in shape)
    cells = F.adaptive_max_pool2d(plan[None, None], (rows, across))[0, 0].clamp(max=1.0)
    drawn = "".join(
        f'<rect x="{j}" y="{i}" width="1" height="1" opacity="{float(cells[i, j]):.2f}"/>'
        for i, j in (cells > 0.1).nonzero().tolist()
    )
    if not drawn:
        return ""
    told = (
        f"Plan of {result.query.id}, {shape[0]} residues, downwards, and {result.candidate.id}, "
        f"{shape[1]} residues, across; dark where residues are aligned"
    )
    size = f'width="{round(160 * across / max(rows, across))}"'
    return (
        '<figure style="margin:0"><small>&#8595; query &#8594; candidate</small><br>'
        f'<svg role="img" aria-label="{escape(told)}" viewBox="-1 -1 {across + 2} {rows + 2}" '
        f'{size} fill="currentColor"><title>{escape(told)}</title>'
        f'<rect x="-.5" y="-.5" width="{across + 1}" height="{rows + 1}" fill="none" '
        f'stroke="currentColor" vector-effect="non-scaling-stroke"/>{drawn}</svg></figure>'
    )


# --- Selections of residues in the programs that show structures.


def _spans(protein: Protein, places: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """Yield chain and residues of it, `16-20` where numbers rise by one without insertion code."""
    labels = residue_labels(protein)
    named = [labels[at].rpartition(":")[::2] for at in places]
    for chain, group in groupby(zip(places, named, strict=True), lambda one: one[1][0]):
        parts: list[list[str]] = []
        before = -2
        for at, (_, number) in group:
            if at == before + 1 and _follows(parts[-1][-1], number):
                parts[-1].append(number)
            else:
                parts.append([number])
            before = at
        yield chain, [part[0] if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts]


def _follows(number: str, following: str) -> bool:
    plain = number.isdigit() and following.isdigit()
    return plain and int(following) == int(number) + 1


def select_in_pymol(protein: Protein, places: Sequence[int]) -> str:
    """Write `chain A and resi 57+102+195`; a negative number needs a backslash there."""
    parts = []
    for chain, spans in _spans(protein, places):
        numbers = "+".join("\\" + one if one.startswith("-") else one for one in spans)
        parts.append(f"chain {chain} and resi {numbers}" if chain else f"resi {numbers}")
    return parts[0] if len(parts) == 1 else " or ".join(f"({part})" for part in parts) or "none"


def select_in_chimerax(protein: Protein, places: Sequence[int]) -> str:
    """Write `/A:57,102,195`."""
    parts = (f"{'/' * bool(c)}{c}:{','.join(spans)}" for c, spans in _spans(protein, places))
    return " ".join(parts)


SELECTIONS = {"pymol": select_in_pymol, "chimerax": select_in_chimerax}
"""How the aligned residues of a protein are selected, by program."""


# --- Other packages, which are there or are named.


def _library(package: str, module: str | None = None) -> Any:
    try:
        return import_module(module or package)
    except ImportError as error:
        raise ImportError(f"this needs {package}: pip install {package}") from error
