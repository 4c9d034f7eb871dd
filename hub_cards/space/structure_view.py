"""Two structures, the candidate laid upon the query, in a viewer that turns them (3Dmol.js)."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from plasma_hf.models.alignment_result import AlignmentResult

VIEWER = Path(__file__).absolute().parent / "3Dmol-min.js"
QUERY_COLOUR, CANDIDATE_COLOUR = "#2f6db5", "#d9822b"

PAGE = """<!doctype html><style>html, body, #view {{ margin: 0; height: 100%; }}</style>
<div id="view"></div><script src="gradio_api/file={viewer}"></script><script>
const viewer = $3Dmol.createViewer("view", {{ backgroundColor: "white" }});
viewer.addModel({structures}, "cif");
const query = new Set({chains}), aligned = atom => atom.b > 0;
const colour = atom => query.has(atom.chain) ? "{of_query}" : "{of_candidate}";
viewer.setStyle({{}}, {{ cartoon: {{ colorfunc: colour, opacity: 0.35 }} }});
viewer.setStyle({{ predicate: aligned }}, {{ cartoon: {{ colorfunc: colour }} }});
viewer.zoomTo(); viewer.render();
document.body.dataset.atoms = viewer.getModel().selectedAtoms({{}}).length;
</script>"""


def structure_view(result: AlignmentResult) -> str:
    """Show two structures, superposed by their aligned residues; "" where that is not possible.

    What is not aligned is pale.
    """
    query, candidate = (side.structure for side in (result.query, result.candidate))
    if query is None or candidate is None or not result["segments"]:
        return ""
    with TemporaryDirectory() as folder:
        file = Path(folder, "superposed.cif")
        try:
            found = result.superpose(str(file), with_query=True)
        except ValueError:  # of fewer than three pairs
            return ""
        structures = file.read_text(encoding="utf-8")
    page = PAGE.format(
        viewer=VIEWER,
        structures=json.dumps(structures).replace("<", "\\u003c"),
        chains=json.dumps(sorted(set(query.chain_ids))).replace("<", "\\u003c"),
        of_query=QUERY_COLOUR,
        of_candidate=CANDIDATE_COLOUR,
    )
    told = (
        f"{found.about()['pairs']} of {found.about()['matched']} pairs, RMSD {found.rmsd:.2f} Å; "
        "drag to turn, scroll to zoom. What is not aligned is pale."
    )
    legend = "".join(
        f'<b style="color: {colour}">{escape(side.id)}</b> '
        for side, colour in ((result.query, QUERY_COLOUR), (result.candidate, CANDIDATE_COLOUR))
    )
    return (
        f'<h3>Superposed</h3><p>{legend}{told}</p><iframe class="structures" '
        f'sandbox="allow-scripts" title="Superposed structures" srcdoc="{escape(page)}"></iframe>'
    )
