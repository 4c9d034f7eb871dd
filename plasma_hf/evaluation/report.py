"""Tables of an evaluation in Markdown and JSON, curves, and the plans of a few examples."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import nan
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.pairs import ProteinPair
from ..io.formats import markdown_table
from ..io.plot import new_figure, plot_result, save_figure
from ..models.alignment_result import AlignmentResult
from ..models.protein import Protein
from .aligners import Aligner
from .run import ALL, BINS, Bounds, PairOutcome, Run, TruthRun, align_in_chunks, pair_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match": "label match",
    "symmetric_label_match": "symmetric",
    "label_mass_precision": "mass precision",
}
"""Metrics of a table, with the heads of their columns."""
BIN_METRICS = ("roc_auc", "average_precision", "label_match", "symmetric_label_match")
TRUTH_METRICS = {
    "best_partner": "best partner",
    "best_partner_symmetric": "symmetric",
    "mass": "mass",
    "precision": "precision",
    "called": "called",
}
SPLITS = {
    "test": "Interpolation: pairs held out of training",
    "test_hard": "Extrapolation: families held out of training",
}
NAMED_PROBLEMS = 50

DEFINITIONS = """\
Means over the seeds ± standard error. Label match is the share of the candidate's site that the
plan finds from the query's, symmetric the mean of both directions, mass precision the share of the
mass sent from the query's site that lands on the candidate's (0 where none is sent); all three are
means over positive pairs. Identity is per column of a global alignment
(BLOSUM62, gap 11/1, end gaps charged); a bin has the positive pairs of that identity, and all
negative ones."""

TRUTH_DEFINITIONS = """\
Each pair of proteins weighs the same. Best partner: share of the true residue pairs whose
candidate residue has the highest weight in the row of the query residue; symmetric: mean of both
directions. Mass: mean plan weight of the true pairs. Precision: true pairs among all called
aligned, {threshold} being the weight above which that is so; a called pair counts where one of its
residues is in a true pair. Called: such pairs by true pair. Identity: identical residues by
aligned residue pair of the reference."""


def metric_text(value: float, error: float = nan) -> str:
    """Write a metric to three places, with its standard error where there is one.

    Example:
        >>> metric_text(0.91234), metric_text(0.9, 0.0123), metric_text(float("nan"))
        ('.912', '.900 ± .012', '-')
    """
    if math.isnan(value):
        return "-"
    text = f"{value:.3f}"
    if text.lstrip("-").startswith("0."):
        text = text.replace("0.", ".", 1)
    return text if math.isnan(error) else f"{text} ± {metric_text(error)}"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error over seeds: sample deviation (ddof 1) / sqrt(seeds).

    The error of a single value is NaN, and the mean of none.
    """
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else nan
    return float(np.mean(values)) if len(values) else nan, error


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def summary(values: Sequence[float], by_seed: Any) -> dict[str, Any]:
    """Return a metric over seeds for JSON; `by_seed` is what it says of each."""
    mean, error = map(_none_for_nan, mean_and_error(values))
    return {"mean": mean, "standard_error": error, "by_seed": by_seed}


def write_report(folder: str | PathLike[str], parts: Iterable[str], **files: Any) -> str:
    """Write and return `evaluation.md` of some parts, and a JSON file for each of `files`."""
    folder, text = Path(folder), "\n\n".join(parts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.md").write_text(text + "\n", encoding="utf-8")
    for name, content in files.items():
        lines = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / f"{name}.json").write_text(lines + "\n", encoding="utf-8")
    return text


ROW = ("task", "backbone", "aligner", "split")
"""What a row of a table is about; a run is of one seed besides."""


@dataclass
class Row:
    """Hold one line of a table: a `Run` over seeds, each with what `pair_metrics` gives."""

    task: str
    backbone: str
    aligner: str
    split: str
    by_seed: dict[int, dict[str, float]] = field(default_factory=dict)

    def values(self, metric: str) -> list[Any]:
        """Return a metric or count of each seed."""
        return [metrics[metric] for metrics in self.by_seed.values()]

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON, where metrics are `figures`, None for NaN."""
        counted = ("positives", "negatives", "failed", "unlabelled")
        metrics = {name: self.values(name) for name in METRICS}
        return {name: getattr(self, name) for name in ROW} | {
            "seeds": list(self.by_seed),
            "pairs": {name: self.values(name) for name in counted},
            "figures": {k: summary(v, list(map(_none_for_nan, v))) for k, v in metrics.items()},
        }


@dataclass
class Evaluation:
    """Hold the runs of an evaluation, as `evaluate_splits` gives them, and write tables of them."""

    runs: list[Run] = field(default_factory=list)

    @property
    def problems(self) -> list[dict[str, Any]]:
        """List the pairs that failed, or have no label match, with the reason."""
        return [
            {name: getattr(run, name) for name in ("task", "aligner", "split", "seed")}
            | {name: getattr(pair, name) for name in ("query", "candidate", "error")}
            for run in self.runs
            for pair in run.pairs
            if pair.error
        ]

    def rows(self, bounds: Bounds = ALL) -> list[Row]:
        """Return one row for each task, backbone, aligner and split; see `pair_metrics`."""
        rows: dict[tuple[str, ...], Row] = {}
        for run in self.runs:
            key = tuple(getattr(run, name) for name in ROW)
            rows.setdefault(key, Row(*key)).by_seed[run.seed] = pair_metrics(run, bounds)
        return list(rows.values())

    def to_dict(self) -> dict[str, Any]:
        """Return rows, rows by identity, and problems, for JSON."""
        by_bin = {
            name: [row.to_dict() for row in self.rows(bounds)]
            for name, bounds in ({"all": ALL} | BINS).items()
        }
        return {"rows": by_bin.pop("all"), "by_identity": by_bin, "problems": self.problems}

    def to_markdown(self) -> str:
        """Write all tables, and the pairs that failed."""
        parts = [DEFINITIONS]
        for split, title in SPLITS.items():
            rows = [row for row in self.rows() if row.split == split]
            if rows:
                parts += [f"## {title}", _counts(rows), _table(rows, METRICS)]
            for name, bounds in BINS.items() if rows else ():
                rows = [row for row in self.rows(bounds) if row.split == split]
                if positives := max(sum(row.values("positives")) for row in rows):
                    parts.append(f"### Identity {name} ({positives} positive pairs)")
                    parts.append(_table(rows, BIN_METRICS))
        problems = self.problems
        if problems:
            lines = [
                f"- {p['aligner']}, {p['task']}, {p['split']}, seed {p['seed']}: "
                f"{p['query']} and {p['candidate']}: {p['error']}"
                for p in problems[:NAMED_PROBLEMS]
            ]
            if len(problems) > NAMED_PROBLEMS:
                lines.append(f"- and {len(problems) - NAMED_PROBLEMS} more, in the JSON file")
            title = f"## {len(problems)} pairs failed, or have no label match"
            parts += [title, "\n".join(lines)]
        return "\n\n".join(parts)

    def write_pairs(self, path: str | PathLike[str]) -> None:
        """Write every pair of every run as CSV."""
        names = [field.name for field in fields(PairOutcome)]
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*ROW, "seed", *names])
            for run in self.runs:
                head = [getattr(run, name) for name in (*ROW, "seed")]
                rows.writerows([*head, *(getattr(p, name) for name in names)] for p in run.pairs)


def _counts(rows: Sequence[Row]) -> str:
    seeds = ", ".join(map(str, rows[0].by_seed))
    names = ("positives", "negatives", "failed")
    counts = dict.fromkeys((row.task, *(sum(row.values(name)) for name in names)) for row in rows)
    return "\n".join(
        f"{task}, seeds {seeds}: {positive} positive and {negative} negative pairs scored, "
        f"{failed} failed."
        for task, positive, negative, failed in counts
    )


def _table(rows: Sequence[Row], metrics: Iterable[str]) -> str:
    head = ("task", "backbone", "aligner", *(METRICS[name] for name in metrics))
    cells = (
        (row.task, row.backbone, row.aligner)
        + tuple(metric_text(*mean_and_error(row.values(name))) for name in metrics)
        for row in rows
    )
    return markdown_table(head, cells, left=3)


def truth_markdown(runs: Sequence[TruthRun]) -> str:
    """Write residue truth as tables, one for each reference set and bin of identity."""
    thresholds = sorted({run.threshold for run in runs})
    parts = [TRUTH_DEFINITIONS.format(threshold=" or ".join(map(str, thresholds)))]
    for reference in dict.fromkeys(run.reference for run in runs):
        here = [run for run in runs if run.reference == reference]
        for name, bounds in ({"all": ALL} | BINS).items():
            found = {run.aligner: run.metrics(bounds) for run in here}
            if pairs := max(metrics["pairs"] for metrics in found.values()):
                rows = [
                    (aligner, *(metric_text(metrics[key]) for key in TRUTH_METRICS))
                    for aligner, metrics in found.items()
                ]
                parts.append(f"### {reference}, identity {name} ({pairs} pairs)")
                parts.append(markdown_table(("aligner", *TRUTH_METRICS.values()), rows))
        problems = [f"- {run.aligner}: {problem}" for run in here for problem in run.problems]
        if problems:
            parts += [f"{len(problems)} failed:", "\n".join(problems)]
    return "\n\n".join(parts)


def _truth_dict(run: TruthRun) -> dict[str, Any]:
    """Return the metrics of a run over all pairs and by identity, for JSON."""
    metrics = {
        name: {key: _none_for_nan(value) for key, value in run.metrics(bounds).items()}
        for name, bounds in ({"all": ALL} | BINS).items()
    }
    names = {"aligner": run.aligner, "reference": run.reference, "threshold": run.threshold}
    return names | {"figures": metrics, "problems": run.problems}


def write_evaluation(
    folder: str | PathLike[str],
    evaluation: Evaluation,
    truths: Sequence[TruthRun],
    left_out: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """Write what was found: `evaluation.md`, `evaluation.json`, `timing.json` and `pairs.csv`.

    `left_out` has a line on each row or record that could not be used; `settings` say by which
    `protocol` pairs were drawn, and which programs were `not_found`. Returns the Markdown.
    """
    parts = ["# Evaluation"]
    parts += [f"{name}: not found, left out." for name in settings["not_found"]]
    if evaluation.runs:
        parts += [f"Pairs by the {settings['protocol']} protocol.", evaluation.to_markdown()]
    if truths:
        parts += ["## Residue truth", truth_markdown(truths)]
    if left_out:
        title = f"## {len(left_out)} rows or records left out"
        parts += [title, "\n".join(f"- {line}" for line in left_out)]
    found = {
        "settings": settings,
        "sites": evaluation.to_dict(),
        "residue_truth": [_truth_dict(run) for run in truths],
        "left_out": left_out,
    }
    timing = {  # apart from the metrics, which are the same each time
        "sites": [
            {name: getattr(run, name) for name in (*ROW, "seed", "seconds")}
            | {"pairs": len(run.pairs)}
            for run in evaluation.runs
        ],
        "residue_truth": [
            {name: getattr(run, name) for name in ("aligner", "reference", "seconds")}
            for run in truths
        ],
    }
    text = write_report(folder, parts, evaluation=found, timing=timing)
    if evaluation.runs:
        evaluation.write_pairs(Path(folder) / "pairs.csv")
    return text


# --- Figures.

LONGEST = 600
"""Residues of the longest protein in an example."""


def draw_curves(runs: Sequence[Run], folder: str | Path, ending: str) -> None:
    """Draw ROC and PR curves of the first seed, one file for each task and split."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        group = groups.setdefault((run.task, run.split), [])
        if not group or run.seed == group[0].seed:
            group.append(run)
    for (task, split), group in groups.items():
        figure = new_figure(9.6, 4.6)
        title = f"{task}, {split}, seed {group[0].seed}"
        figure.suptitle(title, parse_math=False)
        _draw(figure, group)
        path = Path(folder, f"{file_name(f'{task}_{split}_curves')}.{ending}")
        told = ", ".join(dict.fromkeys(run.aligner for run in group))
        save_figure(figure, path, title, f"ROC and precision-recall curves of {told}")


def _draw(figure: Figure, runs: Sequence[Run]) -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    roc, recall = figure.subplots(1, 2)
    for axes, names in ((roc, ("false positives", "recall")), (recall, ("recall", "precision"))):
        axes.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1), ylim=(0, 1.02))
    for run in runs:
        scored = [pair for pair in run.pairs if math.isfinite(pair.score)]
        labels, scores = [pair.label for pair in scored], [pair.score for pair in scored]
        if len(set(labels)) < 2:
            continue
        name = run.aligner if run.backbone == "-" else f"{run.aligner} ({run.backbone})"
        false, true, _ = roc_curve(labels, scores)
        roc.plot(false, true, lw=1.3)
        precision, found, _ = precision_recall_curve(labels, scores)
        recall.plot(found, precision, lw=1.3, label=name, drawstyle="steps-pre")
    roc.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls=":")
    recall.legend(fontsize=8, loc="lower left")


def choose_examples(pairs: Sequence[ProteinPair], count: int) -> list[ProteinPair]:
    """Choose the first positive pairs of different families that a figure can show."""
    chosen: dict[str, ProteinPair] = {}
    for pair in pairs:
        longest = max(len(pair.query.sequence), len(pair.candidate.sequence))
        if pair.label and longest <= LONGEST and len(chosen) < count:
            chosen.setdefault(pair.query.family, pair)
    return list(chosen.values())


def draw_plans(
    aligner: Aligner, pairs: Sequence[ProteinPair], folder: str | Path, ending: str
) -> None:
    """Draw the plans of a few pairs, with their segments and the middle of the labelled sites.

    A pair that fails, or has no plan, has no file.
    """
    import torch

    from ..models.pipeline_protein_alignment import find_segments

    for pair, result, _ in align_in_chunks(aligner, pairs):
        if isinstance(result, Exception) or result.plan is None:
            continue
        ids = (pair.query.uid, pair.candidate.uid)
        backbone = getattr(aligner, "backbone", "")
        path = Path(folder, f"{file_name('_'.join([*ids, aligner.name, backbone]))}.{ending}")
        said = {"score": result.score, "plan": result.plan}
        said["segments"] = find_segments(torch.as_tensor(result.plan))
        query, candidate = (Protein(side.uid, side.sequence) for side in pair.sides)
        plot_result(AlignmentResult(said, query, candidate), path, _site_marks(pair))


def _site_marks(pair: ProteinPair) -> list[tuple[int, int, str]]:
    """Point at where the middle of the first site of both proteins meets."""
    middles = []
    for side in (pair.query, pair.candidate):
        labelled = np.flatnonzero(side.site_labels)
        if not len(labelled):
            return []
        first = np.split(labelled, np.flatnonzero(np.diff(labelled) > 1) + 1)[0]
        middles.append(int(first[len(first) // 2]))
    return [(middles[0], middles[1], "site")]


def file_name(text: str) -> str:
    """Turn a name into a file's name.

    Example:
        >>> file_name("P1_P2_default, kernel_scale 0.3_-")
        'P1_P2_default_kernel_scale_0.3'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")
