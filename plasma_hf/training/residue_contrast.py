"""Training of ProtAlign's two encoders residue by residue, before anything is pooled.

Residue i of a chain's sequence and residue i of its structure are one residue, seen twice. Among
some thousand residues of many chains, each view has to choose the other; and the structure has to
tell the amino acid. A thousand choices a batch teach two encoders far more than one choice a chain
does, and what they then have in common is what a pool of either can be compared by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from ..models.modeling_protalign import ProtAlignModel
from ..models.processing_protalign import ProtAlignProcessor
from ..models.protein import STANDARD_RESIDUES, Structure
from .run import checkpoint_to_resume, lasting_settings
from .trainer import BatchTrainer

NOT_ASKED = -100
ATOMS = ("backbone", "structure_residue_mask", "residue_index", "chain_index")


@dataclass(frozen=True)
class ResidueTraining:
    """Settings of a run; the same settings and data give the same weights.

    Attributes:
        steps: Batches to learn from.
        chains: Chains in a batch, each of another cluster.
        max_residues: Longer chains are cropped to a span of so many.
        residues: Residues of a batch that choose each other.
        shared_size: Width in which they are compared.
        logit_temperature: What their cosines are divided by.
        recovery_weight: How much the amino acid told from the structure counts.
        noise: Standard deviation of what is added to coordinates, angstrom.
        learning_rate: At its highest.
        warmup: Share of the steps in which it rises; it falls along a cosine after.
        weight_decay: Of the matrices.
        save_steps: Steps between checkpoints.
        seed: Of initial weights and draws.
        device: "cpu" to stay off a GPU, None for one if it is there.
    """

    steps: int = 1200
    chains: int = 32
    max_residues: int = 96
    residues: int = 1024
    shared_size: int = 64
    logit_temperature: float = 0.1
    recovery_weight: float = 1.0
    noise: float = 0.1
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    save_steps: int = 200
    seed: int = 0
    device: str | None = None


class ChainBatches(Dataset):
    """Batches of cropped chains; item k is batch k, whatever came before.

    Args:
        pairs: What to draw from; sequence and structure of a pair have the same residues.
        clusters: Cluster of each; one chain of a cluster at most is in a batch.
        processor: Of the model.
        settings: Of the run.
    """

    def __init__(
        self,
        pairs: Sequence[StructurePair],
        clusters: Sequence[str],
        processor: ProtAlignProcessor,
        settings: ResidueTraining,
    ) -> None:
        """Group the chains by cluster."""
        self.pairs, self.processor, self.settings = pairs, processor, settings
        groups: dict[str, list[int]] = {}
        for number, (pair, cluster) in enumerate(zip(pairs, clusters, strict=True)):
            if pair.sequence != pair.structure.sequence:
                raise ValueError(
                    f"{pair.id} has a sequence of {len(pair.sequence)} residues that is not that "
                    "of its structure; give the residues observed in the structure."
                )
            if pair.structure.residue_mask.any():
                groups.setdefault(cluster, []).append(number)
        if not groups:
            raise ValueError("there is no chain with backbone atoms to learn from.")
        self.groups = [groups[name] for name in sorted(groups)]

    def __len__(self) -> int:
        """Return the number of batches."""
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
        chains = [self.pairs[group[int(rng.integers(len(group)))]].structure for group in groups]
        cropped = [crop(chain, self.settings.max_residues, rng) for chain in chains]
        batch = dict(self.processor([chain.sequence for chain in cropped], cropped))
        there = batch["structure_residue_mask"].flatten().nonzero().flatten().numpy()
        chosen = rng.permutation(there)[: self.settings.residues]
        batch["chosen"] = torch.from_numpy(np.sort(chosen))
        letters = [amino_acids(chain.sequence) for chain in cropped]
        batch["amino_acids"] = pad_sequence(letters, True, NOT_ASKED)
        return batch


def crop(structure: Structure, limit: int, rng: np.random.Generator) -> Structure:
    """Crop a chain to at most `limit` residues in a row, one with all atoms among them."""
    if len(structure) <= limit:
        return structure
    anchors = structure.residue_mask.nonzero().flatten().tolist()
    anchor = anchors[int(rng.integers(len(anchors)))]
    start = min(max(0, anchor - int(rng.integers(limit))), len(structure) - limit)
    kept = slice(start, start + limit)
    return replace(
        structure,
        sequence=structure.sequence[kept],
        backbone=structure.backbone[kept],
        author_numbers=structure.author_numbers[kept],
        chain_ids=structure.chain_ids[kept],
    )


def amino_acids(sequence: str) -> Tensor:
    """Number the standard amino acids of a sequence, `(residues,)`; -100 for any other letter.

    Example:
        >>> amino_acids("ACX").tolist()
        [0, 4, -100]
    """
    known = {letter: number for number, letter in enumerate(STANDARD_RESIDUES)}
    return torch.tensor([known.get(letter, NOT_ASKED) for letter in sequence])


class ResidueContrast(nn.Module):
    """Two encoders and what they are trained for.

    Args:
        model: ProtAlign over both encoders; its pools are left alone.
        settings: Of the run.
    """

    def __init__(self, model: ProtAlignModel, settings: ResidueTraining) -> None:
        """Put two projections and a guess of amino acids beside the encoders."""
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
            parts = {
                "contrast": self._contrast(sequences, structures),
                "recovery": F.cross_entropy(
                    self.guess(structures), amino_acids.flatten()[chosen], ignore_index=NOT_ASKED
                ),
            }
        loss = parts["contrast"] + self.settings.recovery_weight * parts["recovery"]
        return {"loss": loss} | parts

    def _contrast(self, sequences: Tensor, structures: Tensor) -> Tensor:
        first = F.normalize(self.sequence_view(sequences), dim=-1)
        second = F.normalize(self.structure_view(structures), dim=-1)
        logits = first @ second.T / self.settings.logit_temperature
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


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
        model: ProtAlign over both encoders, with its processor.
        pairs: Chains to learn from.
        clusters: Cluster of each, as `cluster_sequences` finds them.
        folder: Where checkpoints go.
        settings: Of the run.
        sequences: Train the sequence encoder as well, not the structure encoder alone.
        resume: Go on at the last checkpoint, if there is one.
        **options: Further fields of `TrainingArguments`.

    Raises:
        ValueError: If the model lacks an encoder, there is nothing to learn from, or the folder has
            checkpoints of a run with other settings.
        FileExistsError: If the folder has checkpoints and `resume` is False.
        ImportError: If accelerate is not installed.
    """
    settings, folder = settings or ResidueTraining(), Path(folder)
    for side in ("sequence", "structure"):
        model.check_encoder(side)
    if model.processor is None:
        raise ValueError("the model has no processor; set model.processor.")
    last = checkpoint_to_resume(folder, lasting_settings(settings), resume)
    set_seed(settings.seed)
    model.requires_grad_(False)
    model.sequence_encoder.requires_grad_(sequences)
    model.structure_encoder.requires_grad_(True)
    noise = model.structure_encoder.config.augment_eps
    model.structure_encoder.config.augment_eps = settings.noise
    objective = ResidueContrast(model, settings)
    batches = ChainBatches(pairs, clusters, model.processor, settings)
    trainer = BatchTrainer(objective, folder, batches, settings, options)
    trainer.train(resume_from_checkpoint=last)
    model.structure_encoder.config.augment_eps = noise
    model.requires_grad_(True)
    model.sequence_encoder.requires_grad_(False)
    model.structure_encoder.requires_grad_(False)
    return model.eval()
