"""Training of ProtAlign's two encoders residue by residue, before anything is pooled.

Residue i of a chain's sequence and residue i of its structure are one residue, seen twice. Among
some thousand residues of many chains, each view has to choose the other; and the structure has to
tell the amino acid. A thousand choices a batch teach far more than one choice a chain does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import set_seed

from ..io.structures import StructurePair
from ..models.modeling_protalign import ProtAlignModel, clip_loss
from ..models.processing_protalign import ProtAlignProcessor
from ..models.protein import STANDARD_RESIDUES, Structure
from .run import checkpoint_to_resume
from .trainer import ATOMS, BatchTrainer

NOT_ASKED = -100  # the number of any other letter
KNOWN = {letter: number for number, letter in enumerate(STANDARD_RESIDUES)}


@dataclass(frozen=True)
class ResidueTraining:
    """Settings of a run; the same settings and data give the same weights."""

    steps: int = 1200
    chains: int = 32  # in a batch, each of another cluster
    max_residues: int = 96  # longer chains are cropped to a span of so many
    residues: int = 1024  # of a batch that choose each other
    shared_size: int = 64  # width in which they are compared
    logit_temperature: float = 0.1
    recovery_weight: float = 1.0  # how much the amino acid told from the structure counts
    noise: float = 0.1  # standard deviation of what is added to coordinates, angstrom
    learning_rate: float = 2e-3  # at its highest
    warmup: float = 0.05  # share of the steps in which it rises; it falls along a cosine after
    weight_decay: float = 0.01
    save_steps: int = 200
    seed: int = 0
    device: str | None = None  # "cpu" to stay off a GPU, None for one if it is there


class ChainBatches(Dataset):
    """Batches of cropped chains, of a cluster one at most; item k is batch k, whatever came before.

    Residue i of a pair's sequence is residue i of its structure; a sequence designed for a
    structure has other letters.
    """

    def __init__(
        self,
        pairs: Sequence[StructurePair],
        clusters: Sequence[str],
        processor: ProtAlignProcessor,
        settings: ResidueTraining,
    ) -> None:
        self.pairs, self.processor, self.settings = pairs, processor, settings
        groups: dict[str, list[int]] = {}
        for number, (pair, cluster) in enumerate(zip(pairs, clusters, strict=True)):
            if len(pair.sequence) != len(pair.structure):
                raise ValueError(
                    f"{pair.id} has a sequence of {len(pair.sequence)} residues, its structure "
                    f"has {len(pair.structure)}; give the residues observed in the structure."
                )
            if pair.structure.residue_mask.any():
                groups.setdefault(cluster, []).append(number)
        if not groups:
            raise ValueError("there is no chain with backbone atoms to learn from.")
        self.groups = [groups[name] for name in sorted(groups)]

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return the model's inputs, `amino_acids` `(batch, residues)` and `chosen` `(compared,)`.

        The latter are places among all residues of the batch, one after another.
        """
        if not 0 <= step < self.settings.steps:
            raise IndexError(f"batch {step} of {self.settings.steps}")
        rng = np.random.default_rng([self.settings.seed, step])
        count = min(self.settings.chains, len(self.groups))
        groups = [self.groups[int(g)] for g in rng.choice(len(self.groups), count, replace=False)]
        drawn = [self.pairs[group[int(rng.integers(len(group)))]] for group in groups]
        chains = [replace(pair.structure, sequence=pair.sequence) for pair in drawn]
        cropped = [crop(chain, self.settings.max_residues, rng) for chain in chains]
        batch = dict(self.processor([chain.sequence for chain in cropped], cropped))
        there = batch["structure_residue_mask"].flatten().nonzero().flatten().numpy()
        chosen = rng.permutation(there)[: self.settings.residues]
        batch["chosen"] = torch.from_numpy(np.sort(chosen))
        letters = ([KNOWN.get(letter, NOT_ASKED) for letter in c.sequence] for c in cropped)
        batch["amino_acids"] = pad_sequence(list(map(torch.tensor, letters)), True, NOT_ASKED)
        return batch


def crop(structure: Structure, limit: int, rng: np.random.Generator) -> Structure:
    """Crop a chain to at most `limit` residues in a row, one with all atoms among them."""
    if len(structure) <= limit:
        return structure
    anchors = structure.residue_mask.nonzero().flatten().tolist()
    anchor = anchors[int(rng.integers(len(anchors)))]
    start = min(max(0, anchor - int(rng.integers(limit))), len(structure) - limit)
    names = ("sequence", "backbone", "author_numbers", "chain_ids")
    cut = {name: getattr(structure, name)[start : start + limit] for name in names}
    return replace(structure, **cut)


class ResidueContrast(nn.Module):
    """Two encoders, under ProtAlign whose pools are left alone, and what they are trained for."""

    def __init__(self, model: ProtAlignModel, settings: ResidueTraining) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        config, shared = model.config, settings.shared_size
        self.sequence_view = nn.Linear(config.sequence_size, shared)
        self.structure_view = nn.Linear(config.structure_size, shared)
        self.guess = nn.Linear(config.structure_size, len(STANDARD_RESIDUES))

    def forward(
        self, input_ids: Tensor, amino_acids: Tensor, chosen: Tensor, **inputs: Tensor
    ) -> dict[str, Tensor]:
        """Return the parts of the loss, and their weighted sum as `loss`; see `ChainBatches`."""
        masks = inputs["attention_mask"], inputs["sequence_mask"]
        sequences, _ = self.model.embed(input_ids, *masks)
        atoms = (inputs[name] for name in ATOMS)
        structures = self.model.structure_encoder(*atoms).last_hidden_state
        with torch.autocast(input_ids.device.type, enabled=False):
            sequences = sequences.float().flatten(0, 1)[chosen]
            structures = structures.float().flatten(0, 1)[chosen]
            sequences = F.layer_norm(sequences, sequences.shape[-1:])
            views = self.sequence_view(sequences), self.structure_view(structures)
            first, second = (F.normalize(view, dim=-1) for view in views)
            contrast = clip_loss(first, second, self.settings.logit_temperature)
            asked = amino_acids.flatten()[chosen]
            recovery = F.cross_entropy(self.guess(structures), asked, ignore_index=NOT_ASKED)
        loss = contrast + self.settings.recovery_weight * recovery
        return {"loss": loss, "contrast": contrast, "recovery": recovery}


def train_encoders(
    model: ProtAlignModel,
    pairs: Sequence[StructurePair],
    clusters: Sequence[str],
    folder: str | Path,
    settings: ResidueTraining | None = None,
    *,
    sequences: bool = True,
    resume: bool = False,
    **options: Any,
) -> ProtAlignModel:
    """Train both encoders of a model, in place, residue by residue, and freeze them.

    Args:
        clusters: Cluster of each pair, as `cluster_sequences` finds them.
        folder: Where checkpoints go; `resume` goes on at the last one.
        sequences: Train the sequence encoder as well, not the structure encoder alone.
        **options: Further fields of `TrainingArguments`.
    """
    settings, folder = settings or ResidueTraining(), Path(folder)
    for side in ("sequence", "structure"):
        model.check_encoder(side)
    if model.processor is None:
        raise ValueError("the model has no processor; set model.processor.")
    lasting = {k: v for k, v in asdict(settings).items() if k not in ("device", "save_steps")}
    last = checkpoint_to_resume(folder, lasting, resume)
    set_seed(settings.seed)
    model.requires_grad_(False)
    model.sequence_encoder.requires_grad_(sequences)
    model.structure_encoder.requires_grad_(True)
    structure_config = model.structure_encoder.config
    noise, structure_config.augment_eps = structure_config.augment_eps, settings.noise
    objective = ResidueContrast(model, settings)
    batches = ChainBatches(pairs, clusters, model.processor, settings)
    trainer = BatchTrainer(objective, folder, batches, settings, options)
    trainer.train(resume_from_checkpoint=last)
    structure_config.augment_eps = noise
    model.requires_grad_(True)
    for encoder in (model.sequence_encoder, model.structure_encoder):
        encoder.requires_grad_(False)
    return model.eval()
