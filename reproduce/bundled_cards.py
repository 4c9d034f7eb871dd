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
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from plasma_hf import DEFAULT_CHECKPOINT
from plasma_hf.hub.card import HELD_OUT, MEASURED, METRICS, model_card, read_json
from plasma_hf.hub.upload import metric_names, space_card
from reproduce.default_checkpoint import RESULTS
from reproduce.demo_space import demo_space_card

CHECKPOINTS = Path(DEFAULT_CHECKPOINT).parent
RENDERED = Path(__file__).parents[1] / "hub_cards" / "rendered"
TABLES = {"protalign_small": RESULTS / "bundled_protalign.md"}
"""Held-out figures that are in no `metrics.json`."""
DEFAULT_SETTINGS = {
    "name": "PLASMA-PF on the substitution encoder",
    "data": "of 300 domains of SCOPe 2.01, what residues of unrelated proteins look like and what "
    "chance reaches. How it is read was chosen on alignments (BAliBASE 3, balifam, MALIDUP, "
    "MALISAM), on SCOPe folds and on sites of the table that the figures are of "
    "(UniProtKB/Swiss-Prot, CC BY 4.0); the families of the figures were not kept out of that "
    "choice. The encoder, with nothing trained, is BLOSUM62 (Henikoff and Henikoff 1992) seen "
    "through a window of residues",
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


def add_held_out(
    folder: str | PathLike[str], evaluation: str | PathLike[str], aligner: str
) -> dict[str, Any]:
    """Take what `plasma-hf evaluate` found of a model into the `metrics.json` of its folder.

    The settings of the model are kept beside the metrics, so that a card with metrics of other
    settings is never written.

    Args:
        folder: The model.
        evaluation: What `plasma-hf evaluate --out` wrote: `evaluation.json` and `pairs.csv`.
        aligner: The name of the model there; all others are baselines. Models that were trained
            once for each seed (`{seed}` in their name) are left out.

    Returns:
        What `metrics.json` now holds; in `held_out` are `tables`, one for all pairs and one for
        each bin of identity, the model in the first row, and the `calibration` of its score.
    """
    config, source = AutoConfig.from_pretrained(folder), Path(evaluation)
    found = json.loads((source / "evaluation.json").read_text())
    bins = {"all": found["sites"]["rows"]} | found["sites"]["by_identity"]
    mine = [row for row in bins["all"] if row["aligner"] == aligner]
    if len(mine) != 1:
        names = ", ".join(dict.fromkeys(row["aligner"] for row in bins["all"]))
        raise ValueError(
            f"{source} has {len(mine)} rows of {aligner!r}; give one of {names}, from an "
            "evaluation of one task and split."
        )
    with (source / "pairs.csv").open(encoding="utf-8", newline="") as lines:
        pairs = [row for row in csv.DictReader(lines) if row["aligner"] == aligner]
    scores, labels = ([float(pair[name]) for pair in pairs] for name in ("score", "label"))
    held_out = {
        "measured": {name: getattr(config, name) for name in MEASURED},
        "task": mine[0]["task"],
        "protocol": found["settings"]["protocol"],
        "split": mine[0]["split"],
        "seeds": mine[0]["seeds"],
        "tables": [_held_out_table(name, rows, aligner) for name, rows in bins.items()],
        "calibration": calibration(scores, labels),
    }
    metrics = read_json(Path(folder) / METRICS) | {"held_out": held_out}
    (Path(folder) / METRICS).write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


def _held_out_table(name: str, rows: Iterable[Mapping[str, Any]], aligner: str) -> dict[str, Any]:
    kept = [row for row in rows if row["aligner"] == aligner or "{seed}" not in row["aligner"]]
    kept.sort(key=lambda row: row["aligner"] != aligner)
    parts = ("mean", "standard_error")
    return {
        "identity": name,
        "positives": sum(kept[0]["pairs"]["positives"]),
        "negatives": sum(kept[0]["pairs"]["negatives"]),
        "rows": [
            {"method": row["aligner"]}
            | {name: list(map(row["figures"][name].get, parts)) for name in HELD_OUT}
            for row in kept
        ],
    }


def calibration(scores: Sequence[float], labels: Sequence[float]) -> dict[str, Any]:
    """Count how many pairs of each tenth of the scores are positive.

    Pairs without a score (NaN), and tenths without a pair, are left out. The `thresholds` are
    scores that a share of all negative pairs exceeds, with the share of positive ones that does.
    """
    score, label = np.array(scores, dtype=float), np.array(labels, dtype=int)
    score, label = score[np.isfinite(score)], label[np.isfinite(score)]
    step = np.minimum((score * 10).astype(int), 9)
    pairs = np.bincount(step, minlength=10).tolist()
    positives = np.bincount(step[label == 1], minlength=10).tolist()
    steps = [
        {"from": k / 10, "to": (k + 1) / 10, "pairs": pairs[k], "positives": positives[k]}
        for k in range(10)
        if pairs[k]
    ]
    thresholds = []
    for share in (0.05, 0.01):
        at = float(np.quantile(score[label == 0], 1 - share, method="higher"))
        found = float((score[label == 1] > at).mean())
        thresholds.append({"negatives": share, "score": at, "found": found})
    return {"steps": steps, "thresholds": thresholds}


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
