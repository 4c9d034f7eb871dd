"""The substitution encoder: residues seen through BLOSUM62 and their neighbours."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .configuration_substitution import SubstitutionConfig
from .parameter_free import ParameterFree
from .residues import LETTER_RULES, RESIDUE_LETTERS, STANDARD_RESIDUES
from .safe_weights import SafeWeights

# Henikoff & Henikoff 1992, half-bits; rows and columns in the order of STANDARD_RESIDUES.
BLOSUM62 = """
 4 -1 -2 -2  0 -1 -1  0 -2 -1 -1 -1 -1 -2 -1  1  0 -3 -2  0
-1  5  0 -2 -3  1  0 -2  0 -3 -2  2 -1 -3 -2 -1 -1 -3 -2 -3
-2  0  6  1 -3  0  0  0  1 -3 -3  0 -2 -3 -2  1  0 -4 -2 -3
-2 -2  1  6 -3  0  2 -1 -1 -3 -4 -1 -3 -3 -1  0 -1 -4 -3 -3
 0 -3 -3 -3  9 -3 -4 -3 -3 -1 -1 -3 -1 -2 -3 -1 -1 -2 -2 -1
-1  1  0  0 -3  5  2 -2  0 -3 -2  1  0 -3 -1  0 -1 -2 -1 -2
-1  0  0  2 -4  2  5 -2  0 -3 -3  1 -2 -3 -1  0 -1 -3 -2 -2
 0 -2  0 -1 -3 -2 -2  6 -2 -4 -4 -2 -3 -3 -2  0 -2 -2 -3 -3
-2  0  1 -1 -3  0  0 -2  8 -3 -3 -1 -2 -1 -2 -1 -2 -2  2 -3
-1 -3 -3 -3 -1 -3 -3 -4 -3  4  2 -3  1  0 -3 -2 -1 -3 -1  3
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4 -2  2  0 -3 -2 -1 -2 -1  1
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5 -1 -3 -1  0 -1 -3 -2 -2
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5  0 -2 -1 -1 -1 -1  1
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6 -4 -2 -2  1  3 -1
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7 -1 -1 -4 -3 -2
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4  1 -3 -2 -2
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5 -2 -2  0
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11  2 -3
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7 -1
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""


@cache
def residue_vectors() -> np.ndarray:
    """Return one vector per token, `(27 tokens, 20)`: `<pad>` (zeros), then the letters A-Z.

    For the vectors X of the twenty residues `X @ X.T` is BLOSUM62 with its negative eigenvalues
    set to 0; the other letters are means over what they may stand for.

    Example:
        >>> vectors = residue_vectors()
        >>> cysteine, tryptophan = vectors[3], vectors[23]
        >>> round(float(cysteine @ cysteine)), round(float(cysteine @ tryptophan))
        (11, 0)
    """
    scores = np.array([row.split() for row in BLOSUM62.strip().splitlines()], dtype=np.float64)
    values, axes = np.linalg.eigh(scores)
    vectors = axes * np.sqrt(np.clip(values, 0, None))
    rows = [np.zeros(20)]
    for letter in RESIDUE_LETTERS:
        meanings = LETTER_RULES.get(letter, letter)
        rows.append(np.mean([vectors[STANDARD_RESIDUES.index(r)] for r in meanings], axis=0))
    return np.stack(rows).astype(np.float32)


class SubstitutionModel(ParameterFree, SafeWeights):
    """Embed each residue by the BLOSUM62 vectors in a window around it.

    The embedding of residue i is the concatenation over offsets k = -window..window of the vector
    of residue i + k times `exp(-(k / decay)^2 / 2)`, zeros beyond either end. There is no trained
    parameter, so it is a floor that a learned backbone has to beat, and free to compute.

    Example:
        >>> model = SubstitutionModel(SubstitutionConfig())
        >>> model(torch.tensor([[13, 11, 22]])).last_hidden_state.shape
        torch.Size([1, 3, 420])
    """

    config_class = SubstitutionConfig
    base_model_prefix = "substitution"
    main_input_name = "input_ids"
    _no_split_modules: list[str] = []
    _supports_sdpa = True  # there is no attention; any request for a kind of it is met

    vectors: Tensor

    def __init__(self, config: SubstitutionConfig) -> None:
        """Build the encoder from its configuration."""
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
        """Embed token ids `(batch, residues)` as `(batch, residues, hidden)`.

        Args:
            input_ids: Token ids; 0 is padding.
            attention_mask: True (or 1) where there is a residue, `(batch, residues)`.
            return_dict: Return a `BaseModelOutput` instead of a tuple.
        """
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
