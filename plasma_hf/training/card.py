"""The model card of a training run, with its own figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from ..hub.cards import card_of

HELD_OUT = {"interpolation": "test", "extrapolation": "test_hard"}
"""What the two test sets of a split are called in the figures."""


def training_card(
    config: Any, figures: Mapping[str, Mapping[str, float]], details: Mapping[str, Any]
) -> ModelCard:
    """Write the card of a model that was just trained, PLASMA or ProtAlign.

    Args:
        config: The model's configuration.
        figures: Metrics by the name of the evaluation set, as the trainer's `figures` has them.
        details: What else there is to say of the run, by name.

    Returns:
        A card with the figures as a table, and for the Hub as metadata.

    Example:
        >>> from plasma_hf import PlasmaConfig
        >>> figures = {"extrapolation": {"roc_auc": 0.91, "label_match_score": 0.5, "pairs": 200}}
        >>> card = training_card(PlasmaConfig(), figures, {"preset": "published"})
        >>> card.data.eval_results[0].metric_value
        0.91
    """
    return card_of(config, {"figures": figures, "settings": details})
