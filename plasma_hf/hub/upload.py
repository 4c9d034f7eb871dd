"""Push a model to the Hub, whole."""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, SpaceCardData

from .card import ANY_REPOSITORY, read_json, render, template_folder
from .export import PICKLES, RECORD, export_to_hub_folder, write_json

logger = logging.getLogger(__name__)

OUTDATED = ["*.py", "*.safetensors", "*.safetensors.index.json", *PICKLES]
"""What goes from the repository where the new commit does not have it."""


def push(
    model: Any,
    processor: Any,
    repo_id: str,
    *,
    folder: str | Path | None = None,
    revision: str | None = None,
    private: bool | None = None,
    message: str = "Upload of a complete folder by plasma_hf",
    token: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Export a model with `export_to_hub_folder`, whose arguments it has, and push the folder.

    To load exactly this commit later, whatever is pushed then, pin it: `AutoModel.from_pretrained(
    repo_id, revision=commit.oid, trust_remote_code=True)`. That pins the code as well.

    Args:
        repo_id: On the Hub, "<org>/<name>"; made if it is not there. A card that it has stays,
            unless `folder` brings a README.md.
        folder: Where to export to, and to keep it; its `export.json` then tells the commit. By
            default a temporary folder.
        revision: Branch to push to, by default "main".
        token: Of the Hub; by default that of `hf auth login`.
        **options: See `export_to_hub_folder`, as for what is refused.

    Returns:
        The commit; its hash is `.oid`.
    """
    api = HfApi(token=token)
    kept = TemporaryDirectory() if folder is None else nullcontext(str(folder))
    with kept as name:
        own_card = (Path(name) / "README.md").is_file()
        exported = export_to_hub_folder(model, processor, name, repo_id=repo_id, **options)
        api.create_repo(repo_id, private=private, exist_ok=True)
        keep_card = not own_card and api.file_exists(repo_id, "README.md", revision=revision)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=exported,
            revision=revision,
            commit_message=message,
            ignore_patterns=["README.md"] if keep_card else None,
            delete_patterns=OUTDATED,
        )
        pushed = {"pushed_to": repo_id, "commit": commit.oid}
        write_json(exported / RECORD, read_json(exported / RECORD) | pushed)
    logger.info("%s is at revision %s", repo_id, commit.oid)
    return commit


# --- Metrics on the Hub: each `evaluate` module of this package as the folder of a Space.


MODULES = template_folder() / "metrics"
COMPUTATIONS = Path(__file__).parents[1] / "metrics"
GRADIO = "6.31.0"
"""Version that the Space runs; `app.py` was written for its interface."""
LICENCE = "mit"
GRADIO_SPACE: dict[str, Any] = {"sdk": "gradio", "sdk_version": GRADIO, "app_file": "app.py"}
GRADIO_SPACE["license"] = LICENCE
COMPUTED_BY = re.compile(r"from plasma_hf\.metrics\.(\w+) import")
INSTALLED = re.compile(r"^The computations? .* install `plasma-hf\[train\]` for .*$", re.MULTILINE)
STANDALONE = (
    "It needs numpy and scikit-learn beside evaluate; the computations are in files beside it."
)
REQUIREMENTS = "evaluate>=0.4.6\nnumpy>=2.0\nscikit-learn>=1.6\n"


def metric_names() -> list[str]:
    """Return the metrics that have an `evaluate` module.

    Example:
        >>> metric_names()
        ['average_precision', 'f1_max', 'label_match_score']
    """
    return sorted(file.parent.name for file in MODULES.glob("*/README.md"))


def metric_space(name: str, folder: str | PathLike[str], repository: str = ANY_REPOSITORY) -> Path:
    """Write the folder of a Space: the module, its card, its needs and a page to try it on.

    `evaluate.load` takes the folder, if its name is the metric's, and the Space made from it; the
    files that compute the metric are in it, and plasma_hf need not be installed.

    Args:
        name: One of `metric_names()`.
        folder: Created if missing; files of these names in it are replaced.
        repository: Where it will be, as `org/name`, for the line in the card that loads it.
    """
    if name not in metric_names():
        raise ValueError(f"there is no metric {name!r}; give one of {', '.join(metric_names())}.")
    out, module = Path(folder), MODULES / name
    out.mkdir(parents=True, exist_ok=True)
    code, beside = _standalone((module / f"{name}.py").read_text(encoding="utf-8"))
    (out / f"{name}.py").write_text(code, encoding="utf-8")
    for file in beside:
        shutil.copy(COMPUTATIONS / file, out / file)
    shutil.copy(MODULES / "app.py", out / "app.py")
    (out / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    (out / "README.md").write_text(space_card(name, repository), encoding="utf-8")
    return out


def _standalone(code: str) -> tuple[str, list[str]]:
    """Let a module import from files beside it what it takes from those of `plasma_hf.metrics`.

    It names all that it needs: evaluate does not fetch what those files import in turn.
    """
    return COMPUTED_BY.sub(r"from .\1 import", code), [f"{n}.py" for n in COMPUTED_BY.findall(code)]


def space_card(name: str, repository: str = ANY_REPOSITORY) -> str:
    """Write the card of a metric's Space, from that of its module."""
    data = SpaceCardData(title=name, tags=["evaluate", "metric"], **GRADIO_SPACE)
    text = ModelCard((MODULES / name / "README.md").read_text(encoding="utf-8")).text.strip()
    text = text.replace(f"hub_cards/metrics/{name}", repository)
    text = INSTALLED.sub(STANDALONE, text)
    return render("metric_space.md", data, text=text, licence=LICENCE)


def push_metric(name: str, repository: str, private: bool = False) -> CommitInfo:
    """Put a metric on the Hub as a Space, created if missing.

    Args:
        name: One of `metric_names()`.
        repository: `org/name`; `evaluate.load` wants the name to be the metric's.

    Returns:
        The commit; `evaluate.load(repository, revision=commit.oid)` loads exactly this one.
    """
    if repository.rpartition("/")[2] != name:
        owner = repository.rpartition("/")[0] or "org"
        raise ValueError(
            f"{repository} is to hold the metric {name}, and evaluate.load looks for a module of "
            f"the Space's own name; give {owner}/{name}."
        )
    with TemporaryDirectory() as scratch:
        folder = metric_space(name, Path(scratch) / name, repository)
        return push_space(folder, repository, private)


def push_space(folder: Path, repository: str, private: bool) -> CommitInfo:
    """Put the folder of a Gradio Space on the Hub; Python files that it no longer has go."""
    api = HfApi()
    api.create_repo(
        repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
    )
    return api.upload_folder(
        repo_id=repository, folder_path=folder, repo_type="space", delete_patterns="*.py"
    )
