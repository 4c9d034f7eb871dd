"""plasma_hf: protein substructure alignment and retrieval for the Hugging Face stack.

Importing it registers the models with the Auto classes and the tasks with `pipeline`.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones import load_aligner, load_backbone
    from .hub import check_hub_folder, export_to_hub_folder, push
    from .models.configuration_plasma import PlasmaConfig
    from .models.configuration_protalign import ProtAlignConfig
    from .models.local_alignment import Calibration
    from .models.modeling_plasma import PlasmaModel
    from .models.modeling_protalign import ProtAlignModel
    from .models.modeling_protein_mpnn import ProteinMPNNEncoder
    from .models.modeling_protssn import ProtSSNModel
    from .models.modeling_tmvec import TMVecModel
    from .models.processing_plasma import PlasmaProcessor
    from .search.calibration import calibrate

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_CHECKPOINT",
    "DEFAULT_RETRIEVAL_CHECKPOINT",
    "Calibration",
    "PlasmaConfig",
    "PlasmaModel",
    "PlasmaProcessor",
    "ProtAlignConfig",
    "ProtAlignModel",
    "ProtSSNModel",
    "ProteinMPNNEncoder",
    "TMVecModel",
    "__version__",
    "calibrate",
    "check_hub_folder",
    "export_to_hub_folder",
    "load_aligner",
    "load_backbone",
    "push",
    "register",
]

DEFAULT_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "plasma_pf_substitution")
"""Folder of the model behind `pipeline("protein-alignment")`."""

DEFAULT_RETRIEVAL_CHECKPOINT = str(Path(__file__).parent / "checkpoints" / "protalign_small")
"""Folder of the model behind `pipeline("protein-retrieval")`."""

_HOMES = {
    "hub": ("check_hub_folder", "export_to_hub_folder", "push"),
    "models.configuration_plasma": ("PlasmaConfig",),
    "models.configuration_protalign": ("ProtAlignConfig",),
    "backbones": ("load_aligner", "load_backbone"),
    "models.local_alignment": ("Calibration",),
    "models.modeling_backbone": ("SubstitutionConfig", "SubstitutionModel"),
    "models.modeling_near": ("NearConfig", "NearModel"),
    "models.modeling_three_di": ("ThreeDiConfig", "ThreeDiModel"),
    "models.modeling_plasma": ("PlasmaModel",),
    "models.modeling_protalign": ("ProtAlignModel",),
    "models.modeling_protein_mpnn": ("ProteinMPNNConfig", "ProteinMPNNEncoder"),
    "models.modeling_protssn": ("ProtSSNConfig", "ProtSSNModel"),
    "models.modeling_residue_encoder": ("ResidueEncoderConfig", "ResidueEncoderModel"),
    "models.modeling_tmvec": ("TMVecConfig", "TMVecModel"),
    "models.pipeline_protein_alignment": ("ProteinAlignmentPipeline",),
    "models.pipeline_protein_retrieval": ("ProteinRetrievalPipeline",),
    "models.processing_plasma": ("PlasmaProcessor",),
    "models.processing_protalign": ("ProtAlignProcessor",),
    "search.calibration": ("calibrate",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = ("data", "evaluation", "hub", "io", "kernels", "metrics", "models", "search", "training")


def __getattr__(name: str) -> Any:
    """Import a public name, or a room, when it is first asked for."""
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_ROOMS})


@cache
def register() -> None:
    """Make the models known to the Auto classes, and the two tasks to `pipeline`."""
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.pipelines import PIPELINE_REGISTRY

    models = ("Plasma", "Substitution", "ResidueEncoder", "Near", "ThreeDi", "TMVec", "ProtSSN")
    classes = [(f"{name}Config", f"{name}Model") for name in models]
    classes += [("ProtAlignConfig", "ProtAlignModel"), ("ProteinMPNNConfig", "ProteinMPNNEncoder")]
    for config_name, model_name in classes:
        config, model = __getattr__(config_name), __getattr__(model_name)
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
        # With these a saved folder carries its code, and loads where this package is not installed.
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
    for name in ("Plasma", "ProtAlign"):
        processor = __getattr__(f"{name}Processor")
        AutoProcessor.register(__getattr__(f"{name}Config"), processor)
        processor.register_for_auto_class("AutoProcessor")
    for task, pipeline, checkpoint in (
        ("protein-alignment", "ProteinAlignmentPipeline", DEFAULT_CHECKPOINT),
        ("protein-retrieval", "ProteinRetrievalPipeline", DEFAULT_RETRIEVAL_CHECKPOINT),
    ):
        default = {"model": (checkpoint, "main")}
        PIPELINE_REGISTRY.register_pipeline(
            task, __getattr__(pipeline), AutoModel, default=default, type="text"
        )


# The command line says its help without torch and transformers, which take seconds to import; a
# verb that needs models registers them itself.
if Path(sys.argv[0] if sys.argv else "").stem != "plasma-hf":
    register()
