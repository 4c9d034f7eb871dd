"""Cards of models: what a folder says of itself, rendered by the templates of `hub_cards`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData
from transformers import AutoConfig

from ..io.formats import markdown_table

METRICS = "metrics.json"
"""What a run, and `reproduce.bundled_cards`, say of a model: for its card."""
MODULES = "modules.json"
"""What sentence-transformers loads a folder by."""
MULTI_VECTOR_TAGS = ("sentence-transformers", "multi-vector", "late-interaction")
ANY_REPOSITORY = "ORG/NAME"
"""What stands in a card for the place of the model, where that is not known."""
HELD_OUT = ("roc_auc", "average_precision", "label_match")

MEASURED = (
    *("head", "normalize", "kernel_scale", "n_iters", "eps"),
    *("reading", "calibration", "score_form", "threshold", "diagonal_window", "plm_name_or_path"),
)
"""Fields of `PlasmaConfig` that scores and plans depend on."""

SETS = {
    "eval": ("validation", "validation"),
    "interpolation": ("interpolation (families of training)", "test"),
    "extrapolation": ("extrapolation (families held out)", "test_hard"),
}
"""What a card and the Hub call the sets of pairs that a run evaluates on."""
OMITTED_SETTINGS = ("name", "licence", "data", "datasets")
"""Settings of a run that have a place of their own in a card."""


class Kind(NamedTuple):
    """What the cards of one kind of model have in common; columns are metrics with their heads."""

    template: str
    name: str
    tags: Sequence[str]
    task: str = ""
    data: str = ""
    columns: Mapping[str, str] = {}
    fields: Sequence[str] = ()


PAIR_COLUMNS = {
    "roc_auc": "ROC-AUC",
    "f1_max": "F1-max",
    "average_precision": "PR-AUC",
    "label_match_score": "label match",
    "pairs": "pairs",
}
ONE_WAY = {"recall_at_1": "R@1", "recall_at_5": "R@5", "mrr": "MRR"}
BACK = {f"reverse_{metric}": f"reverse {head}" for metric, head in ONE_WAY.items()}
PLASMA_FIELDS = (
    *("head", "head_size", "kernel_scale", "n_iters", "score_form", "score_loss_form"),
    *("label_match_form", "reading"),
)
PROTALIGN_FIELDS = (
    *("loss", "logit_temperature", "learn_temperature", "hidden_size", "num_heads"),
    *("sequence_size", "structure_size"),
)
ON_PAIRS = ("protein-alignment", "protein-pairs", PAIR_COLUMNS)
RETRIEVAL = ("protein-retrieval", "sequence-structure-pairs", ONE_WAY | BACK | {"pairs": "pairs"})
PLASMA_TAGS = ["alignment", "optimal-transport", "plasma"]
PROTALIGN_TAGS = ["retrieval", "contrastive", "protalign"]
KINDS = {
    "plasma": Kind("model_plasma.md", "PLASMA head", PLASMA_TAGS, *ON_PAIRS, PLASMA_FIELDS),
    "protalign": Kind(
        "model_protalign.md", "ProtAlign", PROTALIGN_TAGS, *RETRIEVAL, PROTALIGN_FIELDS
    ),
    "adapter": Kind("adapter.md", "LoRA adapter", ["alignment", "plasma", "lora"], *ON_PAIRS),
}


def model_card(
    folder: str | PathLike[str], repository: str = ANY_REPOSITORY, held_out: str | None = None
) -> ModelCard:
    """Write the card of a saved model or adapter from the files of its folder.

    Args:
        folder: With `config.json` or `adapter_config.json`, and what a run wrote beside it:
            `metrics.json`.
        repository: Where the model will be, as `org/name`, for the lines that load it.
        held_out: Markdown with held-out metrics, where they are in no `metrics.json`.

    Raises:
        ValueError: If the folder has neither configuration, or `metrics.json` has metrics that
            were measured with other settings than the folder's.
    """
    folder = Path(folder)
    metrics = read_json(folder / METRICS)
    if adapter := read_json(folder / "adapter_config.json"):
        base = str(adapter["base_model_name_or_path"])
        told = {"settings": {"name": f"LoRA adapter of {base}"}} | metrics
        values: dict[str, Any] = {"base": base, "adapter": adapter, "library_name": "peft"}
        return _card(KINDS["adapter"], told, repository, base_model=_hub_id(base), **values)
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} has neither config.json nor adapter_config.json; give the folder that "
            "save_pretrained wrote."
        )
    config, multi_vector = AutoConfig.from_pretrained(folder), (folder / MODULES).exists()
    return card_of(config, metrics, repository, held_out, multi_vector)


def card_of(
    config: Any,
    metrics: Mapping[str, Any],
    repository: str = ANY_REPOSITORY,
    held_out: str | None = None,
    multi_vector: bool = False,
) -> ModelCard:
    """Write the card of a model from its configuration and the content of its `metrics.json`.

    That has `figures` by the name of the evaluation set, `settings` of the run, and `held_out`
    where an evaluation was taken into it; see `model_card`. Of one that sentence-transformers
    loads as well, `multi_vector`, it says so.
    """
    known = metrics.get("held_out") or {}
    for field in MEASURED if known else ():
        now = getattr(config, field)
        if (then := known["measured"].get(field, now)) != now:
            raise ValueError(
                f"{METRICS} has held-out metrics of {field}={then}, and the model has "
                f"{field}={now}; run plasma-hf evaluate again and then reproduce.bundled_cards, "
                f"or take held_out out of {METRICS}."
            )
    name = f"Residue encoder, {config.model_type}"
    encoder = Kind("model_encoder.md", name, ["encoder", "residue-embeddings"])
    kind = KINDS.get(config.model_type, encoder)
    plm, inner = (getattr(config, f"plm_{part}", None) for part in ("name_or_path", "config"))
    backbone = plm or getattr(inner, "model_type", None)
    if plm and not _hub_id(plm):
        backbone = Path(plm).name  # a folder of this machine
    return _card(
        kind,
        metrics,
        repository,
        base_model=_hub_id(plm),
        config=config,
        backbone=f"`{backbone}`" if backbone else None,
        held_out=known or None,
        held_out_text=held_out,
        further_tags=MULTI_VECTOR_TAGS if multi_vector else (),
        multi_vector=multi_vector,
    )


def _card(
    kind: Kind,
    metrics: Mapping[str, Any],
    repository: str,
    *,
    base_model: str | None,
    library_name: str = "transformers",
    config: Any = None,
    further_tags: Sequence[str] = (),
    **values: Any,
) -> ModelCard:
    """Fill the template of a kind; what every template names is gathered here."""
    settings = dict(metrics.get("settings", {}))
    name, data = str(settings.get("name", kind.name)), settings.get("data")
    licence, datasets = settings.get("licence", "mit"), settings.get("datasets")
    said = {key: value for key, value in settings.items() if key not in OMITTED_SETTINGS}
    by_set = metrics.get("figures", {})
    results = [*_held_out_results(values.get("held_out") or {}), *_results(by_set, kind)]
    header = ModelCardData(
        library_name=library_name,
        license=licence,
        pipeline_tag="feature-extraction",
        tags=["biology", "protein", *kind.tags, *further_tags],
        base_model=base_model,
        datasets=datasets,
        model_name=name if results else None,
        eval_results=results or None,
    )
    text = render(
        kind.template,
        header,
        name=name,
        repo=repository,
        licence=licence,
        training=f"Data: {data}." if data else "The run does not say which data it was from.",
        settings={field: getattr(config, field) for field in kind.fields} | said,
        figures=_table(by_set, kind.columns),
        config=config,
        **values,
    )
    return ModelCard(text)


def benchmark_results(metrics: Mapping[str, Any], kind: Kind) -> list[EvalResultEntry]:
    """Return what leaderboards of the Hub read: figures on a data set that is there.

    A task is a set of pairs and a metric, such as "test_hard/roc_auc".
    """
    datasets = metrics.get("settings", {}).get("datasets") or []
    if len(datasets) != 1 or not _hub_id(datasets[0]):
        return []
    return [
        EvalResultEntry(datasets[0], f"{one.dataset_split}/{one.metric_type}", one.metric_value)
        for one in _results(metrics.get("figures", {}), kind)
    ]


def render(template: str, data: Any, **values: Any) -> str:
    """Fill a template of `hub_cards`; a name that has no value there is an error."""
    import jinja2

    loader = jinja2.FileSystemLoader(template_folder())
    world = jinja2.Environment(
        loader=loader, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    world.filters |= {
        "figure": lambda value: f"{value:.3f}",
        "estimate": _estimate,
        "percent": lambda share: f"{100 * share:.0f} %",
    }
    # A card is Markdown, nothing that a browser runs.
    return world.get_template(template).render(card_data=data.to_yaml(), **values)  # noqa: S701


def template_folder() -> Path:
    """Return where the templates are: in the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "hub_cards"


def _estimate(value: tuple[float | None, float | None]) -> str:
    """Write a mean, with its standard error where there is one."""
    mean, error = value
    if mean is None:
        return "-"
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def _table(by_set: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    head, rows = ("pairs of", *columns.values()), []
    for name, values in by_set.items():
        found = (values.get(metric, "-") for metric in columns)
        cells = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in found]
        rows.append((SETS.get(name, (name,))[0], *cells))
    return markdown_table(head, rows, left=len(head)) if rows else ""


def _results(by_set: Mapping[str, Mapping[str, float]], kind: Kind) -> Iterator[EvalResult]:
    for name, values in by_set.items():
        title, split = SETS.get(name, (name, name))
        for metric in kind.columns:
            if metric in values and metric != "pairs":
                yield EvalResult(
                    task_type=kind.task,
                    dataset_type=kind.data,
                    dataset_name=title,
                    dataset_split=split,  # of one split are listed together
                    metric_type=metric,
                    metric_value=round(values[metric], 4),
                )


def _held_out_results(held_out: Mapping[str, Any]) -> Iterator[EvalResult]:
    for table in held_out.get("tables", ()):
        name, which = f"{held_out['task']}, {held_out['protocol']} protocol", table["identity"]
        for metric in HELD_OUT:
            yield EvalResult(
                task_type="protein-alignment",
                dataset_type="protein-pairs",
                dataset_name=name if which == "all" else f"{name}, identity {which}",
                dataset_config="all" if which == "all" else f"identity {which}",
                dataset_split=held_out["split"],
                metric_type=metric,
                metric_value=round(table["rows"][0][metric][0], 4),
            )


def _hub_id(name: str | None) -> str | None:
    there = name is not None and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return name if there else None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file; one that is not there holds nothing."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
