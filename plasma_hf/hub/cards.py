"""Cards of models: what a folder holds, rendered by the templates of `hub_cards`.

Every figure comes from the folder's `metrics.json` or from a table that is handed over; a card has
no place to type one in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from .held_out import METRICS, is_unchanged, measured

ANY_REPOSITORY = "ORG/NAME"
"""What stands in a card for the place of the model, where that is not known."""

SCORES = {
    "published": "The cosine of matched residues times the fullness of the best diagonal stretch.",
    "soft": "The cosine of matched residues times the fullness of the best diagonal stretch, both "
    "with smooth thresholds.",
    "mass": "The share of the shorter protein that plan entries above the threshold match.",
    "collinear": "What the best path through the plan aligns in order, as a share s of the shorter "
    "protein: 1 - (1 - s)^p, with p the root of the longer protein's length over 100, at least 1.",
}
HEADS = {
    "lrl": "Its head learnt a projection of the residue embeddings.",
    "residual": "Its head learnt a correction to the residue embeddings.",
    "hinge": "Its head has no parameter (PLASMA-PF): embeddings are compared as they are.",
}
METHODS = {
    "eba": "embedding-based alignment",
    "pf": "PLASMA-PF, published form",
    "smith-waterman": "Smith-Waterman",
    "needleman-wunsch": "Needleman-Wunsch",
    "mean-cosine": "cosine of mean embeddings",
    "length": "length alone",
    "composition": "composition alone",
}
"""What a card calls the baselines of `plasma-hf evaluate`."""
SETS = {
    "eval": "validation",
    "interpolation": "interpolation (families of training)",
    "extrapolation": "extrapolation (families held out)",
}
SPLITS = {"eval": "validation", "interpolation": "test", "extrapolation": "test_hard"}
PAIR_COLUMNS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match_score": "label match",
    "pairs": "pairs",
}
RETRIEVAL_COLUMNS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "mrr": "MRR",
    "reverse_recall_at_1": "reverse R@1",
    "reverse_recall_at_5": "reverse R@5",
    "reverse_mrr": "reverse MRR",
    "pairs": "pairs",
}
PLASMA_FIELDS = (
    "head",
    "head_size",
    "kernel_scale",
    "n_iters",
    "score_form",
    "score_loss_form",
    "label_match_form",
    "support_rounds",
    "support_window",
    "support_gap",
    "support_weight",
    "order_weight",
)
PROTALIGN_FIELDS = (
    "loss",
    "logit_temperature",
    "learn_temperature",
    "hidden_size",
    "num_heads",
    "sequence_size",
    "structure_size",
)
SAID_ELSEWHERE = ("name", "licence", "data", "datasets")
"""Settings of a run that have a place of their own in a card."""


def model_card(
    folder: str | PathLike[str],
    repository: str = ANY_REPOSITORY,
    held_out: str | None = None,
) -> ModelCard:
    """Write the card of a saved model or adapter from the files of its folder.

    Args:
        folder: With `config.json` or `adapter_config.json`, and what a run wrote beside it:
            `metrics.json`, or `training.json` for an encoder.
        repository: Where the model will be, as `org/name`, for the lines that load it.
        held_out: Markdown with held-out figures, where they are in no `metrics.json`.

    Returns:
        The card, with figures for the Hub as metadata.

    Raises:
        ValueError: If the folder has neither configuration, or `metrics.json` has figures that
            were measured with other settings than the folder's.

    Example:
        >>> from plasma_hf import DEFAULT_CHECKPOINT
        >>> model_card(DEFAULT_CHECKPOINT).data.license
        'mit'
    """
    folder = Path(folder)
    metrics = _run_of(folder)
    adapter = _read(folder, "adapter_config.json")
    if adapter:
        return _adapter_card(adapter, metrics, repository)
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} has neither config.json nor adapter_config.json; give the folder that "
            "save_pretrained wrote."
        )
    config = AutoConfig.from_pretrained(folder)
    return card_of(config, metrics, repository, held_out)


def render_card(model: Any, repository: str = ANY_REPOSITORY) -> ModelCard:
    """Write the card of a model in memory.

    Figures of the folder it was loaded from are in it if weights and settings are still those.

    Args:
        model: PLASMA, ProtAlign, an encoder, or an adapter of PEFT over one of them.
        repository: See `model_card`.
    """
    adapters = getattr(model, "peft_config", None)
    if adapters:
        return _adapter_card(next(iter(adapters.values())).to_dict(), {}, repository)
    came = Path(getattr(model.config, "_name_or_path", None) or "")
    kept = (came / "model.safetensors").exists() and is_unchanged(model, came)
    return card_of(model.config, _run_of(came) if kept else {}, repository)


def card_of(
    config: Any,
    metrics: Mapping[str, Any],
    repository: str = ANY_REPOSITORY,
    held_out: str | None = None,
) -> ModelCard:
    """Write the card of a model from its configuration and the content of its `metrics.json`.

    Args:
        config: Of PLASMA, ProtAlign or an encoder.
        metrics: `figures` by the name of the evaluation set, `settings` of the run, and what
            `add_held_out` added.
        repository: See `model_card`.
        held_out: See `model_card`.
    """
    values = _values(metrics, repository) | {"config": config, "held_out_text": held_out}
    if config.model_type == "plasma":
        return _plasma_card(config, metrics, values)
    if config.model_type == "protalign":
        return _protalign_card(config, metrics, values)
    return _encoder_card(config, values)


def _plasma_card(config: Any, metrics: Mapping[str, Any], values: dict[str, Any]) -> ModelCard:
    held_out = metrics.get("held_out")
    if held_out:
        _check_measured(config, held_out["measured"])
    bins = {table["identity"]: table for table in held_out["tables"]} if held_out else {}
    figures = metrics.get("figures", {})
    results = [*_held_out_results(held_out), *_results(figures, PAIR_COLUMNS, "protein-alignment")]
    return _render(
        "model_plasma.md",
        {"name": "PLASMA head"} | values,
        tags=["alignment", "optimal-transport", "plasma"],
        base_model=_hub_id(config.plm_name_or_path),
        eval_results=results,
        backbone=_backbone(config),
        head=HEADS[config.head],
        score=SCORES[config.score_form],
        held_out=held_out,
        methods=METHODS,
        remote=bins["< 20 %"]["rows"][0] if "< 20 %" in bins else None,
        figures=_table(figures, PAIR_COLUMNS),
        settings=_fields(config, PLASMA_FIELDS) | values["settings"],
    )


def _protalign_card(config: Any, metrics: Mapping[str, Any], values: dict[str, Any]) -> ModelCard:
    figures = metrics.get("figures", {})
    return _render(
        "model_protalign.md",
        {"name": "ProtAlign"} | values,
        tags=["retrieval", "contrastive", "protalign"],
        base_model=_hub_id(config.plm_name_or_path),
        eval_results=list(_results(figures, RETRIEVAL_COLUMNS, "protein-retrieval")),
        backbone=_backbone(config),
        figures=_table(figures, RETRIEVAL_COLUMNS),
        settings=_fields(config, PROTALIGN_FIELDS) | values["settings"],
    )


def _encoder_card(config: Any, values: dict[str, Any]) -> ModelCard:
    return _render(
        "model_encoder.md",
        {"name": f"Residue encoder, {config.model_type}"} | values,
        tags=["encoder", "residue-embeddings"],
        width=config.hidden_size,
        structures=config.model_type == "protein_mpnn",
    )


def _adapter_card(
    adapter: Mapping[str, Any], metrics: Mapping[str, Any], repository: str
) -> ModelCard:
    base = str(adapter["base_model_name_or_path"])
    return _render(
        "adapter.md",
        {"name": f"LoRA adapter of {base}"} | _values(metrics, repository),
        tags=["alignment", "plasma", "lora"],
        library_name="peft",
        base_model=_hub_id(base),
        eval_results=list(_results(metrics.get("figures", {}), PAIR_COLUMNS, "protein-alignment")),
        base=base,
        adapter=adapter,
        figures=_table(metrics.get("figures", {}), PAIR_COLUMNS),
    )


def _values(metrics: Mapping[str, Any], repository: str) -> dict[str, Any]:
    """Return what every template names, as far as the run says it."""
    settings = dict(metrics.get("settings", {}))
    given = {"name": str(settings["name"])} if "name" in settings else {}
    data = settings.get("data")
    if isinstance(metrics.get("data"), Mapping):  # of an encoder's run: counts, by what they are
        settings |= metrics["data"]
    return given | {
        "repo": repository,
        "licence": settings.get("licence", "mit"),
        "datasets": settings.get("datasets"),
        "training": f"Data: {data}." if data else "The run does not say which data it was from.",
        "settings": {k: v for k, v in settings.items() if k not in SAID_ELSEWHERE},
    }


def _render(
    template: str,
    values: dict[str, Any],
    *,
    tags: list[str],
    library_name: str = "transformers",
    base_model: str | None = None,
    eval_results: list[EvalResult] | None = None,
    **more: Any,
) -> ModelCard:
    data = ModelCardData(
        library_name=library_name,
        license=values["licence"],
        pipeline_tag="feature-extraction",
        tags=["biology", "protein", *tags],
        base_model=base_model,
        datasets=values["datasets"],
        model_name=values["name"] if eval_results else None,
        eval_results=eval_results or None,
    )
    return ModelCard(render(template, data, **values | more))


def render(template: str, data: Any, **values: Any) -> str:
    """Fill a template of `hub_cards`; a name that has no value there is an error.

    Args:
        template: Its file name.
        data: The header, as huggingface_hub's card data.
        values: What the template names.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(template_folder())
    world = jinja2.Environment(
        loader=loader, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    world.filters |= {"figure": _figure, "estimate": _estimate, "percent": _percent}
    # A card is Markdown, nothing that a browser runs.
    return world.get_template(template).render(card_data=data.to_yaml(), **values)  # noqa: S701


def template_folder() -> Path:
    """Return where the templates are: in the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "hub_cards"


def _check_measured(config: Any, then: Mapping[str, Any]) -> None:
    now = measured(config)
    for name, value in then.items():
        if now[name] != value:
            raise ValueError(
                f"{METRICS} has held-out figures of {name}={value}, and the model has "
                f"{name}={now[name]}; run plasma-hf evaluate again and then add_held_out, or "
                f"take held_out out of {METRICS}."
            )


def _results(
    figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, str], task: str
) -> Iterator[EvalResult]:
    kind = "protein-pairs" if task == "protein-alignment" else "sequence-structure-pairs"
    for name, values in figures.items():
        for metric in columns:
            if metric in values and metric != "pairs":
                yield EvalResult(
                    task_type=task,
                    dataset_type=kind,
                    dataset_name=SETS.get(name, name),
                    dataset_split=SPLITS.get(name, name),  # of one split are listed together
                    metric_type=metric,
                    metric_value=round(values[metric], 4),
                )


def _held_out_results(held_out: Mapping[str, Any] | None) -> Iterator[EvalResult]:
    if not held_out:
        return
    name = f"{held_out['task']}, {held_out['protocol']} protocol"
    for table in held_out["tables"]:
        mine, which = table["rows"][0], table["identity"]
        for metric in ("roc_auc", "average_precision", "label_match"):
            yield EvalResult(
                task_type="protein-alignment",
                dataset_type="protein-pairs",
                dataset_name=name if which == "all" else f"{name}, identity {which}",
                dataset_config="all" if which == "all" else f"identity {which}",
                dataset_split=held_out["split"],
                metric_type=metric,
                metric_value=round(mine[metric][0], 4),
            )


def _table(figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    if not figures:
        return ""
    lines = [f"| pairs of | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in figures.items():
        cells = [_cell(values.get(metric)) for metric in columns]
        lines.append(f"| {SETS.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else _figure(value)


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _estimate(value: tuple[float | None, float | None]) -> str:
    """Write a mean, with its standard error where there is one."""
    mean, error = value
    if mean is None:
        return "-"
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _fields(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def _backbone(config: Any) -> str | None:
    name = config.plm_name_or_path
    if name:
        return f"`{name if _hub_id(name) else Path(name).name}`"  # a folder here is none elsewhere
    return None if config.plm_config is None else f"`{config.plm_config.model_type}`"


def _hub_id(name: str | None) -> str | None:
    there = name is not None and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if there else None


def _run_of(folder: Path) -> dict[str, Any]:
    return _read(folder, METRICS) or _read(folder, "training.json")


def _read(folder: Path, name: str) -> dict[str, Any]:
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
