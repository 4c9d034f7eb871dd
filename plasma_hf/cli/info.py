"""`plasma-hf info`: what is installed, where it computes, and what it comes with."""

from __future__ import annotations

import json
import platform
import re
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from .common import Skipped, verb

CORE = ("torch", "transformers", "huggingface-hub", "safetensors", "numpy")


@verb()
def info(
    skipped: Skipped,
    output_format: Annotated[
        Literal["text", "json"], Option("--format", "-f", help="What to write.")
    ] = "text",
) -> None:
    """Say what is installed, where it computes, and which models are here.

    That is versions, devices, compiled kernels, the packages of each extra, caches, and the bundled
    models with their licences. It asks nothing of the network; put it into a report of a bug.
    """
    known = {
        "versions": _versions(),
        "computes": _devices(),
        "extras": _extras(),
        "caches": _caches(),
        "models": _models(),
    }
    if output_format == "json":
        typer.echo(json.dumps(known))
        return
    for title, values in known.items():
        typer.echo(title)
        width = max(map(len, values), default=0)
        for name, value in values.items():
            typer.echo(f"  {name:<{width}}  {value}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _versions() -> dict[str, str]:
    from .. import __version__

    own = {"plasma_hf": __version__, "python": platform.python_version()}
    return own | {name: _version(name) for name in CORE} | {"system": platform.platform()}


def _devices() -> dict[str, str]:
    import torch

    from ..kernels import kernel_for

    found = {"cpu": f"{torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        found[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    for name in found:
        compiled = kernel_for("hinge_cost", torch.zeros(1, 1, 1, device=name))
        found[name] += ", compiled kernels" if compiled else ", plain torch"
    return found


def _extras() -> dict[str, str]:
    """Return the packages of each extra, as far as they are installed."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in metadata.requires("plasma-hf") or []:
        read = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", line)
        if read and read[2] != "dev" and read[1] != "plasma-hf":
            found[read[2]].append(f"{read[1]} {_version(read[1])}")
    return {extra: ", ".join(packages) for extra, packages in sorted(found.items())}


def _caches() -> dict[str, str]:
    from huggingface_hub import constants

    kept = Path(constants.HF_HOME, "plasma_hf", "calibrated")
    heads = sorted(path.name for path in kept.glob("*") if path.is_dir())
    return {"downloads": constants.HF_HUB_CACHE, "calibrated": ", ".join(heads) or "none"}


def _models() -> dict[str, str]:
    """Return the bundled models with licence and size."""
    from .. import DEFAULT_CHECKPOINT

    found: dict[str, Any] = {}
    for folder in sorted(Path(DEFAULT_CHECKPOINT).parent.iterdir()):
        if (folder / "config.json").is_file():
            card = folder / "README.md"
            read = re.search(r"^license: *(\S+)", card.read_text(), re.M) if card.exists() else None
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            found[folder.name] = f"{read[1] if read else 'mit'}, {size:.1f} MB"
    return found
