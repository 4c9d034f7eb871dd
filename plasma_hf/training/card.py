"""The model card of a training run, with its own figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

SETS = {
    "eval": "validation",
    "interpolation": "interpolation (families of training)",
    "extrapolation": "extrapolation (families held out)",
}
HELD_OUT = {"interpolation": "test", "extrapolation": "test_hard"}
"""What the two test sets of a split are called in the figures."""
SPLITS = {"eval": "validation"} | HELD_OUT
COLUMNS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match_score": "label match",
    "pairs": "pairs",
}
HEAD_FIELDS = (
    "head",
    "head_size",
    "kernel_scale",
    "n_iters",
    "score_form",
    "score_loss_form",
    "label_match_form",
    "support_rounds",
)


def training_card(
    config: Any, figures: Mapping[str, Mapping[str, float]], details: Mapping[str, Any]
) -> ModelCard:
    """Write the card of a trained head.

    Args:
        config: The `PlasmaConfig` of the model.
        figures: Metrics by the name of the evaluation set, as `PlasmaTrainer.figures` has them.
        details: What else there is to say of the run, by name.

    Returns:
        A card with the figures as a table, and for the Hub as metadata.

    Example:
        >>> from plasma_hf import PlasmaConfig
        >>> figures = {"extrapolation": {"roc_auc": 0.91, "label_match_score": 0.5, "pairs": 200}}
        >>> card = training_card(PlasmaConfig(), figures, {"preset": "published"})
        >>> card.data.eval_results[0].metric_value
        0.91
    """
    results = [
        EvalResult(
            task_type="protein-alignment",
            dataset_type="protein-pairs",
            dataset_name=SETS.get(name, name),
            dataset_split=SPLITS.get(name, name),  # results of one split are listed together
            metric_type=metric,
            metric_value=round(values[metric], 4),
        )
        for name, values in figures.items()
        for metric in COLUMNS
        if metric in values and metric != "pairs"
    ]
    name = str(details.get("name", "PLASMA head"))
    data = ModelCardData(
        library_name="transformers",
        license=details.get("licence", "mit"),
        pipeline_tag="feature-extraction",
        tags=["protein", "alignment", "optimal-transport", "plasma"],
        model_name=name if results else None,
        eval_results=results or None,
        base_model=config.plm_name_or_path if _is_hub_id(config.plm_name_or_path) else None,
    )
    head = {field: getattr(config, field) for field in HEAD_FIELDS}
    text = [
        f"# {name}",
        "",
        "A PLASMA head: it aligns two proteins residue by residue where they share a site. It "
        f"takes residue embeddings of width {config.embedding_size}"
        + (f", of the backbone `{config.plm_name_or_path}`." if config.plm_name_or_path else "."),
        "",
        "## Figures of this run",
        "",
        _table(figures),
        "",
        "Label match is the share of the candidate's site residues that the plan reaches from the "
        "query's site, over positive pairs. No pair was left out.",
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in (head | dict(details)).items() if key != "name"),
        "",
        "Source: PLASMA (ICLR 2026).",
        "",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n" + "\n".join(text))


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| pairs of | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, values in figures.items():
        cells = [_cell(values.get(metric)) for metric in COLUMNS]
        lines.append(f"| {SETS.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _is_hub_id(name: str | None) -> bool:
    return name is not None and name.count("/") == 1 and not name.startswith((".", "/", "~"))
