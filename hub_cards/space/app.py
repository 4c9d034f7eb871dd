"""The demo page: align, search, transfer a site, find a structure; `python app.py` serves it."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import of gradio

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradio as gr
import tools
from html_parts import (
    alignment_summary,
    downloads,
    left_out,
    pair_table,
    preformatted,
    problem,
    search_table,
    site_table,
    structure_table,
)
from plan_figure import plan_figure
from read_inputs import read_database, read_input
from structure_view import VIEWER, structure_view
from transformers import pipeline

import plasma_hf
from plasma_hf.io.formats import HIT_FORMATS
from plasma_hf.models.alignment_result import FORMATS, AlignmentResults
from plasma_hf.models.protein import read_records
from plasma_hf.search.sites import SITE_FIELDS, transfer_sites

HERE = Path(__file__).absolute().parent
ROOT = HERE if (HERE / "demo").is_dir() else HERE.parent.parent  # a Space, or a clone
DEMO = ROOT / "demo"
STRUCTURES = DEMO / "structures"
QUERY, CANDIDATE = (
    f">{protein.id}\n{protein.sequence}"
    for protein in read_records(DEMO / "serine_proteases.fasta")
)
BPTI = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
MOST_WAITING = 20
"""Visitors whose request waits; the next one is told to come back."""

NAMES = {
    "1acb_E": "chymotrypsin",
    "2cga_B": "chymotrypsinogen A",
    "1ppe_E": "trypsin",
    "2sni_E": "subtilisin Novo",
    "1r0r_E": "subtilisin Carlsberg",
    "1eaw_B": "BPTI bound to matriptase",
    "9pti_A": "free BPTI",
    "1ay7_B": "barstar",
}
"""What is searched, by the beginning of its id."""

TITLE = """# plasma_hf: which residues correspond
Align two proteins residue by residue, search many, find the residues of a site in others, or the
structure that belongs to a sequence: with p-values, so that you know what to believe."""
NOTE = """Files are FASTA, PDB or mmCIF, each also with .gz. Of a structure alignments read the
residues, finding a structure the coordinates. Residues of a structure are called by the numbers in
its file, those of a sequence from 1; rows and TSV count all from 1, JSON from 0."""


@cache
def searcher() -> Any:
    """Load the bundled ProtAlign, and embed the structures."""
    model = plasma_hf.DEFAULT_RETRIEVAL_CHECKPOINT
    return pipeline("protein-retrieval", model=model, candidates=STRUCTURES)


def align(*given: Any) -> list[Any]:
    """Align two proteins, each given as text, file and part, the candidate one of so many.

    Returns:
        Summary, structures, figure, pairs, rows and downloads, as the page shows them.
    """
    records = read_input(*given[:3], name="query"), read_input(*given[3:6], name="candidate")
    size = max(1, int(given[6] or 1))
    result = tools.aligner()(records, return_plan=True, database_size=size)
    return [
        alignment_summary(result, records),
        structure_view(result),
        plan_figure(result["plan"], result["segments"], records),
        pair_table(result["segments"], records),
        preformatted(result.to_string()),
        downloads(
            {f"alignment{form.endings[0]}": result.to_string(n) for n, form in FORMATS.items()}
        ),
    ]


def search(
    text: str, file: str | None, part: str, proteins: str, files: list[str] | None
) -> list[Any]:
    """Search proteins with a protein.

    Returns:
        Hits and downloads, as the page shows them.
    """
    query = read_input(text, file, part, "query")
    database, invalid = read_database(proteins, files, STRUCTURES)
    [hits] = database.search([query], tools.aligner(), sensitivity="all")
    results = AlignmentResults(hits)
    written = {f"hits{form.endings[0]}": results.to_string(n) for n, form in FORMATS.items()}
    return [search_table(query, hits, len(database)) + left_out(invalid), downloads(written)]


def transfer(
    text: str, file: str | None, part: str, residues: str, proteins: str, files: list[str] | None
) -> list[Any]:
    """Find the residues of a site in proteins.

    Returns:
        Hits and downloads, as the page shows them.
    """
    query = read_input(text, file, part, "query")
    if not residues.strip():
        raise ValueError("name the residues of the site, such as H57,D102,S195.")
    database, invalid = read_database(proteins, files, STRUCTURES)
    searched = len(database)
    [hits] = transfer_sites(query, [residues], database, tools.aligner(), 0.01, searched)
    rows = [hit.row() for hit in hits]
    lines = ["\t".join(words) for words in (SITE_FIELDS, *(row.values() for row in rows))]
    written = {"sites.tsv": "\n".join([*lines, ""]), "sites.json": json.dumps(rows, indent=1)}
    return [site_table(hits, searched) + left_out(invalid), downloads(written)]


def find_structure(text: str, file: str | None, part: str, top_k: int) -> list[Any]:
    """Find the structures that belong to a protein.

    Returns:
        Hits and downloads, as the page shows them.
    """
    query = read_input(text, file, part, "query")
    found = searcher()(query, top_k=int(top_k), explain=True)
    hits = [hit | {"source": hit["id"]} for hit in found]  # not where they are on this machine
    return [
        structure_table(query, hits, NAMES),
        downloads(
            {
                f"hits.{name}": HIT_FORMATS[name].head
                + HIT_FORMATS[name].render(query.id, len(query), hits)
                for name in ("json", "tsv")
            }
        ),
    ]


def or_problem(function: Callable[..., list[Any]], shown: int) -> Callable[..., list[Any]]:
    """Let a function's results be shown, or else what the library says of bad input."""

    @wraps(function)
    def run(*given: Any) -> list[Any]:
        try:
            results = function(*given)
        except (ValueError, TypeError, OSError) as error:
            hidden = [gr.skip()] * shown
            return [gr.HTML(problem(error), visible=True), gr.Column(visible=False), *hidden]
        return [gr.HTML(visible=False), gr.Column(visible=True), *results]

    return run


def as_json(tool: Callable[..., Any]) -> Callable[..., str]:
    """Answer in JSON, or with what is wrong with a call."""

    @wraps(tool)
    def run(*given: Any, **named: Any) -> str:
        try:
            return json.dumps(tool(*given, **named))
        except (ValueError, TypeError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return run


def protein_input(name: str, text: str) -> list[Any]:
    """Lay out the fields of one protein: text or file, of which the later one holds, and part."""
    with gr.Column(min_width=300):
        typed = gr.Textbox(
            text,
            label=name,
            lines=6,
            max_lines=6,
            placeholder="a sequence, or FASTA",
            elem_id=name.lower(),
        )
        with gr.Row():
            file = gr.File(label="or a file", height=90, min_width=140, elem_classes="upload")
            part = gr.Textbox(
                label="Chain or record", placeholder="if several", max_lines=1, min_width=120
            )
    file.upload(None, js="() => ''", outputs=typed)
    typed.input(None, js="() => null", outputs=file)
    return [typed, file, part]


def database_input(name: str) -> list[Any]:
    """Lay out the fields of the proteins that are searched: text or files, or neither."""
    with gr.Column(min_width=300):
        typed = gr.Textbox(
            label="Proteins to search",
            lines=6,
            max_lines=6,
            placeholder=f"FASTA; or nothing, for the {len(NAMES)} chains of this page",
            elem_id=f"{name}-proteins",
        )
        several = {"file_count": "multiple", "elem_classes": "upload", "height": 90}
        files = gr.File(label="or files", **several)
    files.upload(None, js="() => ''", outputs=typed)
    typed.input(None, js="() => null", outputs=files)
    return [typed, files]


Run = Callable[[Callable[..., list[Any]], list[Any], list[Any]], None]


@contextmanager
def results_of(name: str) -> Iterator[Run]:
    """Lay out a button, and a column of results that it shows, or what is wrong with the input."""
    button = gr.Button(name.capitalize(), variant="primary", elem_id=name)
    problem_box = gr.HTML(visible=False, elem_id=f"{name}-problem")
    column = gr.Column(visible=False)

    def run(function: Callable[..., list[Any]], inputs: list[Any], shown: list[Any]) -> None:
        outputs = [problem_box, column, *shown]
        options: Any = {"api_name": f"show_{name}", "api_visibility": "undocumented"}
        shows = or_problem(function, len(shown))
        button.click(shows, inputs, outputs, show_progress_on=button, **options)

    with column:
        yield run


def align_tab() -> None:
    """Lay out the alignment of two proteins."""
    with gr.Row():
        inputs = [*protein_input("Query", QUERY), *protein_input("Candidate", CANDIDATE)]
    gr.Examples(
        [
            [QUERY, None, "", CANDIDATE, None, ""],
            ["", str(STRUCTURES / "2cga_B.pdb.gz"), "", "", str(STRUCTURES / "1ppe_E.pdb.gz"), ""],
        ],
        inputs,
        example_labels=["Two sequences", "Two structure files"],
        label="Chymotrypsinogen and trypsin as",
    )
    compared = gr.Number(
        1, label="The candidate is one of so many that were compared", precision=0, minimum=1
    )
    with results_of("align") as run:
        summary, structures = gr.HTML(elem_id="alignment"), gr.HTML(elem_id="structures")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Plan\nHow much residues correspond; zoom in with the magnifier.")
                figure = gr.Plot(show_label=False, container=False, elem_id="plan")
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Residues\nPairs of each segment, with their probability.")
                pairs = gr.HTML(elem_id="pairs")
        with gr.Accordion("Alignment in rows", open=False):
            rows = gr.HTML(elem_id="rows")
        files = gr.HTML(elem_id="alignment-files")
    run(align, [*inputs, compared], [summary, structures, figure, pairs, rows, files])


def search_tab() -> None:
    """Lay out the search of proteins."""
    with gr.Row():
        inputs = [*protein_input("Protein", QUERY), *database_input("search")]
    with results_of("search") as run:
        shown = [gr.HTML(elem_id="hits"), gr.HTML(elem_id="hit-files")]
    run(search, inputs, shown)


def site_tab() -> None:
    """Lay out the transfer of a site."""
    with gr.Row():
        with gr.Column(min_width=300):
            inputs = protein_input("Known", "")
            residues = gr.Textbox(
                "H57,D102,S195",
                label="Residues of its site",
                max_lines=1,
                info="by the numbers of a structure's file, else counted from 1",
                elem_id="residues",
            )
        proteins = database_input("transfer")
    gr.Examples(
        [["", str(STRUCTURES / "2cga_B.pdb.gz"), "", "H57,D102,S195"]],
        [*inputs, residues],
        example_labels=["Catalytic triad of chymotrypsinogen"],
        label="Examples",
    )
    with results_of("transfer") as run:
        shown = [gr.HTML(elem_id="sites"), gr.HTML(elem_id="site-files")]
    run(transfer, [*inputs, residues, *proteins], shown)


def structure_tab() -> None:
    """Lay out the search of structures."""
    with gr.Row():
        inputs = protein_input("Sequence", BPTI)
        with gr.Column(min_width=300):
            top_k = gr.Slider(1, len(NAMES), value=5, step=1, label="Hits")
            gr.Markdown(f"Searched are {len(NAMES)} chains: {', '.join(NAMES.values())}.")
    gr.Examples(
        [[BPTI, None, ""], ["", str(STRUCTURES / "2cga_B.pdb.gz"), ""]],
        inputs,
        example_labels=["Sequence of BPTI", "Structure of chymotrypsinogen"],
        label="Examples",
    )
    with results_of("find") as run:
        shown = [gr.HTML(elem_id="found"), gr.HTML(elem_id="found-files")]
    run(find_structure, [*inputs, top_k], shown)


TABS = {"Align": align_tab, "Search": search_tab, "Site": site_tab, "Structure": structure_tab}


def serves_tools() -> bool:
    """Tell whether agents can be served: gradio does so with the package mcp before version 2."""
    try:
        return version("mcp").startswith("1.")
    except PackageNotFoundError:
        return False


def build() -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="plasma_hf", delete_cache=(3600, 3600)) as page:  # uploads, in seconds
        gr.Markdown(TITLE)
        for name, lay_out in TABS.items():
            with gr.Tab(name):
                lay_out()
        for tool in tools.TOOLS:
            gr.api(as_json(tool), api_name=tool.__name__)
        gr.Markdown(f"{NOTE} plasma_hf {plasma_hf.__version__}, MIT.")
    return page


def main() -> None:
    """Serve the page, and tools for agents, once both models have been loaded and tried."""
    align(QUERY, None, "", CANDIDATE, None, "", 1)
    find_structure(BPTI, None, "", 1)
    build().queue(max_size=MOST_WAITING, default_concurrency_limit=1).launch(
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=HERE / "style.css",
        allowed_paths=[str(STRUCTURES), str(VIEWER)],
        mcp_server=serves_tools(),
        footer_links=[],
        max_file_size="5mb",
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
