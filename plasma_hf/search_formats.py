"""Hits as text, TSV and JSON: what a reader, a table and a program want to see."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIELDS = {
    "query": "id of the query",
    "rank": "place of the hit, from 1",
    "id": "id of the hit",
    "score": "cosine of the two vectors, -1 to 1",
    "source": "file and record that the hit was read from",
    "query_residues": "with --explain, residues of the query that weigh most, as K52:0.031,...",
    "hit_residues": "with --explain, those of the hit, each letter, number and weight",
}
"""Columns of the TSV, in order, and what they hold."""

Hits = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Format:
    """How to write hits: `head` once, then `render(query, its residues, hits)` for each query."""

    head: str
    render: Callable[[str, int, Hits], str]


def to_text(query: str, residues: int, hits: Hits) -> str:
    """Write the hits of a query as a table for the eye."""
    width = max([2, *(len(hit["id"]) for hit in hits)])
    lines = [f"query  {query}  {residues} residues"]
    if hits and "explain" in hits[0]:
        lines.append(f"       {spell(hits[0]['explain']['query'])}")
    lines += ["", f"rank   score  {'id':<{width}}  source"]
    for hit in hits:
        lines.append(
            f"{hit['rank']:>4}  {hit['score']:>6.4f}  {hit['id']:<{width}}  {hit['source']}"
        )
        if "explain" in hit:
            lines.append(f"              {_spell_hit(hit)}")
    return "\n".join(line.rstrip() for line in lines) + "\n\n"


def to_tsv(query: str, residues: int, hits: Hits) -> str:
    """Write one line a hit."""
    table = io.StringIO()
    writer = csv.DictWriter(table, FIELDS, delimiter="\t", lineterminator="\n")
    for hit in hits:
        row = {name: hit[name] for name in ("rank", "id", "source")}
        row |= {"query": query, "score": f"{hit['score']:.6f}"}
        if "explain" in hit:
            row["query_residues"] = spell(hit["explain"]["query"])
            row["hit_residues"] = spell(hit["explain"]["candidate"] or ())
        writer.writerow(row)
    return table.getvalue()


def to_json(query: str, residues: int, hits: Hits) -> str:
    """Write one line a query, with the pipeline's result as it is."""
    return json.dumps({"query": query, "query_length": residues, "hits": list(hits)}) + "\n"


FORMATS = {
    "text": Format("", to_text),
    "json": Format("", to_json),
    "tsv": Format("\t".join(FIELDS) + "\n", to_tsv),
}
"""Formats by name."""


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


def _spell_hit(hit: Mapping[str, Any]) -> str:
    weighed = hit["explain"]["candidate"]
    return spell(weighed) if weighed is not None else f"not explained: {hit['explain']['error']}"
