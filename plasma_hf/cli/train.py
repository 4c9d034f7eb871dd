"""`plasma-hf train`: PLASMA heads on pairs of labelled proteins, and ProtAlign on structures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from . import common
from .common import EXIT_CODE, Embedding, Skipped, group, load_embedder, report, verb

train_app = group("Train models.")

Output = Annotated[Path, Option("--output", "--out", "-o", help="Folder to write.")]
Preset = Annotated[Literal["improved", "published"], Option(help="Training settings.")]
Epochs = Annotated[float | None, Option(min=0, help="Times to go through the pairs at most.")]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="FIELD=VALUE", help="A field of model or TrainingArguments."),
]
Store = Annotated[Path | None, Option(help="Folder of the embeddings; in --output by default.")]
Resume = Annotated[bool, Option("--resume", help="Go on from the last checkpoint in --output.")]

WRITTEN = f"""
The folder --output then holds a model that loads with its encoders, a card with the metrics of the
run, metrics.json, the embeddings and the checkpoints. A run that was stopped goes on with --resume,
and ends in the same weights.

{EXIT_CODE}
""".strip()

PLASMA_HELP = f"""Train a PLASMA head on a table of proteins with labelled sites, and measure it.

The table is a CSV file with the columns uid, interpro_id (the family), seq_full and label (a JSON
list of 0 and 1, one per residue). Pairs of one family are positive. With --protocol strict, sets
share no protein and no sequence cluster, and negative pairs have the lengths of positive ones;
upstream is the published way.

--set gives any field of PlasmaConfig or of transformers' TrainingArguments; it can be repeated.

{WRITTEN}

\b
Examples:
  plasma-hf train plasma --sites active_site.csv --output active_site
  plasma-hf train plasma --sites active_site.csv --preset published \\
      --protocol upstream --seed 42 --output published
  plasma-hf train plasma --sites active_site.csv --output other \\
      --set head=lrl --set learning_rate=1e-3

\b
With a language model, which is downloaded at first use (docs/backbones.md lists all):
  plasma-hf train plasma --sites active_site.csv --backbone esm2-650m --output esm2

\b
On two GPUs:
  torchrun --nproc-per-node 2 --no-python plasma-hf train plasma \\
      --sites active_site.csv --output active_site"""


@train_app.command("plasma")
@verb(PLASMA_HELP)
def train_plasma(
    skipped: Skipped,
    sites: Annotated[Path, Option(help="CSV table of proteins with labelled sites.")],
    output: Output,
    backbone: common.BackboneName = None,
    input_format: common.InputFormat = None,
    preset: Preset = "improved",
    protocol: Annotated[Literal["strict", "upstream"], Option(help="How to split.")] = "strict",
    seed: Annotated[int, Option(help="Of splits, weights and order.")] = 1,
    pairs: Annotated[int | None, Option(min=4, help="Pairs in all, most of them to train.")] = None,
    max_length: Annotated[int, Option(min=1, help="Longest protein to use, in residues.")] = 1024,
    fraction: Annotated[float, Option(help="Share of the training pairs to use.")] = 1.0,
    epochs: Epochs = None,
    batch_size: Annotated[int | None, Option(min=1, help="Pairs of a batch.")] = None,
    settings: Settings = None,
    store: Store = None,
    device: common.Device = None,
    resume: Resume = False,
    trust_remote_code: common.RemoteCode = False,
    config_file: common.Config = None,
) -> None:
    """Train a head; see `PLASMA_HELP`."""
    from ..data.sites import read_site_table
    from ..data.splits import make_splits
    from ..models.configuration_plasma import PlasmaConfig
    from ..training import PlasmaRun

    config, arguments = common.read_settings(
        settings or [],
        PlasmaConfig,
        device,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
    )
    proteins, invalid = read_site_table(sites)
    for row in invalid:
        skipped.report(f"{sites}: row {row.row} ({row.uid or 'no uid'}): {row.reason}")
    splits = make_splits(proteins, protocol=protocol, seed=seed, pairs=pairs, max_length=max_length)
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
    frozen, _ = load_embedder(
        Embedding(None, None, device, trust_remote_code, backbone, input_format)
    )
    metrics = run.train(splits, frozen, resume=resume)
    shown = ("roc_auc", "average_precision", "f1_max", "label_match_score")
    _report(metrics, shown, f"{output} holds the head, its card and metrics.json")


def _report(metrics: dict[str, dict[str, float]], shown: Sequence[str], result: str) -> None:
    """Say the metrics of each set, in the first process alone."""
    from ..training.distributed import leave_ranks

    leave_ranks()
    if int(os.environ.get("RANK", 0)):
        return
    for name, values in metrics.items():
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown if metric in values]
        title = {"eval": "validation"}.get(name, name)
        report(f"{title}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(result)


TRAIN_PROTALIGN_HELP = f"""Train ProtAlign on structures and their own sequences, and measure it.

--structures is a folder of PDB and mmCIF files, a file of them, a list of chains (.jsonl, also
.gz), or a Parquet file of sequences and structures. Training, validation and test share no
sequence cluster; of chains with equal sequences one is used.

--residue-steps trains the structure encoder first, and with it the bundled sequence encoder: the
residues of a chain's sequence and those of its structure find each other. It pays where no
published weights of ProteinMPNN are given.

With --train-encoders none, embeddings are computed once and two attention pools train on them.
structure trains the structure encoder along, all both encoders, lora the sequence encoder by small
matrices beside its weights. --set gives any field of ProtAlignConfig or TrainingArguments.

{WRITTEN}

\b
Examples:
  plasma-hf train protalign --structures pdb/ --residue-steps 1600 --output protalign
  plasma-hf train protalign --structures pdb/ --train-encoders structure --output protalign
  plasma-hf train protalign --structures chains.jsonl.gz --loss siglip --seed 3 --output siglip

\b
With a language model, which is downloaded at first use, and the published weights of ProteinMPNN:
  plasma-hf train protalign --structures pdbbind.parquet --preset published \\
      --sequence-backbone esm2-650m \\
      --structure-encoder v_48_020.pt --output published

\b
On two GPUs:
  torchrun --nproc-per-node 2 --no-python plasma-hf train protalign \\
      --structures pdb/ --output protalign"""


@train_app.command("protalign")
@verb(TRAIN_PROTALIGN_HELP)
def train_protalign(
    skipped: Skipped,
    structures: common.Structures,
    output: Output,
    sequence_backbone: common.BackboneName = None,
    input_format: common.InputFormat = None,
    structure_encoder: Annotated[
        str, Option(help="ProteinMPNN .pt, folder of a saved encoder or model, or new.")
    ] = "new",
    residue_steps: Annotated[int, Option(min=0, help="Batches of training by residues first.")] = 0,
    train_encoders: Annotated[
        Literal["none", "structure", "all", "lora"], Option(help="Which encoders train.")
    ] = "none",
    preset: Preset = "improved",
    loss: Annotated[Literal["clip", "siglip"], Option(help="Contrastive loss.")] = "clip",
    seed: Annotated[int, Option(min=0, help="Of split, weights and order.")] = 0,
    identity: common.Identity = None,
    min_residues: common.MinResidues = 20,
    max_residues: common.MaxResidues = 1024,
    epochs: Epochs = None,
    batch_size: Annotated[int | None, Option(min=2, help="Pairs of a batch, per process.")] = None,
    settings: Settings = None,
    store: Store = None,
    device: common.Device = None,
    resume: Resume = False,
    trust_remote_code: common.RemoteCode = False,
    config_file: common.Config = None,
) -> None:
    """Train ProtAlign; see `TRAIN_PROTALIGN_HELP`."""
    from ..models.configuration_protalign import ProtAlignConfig
    from ..training import ProtAlignRun, split_pairs

    config, arguments = common.read_settings(
        settings or [],
        ProtAlignConfig,
        device,
        loss=loss,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
    )
    pairs = common.read_pairs(structures, min_residues, max_residues, skipped)
    parts = split_pairs(pairs, seed, identity=identity)
    loading = Embedding(None, None, device, trust_remote_code, sequence_backbone, input_format)
    backbone, _ = load_embedder(loading)
    encoder = common.load_structure_encoder(structure_encoder, seed, device)
    untrained = structure_encoder == "new" and train_encoders in ("none", "lora")
    if untrained and not residue_steps:
        report("the structure encoder is new and does not train: it gives random features")
    run = ProtAlignRun(
        output,
        preset=preset,
        seed=seed,
        trained=train_encoders,
        residue_steps=residue_steps,
        store=store,
        config=config,
        arguments=arguments,
        details={"structures": ", ".join(path.name for path in structures)},
    )
    metrics = run.train(parts, backbone, encoder, resume=resume)
    shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
    _report(metrics, shown, f"{output} holds the model, its card and metrics.json")
