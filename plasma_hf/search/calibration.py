"""What unrelated proteins reach: the background of residues, and the scores that chance gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from .. import DEFAULT_CHECKPOINT
from ..models.local_alignment import LONG, TAIL, Calibration

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel

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
    embedded = [
        [one.to(model.device).float() for one in embed(some)] for some in (real, made, short)
    ]
    model.measure_background(embedded[0], real)
    sides = [model.project_each(each) for each in embedded]
    lengths, scores, kinds = [], [], []
    for kind, one, other in tqdm(_draw(families, pairs, rng), "pairs", pairs, disable=None):
        query, candidate = sides[0][one], sides[kind][other]
        lengths.append((len(query), len(candidate)))
        scores.append(float(model.raw_scores(query, [candidate])))
        kinds.append(kind)
    found = fit(np.array(lengths), np.array(scores), np.array(kinds) == 0)
    one_side, other_side = (
        model.project_each([one.to(model.device).float() for one in embed(some)])
        for some in joined_chains(families, real, rng)
    )
    drawn = rng.integers(CHAINS, size=(pairs // 10, 2)).tolist()
    long = [(one_side[i], other_side[j]) for i, j in drawn]
    scores = [
        float(model.raw_scores(query, [candidate]))
        for query, candidate in tqdm(long, "long pairs", disable=None)
    ]
    found = fit_long(found, np.array([list(map(len, pair)) for pair in long]), np.array(scores))
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
    embedded = embed([sequence for _, sequence in proteins])
    sides = model.project_each([one.to(model.device).float() for one in embedded])
    every = _draw(families, math.inf, np.random.default_rng(seed))
    drawn = ((min(i, j), max(i, j)) for _, i, j in every if new[i] or new[j])
    found = [(sides[i], sides[j]) for i, j in dict.fromkeys(islice(drawn, pairs))]
    scores = [float(model.raw_scores(one, [other])) for one, other in found]
    return np.array(
        [null.p_value(x, *map(len, pair)) for x, pair in zip(scores, found, strict=True)]
    )


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
