"""What an evaluation says of one model on held-out pairs, kept in `metrics.json` for the card."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

METRICS = "metrics.json"
SHOWN = ("roc_auc", "average_precision", "label_match")
STEPS = 10
"""Steps of the score in the calibration."""
SHARES = (0.05, 0.01)
"""Shares of negative pairs that may pass the thresholds which a card names."""
OF_THE_FILE = ("_name_or_path", "auto_map", "custom_pipelines", "dtype", "transformers_version")
"""Fields of a configuration that do not change what a model computes."""
MEASURED = (
    "head",
    "normalize",
    "kernel_scale",
    "n_iters",
    "tol",
    "eps",
    "domain",
    "support_rounds",
    "support_window",
    "support_gap",
    "support_weight",
    "order_weight",
    "score_form",
    "threshold",
    "diagonal_window",
    "plm_name_or_path",
)
"""Fields of `PlasmaConfig` that scores and plans depend on."""


def add_held_out(
    folder: str | PathLike[str], evaluation: str | PathLike[str], aligner: str
) -> dict[str, Any]:
    """Take what `plasma-hf evaluate` found of a model into the `metrics.json` of its folder.

    The settings of the model are kept beside the figures, so that a card with figures of other
    settings is never written.

    Args:
        folder: The model.
        evaluation: What `plasma-hf evaluate --out` wrote: `evaluation.json` and `pairs.csv`.
        aligner: The name of the model there; all others are baselines.

    Returns:
        What `metrics.json` now holds.

    Raises:
        ValueError: If the evaluation has no such model.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    file = Path(folder) / METRICS
    metrics = json.loads(file.read_text()) if file.exists() else {}
    metrics["held_out"] = {"measured": measured(config)} | read_held_out(evaluation, aligner)
    file.write_text(json.dumps(metrics, indent=1) + "\n")
    return dict(metrics)


def is_unchanged(model: Any, folder: str | PathLike[str]) -> bool:
    """Tell whether a model has the weights and settings of the folder that it was loaded from.

    Args:
        model: In memory.
        folder: With `config.json` and `model.safetensors`.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig

    then = AutoConfig.from_pretrained(folder)
    if _settings(then.to_dict()) != _settings(model.config.to_dict()):
        return False
    weights = model.state_dict()
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return all(
            name in weights and torch.equal(weights[name].cpu(), file.get_tensor(name))
            for name in file.keys()  # noqa: SIM118 - it is no mapping
        )


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of a configuration what changes what the model computes, its parts' likewise."""
    return {
        name: _settings(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in OF_THE_FILE
    }


def measured(config: Any) -> dict[str, Any]:
    """Return the settings that figures of a PLASMA model depend on."""
    return {name: getattr(config, name) for name in MEASURED}


def read_held_out(evaluation: str | PathLike[str], aligner: str) -> dict[str, Any]:
    """Read tables and calibration of a model from what `plasma-hf evaluate --out` wrote.

    Args:
        evaluation: Folder with `evaluation.json` and `pairs.csv`.
        aligner: The name of the model there. Models that were trained once for each seed
            (`{seed}` in their name) are left out of its company.

    Returns:
        `task`, `protocol`, `split`, `seeds`; `tables`, one for all pairs and one for each bin of
        identity, the model in the first row; `calibration` of its score.

    Raises:
        ValueError: If the evaluation has no such model, or several tasks or splits.
    """
    folder = Path(evaluation)
    found = json.loads((folder / "evaluation.json").read_text())
    bins = {"all": found["sites"]["rows"]} | found["sites"]["by_identity"]
    rows = bins["all"]
    mine = [row for row in rows if row["aligner"] == aligner]
    if len(mine) != 1:
        names = ", ".join(dict.fromkeys(row["aligner"] for row in rows))
        raise ValueError(
            f"{folder} has {len(mine)} rows of {aligner!r}; give one of {names}, from an "
            "evaluation of one task and split."
        )
    return {
        "task": mine[0]["task"],
        "protocol": found["settings"]["protocol"],
        "split": mine[0]["split"],
        "seeds": mine[0]["seeds"],
        "tables": [_table(name, some, aligner) for name, some in bins.items()],
        "calibration": _calibration(folder / "pairs.csv", aligner),
    }


def _table(name: str, rows: Iterable[Mapping[str, Any]], aligner: str) -> dict[str, Any]:
    kept = [row for row in rows if row["aligner"] == aligner or "{seed}" not in row["aligner"]]
    ordered = sorted(kept, key=lambda row: row["aligner"] != aligner)
    pairs = ordered[0]["pairs"]
    return {
        "identity": name,
        "positives": sum(pairs["positives"]),
        "negatives": sum(pairs["negatives"]),
        "rows": [
            {"method": row["aligner"]}
            | {
                metric: [row["figures"][metric][part] for part in ("mean", "standard_error")]
                for metric in SHOWN
            }
            for row in ordered
        ],
    }


def _calibration(file: Path, aligner: str) -> dict[str, Any]:
    with file.open(encoding="utf-8", newline="") as lines:
        mine = [row for row in csv.DictReader(lines) if row["aligner"] == aligner]
    return calibration([float(row["score"]) for row in mine], [int(row["label"]) for row in mine])


def calibration(scores: Iterable[float], labels: Iterable[int]) -> dict[str, Any]:
    """Count how many pairs of each range of scores are positive.

    Args:
        scores: In [0, 1]; pairs without a score (NaN) are left out.
        labels: 1 for a positive pair, 0 for a negative one.

    Returns:
        `steps` with `from`, `to`, `pairs` and `positives`, those without a pair left out; and
        `thresholds`, scores that a share of all negative pairs exceeds, with the share of positive
        ones that does.

    Example:
        >>> found = calibration([0.05, 0.07, 0.93, 0.95], [0, 1, 1, 1])
        >>> found["steps"][0]
        {'from': 0.0, 'to': 0.1, 'pairs': 2, 'positives': 1}
        >>> found["thresholds"][0]["found"]
        1.0
    """
    score, label = np.array(list(scores), dtype=float), np.array(list(labels), dtype=int)
    score, label = score[np.isfinite(score)], label[np.isfinite(score)]
    step = np.minimum((score * STEPS).astype(int), STEPS - 1)
    steps = [
        {
            "from": k / STEPS,
            "to": (k + 1) / STEPS,
            "pairs": int((step == k).sum()),
            "positives": int(label[step == k].sum()),
        }
        for k in range(STEPS)
        if (step == k).any()
    ]
    return {"steps": steps, "thresholds": [_threshold(score, label, share) for share in SHARES]}


def _threshold(score: Any, label: Any, share: float) -> dict[str, float]:
    """Find the score that this share of negative pairs exceeds, and what it leaves."""
    at = float(np.quantile(score[label == 0], 1 - share, method="higher"))
    return {"negatives": share, "score": at, "found": float((score[label == 1] > at).mean())}
