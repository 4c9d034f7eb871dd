"""Options that several commands take, each with one name and one help text."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_errors import fail


class ProtocolName(StrEnum):
    """Ways to split proteins into sets, as typer takes a choice."""

    strict = "strict"
    upstream = "upstream"


def _usable(device: str | None) -> str | None:
    """Refuse a device that this machine does not have, before anything is read."""
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):  # as torch was built
            count = torch.cuda.device_count()
            there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
            fail(f"--device {device} is not there; this machine and its torch have {there}")
    return device


Output = Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder to write.")]
BackboneName = Annotated[
    str, typer.Option(help="Folder or Hub id of a backbone; default is the bundled one.")
]
Recipe = Annotated[
    str | None, typer.Option(help="How sequences are written for the backbone: native or upstream.")
]
Revision = Annotated[
    str | None, typer.Option(help="Commit, branch or tag of the model on the Hub.")
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
]
Device = Annotated[
    str | None,
    typer.Option(callback=_usable, help="cpu, cuda, cuda:1, ...; a GPU if there is one."),
]
Residues = Annotated[int, typer.Option(min=1, help="Residues embedded at once, padding included.")]
Epochs = Annotated[float | None, typer.Option(min=0, help="Times to go through the pairs at most.")]
LearningRate = Annotated[float | None, typer.Option(help="Of the optimiser, at its highest.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the embeddings; in --output by default.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
]


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in options.items() if value is not None}


def training_arguments(
    epochs: float | None, batch_size: int | None, learning_rate: float | None, device: str | None
) -> dict[str, Any]:
    """Name options as `TrainingArguments` does."""
    return given(
        {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "use_cpu": True if device == "cpu" else None,
        }
    )
