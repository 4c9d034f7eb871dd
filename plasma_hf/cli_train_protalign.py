"""`plasma-hf train protalign`: sequences and structures of proteins into one space."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_embed import load_backbone
from .cli_errors import one_line_errors, report
from .cli_options import (
    BackboneName,
    Device,
    Epochs,
    LearningRate,
    Output,
    Recipe,
    RemoteCode,
    Resume,
    Store,
    given,
    training_arguments,
)
from .cli_protalign import (
    BatchSize,
    Identity,
    Loss,
    LossName,
    MaxResidues,
    MinResidues,
    Preset,
    RecipeName,
    StructureEncoder,
    Structures,
    TrainedName,
    TrainEncoders,
    load_structure_encoder,
    read_pairs,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .data.structure_rows import StructurePair
    from .models.backbone import Backbone
    from .models.modeling_protein_mpnn import ProteinMPNNEncoder


TRAIN_PROTALIGN_HELP = """
Train ProtAlign on protein structures and their own sequences, and measure it.

--structures is a folder of PDB and mmCIF files, a file of them, a list of chains (.jsonl, also
.gz), or a Parquet file of sequences and structures. Training, validation and test share no
sequence cluster; of chains with equal sequences one is used.

--residue-steps trains the structure encoder first, and with it the bundled sequence encoder: the
residues of a chain's sequence and those of its structure find each other. It pays where no
published weights of ProteinMPNN are given.

With --train-encoders none, embeddings are computed once and two attention pools train on them.
structure trains the structure encoder along, all both encoders, lora the sequence encoder by small
matrices beside its weights.

The folder --output then holds the model with its encoders, a card with the figures of the run,
metrics.json, the embeddings and the checkpoints. A run that was stopped goes on with --resume, and
ends in the same weights.

A structure that cannot be used is reported on standard error, the rest is used, and the exit code
is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf train protalign --structures pdb/ --residue-steps 1600 --output protalign
  plasma-hf train protalign --structures pdb/ --train-encoders structure --output protalign
  plasma-hf train protalign --structures chains.jsonl.gz --loss siglip --seed 3 --output siglip
  plasma-hf train protalign --structures pdb/ --train-encoders structure --output protalign \\
      --resume

\b
With a language model, which is downloaded first, and the published weights of ProteinMPNN:
  plasma-hf train protalign --structures pdbbind.parquet --preset published \\
      --sequence-backbone facebook/esm2_t33_650M_UR50D \\
      --structure-encoder v_48_020.pt --output published

\b
On two GPUs:
  torchrun --nproc-per-node 2 --no-python plasma-hf train protalign \\
      --structures pdb/ --output protalign
"""


def train_protalign(
    structures: Structures,
    output: Output,
    sequence_backbone: BackboneName = "default",
    recipe: Recipe = None,
    structure_encoder: StructureEncoder = "new",
    residue_steps: Annotated[
        int, typer.Option(min=0, help="Batches in which residues find each other, before all else.")
    ] = 0,
    train_encoders: TrainEncoders = TrainedName.none,
    preset: Preset = RecipeName.improved,
    loss: Loss = LossName.clip,
    temperature: Annotated[
        float | None, typer.Option(help="What cosines are divided by, at first if it is learnt.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
    identity: Identity = None,
    min_residues: MinResidues = 20,
    max_residues: MaxResidues = 1024,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    store: Store = None,
    device: Device = None,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train ProtAlign; see `TRAIN_PROTALIGN_HELP`."""
    with one_line_errors():
        from .training.protalign_parts import split_pairs
        from .training.protalign_run import ProtAlignRun

        pairs, complete = read_pairs(structures, min_residues, max_residues)
        parts = split_pairs(pairs, seed, identity=identity)
        backbone = load_backbone(
            "--sequence-backbone", sequence_backbone, recipe, device, trust_remote_code
        )
        encoder = load_structure_encoder(structure_encoder, seed, device)
        if residue_steps:
            _train_residues(
                parts.train, backbone, encoder, residue_steps, output, seed, device, resume
            )
        elif structure_encoder == "new" and train_encoders.value in ("none", "lora"):
            report("the structure encoder is new and does not train: it gives random features")
        run = ProtAlignRun(
            output,
            preset=preset.value,
            seed=seed,
            trained=train_encoders.value,
            store=store,
            config=given({"loss": loss.value, "logit_temperature": temperature}),
            arguments=training_arguments(epochs, batch_size, learning_rate, device),
            details={"structures": ", ".join(path.name for path in structures)},
        )
        figures = run.train(parts, backbone, encoder, resume=resume)
    if not int(os.environ.get("RANK", 0)):
        _report(figures, output)
    if not complete and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise typer.Exit(2)


def _train_residues(
    pairs: Sequence[StructurePair],
    backbone: Backbone,
    encoder: ProteinMPNNEncoder,
    steps: int,
    output: Path,
    seed: int,
    device: str | None,
    resume: bool,
) -> None:
    """Train encoders in place, see `train_encoders`; a language model stays as it is."""
    from .models.configuration_protalign import ProtAlignConfig
    from .models.modeling_protalign import ProtAlignModel
    from .models.modeling_residue_encoder import ResidueEncoderModel
    from .training.protalign_run import processor_of
    from .training.residue_contrast import ResidueTraining, train_encoders

    sizes: dict[str, Any] = {
        "sequence_size": backbone.hidden_size,
        "structure_size": encoder.config.hidden_size,
    }
    model = ProtAlignModel(ProtAlignConfig(**sizes))
    model.attach_backbone(backbone).attach_structure_encoder(encoder)
    model.processor = processor_of(model, backbone)
    train_encoders(
        model,
        pairs,
        [pair.family or pair.id for pair in pairs],
        output / "residues",
        ResidueTraining(steps=steps, seed=seed, device=device),
        sequences=isinstance(backbone.model, ResidueEncoderModel),
        resume=resume,
    )


def _report(figures: dict[str, dict[str, float]], output: Path) -> None:
    """Say the figures of each set."""
    for name, values in figures.items():
        shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown]
        title = {"eval": "validation"}.get(name, name)
        report(f"{title}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(f"{output} holds the model, its card and metrics.json")
