"""Configuration of the substitution encoder."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SubstitutionConfig(PreTrainedConfig):
    """Configure the substitution encoder: a window of BLOSUM62 vectors, nothing trained.

    Args:
        window: Residues looked at on each side; the embedding has `20 * (2 * window + 1)` numbers.
        decay: Distance in residues at which a neighbour's vector is scaled by `exp(-1/2)`.

    Example:
        >>> SubstitutionConfig(window=10).hidden_size
        420
    """

    model_type = "substitution_window"

    window: int = 10
    decay: float | int = 7.0

    def __post_init__(self, **kwargs: object) -> None:
        """Check the window."""
        if self.window < 0 or self.decay <= 0:
            raise ValueError(
                f"window={self.window}, decay={self.decay}: give a window of 0 or more residues "
                "and a decay above 0, for example SubstitutionConfig(window=10, decay=7.0)."
            )
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a residue embedding."""
        return 20 * (2 * self.window + 1)
