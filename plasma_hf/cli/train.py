"""`plasma-hf train`: PLASMA heads on pairs of labelled proteins, and ProtAlign on structures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from . import common
from .common import Embedding, Skipped, group, load_embedder, report, verb

train_app = group("Train models.")


@dataclass(frozen=True)
class Training:
    """Options of every training."""

    output: Annotated[Path, Option("--output", "--out", "-o", help="Folder to write.")]
    backbone: Annotated[
        str | None,
        Option("--backbone", "--sequence-backbone", help="Backbone of sequences, as elsewhere."),
    ] = None
    input_format: common.InputFormat = None
    preset: Annotated[Literal["improved", "published"], Option(help="Training settings.")] = (
        "improved"
    )
    epochs: Annotated[
        float | None, Option(min=0, help="Times to go through the pairs at most.")
    ] = None
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="FIELD=VALUE", help="A field of model or TrainingArguments."),
    ] = None
    store: Annotated[
        Path | None, Option(help="Folder of the embeddings; in --output by default.")
    ] = None
    device: common.Device = None
    resume: Annotated[
        bool, Option("--resume", help="Go on from the last checkpoint in --output.")
    ] = False
    trust_remote_code: common.RemoteCode = False
    config_file: common.Config = None

    def of(self, config_class: type, **named: Any) -> dict[str, Any]:
        """Return what a run of training takes, with the fields that other options name."""
        config, arguments = common.read_settings(
            self.settings or [], config_class, self.device, num_train_epochs=self.epochs, **named
        )
        run = {"folder": self.output, "preset": self.preset, "store": self.store}
        return run | {"config": config, "arguments": arguments}

    def load_backbone(self) -> Any:
        """Load what embeds sequences."""
        where = self.device, self.trust_remote_code
        return load_embedder(Embedding(None, None, *where, self.backbone, self.input_format))[0]


WRITTEN = """\
The folder --output then holds a model that loads with its encoders, a card with the metrics of the
run, metrics.json, the embeddings and the checkpoints. A run that was stopped goes on with --resume,
and ends in the same weights."""


@train_app.command("plasma")
@verb(written=WRITTEN)
def train_plasma(
    skipped: Skipped,
    sites: Annotated[Path, Option(help="CSV table of proteins with labelled sites.")],
    *,
    training: Training,
    protocol: Annotated[Literal["strict", "upstream"], Option(help="How to split.")] = "strict",
    seed: Annotated[int, Option(help="Of splits, weights and order.")] = 1,
    pairs: Annotated[int | None, Option(min=4, help="Pairs in all, most of them to train.")] = None,
    max_length: Annotated[int, Option(min=1, help="Longest protein to use, in residues.")] = 1024,
    fraction: Annotated[float, Option(help="Share of the training pairs to use.")] = 1.0,
    batch_size: Annotated[int | None, Option(min=1, help="Pairs of a batch.")] = None,
) -> None:
    r"""Train a PLASMA head on a table of proteins with labelled sites, and measure it.

    The table is a CSV file with the columns uid, interpro_id (the family), seq_full and label (a
    JSON list of 0 and 1, one per residue). Pairs of one family are positive. With --protocol
    strict, sets share no protein and no sequence cluster, and negative pairs have the lengths of
    positive ones; upstream is the published way.

    --set gives any field of PlasmaConfig or of transformers' TrainingArguments; it can be repeated.

    {written}

    Examples:
      plasma-hf train plasma --sites active_site.csv --output active_site
      plasma-hf train plasma --sites active_site.csv --preset published \
          --protocol upstream --seed 42 --output published
      plasma-hf train plasma --sites active_site.csv --output other \
          --set head=lrl --set learning_rate=1e-3

    With a language model, which is downloaded at first use (docs/backbones.md lists all):
      plasma-hf train plasma --sites active_site.csv --backbone esm2-650m --output esm2

    On two GPUs:
      torchrun --nproc-per-node 2 --no-python plasma-hf train plasma \
          --sites active_site.csv --output active_site
    """
    from ..data.sites import read_site_table
    from ..data.splits import make_splits
    from ..models.configuration_plasma import PlasmaConfig
    from ..training import PlasmaRun

    options = training.of(PlasmaConfig, per_device_train_batch_size=batch_size)
    proteins, invalid = read_site_table(sites)
    for row in invalid:
        skipped.report(f"{sites}: row {row.row} ({row.uid or 'no uid'}): {row.reason}")
    splits = make_splits(proteins, protocol=protocol, seed=seed, pairs=pairs, max_length=max_length)
    details = {"name": f"PLASMA head, {sites.stem}", "sites": sites.name}
    run = PlasmaRun(**options, seed=seed, fraction=fraction, details=details)
    metrics = run.train(splits, training.load_backbone(), resume=training.resume)
    shown = ("roc_auc", "average_precision", "f1_max", "label_match_score")
    _report(metrics, shown, f"{training.output} holds the head, its card and metrics.json")


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


@train_app.command("protalign")
@verb(written=WRITTEN)
def train_protalign(
    skipped: Skipped,
    structures: common.Structures,
    *,
    training: Training,
    structure_encoder: Annotated[
        str, Option(help="ProteinMPNN .pt, folder of a saved encoder or model, or new.")
    ] = "new",
    residue_steps: Annotated[int, Option(min=0, help="Batches of training by residues first.")] = 0,
    train_encoders: Annotated[
        Literal["none", "structure", "all", "lora"], Option(help="Which encoders train.")
    ] = "none",
    loss: Annotated[Literal["clip", "siglip"], Option(help="Contrastive loss.")] = "clip",
    seed: Annotated[int, Option(min=0, help="Of split, weights and order.")] = 0,
    identity: common.Identity = None,
    min_residues: common.MinResidues = 20,
    max_residues: common.MaxResidues = 1024,
    batch_size: Annotated[int | None, Option(min=2, help="Pairs of a batch, per process.")] = None,
) -> None:
    r"""Train ProtAlign on structures and their own sequences, and measure it.

    --structures is a folder of PDB and mmCIF files, a file of them, a list of chains (.jsonl, also
    .gz), or a Parquet file of sequences and structures. Training, validation and test share no
    sequence cluster; of chains with equal sequences one is used.

    --residue-steps trains the structure encoder first, and with it the bundled sequence encoder:
    the residues of a chain's sequence and those of its structure find each other. It pays where no
    published weights of ProteinMPNN are given.

    With --train-encoders none, embeddings are computed once and two attention pools train on them.
    structure trains the structure encoder along, all both encoders, lora the sequence encoder by
    small matrices beside its weights. --set gives any field of ProtAlignConfig or
    TrainingArguments.

    {written}

    Examples:
      plasma-hf train protalign --structures pdb/ --residue-steps 1600 --output protalign
      plasma-hf train protalign --structures pdb/ --train-encoders structure --output protalign
      plasma-hf train protalign --structures chains.jsonl.gz --loss siglip --seed 3 --output siglip

    With a language model, which is downloaded at first use, and the published weights of
    ProteinMPNN:
      plasma-hf train protalign --structures pdbbind.parquet --preset published \
          --sequence-backbone esm2-650m \
          --structure-encoder v_48_020.pt --output published

    On two GPUs:
      torchrun --nproc-per-node 2 --no-python plasma-hf train protalign \
          --structures pdb/ --output protalign
    """
    from ..models.configuration_protalign import ProtAlignConfig
    from ..training import ProtAlignRun, split_pairs

    options = training.of(ProtAlignConfig, loss=loss, per_device_train_batch_size=batch_size)
    pairs = common.read_pairs(structures, min_residues, max_residues, skipped)
    parts = split_pairs(pairs, seed, identity=identity)
    backbone = training.load_backbone()
    encoder = common.load_structure_encoder(structure_encoder, seed, training.device)
    untrained = structure_encoder == "new" and train_encoders in ("none", "lora")
    if untrained and not residue_steps:
        report("the structure encoder is new and does not train: it gives random features")
    run = ProtAlignRun(
        **options,
        seed=seed,
        trained=train_encoders,
        residue_steps=residue_steps,
        details={"structures": ", ".join(path.name for path in structures)},
    )
    metrics = run.train(parts, backbone, encoder, resume=training.resume)
    shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
    _report(metrics, shown, f"{training.output} holds the model, its card and metrics.json")
