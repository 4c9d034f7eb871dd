"""`plasma-hf train`: heads on pairs of labelled proteins."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import (
    BackboneName,
    BatchSize,
    Device,
    Epochs,
    Identity,
    LearningRate,
    Loss,
    LossName,
    MaxResidues,
    MinResidues,
    Output,
    Preset,
    ProtocolName,
    Recipe,
    RecipeName,
    RemoteCode,
    Resume,
    Store,
    StructureEncoder,
    Structures,
    TrainedName,
    TrainEncoders,
    fail,
    given,
    load_structure_encoder,
    one_line_errors,
    read_pairs,
    report,
    training_arguments,
)
from .embed import load_backbone_for as load_backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..io.structures import StructurePair
    from ..models.modeling_backbone import Backbone
    from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
    from ..training.encoder import EncoderSources, EncoderTraining


# torch and transformers are imported where they are needed: `--help` has no use for them.


train_app = typer.Typer(
    no_args_is_help=True, help="Train models.", rich_markup_mode=None, add_completion=False
)


class PresetName(StrEnum):
    """The keys of `PRESETS`, as typer takes a choice."""

    improved = "improved"
    published = "published"


class HeadName(StrEnum):
    """Heads that learn, as typer takes a choice."""

    residual = "residual"
    lrl = "lrl"


PLASMA_HELP = """
Train a PLASMA head on a table of proteins with labelled sites, and measure it.

The table is a CSV file with the columns uid, interpro_id (the family), seq_full and label (a JSON
list of 0 and 1, one a residue). Pairs of one family are positive. With --protocol strict, sets
share no protein and no sequence cluster, and negative pairs have the lengths of positive ones;
upstream is the published way.

The folder --output then holds the head, which loads with its backbone, a card with the figures of
the run, metrics.json, the embeddings and the checkpoints. A run that was stopped goes on with
--resume, and ends in the same weights.

A row that cannot be used is reported on standard error, the rest is used, and the exit code is 2.
It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf train plasma --sites active_site.csv --output active_site
  plasma-hf train plasma --sites active_site.csv --preset published \\
      --protocol upstream --seed 42 --output published
  plasma-hf train plasma --sites active_site.csv --fraction 0.1 --output tenth
  plasma-hf train plasma --sites active_site.csv --output active_site --resume

\b
With a language model, which is downloaded first:
  plasma-hf train plasma --sites active_site.csv \\
      --backbone facebook/esm2_t33_650M_UR50D --output esm2

\b
On two GPUs:
  torchrun --nproc-per-node 2 --no-python plasma-hf train plasma \\
      --sites active_site.csv --output active_site
"""


@train_app.callback()
def train() -> None:
    """Train models."""


@train_app.command("plasma", help=PLASMA_HELP)
def plasma(
    sites: Annotated[Path, typer.Option(help="CSV table of proteins with labelled sites.")],
    output: Output,
    backbone: BackboneName = "default",
    recipe: Recipe = None,
    preset: Annotated[PresetName, typer.Option(help="Recipe of training.")] = PresetName.improved,
    protocol: Annotated[
        ProtocolName, typer.Option(help="How proteins are split into sets.")
    ] = ProtocolName.strict,
    seed: Annotated[int, typer.Option(help="Of splits, weights and order.")] = 1,
    pairs: Annotated[
        int | None, typer.Option(min=4, help="Pairs in all, of which most are trained on.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=1, help="Longest protein to use, in residues.")
    ] = 1024,
    fraction: Annotated[float, typer.Option(help="Share of the training pairs to use.")] = 1.0,
    epochs: Epochs = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs of a batch.")] = None,
    learning_rate: LearningRate = None,
    head: Annotated[HeadName | None, typer.Option(help="Form of the head.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Inner width of the head.")] = None,
    kernel_scale: Annotated[float | None, typer.Option(help="What multiplies the cost.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of Sinkhorn.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Plan weight above which residues match.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=0, help="Length of the stretch that is scored.")
    ] = None,
    store: Store = None,
    device: Device = None,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train a head; see `PLASMA_HELP`."""
    head_fields = {
        "head": head and head.value,
        "head_size": width,
        "kernel_scale": kernel_scale,
        "n_iters": iterations,
        "threshold": threshold,
        "diagonal_window": window,
    }
    with one_line_errors():
        from ..data.pairs import read_site_table
        from ..data.splits import make_splits
        from ..training.run import PlasmaRun

        proteins, bad = read_site_table(sites)
        for row in bad:
            report(f"{sites}: row {row.row} ({row.uid or 'no uid'}): {row.reason}")
        splits = make_splits(
            proteins, protocol=protocol.value, seed=seed, pairs=pairs, max_length=max_length
        )
        embedder = load_backbone("--backbone", backbone, recipe, device, trust_remote_code)
        run = PlasmaRun(
            output,
            preset=preset.value,
            seed=seed,
            fraction=fraction,
            store=store,
            config=given(head_fields),
            arguments=training_arguments(epochs, batch_size, learning_rate, device),
            details={"name": f"PLASMA head, {sites.stem}", "sites": sites.name},
        )
        figures = run.train(splits, embedder, resume=resume)
    _report(figures, output)
    if bad and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise typer.Exit(2)


def _report(figures: dict[str, dict[str, float]], output: Path) -> None:
    """Say the figures of each set, in the first process alone."""
    if int(os.environ.get("RANK", 0)):
        return
    for name, values in figures.items():
        shown = ("roc_auc", "average_precision", "f1_max", "label_match_score")
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown if metric in values]
        report(f"{name}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(f"{output} holds the head, its card and metrics.json")


# --- `plasma-hf train encoder`: a residue encoder that starts from the substitution windows.


# torch and transformers are imported where they are needed: `--help` has no use for them.


TRAIN_ENCODER_HELP = """
Train a residue encoder: a small network that corrects the substitution windows.

It learns from pairs of proteins whose residues correspond: families aligned by Pfam, alignments of
pairs, and proteins with sites, where the confident columns of a BLOSUM62 alignment and the sites
themselves say what corresponds. Proteins of different families teach it what does not. The folder
then serves as a backbone, in Python by load_backbone and here by --backbone.

A run that was stopped goes on with --resume, and ends in the same weights.

\b
Examples:
  plasma-hf train encoder --alignments pfam/ --sites active_site.csv \\
      --output encoder --steps 2000
  plasma-hf train encoder --alignments pfam/ --sites active_site.csv \\
      --exclude-uids test.txt --output encoder --resume
  plasma-hf train encoder --alignments pfam/ --sites active_site.csv \\
      --sequences pretrain.fasta.gz --masked-weight 0.3 --output encoder
"""


def train_encoder(
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder of the encoder.")],
    alignments: Annotated[
        list[Path] | None,
        typer.Option(
            "--alignments", "--pfam", help="Aligned FASTA, JSON of pairs, or a folder of them."
        ),
    ] = None,
    sites: Annotated[
        list[Path] | None, typer.Option(help="Table of proteins with sites; can be repeated.")
    ] = None,
    sequences: Annotated[
        list[Path] | None, typer.Option(help="Sequences for masked residues; can be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 2000,
    pairs_per_batch: Annotated[int, typer.Option(min=1, help="Pairs in a batch.")] = 8,
    max_residues: Annotated[int, typer.Option(min=20, help="Crop longer proteins.")] = 200,
    width: Annotated[int, typer.Option(min=2, help="Channels of the network.")] = 128,
    dilations: Annotated[
        str, typer.Option(help="Dilation of each block of the network, by commas.")
    ] = "1,2,4,8",
    learning_rate: Annotated[float, typer.Option(min=0, help="At its highest.")] = 1.5e-3,
    correspondence_weight: Annotated[
        float, typer.Option(min=0, help="Corresponding residues choose each other.")
    ] = 1.0,
    unrelated_weight: Annotated[
        float, typer.Option(min=0, help="Residues of unrelated proteins choose none.")
    ] = 0.5,
    plan_weight: Annotated[
        float, typer.Option(min=0, help="The plan has its mass on corresponding residues.")
    ] = 0.0,
    site_weight: Annotated[
        float, typer.Option(min=0, help="Residues of a site find the site of a relative.")
    ] = 0.0,
    masked_weight: Annotated[
        float, typer.Option(min=0, help="Masked residues of --sequences are guessed.")
    ] = 0.0,
    kept: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share kept of what was learnt; 0 leaves the windows."),
    ] = 0.4,
    exclude_uids: Annotated[
        Path | None,
        typer.Option(help="File of proteins not to learn from, nor from those like them."),
    ] = None,
    exclude_families: Annotated[
        Path | None, typer.Option(help="File of families not to learn from, likewise.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on at the last checkpoint, if there is one.")
    ] = False,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of first weights and draws.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu to stay off a GPU; a GPU if there is one.")
    ] = None,
) -> None:
    """Train a residue encoder; see `TRAIN_ENCODER_HELP`."""
    with one_line_errors():
        if not alignments and not sites:
            fail("there is nothing to learn from; give --alignments, --sites or both")
        if masked_weight and not sequences:
            fail("--masked-weight needs --sequences")
        if device not in (None, "cpu", "cuda"):
            fail(f"--device {device}; give cpu or cuda, or nothing for a GPU if there is one")

        from ..training.encoder import EncoderTraining, ObjectiveWeights

        blocks = _numbers(dilations)
        sources, complete = _read(alignments, sites, sequences, exclude_uids, exclude_families)
        weights = ObjectiveWeights(
            correspondence=correspondence_weight,
            unrelated=unrelated_weight,
            plan=plan_weight,
            site=site_weight,
            masked=masked_weight,
        )
        settings = EncoderTraining(
            steps=steps,
            pairs_per_batch=pairs_per_batch,
            max_residues=max_residues,
            learning_rate=learning_rate,
            save_steps=save_steps,
            weights=weights,
            seed=seed,
            device=device,
            kept=kept,
        )
        _train(sources, output, settings, width, blocks, resume)
    if not complete:
        raise typer.Exit(2)


def _read(
    alignments: list[Path] | None,
    sites: list[Path] | None,
    sequences: list[Path] | None,
    exclude_uids: Path | None,
    exclude_families: Path | None,
) -> tuple[EncoderSources, bool]:
    """Read what can be read, report the rest, and say whether it was everything."""
    from ..io.sequences import BadRecord
    from ..training.encoder import read_names, read_sources

    bad: list[BadRecord] = []
    sources = read_sources(
        alignments or (),
        sites or (),
        sequences or (),
        exclude_uids=read_names(exclude_uids) if exclude_uids else (),
        exclude_families=read_names(exclude_families) if exclude_families else (),
        bad=bad,
    )
    for record in bad:
        report(f"{record.id}: {record.reason}")
    report(", ".join(f"{count} {what}" for what, count in sources.describe().items() if count))
    return sources, not bad


def _train(
    sources: EncoderSources,
    output: Path,
    settings: EncoderTraining,
    width: int,
    dilations: list[int],
    resume: bool,
) -> None:
    """Train, and write beside the encoder what it was trained with."""
    from dataclasses import asdict

    from transformers.utils import logging

    from ..models.modeling_substitution import ResidueEncoderConfig
    from ..training.encoder import train_residue_encoder

    logging.set_verbosity_error()
    config = ResidueEncoderConfig(width=width, dilations=dilations)
    encoder = train_residue_encoder(sources, output, settings, config, resume=resume)
    record = {"settings": asdict(settings), "data": sources.describe()}
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    report(f"{encoder.num_parameters()} parameters, {settings.steps} steps; wrote {output}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        fail(f"--dilations {text}; give whole numbers by commas, for example 1,2,4,8")


# --- `plasma-hf train protalign`: sequences and structures of proteins into one space.


# torch and transformers are imported where they are needed: `--help` has no use for them.


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
        from ..training.run import ProtAlignRun
        from ..training.structure_data import split_pairs

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
        _report_protalign(figures, output)
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
    from ..models.configuration_protalign import ProtAlignConfig
    from ..models.modeling_protalign import ProtAlignModel
    from ..models.modeling_substitution import ResidueEncoderModel
    from ..training.residue_contrast import ResidueTraining, train_encoders
    from ..training.run import processor_of

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


def _report_protalign(figures: dict[str, dict[str, float]], output: Path) -> None:
    """Say the figures of each set."""
    for name, values in figures.items():
        shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown]
        title = {"eval": "validation"}.get(name, name)
        report(f"{title}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(f"{output} holds the model, its card and metrics.json")
