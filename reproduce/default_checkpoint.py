"""Choose and write the default checkpoint.

Run as `python -m reproduce.default_checkpoint [scan] [build]`: `scan` varies one setting at
a time on pairs of seed 1 and writes a table to `results/`, `build` writes the checkpoint.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaConfig, PlasmaModel, PlasmaProcessor
from plasma_hf.data import ProteinPair
from plasma_hf.metrics import label_match_score, roc_auc
from plasma_hf.models.modeling_backbone import SubstitutionConfig
from tests.benchmarks.site_pairs import load_pairs

RESULTS = Path(__file__).parents[1] / "tests" / "benchmarks" / "results"
SCORE_FORMS = ("published", "mass", "collinear")
DEFAULT = {
    "head": "hinge",
    "kernel_scale": 0.2,
    "score_form": "collinear",
    "support_rounds": 1,
    "support_window": 25,
    "support_gap": 3,
    "support_weight": 10.0,
    "order_weight": 2.0,
}
WINDOW = {"window": 10, "decay": 7.0}
VARIATIONS: list[dict[str, float]] = [
    {},
    {"kernel_scale": 0.1},
    {"kernel_scale": 0.15},
    {"kernel_scale": 0.25},
    {"kernel_scale": 0.3},
    {"window": 5, "decay": 3.5},
    {"window": 15, "decay": 10.0},
    {"order_weight": 0.0},
    {"order_weight": 0.0, "support_rounds": 3, "support_weight": 16.0},
    {"order_weight": 1.0},
    {"order_weight": 4.0},
    {"support_rounds": 0},
    {"support_rounds": 2},
    {"support_weight": 5.0},
    {"support_weight": 20.0},
    {"support_window": 12},
    {"support_window": 50},
    {"support_gap": 1},
    {"support_gap": 6},
]


def build_model(**changes: float) -> PlasmaModel:
    """Build the default model with some settings changed."""
    encoder = WINDOW | {name: value for name, value in changes.items() if name in WINDOW}
    head = DEFAULT | {name: value for name, value in changes.items() if name not in WINDOW}
    return PlasmaModel(PlasmaConfig(plm_config=SubstitutionConfig(**encoder), **head)).eval()


def label_match(pair: ProteinPair, plan: torch.Tensor) -> float:
    """Return the label match score of a positive pair, NaN of a negative one."""
    if not pair.label:
        return float("nan")
    return label_match_score(plan, pair.query.site_labels, pair.candidate.site_labels)


@torch.no_grad()
def run_pair_in_all_forms(
    model: PlasmaModel, pair: ProteinPair
) -> tuple[dict[str, float], float, float]:
    """Return the score in each form, the label match score (NaN if negative) and seconds."""
    start = time.perf_counter()
    sides = [PROCESSOR.encode([s.sequence]) for s in (pair.query, pair.candidate)]
    (query, query_mask), (candidate, candidate_mask) = (
        model.embed(s["input_ids"], s["attention_mask"], s["mask"]) for s in sides
    )
    masks = query_mask, candidate_mask
    aligned = model.align_projected(model.project(query), model.project(candidate), *masks)
    seconds = time.perf_counter() - start
    scores = {}
    for form in SCORE_FORMS:
        model.config.score_form = form
        scores[form] = float(model.score_plan(aligned.first_plan, (query, candidate), masks))
    return scores, label_match(pair, aligned.plan[0]), seconds


def scan(n: int = 50) -> str:
    """Vary one setting at a time on `n + n` pairs of seed 1, half of the positives remote."""
    pairs = load_pairs(1, n, n, n_low=n // 2, per="columns")
    labels = [pair.label for pair in pairs]
    lines = [
        "| change | label match | ROC-AUC published | mass | collinear | median ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for changes in tqdm(VARIATIONS, desc="variations"):
        model = build_model(**changes)
        runs = [run_pair_in_all_forms(model, pair) for pair in pairs]
        areas = [roc_auc(labels, [scores[form] for scores, *_ in runs]) for form in SCORE_FORMS]
        match = np.nanmean([match for _, match, _ in runs])
        milliseconds = 1000 * np.median([seconds for *_, seconds in runs])
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "(default)"
        cells = (name, *(f"{value:.3f}" for value in (match, *areas)), f"{milliseconds:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def build() -> str:
    """Write the default checkpoint, without the code that the package has anyway."""
    target = Path(DEFAULT_CHECKPOINT)
    with tempfile.TemporaryDirectory() as scratch:
        build_model().save_pretrained(scratch)
        PROCESSOR.save_pretrained(scratch)
        bundle(Path(scratch), target)
    return f"wrote {target}"


def bundle(saved: Path, target: Path) -> None:
    """Copy a saved model, without the code that the package has anyway."""
    target.mkdir(parents=True, exist_ok=True)
    for file in saved.iterdir():
        if file.suffix in (".json", ".safetensors", ".md"):
            shutil.copyfile(file, target / file.name)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if not (target / name).is_file():  # an encoder alone has no processor
            continue
        fields = json.loads((target / name).read_text())
        for key in ("auto_map", "custom_pipelines"):
            fields.pop(key, None)
        (target / name).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


PROCESSOR = PlasmaProcessor()

if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or ["scan"]
    for step in wanted:
        result = {"scan": scan, "build": build}[step]()
        print(result)
        if step != "build":
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"default_checkpoint_{step}.md").write_text(result + "\n")
