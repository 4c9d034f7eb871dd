"""`plasma-hf train`: PLASMA heads on pairs of labelled proteins, and ProtAlign on structures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .common import (
    Device,
    Identity,
    MaxResidues,
    MinResidues,
    Recipe,
    RemoteCode,
    Structures,
    compilation_announced,
    load_structure_encoder,
    one_line_errors,
    read_pairs,
    read_settings,
    report,
)
from .embed import load_embedder

if TYPE_CHECKING:
    from ..io.structures import StructurePair
    from ..models.modeling_backbone import Backbone
    from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
    from ..training.residue_contrast import ResidueTraining

train_app = typer.Typer(
    no_args_is_help=True, help="Train models.", rich_markup_mode=None, add_completion=False
)

Output = Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder to write.")]
BackboneName = Annotated[
    str, typer.Option(help="Folder or Hub id of a backbone; default is the bundled one.")
]
Preset = Annotated[Literal["improved", "published"], typer.Option(help="Training settings.")]
Epochs = Annotated[float | None, typer.Option(min=0, help="Times to go through the pairs at most.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Field of the model's configuration or of transformers' TrainingArguments, in place "
        "of the preset's; can be repeated.",
    ),
]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the embeddings; in --output by default.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
]

PLASMA_HELP = """
Train a PLASMA head on a table of proteins with labelled sites, and measure it.

The table is a CSV file with the columns uid, interpro_id (the family), seq_full and label (a JSON
list of 0 and 1, one per residue). Pairs of one family are positive. With --protocol strict, sets
share no protein and no sequence cluster, and negative pairs have the lengths of positive ones;
upstream is the published way.

The folder --output then holds the head, which loads with its backbone, a card with the metrics of
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
  plasma-hf train plasma --sites active_site.csv --output other \\
      --set head=lrl --set learning_rate=1e-3
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


@train_app.command("plasma", help=PLASMA_HELP)
def train_plasma(
    sites: Annotated[Path, typer.Option(help="CSV table of proteins with labelled sites.")],
    output: Output,
    backbone: BackboneName = "default",
    recipe: Recipe = None,
    preset: Preset = "improved",
    protocol: Annotated[
        Literal["strict", "upstream"], typer.Option(help="How proteins are split into sets.")
    ] = "strict",
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
    width: Annotated[int | None, typer.Option(min=1, help="Inner width of the head.")] = None,
    kernel_scale: Annotated[float | None, typer.Option(help="What multiplies the cost.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of Sinkhorn.")] = None,
    settings: Settings = None,
    store: Store = None,
    device: Device = None,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train a head; see `PLASMA_HELP`."""
    with one_line_errors() as skipped, compilation_announced():
        from ..data.sites import read_site_table
        from ..data.splits import make_splits
        from ..models.configuration_plasma import PlasmaConfig
        from ..training import PlasmaRun

        config, arguments = read_settings(
            settings or [],
            PlasmaConfig,
            device,
            head_size=width,
            kernel_scale=kernel_scale,
            n_iters=iterations,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
        )
        proteins, bad = read_site_table(sites)
        for row in bad:
            skipped.report(f"{sites}: row {row.row} ({row.uid or 'no uid'}): {row.reason}")
        splits = make_splits(
            proteins, protocol=protocol, seed=seed, pairs=pairs, max_length=max_length
        )
        run = PlasmaRun(
            output,
            preset=preset,
            seed=seed,
            fraction=fraction,
            store=store,
            config=config,
            arguments=arguments,
            details={"name": f"PLASMA head, {sites.stem}", "sites": sites.name},
        )
        under = load_backbone_for(backbone, recipe, device, trust_remote_code)
        metrics = run.train(splits, under, resume=resume)
        shown = ("roc_auc", "average_precision", "f1_max", "label_match_score")
        _report(metrics, shown, f"{output} holds the head, its card and metrics.json")


def load_backbone_for(
    name: str, recipe: str | None, device: str | None, trust_remote_code: bool
) -> Backbone:
    """Load a backbone to train on; "default" is that of the bundled model."""
    named = None if name == "default" else name
    return load_embedder(None, named, recipe, None, device, trust_remote_code)[0]


def _report(metrics: dict[str, dict[str, float]], shown: Sequence[str], result: str) -> None:
    """Say the metrics of each set, in the first process alone."""
    if int(os.environ.get("RANK", 0)):
        return
    for name, values in metrics.items():
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown if metric in values]
        title = {"eval": "validation"}.get(name, name)
        report(f"{title}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(result)


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

The folder --output then holds the model with its encoders, a card with the metrics of the run,
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


@train_app.command("protalign", help=TRAIN_PROTALIGN_HELP)
def train_protalign(
    structures: Structures,
    output: Output,
    sequence_backbone: BackboneName = "default",
    recipe: Recipe = None,
    structure_encoder: Annotated[
        str, typer.Option(help="ProteinMPNN .pt, folder of a saved encoder or model, or new.")
    ] = "new",
    residue_steps: Annotated[
        int, typer.Option(min=0, help="Batches in which residues find each other, before all else.")
    ] = 0,
    train_encoders: Annotated[
        Literal["none", "structure", "all", "lora"], typer.Option(help="Which encoders train.")
    ] = "none",
    preset: Preset = "improved",
    loss: Annotated[Literal["clip", "siglip"], typer.Option(help="Contrastive loss.")] = "clip",
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
    identity: Identity = None,
    min_residues: MinResidues = 20,
    max_residues: MaxResidues = 1024,
    epochs: Epochs = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Pairs that are compared with each other, per process."),
    ] = None,
    settings: Settings = None,
    store: Store = None,
    device: Device = None,
    resume: Resume = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train ProtAlign; see `TRAIN_PROTALIGN_HELP`."""
    with one_line_errors() as skipped:
        from ..models.configuration_protalign import ProtAlignConfig
        from ..training import ProtAlignRun, split_pairs
        from ..training.residue_contrast import ResidueTraining

        config, arguments = read_settings(
            settings or [],
            ProtAlignConfig,
            device,
            loss=loss,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
        )
        pairs = read_pairs(structures, min_residues, max_residues, skipped)
        parts = split_pairs(pairs, seed, identity=identity)
        backbone = load_backbone_for(sequence_backbone, recipe, device, trust_remote_code)
        encoder = load_structure_encoder(structure_encoder, seed, device)
        if residue_steps:
            training = ResidueTraining(steps=residue_steps, seed=seed, device=device)
            _train_residues(parts.train, backbone, encoder, output, training, resume)
        elif structure_encoder == "new" and train_encoders in ("none", "lora"):
            report("the structure encoder is new and does not train: it gives random features")
        run = ProtAlignRun(
            output,
            preset=preset,
            seed=seed,
            trained=train_encoders,
            store=store,
            config=config,
            arguments=arguments,
            details={"structures": ", ".join(path.name for path in structures)},
        )
        metrics = run.train(parts, backbone, encoder, resume=resume)
        shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
        _report(metrics, shown, f"{output} holds the model, its card and metrics.json")


def _train_residues(
    pairs: Sequence[StructurePair],
    backbone: Backbone,
    encoder: ProteinMPNNEncoder,
    output: Path,
    settings: ResidueTraining,
    resume: bool,
) -> None:
    """Train encoders in place, see `train_encoders`; a language model stays as it is."""
    from ..models.configuration_protalign import ProtAlignConfig
    from ..models.modeling_protalign import ProtAlignModel
    from ..models.modeling_substitution import ResidueEncoderModel
    from ..training.residue_contrast import train_encoders
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
        settings,
        sequences=isinstance(backbone.model, ResidueEncoderModel),
        resume=resume,
    )
