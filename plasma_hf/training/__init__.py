"""Training of heads: a `Trainer` for pairs, recipes by name, whole runs, adapters."""

from __future__ import annotations

from .lora import lora_config
from .pair_rows import PairRows, TrainingCollator
from .plasma_run import PlasmaRun
from .plasma_trainer import PlasmaTrainer
from .presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "PairRows",
    "PlasmaRun",
    "PlasmaTrainer",
    "Preset",
    "TrainingCollator",
    "lora_config",
]
