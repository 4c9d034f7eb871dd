"""The model card of a ProtAlign training, with its own figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

SETS = {"eval": "validation", "test": "test"}
COLUMNS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "mrr": "MRR",
    "reverse_recall_at_1": "reverse R@1",
    "reverse_recall_at_5": "reverse R@5",
    "reverse_mrr": "reverse MRR",
    "pairs": "pairs",
}
MODEL_FIELDS = (
    "loss",
    "logit_temperature",
    "learn_temperature",
    "hidden_size",
    "num_heads",
    "sequence_size",
    "structure_size",
)


def protalign_card(
    config: Any, figures: Mapping[str, Mapping[str, float]], details: Mapping[str, Any]
) -> ModelCard:
    """Write the card of a trained ProtAlign model.

    Args:
        config: The `ProtAlignConfig` of the model.
        figures: Metrics by the name of the evaluation set, as `ProtAlignTrainer.figures` has them.
        details: What else there is to say of the run, by name.

    Returns:
        A card with the figures as a table, and for the Hub as metadata.

    Example:
        >>> from plasma_hf.models.configuration_protalign import ProtAlignConfig
        >>> figures = {"test": {"recall_at_1": 0.5, "pairs": 20}}
        >>> card = protalign_card(ProtAlignConfig(), figures, {"preset": "published"})
        >>> card.data.eval_results[0].metric_value
        0.5
    """
    results = [
        EvalResult(
            task_type="protein-retrieval",
            dataset_type="sequence-structure-pairs",
            dataset_name=SETS.get(name, name),
            dataset_split=SETS.get(name, name),
            metric_type=metric,
            metric_value=round(values[metric], 4),
        )
        for name, values in figures.items()
        for metric in COLUMNS
        if metric in values and metric != "pairs"
    ]
    name = str(details.get("name", "ProtAlign"))
    data = ModelCardData(
        library_name="transformers",
        license=details.get("licence", "mit"),
        pipeline_tag="feature-extraction",
        tags=["protein", "retrieval", "contrastive", "protalign"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    settings = {field: getattr(config, field) for field in MODEL_FIELDS} | dict(details)
    encoder = f" `{config.plm_name_or_path}`" if config.plm_name_or_path else ""
    text = [
        f"# {name}",
        "",
        "A ProtAlign model: it puts sequences and structures of proteins in one space of "
        f"{config.hidden_size} numbers, so that those of one protein have the highest cosine. "
        f"Sequences are read by the encoder{encoder} of width {config.sequence_size}, structures "
        f"by a ProteinMPNN encoder of width {config.structure_size}.",
        "",
        "## Figures of this run",
        "",
        _table(figures),
        "",
        "R@k is the share of sequences whose structure ranks within the first k of all structures "
        "of the set, reverse that of structures; equal cosines count by their mean rank.",
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in settings.items() if key != "name"),
        "",
        "Source: ProtAlign (arXiv 2603.06722).",
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
