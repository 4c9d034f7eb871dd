"""What an evaluation says of one model on held-out pairs, kept in `metrics.json` for the card."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..models.configuration_plasma import RETIRED

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
    "eps",
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
        "tables": [_held_out_table(name, some, aligner) for name, some in bins.items()],
        "calibration": _calibration(folder / "pairs.csv", aligner),
    }


def _held_out_table(name: str, rows: Iterable[Mapping[str, Any]], aligner: str) -> dict[str, Any]:
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


# --- Cards of models: what a folder holds, rendered by the templates of `hub_cards`.


ANY_REPOSITORY = "ORG/NAME"
"""What stands in a card for the place of the model, where that is not known."""

SCORES = {
    "published": "The cosine of matched residues times the fullness of the best diagonal stretch.",
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
        figures=_card_table(figures, PAIR_COLUMNS),
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
        figures=_card_table(figures, RETRIEVAL_COLUMNS),
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
        figures=_card_table(metrics.get("figures", {}), PAIR_COLUMNS),
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
    now = RETIRED | measured(config)
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


def _card_table(figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
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
