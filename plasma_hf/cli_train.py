"""`plasma-hf train`: heads on pairs of labelled proteins."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    ProtocolName,
    Recipe,
    RemoteCode,
    Resume,
    Store,
    given,
    training_arguments,
)

if TYPE_CHECKING:
    pass

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
        from .data.pairs import read_site_table
        from .data.splits import make_splits
        from .training.plasma_run import PlasmaRun

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
