"""3Di: the state of each residue in a structure, as Foldseek has it, and the letters around it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .modeling_backbone import (
    SafeWeights,
    SubstitutionConfig,
    SubstitutionModel,
    check_settings,
    in_windows,
    register_backbone,
)
from .protein import usual_beta

STATES = 20
STATE_DECAY = 3.0  # residues, see `in_windows`


@strict
class ThreeDiConfig(SubstitutionConfig):
    """Configure the encoder: windows of 3Di states, then substitution windows.

    Args:
        state_window: Residues on each side whose states are looked at.
        spread: Squared distance, between states in the plane they lie in, that makes two unlike.
        letters: Length of what letters say, where that of states is 1.
    """

    model_type = "three_di"

    state_window: int = 3
    spread: float = 2.0
    letters: float = 1.0

    def __post_init__(self, **kwargs: object) -> None:
        check_settings(self, ("spread", "letters"), ("state_window",))
        super().__post_init__(**kwargs)

    @property
    def parts(self) -> list[int]:
        """Widths of what states and letters say."""
        return [STATES * (2 * self.state_window + 1), 20 * (2 * self.window + 1)]

    @property
    def hidden_size(self) -> int:
        """Width of a residue embedding."""
        return sum(self.parts)


@register_backbone
class ThreeDiModel(SafeWeights):
    """Embed each residue of a structure by 3Di states and letters in a window around it.

    States are those of the package mini3di; near ones, in the plane in which they were found, are
    alike. A residue without a state, such as the last ones, has none. Nothing is trained.

    Source: van Kempen et al. 2024, doi:10.1038/s41587-023-01773-0.
    """

    config_class = ThreeDiConfig
    base_model_prefix = "three_di"
    main_input_name = "input_ids"
    states: Tensor

    def __init__(self, config: ThreeDiConfig) -> None:
        super().__init__(config)
        self.substitution = SubstitutionModel(config)
        self.register_buffer("states", torch.zeros(STATES + 1, STATES))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ThreeDiModel):
            init.copy_(module.states, state_vectors(self.config.spread))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        backbone_atoms: Tensor | None = None,
        return_dict: bool = True,
    ) -> BaseModelOutput | tuple[Tensor]:
        """Embed token ids `(batch, residues)` and N, CA and C in Å, `(batch, residues, 3, 3)`."""
        if backbone_atoms is None:
            raise ValueError("3Di needs structures; give paths of PDB or mmCIF files.")
        (letters,) = self.substitution(input_ids, attention_mask, return_dict=False)
        hidden = self.embed_states(three_di(backbone_atoms), letters)
        return BaseModelOutput(last_hidden_state=hidden) if return_dict else (hidden,)

    def embed_states(self, states: Tensor, letters: Tensor) -> Tensor:
        """Put windows of states, `(..., residues)` from 0 to 20, before those of letters."""
        vectors = self.states[states.to(self.states.device)]
        return torch.cat([in_windows(vectors, self.config.state_window, STATE_DECAY), letters], -1)


def state_vectors(spread: float) -> Tensor:
    """Return how much each state is like each other, `(21, 20)`; the last is none."""
    places = torch.tensor(_mini3di().Encoder._CENTROIDS)
    apart = (places[:, None] - places).square().sum(-1)
    return F.pad((-apart / spread).exp(), (0, 0, 0, 1))


def three_di(backbone_atoms: Tensor) -> Tensor:
    """Return the 3Di states of proteins, `(batch, residues)`, 20 where a residue has none.

    Args:
        backbone_atoms: N, CA and C in Å, `(batch, residues, 3, 3)`, NaN where they are missing.
    """
    encoder = _mini3di().Encoder()
    states = torch.full(backbone_atoms.shape[:2], STATES)
    whole = backbone_atoms.isfinite().flatten(2).all(-1).cpu()
    atoms = backbone_atoms.detach().cpu().double()
    for row, protein, there in zip(states, atoms, whole, strict=True):
        n, ca, c = protein[there].unbind(1)
        each = (ca, usual_beta(n, ca, c), n, c)
        found = encoder.encode_atoms(*(atom.numpy() for atom in each))
        row[there] = torch.from_numpy(found.filled(STATES).astype(int))
    return states


def _mini3di() -> Any:
    try:
        return import_module("mini3di")
    except ImportError as error:
        raise ImportError("3Di states need mini3di; run: pip install mini3di") from error
