"""Configuration of PLASMA."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .modeling_backbone import backbone_config, check_settings, width_of

logger = logging.get_logger(__name__)

ALIGNMENT = "pipeline_protein_alignment.ProteinAlignmentPipeline"
PIPELINES = {"protein-alignment": {"impl": ALIGNMENT, "pt": ("AutoModel",), "type": "text"}}
"""What a saved folder offers to `pipeline(...)` where this package is not installed."""

CHOICES = {
    "head": ("lrl", "hinge", "residual"),
    "score_form": ("published", "mass", "collinear"),
    "score_loss_form": ("published", "affine"),
    "label_match_form": ("published", "symmetric"),
}
ABOVE_0 = ("embedding_size", "head_size", "kernel_scale", "n_iters", "eps")
SUPPORT = ("support_rounds", "support_window", "support_gap", "support_weight", "order_weight")
LOSSES = ("label_match_weight", "correspondence_weight")
FROM_0 = (*SUPPORT, "threshold", "diagonal_window", *LOSSES)
# Fields of configurations that were saved before, with the value that says nothing.
RETIRED = {"tol": None, "max_iters": 2000, "domain": "linear", "softness": 0.05}


@strict
class PlasmaConfig(PreTrainedConfig):
    """Configure a PLASMA head and, optionally, the backbone under it.

    Args:
        embedding_size: Width of a residue embedding; a backbone's width replaces it. None lets
            the parameter-free head take any width.
        head: "lrl" learns a projection before the hinge cost; "hinge" has no parameter
            (PLASMA-PF); "residual" starts as "hinge" and learns a correction to it.
        head_size: Width of the learnt projection, or the inner width of the learnt correction.
        normalize: Layer-normalise embeddings before the cost; read by the "hinge" head alone.
        kernel_scale: What multiplies the cost in the exponent. The JSON of the released heads
            calls it "temperature", the paper its inverse tau.
        n_iters: Sinkhorn iterations.
        eps: Slack of a residue; staying unmatched costs `-log(eps)` in the exponent.
        support_rounds: Rounds in which the plan is solved again with support from the diagonal;
            they shape the plan, the score is read from the plan without them.
        support_window: Residues to each side whose matches count as support.
        support_gap: Insertions and deletions that support tolerates.
        support_weight: Bonus in the exponent for a pair with perfect support.
        order_weight: Weight of a last round that prefers what is aligned in order, see `in_order`;
            0 leaves it out. Stretches that match in another order stay where they are sure.
        score_form: "published", "mass" (matched share of the shorter protein) or "collinear" (what
            is aligned in order, see `collinear_score`).
        threshold: Plan entry above which residues count as matched.
        diagonal_window: Length of the stretch that measures collinearity; 0 leaves it out.
        score_loss_form: "published" or "affine", see `score_losses`.
        label_match_form: "published" looks for the candidate's labelled residues, "symmetric"
            for those of both sides, each weighing half.
        label_match_weight: Weight of the label match loss beside the score loss.
        correspondence_weight: Weight of the correspondence loss.
        plm_config: The backbone's configuration, or its fields, or None for ready embeddings.
        plm_name_or_path: Where the backbone's weights come from.
        plm_revision: Which revision of them.
        plm_recipe: How sequences are written for the backbone, a name of `INPUT_FORMATS`.
        backbone_saved: Whether a saved model has the backbone's weights as well.
        released_metadata: What a released head says of itself (`metadata.json`).

    Example:
        >>> PlasmaConfig(head="hinge", embedding_size=None).score_form
        'published'
    """

    model_type = "plasma"
    sub_configs = {"plm_config": AutoConfig}

    embedding_size: int | None = 1280
    head: str = "lrl"
    head_size: int = 512
    normalize: bool = True
    kernel_scale: float | int = 0.1
    n_iters: int = 20
    eps: float | int = 1e-8
    support_rounds: int = 0
    support_window: int = 25
    support_gap: int = 3
    support_weight: float | int = 16.0
    order_weight: float | int = 0.0
    score_form: str = "published"
    threshold: float | int = 0.5
    diagonal_window: int = 10
    score_loss_form: str = "published"
    label_match_form: str = "published"
    label_match_weight: float | int = 1.0
    correspondence_weight: float | int = 1.0
    plm_config: dict[str, Any] | PreTrainedConfig | None = None
    plm_name_or_path: str | None = None
    plm_revision: str | None = None
    plm_recipe: str | None = None
    backbone_saved: bool = True
    released_metadata: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        custom_pipelines = kwargs.pop("custom_pipelines", PIPELINES)
        given = {name: kwargs.pop(name, default) for name, default in RETIRED.items()}
        if lost := [f"{name}={value!r}" for name, value in given.items() if value != RETIRED[name]]:
            told = "PLASMA has no such settings any more and ignores them."
            logger.warning_once(f"{', '.join(lost)}: {told}")
        if isinstance(self.plm_config, dict):
            self.plm_config = backbone_config(self.plm_config)
        if self.plm_config is not None:
            self.embedding_size = width_of(self.plm_config)
        self._check_settings()
        super().__post_init__(**kwargs)
        # As remote code, the folder's own pipeline is the one to use; installed, the package's.
        if __name__.startswith("transformers_modules"):
            self.custom_pipelines = custom_pipelines

    def to_dict(self) -> dict[str, Any]:
        """Return every field, and the pipelines that a saved folder offers."""
        return super().to_dict() | {"custom_pipelines": PIPELINES}

    def _check_settings(self) -> None:
        if self.embedding_size is None and self.head == "lrl":
            raise ValueError(
                'head="lrl" learns a projection and needs to know embedding_size; give the width '
                'of your residue embeddings, or head="hinge" for any width.'
            )
        check_settings(self, ABOVE_0, FROM_0, CHOICES)
