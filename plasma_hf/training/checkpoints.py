"""Where a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

SETTINGS = "run.json"
"""File beside checkpoints with the settings of their run."""


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a Trainer that was written to its end, None without one.

    A process that is killed while it writes leaves a torn one; the state of the Trainer is what
    is written last.
    """
    found = {int(c.name.split("-")[-1]): c for c in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    for _, checkpoint in sorted(found.items(), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            logger.warning("%s is not complete and is passed over", checkpoint)
            continue
        return checkpoint
    return None


def checkpoint_to_resume(folder: Path, settings: Mapping[str, Any], resume: bool) -> str | None:
    """Return the last whole checkpoint of a folder, None where there is none.

    Args:
        folder: Of the checkpoints; made if need be.
        settings: What a resumed run has in common with the one that was stopped, by name. A new run
            leaves them in the folder.
        resume: Whether to go on with an earlier run.

    Raises:
        FileExistsError: If there is one and `resume` is False.
        ValueError: If it is of a run with other settings; the message names the first.
    """
    last, file = last_whole_checkpoint(folder), folder / SETTINGS
    wanted = json.loads(json.dumps(dict(settings), default=str))
    if last is None:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(wanted, indent=2) + "\n")
        return None
    if not resume:
        raise FileExistsError(
            f"{folder} has the checkpoints of an earlier run; go on with it by resume=True "
            "(--resume), or give another folder."
        )
    before = json.loads(file.read_text()) if file.exists() else wanted
    for name, value in wanted.items():
        if before.get(name) != value:
            raise ValueError(
                f"{folder} has a run with {name} {before.get(name)}, you asked for {value}; resume "
                "it with the same settings, or give another folder."
            )
    return str(last)


def digest(texts: Iterable[str]) -> str:
    """Return what tells one list of texts from another.

    Example:
        >>> digest(["MKV", "A"]) == digest(["MK", "VA"])
        False
    """
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(f"{text}\n".encode())
    return hashed.hexdigest()[:16]
