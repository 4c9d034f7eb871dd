"""Configuration of TM-Vec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_over_language_model import OverLanguageModelConfig

ACTIVATIONS = ("relu", "gelu")

UPSTREAM_FIELDS = {
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "nhead": "num_attention_heads",
    "dim_feedforward": "intermediate_size",
    "out_dim": "protein_size",
    "activation": "activation",
    "dropout": "dropout",
}
"""What the published parameter file calls our fields; its other entries steer training."""


@strict
class TMVecConfig(OverLanguageModelConfig):
    """Configure TM-Vec and, optionally, the protein language model under it.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Attention heads; they share out hidden_size.
        intermediate_size: Width inside a layer.
        protein_size: Width of the one vector a protein.
        activation: "relu" or "gelu".
        layer_norm_eps: Added to the variance in layer normalisation.
        dropout: Share of numbers dropped in training.
        plm_config: The language model's configuration in full, or as a dict, or None for a model
            that takes ready residue embeddings.
        plm_name_or_path: Where the language model's weights come from.
        plm_revision: Which revision of them.

    Raises:
        ValueError: If the numbers contradict each other or the language model's width.

    Example:
        >>> TMVecConfig().protein_size
        512
    """

    model_type = "tmvec"

    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 2048
    protein_size: int = 512
    activation: str = "relu"
    layer_norm_eps: float = 1e-5
    dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the numbers, then the language model."""
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        counts = ("num_attention_heads", "intermediate_size", "protein_size")
        for name in counts:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}; give a number above 0.")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers={self.num_hidden_layers}; give 0 or more.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} cannot be shared out among "
                f"num_attention_heads={self.num_attention_heads}; give a multiple."
            )
        if self.activation not in ACTIVATIONS:
            choices = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation={self.activation!r}; accepted are {choices}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; give a number from 0 to below 1.")


def read_upstream_params(path: str | Path) -> dict[str, Any]:
    """Read the parameter file that is published beside a TM-Vec checkpoint.

    Args:
        path: The JSON file, for example `tm_vec_cath_model_params.json`.

    Returns:
        Fields of a `TMVecConfig`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or entries are missing or of the wrong kind.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is no file; give the JSON that is published beside the checkpoint."
        )
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is no JSON ({error}); give the parameter file, the checkpoint comes first."
        ) from error
    if not isinstance(params, dict):
        params = {}
    wrong = [
        name
        for name in UPSTREAM_FIELDS
        if not isinstance(params.get(name), str if name == "activation" else int | float)
    ]
    if wrong:
        raise ValueError(
            f"{file} is no TM-Vec parameter file, {', '.join(wrong)} is missing or of the wrong "
            f"kind; give a JSON object with {', '.join(UPSTREAM_FIELDS)}."
        )
    return {ours: params[theirs] for theirs, ours in UPSTREAM_FIELDS.items()}
