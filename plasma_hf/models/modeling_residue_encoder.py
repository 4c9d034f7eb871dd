"""The residue encoder: substitution windows, and what a small network adds to them."""

from __future__ import annotations

from dataclasses import field

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .modeling_backbone import SafeWeights, SubstitutionConfig, SubstitutionModel, register_backbone


@strict
class ResidueEncoderConfig(SubstitutionConfig):
    """Configure the residue encoder: substitution windows and what a small network adds to them.

    Args:
        width: Channels of the network.
        kernel: Residues that a convolution looks at, an odd number.
        dilations: Steps between them, one for each block; a residue sees
            `window + (kernel - 1) / 2 * sum(dilations)` residues to each side.
    """

    model_type = "residue_encoder"

    width: int = 128
    kernel: int = 5
    dilations: list[int] = field(default_factory=lambda: [1, 2, 4, 8])

    def __post_init__(self, **kwargs: object) -> None:
        smallest = min(self.dilations, default=1)
        if self.width < 2 or self.kernel < 1 or self.kernel % 2 == 0 or smallest < 1:
            raise ValueError(
                f"width={self.width}, kernel={self.kernel}, dilations={self.dilations}: give a "
                "width of 2 or more, an odd kernel and dilations of 1 or more."
            )
        super().__post_init__(**kwargs)


class DilatedBlock(nn.Module):
    """Add to every residue what a convolution over half the channels reads around it."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        half, padding = width // 2, (kernel - 1) // 2 * dilation
        self.norm, self.down = nn.LayerNorm(width), nn.Linear(width, half)
        self.convolution = nn.Conv1d(half, half, kernel, padding=padding, dilation=dilation)
        self.up = nn.Linear(half, width)

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        """Return new channels, `(batch, residues, width)`; `present` is 0 at padding."""
        # What stands at padding must look like what lies beyond the end: nothing.
        inner = nn.functional.gelu(self.down(self.norm(hidden))) * present
        inner = self.convolution(inner.transpose(1, 2)).transpose(1, 2)
        return hidden + self.up(nn.functional.gelu(inner))


@register_backbone
class ResidueEncoderModel(SafeWeights):
    """Embed each residue by its substitution window, corrected by a small network.

    The embedding is `gain * windows + network(windows)`, as wide as the windows. The gain starts
    as 1 and the last layer of the network as 0: an untrained encoder is the substitution encoder,
    and training moves away from it only where that pays.
    """

    config_class = ResidueEncoderConfig
    base_model_prefix = "residue_encoder"
    main_input_name = "input_ids"
    _no_split_modules = ["DilatedBlock"]

    def __init__(self, config: ResidueEncoderConfig) -> None:
        super().__init__(config)
        size, width = config.hidden_size, config.width
        self.substitution = SubstitutionModel(config)
        self.gain = nn.Parameter(torch.ones(size))
        self.read_windows = nn.Linear(size, width)
        self.blocks = nn.ModuleList(
            DilatedBlock(width, config.kernel, dilation) for dilation in config.dilations
        )
        self.norm = nn.LayerNorm(width)
        self.residual = nn.Linear(width, size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.kaiming_normal_(module.weight, nonlinearity="linear")
        elif isinstance(module, ResidueEncoderModel):
            init.ones_(module.gain)
            init.zeros_(module.residual.weight)

    def network(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the channels `(batch, residues, width)` that the residual is read from."""
        present = windows.new_ones(windows.shape[:2]) if mask is None else mask.to(windows.dtype)
        hidden = self.read_windows(windows)
        for block in self.blocks:
            hidden = block(hidden, present.unsqueeze(-1))
        return self.norm(hidden)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)`, see `SubstitutionModel.forward`."""
        (windows,) = self.substitution(input_ids, attention_mask, return_dict=False)
        hidden = self.gain * windows + self.residual(self.network(windows, attention_mask))
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)
