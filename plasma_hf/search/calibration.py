"""What unrelated proteins reach: the background of residues, and the scores that chance gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers.utils import logging

from .. import DEFAULT_CHECKPOINT
from ..models.local_alignment import LONG, TAIL, Calibration
from ..models.modeling_backbone import SEE_LETTERS, vectors_of
from ..models.modeling_plasma import (
    WINDOWS,
    Background,
    LetterWindows,
    PlasmaModel,
    at_least_float32,
)
from ..models.protein import STANDARD_RESIDUES

logger = logging.get_logger(__name__)

UNRELATED = Path(DEFAULT_CHECKPOINT).parent / "unrelated_domains.fasta"
"""Domains of SCOPe 2.01 with their folds, by which chance is measured if no others are given."""
PEPTIDES = (10, 15, 22, 35, 60, 100)
"""Lengths of the short ones among the proteins that chance is measured with."""
CHAINS, LONGEST = 40, 3000
"""How many long ones there are on either side, and the longest: proteins one after another."""
USUAL = 5  # features that say all of proteins up to `LONG`
EULER = 0.5772
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RIDGE = 1e-4  # of the variance of a normalised number
READABLE = 0.98  # share of residues that an embedding has to tell
Embed = Callable[[Sequence[str]], Sequence[Tensor]]
Family = str


@torch.no_grad()
def calibrate(
    model: PlasmaModel,
    proteins: Sequence[tuple[Family, str]],
    embed: Embed,
    pairs: int = 20_000,
    seed: int = 0,
) -> Calibration:
    """Measure what unrelated proteins reach, and keep it in the model and its configuration.

    Half of the pairs are real proteins of different families, a quarter a real one and a shuffled
    one, a quarter a real one and a peptide cut from another or made of its residues. A tenth as
    many more are of long proteins, joined from the real ones of two halves of the families.

    Args:
        model: Read by "posterior"; its `background` and `config.calibration` are set.
        proteins: Family and sequence of a few hundred proteins; of those in one family no pair is
            taken as unrelated.
        embed: Makes residue embeddings of sequences, for example `load_backbone(...).embed`.
        pairs: How many are measured.
        seed: Draws pairs, shuffles and peptides.

    Raises:
        ValueError: If the model reads plans, or there are fewer than ten families.
    """
    if model.config.reading != "posterior":
        raise ValueError('only a model with reading="posterior" has statistics; configure one.')
    families = np.array([family for family, _ in proteins])
    if len(set(families)) < 10:
        raise ValueError(f"{len(set(families))} families; give proteins of ten at least.")
    rng = np.random.default_rng(seed)
    real = [sequence for _, sequence in proteins]
    made = [_shuffled(sequence, rng) for sequence in real]
    short = [_peptide(real[rng.integers(len(real))], rng) for _ in range(len(real))]
    embedded = [_embedded(model, embed, some) for some in (real, made, short)]
    model.measure_background(embedded[0], real)
    sides = [model.project_each(each) for each in embedded]
    drawn = list(_draw(families, pairs, rng))
    usual = [(sides[0][one], sides[kind][other]) for kind, one, other in drawn]
    found = fit(*_reached(model, usual, "pairs"), np.array([kind for kind, *_ in drawn]) == 0)
    one_side, other_side = (
        model.project_each(_embedded(model, embed, some))
        for some in joined_chains(families, real, rng)
    )
    places = rng.integers(CHAINS, size=(pairs // 10, 2)).tolist()
    long = [(one_side[i], other_side[j]) for i, j in places]
    found = fit_long(found, *_reached(model, long, "long pairs"))
    model.config.calibration |= {
        "location": list(found.location),
        "log_scale": list(found.log_scale),
        "tail": found.tail,
        "shape": found.shape,
        "pairs": pairs,
        "proteins": len(real),
        "families": len(set(families)),
    }
    return found


@torch.no_grad()
def measure_background(
    model: PlasmaModel, embeddings: Sequence[Tensor], sequences: Sequence[str] = ()
) -> None:
    """Set what a model compares residues against; see `PlasmaModel.measure_background`."""
    given = [at_least_float32(one.to(model.device)) for one in embeddings]
    model.letters, under = None, model.config.plm_config
    if sequences and under is not None and under.model_type not in SEE_LETTERS:
        letters = LetterWindows(given[0].shape[-1]).to(model.device)
        model.letters = letters if _read_letters(letters, given, sequences) > READABLE else None
    projected = [model.alignment_head(one) for one in given]
    parts = [projected[0].shape[-1], WINDOWS if model.letters else 0]
    length = Background.LETTERS
    if sum(known := getattr(under, "parts", [])) == parts[0]:  # an encoder that has letters
        parts, length = known, under.letters
    model.background = Background(*parts).to(model.device)
    both = zip(projected, given, strict=True)
    _measure(model.background, [model.beside_letters(*one) for one in both], length)
    model.config.calibration = {"width": parts[0]}
    if parts[1]:
        name, width = ("letters", given[0].shape[-1]) if model.letters else ("beside", parts[1])
        model.config.calibration[name] = width


def _read_letters(
    windows: LetterWindows, embeddings: Sequence[Tensor], sequences: Sequence[str]
) -> float:
    """Learn to read embeddings, `(residues, width)` each; return the share read right."""
    known, letters = windows.normalised(torch.cat(list(embeddings))), "".join(sequences)
    which = torch.tensor([[one == letter for one in STANDARD_RESIDUES] for letter in letters])
    which = which.to(known)
    square = (known.T @ known).double()
    square.diagonal().add_(RIDGE * len(known))
    windows.letters.copy_(torch.linalg.solve(square, (known.T @ which).double()))
    windows.vectors.copy_(vectors_of(STANDARD_RESIDUES))
    return float(which.gather(-1, (known @ windows.letters).argmax(-1, keepdim=True)).mean())


def _measure(background: Background, projected: Sequence[Tensor], letters_length: float) -> None:
    """Learn from residues of unrelated proteins, `(residues, width + windows)` each.

    What letters add has the `letters_length`, where that of the rest is 1.
    """
    residues = torch.cat(list(projected)).double()
    background.centre.copy_(residues.mean(0))
    parts = (residues - residues.mean(0)).split(background.widths, -1)
    axes, weights = zip(*map(_principal_axes, parts), strict=True)
    background.axes.copy_(torch.block_diag(*axes))
    background.weights.copy_(torch.cat(weights))
    along = (residues.to(background.centre) - background.centre) @ background.axes
    rest, letters = (along * background.weights).tensor_split([len(background.proteins[0])], -1)
    if letters.shape[-1]:
        longer = (letters.square().sum() / rest.square().sum()).sqrt()
        background.weights[rest.shape[-1] :] *= letters_length / longer
    units = F.normalize(along * background.weights, dim=-1)
    background.moments.copy_(torch.stack([units.mean(0), units.var(0, correction=0)]))
    means = torch.stack([background.mean(background(one)) for one in projected])
    background.proteins.copy_(torch.stack([means.mean(0), means.std(0, correction=0)]))


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return axes of residues, `(width, axes)`, and the weight of each."""
    variance, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    most = min(len(variance), Background.MOST_AXES)
    weights = (variance[-most:] / variance.max()).clamp(min=1e-4) ** Background.POWER
    return axes[:, -most:], weights


@torch.no_grad()
def unrelated_p_values(
    model: PlasmaModel,
    proteins: Sequence[tuple[Family, str]],
    embed: Embed,
    held_out: Collection[Family],
    pairs: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """Return p-values of pairs of different families: uniform where they are true.

    One protein of each pair, or both, is of a family of `held_out`, which `calibrate` has not seen;
    all else is as there. A pair that is drawn again counts once, so that there are `pairs` at most.

    Raises:
        ValueError: If the model is not calibrated, or there is no such pair.
    """
    families, null = np.array([family for family, _ in proteins]), model.calibration
    new = np.isin(families, list(held_out))
    if null is None or not new.any() or len(set(families)) < 2:
        raise ValueError("give a calibrated model, and two families at least, of them one held out")
    sides = model.project_each(_embedded(model, embed, [sequence for _, sequence in proteins]))
    every = _draw(families, math.inf, np.random.default_rng(seed))
    drawn = ((min(i, j), max(i, j)) for _, i, j in every if new[i] or new[j])
    found = [(sides[i], sides[j]) for i, j in dict.fromkeys(islice(drawn, pairs))]
    reached = zip(*_reached(model, found), strict=True)
    return np.array([null.p_value(score, *lengths) for lengths, score in reached])


def _embedded(model: PlasmaModel, embed: Embed, sequences: Sequence[str]) -> list[Tensor]:
    return [one.to(model.device).float() for one in embed(sequences)]


def _reached(
    model: PlasmaModel, pairs: Sequence[tuple[Tensor, Tensor]], told: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of pairs of projections, `(pairs, 2)`, and their raw scores."""
    shown = tqdm(pairs, told, disable=None if told else True)
    scores = [float(model.raw_scores(query, [candidate])) for query, candidate in shown]
    return np.array([list(map(len, pair)) for pair in pairs]), np.array(scores)


def _draw(
    families: np.ndarray, pairs: float, rng: np.random.Generator
) -> Iterator[tuple[int, int, int]]:
    """Yield pairs: the kind of the candidate, the query's number and the candidate's."""
    drawn = 0
    while drawn < pairs:
        one, other = rng.integers(len(families), size=2)
        if families[one] != families[other]:
            yield (0, 0, 1, 2)[drawn % 4], one, other
            drawn += 1


def _shuffled(sequence: str, rng: np.random.Generator) -> str:
    return "".join(rng.permutation(list(sequence)))


def _peptide(sequence: str, rng: np.random.Generator) -> str:
    """Cut a peptide out, or make one of the protein's residues or of any."""
    size = min(int(rng.choice(PEPTIDES)), len(sequence))
    start = int(rng.integers(len(sequence) - size + 1))
    cut = sequence[start : start + size]
    letters = (None, sequence, RESIDUES)[rng.integers(3)]
    return cut if letters is None else "".join(rng.choice(list(letters), size))


def joined_chains(
    families: np.ndarray, real: Sequence[str], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Join proteins to long ones, those of half of the families and those of the other half."""
    names = rng.permutation(np.unique(families))
    chosen = np.isin(families, names[: len(names) // 2])
    sides: tuple[list[str], list[str]] = ([], [])
    for side, of in zip(sides, (np.flatnonzero(chosen), np.flatnonzero(~chosen)), strict=True):
        for size in np.geomspace(LONG, LONGEST, CHAINS).astype(int).tolist():
            chain = ""
            while len(chain) < size:
                chain += real[rng.choice(of)]
            side.append(chain[:size])
    return sides


def fit(lengths: np.ndarray, scores: np.ndarray, real: np.ndarray | None = None) -> Calibration:
    """Fit location and scale of a Gumbel distribution to raw scores, by greatest likelihood.

    Args:
        lengths: Residues of both proteins, `(pairs, 2)`.
        scores: What each pair reaches, `(pairs,)`.
        real: Which pairs are of proteins as they are, `(pairs,)`; these set the tail.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = fit(np.full((2000, 2), 150), rng.gumbel(8.0, 1.5, 2000))
        >>> abs(found.p_value(11.0, 150, 150) - 0.1266) < 0.02
        True
    """
    given = _features(lengths)[:, :USUAL]
    values = torch.from_numpy(scores).double()
    location = torch.linalg.lstsq(given, values.unsqueeze(-1), driver="gelsd").solution[:, 0]
    log_scale = torch.zeros_like(location)
    log_scale[0] = math.log(float((values - given @ location).std()) * math.sqrt(6) / math.pi)
    location[0] -= EULER * math.exp(log_scale[0])
    weights = [location.requires_grad_(), log_scale.requires_grad_()]
    optimizer = torch.optim.LBFGS(weights, max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logs = given @ weights[1]
        distance = (values - given @ weights[0]) / logs.exp()
        total = (logs + distance + (-distance).clamp(max=50).exp()).mean()
        total = total + weights[1][1:].square().sum() / len(values)  # few pairs tell a scale little
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    of_location, of_scale = (tuple(side.detach().tolist()) for side in weights)
    body = Calibration(of_location, of_scale)
    distances = np.array([body.distance(x, *pair) for x, pair in zip(scores, lengths, strict=True)])
    above = distances[(distances > TAIL) & (True if real is None else real)] - TAIL
    if len(above) < 20:
        return body
    shape = _shape(above)
    return replace(body, tail=float((above**shape).mean() ** (1 / shape)), shape=shape)


def fit_long(null: Calibration, lengths: np.ndarray, scores: np.ndarray) -> Calibration:
    """Let the location follow what long proteins reach; for others nothing changes.

    Args:
        null: What `fit` returns.
        lengths: Residues of both proteins, `(pairs, 2)`, above `LONG`.
        scores: What each pair reaches, `(pairs,)`.
    """
    given = _features(lengths)
    known = torch.tensor([null.location, null.log_scale]).double()
    location, log_scale = (given[:, :USUAL] @ known.T).T
    more = torch.from_numpy(scores) - location - EULER * log_scale.exp()  # the mean of a Gumbel
    weights = torch.linalg.lstsq(given[:, USUAL:], more.unsqueeze(-1), driver="gelsd").solution
    return replace(null, location=null.location + tuple(weights[:, 0].tolist()))


def _features(lengths: np.ndarray) -> Tensor:
    return torch.tensor([Calibration.features(*pair) for pair in lengths.tolist()]).double()


def _shape(above: np.ndarray) -> float:
    """Return the shape of a Weibull distribution by greatest likelihood."""
    logs = np.log(above)
    low, high = 0.1, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        weights = above**middle
        rises = (weights * logs).sum() / weights.sum() - 1 / middle < logs.mean()
        low, high = (middle, high) if rises else (low, middle)
    return high
