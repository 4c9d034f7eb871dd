"""Configuration of the residue encoder."""

from __future__ import annotations

from dataclasses import field

from huggingface_hub.dataclasses import strict

from .configuration_substitution import SubstitutionConfig


@strict
class ResidueEncoderConfig(SubstitutionConfig):
    """Configure the residue encoder: substitution windows and what a small network adds to them.

    Args:
        window: Residues of a substitution window on each side, see `SubstitutionConfig`.
        decay: How the window fades, see `SubstitutionConfig`.
        width: Channels of the network.
        kernel: Residues that a convolution looks at, an odd number.
        dilations: Steps between them, one for each block; a residue sees
            `window + (kernel - 1) / 2 * sum(dilations)` residues to each side.

    Example:
        >>> ResidueEncoderConfig(kernel=5, dilations=[1, 2, 4]).reach
        24
    """

    model_type = "residue_encoder"

    width: int = 128
    kernel: int = 5
    dilations: list[int] = field(default_factory=lambda: [1, 2, 4, 8])

    def __post_init__(self, **kwargs: object) -> None:
        """Check the network."""
        if self.width < 2 or self.kernel < 1 or self.kernel % 2 == 0 or min(self.steps) < 1:
            raise ValueError(
                f"width={self.width}, kernel={self.kernel}, dilations={self.dilations}: give a "
                "width of 2 or more, an odd kernel and dilations of 1 or more, for example "
                "ResidueEncoderConfig(width=128, kernel=5, dilations=[1, 2, 4, 8])."
            )
        super().__post_init__(**kwargs)

    @property
    def steps(self) -> list[int]:
        """Dilations, 1 where there is no block."""
        return list(self.dilations) or [1]

    @property
    def reach(self) -> int:
        """How many residues to each side an embedding depends on."""
        return self.window + (self.kernel - 1) // 2 * sum(self.dilations)
