"""Tables and figures of the ProtAlign paper, on structures of your own.

Run as `python -m reproduce.protalign_study --structures pdb/ --table 2 --figure 4 --out results`.

On the split of each seed a model is trained as `plasma-hf train protalign` does it, and beside it
the mean-pool baseline. --table 2 compares CLIP and SigLIP, --table 3 sweeps temperature and bias,
--figure 2 draws sequences and structures before and after training, --figure 3 the training
losses, --figure 4 all cosines, --clusters lists proteins that the model takes to be alike, with the
differences of their sequences. Figures and clusters are of the first seed. With --model nothing is
trained: figures 2 and 4 and the clusters are those of that model, on all structures.

OUT gets evaluation.md, evaluation.json, figures with their numbers, and in runs/ the models. A
command that was stopped goes on when it is run again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from plasma_hf import load_backbone
from plasma_hf.cli.common import Skipped, given, load_structure_encoder, read_pairs
from plasma_hf.data.clusters import connect
from plasma_hf.evaluation import align_sequences
from plasma_hf.evaluation.aligners import identity
from plasma_hf.evaluation.report import file_name, metric_text, write_report
from plasma_hf.evaluation.retrieval import DEFINITIONS, RetrievalReport, pair_vectors
from plasma_hf.io.formats import markdown_table
from plasma_hf.io.plot import new_figure, save_figure
from plasma_hf.io.structures import StructurePair
from plasma_hf.models.configuration_protalign import ProtAlignConfig
from plasma_hf.models.modeling_backbone import Backbone
from plasma_hf.models.modeling_protalign import Gather, ProtAlignModel, Standardize, alone
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNEncoder
from plasma_hf.training.run import METRICS, TRAINED, ProtAlignRun, processor_of
from plasma_hf.training.structure_data import PairParts, split_pairs

MOST_NAMED = 12
"""Differences of two sequences that a table names."""


@dataclass(frozen=True)
class Member:
    """Hold one protein of a cluster.

    `identity` is the share of the shorter sequence that is the same in the first member.
    `differences` from the first member are counted in it from 1: "A52T" is T for A, "A52-" A left
    out, "52+GS" GS put in after residue 52.
    """

    id: str
    length: int
    identity: float
    family: str | None
    differences: tuple[str, ...]


def list_clusters(
    vectors: NDArray[np.floating],
    ids: Sequence[str],
    sequences: Sequence[str],
    families: Sequence[str | None] | None = None,
    least_cosine: float = 0.9,
) -> list[list[Member]]:
    """List the connected components of two and more proteins of close vectors, the largest first.

    `vectors` are of structures or sequences, normalised, `(pairs, shared)`.
    """
    close = np.argwhere(np.triu(vectors @ vectors.T >= least_cosine, k=1)).tolist()
    component = connect(range(len(ids)), [(i, j) for i, j in close])
    members: dict[int, list[int]] = {}
    for number, first in component.items():
        members.setdefault(first, []).append(number)
    families = families or [None] * len(ids)
    return [
        [
            Member(
                ids[n],
                len(sequences[n]),
                _identity(sequences[group[0]], sequences[n]),
                families[n],
                tuple(sequence_differences(sequences[group[0]], sequences[n])),
            )
            for n in group
        ]
        for group in sorted(members.values(), key=len, reverse=True)
        if len(group) > 1
    ]


def sequence_differences(first: str, second: str) -> list[str]:
    """List how one sequence differs from another, as `Member.differences` has it."""
    if first == second:
        return []
    _, path = align_sequences(first, second, "free-ends")
    found, i, j = [], 0, 0
    for row, column in [*path.tolist(), (len(first), len(second))]:
        found += [f"{first[k]}{k + 1}-" for k in range(i, row)]
        if column > j:
            found.append(f"{row}+{second[j:column]}")
        if row < len(first) and first[row] != second[column]:
            found.append(f"{first[row]}{row + 1}{second[column]}")
        i, j = row + 1, column + 1
    return found


def _identity(first: str, second: str) -> float:
    path = align_sequences(first, second, "free-ends")[1]
    return identity(first, second, path, per="shorter")


def clusters_as_markdown(clusters: Sequence[Sequence[Member]]) -> str:
    """Write clusters as one table."""
    rows = [
        (
            str(number),
            member.id,
            member.family or "-",
            _shown(member),
            metric_text(member.identity),
            str(member.length),
        )
        for number, cluster in enumerate(clusters, start=1)
        for member in cluster
    ]
    head = ("cluster", "protein", "family", "differences", "identity", "residues")
    return markdown_table(head, rows, left=4)


def _shown(member: Member) -> str:
    more = len(member.differences) - MOST_NAMED
    named = ", ".join(member.differences[:MOST_NAMED]) or "-"
    return f"{named} and {more} more" if more > 0 else named


# Figures: both kinds of vectors on a plane, losses by epoch, all similarities.


Vectors = NDArray[np.float32]
KINDS = {"sequences": ("#1f77b4", "o"), "structures": ("#d62728", "^")}
LOSS_COLOURS = ("#1f77b4", "#d62728")
MOST_LINES = 40
"""Pairs up to which each sequence is joined to its structure by a line."""


def draw_planes(
    stages: Mapping[str, tuple[Vectors, Vectors]], path: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Draw sequences and structures by t-SNE, side by side for each stage of training.

    `stages` have sequence vectors and structure vectors, `(pairs, shared)` each. The JSON file
    beside the figure has the places, `(pairs, 2)`.
    """
    places = {name: _on_plane(*vectors, seed) for name, vectors in stages.items()}
    figure = new_figure(4.8 * len(places), 4.6)
    all_axes = np.ravel(figure.subplots(1, len(places)))
    for axes, (name, kinds) in zip(all_axes, places.items(), strict=True):
        axes.set(title=name, xticks=[], yticks=[])
        pairs = list(zip(*kinds.values(), strict=True))
        for sequence, structure in pairs if len(pairs) <= MOST_LINES else []:
            axes.plot(*zip(sequence, structure, strict=True), color="#999999", lw=0.6, zorder=0)
        for kind, spots in kinds.items():
            colour, marker = KINDS[kind]
            axes.scatter(*np.array(spots).T, s=14, c=colour, marker=marker, label=kind)
        axes.legend(fontsize=8)
    return _write(figure, path, {"stages": places, "seed": seed})


def _on_plane(sequences: Vectors, structures: Vectors, seed: int) -> dict[str, list[list[float]]]:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            'figure 2 needs scikit-learn; pip install "plasma-hf[evaluate]"'
        ) from error
    count = len(sequences)
    if count < 3:
        raise ValueError(f"{count} pairs are too few for a figure; give at least 3")
    # t-SNE needs fewer neighbours than points, and is usually run with about 30.
    neighbours = min(30.0, (2 * count - 1) / 3)
    plane = TSNE(perplexity=neighbours, metric="cosine", init="random", random_state=seed)
    places = plane.fit_transform(np.concatenate([sequences, structures]).astype(np.float64))
    rounded = np.round(places.astype(float), 3)
    return {"sequences": rounded[:count].tolist(), "structures": rounded[count:].tolist()}


def draw_losses(losses: Mapping[str, Sequence[float]], path: str | Path) -> dict[str, Any]:
    """Draw training losses by epoch, two on an axis each: their scales cannot be compared."""
    if not 1 <= len(losses) <= 2:
        raise ValueError(f"{len(losses)} losses do not fit on two axes; give one or two")
    figure = new_figure(6.4, 4.2)
    first = figure.subplots()
    first.set_xlabel("epoch")
    for number, (name, values) in enumerate(losses.items()):
        axes = first.twinx() if number else first
        colour = LOSS_COLOURS[number]
        axes.plot(range(1, len(values) + 1), values, color=colour)
        axes.set_ylabel(f"training loss, {name}", color=colour)
        axes.tick_params(axis="y", colors=colour)
    return _write(figure, path, {"losses": {name: list(v) for name, v in losses.items()}})


def draw_heat_map(
    similarity: NDArray[np.floating], ids: Sequence[str], path: str | Path
) -> dict[str, Any]:
    """Draw all cosines `(sequences, structures)`, sequences from top to bottom."""
    figure = new_figure(6.0, 5.2)
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set(xlabel="structures", ylabel="sequences")
    rounded = np.round(np.asarray(similarity, dtype=float), 4).tolist()
    return _write(figure, path, {"ids": list(ids), "cosines": rounded})


def _write(figure: Any, path: str | Path, numbers: dict[str, Any]) -> dict[str, Any]:
    path = Path(path)
    save_figure(figure, path)
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return numbers


# The runs that tables and figures are made of: each trained once, for several seeds.


class MeanPool(nn.Module):
    """Take the mean of the residues, and a linear map of it; used as `AttentionPool` is."""

    def __init__(self, residue_size: int, shared_size: int, standardize: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(residue_size, shared_size)
        self.scale = Standardize(shared_size) if standardize else None

    def forward(
        self, embeddings: Tensor, mask: Tensor, gather: Gather = alone
    ) -> tuple[Tensor, Tensor]:
        """Return vectors `(batch, shared)`, and the equal weights of the residues."""
        weights = mask.to(self.linear.weight.dtype)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        rows = embeddings.to(weights.dtype).masked_fill(~mask.unsqueeze(-1), 0.0)
        vectors = self.linear((weights.unsqueeze(1) @ rows).squeeze(1))
        return vectors if self.scale is None else self.scale(vectors, gather), weights


class MeanPoolModel(ProtAlignModel):
    """ProtAlign with one linear map of the mean residue for each side; all else is the same."""

    _auto_class = None  # a baseline is saved without code: it is no model for the Hub

    def __init__(self, config: ProtAlignConfig) -> None:
        super().__init__(config)
        sizes = {"sequence": config.sequence_size, "structure": config.structure_size}
        for side, size in sizes.items():
            setattr(self, f"{side}_pool", MeanPool(size, config.hidden_size, config.standardize))
        self.post_init()


TEMPERATURES = (0.07, 0.035, 0.02, 0.001)
BIASES = (-20.0, -10.0, -5.0, 0.0)


@dataclass(frozen=True)
class Variant:
    """Hold one way to train a model; `config` goes before that of the study."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: type[ProtAlignModel] = ProtAlignModel


OURS = Variant("ProtAlign")
MEAN_POOL = Variant("mean-pool + linear", {}, MeanPoolModel)
CLIP = Variant("CLIP", {"loss": "clip"})
SIGLIP = Variant("SigLIP", {"loss": "siglip"})
# A value that is swept is not learnt.
TEMPERATURE_SWEEP = tuple(
    Variant(
        f"CLIP, tau {tau:g}", {"loss": "clip", "logit_temperature": tau, "learn_temperature": False}
    )
    for tau in TEMPERATURES
)
BIAS_SWEEP = tuple(
    Variant(f"SigLIP, bias {bias:g}", {"loss": "siglip", "logit_bias": bias, "learn_bias": False})
    for bias in BIASES
)
TABLES = {2: (CLIP, SIGLIP), 3: (*TEMPERATURE_SWEEP, *BIAS_SWEEP)}
"""The tables of the paper, by what is trained for them."""


@dataclass(frozen=True)
class RetrievalStudy:
    """Train variants on the splits of several seeds, each once, and give their vectors.

    Runs are kept in the folder; a study that was stopped goes on where it was. Each seed splits
    `pairs` anew; each run starts from a copy of `encoder`. `run` is what all runs have in common,
    its folder that of the study, and `split` has options of `split_pairs`.
    """

    pairs: Sequence[StructurePair]
    backbone: Backbone
    encoder: ProteinMPNNEncoder
    run: ProtAlignRun
    seeds: Sequence[int] = (0,)
    split: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[int, PairParts]:
        """The split of each seed."""
        return {seed: split_pairs(self.pairs, seed, **self.split) for seed in self.seeds}

    def train(self, variant: Variant, seed: int) -> ProtAlignModel:
        """Return a variant trained on the split of a seed, with its encoders."""
        run, parts = self.run_of(variant, seed), self.parts[seed]
        if not run.is_finished(parts):
            run.train(parts, self.backbone, copy.deepcopy(self.encoder), resume=True)
        return variant.model_class.from_pretrained(run.folder)

    def vectors(self, variant: Variant, seed: int) -> tuple[Vectors, Vectors]:
        """Return the vectors of the test pairs, after training."""
        return pair_vectors(self.train(variant, seed), self.parts[seed].test)

    def untrained_vectors(self, variant: Variant, seed: int) -> tuple[Vectors, Vectors]:
        """Return the vectors of the test pairs by the model that training starts from."""
        encoder = copy.deepcopy(self.encoder)
        model = self.run_of(variant, seed).untrained_model(self.backbone, encoder)
        model.attach_backbone(self.backbone).attach_structure_encoder(encoder)
        model.processor = processor_of(model, self.backbone)
        return pair_vectors(model, self.parts[seed].test)

    def losses(self, variant: Variant, seed: int) -> list[float]:
        """Return the training loss of each epoch."""
        self.train(variant, seed)
        file = Path(self.run_of(variant, seed).folder) / METRICS
        return json.loads(file.read_text())["losses"]

    def run_of(self, variant: Variant, seed: int) -> ProtAlignRun:
        """Return the run that a variant is trained by."""
        folder = Path(self.run.folder)
        config = dict(self.run.config) | dict(variant.config)
        # By what is trained, not by name: two tables may have the same model in them.
        words = [variant.model_class.__name__, *(f"{k}_{v}" for k, v in sorted(config.items()))]
        return replace(
            self.run,
            folder=folder / "runs" / file_name("_".join([*words, f"seed{seed}"])),
            store=self.run.store or folder / "store",
            seed=seed,
            model_class=variant.model_class,
            config=config,
        )

    def report(self, title: str, variants: Sequence[Variant]) -> RetrievalReport:
        """Train variants on every seed, and compare them on its test pairs."""
        found = RetrievalReport(title)
        for seed in self.seeds:
            test = self.parts[seed].test
            for variant in variants:
                sequences, structures = self.vectors(variant, seed)
                families = [pair.family for pair in test]
                found.add(variant.name, seed, sequences @ structures.T, families)
            if MEAN_POOL in variants:
                found.add_baselines(seed, test)
        return found


def describe(
    options: argparse.Namespace,
    pairs: Sequence[StructurePair],
    stages: Mapping[str, tuple[Vectors, Vectors]],
) -> list[list[Member]] | None:
    """Draw the figures of the vectors of one model, and list its clusters, as far as asked for."""
    ids = [pair.id for pair in pairs]
    sequences, structures = stages["after training"]
    if 2 in options.figure:
        draw_planes(stages, options.out / "figure2.png")
    if 4 in options.figure:
        draw_heat_map(sequences @ structures.T, ids, options.out / "figure4.png")
    if not options.clusters:
        return None
    texts, families = [pair.sequence for pair in pairs], [pair.family for pair in pairs]
    return list_clusters(structures, ids, texts, families, options.least_cosine)


def study_of(options: argparse.Namespace, pairs: Sequence[StructurePair]) -> RetrievalStudy:
    """Return the study that the options ask for."""
    backbone = load_backbone(options.sequence_backbone, device=options.device)
    encoder = load_structure_encoder(options.structure_encoder, options.seed[0], options.device)
    run = ProtAlignRun(
        options.out,
        preset=options.preset,
        trained=options.train_encoders,
        config={"loss": options.loss},
        arguments=given(
            {
                "num_train_epochs": options.epochs,
                "per_device_train_batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "use_cpu": options.device == "cpu" or None,
            }
        ),
    )
    split = {} if options.identity is None else {"identity": options.identity}
    return RetrievalStudy(pairs, backbone, encoder, run, options.seed, split)


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.protalign_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--structures", type=Path, nargs="+", required=True, help="folders or files of structures")
    add("--out", type=Path, required=True, help="folder of the results")
    add("--model", help="folder or Hub id of a trained model to describe; nothing is trained")
    add("--seed", type=int, nargs="+", default=[0], help="of splits and runs")
    add("--table", type=int, nargs="+", choices=(2, 3), default=[])
    add("--figure", type=int, nargs="+", choices=(2, 3, 4), default=[])
    add("--clusters", action="store_true", help="list proteins that lie close together")
    add("--least-cosine", type=float, default=0.9, help="from which on two proteins are linked")
    add("--sequence-backbone", default="substitution", help="name, folder or Hub id")
    add("--structure-encoder", default="new", help="ProteinMPNN .pt, a folder, or new")
    add("--train-encoders", choices=TRAINED, default="none")
    add("--preset", choices=("improved", "published"), default="improved")
    add("--loss", choices=("clip", "siglip"), default="clip")
    add("--identity", type=float, help="from which on sequences are in one cluster")
    add("--min-residues", type=int, default=20)
    add("--max-residues", type=int, default=1024)
    add("--epochs", type=float)
    add("--batch-size", type=int)
    add("--learning-rate", type=float)
    add("--device", default="cpu")
    options = parser.parse_args(words)
    if options.model and (options.table or 3 in options.figure):
        parser.error("--table and --figure 3 train models of their own; leave --model out for them")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; 2 says that a structure could not be used."""
    options = options_of(words)
    skipped = Skipped()
    pairs = read_pairs(options.structures, options.min_residues, options.max_residues, skipped)
    options.out.mkdir(parents=True, exist_ok=True)
    reports, stages = [], {}
    if options.model:
        stages["after training"] = pair_vectors(
            ProtAlignModel.from_pretrained(options.model), pairs
        )
    else:
        study, seed = study_of(options, pairs), options.seed[0]
        reports.append(study.report("model", (OURS, MEAN_POOL)))
        reports += [study.report(f"table {n}", TABLES[n]) for n in options.table]
        if 2 in options.figure:
            stages["before training"] = study.untrained_vectors(OURS, seed)
        stages["after training"] = study.vectors(OURS, seed)
        pairs = list(study.parts[seed].test)
        if 3 in options.figure:
            losses = {variant.name: study.losses(variant, seed) for variant in (CLIP, SIGLIP)}
            draw_losses(losses, options.out / "figure3.png")
    clusters = describe(options, pairs, stages)
    parts = ["# Retrieval", *(report.to_markdown() for report in reports), DEFINITIONS]
    settings = {"structures": [str(path) for path in options.structures], "seeds": options.seed}
    found: dict[str, Any] = {"settings": settings, "tables": [r.to_dict() for r in reports]}
    if clusters is not None:
        parts += [f"## Proteins that lie within a cosine of {options.least_cosine:g}"]
        parts += [clusters_as_markdown(clusters) if clusters else "None."]
        found["clusters"] = [[asdict(member) for member in cluster] for cluster in clusters]
    print(write_report(options.out, parts, evaluation=found))
    return 2 if skipped.told else 0


if __name__ == "__main__":
    raise SystemExit(main())
