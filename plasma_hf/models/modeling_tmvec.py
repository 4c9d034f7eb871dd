"""TM-Vec: residue embeddings in, structure-aware residue and protein embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .checkpoint_file import read_checkpoint
from .configuration_tmvec import TMVecConfig, read_upstream_params
from .over_language_model import OverLanguageModel

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
