"""`plasma-hf embed`: residue embeddings of many proteins, computed once and kept."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Device, Recipe, RemoteCode, Residues, Revision, fail, one_line_errors, report

if TYPE_CHECKING:
    from ..data.store import Embedder
    from ..io.sequences import BadRecord
    from ..models.modeling_backbone import Backbone
    from ..models.modeling_plasma import PlasmaModel
    from ..models.protein import Protein


# torch and transformers are imported where they are needed: `--help` has no use for them.


class DtypeName(StrEnum):
    """Floating point types of a store, as typer takes a choice."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


EMBED_HELP = """
Embed proteins once and keep the result: a store that search and training read from.

Each INPUT is a FASTA, PDB, mmCIF, CSV or TSV file, also .gz, a Parquet or JSON Lines file, or a
folder written by datasets.save_to_disk. The store is a folder. A protein is found in it by its id
or its sequence; equal sequences are kept once, and what is there already is not computed again.

A job that was stopped goes on when the same command is run again. The same command with other
files adds them. A store is of one model and recipe; another is refused.

A record that cannot be used is reported on standard error, the rest is done, and the exit code
is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf embed demo/serine_proteases.fasta --output store
  plasma-hf embed demo/serine_proteases.fasta --output store16 \\
      --dtype float16 --projections
  plasma-hf embed --output store --remove P00766 --remove P00760

\b
With a language model, which is downloaded first:
  plasma-hf embed proteins.csv --id-column accession --sequence-column seq \\
      --backbone facebook/esm2_t33_650M_UR50D --output esm2

\b
On two GPUs, each of which computes its share (bad records are reported, but do not set the exit
code, at which torchrun would stop the other process):
  torchrun --nproc-per-node 2 --no-python plasma-hf embed proteins.fasta \\
      --backbone facebook/esm2_t33_650M_UR50D --output esm2
"""


def embed(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the store, made if need be.")
    ],
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT", help="Files with proteins.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="PLASMA model whose backbone and head to use; the bundled by default."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Folder or Hub id of a backbone, without a head.")
    ] = None,
    recipe: Recipe = None,
    revision: Revision = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="What a new store keeps; float32 by default.")
    ] = None,
    projections: Annotated[
        bool, typer.Option("--projections", help="Keep what the head makes of them as well.")
    ] = False,
    residues_per_batch: Residues = 4096,
    device: Device = None,
    id_column: Annotated[str, typer.Option(help="Column of ids in tables.")] = "id",
    sequence_column: Annotated[
        str, typer.Option(help="Column of sequences in tables.")
    ] = "sequence",
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Take a protein out of the store; can be repeated."),
    ] = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Embed proteins; see `EMBED_HELP`."""
    with one_line_errors():
        if not inputs and not remove:
            fail("there is nothing to do; give files with proteins, or --remove ID")
        complete = not remove or _remove(output, remove)
        if inputs:
            proteins, bad = _read(inputs, id_column, sequence_column)
            embedder, head = load_embedder(
                model, backbone, recipe, revision, device, trust_remote_code
            )
            if projections and head is None:
                fail("--projections needs a head, and --backbone has none; give --model instead")
            complete &= _embed(
                output, proteins, bad, embedder, head, dtype, projections, residues_per_batch
            )
    if not complete and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise typer.Exit(2)


def _remove(folder: Path, keys: list[str]) -> bool:
    """Take proteins out; say which are not there, and whether all are."""
    from ..data.store import EmbeddingStore

    store = EmbeddingStore.open(folder)
    unknown = [key for key in keys if key not in store]
    for key in unknown:
        report(f"{folder} holds no protein {key!r}")
    count = store.remove(key for key in keys if key in store)
    report(f"{count} taken out, {folder} holds {len(store)}")
    return not unknown


def _read(
    files: list[Path], id_column: str, sequence_column: str
) -> tuple[list[Protein], list[BadRecord]]:
    """Read all that can be read, and gather what cannot."""
    from ..io.sequences import BadRecord, read_sequences

    proteins: list[Protein] = []
    bad: list[BadRecord] = []
    for file in files:
        wrong: list[BadRecord] = []
        try:
            proteins += read_sequences(file, id_column, sequence_column, wrong.append)
        except (ValueError, OSError) as error:
            bad.append(BadRecord(str(file), str(error)))
        bad += [BadRecord(f"{file}: {record.id}", record.reason) for record in wrong]
    return proteins, bad


def load_backbone_for(
    option: str, name: str, recipe: str | None, device: str | None, trust_remote_code: bool
) -> Backbone:
    """Load what `option` names; "default" is the backbone of the bundled model."""
    from ..models.modeling_backbone import Backbone

    named = None if name == "default" else name
    embedder, _ = load_embedder(None, named, recipe, None, device, trust_remote_code)
    if not isinstance(embedder, Backbone):
        fail(f"{option} {name} is no backbone that a head can stand on")
    return embedder


def load_embedder(
    model: str | None,
    backbone: str | None,
    recipe: str | None,
    revision: str | None,
    device: str | None,
    trust_remote_code: bool,
) -> tuple[Embedder, PlasmaModel | None]:
    """Load a backbone alone, or a PLASMA model as backbone and head."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if device is None:
        local = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if backbone is None:
        if recipe is not None:
            fail("--recipe goes with --backbone; a PLASMA model brings its own")
        return _load_model(model, revision, device, trust_remote_code)
    if model is not None:
        fail("--model brings its own backbone; give --model or --backbone")

    from .. import load_backbone

    embedder = load_backbone(
        backbone, recipe, revision=revision, device=device, trust_remote_code=trust_remote_code
    )
    if embedder.recipe.reads_structures:
        fail(f"--backbone {backbone} reads structures, and a store goes by sequences")
    return embedder, None


def _load_model(
    model: str | None, revision: str | None, device: str, trust_remote_code: bool
) -> tuple[Embedder, PlasmaModel]:
    from transformers import AutoModel, AutoProcessor

    from .. import DEFAULT_CHECKPOINT
    from ..models.modeling_backbone import Backbone

    name = model or DEFAULT_CHECKPOINT
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        plasma = AutoModel.from_pretrained(name, **options)
    except (ValueError, OSError, ImportError) as error:
        fail(f"--model {name} cannot be loaded; give a folder or Hub id of a PLASMA model. {error}")
    if plasma.config.model_type != "plasma":
        fail(f"--model {name} is a {plasma.config.model_type} model; give --backbone {name}")
    if plasma.backbone is None:
        fail(f"--model {name} is a head without a backbone; give one saved with its backbone")
    plasma = plasma.eval().to(device)
    processor = plasma.processor or AutoProcessor.from_pretrained(name, **options)
    config = plasma.config
    return Backbone(
        plasma.backbone, processor, config.plm_name_or_path, config.plm_revision
    ), plasma


def _embed(
    folder: Path,
    proteins: list[Protein],
    bad: list[BadRecord],
    embedder: Embedder,
    head: PlasmaModel | None,
    dtype: DtypeName | None,
    projections: bool,
    residues_per_batch: int,
) -> bool:
    """Embed, say what was done, and whether it was everything."""
    from ..data.store import HEADER, KINDS, EmbeddingStore, gigabytes, rank_and_world_size

    # A store that is there goes on keeping what it keeps; a new one keeps what is asked for.
    there = (folder / HEADER).exists()
    kinds = KINDS if projections else None if there else KINDS[:1]
    store = EmbeddingStore.create(folder, embedder, head, dtype=dtype, kinds=kinds)
    job = store.prepare(proteins, residues_per_batch, bad)
    rank, world_size = rank_and_world_size()
    if rank == 0:
        size = gigabytes(job.n_bytes)
        report(f"{job.n_missing} sequences to embed, {size} on disk, as {store.header.dtype}")
    done = store.run(job, embedder, head)
    for record in done.bad:
        report(f"{record.id}: {record.reason}")
    share = f"rank {rank} of {world_size}: " if world_size > 1 else ""
    report(
        f"{share}{done.embedded} embedded, {done.already_there} already there, "
        f"{len(done.bad)} left out; {folder} holds {len(store)}"
    )
    return not done.bad
