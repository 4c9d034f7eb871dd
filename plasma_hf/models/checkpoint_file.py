"""Checkpoints that were written by torch.save."""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file written by `torch.save`, running no code that it may hold.

    Args:
        path: A `.pt`, `.pth`, `.ckpt` or `.bin` file that holds a dict.

    Returns:
        That dict, every tensor on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint, is cut short, asks for code or holds no dict.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"weight": torch.ones(2)}, f"{folder}/model.pt")
        ...     read_checkpoint(f"{folder}/model.pt")
        {'weight': tensor([1., 1.])}
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file; give the path of a checkpoint.")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    # In bytes that are no checkpoint the readers of torch meet errors of any kind.
    except Exception as error:
        raise ValueError(_refusal(file, error)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{file} holds a {type(checkpoint).__name__}; accepted is a dict of tensors, as in "
            "torch.save(model.state_dict(), path)."
        )
    return checkpoint


def _refusal(file: Path, error: Exception) -> str:
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked is None or not isinstance(error, UnpicklingError):
        return (
            f"{file} cannot be read as a checkpoint: it is cut short or was not written by "
            "torch.save; download it again."
        )
    return (
        f"{file} was not read: beside tensors it asks for code, {asked.group(1)}; accepted are "
        "tensors, numbers, text, lists and dicts alone. Only if you trust where it comes from, "
        "write its weights anew and read that file: "
        f"state = torch.load({str(file)!r}, weights_only=False)['state_dict']; "
        "torch.save({'state_dict': state}, 'weights.pt')."
    )
