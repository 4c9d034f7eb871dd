"""`plasma-hf embed`: residue embeddings of many proteins, computed once and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from . import common
from .common import EXIT_CODE, Skipped, best_device, fail, load_model, one_line_errors, report

if TYPE_CHECKING:
    from ..data.store import EmbeddingStore
    from ..models.modeling_backbone import Backbone
    from ..models.modeling_plasma import PlasmaModel
    from ..models.protein import InvalidRecord, Protein

EMBED_HELP = f"""Embed proteins once and keep the result, a store to search and to train from.

Each INPUT is a FASTA, PDB, mmCIF, CSV or TSV file, also .gz, a Parquet or JSON Lines file, a
folder written by datasets.save_to_disk, or a database of plasma-hf database build. The store is a
folder. Proteins are found in it by id and by sequence; equal sequences are kept once, and what is
there already is not computed again.

A job that was stopped goes on when the same command is run again. The same command with other
files adds them. A store is of one model and input format; another is refused.

{EXIT_CODE}

\b
Examples:
  plasma-hf embed demo/serine_proteases.fasta --output store
  plasma-hf embed demo/serine_proteases.fasta --output store16 \\
      --dtype float16 --projections
  plasma-hf embed --output store --remove P00766 --remove P00760

\b
With a language model, which is downloaded at first use (docs/backbones.md lists all):
  plasma-hf embed proteins.csv --id-column accession --sequence-column seq \\
      --backbone esm2-650m --output esm2

\b
As a table for other engines (id, sequence, mean and residues), which an --output that ends in
.parquet or .lance becomes; --ray 2 has two workers of a Ray cluster embed, or of this machine:
  plasma-hf embed demo/serine_proteases.fasta --output proteins.parquet

\b
On two GPUs, each of which computes its share (invalid records are reported, but do not set the
exit code, at which torchrun would stop the other process):
  torchrun --nproc-per-node 2 --no-python plasma-hf embed proteins.fasta \\
      --backbone esm2-650m --output esm2"""


def embed(
    output: Annotated[Path, Option("--output", "-o", help="Folder of the store, made if need be.")],
    inputs: Annotated[list[Path] | None, Argument(metavar="INPUT", help="Protein files.")] = None,
    model: common.AlignmentModel = None,
    backbone: common.BackboneName = None,
    recipe: common.Recipe = None,
    revision: common.Revision = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, Option(help="By default float32.")
    ] = None,
    projections: Annotated[bool, Option("--projections", help="Keep the head's as well.")] = False,
    residues_per_batch: common.Residues = 4096,
    ray: Annotated[
        int | None, Option(min=1, metavar="WORKERS", help="Embed a table on a Ray cluster.")
    ] = None,
    device: common.Device = None,
    id_column: Annotated[str, Option(help="Column of ids in tables.")] = "id",
    sequence_column: Annotated[str, Option(help="Column of sequences in tables.")] = "sequence",
    remove: Annotated[list[str] | None, Option(metavar="ID", help="Protein to take out.")] = None,
    trust_remote_code: common.RemoteCode = False,
) -> None:
    """Embed proteins; see `EMBED_HELP`."""
    with one_line_errors() as skipped:
        from ..data.store import HEADER, KINDS, EmbeddingStore, gigabytes, rank_and_world_size
        from ..data.table import ENDINGS

        if not inputs and not remove:
            fail("there is nothing to do; give files with proteins, or --remove ID")
        if remove:
            _remove(EmbeddingStore.open(output), remove, skipped)
        if not inputs:
            return
        proteins, bad = _read(inputs, id_column, sequence_column)
        loaded = (model, backbone, recipe, revision, device, trust_remote_code)
        if output.suffix in ENDINGS:
            return _write_table(output, proteins, bad, loaded, ray, skipped)
        if ray is not None:
            fail("--ray makes a table: give an --output that ends in .parquet or .lance")
        embedder, head = load_embedder(*loaded)
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
    loaded: tuple[Any, ...],
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
    embedder, _ = load_embedder(*loaded)
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

        embed_table(output, usable, partial(_load_alone, *loaded), ray)
    report(f"{output} holds {len(usable)} proteins")


def _load_alone(*loaded: Any) -> Backbone:
    return load_embedder(*loaded)[0]


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


def load_embedder(
    model: str | None,
    backbone: str | None,
    recipe: str | None,
    revision: str | None,
    device: str | None,
    trust_remote_code: bool,
    with_head: bool = False,
) -> tuple[Backbone, PlasmaModel | None]:
    """Load a PLASMA model as backbone and head, or a backbone alone or under PLASMA-PF."""
    from transformers import AutoProcessor

    from ..backbones import load_aligner, load_backbone
    from ..models.modeling_backbone import Backbone

    if backbone is None:
        if recipe is not None:
            fail("--input-format goes with --backbone; a PLASMA model brings its own")
        plasma = load_model(model, "plasma", revision, device, trust_remote_code)
        config = plasma.config
        processor = plasma.processor or AutoProcessor.from_pretrained(
            plasma.name_or_path, revision=revision, trust_remote_code=trust_remote_code
        )
        under: Any = plasma.backbone
        return Backbone(under, processor, config.plm_name_or_path, config.plm_revision), plasma
    if model is not None:
        fail("--model brings its own backbone; give --model or --backbone")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    options["device"] = device or best_device()
    if with_head:
        aligner = load_aligner(backbone, recipe, **options)
        assert aligner.processor is not None  # it came with the backbone
        return Backbone(aligner.backbone, aligner.processor), aligner
    embedder = load_backbone(backbone, recipe, **options)
    if embedder.input_format.reads_structures:
        fail(f"--backbone {backbone} reads structures, and a store goes by sequences")
    return embedder, None


@dataclass(frozen=True)
class Computing:
    """What aligns: a model, or PLASMA-PF over a backbone, with embeddings that are at hand."""

    model: str | None = None
    backbone: str | None = None
    recipe: str | None = None
    task_head: str | None = None
    revision: str | None = None
    device: str | None = None
    trust_remote_code: bool = False
    store: Path | None = None
    ray: int | None = None  # workers of a cluster

    def load(self) -> Any:
        """Return the pipeline, in this process or in a worker."""
        from ..data.store import EmbeddingStore
        from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

        where = self.revision, self.device, self.trust_remote_code
        embedder, head = load_embedder(self.model, self.backbone, self.recipe, *where, True)
        assert head is not None  # a model was asked for
        return ProteinAlignmentPipeline(
            model=head,
            processor=embedder.processor,
            device=head.device,
            task_head=self.task_head,
            store=EmbeddingStore.open(self.store) if self.store else None,
        )
