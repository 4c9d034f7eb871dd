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
    "evalue": "with --explain, of the best alignment of both, by residues",
    "query_residues": "with --explain, where that lies in the query, as the authors number it",
    "hit_residues": "with --explain, where it lies in the hit",
    "pairs": "with --explain, residues that correspond",
    "identity": "with --explain, share of them that are of one kind",
    "rmsd": "with --explain, of their CA once superposed, in angstroms, of two structures",
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
    lines = [f"query  {query}  {residues} residues", "", f"rank   score  {'id':<{width}}  source"]
    for hit in hits:
        name = f"{hit['id']:<{width}}"
        lines.append(f"{hit['rank']:>4}  {hit['score']:>6.4f}  {name}  {hit['source']}")
        if "explain" in hit:
            lines.append(f"              {spell(hit['explain'])}")
    return "\n".join(line.rstrip() for line in lines) + "\n\n"


def hits_to_tsv(query: str, residues: int, hits: Hits) -> str:
    """Write one line per hit."""
    text = io.StringIO()
    rows = csv.DictWriter(text, HIT_FIELDS, delimiter="\t", lineterminator="\n")
    for hit in hits:
        row = {name: hit[name] for name in ("rank", "id", "source")}
        row |= {"query": query, "score": f"{hit['score']:.6f}"}
        rows.writerow(row | explained(hit.get("explain", {})))
    return text.getvalue()


def hits_to_json(query: str, residues: int, hits: Hits) -> str:
    """Write one line per query, with the pipeline's result as it is."""
    return json.dumps({"query": query, "query_length": residues, "hits": list(hits)}) + "\n"


def explained(found: Any) -> dict[str, str]:
    """Return what columns of a table say of a hit's alignment, an `AlignmentResult`."""
    if "evalue" not in found:
        return {}
    told = {"evalue": f"{found['evalue']:.2g}"}
    for best in found.hits[:1]:
        for side, column in (("query", "query_residues"), ("candidate", "hit_residues")):
            labels = found.residues(side)
            first, last = best.segment[f"{side}_start"], best.segment[f"{side}_end"] - 1
            told[column] = f"{labels[first]}-{labels[last]}"
        told["pairs"] = str(len(best.pairs))
        told["identity"] = f"{best.identical / len(best.pairs):.2f}"
    if "superposition" in found:
        told["rmsd"] = f"{found['superposition']['rmsd']:.2f}"
    return told


def spell(found: Any) -> str:
    """Say in a line what an alignment of a query with a hit shows."""
    if "error" in found:
        return f"not explained: {found['error']}"
    told = explained(found)
    if "pairs" not in told:
        return f"no significant alignment, E {told['evalue']}"
    rmsd = f"  RMSD {told['rmsd']} Å" if "rmsd" in told else ""
    where = f"{told['query_residues']} = {told['hit_residues']}"
    return f"E {told['evalue']}  {where}  {told['pairs']} pairs  identity {told['identity']}{rmsd}"


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
