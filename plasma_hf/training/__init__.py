"""Training: Trainers for PLASMA and ProtAlign, presets by name, whole runs, adapters."""

from ..data.collator import PairRows
from .arguments import PRESETS, PROTALIGN_PRESETS, Preset, ProtAlignPreset, lora_config
from .run import PlasmaRun, ProtAlignRun
from .structure_data import PairParts, split_pairs
from .trainer import PlasmaTrainer, ProtAlignTrainer

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
    "lora_config",
    "split_pairs",
]
