"""Figures of an evaluation: ROC and PR curves, and the plans of a few examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.pairs import ProteinPair
from ..io.plot import new_figure, plot_result, save_figure
from ..models.alignment_result import AlignmentResult
from ..models.protein import Protein
from .aligners import Aligner
from .run import Run, align_in_chunks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        scored = [pair for pair in run.pairs if isfinite(pair.score)]
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
