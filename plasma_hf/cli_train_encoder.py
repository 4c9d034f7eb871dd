"""`plasma-hf train encoder`: a residue encoder that starts from the substitution windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_errors import fail, one_line_errors, report

if TYPE_CHECKING:
    from .training.encoder_sources import EncoderSources
    from .training.encoder_trainer import EncoderTraining

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

        from .training.encoder_objective import ObjectiveWeights
        from .training.encoder_trainer import EncoderTraining

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
    from .data.sequences import BadRecord
    from .training.encoder_sources import read_names, read_sources

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

    from .models.configuration_residue_encoder import ResidueEncoderConfig
    from .training.encoder_trainer import train_residue_encoder

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
