"""Train the heads that come with the package, and measure each beside PLASMA-PF.

Run as `python -m reproduce.bundled_heads [--tasks active_site ...] [--out FOLDER]`; needs
`../shared`. The table, `results/bundled_heads.md`, says how each does on families held out of its
training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import TrainingArguments

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaModel, load_backbone
from plasma_hf.data import PairCollator, make_splits, read_site_table
from plasma_hf.data.splits import PairSplits
from plasma_hf.evaluation import (
    CachedEmbeddings,
    PlasmaAligner,
    SmithWaterman,
    pair_metrics,
    run_aligner,
)
from plasma_hf.search.calibration import calibrate
from plasma_hf.training import PairRows, PlasmaRun, PlasmaTrainer
from plasma_hf.training.arguments import EVERY_RUN
from plasma_hf.training.structure_data import store_sequences
from reproduce.default_checkpoint import RESULTS, bundle, labelled_domains, save

CHECKPOINTS = Path(DEFAULT_CHECKPOINT).parent
SITES = Path(__file__).parents[2] / "shared" / "data" / "sites"
TASKS = {
    "active_site": ["active_site"],
    "binding_site": ["binding_site"],
    "motif": ["interpro_domain", "interpro_conserved_site"],
}
FRACTIONS = {"active_site": (0.75, 0.05)}
PAIRS = {"active_site": 6000, "motif": 1000}
SHOWN = ("roc_auc", "label_match")


def train(task: str, out: Path) -> Path:
    """Train the head of a task; one that is there is not trained again."""
    folder = out / task
    if (folder / "metrics.json").exists():
        return folder
    run = PlasmaRun(
        folder,
        arguments={"num_train_epochs": 1, "use_cpu": True},
        details={
            "name": f"PLASMA head for {task.replace('_', ' ')}s",
            "sites": ", ".join(f"{table}.csv" for table in TASKS[task]),
            "data": "UniProtKB/Swiss-Prot (CC BY 4.0)" if task != "motif" else "InterPro (CC0)",
        },
    )
    run.train(splits_of(task), load_backbone("substitution"), resume=True)
    return folder


def calibrate_bundled(task: str) -> None:
    """Measure what unrelated proteins reach with a bundled head, which reads posteriors then."""
    folder = CHECKPOINTS / f"plasma_head_{task}"
    model = PlasmaModel.from_pretrained(folder).eval()
    model.config.reading, model.config.threshold = "posterior", 0.2
    domains = [(fold, sequence) for _, fold, sequence in labelled_domains()[0]]
    calibrate(model, domains, load_backbone("substitution").embed)
    save(model, folder)


def measure_bundled(task: str) -> None:
    """Write what a bundled head does into its `metrics.json`; the card has it from there."""
    folder, splits = CHECKPOINTS / f"plasma_head_{task}", splits_of(task)
    model = PlasmaModel.from_pretrained(folder, load_backbone=False)
    tested = {"eval": splits.validation, "interpolation": splits.test}
    tested |= {"extrapolation": splits.test_hard}
    sides = (side for some in tested.values() for p in some for side in (p.query, p.candidate))
    with TemporaryDirectory() as scratch:
        sequences = [side.sequence for side in sides]
        store = store_sequences(
            Path(scratch, "store"), sequences, load_backbone("substitution"), "float16"
        )
        given = EVERY_RUN | {"eval_strategy": "no", "load_best_model_at_end": False}
        arguments = TrainingArguments(scratch, use_cpu=True, disable_tqdm=True, **given)
        trainer = PlasmaTrainer(model, arguments, data_collator=PairCollator(store))
        for name, pairs in tested.items():
            trainer.evaluate(PairRows(pairs), metric_key_prefix=name)
    told = json.loads((folder / "metrics.json").read_text())
    told["figures"] = {name: trainer.metrics[name] for name in tested}
    (folder / "metrics.json").write_text(json.dumps(told, indent=2) + "\n")


def splits_of(task: str) -> PairSplits:
    """Return the pairs of a task, seed 1, strict protocol."""
    proteins = []
    for table in TASKS[task]:
        proteins += read_site_table(SITES / f"{table}.csv")[0]
    fractions = FRACTIONS.get(task, (0.65, 0.15))
    return make_splits(proteins, seed=1, pairs=PAIRS.get(task), fractions=fractions)


def compare(task: str, folder: Path) -> dict[str, dict[str, float]]:
    """Measure the head, PLASMA-PF read in the same way, and Smith-Waterman on held-out families."""
    source = CachedEmbeddings(load_backbone("substitution"))
    aligners = [
        PlasmaAligner(PlasmaModel.from_pretrained(folder, load_backbone=False), source, "head"),
        PlasmaAligner(
            PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT, load_backbone=False),
            source,
            "PLASMA-PF (the default)",
        ),
        SmithWaterman(),
    ]
    pairs = splits_of(task).test_hard
    return {a.name: pair_metrics(run_aligner(a, pairs)) for a in aligners}


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bundled_heads")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    lines = ["| task | aligner | ROC-AUC | label match |", "|---|---|--:|--:|"]
    for task in options.tasks:
        folder = train(task, options.out)
        found = compare(task, folder)
        (options.out / f"{task}.json").write_text(json.dumps(found) + "\n")
        for name, values in found.items():
            cells = " | ".join(f"{values[metric]:.3f}" for metric in SHOWN)
            lines.append(f"| {task} | {name} | {cells} |")
        bundle(folder, CHECKPOINTS / f"plasma_head_{task}")
        calibrate_bundled(task)
        measure_bundled(task)
    print("\n".join(lines))
    (RESULTS / "bundled_heads.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
