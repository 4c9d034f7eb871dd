"""`plasma-hf evaluate`: models and baselines on held-out pairs and on known correspondences."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_errors import fail, one_line_errors, report

# torch and transformers are imported where they are needed: `--help` has no use for them.
from .cli_options import Device, ProtocolName, RemoteCode

if TYPE_CHECKING:
    from .cli_line_up import LineUp
    from .data.site_table import SiteProtein
    from .evaluation import Aligner, Evaluation, TruthRun


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
        from .cli_line_up import LineUp

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
    from .data.site_table import read_site_table

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
    from .data.splits import make_splits
    from .evaluation import Evaluation, evaluate_splits

    splits = [make_splits(proteins, protocol.value, seed, pairs) for seed in seeds]
    runs = evaluate_splits(line_up.aligners, splits, task, parts)
    if not runs:
        fail(f"{task}: the splits {' and '.join(parts)} hold no pairs; give a larger table")
    examples = [pair for part in reversed(parts) for pair in getattr(splits[0], part)]
    return Evaluation(runs), examples


def _evaluate_alignments(
    aligners: Sequence[Aligner], path: Path
) -> tuple[list[TruthRun], list[str]]:
    from .evaluation import read_reference_pairs, run_residue_truth

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
        from .evaluation import Evaluation

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
        from .evaluation.pictures import choose_examples, draw_plans

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
                from .evaluation.pictures import draw_curves

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
        from .evaluation import PairOutcome

        names = [field.name for field in fields(PairOutcome)]
        with (self.out / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["task", "backbone", "aligner", "split", "seed", *names])
            for run in self.evaluation.runs:
                head = [run.task, run.backbone, run.aligner, run.split, run.seed]
                for pair in run.outcomes.pairs:
                    rows.writerow([*head, *(getattr(pair, name) for name in names)])

    def _markdown(self) -> str:
        from .evaluation import truth_markdown

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
