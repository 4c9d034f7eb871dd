"""Configuration of ProtSSN."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_over_language_model import OverLanguageModelConfig
from .protssn_statistics import MEASURED


@strict
class ProtSSNConfig(OverLanguageModelConfig):
    """Configure ProtSSN and, optionally, the protein language model under it.

    ProtSSN was trained with one number of neighbours for graph and statistics. The released PLASMA
    heads were trained on its k = 20 weights over graphs and statistics of 10 neighbours:
    `ProtSSNConfig(k_neighbors=10, edge_statistics=10)`.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        message_size: Width of what one residue tells another.
        num_layers: Rounds of messages.
        k_neighbors: Neighbours of a residue in the graph at most.
        edge_statistics: The published statistics that standardise the edges: those of graphs with
            10, 20 or 30 neighbours.
        initializer_range: Standard deviation of untrained weights.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.

    Raises:
        ValueError: If a number is out of range, or the language model has another width.

    Example:
        >>> ProtSSNConfig(k_neighbors=10, edge_statistics=10).message_size
        512
    """

    model_type = "protssn"

    hidden_size: int = 1280
    message_size: int = 512
    num_layers: int = 6
    k_neighbors: int = 20
    edge_statistics: int = 20
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the numbers, then the language model."""
        for name in ("message_size", "num_layers", "k_neighbors"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number above 0.")
        if self.edge_statistics not in MEASURED:
            raise ValueError(
                f"edge_statistics={self.edge_statistics}; ProtSSN was published with statistics of "
                f"{', '.join(map(str, MEASURED))} neighbours, name the nearest of these."
            )
        super().__post_init__(**kwargs)
