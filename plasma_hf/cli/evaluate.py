"""`plasma-hf evaluate`: models and baselines on held-out pairs, and retrieval of structures."""

# torch, transformers and plasma_hf.evaluation are imported where they are needed: `--help` has no
# use for them.

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer
from typer import Option

from . import common
from .common import (
    Computing,
    Embedding,
    Loading,
    Skipped,
    fail,
    load_embedder,
    load_model,
    report,
    verb,
)

if TYPE_CHECKING:
    from ..data.pairs import ProteinPair
    from ..data.splits import PairSplits
    from ..evaluation import Aligner, EmbeddingSource
    from ..evaluation.run import Run, TruthRun
    from ..models.modeling_plasma import PlasmaModel

BASELINES = (
    *("smith-waterman", "needleman-wunsch", "eba", "mean-cosine"),
    *("length", "composition", "tm-align", "foldseek"),
)
SEARCHERS = ("smith-waterman", "mmseqs2", "mmseqs2-iterated", "phmmer", "jackhmmer")
SENSITIVITIES = ("fast", "default", "more", "all")
PARTS = ("test", "test_hard")
Paths = list[Path] | None
Names = list[str] | None
Counts = list[int] | None
Numbers = list[float] | None
SHORT = {"kernel_scale": "kernel scale", "n_iters": "iterations", "diagonal_window": "window"}


def _one_of(names: tuple[str, ...]) -> dict[str, Any]:
    """Let an option that can be repeated have these values; typer takes no list of `Literal`."""

    def parse(name: str) -> str:
        if name not in names:
            raise typer.BadParameter(f"there is no {name}; give {', '.join(names)}")
        return name

    return {"parser": parse, "metavar": f"[{'|'.join(names)}]"}


class NamedSource(NamedTuple):
    """Where embeddings come from, what to call them, and how wide they are."""

    name: str
    source: EmbeddingSource
    width: int


@dataclass
class Aligners:
    """Options that name models, embeddings and baselines, and the aligners that these are."""

    model: Annotated[Names, Option(help="default, pf, or a model; default by default.")] = None
    backbone: Annotated[Names, Option(help="Folder or Hub id; can be repeated.")] = None
    store: Annotated[Paths, Option(help="Embedding store of all proteins; repeatable.")] = None
    baseline: Annotated[Names, Option(help="To compare with.", **_one_of(BASELINES))] = None
    structures: Annotated[
        Path | None, Option(help="Folder of {uid}.pdb or .cif, for tm-align and foldseek.")
    ] = None
    kernel_scale: Annotated[Numbers, Option(help="Sweep of kernel_scale.")] = None
    iterations: Annotated[Counts, Option(help="Sweep of Sinkhorn iterations.")] = None
    threshold: Annotated[Numbers, Option(help="Sweep of the weight counted as matched.")] = None
    window: Annotated[Counts, Option(help="Sweep of the diagonal window; 0 for none.")] = None
    device: common.Device = None
    trust_remote_code: common.RemoteCode = False

    def __post_init__(self) -> None:
        self.models = self.model or ["default"]
        sweep = {"kernel_scale": self.kernel_scale, "n_iters": self.iterations}
        sweep |= {"threshold": self.threshold, "diagonal_window": self.window}
        self.sweep = {name: values for name, values in sweep.items() if values}
        self.not_found: list[str] = []  # baselines whose program is not here
        self._sources: dict[tuple[Any, ...], NamedSource] = {}
        self._load = lru_cache(maxsize=4)(self._load_model)

    @cached_property
    def _given(self) -> list[NamedSource]:
        from ..data.store import EmbeddingStore
        from ..evaluation import StoredEmbeddings

        stores = map(EmbeddingStore.open, self.store or ())
        given = [
            self._add(store.fingerprint, StoredEmbeddings(store), store.header.hidden_size)
            for store in stores
        ]
        given += [self._load_source(backbone=name)[0] for name in self.backbone or ()]
        return list(dict.fromkeys(given))

    def of_seed(self, seed: int) -> list[Aligner]:
        """Return all aligners, models as they were trained for a seed."""
        from ..data.store import head_width
        from ..evaluation.aligners import ON_EMBEDDINGS

        given, others = self._given, self._without_embeddings
        models = [(name, *self._load(name.replace("{seed}", str(seed)))) for name in self.models]
        sources = given or list(dict.fromkeys(own for *_, own in models if own))
        sources = sources or [self._load_source(backbone="substitution")[0]]
        found: list[Aligner] = []
        for name, model, own in models:
            for source in [own] if own else sources:
                head_width(model, source.width)  # raises where they do not fit
                found += self._swept(name, model, source)
        chosen = [ON_EMBEDDINGS[name] for name in self.baseline or () if name in ON_EMBEDDINGS]
        found += [kind(source.source, source.name) for source in sources for kind in chosen]
        found += others
        names = [(aligner.name, getattr(aligner, "backbone", "")) for aligner in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            fail(f"{twice[0]} is there twice; give each model and baseline once")
        return found

    def _swept(self, name: str, model: PlasmaModel, source: NamedSource) -> Iterator[Aligner]:
        from ..evaluation import PlasmaAligner, with_settings

        for values in product(*self.sweep.values()):
            changes = dict(zip(self.sweep, values, strict=True))
            suffix = "".join(f", {SHORT.get(key, key)} {v}" for key, v in changes.items())
            changed = with_settings(model, **changes) if changes else model
            yield PlasmaAligner(changed, source.source, name + suffix, source.name)

    def _load_model(self, name: str) -> tuple[PlasmaModel, NamedSource | None]:
        from transformers import AutoConfig

        from ..evaluation import parameter_free
        from ..models.modeling_plasma import PlasmaModel

        if name == "pf":
            return parameter_free(), None
        if name != "default":
            try:
                config = AutoConfig.from_pretrained(name, trust_remote_code=self.trust_remote_code)
            except (ValueError, OSError) as error:
                fail(
                    f"--model {name} cannot be loaded; give a folder or Hub id of a PLASMA model, "
                    f"default or pf. {error}"
                )
            if config.model_type == "plasma" and config.plm_config is None:
                return PlasmaModel.from_pretrained(name).to(self.device or "cpu"), None
        source, plasma = self._load_source(model=None if name == "default" else name)
        assert plasma is not None  # a model was asked for
        return plasma, source

    def _load_source(
        self, model: str | None = None, backbone: str | None = None
    ) -> tuple[NamedSource, PlasmaModel | None]:
        from ..evaluation import CachedEmbeddings

        loading = Embedding(model, None, self.device, self.trust_remote_code, backbone)
        embedder, plasma = load_embedder(loading)
        source = CachedEmbeddings(embedder)
        return self._add(embedder.fingerprint, source, embedder.hidden_size), plasma

    def _add(self, fingerprint: Any, source: EmbeddingSource, width: int) -> NamedSource:
        """Keep one source for each backbone, under a name of its own."""
        name, key = Path(fingerprint["backbone"]).name, tuple(sorted(fingerprint.items()))
        if any(other.name == name for other in self._sources.values()):
            name = f"{name} {len(self._sources) + 1}"
        return self._sources.setdefault(key, NamedSource(name, source, width))

    @cached_property
    def _without_embeddings(self) -> list[Aligner]:
        from ..evaluation.aligners import ON_SEQUENCES, ON_STRUCTURES

        found: list[Aligner] = []
        for name in self.baseline or ():
            if name in ON_SEQUENCES:
                found.append(ON_SEQUENCES[name]())
            elif name in ON_STRUCTURES:
                if self.structures is None:
                    fail(f"--baseline {name} reads structures; give their folder: --structures")
                try:
                    found.append(ON_STRUCTURES[name](self.structures))
                except FileNotFoundError as error:
                    report(f"{name} is left out: {error}")
                    self.not_found.append(name)
        return found


@verb()
def evaluate(
    skipped: Skipped,
    out: Annotated[Path, Option("--out", "-o", help="Folder of the results.")],
    sites: Annotated[Paths, Option(help="Table of sites; can be repeated.")] = None,
    task: Annotated[Names, Option(help="What its sites are; by default the file's name.")] = None,
    *,
    aligners: Aligners,
    protocol: Annotated[
        Literal["strict", "upstream"], Option(help="How pairs are drawn.")
    ] = "strict",
    seed: Annotated[Counts, Option(help="Of a draw; 1 by default; can be repeated.")] = None,
    pairs: Annotated[
        int | None,
        Option(min=2, help="Pairs of a draw, training included; a fifth of them is tested."),
    ] = None,
    split: Annotated[Names, Option(help="Which pairs; both by default.", **_one_of(PARTS))] = None,
    alignments: Annotated[Paths, Option(help="Reference alignments, JSON, also .gz.")] = None,
    examples: Annotated[int, Option(min=0, help="Pairs whose plans are drawn.")] = 2,
    pictures: Annotated[Literal["png", "svg", "none"], Option(help="Format of figures.")] = "png",
    config_file: common.Config = None,
) -> None:
    r"""Evaluate models and baselines: one command gives the table.

    Pairs are drawn from each table of sites, once for each seed: --split test has pairs held out of
    training, test_hard families held out of training. Every aligner sees the same pairs. With
    --alignments, plans are compared with residues that are known to correspond.

    --model is "default" (the bundled model), "pf" (PLASMA-PF, without a parameter), or the folder
    or Hub id of a model; {seed} in it is replaced by the seed, for models trained on one split
    each. pf, heads without a backbone, eba and mean-cosine read the embeddings of each --backbone
    and --store, and without these, of the models' own backbones.

    --kernel-scale, --iterations, --threshold and --window change the models; repeated, they are a
    sweep, and all combinations are evaluated.

    OUT gets evaluation.md, evaluation.json (the same again for the same seeds), timing.json,
    pairs.csv with every pair, and figures of curves and plans.

    Examples:
      plasma-hf evaluate --sites active_site.csv --baseline smith-waterman --out results
      plasma-hf evaluate --sites active_site.csv --model default --model pf --seed 1 --seed 2 \
          --seed 3 --baseline smith-waterman --baseline eba --baseline length --out results
      plasma-hf evaluate --sites binding_site.csv --model runs/binding_{seed} --seed 1 --seed 2 \
          --kernel-scale 0.1 --kernel-scale 0.2 --out sweep
      plasma-hf evaluate --alignments balibase.json.gz --baseline needleman-wunsch --out truth
    """
    from ..data.sites import read_site_table
    from ..data.splits import make_splits
    from ..evaluation import read_reference_pairs, run_residue_truth
    from ..evaluation.report import Evaluation, draw_curves, write_evaluation

    tasks = _named_tables(sites or [], task or [])
    if not tasks and not alignments:
        fail("there is nothing to evaluate; give --sites FILE, --alignments FILE, or both")
    seeds = list(dict.fromkeys(seed or [1]))
    aligners.of_seed(seeds[0])  # errors about models come before the work
    parts = split or PARTS
    evaluation = Evaluation()
    truths: list[TruthRun] = []
    left_out: list[str] = []
    for name, path in tasks.items():
        proteins, invalid = read_site_table(path)
        lines = [f"{path}: row {row.row} ({row.uid}): {row.reason}" for row in invalid]
        left_out += _reported(skipped, lines)
        splits = [make_splits(proteins, protocol, number, pairs) for number in seeds]
        evaluation.runs += _evaluate_sites(aligners, splits, name, parts)
        if pictures != "none" and examples:
            first = [pair for part in reversed(parts) for pair in getattr(splits[0], part)]
            _draw_examples(aligners.of_seed(seeds[0]), first, examples, out, pictures)
    for path in alignments or []:
        references, problems = read_reference_pairs(path)
        left_out += _reported(skipped, [f"{path}: {line}" for line in problems])
        name = path.name.split(".")[0]
        found = (run_residue_truth(a, references, name) for a in aligners.of_seed(seeds[0]))
        truths += [run for run in found if run is not None]
    settings = {
        "sites": {name: str(path) for name, path in tasks.items()},
        "protocol": protocol,
        "seeds": seeds,
        "pairs": pairs,
        "models": aligners.models,
        "sweep": aligners.sweep,
        "not_found": aligners.not_found,
    }
    text = write_evaluation(out, evaluation, truths, left_out, settings)
    if pictures != "none":
        draw_curves(evaluation.runs, out, pictures)
    failed = [
        "{task}, {split}, seed {seed}, {aligner}: {query} and {candidate}: {error}".format(**p)
        for p in evaluation.problems
    ]
    failed += [f"{t.reference}, {t.aligner}: {line}" for t in truths for line in t.problems]
    _reported(skipped, failed)
    _show(text)


def _reported(skipped: Skipped, lines: list[str]) -> list[str]:
    for line in lines:
        skipped.report(line)
    return lines


def _named_tables(sites: list[Path], tasks: list[str]) -> dict[str, Path]:
    if tasks and len(tasks) != len(sites):
        fail(f"{len(tasks)} --task for {len(sites)} --sites; give one for each, or none")
    names = tasks or [path.name.split(".")[0] for path in sites]
    if len(set(names)) < len(names):
        fail(f"tasks of the same name: {', '.join(names)}; tell them apart by --task")
    return dict(zip(names, sites, strict=True))


def _evaluate_sites(
    aligners: Aligners, splits: Sequence[PairSplits], task: str, parts: Sequence[str]
) -> list[Run]:
    from ..evaluation import evaluate_splits

    runs = evaluate_splits(aligners.of_seed, splits, task, parts)
    if not runs:
        fail(f"{task}: the splits {' and '.join(parts)} hold no pairs; give a larger table")
    return runs


def _draw_examples(
    aligners: Sequence[Aligner], pairs: Sequence[ProteinPair], count: int, out: Path, ending: str
) -> None:
    from ..evaluation.report import choose_examples, draw_plans

    (out / "plans").mkdir(parents=True, exist_ok=True)
    chosen = choose_examples(pairs, count)
    for aligner in aligners:
        draw_plans(aligner, chosen, out / "plans", ending)


def _show(text: str) -> None:
    """Print Markdown, laid out if stdout is a terminal."""
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


@verb()
def evaluate_protalign(
    skipped: Skipped,
    structures: common.Structures,
    out: Annotated[Path, Option("--out", "--output", "-o", help="Folder of the results.")],
    model: Annotated[Names, Option(help="default, or a model; can be repeated.")] = None,
    part: Annotated[Literal["test", "validation", "all"], Option(help="Of the pairs.")] = "test",
    seed: Annotated[Counts, Option(help="Of splits; 0 by default; can be repeated.")] = None,
    identity: common.Identity = None,
    min_residues: common.MinResidues = 20,
    max_residues: common.MaxResidues = 1024,
    device: common.Device = None,
    trust_remote_code: common.RemoteCode = False,
    config_file: common.Config = None,
) -> None:
    r"""Measure how well sequences find their structures.

    That is recall at 1 and 5 both ways, reciprocal ranks, recall of families, with confidence
    intervals, floors and baselines.

    --model is "default" (the bundled model), or the folder or Hub id of a trained model; {seed} in
    it is replaced by the seed. Splits are by sequence cluster, and the same for the same seed and
    structures as in training; --part all takes every pair, for structures that no training has
    seen.

    OUT gets evaluation.md and evaluation.json.

    Examples:
      plasma-hf evaluate protalign --structures pdb/ --part all --out results
      plasma-hf evaluate protalign --structures pdb/ --model runs/protalign_{seed} \
          --seed 0 --seed 1 --seed 2 --out results
    """
    from ..evaluation.report import write_report
    from ..evaluation.retrieval import DEFINITIONS, RetrievalReport, pair_vectors
    from ..training.structure_data import split_pairs

    pairs = common.read_pairs(structures, min_residues, max_residues, skipped)
    seeds, options = list(dict.fromkeys(seed or [0])), common.given({"identity": identity})
    found = RetrievalReport("model")
    for number in seeds:
        shares = (0.0, 0.0, 1.0) if part == "all" else (0.8, 0.1, 0.1)
        drawn = split_pairs(pairs, number, shares, **options)
        chosen = drawn.validation if part == "validation" else drawn.test
        for name in model or ["default"]:
            folder = name.replace("{seed}", str(number))
            if part != "all":
                _warn_of_another_split(folder, number)
            place = None if folder == "default" else folder
            loaded = load_model(Loading(place, None, device, trust_remote_code), "protalign")
            for side in ("sequence", "structure"):
                loaded.check_encoder(side)
            sequences, vectors = pair_vectors(loaded, chosen)
            families = [pair.family for pair in chosen]
            found.add(name, number, sequences @ vectors.T, families)
        found.add_baselines(number, chosen)
    settings = {"structures": [str(path) for path in structures], "seeds": seeds, **options}
    content = {"settings": settings, "tables": [found.to_dict()]}
    parts = ["# Retrieval", found.to_markdown(), DEFINITIONS]
    typer.echo(write_report(out, parts, evaluation=content))


def _warn_of_another_split(folder: str, seed: int) -> None:
    file = Path(folder) / "metrics.json"
    if file.exists():
        trained_on = json.loads(file.read_text())["settings"].get("split seed")
        if trained_on is not None and trained_on != seed:
            report(
                f"{folder} was trained on the split of seed {trained_on} and is evaluated on that "
                f"of seed {seed}: it may know a part of the pairs"
            )


@verb()
def evaluate_scope40(
    skipped: Skipped,
    folder: Annotated[Path, typer.Argument(help="Folder of the benchmark.")],
    out: Annotated[Path, Option("--out", "--output", "-o", help="Folder of the results.")],
    sensitivity: Annotated[Names, Option(help="Repeatable.", **_one_of(SENSITIVITIES))] = None,
    iterations: Annotated[int | None, Option(min=1, help="Searches, see plasma-hf search.")] = None,
    baseline: Annotated[Names, Option(help="To compare with.", **_one_of(SEARCHERS))] = None,
    queries: Annotated[int | None, Option(min=1, help="So many, drawn; all by default.")] = None,
    seed: Annotated[int, Option(help="Of the draw.")] = 0,
    *,
    computing: Computing,
    config_file: common.Config = None,
) -> None:
    r"""Search SCOPe40, the field's benchmark: each query domain against all domains.

    FOLDER has domains.fasta.gz, labels.tsv (domain, family) and, beside, published results
    (*.rocx). The table says which share of family, superfamily and fold is ranked before the first
    false positive, false positives per query up to an E-value, and the time, everything included
    (but for the vectors of all domains, which are made before if there is a --model or --backbone).
    OUT gets it, and for each searcher a file in the form of the published ones.

    Examples:
      plasma-hf evaluate scope40 scope40/ --queries 100 --out results
      plasma-hf evaluate scope40 scope40/ --backbone esm2-8m --baseline smith-waterman \
          --baseline mmseqs2 --baseline phmmer --out results
    """
    from ..evaluation import scope40
    from ..evaluation.report import file_name, write_report
    from ..search.database import usual_iterations

    benchmark = scope40.Scope40.read(folder)
    chosen = benchmark.queries(queries, seed)
    if queries is not None and queries > len(chosen):
        report(f"{folder} has {len(chosen)} queries that count; all are taken")
    align = computing.load()
    iterations = iterations or usual_iterations(align)
    # What is missing is said before anything is searched.
    searches = {
        f"{computing.name}, {name}": scope40.plasma(benchmark, align, name, iterations)
        for name in sensitivity or ["default"]
    } | {name: scope40.BASELINES[name](benchmark) for name in baseline or []}
    if computing.backbone or computing.model:
        benchmark.domains.add_vectors(align)
    found = []
    for name, search in searches.items():
        try:
            found.append(scope40.run(benchmark, name, search, chosen))
        except (ValueError, OSError) as error:  # the others are done
            skipped.report(f"{name}: {error}")
    out.mkdir(parents=True, exist_ok=True)
    for one in found:
        one.write(out / f"{file_name(one.name)}.rocx")
    table = scope40.to_markdown([*found, *scope40.published(benchmark, chosen)])
    parts = [f"# SCOPe40, {len(chosen)} queries, {len(benchmark.domains)} domains", table]
    settings = {
        "queries": chosen,
        "iterations": iterations,
        "seed": seed,
        "threads": computing.threads,
    }
    figures = {one.name: one.figures() for one in found}
    evaluation = {"settings": settings, "figures": figures}
    typer.echo(write_report(out, parts, evaluation=evaluation))


@verb()
def evaluate_transfer(
    skipped: Skipped,
    sites: Annotated[Path, typer.Argument(help="Table of sites.")],
    out: Annotated[Path, Option("--out", "--output", "-o", help="Folder of the results.")],
    baseline: Annotated[
        Names, Option(help="To compare with.", **_one_of(("smith-waterman", "phmmer")))
    ] = None,
    families: Annotated[int | None, Option(min=1, help="So many, drawn; all by default.")] = None,
    seed: Annotated[int, Option(help="Of the draw.")] = 0,
    *,
    computing: Computing,
    config_file: common.Config = None,
) -> None:
    """Find the sites of proteins in others, and count the residues that are right.

    SITES is a table as for training (uid, interpro_id, seq_full, label); site_positions0 (0-based,
    as JSON) may name the residues of a site, cluster those that are near copies. A protein of each
    family is the query. The result says which share of residues, and of whole sites, is found in
    its family, by identity, which share of the family is ranked before the first protein of
    another, and how many others have small p-values.

    Examples:
      plasma-hf evaluate transfer active_site.csv --baseline smith-waterman --out results
    """
    from ..evaluation import transfer
    from ..evaluation.report import write_report

    tasks = transfer.draw_tasks(transfer.read_labelled_sites(sites), families, seed=seed)
    if not tasks:
        fail(f"{sites} has no family with two proteins of different clusters")
    align = computing.load()
    methods = {computing.name: transfer.plasma(align)}
    methods |= {one: transfer.BASELINES[one] for one in baseline or []}
    found = [transfer.evaluate_transfer(*one, tasks) for one in methods.items()]
    pairs = sum(len(task.relatives) for task in tasks)
    head = f"# Site transfer, {len(tasks)} families, {pairs} pairs"
    figures = {one.name: one.figures() for one in found}
    typer.echo(write_report(out, [head, transfer.transfer_markdown(found)], evaluation=figures))
