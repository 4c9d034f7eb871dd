"""Write the cards of the bundled models and metrics to `hub_cards/rendered`, and into the models.

Run as `python -m reproduce.bundled_cards [--evaluation FOLDER] [--run NAME=FOLDER]`. The
first renews the figures of the default from what `plasma-hf evaluate --sites active_site.csv
--pairs 6000 --seed 1 --seed 2 --seed 3 --split test_hard --model default --model pf --baseline eba
--baseline smith-waterman --baseline mean-cosine --baseline length --baseline composition --out
FOLDER` wrote, the second those of a
trained model from the folder of its run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from plasma_hf import DEFAULT_CHECKPOINT
from plasma_hf.hub.card import METRICS, add_held_out, model_card
from plasma_hf.hub.upload import demo_space_card, metric_names, space_card
from reproduce.default_checkpoint import RESULTS

CHECKPOINTS = Path(DEFAULT_CHECKPOINT).parent
RENDERED = Path(__file__).parents[1] / "hub_cards" / "rendered"
TABLES = {"protalign_small": RESULTS / "bundled_protalign.md"}
"""Held-out figures that are in no `metrics.json`."""
DEFAULT_SETTINGS = {
    "name": "PLASMA-PF on the substitution encoder",
    "data": "none was learnt from. Settings were chosen by a scan on 100 pairs of active sites "
    "(UniProtKB/Swiss-Prot, CC BY 4.0), of the table that the figures are of; the families of the "
    "figures were not kept out of that choice. The encoder is BLOSUM62 (Henikoff and Henikoff "
    "1992) seen through a window of residues",
}


def bundled() -> list[Path]:
    """Return the folders of the models with metrics that come with the package."""
    return sorted(metrics.parent for metrics in CHECKPOINTS.glob(f"*/{METRICS}"))


def card_text(folder: Path) -> str:
    """Render the card of a bundled model."""
    table = TABLES.get(folder.name)
    held_out = table.read_text().strip() if table is not None and table.exists() else None
    return str(model_card(folder, held_out=held_out))


def take_run(name: str, run: Path) -> None:
    """Keep figures and settings of a run beside the bundled model that came of it."""
    written = json.loads((run / METRICS).read_text())
    kept = {key: written[key] for key in ("figures", "settings")}
    (CHECKPOINTS / name / METRICS).write_text(json.dumps(kept, indent=1) + "\n")


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bundled_cards")
    parser.add_argument("--evaluation", type=Path)
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    options = parser.parse_args(words)
    for name, run in (given.split("=", 1) for given in options.run):
        take_run(name, Path(run))
    if options.evaluation:
        found = add_held_out(DEFAULT_CHECKPOINT, options.evaluation, "default")
        text = json.dumps(found | {"settings": DEFAULT_SETTINGS}, indent=1)
        (Path(DEFAULT_CHECKPOINT) / METRICS).write_text(text + "\n")
    RENDERED.mkdir(exist_ok=True)
    for folder in bundled():
        for place in (folder / "README.md", RENDERED / f"{folder.name}.md"):
            place.write_text(card_text(folder), encoding="utf-8")
    for name in metric_names():
        (RENDERED / f"metric_{name}.md").write_text(space_card(name), encoding="utf-8")
    (RENDERED.parent / "space" / "README.md").write_text(demo_space_card(), encoding="utf-8")


if __name__ == "__main__":
    main()
