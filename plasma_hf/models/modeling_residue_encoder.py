"""The residue encoder: substitution windows and what a small network adds to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .configuration_residue_encoder import ResidueEncoderConfig
from .modeling_substitution import SubstitutionModel
from .safe_weights import SafeWeights


class DilatedBlock(nn.Module):
    """Add to every residue what a dilated convolution reads around it.

    A bottleneck: to half the channels, a convolution over `kernel` residues `dilation` apart, and
    back to all channels.
    """

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        """Build the block."""
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


class ResidueEncoderModel(SafeWeights):
    """Embed each residue by its substitution window, corrected by a small network.

    The embedding is `gain * windows + network(windows)`, as wide as the windows. The gain starts
    as 1 and the last layer of the network as 0: an untrained encoder is the substitution encoder,
    and training moves away from it only where that pays.

    Example:
        >>> model = ResidueEncoderModel(ResidueEncoderConfig(width=16, dilations=[1, 2]))
        >>> model(torch.tensor([[13, 11, 22]])).last_hidden_state.shape
        torch.Size([1, 3, 420])
    """

    config_class = ResidueEncoderConfig
    base_model_prefix = "residue_encoder"
    main_input_name = "input_ids"
    _no_split_modules = ["DilatedBlock"]
    _supports_sdpa = True  # there is no attention; any request for a kind of it is met

    def __init__(self, config: ResidueEncoderConfig) -> None:
        """Build the encoder from its configuration."""
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
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ResidueEncoderModel):
            init.ones_(module.gain)
            init.zeros_(module.residual.weight)
            init.zeros_(module.residual.bias)

    def network(self, windows: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the channels that the residual is read from, `(batch, residues, width)`.

        Args:
            windows: Substitution windows, `(batch, residues, hidden)`.
            mask: True (or 1) where there is a residue, `(batch, residues)`; None for everywhere.
        """
        present = windows.new_ones(windows.shape[:2]) if mask is None else mask.to(windows.dtype)
        present = present.unsqueeze(-1)
        hidden = self.read_windows(windows)
        for block in self.blocks:
            hidden = block(hidden, present)
        return self.norm(hidden)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)` as `(batch, residues, hidden)`.

        Args:
            input_ids: Token ids; 0 is padding.
            attention_mask: True (or 1) where there is a residue, `(batch, residues)`.
            return_dict: Return a `BaseModelOutput` instead of a tuple.
        """
        (windows,) = self.substitution(input_ids, attention_mask, return_dict=False)
        hidden = self.gain * windows + self.residual(self.network(windows, attention_mask))
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)
