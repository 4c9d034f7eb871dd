"""`evaluate` module over `plasma_hf.metrics.average_precision`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from plasma_hf.metrics.pairs import average_precision

DESCRIPTION = "Step-wise area under the precision-recall curve of pair scores."
INPUTS = """
Args:
    predictions: one score per pair, larger for a likelier match; any finite number.
    references: 1 for a match, 0 for none.
Returns:
    average_precision, and pairs, the number of pairs; none is skipped.
"""


class AveragePrecision(evaluate.Metric):
    """Compute average precision; scores need not lie in [0, 1].

    Example:
        >>> AveragePrecision().compute(predictions=[0.3, 0.2, 0.9], references=[0, 1, 1])
        {'average_precision': 0.8333333333333333, 'pairs': 3}
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        value = average_precision(references, predictions)
        return {"average_precision": value, "pairs": len(references)}
