"""Training: Trainers for PLASMA and ProtAlign, recipes by name, whole runs, adapters."""

from __future__ import annotations

from .lora import lora_config
from .pair_rows import PairRows, TrainingCollator
from .plasma_run import PlasmaRun
from .plasma_trainer import PlasmaTrainer
from .presets import PRESETS, Preset
from .protalign_parts import PairParts, split_pairs
from .protalign_presets import PROTALIGN_PRESETS, ProtAlignPreset
from .protalign_run import ProtAlignRun
from .protalign_trainer import ProtAlignTrainer

__all__ = [
    "PRESETS",
    "PROTALIGN_PRESETS",
    "PairParts",
    "PairRows",
    "PlasmaRun",
    "PlasmaTrainer",
    "Preset",
    "ProtAlignPreset",
    "ProtAlignRun",
    "ProtAlignTrainer",
    "TrainingCollator",
    "lora_config",
    "split_pairs",
]
