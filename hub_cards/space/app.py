"""The demo page: align two proteins, or search a few structures; `python app.py` serves it."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import of gradio

import gzip
import zlib
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from html_parts import alignment_summary, downloads, hit_table, pair_table, preformatted, problem
from plan_figure import plan_figure
from transformers import pipeline

import plasma_hf
from plasma_hf.io.formats import HIT_FORMATS
from plasma_hf.models.alignment_result import FORMATS
from plasma_hf.models.protein import BACKBONE_ATOMS, Protein, read_protein, read_records

HERE = Path(__file__).absolute().parent
ROOT = HERE if (HERE / "demo").is_dir() else HERE.parent.parent  # a Space, or a clone
DEMO = ROOT / "demo"
STRUCTURES = DEMO / "structures"
QUERY, CANDIDATE = (
    f">{protein.id}\n{protein.sequence}"
    for protein in read_records(DEMO / "serine_proteases.fasta")
)
BPTI = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
MOST_RESIDUES = 3000
"""Residues of a protein that this page takes; the library has no limit."""
MOST_LETTERS, MOST_BYTES, MOST_RECORDS = 100_000, 50_000_000, 1000
"""Characters of a text, bytes that a file may unpack to, and FASTA records of either."""
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
Align two proteins residue by residue, even where they share no more than an active site; or find
the structure that belongs to a sequence."""
NOTE = """Files are FASTA, PDB or mmCIF, each also with .gz. Of a structure the alignment reads the
residues, the search the coordinates. Residues of a structure are called by the numbers in its file,
those of a sequence from 1; rows and TSV count all from 1, JSON from 0."""


@cache
def aligner() -> Any:
    """Load the bundled PLASMA model."""
    return pipeline("protein-alignment", model=plasma_hf.DEFAULT_CHECKPOINT)


@cache
def searcher() -> Any:
    """Load the bundled ProtAlign, and embed the structures."""
    model = plasma_hf.DEFAULT_RETRIEVAL_CHECKPOINT
    return pipeline("protein-retrieval", model=model, candidates=STRUCTURES)


def read_input(text: str, file: str | None, part: str, name: str) -> Protein:
    """Read a protein from what a visitor gave: a file, or else a sequence or FASTA text.

    Args:
        text: Never taken for a path.
        file: Where the upload is.
        part: Chain or record of the file or text, "" where it has one only.
        name: What to call a sequence without a name.

    Raises:
        ValueError: If it cannot be used, or is longer than `MOST_RESIDUES`.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(
            f"the text has {len(text):,} characters, and this page takes up to {MOST_LETTERS:,}; "
            "the library takes more: plasma-hf align."
        )
    if file:
        record = read_file(Path(file), part)
    elif text.lstrip().startswith(">"):
        with TemporaryDirectory() as folder:
            pasted = Path(folder, "text.fasta")
            pasted.write_text(text, encoding="utf-8")
            record = read_file(pasted, part)
    else:
        record = read_protein({"id": name, "sequence": text}, name)
    if len(record) > MOST_RESIDUES:
        raise ValueError(
            f"{record.id} has {len(record)} residues, and this page takes up to "
            f"{MOST_RESIDUES}; the library takes more: plasma-hf align."
        )
    return record


def read_file(file: Path, part: str) -> Protein:
    """Read one protein of a file; errors name the file, not the folder it was put into."""
    check_size(file)
    try:
        place = f"{file}:{part.strip()}" if part.strip() else file
        return read_protein(place, "query", BACKBONE_ATOMS)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(f"{file.parent}{os.sep}", "")) from error


def check_size(file: Path) -> None:
    """Refuse a file that unpacks to much, or has many records, without keeping what is in it."""
    size = records = 0
    last = b"\n"
    try:
        packed = file.read_bytes()[:2] == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as content:
            while piece := content.read(2**20):
                size, records = size + len(piece), records + (last + piece).count(b"\n>")
                last = piece[-1:]
                if size > MOST_BYTES or records > MOST_RECORDS:
                    raise ValueError(
                        f"{file.name} holds more than {MOST_BYTES // 10**6} MB or "
                        f"{MOST_RECORDS} records, the most that this page takes; the library takes "
                        "more: plasma-hf align."
                    )
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file.name} cannot be read: {error}.") from error


def align(*given: Any) -> list[Any]:
    """Align two proteins, each given as text, file and part.

    Returns:
        Summary, figure, pairs, rows and downloads, as the page shows them.
    """
    records = read_input(*given[:3], name="query"), read_input(*given[3:], name="candidate")
    result = aligner()(records, return_plan=True)
    return [
        alignment_summary(result, records),
        plan_figure(result["plan"], result["segments"], records),
        pair_table(result["segments"], records),
        preformatted(result.to_string()),
        downloads(
            {f"alignment{form.endings[0]}": result.to_string(n) for n, form in FORMATS.items()}
        ),
    ]


def search(text: str, file: str | None, part: str, top_k: int) -> list[Any]:
    """Search the structures with a protein.

    Returns:
        Hits and downloads, as the page shows them.
    """
    query = read_input(text, file, part, "query")
    found = searcher()(query, top_k=int(top_k), explain=True)
    hits = [hit | {"source": hit["id"]} for hit in found]  # not where they are on this machine
    return [
        hit_table(query, hits, NAMES),
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
    button = gr.Button("Align", variant="primary", elem_id="align")
    problem_box = gr.HTML(visible=False, elem_id="align-problem")
    with gr.Column(visible=False) as results:
        summary = gr.HTML(elem_id="alignment")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                gr.Markdown("### Plan\nHow much residues correspond; zoom in with the magnifier.")
                figure = gr.Plot(show_label=False, container=False, elem_id="plan")
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Residues\nPairs of each segment, with their weight in the plan.")
                pairs = gr.HTML(elem_id="pairs")
        with gr.Accordion("Alignment in rows", open=False):
            rows = gr.HTML(elem_id="rows")
        files = gr.HTML(elem_id="alignment-files")
    shown = [summary, figure, pairs, rows, files]
    run = or_problem(align, len(shown))
    button.click(run, inputs, [problem_box, results, *shown], show_progress_on=button)


def search_tab() -> None:
    """Lay out the search."""
    with gr.Row():
        inputs = protein_input("Protein", BPTI)
        with gr.Column(min_width=300):
            top_k = gr.Slider(1, len(NAMES), value=5, step=1, label="Hits")
            gr.Markdown(f"Searched are {len(NAMES)} chains: {', '.join(NAMES.values())}.")
    gr.Examples(
        [[BPTI, None, ""], ["", str(STRUCTURES / "2cga_B.pdb.gz"), ""]],
        inputs,
        example_labels=["Sequence of BPTI", "Structure of chymotrypsinogen"],
        label="Examples",
    )
    button = gr.Button("Search", variant="primary", elem_id="search")
    problem_box = gr.HTML(visible=False, elem_id="search-problem")
    with gr.Column(visible=False) as results:
        hits = gr.HTML(elem_id="hits")
        files = gr.HTML(elem_id="hit-files")
    shown = [hits, files]
    run, outputs = or_problem(search, len(shown)), [problem_box, results, *shown]
    button.click(run, [*inputs, top_k], outputs, show_progress_on=button)


def build() -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="plasma_hf", delete_cache=(3600, 3600)) as page:  # uploads, in seconds
        gr.Markdown(TITLE)
        with gr.Tab("Align"):
            align_tab()
        with gr.Tab("Search"):
            search_tab()
        gr.Markdown(f"{NOTE} plasma_hf {plasma_hf.__version__}, MIT.")
    return page


def main() -> None:
    """Serve the page, once both models have been loaded and tried."""
    align(QUERY, None, "", CANDIDATE, None, "")
    search(BPTI, None, "", 1)
    build().queue(max_size=MOST_WAITING, default_concurrency_limit=1).launch(
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=HERE / "style.css",
        allowed_paths=[str(STRUCTURES)],
        footer_links=[],
        max_file_size="5mb",
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
