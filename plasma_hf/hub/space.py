"""The demo page as the folder of a Space, complete: page, examples, this package, its card."""

from __future__ import annotations

import shutil
import tomllib
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, SpaceCardData

from .cards import render, template_folder
from .metric_spaces import GRADIO, LICENCE, push_space

PACKAGE = Path(__file__).parents[1]
PROJECT = PACKAGE.parent
EXAMPLES = PROJECT / "demo"
SEQUENCES = "serine_proteases.fasta"
TITLE = "plasma_hf"
PYTHON = "3.12"


def demo_space(folder: str | PathLike[str]) -> Path:
    """Write the folder of a Space that shows both bundled models; `python app.py` serves it.

    This package is copied into it, so that the Space needs no other than those of its
    `requirements.txt`.

    Args:
        folder: Made if need be; files of the same names in it are replaced.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there are no example proteins, which only a clone has.
    """
    if not EXAMPLES.is_dir():
        raise FileNotFoundError(
            f"there is no folder {EXAMPLES} with the example proteins of the page, which are not "
            "part of the installed package; clone the repository and run this in it."
        )
    out = Path(folder)
    folders = {
        ".": template_folder() / "space",
        PACKAGE.name: PACKAGE,
        "demo/structures": EXAMPLES / "structures",
    }
    for name, source in folders.items():
        left = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, out / name, ignore=left, dirs_exist_ok=True)
    shutil.copy(EXAMPLES / SEQUENCES, out / "demo" / SEQUENCES)
    (out / "README.md").write_text(demo_space_card(), encoding="utf-8")
    (out / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    return out


def demo_space_card() -> str:
    """Write the card of the demo Space."""
    data = SpaceCardData(
        title=TITLE,
        short_description="Which residues of two proteins correspond",
        sdk="gradio",
        sdk_version=GRADIO,
        python_version=PYTHON,
        app_file="app.py",
        license=LICENCE,
        tags=["biology", "protein", "alignment", "retrieval"],
    )
    structures = len(list((EXAMPLES / "structures").glob("*.gz")))
    return render(
        "demo_space.md", data, title=TITLE, gradio=GRADIO, licence=LICENCE, structures=structures
    )


def requirements() -> list[str]:
    """Return what the page needs besides Gradio, which is there by the card's `sdk_version`."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["space"]]
    return [need for need in needed if not need.startswith("gradio")]


def push_demo_space(repository: str, private: bool = False) -> CommitInfo:
    """Put the demo page on the Hub as a Space, made there if need be.

    Args:
        repository: `org/name`.
        private: Make a new one private.

    Returns:
        The commit.

    Raises:
        FileNotFoundError: See `demo_space`.
    """
    with TemporaryDirectory() as scratch:
        folder = demo_space(Path(scratch) / "space")
        return push_space(folder, repository, private)
