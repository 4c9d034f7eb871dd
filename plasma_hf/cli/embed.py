"""`plasma-hf embed`: residue embeddings of many proteins, computed once and kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from . import common
from .common import Embedding, Skipped, fail, load_embedder, report, verb

if TYPE_CHECKING:
    from ..data.store import EmbeddingStore
    from ..models.modeling_backbone import Backbone
    from ..models.protein import InvalidRecord, Protein


@verb()
def embed(
    skipped: Skipped,
    output: Annotated[Path, Option("--output", "-o", help="Folder of the store, made if need be.")],
    inputs: Annotated[list[Path] | None, Argument(metavar="INPUT", help="Protein files.")] = None,
    *,
    loading: Embedding,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, Option(help="By default float32.")
    ] = None,
    projections: Annotated[bool, Option("--projections", help="Keep the head's as well.")] = False,
    residues_per_batch: common.Residues = 4096,
    ray: Annotated[
        int | None, Option(min=1, metavar="WORKERS", help="Embed a table on a Ray cluster.")
    ] = None,
    id_column: Annotated[str, Option(help="Column of ids in tables.")] = "id",
    sequence_column: Annotated[str, Option(help="Column of sequences in tables.")] = "sequence",
    remove: Annotated[list[str] | None, Option(metavar="ID", help="Protein to take out.")] = None,
) -> None:
    r"""Embed proteins once and keep the result, a store to search and to train from.

    Each INPUT is a FASTA, PDB, mmCIF, CSV or TSV file, also .gz, a Parquet or JSON Lines file, a
    folder written by datasets.save_to_disk, or a database of plasma-hf database build. The store is
    a folder. Proteins are found in it by id and by sequence; equal sequences are kept once, and
    what is there already is not computed again.

    A job that was stopped goes on when the same command is run again. The same command with other
    files adds them. A store is of one model and input format; another is refused.

    Examples:
      plasma-hf embed demo/serine_proteases.fasta --output store
      plasma-hf embed demo/serine_proteases.fasta --output store16 \
          --dtype float16 --projections
      plasma-hf embed --output store --remove P00766 --remove P00760

    With a language model, which is downloaded at first use (docs/backbones.md lists all):
      plasma-hf embed proteins.csv --id-column accession --sequence-column seq \
          --backbone esm2-650m --output esm2

    As a table for other engines (id, sequence, mean and residues), which an --output that ends in
    .parquet or .lance becomes; --ray 2 has two workers of a Ray cluster embed, or of this machine:
      plasma-hf embed demo/serine_proteases.fasta --output proteins.parquet

    On two GPUs, each of which computes its share (invalid records are reported, but do not set the
    exit code, at which torchrun would stop the other process):
      torchrun --nproc-per-node 2 --no-python plasma-hf embed proteins.fasta \
          --backbone esm2-650m --output esm2
    """
    from ..data.store import HEADER, KINDS, EmbeddingStore, gigabytes, rank_and_world_size
    from ..data.table import ENDINGS

    if not inputs and not remove:
        fail("there is nothing to do; give files with proteins, or --remove ID")
    if remove:
        _remove(EmbeddingStore.open(output), remove, skipped)
    if not inputs:
        return
    proteins, bad = _read(inputs, id_column, sequence_column)
    if output.suffix in ENDINGS:
        return _write_table(output, proteins, bad, loading, ray, skipped)
    if ray is not None:
        fail("--ray makes a table: give an --output that ends in .parquet or .lance")
    embedder, head = load_embedder(loading)
    if projections and head is None:
        fail("--projections needs a head, and --backbone has none; give --model instead")
    # A store that is there goes on keeping what it keeps; a new one keeps what is asked for.
    there = (output / HEADER).exists()
    kinds = KINDS if projections else None if there else KINDS[:1]
    store = EmbeddingStore.create(output, embedder, head, dtype=dtype, kinds=kinds)
    job = store.prepare(proteins, residues_per_batch, bad)
    rank, world_size = rank_and_world_size()
    if rank == 0:
        size = gigabytes(job.n_bytes)
        report(f"{job.n_missing} sequences to embed, {size} on disk, as {store.header.dtype}")
    done = store.run(job, embedder, head)
    skipped.report_records(done.bad)
    share = f"rank {rank} of {world_size}: " if world_size > 1 else ""
    report(
        f"{share}{done.embedded} embedded, {done.already_there} already there, "
        f"{len(done.bad)} left out; {output} holds {len(store.lengths)}"
    )


def _write_table(
    output: Path,
    proteins: list[Protein],
    bad: list[InvalidRecord],
    loading: Embedding,
    ray: int | None,
    skipped: Skipped,
) -> None:
    """Write a table of the proteins that can be embedded."""
    from ..data.store import gigabytes, rank_and_world_size
    from ..data.table import write_table
    from ..models.protein import InvalidRecord

    if rank_and_world_size()[1] > 1:
        fail("one process writes a table; share the work by --ray in place of torchrun")
    if output.exists():
        fail(f"{output} is there already; remove it, or give another --output")
    embedder, _ = load_embedder(loading)
    usable = []
    for protein in proteins:
        try:
            usable.append(embedder.processor.read(protein, protein.id))
        except ValueError as error:
            bad.append(InvalidRecord(protein.id, str(error)))
    skipped.report_records(bad)
    size = sum(map(len, usable)) * embedder.hidden_size * 2
    report(f"{len(usable)} proteins to embed, {gigabytes(size)} on disk, as float16")
    if ray is None:
        write_table(output, usable, embedder)
    else:
        from ..search.cluster import embed_table

        embed_table(output, usable, partial(_load_alone, loading), ray)
    report(f"{output} holds {len(usable)} proteins")


def _load_alone(loading: Embedding) -> Backbone:
    return load_embedder(loading)[0]


def _remove(store: EmbeddingStore, ids: list[str], skipped: Skipped) -> None:
    """Take proteins out, and say which are not there."""
    for name in ids:
        if name not in store:
            skipped.report(f"{store.folder} holds no protein {name!r}")
    count = store.remove([name for name in ids if name in store])
    report(f"{count} taken out, {store.folder} holds {len(store.lengths)}")


def _read(
    files: list[Path], id_column: str, sequence_column: str
) -> tuple[list[Protein], list[InvalidRecord]]:
    """Read all that can be read, and gather what cannot."""
    from ..io.sequences import read_sequences
    from ..models.protein import InvalidRecord
    from ..search.database import MANIFEST, ProteinDatabase

    proteins: list[Protein] = []
    bad: list[InvalidRecord] = []
    for file in files:
        wrong: list[InvalidRecord] = []
        try:
            if (file / MANIFEST).exists():
                opened = ProteinDatabase.open(file)
                proteins += (opened[number] for number in range(len(opened)))
                continue
            proteins += read_sequences(file, id_column, sequence_column, wrong.append)
        except (ValueError, OSError) as error:
            bad.append(InvalidRecord(str(file), str(error)))
        bad += [InvalidRecord(f"{file}: {record.id}", record.reason) for record in wrong]
    return proteins, bad
