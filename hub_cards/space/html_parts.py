"""What the page says in HTML: summary, tables, downloads, problems. All text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

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
    """Write how significant the alignment is, what that means, and every hit."""
    several = result["evalue"] != result["p_value"]
    name, value = ("E", result["evalue"]) if several else ("p", result["p_value"])
    compared = " and ".join(f"{r.id}, {len(r)} residues" for r in records)
    text = f'<p class="score"><b>{name} {value:.2g}</b> score {result["score"]:.3f}, 0 to 1</p>'
    text += f"<p>{escape(compared)}. {MEANING[name]}</p>"
    if not result["segments"]:
        return text + "<p>No segment: what the two have in common is not more than chance.</p>"
    query, candidate = (residue_names(record) for record in records)
    rows = [
        (
            hit.number,
            f"{query[segment['query_start']]} – {query[segment['query_end'] - 1]}",
            f"{candidate[segment['candidate_start']]} – {candidate[segment['candidate_end'] - 1]}",
            len(segment["pairs"]),
            f"{hit.identical / len(hit.pairs):.0%}",
            f"{segment['evalue']:.2g}",
            f"{segment['bits']:.0f}",
        )
        for hit in result.hits
        for segment in [hit.segment]
    ]
    return text + table(("No.", "Query", "Candidate", "Pairs", "Identity", name, "Bits"), rows)


MEANING = {
    "p": "p is the chance that two unrelated proteins of these lengths are so much alike.",
    "E": "E is how many of the compared proteins would be so much alike by chance.",
}


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
    return table(("Segment", "Query", "Candidate", "Probability"), rows)


def structure_table(query: Protein, hits: Segments, names: Mapping[str, str]) -> str:
    """Write the structures found, best first, with names by the beginning of their ids."""
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


def search_table(query: Protein, hits: Sequence[AlignmentResult], searched: int) -> str:
    """Write the significant hits of a search, and each of their segments."""
    text = f"<p><b>{escape(query.id)}</b>, {len(query)} residues, against {searched} proteins.</p>"
    if not hits:
        return text + "<p>No significant hit.</p>"
    rows = []
    for rank, result in enumerate(hits, 1):
        names = [residue_names(side) for side in (result.query, result.candidate)]
        for hit in result.hits:
            one = hit.segment
            ranges = [
                f"{labels[one[f'{side}_start']]} – {labels[one[f'{side}_end'] - 1]}"
                for side, labels in zip(("query", "candidate"), names, strict=True)
            ]
            identity = f"{hit.identical / len(hit.pairs):.0%}"
            rows.append((rank, result.candidate.id, f"{one['evalue']:.2g}", *ranges, identity))
    return text + table(("Rank", "Protein", "E", "Query", "Protein's", "Identity"), rows)


def site_table(hits: Sequence[Any], searched: int) -> str:
    """Write the proteins that have a site, and its residues with their probabilities."""
    if not hits:
        return f"<p>No significant hit among {searched} proteins.</p>"
    rows = [
        (
            hit.candidate.id,
            f"{hit['evalue']:.2g}",
            ", ".join(f"{one} = {other} ({p:.2f})" for one, other, p in hit.correspondences),
            f"{hit.kept} of {hit['residues']}",
        )
        for hit in hits
    ]
    text = f"<p>{len(hits)} of {searched} proteins have the site.</p>"
    return text + table(("Protein", "E", "Residues, with probability", "Same kind"), rows)


def left_out(messages: Sequence[str]) -> str:
    """Write what could not be read."""
    return "".join(f"<p>Left out: {escape(one)}</p>" for one in messages)


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
