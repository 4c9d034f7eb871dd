"""The runs that tables and figures of a retrieval are made of: trained once, for several seeds."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.structure_rows import StructurePair
from ..models.backbone import Backbone
from ..models.modeling_protalign import ProtAlignModel
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
from ..training.protalign_data import PairCollation
from ..training.protalign_features import PairFeatures
from ..training.protalign_parts import PairParts, split_pairs
from ..training.protalign_run import METRICS, ProtAlignRun, processor_of
from .pictures import file_name
from .retrieval_baselines import MeanPoolModel

TEMPERATURES = (0.07, 0.035, 0.02, 0.001)
BIASES = (-20.0, -10.0, -5.0, 0.0)
PAIRS_PER_BATCH = 32

Vectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Sequence vectors and structure vectors of pairs, `(pairs, shared)` each, of length 1."""


@dataclass(frozen=True)
class Variant:
    """Hold one way to train a model.

    Attributes:
        name: What a table calls it.
        config: Fields of `ProtAlignConfig` that go before those of the study.
        model_class: `ProtAlignModel`, or one with other pools.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: type[ProtAlignModel] = ProtAlignModel


CLIP = Variant("CLIP", {"loss": "clip"})
SIGLIP = Variant("SigLIP", {"loss": "siglip"})
MEAN_POOL = Variant("mean-pool + linear", {}, MeanPoolModel)
# A value that is swept is not learnt.
TEMPERATURE_SWEEP = tuple(
    Variant(
        f"CLIP, tau {tau:g}",
        {"loss": "clip", "logit_temperature": tau, "learn_temperature": False},
    )
    for tau in TEMPERATURES
)
BIAS_SWEEP = tuple(
    Variant(f"SigLIP, bias {bias:g}", {"loss": "siglip", "logit_bias": bias, "learn_bias": False})
    for bias in BIASES
)
VARIANTS = {"table 2": (CLIP, SIGLIP), "table 3": (*TEMPERATURE_SWEEP, *BIAS_SWEEP)}
"""The tables of the paper, by what is trained for them."""


@dataclass(frozen=True)
class RetrievalStudy:
    """Train variants on the splits of several seeds, each once, and give their vectors.

    Runs are kept in the folder; a study that was stopped goes on where it was.

    Attributes:
        pairs: All of them; each seed splits them anew.
        backbone: Of the sequences.
        encoder: Of the structures; each run starts from a copy.
        run: What every run has in common; its folder is that of the study.
        seeds: Of splits and runs.
        split: Options of `split_pairs`.
    """

    pairs: Sequence[StructurePair]
    backbone: Backbone
    encoder: ProteinMPNNEncoder
    run: ProtAlignRun
    seeds: Sequence[int] = (0,)
    split: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[int, PairParts]:
        """The split of each seed."""
        return {seed: split_pairs(self.pairs, seed, **self.split) for seed in self.seeds}

    def train(self, variant: Variant, seed: int) -> ProtAlignModel:
        """Return a variant trained on the split of a seed, with its encoders."""
        run, parts = self.run_of(variant, seed), self.parts[seed]
        if not run.is_finished(parts):
            run.train(parts, self.backbone, copy.deepcopy(self.encoder), resume=True)
        return variant.model_class.from_pretrained(run.folder)

    def vectors(self, variant: Variant, seed: int) -> Vectors:
        """Return the vectors of the test pairs, after training."""
        model = self.train(variant, seed)
        return pair_vectors(model, self.parts[seed].test, self._collation(model, seed))

    def untrained_vectors(self, variant: Variant, seed: int) -> Vectors:
        """Return the vectors of the test pairs by the model that training starts from."""
        encoder = copy.deepcopy(self.encoder)
        model = self.run_of(variant, seed).untrained_model(self.backbone, encoder)
        return pair_vectors(model, self.parts[seed].test, self._collation(model, seed))

    def losses(self, variant: Variant, seed: int) -> list[float]:
        """Return the training loss of each epoch."""
        self.train(variant, seed)
        file = Path(self.run_of(variant, seed).folder) / METRICS
        return json.loads(file.read_text())["losses"]

    def run_of(self, variant: Variant, seed: int) -> ProtAlignRun:
        """Return the run that a variant is trained by."""
        folder = Path(self.run.folder)
        config = dict(self.run.config) | dict(variant.config)
        # By what is trained, not by name: two tables may have the same model in them.
        words = [variant.model_class.__name__, *(f"{k}_{v}" for k, v in sorted(config.items()))]
        return replace(
            self.run,
            folder=folder / "runs" / file_name("_".join([*words, f"seed{seed}"])),
            store=self.run.store or folder / "store",
            seed=seed,
            model_class=variant.model_class,
            config=config,
        )

    def _collation(self, model: ProtAlignModel, seed: int) -> PairCollation:
        features = self.run_of(Variant("-"), seed).features(
            self.parts[seed].test, self.backbone, self.encoder
        )
        return PairCollation(features, processor_of(model, self.backbone))


def model_vectors(model: ProtAlignModel, pairs: Sequence[StructurePair]) -> Vectors:
    """Return the vectors of pairs by the encoders that a model has."""
    return pair_vectors(model, pairs, PairCollation(PairFeatures(None, None), model.processor))


@torch.no_grad()
def pair_vectors(
    model: ProtAlignModel, pairs: Sequence[StructurePair], collation: PairCollation
) -> Vectors:
    """Return the vectors of pairs.

    Args:
        model: Put in eval mode.
        pairs: Sequences and structures.
        collation: Makes batches of rows as `StructurePairs` has them.
    """
    model.eval()
    # Those of like length together, so that little is padding.
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].sequence))
    sequences = torch.zeros(len(pairs), model.config.hidden_size)
    structures = torch.zeros_like(sequences)
    for start in range(0, len(order), PAIRS_PER_BATCH):
        places = order[start : start + PAIRS_PER_BATCH]
        batch = collation([{"pair": pairs[i]} for i in places])
        output = model(**{name: value.to(model.device) for name, value in batch.items()})
        sequences[places] = output.sequence_features.float().cpu()
        structures[places] = output.structure_features.float().cpu()
    return sequences.numpy(), structures.numpy()
