"""Choose how significance weighs evidence: by relatives that are ranked before anything else.

Run as `python -m reproduce.ranking_study`; needs `../shared`. Queries are a hundred development
domains of SCOPe40 that no figure is reported on; each setting ranks the same candidates. Beside it
stand false positives by E-value, and the p-values of equal peptides, which should be as rare as
these are. The table goes to `results/ranking_study.md`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from plasma_hf import load_backbone
from plasma_hf.backbones import new_aligner
from plasma_hf.evaluation.scope40 import Scope40
from plasma_hf.io.formats import markdown_table
from plasma_hf.models import modeling_plasma
from plasma_hf.models.local_alignment import SEARCHING, Calibration, Scoring
from plasma_hf.models.modeling_plasma import Background, PlasmaModel
from plasma_hf.search.calibration import calibrate
from reproduce.default_checkpoint import SCOPE, labelled_domains

RESULTS = Path(__file__).parent / "results" / "ranking_study.md"
QUERIES, CANDIDATES, PAIRS = 100, 250, 4000
PEPTIDE_LENGTHS = (4, 5, 8)
HEAD = ("power", "most", "slope, shift, gap", "family", "superfamily", "fold")
HEAD += ("FP, E ≤ 0.1", "E ≤ 1", "E ≤ 10", *(f"equal {n}-mers" for n in PEPTIDE_LENGTHS))


@dataclass(frozen=True)
class Setting:
    """What is tried: of the background, and of the sum over alignments."""

    power: float = Background.POWER
    most: float = modeling_plasma.MOST_EVIDENCE
    scoring: Scoring = SEARCHING

    def cells(self) -> list[str]:
        """Name it."""
        slope, shift, opened, extended = self.scoring
        return [
            f"{self.power:g}",
            f"{self.most:g}",
            f"{slope:g}, {shift:g}, {opened:g} {extended:g}",
        ]


WIDE, NARROW = Scoring(0.5, 1.5, 6.0, 0.4), Scoring(1.0, 2.0, 8.0, 0.5)
TRIED = (
    *(Setting(power=power) for power in (-0.25, -0.12, 0.0, 0.05, 0.1)),
    *(Setting(most=most) for most in (4.0, 6.0, 100.0)),
    *(Setting(scoring=scoring) for scoring in (WIDE, NARROW, Scoring(0.7, 1.7, 7.0, 0.5))),
    Setting(-0.25, 100.0, NARROW),
)


def measured(
    setting: Setting, domains: Sequence[tuple[str, str]]
) -> tuple[PlasmaModel, Calibration]:
    """Return a model of a setting, and what chance reaches by it."""
    Background.POWER, modeling_plasma.MOST_EVIDENCE = setting.power, setting.most
    modeling_plasma.SEARCHING = setting.scoring
    model = new_aligner(load_backbone("substitution"))
    return model, calibrate(model, domains, load_backbone("substitution").embed, PAIRS)


@torch.no_grad()
def judge(setting: Setting, benchmark: Scope40, names: Sequence[str]) -> list[str]:
    """Return the line of a setting."""
    domains = benchmark.domains
    number = {name: n for n, name in enumerate(domains.ids)}
    embed = load_backbone("substitution").embed
    measured_on = [(fold, one) for _, fold, one in labelled_domains()[0]]
    model, null = measured(setting, measured_on)
    rows, false = [], []
    for name in tqdm(names, " ".join(setting.cells()), disable=None):
        query = domains.sequences[number[name]]
        _, chosen = domains.rank(query, CANDIDATES)
        own, *others = model.project_each(embed([query, *(domains.sequences[n] for n in chosen)]))
        scores = model.raw_scores(own, others).tolist()
        distances = [
            null.distance(x, len(own), len(o)) for x, o in zip(scores, others, strict=True)
        ]
        ranked = [
            (domains.ids[chosen[n]], null.chance(distances[n]) * len(domains))
            for n in np.argsort(-np.array(distances), kind="stable")
        ]
        rows.append(benchmark.row(name, ranked))
        false.append(benchmark.false_positives(name, ranked))
    found = [float(np.mean([float(row[name]) for row in rows])) for name in ("FAM", "SFAM", "FOLD")]
    peptides = []
    for size in PEPTIDE_LENGTHS:
        cut = [one[40 : 40 + size] for _, one in measured_on if len(one) > 60][:40]
        sides = model.project_each(embed(cut))
        p_values = [null.p_value(float(model.raw_scores(a, [a])), size, size) for a in sides]
        peptides.append(f"{np.median(p_values):.0e}")
    counts = np.mean(false, axis=0)
    return [
        *setting.cells(),
        *(f"{x:.3f}" for x in found),
        *(f"{x:.2f}" for x in counts),
        *peptides,
    ]


def main() -> None:
    """Run the command."""
    benchmark = Scope40.read(SCOPE)
    reported = set(benchmark.queries(200))
    others = [name for name in benchmark.queries() if name not in reported]
    names = random.Random(7).sample(others, QUERIES)
    table = markdown_table(HEAD, [judge(setting, benchmark, names) for setting in TRIED], left=3)
    RESULTS.write_text(f"{table}\n")


if __name__ == "__main__":
    main()
