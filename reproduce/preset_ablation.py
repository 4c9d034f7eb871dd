"""Which parts of the preset help on families that were held out of training.

Run as `python -m reproduce.preset_ablation --out FOLDER [--pairs 4000] [--seeds 1 2 3]
[--variants published improved]`. Every variant trains on the same pairs (strict protocol) from the
same store, and is measured on held-out families beside PLASMA-PF on the same encoder. What each
run found is kept in the folder, and a variant that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaModel
from plasma_hf.data import ProteinPair, read_site_table
from plasma_hf.data.splits import PairSplits, make_splits
from plasma_hf.metrics import label_match_score, roc_auc
from plasma_hf.models.configuration_plasma import PlasmaConfig
from plasma_hf.models.modeling_backbone import Backbone
from plasma_hf.training import PRESETS, PlasmaRun, Preset
from tests.benchmarks.training_speed import SITES, bundled_backbone

PUBLISHED, IMPROVED = PRESETS["published"], PRESETS["improved"]
BATCHED = dict(IMPROVED.arguments)


def variant(
    name: str,
    base: Preset = IMPROVED,
    correspondences: bool | None = None,
    arguments: dict[str, Any] | None = None,
    **config: Any,
) -> Preset:
    """Change a preset in some settings."""
    wanted = base.correspondences if correspondences is None else correspondences
    return replace(
        base,
        name=name,
        config=dict(base.config) | config,
        arguments=dict(base.arguments) | (arguments or {}),
        correspondences=wanted,
    )


VARIANTS = {
    preset.name: preset
    for preset in (
        PUBLISHED,
        variant("published, batches and schedule", PUBLISHED, arguments=BATCHED),
        variant(
            "residual head alone", PUBLISHED, arguments=BATCHED, head="residual", kernel_scale=0.2
        ),
        IMPROVED,
        variant("without correspondences", correspondences=False),
        variant("published label match", label_match_form="published"),
        variant("published score loss", score_loss_form="published"),
        variant("published score", score_form="published"),
        variant("LRL head from random weights", head="lrl", kernel_scale=0.1),
        variant("learning rate 1e-3", arguments={"learning_rate": 1e-3}),
    )
}


@torch.no_grad()
def evaluate(
    model: PlasmaModel, backbone: Backbone, pairs: Sequence[ProteinPair], batch: int = 16
) -> dict[str, float]:
    """Return ROC-AUC and label match score of a head, by the fused kernels."""
    model.eval()
    scores, matches = [], []
    for start in tqdm(range(0, len(pairs), batch), desc="pairs", leave=False):
        part = pairs[start : start + batch]
        queries, candidates = (
            backbone.embed([getattr(pair, side).sequence for pair in part])
            for side in ("query", "candidate")
        )
        aligned = model.align_pairs(queries, candidates)
        scores += aligned.scores.tolist()
        matches += [
            label_match_score(plan, pair.query.site_labels, pair.candidate.site_labels)
            for pair, plan in zip(part, aligned.plans, strict=True)
            if pair.label
        ]
    labels = [pair.label for pair in pairs]
    return {"roc_auc": roc_auc(labels, scores), "label_match_score": float(np.mean(matches))}


def run(
    name: str,
    seed: int,
    splits: PairSplits,
    backbone: Backbone,
    folder: Path,
    arguments: dict[str, Any],
) -> dict[str, float]:
    """Train a variant where it is not there yet, and return its metrics on held-out families."""
    kept = folder / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    if name == "PLASMA-PF":
        model = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT, load_backbone=False)
    elif name == "PLASMA-PF, published form":
        model = PlasmaModel(
            PlasmaConfig(embedding_size=backbone.hidden_size, head="hinge", kernel_scale=0.2)
        )
    else:
        target = folder / kept.stem
        PlasmaRun(
            target,
            preset=VARIANTS[name],
            seed=seed,
            store=folder / "store",
            arguments=arguments | {"save_total_limit": 1},
        ).train(splits, backbone, resume=True)
        model = PlasmaModel.from_pretrained(target, load_backbone=False)
    metrics = evaluate(model, backbone, splits.test_hard)
    kept.write_text(json.dumps(metrics) + "\n")
    return metrics


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Write mean and standard error over seeds."""
    lines = ["| preset | label match | ROC-AUC |", "|---|--:|--:|"]
    for name, runs in found.items():
        cells = []
        for metric in ("label_match_score", "roc_auc"):
            values = [one[metric] for one in runs]
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
            cells.append(f"{np.mean(values):.3f} ± {error:.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=Path, default=SITES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    proteins, backbone = read_site_table(given.sites)[0], bundled_backbone()
    arguments = {} if given.epochs is None else {"num_train_epochs": given.epochs}
    found = {}
    for seed in given.seeds:
        splits = make_splits(proteins, seed=seed, pairs=given.pairs, max_length=given.max_length)
        for name in ("PLASMA-PF", "PLASMA-PF, published form", *given.variants):
            metrics = run(name, seed, splits, backbone, given.out, arguments)
            found.setdefault(name, []).append(metrics)
            print(f"seed {seed}, {name}: {metrics}", flush=True)
    print(table(found))
    (given.out / "preset_ablation.md").write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
