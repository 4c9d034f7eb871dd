"""Configuration of ProtAlign."""

from __future__ import annotations

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .modeling_backbone import HeadConfig, check_settings, width_of
from .modeling_protein_mpnn import ProteinMPNNConfig
from .modeling_residue_encoder import ResidueEncoderConfig  # noqa: F401 - the default, registered

RETRIEVAL = "pipeline_protein_retrieval.ProteinRetrievalPipeline"
PIPELINES = {"protein-retrieval": {"impl": RETRIEVAL, "pt": ("AutoModel",), "type": "text"}}
"""What a saved folder offers to `pipeline(...)` where this package is not installed."""

CHOICES = {"loss": ("clip", "siglip"), "siglip_sign": ("pseudocode", "paper")}


@strict
class ProtAlignConfig(HeadConfig):
    """Configure ProtAlign: two attention pools, their loss and, optionally, encoders under them.

    Args:
        sequence_size: Width of a residue embedding of a sequence; that of the encoder, with one.
        structure_size: The same of a structure.
        hidden_size: Width of the space that sequences and structures share.
        num_queries: Learnt queries of each attention pool; their answers are averaged.
        spread: Each pool adds how much residues differ; not in the paper, see `AttentionPool`.
        standardize: Give each number of the vectors mean 0 and deviation 1; not in the paper.
        normalize: Compare cosines; False for the vectors themselves, as the paper is printed.
        loss: "clip" or "siglip".
        logit_temperature: What cosines are divided by, at first if it is learnt; by default 0.07
            for "clip" and 0.1 for "siglip".
        learn_temperature: Learn it; by default for "siglip" alone.
        logit_bias: What "siglip" adds to its logits, at first if it is learnt.
        siglip_sign: "pseudocode" adds the bias; "paper" subtracts it, as printed.
        loss_chunk: Sequences that "siglip" compares at a time; None for all at once.
        plm_config, plm_name_or_path, plm_revision, plm_recipe, backbone_saved: See `HeadConfig`; of
            the sequence encoder.
        structure_config: That of the structure encoder; its weights are always saved along.

    Example:
        >>> ProtAlignConfig(loss="siglip").logit_temperature
        0.1
    """

    model_type = "protalign"
    pipelines = PIPELINES
    sub_configs = {"plm_config": AutoConfig, "structure_config": ProteinMPNNConfig}
    attribute_map = {"embedding_size": "sequence_size"}  # the name that all heads answer to

    sequence_size: int = 1280
    structure_size: int = 128
    hidden_size: int = 128
    num_heads: int = 4
    num_queries: int = 1
    spread: bool = False
    standardize: bool = False
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    normalize: bool = True
    loss: str = "clip"
    logit_temperature: float | int | None = None
    learn_temperature: bool | None = None
    logit_bias: float | int = -10.0
    learn_bias: bool = True
    siglip_sign: str = "pseudocode"
    loss_chunk: int | None = None
    structure_config: dict[str, Any] | PreTrainedConfig | None = None

    def _check_settings(self) -> None:
        if isinstance(self.structure_config, dict):
            fields = {k: v for k, v in self.structure_config.items() if k != "model_type"}
            self.structure_config = ProteinMPNNConfig(**fields)
        if self.structure_config is not None:
            self.structure_size = width_of(self.structure_config)
        positive = ("sequence_size", "structure_size", "hidden_size", "num_heads", "num_queries")
        above_0 = (*positive, "logit_temperature", "loss_chunk")
        check_settings(self, above_0, ("attention_dropout", "layer_norm_eps"), CHOICES)
        if not math.isfinite(self.logit_bias):
            raise ValueError(f"logit_bias={self.logit_bias}; give a finite number.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}; "
                "each head takes an equal part."
            )
        if self.logit_temperature is None:
            self.logit_temperature = 0.07 if self.loss == "clip" else 0.1
        if self.learn_temperature is None:
            self.learn_temperature = self.loss == "siglip"
