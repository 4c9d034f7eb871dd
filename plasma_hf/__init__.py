"""plasma_hf: protein substructure alignment and retrieval for the Hugging Face stack.

Importing it registers the models with the Auto classes and the tasks with `pipeline`.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .backbones import load_backbone
from .hub import check_hub_folder, export_to_hub_folder, push
from .models.configuration_plasma import PlasmaConfig
from .models.configuration_protalign import ProtAlignConfig
from .models.modeling_plasma import PlasmaModel
from .models.modeling_protalign import ProtAlignModel
from .models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder
from .models.modeling_protssn import ProtSSNConfig, ProtSSNModel
from .models.modeling_substitution import (
    ResidueEncoderConfig,
    ResidueEncoderModel,
    SubstitutionConfig,
    SubstitutionModel,
)
from .models.modeling_tmvec import TMVecConfig, TMVecModel
from .models.pipeline_protein_alignment import ProteinAlignmentPipeline
from .models.pipeline_protein_retrieval import ProteinRetrievalPipeline
from .models.processing_plasma import PlasmaProcessor
from .models.processing_protalign import ProtAlignProcessor

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_CHECKPOINT",
    "DEFAULT_RETRIEVAL_CHECKPOINT",
    "PlasmaConfig",
    "PlasmaModel",
    "PlasmaProcessor",
    "ProtAlignConfig",
    "ProtAlignModel",
    "ProtSSNModel",
    "ProteinMPNNEncoder",
    "TMVecModel",
    "__version__",
    "check_hub_folder",
    "export_to_hub_folder",
    "load_backbone",
    "push",
]

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "plasma_pf_substitution")
"""Folder of the model behind `pipeline("protein-alignment")`."""

DEFAULT_RETRIEVAL_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "protalign_small")
"""Folder of the model behind `pipeline("protein-retrieval")`."""

for config, model in (
    (PlasmaConfig, PlasmaModel),
    (SubstitutionConfig, SubstitutionModel),
    (ResidueEncoderConfig, ResidueEncoderModel),
    (TMVecConfig, TMVecModel),
    (ProtSSNConfig, ProtSSNModel),
    (ProteinMPNNConfig, ProteinMPNNEncoder),
    (ProtAlignConfig, ProtAlignModel),
):
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    # With these a saved folder carries its code, and loads where this package is not installed.
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModel")
for config, processor in (
    (PlasmaConfig, PlasmaProcessor),
    (ProtAlignConfig, ProtAlignProcessor),
):
    AutoProcessor.register(config, processor)
    processor.register_for_auto_class("AutoProcessor")

PIPELINE_REGISTRY.register_pipeline(
    "protein-alignment",
    pipeline_class=ProteinAlignmentPipeline,
    pt_model=AutoModel,
    default={"model": (DEFAULT_CHECKPOINT, "main")},
    type="text",
)
PIPELINE_REGISTRY.register_pipeline(
    "protein-retrieval",
    pipeline_class=ProteinRetrievalPipeline,
    pt_model=AutoModel,
    default={"model": (DEFAULT_RETRIEVAL_CHECKPOINT, "main")},
    type="text",
)
