"""Metrics on the Hub: each `evaluate` module of this package as the folder of a Space."""

from __future__ import annotations

import ast
import re
import shutil
from importlib import import_module
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, SpaceCardData

from .cards import ANY_REPOSITORY, render
from .completeness import code_of

MODULES = Path(__file__).parents[1] / "metrics" / "modules"
GRADIO = "6.31.0"
"""Version that the Space runs; `app.py` was written for its interface."""
LICENCE = "mit"
PACKAGE = "plasma_hf.metrics"
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
    code, beside = standalone((module / f"{name}.py").read_text(encoding="utf-8"))
    (out / f"{name}.py").write_text(code, encoding="utf-8")
    for file in beside:
        shutil.copy(MODULES.parent / file, out / file)
    shutil.copy(MODULES / "app.py", out / "app.py")
    (out / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    (out / "README.md").write_text(space_card(name, repository), encoding="utf-8")
    return out


def standalone(code: str) -> tuple[str, list[str]]:
    r"""Let a module import what it takes from `plasma_hf.metrics` from files beside it.

    Args:
        code: Of the module.

    Returns:
        Its new code, and the names of those files in `plasma_hf/metrics`.

    Example:
        >>> changed, beside = standalone("from plasma_hf.metrics import f1_max\n")
        >>> print(changed)
        from .arrays import as_float_array
        from .binary import f1_max
        <BLANKLINE>
        >>> beside
        ['arrays.py', 'binary.py']
    """
    lines, package = code.splitlines(keepends=True), import_module(PACKAGE)
    taken = next(
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE
    )
    names: dict[str, list[str]] = {}
    for alias in taken.names:
        home = getattr(package, alias.name).__module__.rpartition(".")[2]
        names.setdefault(home, []).append(alias.name)
    beside = sorted(code_of(MODULES.parent, dict.fromkeys(names, "the metric")))
    # evaluate fetches the files that the module itself imports, and not what those import.
    for file in beside:
        home = Path(file).stem
        names.setdefault(home, _defined(MODULES.parent / file)[:1])
    imports = [f"from .{home} import {', '.join(names[home])}\n" for home in sorted(names)]
    first, last = taken.lineno - 1, taken.end_lineno or taken.lineno
    return "".join(lines[:first] + imports + lines[last:]), beside


def _defined(file: Path) -> list[str]:
    """Return the functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


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
    text = INSTALLED.sub(STANDALONE, text)
    return render("metric_space.md", data, text=text, licence=LICENCE)


def push_metric(name: str, repository: str, private: bool = False) -> CommitInfo:
    """Put a metric on the Hub as a Space, made there if need be.

    Args:
        name: One of `metric_names()`.
        repository: `org/name`; `evaluate.load` wants the name to be the metric's.
        private: Make a new one private.

    Returns:
        The commit; `evaluate.load(repository, revision=commit.oid)` loads exactly this one.

    Raises:
        ValueError: If there is no such metric, or the Space has another name.
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
    """Put the folder of a Gradio Space on the Hub; Python files that it no longer has go there."""
    api = HfApi()
    api.create_repo(
        repository, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
    )
    return api.upload_folder(
        repo_id=repository, folder_path=folder, repo_type="space", delete_patterns="*.py"
    )
