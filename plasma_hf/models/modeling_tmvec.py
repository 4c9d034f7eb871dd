"""Configuration of TM-Vec."""

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

from .modeling_backbone import OverLanguageModel, OverLanguageModelConfig
from .modeling_protein_mpnn import read_checkpoint

ACTIVATIONS = ("relu", "gelu")

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


@strict
class TMVecConfig(OverLanguageModelConfig):
    """Configure TM-Vec and, optionally, the protein language model under it.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Attention heads; they share out hidden_size.
        intermediate_size: Width inside a layer.
        protein_size: Width of the one vector a protein.
        activation: "relu" or "gelu".
        layer_norm_eps: Added to the variance in layer normalisation.
        dropout: Share of numbers dropped in training.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.

    Raises:
        ValueError: If the numbers contradict each other or the language model's width.

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
        """Check the numbers, then the language model."""
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        counts = ("num_attention_heads", "intermediate_size", "protein_size")
        for name in counts:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number above 0.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers={self.num_hidden_layers}; give 0 or more.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} cannot be shared out among "
                f"num_attention_heads={self.num_attention_heads}; give a multiple."
            )
        if self.activation not in ACTIVATIONS:
            choices = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation={self.activation!r}; accepted are {choices}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; give a number from 0 to below 1.")


def read_upstream_params(path: str | Path) -> dict[str, Any]:
    """Read the parameter file that is published beside a TM-Vec checkpoint.

    Args:
        path: The JSON file, for example `tm_vec_cath_model_params.json`.

    Returns:
        Fields of a `TMVecConfig`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or entries are missing or of the wrong kind.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is no file; give the JSON that is published beside the checkpoint."
        )
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}); give the parameter file, the checkpoint comes first."
        ) from error
    if not isinstance(params, dict):
        params = {}
    wrong = [
        name
        for name in UPSTREAM_FIELDS
        if not isinstance(params.get(name), str if name == "activation" else int | float)
    ]
    if wrong:
        raise ValueError(
            f"{file} is no TM-Vec parameter file, {', '.join(wrong)} is missing or of the wrong "
            f"kind; give a JSON object with {', '.join(UPSTREAM_FIELDS)}."
        )
    return {ours: params[theirs] for theirs, ours in UPSTREAM_FIELDS.items()}


# --- TM-Vec: residue embeddings in, structure-aware residue and protein embeddings out.


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class TMVecAttention(nn.Module):
    """Let every residue of a protein look at every other one."""

    def __init__(self, config: TMVecConfig) -> None:
        """Build the projections, named as in the published checkpoint."""
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Attend, `(batch, residues, hidden)` to the same.

        Args:
            hidden: `(batch, residues, hidden)`.
            attended: True at what may be looked at, `(batch, residues)`.
        """
        projected = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, residues, width)
            for part in projected.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attended[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TMVecLayer(nn.Module):
    """Attention and a two-layer network, each added to its input and then normalised.

    It computes what `nn.TransformerEncoderLayer` does. That one takes a fused path without
    gradients which treats padding unlike the path with gradients; here there is one path.
    """

    def __init__(self, config: TMVecConfig) -> None:
        """Build the layer, its parts named as in the published checkpoint."""
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


class TMVecEncoder(nn.Module):
    """The layers one after the other. There is no positional encoding."""

    def __init__(self, config: TMVecConfig) -> None:
        """Build the layers."""
        super().__init__()
        self.layers = nn.ModuleList(TMVecLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Transform `(batch, residues, hidden)`, zeros where `mask` is False."""
        outside = ~mask.unsqueeze(-1)
        hidden = hidden.masked_fill(outside, 0.0)  # a NaN in padding would reach the residues
        attended = mask | ~mask.any(1, keepdim=True)  # a softmax over nothing is NaN
        for layer in self.layers:
            hidden = layer(hidden, attended)
        return hidden.masked_fill(outside, 0.0)


class TMVecModel(OverLanguageModel):
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
    trained_on = "Rostlab/prot_t5_xl_half_uniref50-enc"

    def __init__(self, config: TMVecConfig) -> None:
        """Build the transformer, and the language model if the configuration has one."""
        super().__init__(config)
        self.encoder = TMVecEncoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = nn.Linear(config.hidden_size, config.protein_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TMVecAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)

    @classmethod
    def from_upstream(cls, ckpt: str | Path, params_json: str | Path) -> TMVecModel:
        """Load the published TM-Vec, without the language model under it.

        Args:
            ckpt: The Lightning checkpoint, for example `tm_vec_cath_model.ckpt`. It is read
                without running any code in it.
            params_json: The parameter file beside it.

        Returns:
            The model in eval mode; put a language model under it with `attach_language_model`.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file is not what it should be, or the two do not belong together.
        """
        model = cls(TMVecConfig(**read_upstream_params(params_json)))
        state = read_checkpoint(ckpt).get("state_dict")
        if not isinstance(state, dict):
            raise ValueError(
                f"{ckpt} has no state_dict; give the Lightning checkpoint of TM-Vec (.ckpt)."
            )
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        given = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
        differ = sorted(n for n in wanted | given if wanted.get(n) != given.get(n))
        if differ:
            some = "; ".join(
                f"{n}: {given.get(n, 'nothing')} in the checkpoint, {wanted.get(n, 'nothing')} "
                "by the parameters"
                for n in differ[:3]
            )
            raise ValueError(
                f"{ckpt} and {params_json} do not belong together, {len(differ)} tensors differ "
                f"({some}); give the parameter file that was published with the checkpoint."
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

        Masks are True (or 1) where something is there. There is no positional encoding: what
        `residue_mask` leaves out might as well not be in the input.

        Args:
            input_ids: `(batch, tokens)`, for the language model.
            attention_mask: `(batch, tokens)`, what the language model attends to; None is all.
            residue_mask: `(batch, tokens)` or `(batch, residues)`, True at residues and never at
                special tokens or padding; None takes attention_mask.
            inputs_embeds: `(batch, residues, hidden)`, residue embeddings of the language model.
            return_dict: Return a `BaseModelOutputWithPooling` (default) or a tuple.

        Returns:
            `last_hidden_state`, `(batch, tokens or residues, hidden)`, zeros outside the residues,
            and `pooler_output`, `(batch, protein)`.

        Raises:
            ValueError: If proteins are given not at all or twice, as token ids without a language
                model to read them, or in shapes that do not fit.
        """
        embeddings, mask = self.read(input_ids, attention_mask, residue_mask, inputs_embeds)
        hidden = self.encoder(embeddings.to(self.mlp.weight.dtype), mask)
        residues = mask.sum(1, keepdim=True)
        mean = hidden.sum(1) / residues.clamp(min=1)
        protein = self.mlp(self.dropout(mean)).masked_fill(residues == 0, 0.0)
        output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=protein)
        return output.to_tuple() if return_dict is False else output
