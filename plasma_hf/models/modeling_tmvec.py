"""TM-Vec: residue embeddings in, structure-aware residue and protein embeddings out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .modeling_backbone import check_settings, from_package, register_backbone
from .modeling_plm_encoder import PLMEncoder, PLMEncoderConfig
from .processing_plasma import PROT_T5

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@strict
class TMVecConfig(PLMEncoderConfig):
    """Configure TM-Vec and, optionally, the protein language model under it.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Attention heads; they share out hidden_size.
        intermediate_size: Width inside a layer.
        protein_size: Width of the one vector per protein.
        activation: "relu" or "gelu".
        layer_norm_eps: Added to the variance in layer normalisation.
        dropout: Share of numbers dropped in training.
        plm_config: See `PLMEncoderConfig`, and so for plm_name_or_path and plm_revision.

    Example:
        >>> TMVecConfig().protein_size
        512
    """

    model_type = "tmvec"

    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 2048
    protein_size: int = 512
    activation: str = "relu"
    layer_norm_eps: float = 1e-5
    dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        above_0 = ("num_attention_heads", "intermediate_size", "protein_size")
        choices = {"activation": tuple(ACTIVATIONS)}
        check_settings(self, above_0, ("num_hidden_layers",), choices)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} cannot be shared out among "
                f"num_attention_heads={self.num_attention_heads}; give a multiple."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; give a number from 0 to below 1.")
        super().__post_init__(**kwargs)


UPSTREAM_FIELDS = {
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "nhead": "num_attention_heads",
    "dim_feedforward": "intermediate_size",
    "out_dim": "protein_size",
    "activation": "activation",
    "dropout": "dropout",
}
"""What the published parameter file calls our fields; its other entries steer training."""


def _read_upstream_params(file: Path) -> dict[str, Any]:
    """Read the fields of a `TMVecConfig` from the parameter file beside a published checkpoint."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not a file; give the JSON that is published beside the checkpoint."
        )
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON ({error}); give the parameter file, the checkpoint comes first."
        ) from error
    kinds = {name: str if name == "activation" else int | float for name in UPSTREAM_FIELDS}
    given = params if isinstance(params, dict) else {}
    wrong = [name for name, kind in kinds.items() if not isinstance(given.get(name), kind)]
    if wrong:
        raise ValueError(
            f"{file} is not a TM-Vec parameter file, {', '.join(wrong)} is missing or of the wrong "
            f"kind; give a JSON object with {', '.join(UPSTREAM_FIELDS)}."
        )
    return {ours: params[theirs] for theirs, ours in UPSTREAM_FIELDS.items()}


class TMVecAttention(nn.Module):
    """Let every residue of a protein look at every other one."""

    def __init__(self, config: TMVecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Attend, `(batch, residues, hidden)` to the same, to where `attended` is True."""
        projected = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, residues, width)
            for part in projected.chunk(3, dim=-1)
        )
        dropped, mask = self.dropout if self.training else 0.0, attended[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropped)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TMVecLayer(nn.Module):
    """Attention and a two-layer network, each added to its input and then normalised.

    It computes what `nn.TransformerEncoderLayer` does. That one takes a fused path without
    gradients which treats padding unlike the path with gradients; here there is one path.
    """

    def __init__(self, config: TMVecConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]
        self.self_attn = TMVecAttention(config)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Transform `(batch, residues, hidden)`; see `TMVecAttention.forward`."""
        hidden = self.norm1(hidden + self.dropout(self.self_attn(hidden, attended)))
        inner = self.dropout(self.activation(self.linear1(hidden)))
        return self.norm2(hidden + self.dropout(self.linear2(inner)))


@register_backbone
class TMVecModel(PLMEncoder):
    """Embed proteins so that the cosine of two protein vectors predicts their TM-score.

    The model takes ready residue embeddings or, over a language model, token ids as well. What it
    says of a protein does not depend on its batch, on padding or on gradients being recorded.

    Source: TM-Vec (Hamamsy et al., Nature Biotechnology 2024).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = TMVecModel(TMVecConfig(hidden_size=16, intermediate_size=32, protein_size=8))
        >>> out = model.eval()(inputs_embeds=torch.randn(1, 30, 16))
        >>> out.last_hidden_state.shape, out.pooler_output.shape
        (torch.Size([1, 30, 16]), torch.Size([1, 8]))
    """

    config_class = TMVecConfig
    base_model_prefix = "tmvec"
    _no_split_modules = ["TMVecLayer"]
    trained_on = PROT_T5

    encoder: Any

    def __init__(self, config: TMVecConfig) -> None:
        super().__init__(config)
        layers = nn.ModuleList(TMVecLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layers": layers})  # as the published checkpoint has it
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = nn.Linear(config.hidden_size, config.protein_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TMVecAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)

    @property
    def saved_format(self) -> str:
        """Input format of a saved model, by the language model it stands on."""
        over_prot_t5 = self.config.plm_name_or_path == PROT_T5
        return "tm_vec/native" if over_prot_t5 else "tm_vec/upstream"

    @classmethod
    def from_upstream(cls, ckpt: str | Path, params_json: str | Path) -> TMVecModel:
        """Load the published TM-Vec in eval mode; `attach_language_model` completes it.

        Args:
            ckpt: The Lightning checkpoint, `tm_vec_cath_model.ckpt`; no code in it is run.
            params_json: The parameter file beside it.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file is not what it should be, or the two do not belong together.
        """
        model = cls(TMVecConfig(**_read_upstream_params(Path(params_json))))
        upstream = from_package("hub.upstream", "the published TM-Vec is read")
        state = upstream.read_checkpoint(ckpt).get("state_dict")
        if not isinstance(state, dict):
            raise ValueError(
                f"{ckpt} has no state_dict; give the Lightning checkpoint of TM-Vec (.ckpt)."
            )
        if differ := upstream.differences(state, model.state_dict()):
            raise ValueError(
                f"{ckpt} and {params_json} do not belong together, {differ}; give the parameter "
                "file that was published with the checkpoint."
            )
        model.load_state_dict(state)
        return model.eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        residue_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Embed a batch of proteins, given as token ids or as residue embeddings.

        For the arguments see `PLMEncoder.read`. There is no positional encoding: what
        `residue_mask` leaves out might as well not be there.

        Returns:
            `last_hidden_state`, `(batch, tokens or residues, hidden)`, zeros outside the residues,
            and `pooler_output`, `(batch, protein)`; a tuple of them with `return_dict=False`.
        """
        embeddings, mask = self.read(input_ids, attention_mask, residue_mask, inputs_embeds)
        outside = ~mask.unsqueeze(-1)
        # A NaN in padding would reach the residues, and a softmax over nothing is NaN.
        hidden = embeddings.to(self.mlp.weight.dtype).masked_fill(outside, 0.0)
        attended = mask | ~mask.any(1, keepdim=True)
        for layer in self.encoder.layers:
            hidden = layer(hidden, attended)
        hidden = hidden.masked_fill(outside, 0.0)
        residues = mask.sum(1, keepdim=True)
        mean = hidden.sum(1) / residues.clamp(min=1)
        protein = self.mlp(self.dropout(mean)).masked_fill(residues == 0, 0.0)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=protein)
        return output.to_tuple() if return_dict is False else output
