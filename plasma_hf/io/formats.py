"""Alignments and hits as text, TSV and JSON: what a reader, a table and a program want to see.

Text and TSV count residues from 1 and include the last one, as the field's formats do; JSON keeps
the pipeline's own result, 0-based with ends exclusive.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.protein import Protein

BLOCK = 60  # alignment columns per line
STRONG, CLEAR = 0.9, 0.7  # plan weights from which a pair is drawn as `|` and as `:`
LEGEND = (
    f"between the rows, plan weight:  | from {STRONG}   : from {CLEAR}   . above the threshold"
    "   blank not aligned\n"
)

FIELDS = {
    "query": "id of the query",
    "candidate": "id of the candidate",
    "score": "score of the pair",
    "segment": "number of the segment, from 1; it and the rest are empty where there is none",
    "segment_score": "score of the segment",
    "query_start": "first aligned query residue, from 1",
    "query_end": "last aligned query residue, included",
    "candidate_start": "first aligned candidate residue, from 1",
    "candidate_end": "last aligned candidate residue, included",
    "pairs": "aligned residue pairs",
    "identity": "share of them with the same letter",
    "residue_pairs": "each as query:candidate:plan weight, from 1, with commas between",
}
"""Columns of an alignment's TSV, in order, and what they hold."""

HIT_FIELDS = {
    "query": "id of the query",
    "rank": "place of the hit, from 1",
    "id": "id of the hit",
    "score": "cosine of the two vectors, -1 to 1",
    "source": "file and record that the hit was read from",
    "query_residues": "with --explain, residues of the query that weigh most, as K52:0.031,...",
    "hit_residues": "with --explain, those of the hit, each letter, number and weight",
}
"""Columns of the hits' TSV, in order, and what they hold."""

Hits = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Format:
    """How to write results: `head` once, then `render(...)` for each, as its functions take it."""

    head: str
    render: Callable[..., str]


@dataclass(frozen=True)
class AlignedPair:
    """Two proteins with clean sequences, and what `pipeline("protein-alignment")` says of them."""

    query: Protein
    candidate: Protein
    result: Mapping[str, Any]

    def __post_init__(self) -> None:
        for protein in (self.query, self.candidate):
            if protein.sequence is None:
                raise ValueError(
                    f"{protein.id!r} has residue embeddings and no sequence; alignments are "
                    "written in letters, so give Protein(id, sequence)."
                )
        if "error" in self.result:
            raise ValueError(
                f"{self.query.id!r} and {self.candidate.id!r} have no alignment: "
                f"{self.result['error']}"
            )

    @property
    def letters(self) -> tuple[str, str]:
        """Sequences of query and candidate."""
        return self.query.sequence or "", self.candidate.sequence or ""

    def identity(self, segment: Mapping[str, Any]) -> float:
        """Return the share of a segment's pairs with the same letter."""
        query, candidate = self.letters
        return sum(query[i] == candidate[j] for i, j, _ in segment["pairs"]) / len(segment["pairs"])


def to_text(pair: AlignedPair) -> str:
    """Write one alignment for the eye: what was compared, then each segment in rows."""
    width = max(len(pair.query.id), len(pair.candidate.id))
    lines = [
        "",
        f"query      {pair.query.id:<{width}}  {len(pair.query)} residues",
        f"candidate  {pair.candidate.id:<{width}}  {len(pair.candidate)} residues",
        f"score      {pair.result['score']:.4f}",
    ]
    if not pair.result["segments"]:
        lines.append("no segment: no stretch of the two is aligned above the threshold")
    for number, segment in enumerate(pair.result["segments"], start=1):
        query_span, candidate_span = (
            f"{side} {segment[f'{side}_start'] + 1}-{segment[f'{side}_end']}"
            for side in ("query", "candidate")
        )
        title = (
            f"segment {number}  {query_span}  {candidate_span}  score {segment['score']:.4f}  "
            f"pairs {len(segment['pairs'])}  identity {pair.identity(segment):.3f}"
        )
        lines += ["", title, "", *_rows(pair, segment)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def to_tsv(pair: AlignedPair) -> str:
    """Write one line per segment; a pair without any keeps one, with those fields empty."""
    ids = {"query": pair.query.id, "candidate": pair.candidate.id}
    about = ids | {"score": f"{pair.result['score']:.6f}"}
    rows = [
        {
            "segment": number,
            "segment_score": f"{segment['score']:.6f}",
            "query_start": segment["query_start"] + 1,
            "query_end": segment["query_end"],
            "candidate_start": segment["candidate_start"] + 1,
            "candidate_end": segment["candidate_end"],
            "pairs": len(segment["pairs"]),
            "identity": f"{pair.identity(segment):.4f}",
            "residue_pairs": ",".join(f"{i + 1}:{j + 1}:{w:.3f}" for i, j, w in segment["pairs"]),
        }
        for number, segment in enumerate(pair.result["segments"], start=1)
    ]
    return _table(FIELDS, [about | row for row in rows or [{}]])


def to_json(pair: AlignedPair) -> str:
    """Write one line with ids, lengths and the pipeline's result as it is."""
    about: dict[str, Any] = {"query": pair.query.id, "candidate": pair.candidate.id}
    about |= {"query_length": len(pair.query), "candidate_length": len(pair.candidate)}
    result = {name: value for name, value in pair.result.items() if name != "plan"}
    return json.dumps(about | result) + "\n"


def columns(pairs: list[Any]) -> Iterator[tuple[int | None, int | None, float | None]]:
    """Lay out the pairs of a segment, and between them what neither side has a partner for.

    Between two pairs the unaligned residues of both sides share columns as far as both have some;
    the rest stand alone.

    Example:
        >>> list(columns([(0, 0, 1.0), (3, 2, 0.8)]))
        [(0, 0, 1.0), (1, 1, None), (2, None, None), (3, 2, 0.8)]
    """
    for (i, j, weight), (next_i, next_j, _) in pairwise(pairs):
        yield i, j, weight
        for left_i, left_j in zip_longest(range(i + 1, next_i), range(j + 1, next_j)):
            yield left_i, left_j, None
    yield from (tuple(pair) for pair in pairs[-1:])


def hits_to_text(query: str, residues: int, hits: Hits) -> str:
    """Write the hits of a query as a table for the eye."""
    width = max([2, *(len(hit["id"]) for hit in hits)])
    lines = [f"query  {query}  {residues} residues"]
    if hits and "explain" in hits[0]:
        lines.append(f"       {spell(hits[0]['explain']['query'])}")
    lines += ["", f"rank   score  {'id':<{width}}  source"]
    for hit in hits:
        name = f"{hit['id']:<{width}}"
        lines.append(f"{hit['rank']:>4}  {hit['score']:>6.4f}  {name}  {hit['source']}")
        if "explain" in hit:
            weighed, error = hit["explain"]["candidate"], hit["explain"].get("error")
            spelled = f"not explained: {error}" if weighed is None else spell(weighed)
            lines.append(f"              {spelled}")
    return "\n".join(line.rstrip() for line in lines) + "\n\n"


def hits_to_tsv(query: str, residues: int, hits: Hits) -> str:
    """Write one line per hit."""
    rows = []
    for hit in hits:
        row = {name: hit[name] for name in ("rank", "id", "source")}
        row |= {"query": query, "score": f"{hit['score']:.6f}"}
        if "explain" in hit:
            row["query_residues"] = spell(hit["explain"]["query"])
            row["hit_residues"] = spell(hit["explain"]["candidate"] or ())
        rows.append(row)
    return _table(HIT_FIELDS, rows)


def hits_to_json(query: str, residues: int, hits: Hits) -> str:
    """Write one line per query, with the pipeline's result as it is."""
    return json.dumps({"query": query, "query_length": residues, "hits": list(hits)}) + "\n"


def spell(weighed: Sequence[Mapping[str, Any]]) -> str:
    """Write residues and their weights; a chain is named where there are several.

    Example:
        >>> spell([{"residue": "52A", "chain": "A", "letter": "K", "weight": 0.0314}])
        'K52A:0.031'
    """
    several = len({one["chain"] for one in weighed}) > 1
    return ",".join(
        (f"{one['chain']}/" if several else "")
        + f"{one['letter']}{one['residue']}:{one['weight']:.3f}"
        for one in weighed
    )


FORMATS = {
    "text": Format(LEGEND, to_text),
    "json": Format("", to_json),
    "tsv": Format("\t".join(FIELDS) + "\n", to_tsv),
}
"""Formats of an alignment by name; each renders an `AlignedPair`."""

HIT_FORMATS = {
    "text": Format("", hits_to_text),
    "json": Format("", hits_to_json),
    "tsv": Format("\t".join(HIT_FIELDS) + "\n", hits_to_tsv),
}
"""Formats of hits by name; each renders the id of a query, its residues and its hits."""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table, its columns after the first `left` ones right-aligned.

    Example:
        >>> print(markdown_table(("aligner", "ROC-AUC"), [("eba", "0.9")]))
        | aligner | ROC-AUC |
        |---|--:|
        | eba | 0.9 |
    """
    first, *lines = (
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        for cells in (head, *rows)
    )
    return "\n".join([first, "|" + "---|" * left + "--:|" * (len(head) - left), *lines])


def _table(fields: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, fields, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(pair: AlignedPair, segment: Mapping[str, Any]) -> Iterator[str]:
    """Write a segment as query, marks and candidate, some columns at a time; see `LEGEND`."""
    laid_out = list(columns(segment["pairs"]))
    width = len(str(max(segment["query_end"], segment["candidate_end"])))
    for start in range(0, len(laid_out), BLOCK):
        i, j, weights = zip(*laid_out[start : start + BLOCK], strict=True)
        marks = (
            " " if weight is None else "|" if weight >= STRONG else ":" if weight >= CLEAR else "."
            for weight in weights
        )
        yield _row("query", pair.letters[0], i, width)
        yield f"{'':{11 + width}}{''.join(marks)}"
        yield _row("candidate", pair.letters[1], j, width)
        yield ""


def _row(side: str, sequence: str, indices: tuple[int | None, ...], width: int) -> str:
    letters = "".join("-" if i is None else sequence[i] for i in indices)
    there = [i + 1 for i in indices if i is not None]
    first, last = (there[0], there[-1]) if there else ("", "")
    return f"{side:<9} {first:>{width}} {letters} {last:>{width}}"
