"""What `train protalign` and `evaluate protalign` share: options, structures, encoders."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_errors import fail, report

if TYPE_CHECKING:
    from .data.structure_rows import StructurePair
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
