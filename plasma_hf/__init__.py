"""plasma_hf: protein substructure alignment and retrieval for the Hugging Face stack.

Importing it registers the models with the Auto classes and the tasks with `pipeline`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .models.configuration_plasma import PlasmaConfig
from .models.configuration_substitution import SubstitutionConfig
from .models.modeling_plasma import PlasmaModel, PlasmaOutput
from .models.modeling_substitution import SubstitutionModel
from .models.pipeline_protein_alignment import ProteinAlignmentPipeline
from .models.processing_plasma import PlasmaProcessor

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_CHECKPOINT",
    "PlasmaConfig",
    "PlasmaModel",
    "PlasmaOutput",
    "PlasmaProcessor",
    "ProteinAlignmentPipeline",
    "SubstitutionConfig",
    "SubstitutionModel",
    "__version__",
]

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "plasma_pf_substitution")
"""Folder of the model behind `pipeline("protein-alignment")`."""

AutoConfig.register(PlasmaConfig.model_type, PlasmaConfig)
AutoConfig.register(SubstitutionConfig.model_type, SubstitutionConfig)
AutoModel.register(PlasmaConfig, PlasmaModel)
AutoModel.register(SubstitutionConfig, SubstitutionModel)
AutoProcessor.register(PlasmaConfig, PlasmaProcessor)

# With these a saved folder carries its code, and loads where this package is not installed.
PlasmaConfig.register_for_auto_class()
SubstitutionConfig.register_for_auto_class()
PlasmaModel.register_for_auto_class("AutoModel")
SubstitutionModel.register_for_auto_class("AutoModel")
PlasmaProcessor.register_for_auto_class("AutoProcessor")

PIPELINE_REGISTRY.register_pipeline(
    "protein-alignment",
    pipeline_class=ProteinAlignmentPipeline,
    pt_model=AutoModel,
    default={"model": (DEFAULT_CHECKPOINT, "main")},
    type="text",
)
