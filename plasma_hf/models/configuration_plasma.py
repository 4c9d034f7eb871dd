"""Configuration of PLASMA."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.utils import logging

from .modeling_backbone import HeadConfig, check_settings

logger = logging.get_logger(__name__)

ALIGNMENT = "pipeline_protein_alignment.ProteinAlignmentPipeline"
PIPELINES = {"protein-alignment": {"impl": ALIGNMENT, "pt": ("AutoModel",), "type": "text"}}
"""What a saved folder offers to `pipeline(...)` where this package is not installed."""

CHOICES = {
    "head": ("lrl", "hinge", "residual"),
    "reading": ("plan", "posterior"),
    "score_form": ("published", "mass"),
    "score_loss_form": ("published", "affine"),
    "label_match_form": ("published", "symmetric"),
}
ABOVE_0 = ("embedding_size", "head_size", "kernel_scale", "n_iters", "eps")
FROM_0 = ("threshold", "diagonal_window", "label_match_weight", "correspondence_weight")
# Fields of configurations that were saved before, with the value that says nothing.
RETIRED = {
    **{"tol": None, "max_iters": 2000, "domain": "linear", "softness": 0.05},
    **{"support_rounds": 0, "support_window": 25, "support_gap": 3, "support_weight": 16.0},
    "order_weight": 0.0,
}


@strict
class PlasmaConfig(HeadConfig):
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
        reading: "plan" takes residues and score from the Sinkhorn plan; "posterior" from sums
            over local alignments, by the cosine of projections, with bits and p-values.
        calibration: What unrelated proteins reach, made by `plasma_hf.calibrate`: `location` and
            `log_scale`, see `Calibration`, and what they were measured on.
        score_form: "published" or "mass" (matched share of the shorter protein), of a plan.
        threshold: Plan entry, or probability, above which residues count as matched.
        diagonal_window: Length of the stretch that measures collinearity; 0 leaves it out.
        score_loss_form: "published" or "affine", see `score_losses`.
        label_match_form: "published" looks for the candidate's labelled residues, "symmetric"
            for those of both sides, each weighing half.
        label_match_weight: Weight of the label match loss beside the score loss.
        correspondence_weight: Weight of the correspondence loss.
        plm_config, plm_name_or_path, plm_revision, plm_recipe, backbone_saved: See `HeadConfig`.
        released_metadata: What a released head says of itself (`metadata.json`).

    Example:
        >>> PlasmaConfig(head="hinge", embedding_size=None).score_form
        'published'
    """

    model_type = "plasma"
    pipelines = PIPELINES

    embedding_size: int | None = 1280
    head: str = "lrl"
    head_size: int = 512
    normalize: bool = True
    kernel_scale: float | int = 0.1
    n_iters: int = 20
    eps: float | int = 1e-8
    reading: str = "plan"
    calibration: dict[str, Any] | None = None
    score_form: str = "published"
    threshold: float | int = 0.5
    diagonal_window: int = 10
    score_loss_form: str = "published"
    label_match_form: str = "published"
    label_match_weight: float | int = 1.0
    correspondence_weight: float | int = 1.0
    released_metadata: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name, default) for name, default in RETIRED.items()}
        if lost := [f"{name}={value!r}" for name, value in given.items() if value != RETIRED[name]]:
            told = "PLASMA has no such settings any more and ignores them."
            logger.warning_once(f"{', '.join(lost)}: {told}")
        super().__post_init__(**kwargs)

    def _check_settings(self) -> None:
        if self.score_form == "collinear":  # of heads that were read with support and order
            self.score_form = "mass"
            logger.warning_once('score_form="collinear" is no more; "mass" takes its place.')
        if self.embedding_size is None and self.head == "lrl":
            raise ValueError(
                'head="lrl" learns a projection and needs to know embedding_size; give the width '
                'of your residue embeddings, or head="hinge" for any width.'
            )
        check_settings(self, ABOVE_0, FROM_0, CHOICES)
