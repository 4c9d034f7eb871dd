"""A pipeline for Ray's workers, the first of which is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import pipeline

import plasma_hf  # noqa: F401  # has the task


def load(mark: Path) -> Any:
    """Return the default pipeline; without `mark` the process ends at the first candidates."""
    align = pipeline("protein-alignment")
    screen = align.screen

    def lost_once(*given: Any) -> Iterator[float]:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return screen(*given)

    align.screen = lost_once
    return align
