"""Metrics on the Hub: each `evaluate` module of this package as the folder of a Space."""

from __future__ import annotations

import shutil
from os import PathLike
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, SpaceCardData

from .cards import ANY_REPOSITORY, render

MODULES = Path(__file__).parents[1] / "metrics" / "modules"
GRADIO = "6.31.0"
"""Version that the Space runs; `app.py` was written for its interface."""
LICENCE = "mit"


def metric_names() -> list[str]:
    """Return the metrics that have an `evaluate` module.

    Example:
        >>> metric_names()
        ['average_precision', 'f1_max', 'label_match_score']
    """
    return sorted(file.parent.name for file in MODULES.glob("*/README.md"))


def metric_space(name: str, folder: str | PathLike[str], repository: str = ANY_REPOSITORY) -> Path:
    """Write the folder of a Space: the module, its card, its needs and a page to try it on.

    `evaluate.load` takes the folder, if its name is the metric's, and the Space made from it.

    Args:
        name: One of `metric_names()`.
        folder: Made if need be; files of these names in it are replaced.
        repository: Where it will be, as `org/name`, for the line in the card that loads it.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such metric.
    """
    if name not in metric_names():
        raise ValueError(f"there is no metric {name!r}; give one of {', '.join(metric_names())}.")
    out, module = Path(folder), MODULES / name
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(module / f"{name}.py", out / f"{name}.py")
    shutil.copy(MODULES / "app.py", out / "app.py")
    (out / "requirements.txt").write_text((module / "requirements.txt").read_text())
    (out / "README.md").write_text(space_card(name, repository), encoding="utf-8")
    return out


def space_card(name: str, repository: str = ANY_REPOSITORY) -> str:
    """Write the card of a metric's Space, from that of its module.

    Args:
        name: One of `metric_names()`.
        repository: See `metric_space`.
    """
    data = SpaceCardData(
        title=name,
        sdk="gradio",
        sdk_version=GRADIO,
        app_file="app.py",
        license=LICENCE,
        tags=["evaluate", "metric"],
    )
    text = ModelCard((MODULES / name / "README.md").read_text(encoding="utf-8")).text.strip()
    text = text.replace(f"plasma_hf/metrics/modules/{name}", repository)
    return render("metric_space.md", data, text=text, licence=LICENCE)


def push_metric(name: str, repository: str, private: bool = False) -> None:
    """Put a metric on the Hub as a Space, made there if need be.

    Args:
        name: One of `metric_names()`.
        repository: `org/name`; `evaluate.load` wants the name to be the metric's.
        private: Make a new one private.

    Raises:
        ValueError: If there is no such metric, or the Space has another name.
    """
    import tempfile

    if repository.rpartition("/")[2] != name:
        owner = repository.rpartition("/")[0] or "org"
        raise ValueError(
            f"{repository} is to hold the metric {name}, and evaluate.load looks for a module of "
            f"the Space's own name; give {owner}/{name}."
        )
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        folder = metric_space(name, Path(scratch) / name, repository)
        api.create_repo(
            repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="space")
