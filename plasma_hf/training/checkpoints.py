"""Where a run that was stopped goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)


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


def checkpoint_to_resume(folder: Path, resume: bool) -> Path | None:
    """Return the last whole checkpoint of a folder, or None where there is none.

    Args:
        folder: Of the checkpoints.
        resume: Whether to go on with an earlier run.

    Raises:
        FileExistsError: If there is one and `resume` is False.
    """
    last = last_whole_checkpoint(folder)
    if last is not None and not resume:
        raise FileExistsError(
            f"{folder} has the checkpoints of an earlier run; go on with it by resume=True "
            "(--resume), or give another folder."
        )
    return last
