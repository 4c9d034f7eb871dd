"""`plasma-hf evaluate protalign`: retrieval of structures by sequence, and the paper's tables."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_embed import load_backbone
from .cli_errors import fail, one_line_errors, report
from .cli_options import (
    BackboneName,
    Device,
    Epochs,
    LearningRate,
    Recipe,
    RemoteCode,
    given,
    training_arguments,
)
from .cli_protalign import (
    BatchSize,
    Identity,
    Loss,
    LossName,
    MaxResidues,
    MinResidues,
    Preset,
    RecipeName,
    StructureEncoder,
    Structures,
    TrainedName,
    TrainEncoders,
    load_structure_encoder,
    read_pairs,
)

if TYPE_CHECKING:
    from .data.structure_rows import StructurePair
    from .evaluation.retrieval_report import RetrievalReport
    from .evaluation.retrieval_study import RetrievalStudy


class PartName(StrEnum):
    """Which pairs a ready model is judged on."""

    test = "test"
    validation = "validation"
    all = "all"


EVALUATE_PROTALIGN_HELP = """
Measure how well sequences find their structures: recall at 1 and 5 both ways, reciprocal ranks,
recall of families, with confidence intervals and floors.

--model is the folder or Hub id of a trained model; {seed} in it is replaced by the seed. Without
--model, a model is trained on the split of each seed, as plasma-hf train protalign does it, and
beside it the mean-pool baseline. Splits are by sequence cluster, and the same for the same seed and
structures as in training; --part all takes every pair, for structures that no training has seen.

Tables and figures of the ProtAlign paper are made on request, from models that are trained for
them: --table 2 compares CLIP and SigLIP, --table 3 sweeps temperature and bias, --figure 2 draws
sequences and structures before and after training, --figure 3 the training losses, --figure 4 all
cosines, --clusters lists proteins that the model holds to be alike, with the differences of their
sequences. Figures and clusters are of the first seed.

OUT gets evaluation.md, evaluation.json, pictures, and in runs/ the models. A command that was
stopped goes on when it is run again. A structure that cannot be used is reported on standard error,
the rest is used, and the exit code is 2.

\b
Examples:
  plasma-hf evaluate protalign --structures pdb/ --model protalign --out results
  plasma-hf evaluate protalign --structures pdb/ --train-encoders structure \\
      --seed 0 --seed 1 --seed 2 --seed 3 --seed 4 --out results
  plasma-hf evaluate protalign --structures pdb/ --table 2 --figure 3 --out paper
"""


def evaluate_protalign(
    structures: Structures,
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="Folder of the results.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Folder or Hub id of a model; can be repeated.")
    ] = None,
    part: Annotated[
        PartName, typer.Option(help="Pairs that --model is judged on.")
    ] = PartName.test,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of splits and runs; 0 by default; can be repeated.")
    ] = None,
    table: Annotated[
        list[int] | None, typer.Option(min=2, max=3, help="Table 2 or 3 of the paper.")
    ] = None,
    figure: Annotated[
        list[int] | None, typer.Option(min=2, max=4, help="Figure 2, 3 or 4 of the paper.")
    ] = None,
    clusters: Annotated[
        bool, typer.Option("--clusters", help="List proteins that lie close together.")
    ] = False,
    least_cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="From which on --clusters links two proteins.")
    ] = 0.9,
    sequence_backbone: BackboneName = "default",
    recipe: Recipe = None,
    structure_encoder: StructureEncoder = "new",
    train_encoders: TrainEncoders = TrainedName.none,
    preset: Preset = RecipeName.improved,
    loss: Loss = LossName.clip,
    identity: Identity = None,
    min_residues: MinResidues = 20,
    max_residues: MaxResidues = 1024,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Evaluate retrieval; see `EVALUATE_PROTALIGN_HELP`."""
    wanted = {"tables": table or [], "figures": figure or [], "clusters": clusters}
    if model and (table or 3 in (figure or [])):
        fail("--table and --figure 3 train models of their own; leave --model out for them")
    with one_line_errors():
        from .training.protalign_run import ProtAlignRun

        pairs, complete = read_pairs(structures, min_residues, max_residues)
        seeds = list(dict.fromkeys(seed or [0]))
        run = ProtAlignRun(
            out,
            preset=preset.value,
            trained=train_encoders.value,
            config={"loss": loss.value},
            arguments=training_arguments(epochs, batch_size, learning_rate, device),
        )
        split = given({"identity": identity})
        work = Work(out, wanted, least_cosine)
        if model:
            judge_models(work, model, pairs, seeds, split, part.value, trust_remote_code)
        else:
            from .evaluation.retrieval_study import RetrievalStudy

            backbone = load_backbone(
                "--sequence-backbone", sequence_backbone, recipe, device, trust_remote_code
            )
            encoder = load_structure_encoder(structure_encoder, seeds[0], device)
            train_and_judge(work, RetrievalStudy(pairs, backbone, encoder, run, seeds, split))
        work.write({"structures": [str(path) for path in structures], "seeds": seeds, **split})
    if not complete:
        raise typer.Exit(2)


class Work:
    """Gather reports, draw pictures, and write all of it to a folder.

    Args:
        out: The folder, made if need be.
        wanted: Which tables, figures and listings.
        least_cosine: From which on two proteins are linked in a listing.
    """

    def __init__(self, out: Path, wanted: dict[str, Any], least_cosine: float) -> None:
        """Make the folder."""
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.wanted, self.least_cosine = out, wanted, least_cosine
        self.reports: list[RetrievalReport] = []
        self.listing: list[Any] | None = None

    def describe(self, pairs: list[StructurePair], before: Any, after: Any) -> None:
        """Draw and list what is wanted of the vectors of one model.

        Args:
            pairs: That are described.
            before: Sequence and structure vectors before training, None to leave them out.
            after: After it.
        """
        from .evaluation.retrieval_clusters import list_clusters
        from .evaluation.retrieval_pictures import draw_heat_map, draw_planes

        ids = [pair.id for pair in pairs]
        if 2 in self.wanted["figures"]:
            stages = {"before training": before} if before is not None else {}
            draw_planes(stages | {"after training": after}, self.out / "figure2.png")
        if 4 in self.wanted["figures"]:
            draw_heat_map(after[0] @ after[1].T, ids, self.out / "figure4.png")
        if self.wanted["clusters"]:
            sequences, families = [p.sequence for p in pairs], [p.family for p in pairs]
            self.listing = list_clusters(after[1], ids, sequences, families, self.least_cosine)

    def write(self, settings: dict[str, Any]) -> None:
        """Write `evaluation.md` and `evaluation.json`, and show the first."""
        from .evaluation.retrieval_clusters import clusters_as_json, clusters_as_markdown
        from .evaluation.retrieval_report import DEFINITIONS

        parts = ["# Retrieval", *(r.to_markdown() for r in self.reports), DEFINITIONS]
        found: dict[str, Any] = {
            "settings": settings,
            "tables": [r.to_dict() for r in self.reports],
        }
        if self.listing is not None:
            title = f"## Proteins that lie within a cosine of {self.least_cosine:g}"
            parts += [title, clusters_as_markdown(self.listing) if self.listing else "None."]
            found["clusters"] = clusters_as_json(self.listing)
        text = "\n\n".join(parts)
        (self.out / "evaluation.md").write_text(text + "\n", encoding="utf-8")
        lines = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
        (self.out / "evaluation.json").write_text(lines + "\n", encoding="utf-8")
        typer.echo(text)


def train_and_judge(work: Work, study: RetrievalStudy) -> None:
    """Train what is asked for on each seed, and judge it on its test pairs."""
    from .evaluation.retrieval_pictures import draw_losses
    from .evaluation.retrieval_study import CLIP, MEAN_POOL, SIGLIP, VARIANTS, Variant

    ours = Variant("ProtAlign")
    tables: dict[str, tuple[Variant, ...]] = {"model": (ours, MEAN_POOL)}
    tables |= {f"table {n}": VARIANTS[f"table {n}"] for n in work.wanted["tables"]}
    for title, variants in tables.items():
        work.reports.append(_compare(study, title, variants))
    seed = study.seeds[0]
    pairs = list(study.parts[seed].test)
    before = study.untrained_vectors(ours, seed) if 2 in work.wanted["figures"] else None
    work.describe(pairs, before, study.vectors(ours, seed))
    if 3 in work.wanted["figures"]:
        losses = {variant.name: study.losses(variant, seed) for variant in (CLIP, SIGLIP)}
        draw_losses(losses, work.out / "figure3.png")


def _compare(study: RetrievalStudy, title: str, variants: Any) -> RetrievalReport:
    from .evaluation.retrieval_report import RetrievalReport

    found = RetrievalReport(title)
    for seed in study.seeds:
        test = list(study.parts[seed].test)
        for variant in variants:
            sequences, structures = study.vectors(variant, seed)
            found.add(variant.name, seed, sequences @ structures.T, [p.family for p in test])
        if title == "model":
            _add_simple(found, seed, test)
    return found


def _add_simple(found: RetrievalReport, seed: int, pairs: list[StructurePair]) -> None:
    """Add what needs no model."""
    from .evaluation.retrieval_baselines import length_similarity, sequence_oracle

    families = [pair.family for pair in pairs]
    found.add("length alone", seed, length_similarity(pairs), families)
    found.add("sequence oracle", seed, sequence_oracle(pairs), families)


def judge_models(
    work: Work,
    models: list[str],
    pairs: list[StructurePair],
    seeds: list[int],
    split: dict[str, Any],
    part: str,
    trust_remote_code: bool,
) -> None:
    """Judge ready models on a part of the pairs of each seed."""
    from .evaluation.retrieval_report import RetrievalReport
    from .evaluation.retrieval_study import model_vectors
    from .training.protalign_parts import split_pairs

    found = RetrievalReport("model")
    described = False
    for seed in seeds:
        shares = (0.0, 0.0, 1.0) if part == "all" else (0.8, 0.1, 0.1)
        parts = split_pairs(pairs, seed, shares, **split)
        judged = list(getattr(parts, "test" if part == "all" else part))
        for name in models:
            folder = name.replace("{seed}", str(seed))
            if part != "all":
                _warn_of_another_split(folder, seed)
            vectors = model_vectors(_load(folder, trust_remote_code), judged)
            families = [pair.family for pair in judged]
            found.add(name, seed, vectors[0] @ vectors[1].T, families)
            if not described:
                work.describe(judged, None, vectors)
                described = True
        _add_simple(found, seed, judged)
    work.reports.append(found)


def _load(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, ImportError) as error:
        fail(f"--model {name} cannot be loaded; give a folder or Hub id of ProtAlign. {error}")
    if model.config.model_type != "protalign":
        fail(f"--model {name} is a {model.config.model_type} model; give a ProtAlign model")
    for side in ("sequence", "structure"):
        model.check_encoder(side)
    return model


def _warn_of_another_split(folder: str, seed: int) -> None:
    file = Path(folder) / "metrics.json"
    if file.exists():
        trained_on = json.loads(file.read_text())["settings"].get("split seed")
        if trained_on is not None and trained_on != seed:
            report(
                f"{folder} was trained on the split of seed {trained_on} and is judged on that of "
                f"seed {seed}: it may know a part of the pairs"
            )
