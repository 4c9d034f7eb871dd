"""The default encoder: substitution windows, with nothing trained."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .modeling_backbone import SafeWeights, check_settings, register_backbone
from .protein import LETTER_RULES, RESIDUE_LETTERS, STANDARD_RESIDUES


@strict
class SubstitutionConfig(PreTrainedConfig):
    """Configure the substitution encoder: a window of BLOSUM62 vectors, nothing trained.

    Args:
        window: Residues looked at on each side; the embedding has `20 * (2 * window + 1)` numbers.
        decay: Distance in residues at which a neighbour's vector is scaled by `exp(-1/2)`.
    """

    model_type = "substitution_window"

    window: int = 10
    decay: float | int = 7.0

    def __post_init__(self, **kwargs: object) -> None:
        check_settings(self, ("decay",), ("window",))
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a residue embedding."""
        return 20 * (2 * self.window + 1)


# Henikoff & Henikoff 1992, half-bits; the lower triangle, row by row, in the order of
# STANDARD_RESIDUES.
BLOSUM62 = """
4 -1 5 -2 0 6 -2 -2 1 6 0 -3 -3 -3 9 -1 1 0 0 -3 5 -1 0 0 2 -4 2 5 0 -2 0 -1 -3 -2 -2 6 -2 0 1 -1
-3 0 0 -2 8 -1 -3 -3 -3 -1 -3 -3 -4 -3 4 -1 -2 -3 -4 -1 -2 -3 -4 -3 2 4 -1 2 0 -1 -3 1 1 -2 -1 -3
-2 5 -1 -1 -2 -3 -1 0 -2 -3 -2 1 2 -1 5 -2 -3 -3 -3 -2 -3 -3 -3 -1 0 0 -3 0 6 -1 -2 -2 -1 -3 -1 -1
-2 -2 -3 -3 -1 -2 -4 7 1 -1 1 0 -1 0 0 0 -1 -2 -2 0 -1 -2 -1 4 0 -1 0 -1 -1 -1 -1 -2 -2 -1 -1 -1
-1 -2 -1 1 5 -3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1 1 -4 -3 -2 11 -2 -2 -2 -3 -2 -1 -2 -3 2 -1 -1
-2 -1 3 -3 -2 -2 2 7 0 -3 -3 -3 -1 -2 -2 -3 -3 3 1 -2 1 -1 -2 -2 0 -3 -1 4
"""


@cache
def residue_vectors() -> np.ndarray:
    """Return one vector per token, `(27 tokens, 20)`: `<pad>` (zeros), then the letters A-Z.

    For the vectors X of the twenty residues `X @ X.T` is BLOSUM62 with its negative eigenvalues
    set to 0; the other letters are means over what they may stand for.
    """
    scores = np.zeros((20, 20))
    scores[np.tril_indices(20)] = [float(score) for score in BLOSUM62.split()]
    values, axes = np.linalg.eigh(scores)  # which reads the lower triangle alone
    vectors = axes * np.sqrt(np.clip(values, 0, None))
    meanings = [LETTER_RULES.get(letter, letter) for letter in RESIDUE_LETTERS]
    means = [vectors[[STANDARD_RESIDUES.index(r) for r in each]].mean(0) for each in meanings]
    return np.stack([np.zeros(20), *means]).astype(np.float32)


@register_backbone
class SubstitutionModel(SafeWeights):
    """Embed each residue by the BLOSUM62 vectors in a window around it.

    The embedding of residue i is the concatenation over offsets k = -window..window of the vector
    of residue i + k times `exp(-(k / decay)^2 / 2)`, zeros beyond either end. Nothing is trained.

    Example:
        >>> model = SubstitutionModel(SubstitutionConfig())
        >>> model(torch.tensor([[13, 11, 22]])).last_hidden_state.shape
        torch.Size([1, 3, 420])
    """

    config_class = SubstitutionConfig
    base_model_prefix = "substitution"
    main_input_name = "input_ids"

    vectors: Tensor

    def __init__(self, config: SubstitutionConfig) -> None:
        super().__init__(config)
        # Saved with the model, the vectors do not depend on the reader's linear algebra.
        self.register_buffer("vectors", torch.from_numpy(residue_vectors().copy()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SubstitutionModel):
            init.copy_(module.vectors, torch.from_numpy(residue_vectors().copy()))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool = True
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)`, 0 at padding, as `(batch, residues, hidden)`."""
        vectors = self.vectors[input_ids]  # (batch, residues, 20)
        if attention_mask is not None:
            vectors = vectors * attention_mask.unsqueeze(-1).to(vectors.dtype)
        window = self.config.window
        offsets = torch.arange(-window, window + 1, device=vectors.device)
        weights = torch.exp(-((offsets / self.config.decay) ** 2) / 2).to(vectors.dtype)
        padded = nn.functional.pad(vectors, (0, 0, window, window))
        windows = padded.unfold(1, 2 * window + 1, 1) * weights  # (batch, residues, 20, offsets)
        hidden = windows.transpose(2, 3).flatten(2)
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)
