"""`plasma-hf train protalign`: sequences and structures of proteins into one space."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_errors import fail, one_line_errors, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .data.structure_rows import StructurePair
    from .models.backbone import Backbone
    from .models.modeling_protein_mpnn import ProteinMPNNEncoder


class RecipeName(StrEnum):
    """The keys of `PROTALIGN_PRESETS`, as typer takes a choice."""

    improved = "improved"
    published = "published"


class LossName(StrEnum):
    """Contrastive losses, as typer takes a choice."""

    clip = "clip"
    siglip = "siglip"


class TrainedName(StrEnum):
    """Which encoders train, as typer takes a choice."""

    none = "none"
    structure = "structure"
    all = "all"
    lora = "lora"


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
    structures: Annotated[
        list[Path], typer.Option(help="Folder or file of structures; can be repeated.")
    ],
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder to write.")],
    sequence_backbone: Annotated[
        str, typer.Option(help="Folder or Hub id of a backbone; default is the bundled one.")
    ] = "default",
    recipe: Annotated[
        str | None,
        typer.Option(help="How sequences are written for the backbone: native or upstream."),
    ] = None,
    structure_encoder: Annotated[
        str, typer.Option(help="ProteinMPNN .pt, folder of a saved encoder or model, or new.")
    ] = "new",
    residue_steps: Annotated[
        int, typer.Option(min=0, help="Batches in which residues find each other, before all else.")
    ] = 0,
    train_encoders: Annotated[
        TrainedName, typer.Option(help="Which encoders train.")
    ] = TrainedName.none,
    preset: Annotated[RecipeName, typer.Option(help="Recipe of training.")] = RecipeName.improved,
    loss: Annotated[LossName, typer.Option(help="Contrastive loss.")] = LossName.clip,
    temperature: Annotated[
        float | None, typer.Option(help="What cosines are divided by, at first if it is learnt.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of split, weights and order.")] = 0,
    identity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Identity from which on sequences are in one cluster."),
    ] = None,
    min_residues: Annotated[int, typer.Option(min=1, help="Shortest chain to use.")] = 20,
    max_residues: Annotated[int, typer.Option(min=1, help="Longest chain to use.")] = 1024,
    epochs: Annotated[float | None, typer.Option(min=0, help="Times to go through.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Pairs that are compared with each other, a process.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of the embeddings; in --output by default.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the backbone brings.")
    ] = False,
) -> None:
    """Train ProtAlign; see `TRAIN_PROTALIGN_HELP`."""
    with one_line_errors():
        from .training.protalign_parts import split_pairs
        from .training.protalign_run import ProtAlignRun

        pairs, complete = read_pairs(structures, min_residues, max_residues)
        parts = split_pairs(pairs, seed, identity=identity)
        backbone = load_sequence_backbone(sequence_backbone, recipe, device, trust_remote_code)
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


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in options.items() if value is not None}


def training_arguments(
    epochs: float | None, batch_size: int | None, learning_rate: float | None, device: str | None
) -> dict[str, Any]:
    """Name options as `TrainingArguments` does."""
    return given(
        {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "use_cpu": True if device == "cpu" else None,
        }
    )


def read_pairs(
    paths: list[Path], min_residues: int, max_residues: int
) -> tuple[list[StructurePair], bool]:
    """Read all that can be used, report the rest, and say whether it was everything."""
    from .data.sequences import BadRecord

    bad: list[BadRecord] = []
    pairs: list[StructurePair] = []
    unfit = 0
    for path in paths:
        for pair in _read(path, bad):
            if not pair.structure.residue_mask.any():
                bad.append(BadRecord(pair.id, "no residue has all of N, CA, C and O"))
            elif min_residues <= len(pair.sequence) <= max_residues:
                pairs.append(pair)
            else:
                unfit += 1
    for record in bad:
        report(f"{record.id}: {record.reason}")
    if unfit:
        report(
            f"{unfit} chains have fewer than {min_residues} or more than {max_residues} residues "
            "and are left out (--min-residues, --max-residues)"
        )
    return pairs, not bad


def _read(path: Path, bad: list[Any]) -> Any:
    from .data.structure_rows import pair_of, read_structure_folder, row_to_pair

    if path.suffix != ".parquet":
        return (pair_of(structure) for structure in read_structure_folder(path, bad))
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ImportError("reading Parquet needs datasets; pip install datasets") from error
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    rows: Any = Dataset.from_parquet(str(path))
    return map(row_to_pair, rows)


def load_sequence_backbone(
    name: str, recipe: str | None, device: str | None, trust_remote_code: bool
) -> Backbone:
    """Load a backbone by name; "default" is that of the bundled model."""
    from .cli_embed import load_embedder
    from .models.backbone import Backbone

    named = None if name == "default" else name
    embedder, _ = load_embedder(None, named, recipe, None, device, trust_remote_code)
    if not isinstance(embedder, Backbone):
        fail(f"--sequence-backbone {name} is no backbone that a head can stand on")
    return embedder


def load_structure_encoder(name: str, seed: int, device: str | None) -> ProteinMPNNEncoder:
    """Load a structure encoder from a checkpoint or a folder, or make a new one."""
    import json

    import torch

    from .models.configuration_protein_mpnn import ProteinMPNNConfig
    from .models.modeling_protalign import ProtAlignModel
    from .models.modeling_protein_mpnn import ProteinMPNNEncoder

    path = Path(name)
    config = path / "config.json"
    if name == "new":
        torch.manual_seed(seed)
        encoder = ProteinMPNNEncoder(ProteinMPNNConfig()).eval()
    elif path.is_file():
        encoder = ProteinMPNNEncoder.from_upstream(path)
    elif not config.is_file():
        fail(
            f"--structure-encoder {name} is neither a ProteinMPNN checkpoint (.pt), nor a folder "
            "with a saved encoder or ProtAlign model, nor new"
        )
    elif json.loads(config.read_text()).get("model_type") == "protalign":
        encoder = ProtAlignModel.from_pretrained(path, load_backbone=False).structure_encoder
        if encoder is None:
            fail(f"the ProtAlign model in {name} was saved without a structure encoder")
    else:
        encoder = ProteinMPNNEncoder.from_pretrained(path)
    given_or_best = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return encoder.to(given_or_best)


def _report(figures: dict[str, dict[str, float]], output: Path) -> None:
    """Say the figures of each set."""
    for name, values in figures.items():
        shown = ("recall_at_1", "recall_at_5", "mrr", "reverse_recall_at_1")
        cells = [f"{metric} {values[metric]:.3f}" for metric in shown]
        title = {"eval": "validation"}.get(name, name)
        report(f"{title}, {int(values['pairs'])} pairs: {', '.join(cells)}")
    report(f"{output} holds the model, its card and metrics.json")
