"""Hits of a search as text, TSV and JSON, and Markdown tables.

Alignments write themselves: `models/alignment_result.py`, which travels with a model.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
