"""What the shell says of bad input: one line on standard error, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from ..io.structures import StructurePair
    from ..models.modeling_protein_mpnn import ProteinMPNNEncoder


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the library says of bad input into one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough; typer ends quietly
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        fail(str(error))


def report(message: str) -> None:
    """Say something in one line on standard error."""
    typer.echo(f"plasma-hf: {' '.join(message.split())}", err=True)


def fail(message: str) -> NoReturn:
    """Say what is wrong and end with exit code 2."""
    report(message)
    raise typer.Exit(2)


# --- A group of commands in the shell, one of which may be left unnamed.


class EvaluateGroup(TyperGroup):
    """Take `plasma-hf evaluate --sites ...` as `plasma-hf evaluate plasma --sites ...`."""

    default_command = "plasma"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before options that name none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


# --- Options that several commands take, each with one name and one help text.


class ProtocolName(StrEnum):
    """Ways to split proteins into sets, as typer takes a choice."""

    strict = "strict"
    upstream = "upstream"


def _usable(device: str | None) -> str | None:
    """Refuse a device that this machine does not have, before anything is read."""
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):  # as torch was built
            count = torch.cuda.device_count()
            there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
            fail(f"--device {device} is not there; this machine and its torch have {there}")
    return device


Output = Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder to write.")]
BackboneName = Annotated[
    str, typer.Option(help="Folder or Hub id of a backbone; default is the bundled one.")
]
Recipe = Annotated[
    str | None, typer.Option(help="How sequences are written for the backbone: native or upstream.")
]
Revision = Annotated[
    str | None, typer.Option(help="Commit, branch or tag of the model on the Hub.")
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")
]
Device = Annotated[
    str | None,
    typer.Option(callback=_usable, help="cpu, cuda, cuda:1, ...; a GPU if there is one."),
]
Residues = Annotated[int, typer.Option(min=1, help="Residues embedded at once, padding included.")]
Epochs = Annotated[float | None, typer.Option(min=0, help="Times to go through the pairs at most.")]
LearningRate = Annotated[float | None, typer.Option(help="Of the optimiser, at its highest.")]
Store = Annotated[
    Path | None, typer.Option(help="Folder of the embeddings; in --output by default.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint in --output.")
]


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


# --- What `train protalign` and `evaluate protalign` share: options, structures, encoders.


# torch and transformers are imported where they are needed: `--help` has no use for them.


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


Structures = Annotated[
    list[Path], typer.Option(help="Folder or file of structures; can be repeated.")
]
StructureEncoder = Annotated[
    str, typer.Option(help="ProteinMPNN .pt, folder of a saved encoder or model, or new.")
]
TrainEncoders = Annotated[TrainedName, typer.Option(help="Which encoders train.")]
Preset = Annotated[RecipeName, typer.Option(help="Recipe of training.")]
Loss = Annotated[LossName, typer.Option(help="Contrastive loss.")]
Identity = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Identity from which on sequences are in one cluster."),
]
MinResidues = Annotated[int, typer.Option(min=1, help="Shortest chain to use.")]
MaxResidues = Annotated[int, typer.Option(min=1, help="Longest chain to use.")]
BatchSize = Annotated[
    int | None, typer.Option(min=2, help="Pairs that are compared with each other, a process.")
]


def read_pairs(
    paths: list[Path], min_residues: int, max_residues: int
) -> tuple[list[StructurePair], bool]:
    """Read all that can be used, report the rest, and say whether it was everything."""
    from ..io.sequences import BadRecord

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
    from ..io.structures import pair_of, read_structure_folder, row_to_pair

    if path.suffix != ".parquet":
        return (pair_of(structure) for structure in read_structure_folder(path, bad.append))
    try:
        from datasets import Dataset
    except ImportError as error:
        raise ImportError("reading Parquet needs datasets; pip install datasets") from error
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    rows: Any = Dataset.from_parquet(str(path))
    return map(row_to_pair, rows)


def load_structure_encoder(name: str, seed: int, device: str | None) -> ProteinMPNNEncoder:
    """Load a structure encoder from a checkpoint or a folder, or make a new one."""
    import json

    import torch

    from ..models.modeling_protalign import ProtAlignModel
    from ..models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder

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
