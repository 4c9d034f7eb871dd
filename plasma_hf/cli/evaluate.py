"""The aligners that `plasma-hf evaluate` compares, from what its options name."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.store import Embedder, EmbeddingStore, head_width
from ..evaluation import (
    Aligner,
    Composition,
    EmbeddedOnce,
    EmbeddingAlignment,
    EmbeddingSource,
    Foldseek,
    Length,
    MeanCosine,
    NeedlemanWunsch,
    PlasmaAligner,
    SmithWaterman,
    StoredEmbeddings,
    StructureFolder,
    TMAlign,
    parameter_free,
    with_settings,
)
from ..models.modeling_plasma import PlasmaModel
from .common import (
    BackboneName,
    BatchSize,
    Device,
    Epochs,
    Identity,
    LearningRate,
    Loss,
    LossName,
    MaxResidues,
    MinResidues,
    Preset,
    ProtocolName,
    Recipe,
    RecipeName,
    RemoteCode,
    StructureEncoder,
    Structures,
    TrainedName,
    TrainEncoders,
    fail,
    given,
    load_structure_encoder,
    one_line_errors,
    read_pairs,
    report,
    training_arguments,
)
from .embed import load_backbone_for as load_backbone
from .embed import load_embedder

if TYPE_CHECKING:
    pass
    from ..data.sites import SiteProtein
    from ..evaluation import Aligner, Evaluation, TruthRun
    from ..evaluation.retrieval import RetrievalReport
    from ..evaluation.retrieval_study import RetrievalStudy
    from ..io.structures import StructurePair


ON_SEQUENCES: dict[str, Any] = {
    "smith-waterman": SmithWaterman,
    "needleman-wunsch": NeedlemanWunsch,
    "length": Length,
    "composition": Composition,
}
ON_EMBEDDINGS: dict[str, Any] = {"eba": EmbeddingAlignment, "mean-cosine": MeanCosine}
ON_STRUCTURES: dict[str, Any] = {"tm-align": TMAlign, "foldseek": Foldseek}
SHORT = {"kernel_scale": "kernel scale", "n_iters": "iterations", "diagonal_window": "window"}


@dataclass(frozen=True)
class NamedSource:
    """Hold where embeddings come from, what to call them, and how wide they are."""

    name: str
    source: EmbeddingSource
    width: int


@dataclass
class LineUp:
    """Make the aligners of an evaluation.

    Attributes:
        models: "default", "pf", or folders and Hub ids, in which `{seed}` stands for a seed.
        backbones: Folders or Hub ids.
        stores: Folders of embedding stores.
        baselines: By name.
        structures: Folder of structures, for the baselines that read them.
        sweep: Fields of `PlasmaConfig`, with the values to go through.
        device: Where models run.
        trust_remote_code: Whether models may bring code.
        not_found: Programs of baselines that are not here, which are left out.
    """

    models: Sequence[str]
    backbones: Sequence[str] = ()
    stores: Sequence[Path] = ()
    baselines: Sequence[str] = ()
    structures: Path | None = None
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    device: str | None = None
    trust_remote_code: bool = False
    not_found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Load what does not depend on the seed."""
        self._sources: dict[tuple[tuple[str, str], ...], NamedSource] = {}
        self._load = lru_cache(maxsize=4)(self._load_model)
        for folder in self.stores:
            store = EmbeddingStore.open(folder)
            self._add(store.identity, StoredEmbeddings(store), store.header.hidden_size)
        for name in self.backbones:
            embedder, _ = load_embedder(None, name, None, None, self.device, self.trust_remote_code)
            self._source_of(embedder)
        self._given = list(self._sources.values())
        self._baselines_without_embeddings = list(self._independent())

    def aligners(self, seed: int) -> list[Aligner]:
        """Return all aligners, models as they were trained for a seed."""
        models = [(name, *self._model(name, seed)) for name in self.models]
        sources = self._given or list(dict.fromkeys(own for *_, own in models if own))
        if not sources:
            sources = [
                self._source_of(
                    load_embedder(
                        None, "substitution", None, None, self.device, self.trust_remote_code
                    )[0]
                )
            ]
        found: list[Aligner] = []
        for name, model, own in models:
            for source in [own] if own else sources:
                head_width(model, source.width)  # complains where they do not fit
                found += self._swept(name, model, source)
        for source in sources:
            for baseline in self.baselines:
                if baseline in ON_EMBEDDINGS:
                    found.append(ON_EMBEDDINGS[baseline](source.source, source.name))
        found += self._baselines_without_embeddings
        names = [(aligner.name, getattr(aligner, "backbone", "")) for aligner in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            fail(f"{twice[0]} is there twice; give each model and baseline once")
        return found

    def _swept(self, name: str, model: PlasmaModel, source: NamedSource) -> Iterator[Aligner]:
        for values in product(*self.sweep.values()):
            changes = dict(zip(self.sweep, values, strict=True))
            suffix = "".join(f", {SHORT.get(key, key)} {v}" for key, v in changes.items())
            changed = with_settings(model, **changes) if changes else model
            yield PlasmaAligner(changed, source.source, name + suffix, source.name)

    def _model(self, name: str, seed: int) -> tuple[PlasmaModel, NamedSource | None]:
        return self._load(name.replace("{seed}", str(seed)))

    def _load_model(self, name: str) -> tuple[PlasmaModel, NamedSource | None]:
        if name == "pf":
            return parameter_free(), None
        if self._is_head_alone(name):
            model = PlasmaModel.from_pretrained(name)
            return model.to(self.device or "cpu"), None
        chosen = None if name == "default" else name
        embedder, plasma = load_embedder(
            chosen, None, None, None, self.device, self.trust_remote_code
        )
        assert plasma is not None  # a model was asked for
        return plasma, self._source_of(embedder)

    def _is_head_alone(self, name: str) -> bool:
        if name == "default":
            return False
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=self.trust_remote_code)
        except (ValueError, OSError) as error:
            fail(
                f"--model {name} cannot be loaded; give a folder or Hub id of a PLASMA model, "
                f"default or pf. {error}"
            )
        return config.model_type == "plasma" and config.plm_config is None

    def _source_of(self, embedder: Embedder) -> NamedSource:
        known = self._sources.get(_key(embedder.identity))
        if known is not None:
            return known
        return self._add(embedder.identity, EmbeddedOnce(embedder), embedder.hidden_size)

    def _add(self, identity: Any, source: EmbeddingSource, width: int) -> NamedSource:
        name = Path(identity["backbone"]).name
        if any(other.name == name for other in self._sources.values()):
            name = f"{name} {len(self._sources) + 1}"
        self._sources[_key(identity)] = NamedSource(name, source, width)
        return self._sources[_key(identity)]

    def _independent(self) -> Iterator[Aligner]:
        for name in self.baselines:
            if name in ON_SEQUENCES:
                yield ON_SEQUENCES[name]()
            elif name in ON_STRUCTURES:
                if self.structures is None:
                    fail(f"--baseline {name} reads structures; give their folder: --structures")
                try:
                    yield ON_STRUCTURES[name](StructureFolder(self.structures))
                except FileNotFoundError as error:
                    report(f"{name} is left out: {error}")
                    self.not_found.append(name)


def _key(identity: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(identity.items()))


# --- `plasma-hf evaluate`: models and baselines on held-out pairs and on known correspondences.


# torch and transformers are imported where they are needed: `--help` has no use for them.


class BaselineName(StrEnum):
    """What a model can be compared with, as typer takes a choice."""

    smith_waterman = "smith-waterman"
    needleman_wunsch = "needleman-wunsch"
    eba = "eba"
    mean_cosine = "mean-cosine"
    length = "length"
    composition = "composition"
    tm_align = "tm-align"
    foldseek = "foldseek"


class SplitName(StrEnum):
    """Which pairs are evaluated."""

    test = "test"
    test_hard = "test_hard"


class PictureName(StrEnum):
    """Which pictures are drawn."""

    png = "png"
    svg = "svg"
    none = "none"


EVALUATE_HELP = """
Evaluate models and baselines: one command gives the table.

Pairs are drawn from each table of sites, once for each seed: --split test has pairs held out of
training, test_hard families held out of training. Every aligner sees the same pairs. With
--alignments, plans are compared with residues that are known to correspond.

--model is "default" (the bundled model), "pf" (PLASMA-PF, without a parameter), or the folder or
Hub id of a model; {seed} in it is replaced by the seed, for models trained on one split each. pf,
heads without a backbone, eba and mean-cosine read the embeddings of each --backbone and --store,
and without these, of the models' own backbones.

--kernel-scale, --iterations, --threshold and --window change the models; repeated, they are a
sweep, and all combinations are evaluated.

OUT gets evaluation.md, evaluation.json (the same again for the same seeds), timing.json, pairs.csv
with every pair, and pictures of curves and plans. A row or pair that cannot be used is named, the
rest is done, and the exit code is 2. It is also 2 where a file or an option cannot be used.

\b
Examples:
  plasma-hf evaluate --sites active_site.csv --baseline smith-waterman --out results
  plasma-hf evaluate --sites active_site.csv --model default --model pf --seed 1 --seed 2 \\
      --seed 3 --baseline smith-waterman --baseline eba --baseline length --out results
  plasma-hf evaluate --sites binding_site.csv --model runs/binding_{seed} --seed 1 --seed 2 \\
      --kernel-scale 0.1 --kernel-scale 0.2 --out sweep
  plasma-hf evaluate --alignments balibase.json.gz --baseline needleman-wunsch --out truth
"""


def evaluate(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    sites: Annotated[
        list[Path] | None, typer.Option(help="Table of sites; can be repeated.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="What its sites are; by default the file's name.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="default, pf, or a model; default by default.")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Folder or Hub id of a backbone; can be repeated.")
    ] = None,
    store: Annotated[
        list[Path] | None, typer.Option(help="Embedding store of all proteins; can be repeated.")
    ] = None,
    baseline: Annotated[
        list[BaselineName] | None, typer.Option(help="What to compare with; can be repeated.")
    ] = None,
    structures: Annotated[
        Path | None, typer.Option(help="Folder of {uid}.pdb or .cif, for tm-align and foldseek.")
    ] = None,
    protocol: Annotated[
        ProtocolName, typer.Option(help="How pairs are drawn.")
    ] = ProtocolName.strict,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of a draw; 1 by default; can be repeated.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=2, help="Pairs of a draw, training included; a fifth of them is tested."),
    ] = None,
    split: Annotated[
        list[SplitName] | None, typer.Option(help="Which pairs; both by default.")
    ] = None,
    kernel_scale: Annotated[list[float] | None, typer.Option(help="Sweep of kernel_scale.")] = None,
    iterations: Annotated[
        list[int] | None, typer.Option(help="Sweep of Sinkhorn iterations.")
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Sweep of the weight that counts as matched.")
    ] = None,
    window: Annotated[
        list[int] | None, typer.Option(help="Sweep of the diagonal window; 0 for none.")
    ] = None,
    alignments: Annotated[
        list[Path] | None,
        typer.Option(help="Reference alignments, JSON, also .gz; can be repeated."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Pairs whose plans are drawn.")] = 2,
    pictures: Annotated[PictureName, typer.Option(help="Format of pictures.")] = PictureName.png,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Evaluate models and baselines; see `EVALUATE_HELP`."""
    with one_line_errors():
        tasks = _named_tables(sites or [], task or [])
        if not tasks and not alignments:
            fail("there is nothing to evaluate; give --sites FILE, --alignments FILE, or both")
        seeds = list(dict.fromkeys(seed or [1]))
        sweep = {
            "kernel_scale": kernel_scale,
            "n_iters": iterations,
            "threshold": threshold,
            "diagonal_window": window,
        }
        pass

        line_up = LineUp(
            models=model or ["default"],
            backbones=backbone or [],
            stores=store or [],
            baselines=[name.value for name in baseline or []],
            structures=structures,
            sweep={name: values for name, values in sweep.items() if values},
            device=device,
            trust_remote_code=trust_remote_code,
        )
        line_up.aligners(seeds[0])  # complaints about models come before the work
        settings = {
            "sites": {name: str(path) for name, path in tasks.items()},
            "protocol": protocol.value,
            "seeds": seeds,
            "pairs": pairs,
            "models": line_up.models,
            "sweep": line_up.sweep,
            "not_found": line_up.not_found,
        }
        writer = Results(out, settings, pictures.value)
        parts = [name.value for name in split or SplitName]
        for name, path in tasks.items():
            proteins, bad = _read_sites(path)
            writer.bad += bad
            writer.add(_evaluate_sites(line_up, proteins, name, protocol, seeds, pairs, parts))
            if pictures != PictureName.none and examples:
                writer.draw_examples(line_up.aligners(seeds[0]), examples)
        for path in alignments or []:
            runs, bad = _evaluate_alignments(line_up.aligners(seeds[0]), path)
            writer.bad += bad
            writer.truths += runs
        writer.write()
    if not writer.complete:
        raise typer.Exit(2)


def _named_tables(sites: list[Path], tasks: list[str]) -> dict[str, Path]:
    if tasks and len(tasks) != len(sites):
        fail(f"{len(tasks)} --task for {len(sites)} --sites; give one for each, or none")
    names = tasks or [path.name.split(".")[0] for path in sites]
    if len(set(names)) < len(names):
        fail(f"tasks of the same name: {', '.join(names)}; tell them apart by --task")
    return dict(zip(names, sites, strict=True))


def _read_sites(path: Path) -> tuple[list[SiteProtein], list[str]]:
    from ..data.sites import read_site_table

    proteins, rows = read_site_table(path)
    bad = [f"{path}: row {row.row} ({row.uid}): {row.reason}" for row in rows]
    for line in bad:
        report(line)
    return proteins, bad


def _evaluate_sites(
    line_up: LineUp,
    proteins: list[SiteProtein],
    task: str,
    protocol: ProtocolName,
    seeds: list[int],
    pairs: int | None,
    parts: list[str],
) -> tuple[Evaluation, list[Any]]:
    from ..data.splits import make_splits
    from ..evaluation import Evaluation, evaluate_splits

    splits = [make_splits(proteins, protocol.value, seed, pairs) for seed in seeds]
    runs = evaluate_splits(line_up.aligners, splits, task, parts)
    if not runs:
        fail(f"{task}: the splits {' and '.join(parts)} hold no pairs; give a larger table")
    examples = [pair for part in reversed(parts) for pair in getattr(splits[0], part)]
    return Evaluation(runs), examples


def _evaluate_alignments(
    aligners: Sequence[Aligner], path: Path
) -> tuple[list[TruthRun], list[str]]:
    from ..evaluation import read_reference_pairs, run_residue_truth

    references, bad = read_reference_pairs(path)
    bad = [f"{path}: {line}" for line in bad]
    for line in bad:
        report(line)
    name = path.name.split(".")[0]
    runs = [run_residue_truth(aligner, references, name) for aligner in aligners]
    return [run for run in runs if run is not None], bad


class Results:
    """Gather what an evaluation found, and write it to a folder.

    Args:
        out: The folder, made if need be.
        settings: What was evaluated, for the record.
        pictures: Format of pictures, or "none".
    """

    def __init__(self, out: Path, settings: dict[str, Any], pictures: str) -> None:
        """Make the folder."""
        from ..evaluation import Evaluation

        out.mkdir(parents=True, exist_ok=True)
        self.out, self.settings, self.pictures = out, settings, pictures
        self.evaluation = Evaluation()
        self.truths: list[TruthRun] = []
        self.bad: list[str] = []
        self.examples: list[Any] = []

    @property
    def complete(self) -> bool:
        """Whether every row and pair was used."""
        failed = any(run.problems for run in self.truths)
        return not (self.bad or self.evaluation.problems or failed)

    def add(self, evaluated: tuple[Evaluation, list[Any]]) -> None:
        """Add the runs of one task, and the pairs to choose examples from."""
        evaluation, self.examples = evaluated
        self.evaluation.runs += evaluation.runs

    def draw_examples(self, aligners: Sequence[Aligner], count: int) -> None:
        """Draw the plans of a few pairs of the last task."""
        from ..evaluation.plots import choose_examples, draw_plans

        folder = self.out / "plans"
        folder.mkdir(exist_ok=True)
        chosen = choose_examples(self.examples, count)
        for aligner in aligners:
            draw_plans(aligner, chosen, folder, self.pictures)

    def write(self) -> None:
        """Write all files, say what went wrong, and show the tables."""
        text = self._markdown()
        (self.out / "evaluation.md").write_text(text + "\n", encoding="utf-8")
        self._write_json("evaluation.json", self._found())
        self._write_json("timing.json", self._timing())
        if self.evaluation.runs:
            self._write_pairs()
            if self.pictures != "none":
                from ..evaluation.plots import draw_curves

                draw_curves(self.evaluation.runs, self.out, self.pictures)
        for problem in self.evaluation.problems:
            report(
                "{task}, {split}, seed {seed}, {aligner}: {query} and {candidate}: {error}".format(
                    **problem
                )
            )
        for run in self.truths:
            for line in run.problems:
                report(f"{run.reference}, {run.aligner}: {line}")
        _show(text)

    def _found(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "sites": self.evaluation.to_dict(),
            "residue_truth": [run.to_dict() for run in self.truths],
            "left_out": self.bad,
        }

    def _timing(self) -> dict[str, Any]:
        truths = [
            {"aligner": run.aligner, "reference": run.reference, "seconds": run.seconds}
            for run in self.truths
        ]
        return {"sites": self.evaluation.seconds(), "residue_truth": truths}

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        (self.out / name).write_text(text + "\n", encoding="utf-8")

    def _write_pairs(self) -> None:
        from ..evaluation import PairOutcome

        names = [field.name for field in fields(PairOutcome)]
        with (self.out / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["task", "backbone", "aligner", "split", "seed", *names])
            for run in self.evaluation.runs:
                head = [run.task, run.backbone, run.aligner, run.split, run.seed]
                for pair in run.outcomes.pairs:
                    rows.writerow([*head, *(getattr(pair, name) for name in names)])

    def _markdown(self) -> str:
        from ..evaluation import truth_markdown

        parts = ["# Evaluation"]
        parts += [f"{name}: not found, left out." for name in self.settings["not_found"]]
        if self.evaluation.runs:
            parts.append(f"Pairs by the {self.settings['protocol']} protocol.")
            parts.append(self.evaluation.to_markdown())
        if self.truths:
            parts += ["## Residue truth", truth_markdown(self.truths)]
        if self.bad:
            parts += [f"## {len(self.bad)} rows or records left out"]
            parts += ["\n".join(f"- {line}" for line in self.bad)]
        return "\n\n".join(parts)


def _show(text: str) -> None:
    """Print Markdown, set for reading where somebody watches."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


# --- `plasma-hf evaluate protalign`: retrieval of structures by sequence, and the paper's tables.


# torch and transformers are imported where they are needed: `--help` has no use for them.


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
        from ..training.run import ProtAlignRun

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
            from ..evaluation.retrieval_study import RetrievalStudy

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
        from ..evaluation.retrieval_study import draw_heat_map, draw_planes, list_clusters

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
        from ..evaluation.retrieval import DEFINITIONS
        from ..evaluation.retrieval_study import clusters_as_json, clusters_as_markdown

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
    from ..evaluation.retrieval_study import CLIP, MEAN_POOL, SIGLIP, VARIANTS, Variant, draw_losses

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
    from ..evaluation.retrieval import RetrievalReport

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
    from ..evaluation.retrieval import length_similarity, sequence_oracle

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
    from ..evaluation.retrieval import RetrievalReport
    from ..evaluation.retrieval_study import model_vectors
    from ..training.structure_data import split_pairs

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
