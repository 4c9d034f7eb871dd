"""Choose how a site's residues are found: `python -m reproduce.site_study`; needs `../shared`.

What weighs beside the evidence of two residues - that they are of the same kind, and that they are
aligned - is chosen on half of the families of active sites; `plasma-hf evaluate transfer` on the
other half is what is reported. The tables go to `results/site_study.md`, and the second one to the
benchmarks.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import plasma_hf  # noqa: F401  # has the pipeline
from plasma_hf.evaluation import transfer
from plasma_hf.evaluation.transfer import LabelledSite
from plasma_hf.search import sites
from plasma_hf.search.database import default_pipeline

RESULTS = Path(__file__).parent / "results" / "site_study.md"
REPORTED = Path(__file__).parents[1] / "tests" / "benchmarks" / "results" / "site_transfer.md"
TABLE = Path(__file__).parents[2] / "shared" / "data" / "sites" / "active_site.csv"
# The first is what the package has.
TRIED = [(4.0, 0.35), (0.0, 0.35), (2.0, 0.35), (6.0, 0.35), (4.0, 0.0), (4.0, 0.2), (4.0, 1.0)]
FAMILIES = 150


def halves() -> tuple[list[LabelledSite], list[LabelledSite]]:
    """Divide the sites by families: those to choose on, and those to report."""
    parts: tuple[list[LabelledSite], list[LabelledSite]] = [], []
    for one in transfer.read_labelled_sites(TABLE):
        parts[sha256(one.family.encode()).digest()[0] % 2].append(one)
    return parts


def main() -> None:
    """Write the tables."""
    chosen, reported = halves()
    align = default_pipeline()
    tasks, found = transfer.draw_tasks(chosen, FAMILIES, others=20), []
    for sites.SAME_RESIDUE, sites.ALIGNED in TRIED:
        name = f"PLASMA, same {sites.SAME_RESIDUE:g}, aligned {sites.ALIGNED:g}"
        found.append(transfer.evaluate_transfer(name, transfer.plasma(align), tasks))
    text = f"Chosen on, {len(tasks)} families:\n\n{transfer.transfer_markdown(found)}\n"
    sites.SAME_RESIDUE, sites.ALIGNED = TRIED[0]
    tasks = transfer.draw_tasks(reported)
    methods = {"PLASMA-PF": transfer.plasma(align)} | transfer.BASELINES
    last = [transfer.evaluate_transfer(name, method, tasks) for name, method in methods.items()]
    RESULTS.write_text(text)
    pairs = sum(len(task.relatives) for task in tasks)
    head = f"{len(tasks)} families, {pairs} relatives, {sum(len(t.others) for t in tasks)} others:"
    REPORTED.write_text(f"{head}\n\n{transfer.transfer_markdown(last)}\n")


if __name__ == "__main__":
    main()
