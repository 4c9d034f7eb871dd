"""Write the demo page as the folder of a Space, complete: page, examples, the package, its card.

Run as `python -m reproduce.demo_space FOLDER`, and `--push org/name` to put it on the Hub.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, SpaceCardData

import plasma_hf
from plasma_hf.hub.card import render, template_folder
from plasma_hf.hub.upload import GRADIO, GRADIO_SPACE, LICENCE, push_space

PACKAGE = Path(plasma_hf.__file__).parent
PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "demo"
SEQUENCES = "serine_proteases.fasta"
TITLE = "plasma_hf"


def demo_space(folder: str | PathLike[str]) -> Path:
    """Write the folder of a Space that shows both bundled models; `python app.py` serves it.

    This package and the example proteins, which only a clone has, are copied into it. Files of the
    same names in the folder are replaced.
    """
    if not EXAMPLES.is_dir():
        raise FileNotFoundError(
            f"there is no folder {EXAMPLES} with the example proteins of the page, which the "
            "installed package lacks; clone the repository and run this in it."
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
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["space"]]
    # Gradio is there by the `sdk_version` of the card, and serves agents by an older mcp than ours.
    lines = [f"{need}\n" for need in needed if not need.startswith("gradio")]
    lines += ["mcp>=1.21,<2\n"]
    (out / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    return out


def demo_space_card() -> str:
    """Write the card of the demo Space."""
    data = SpaceCardData(
        title=TITLE,
        short_description="Which residues of two proteins correspond",
        python_version="3.12",
        tags=["biology", "protein", "alignment", "retrieval"],
        **GRADIO_SPACE,
    )
    structures = len(list((EXAMPLES / "structures").glob("*.gz")))
    return render(
        "demo_space.md", data, title=TITLE, gradio=GRADIO, licence=LICENCE, structures=structures
    )


def push_demo_space(repository: str, private: bool = False) -> CommitInfo:
    """Put the page of `demo_space` on the Hub as the Space `org/name`, made there if need be."""
    with TemporaryDirectory() as scratch:
        return push_space(demo_space(Path(scratch) / "space"), repository, private)


def main(words: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.demo_space")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--push", metavar="ORG/NAME")
    options = parser.parse_args(words)
    if not options.folder and not options.push:
        parser.error("there is nothing to do; give FOLDER, --push ORG/NAME, or both")
    if options.folder:
        print(demo_space(options.folder))
    if options.push:
        print(push_demo_space(options.push))


if __name__ == "__main__":
    main()
