"""What the page says in HTML: summary, tables, downloads, problems. All text in it is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plasma_hf import DEFAULT_CHECKPOINT
from plasma_hf.io.formats import spell
from plasma_hf.models.alignment_result import AlignmentResult
from plasma_hf.models.protein import Protein

Segments = Sequence[Mapping[str, Any]]


def residue_names(record: Protein) -> list[str]:
    """Name residues by letter and number: the file's for a structure, else counted from 1.

    A chain is named where there are several.
    """
    structure = record.structure
    if structure is None:
        return [f"{letter}{number}" for number, letter in enumerate(record.sequence or "", 1)]
    several = len(set(structure.chain_ids)) > 1
    return [
        f"{chain}:{letter}{number}" if several else f"{letter}{number}"
        for chain, letter, number in zip(
            structure.chain_ids, structure.sequence, structure.author_numbers, strict=True
        )
    ]


def alignment_summary(result: AlignmentResult, records: Sequence[Protein]) -> str:
    """Write score, what it means, and the segments."""
    score = result["score"]
    compared = " and ".join(f"{r.id}, {len(r)} residues" for r in records)
    text = f'<p class="score"><b>{score:.3f}</b> score, 0 to 1</p><p>{escape(compared)}.'
    text += f" {escape(meaning(score))}</p>"
    if not result["segments"]:
        return text + "<p>No segment: no stretch of the two is aligned.</p>"
    query, candidate = (residue_names(record) for record in records)
    rows = [
        (
            hit.number,
            f"{query[segment['query_start']]} – {query[segment['query_end'] - 1]}",
            f"{candidate[segment['candidate_start']]} – {candidate[segment['candidate_end'] - 1]}",
            len(segment["pairs"]),
            f"{hit.identical / len(hit.pairs):.0%}",
            f"{segment['score']:.3f}",
        )
        for hit in result.hits
        for segment in [hit.segment]
    ]
    head = ("No.", "Query", "Candidate", "Pairs", "Identity", "Score")
    return text + table(head, rows)


def meaning(score: float) -> str:
    """Say how many of the held-out pairs with such a score were positive, as the model's files do.

    Example:
        >>> meaning(0.95)[:49]
        'Of the 112 held-out pairs that score 0.9 to 1.0, '
    """
    measured = json.loads(Path(DEFAULT_CHECKPOINT, "metrics.json").read_text(encoding="utf-8"))
    steps = measured["held_out"]["calibration"]["steps"]
    for step in steps:
        if step["from"] <= score <= step["to"]:
            share = step["positives"] / step["pairs"]
            return (
                f"Of the {step['pairs']} held-out pairs that score {step['from']} to "
                f"{step['to']}, {share:.0%} share an active site; of all, half do."
            )
    return ""


def pair_table(segments: Segments, records: Sequence[Protein]) -> str:
    """Write one line for each pair of aligned residues."""
    if not segments:
        return "<p>None.</p>"
    query, candidate = (residue_names(record) for record in records)
    rows = [
        (number, query[i], candidate[j], f"{weight:.3f}")
        for number, segment in enumerate(segments, start=1)
        for i, j, weight in segment["pairs"]
    ]
    return table(("Segment", "Query", "Candidate", "Weight"), rows)


def hit_table(query: Protein, hits: Segments, names: Mapping[str, str]) -> str:
    """Write the hits, best first, with names by the beginning of their ids."""
    text = f"<p><b>{escape(query.id)}</b>, {len(query)} residues.</p>"
    lines = "".join(
        f"<tr><td>{hit['rank']}</td><td><b>{escape(hit['id'].partition('.')[0])}</b> "
        f"{escape(names.get(hit['id'].partition('.')[0], ''))}"
        f"<br><small>{escape(spell(hit['explain']))}</small></td>"
        f"<td>{hit['score']:.3f}</td></tr>"
        for hit in hits
    )
    head = ("Rank", "Structure, and how its residues are aligned with the query's", "Cosine")
    return f"{text}{_table(head, lines)}<p>A short list to look at, not an answer.</p>"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Write a table in a box that scrolls by itself."""
    lines = (
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return _table(head, "".join(lines))


def _table(head: Iterable[str], lines: str) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="scrolls"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def preformatted(text: str) -> str:
    """Write text in columns of one width."""
    return f'<pre class="scrolls">{escape(text)}</pre>'


def downloads(files: Mapping[str, str]) -> str:
    """Write links that hold the files themselves, text by name, so that none is kept here."""
    return "".join(
        f'<a class="file" download="{name}" href="data:application/octet-stream;base64,'
        f'{base64.b64encode(text.encode()).decode()}">Download {name}</a>'
        for name, text in files.items()
    )


def problem(error: Exception) -> str:
    """Write what is wrong with what was given."""
    return f'<div class="problem" role="alert">{escape(str(error))}</div>'
