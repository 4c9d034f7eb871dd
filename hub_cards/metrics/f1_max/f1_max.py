"""`evaluate` module over `plasma_hf.metrics.f1_max`."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import evaluate

from plasma_hf.metrics.pairs import f1_max

DESCRIPTION = "Largest F1 of pair scores over all thresholds, or over a grid of 1,000."
INPUTS = """
Args:
    predictions: one score per pair, larger for a likelier match; any finite number.
    references: 1 for a match, 0 for none.
    mode: "exact" tries every distinct score, "grid1000" is the published protocol.
Returns:
    f1_max, and pairs, the number of pairs; none is skipped.
"""


class F1Max(evaluate.Metric):
    """Compute the largest F1 over thresholds.

    Example:
        >>> F1Max().compute(predictions=[0.9, 0.3], references=[0, 1], mode="exact")
        {'f1_max': 0.6666666666666666, 'pairs': 2}
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: Any, references: Any, mode: Literal["exact", "grid1000"] = "exact"
    ) -> dict[str, float]:
        return {"f1_max": f1_max(references, predictions, mode=mode), "pairs": len(references)}
