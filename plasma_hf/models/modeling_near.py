"""NEAR: the residue encoder of Olson et al. 2025, convolutions over a sequence."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .modeling_backbone import SafeWeights, check_settings, register_backbone
from .protein import RESIDUE_LETTERS


@strict
class NearConfig(PreTrainedConfig):
    """Configure NEAR's residue encoder.

    Args:
        hidden_size: Channels of every layer, and width of a residue embedding.
        blocks: Residual blocks, of two convolutions each.
        kernel: Residues that a convolution looks at, an odd number.
    """

    model_type = "near"

    hidden_size: int = 256
    blocks: int = 8
    kernel: int = 7

    def __post_init__(self, **kwargs: object) -> None:
        check_settings(self, ("hidden_size", "blocks", "kernel"))
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}; give an odd number, for example 7.")
        super().__post_init__(**kwargs)


class ScaledConv(nn.Conv1d):
    """Convolve by weights times a scale for each channel: the bundled ones are whole numbers."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__(width, width, kernel, padding=kernel // 2)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return new channels, `(batch, width, residues)`."""
        return self._conv_forward(hidden, self.weight * self.scale, self.bias)


class NearBlock(nn.Module):
    """Add to every residue what two convolutions read around it."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.first, self.second = (ScaledConv(width, kernel) for _ in range(2))

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        """Return new channels, `(batch, width, residues)`; `present` is 0 at padding."""
        # What stands at padding must look like what lies beyond the end: nothing.
        inner = self.first(nn.functional.elu(hidden)) * present
        return hidden + self.second(nn.functional.elu(inner)) * present


@register_backbone
class NearModel(SafeWeights):
    """Embed each residue by convolutions over the 48 residues to each side of it.

    Tokens are those of the substitution encoder; the bundled weights read all but the twenty
    letters as X. Olson et al. 2025, doi:10.1093/bioinformatics/btaf198.

    Example:
        >>> import torch
        >>> model = NearModel(NearConfig(hidden_size=8, blocks=2))
        >>> model(torch.tensor([[13, 11, 22]])).last_hidden_state.shape
        torch.Size([1, 3, 8])
    """

    config_class = NearConfig
    base_model_prefix = "near"
    main_input_name = "input_ids"
    _no_split_modules = ["NearBlock"]

    def __init__(self, config: NearConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embedding = nn.Embedding(1 + len(RESIDUE_LETTERS), width, padding_idx=0)
        self.blocks = nn.ModuleList(NearBlock(width, config.kernel) for _ in range(config.blocks))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ScaledConv):
            init.ones_(module.scale)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)`, 0 at padding, as `(batch, residues, hidden)`."""
        mask = input_ids > 0 if attention_mask is None else attention_mask
        hidden = self.embedding(input_ids).transpose(1, 2)
        present = mask.unsqueeze(1).to(hidden.dtype)
        hidden = hidden * present
        for block in self.blocks:
            hidden = block(hidden, present)
        hidden = hidden.transpose(1, 2)
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)
