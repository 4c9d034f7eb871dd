"""Proteins that a model holds to be alike, and how their sequences differ."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.clusters import connect
from ..io.structures import StructurePair
from ..models.modeling_backbone import Backbone
from ..models.modeling_protalign import ProtAlignModel
from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
from ..training.run import METRICS, ProtAlignRun, processor_of
from ..training.structure_data import PairCollation, PairFeatures, PairParts, split_pairs
from .aligners import align_sequences
from .plots import file_name
from .report import figure_text, markdown_table
from .retrieval import MeanPoolModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_NAMED = 12
"""Differences of two sequences that a table names."""


@dataclass(frozen=True)
class Member:
    """Hold one protein of a cluster.

    Attributes:
        id: Of the pair.
        length: Residues of its sequence.
        identity: Residues of the shorter sequence that are the same in the first member, a share.
        family: As it was given.
        differences: From the first member, counted in the first from 1: "A52T" is T for A, "A52-"
            A left out, "52+GS" GS put in after residue 52. Empty for the first.
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
    """List the connected components of proteins whose vectors lie close together.

    Args:
        vectors: Of structures or sequences, normalised, `(pairs, shared)`.
        ids: Of the pairs.
        sequences: Of the pairs.
        families: Of the pairs.
        least_cosine: From which on two proteins are linked.

    Returns:
        Components of two and more, the largest first.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> (cluster,) = list_clusters(vectors, ["a", "b", "c"], ["MKVLAW", "MKILAW", "WWWW"])
        >>> [(member.id, member.differences) for member in cluster]
        [('a', ()), ('b', ('V3I',))]
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
    """List how one sequence differs from another, by a global alignment.

    Args:
        first: One-letter residues; positions are counted in it, from 1.
        second: One-letter residues.

    Raises:
        ImportError: If biopython is not installed.

    Example:
        >>> sequence_differences("MKVLAWGG", "MKILAWTTGG")
        ['V3I', '6+TT']
    """
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
    _, path = align_sequences(first, second, "free-ends")
    same = sum(first[i] == second[j] for i, j in path.tolist())
    return same / min(len(first), len(second))


def clusters_as_json(clusters: Sequence[Sequence[Member]]) -> list[list[dict[str, Any]]]:
    """Give clusters as JSON can hold them."""
    return [[asdict(member) for member in cluster] for cluster in clusters]


def clusters_as_markdown(clusters: Sequence[Sequence[Member]]) -> str:
    """Write clusters as one table.

    Example:
        >>> print(clusters_as_markdown([[Member("b", 6, 0.8333, "F", ("V3I",))]]))
        | cluster | protein | family | differences | identity | residues |
        |---|---|---|---|--:|--:|
        | 1 | b | F | V3I | .833 | 6 |
    """
    rows = [
        (
            str(number),
            member.id,
            member.family or "-",
            _shown(member),
            figure_text(member.identity),
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


# --- Pictures of a retrieval: both kinds of vectors on a plane, losses by epoch, all similarities.


Vectors = NDArray[np.float32]
KINDS = {"sequences": ("#1f77b4", "o"), "structures": ("#d62728", "^")}
LOSS_COLOURS = ("#1f77b4", "#d62728")
MOST_LINES = 40
"""Pairs up to which each sequence is joined to its structure by a line."""


def draw_planes(
    stages: Mapping[str, tuple[Vectors, Vectors]], path: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Draw sequences and structures by t-SNE, side by side for each stage of training.

    Args:
        stages: Sequence vectors and structure vectors, `(pairs, shared)` each, by what the stage
            is called, such as "before training".
        path: Picture to write.
        seed: Of t-SNE.

    Returns:
        What the JSON file beside the picture holds: places `(pairs, 2)` by stage and kind.

    Raises:
        ImportError: If matplotlib or scikit-learn is not installed.
        ValueError: If there are fewer than three pairs.
    """
    places = {name: _on_plane(*vectors, seed) for name, vectors in stages.items()}
    figure = _figure(4.8 * len(places), 4.6)
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
            'this picture needs scikit-learn; pip install "plasma-hf[evaluate]"'
        ) from error
    count = len(sequences)
    if count < 3:
        raise ValueError(f"{count} pairs make no picture; give at least 3")
    # t-SNE needs fewer neighbours than points, and is usually run with about 30.
    neighbours = min(30.0, (2 * count - 1) / 3)
    plane = TSNE(perplexity=neighbours, metric="cosine", init="random", random_state=seed)
    places = plane.fit_transform(np.concatenate([sequences, structures]).astype(np.float64))
    rounded = np.round(places.astype(float), 3)
    return {"sequences": rounded[:count].tolist(), "structures": rounded[count:].tolist()}


def draw_losses(losses: Mapping[str, Sequence[float]], path: str | Path) -> dict[str, Any]:
    """Draw training losses by epoch, each of two on an axis of its own.

    Scales of different losses cannot be compared, hence the two axes.

    Args:
        losses: Mean loss of each epoch by the name of the loss, one or two.
        path: Picture to write.

    Returns:
        What the JSON file beside the picture holds.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are more than two.
    """
    if not 1 <= len(losses) <= 2:
        raise ValueError(f"{len(losses)} losses do not fit on two axes; give one or two")
    figure = _figure(6.4, 4.2)
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
    """Draw all cosines, sequences from top to bottom, structures from left to right.

    Args:
        similarity: `(sequences, structures)`.
        ids: Of the pairs, in order.
        path: Picture to write.

    Returns:
        What the JSON file beside the picture holds.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _figure(6.0, 5.2)
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set(xlabel="structures", ylabel="sequences")
    rounded = np.round(np.asarray(similarity, dtype=float), 4).tolist()
    return _write(figure, path, {"ids": list(ids), "cosines": rounded})


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib; pip install "plasma-hf[plot]"') from error
    # A Figure without pyplot draws by Agg: no screen is needed, and nothing stays in memory.
    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: str | Path, numbers: dict[str, Any]) -> dict[str, Any]:
    path = Path(path)
    # Without the date, the same numbers give the same file.
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return numbers


# --- The runs that tables and figures of a retrieval are made of: trained once, for several seeds.


TEMPERATURES = (0.07, 0.035, 0.02, 0.001)
BIASES = (-20.0, -10.0, -5.0, 0.0)
PAIRS_PER_BATCH = 32

StudyVectors = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Sequence vectors and structure vectors of pairs, `(pairs, shared)` each, of length 1."""


@dataclass(frozen=True)
class Variant:
    """Hold one way to train a model.

    Attributes:
        name: What a table calls it.
        config: Fields of `ProtAlignConfig` that go before those of the study.
        model_class: `ProtAlignModel`, or one with other pools.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: type[ProtAlignModel] = ProtAlignModel


CLIP = Variant("CLIP", {"loss": "clip"})
SIGLIP = Variant("SigLIP", {"loss": "siglip"})
MEAN_POOL = Variant("mean-pool + linear", {}, MeanPoolModel)
# A value that is swept is not learnt.
TEMPERATURE_SWEEP = tuple(
    Variant(
        f"CLIP, tau {tau:g}",
        {"loss": "clip", "logit_temperature": tau, "learn_temperature": False},
    )
    for tau in TEMPERATURES
)
BIAS_SWEEP = tuple(
    Variant(f"SigLIP, bias {bias:g}", {"loss": "siglip", "logit_bias": bias, "learn_bias": False})
    for bias in BIASES
)
VARIANTS = {"table 2": (CLIP, SIGLIP), "table 3": (*TEMPERATURE_SWEEP, *BIAS_SWEEP)}
"""The tables of the paper, by what is trained for them."""


@dataclass(frozen=True)
class RetrievalStudy:
    """Train variants on the splits of several seeds, each once, and give their vectors.

    Runs are kept in the folder; a study that was stopped goes on where it was.

    Attributes:
        pairs: All of them; each seed splits them anew.
        backbone: Of the sequences.
        encoder: Of the structures; each run starts from a copy.
        run: What every run has in common; its folder is that of the study.
        seeds: Of splits and runs.
        split: Options of `split_pairs`.
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

    def vectors(self, variant: Variant, seed: int) -> StudyVectors:
        """Return the vectors of the test pairs, after training."""
        model = self.train(variant, seed)
        return pair_vectors(model, self.parts[seed].test, self._collation(model, seed))

    def untrained_vectors(self, variant: Variant, seed: int) -> StudyVectors:
        """Return the vectors of the test pairs by the model that training starts from."""
        encoder = copy.deepcopy(self.encoder)
        model = self.run_of(variant, seed).untrained_model(self.backbone, encoder)
        return pair_vectors(model, self.parts[seed].test, self._collation(model, seed))

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

    def _collation(self, model: ProtAlignModel, seed: int) -> PairCollation:
        features = self.run_of(Variant("-"), seed).features(
            self.parts[seed].test, self.backbone, self.encoder
        )
        return PairCollation(features, processor_of(model, self.backbone))


def model_vectors(model: ProtAlignModel, pairs: Sequence[StructurePair]) -> StudyVectors:
    """Return the vectors of pairs by the encoders that a model has."""
    return pair_vectors(model, pairs, PairCollation(PairFeatures(None, None), model.processor))


@torch.no_grad()
def pair_vectors(
    model: ProtAlignModel, pairs: Sequence[StructurePair], collation: PairCollation
) -> StudyVectors:
    """Return the vectors of pairs.

    Args:
        model: Put in eval mode.
        pairs: Sequences and structures.
        collation: Makes batches of rows as `StructurePairs` has them.
    """
    model.eval()
    # Those of like length together, so that little is padding.
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].sequence))
    sequences = torch.zeros(len(pairs), model.config.hidden_size)
    structures = torch.zeros_like(sequences)
    for start in range(0, len(order), PAIRS_PER_BATCH):
        places = order[start : start + PAIRS_PER_BATCH]
        batch = collation([{"pair": pairs[i]} for i in places])
        output = model(**{name: value.to(model.device) for name, value in batch.items()})
        sequences[places] = output.sequence_features.float().cpu()
        structures[places] = output.structure_features.float().cpu()
    return sequences.numpy(), structures.numpy()
