"""Local alignments of two proteins: which residues correspond, and whether that is chance.

The evidence of a residue pair is its similarity in standard deviations of unrelated residues. Every
local alignment, with affine gaps, weighs the product of its pairs' odds; sums over all of them say
how likely two residues are aligned, and how much more the proteins have in common than others.

Source: pair hidden Markov models (Durbin et al., Biological sequence analysis, 1998, chapter 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from plasma_hf.kernels import kernel_for
except ImportError:  # as remote code, plain torch computes

    def kernel_for(form: str, tensor: Tensor) -> Callable[..., Any] | None:
        """Return no compiled kernel."""
        return None


NEVER = -1e30  # evidence of what may not be aligned; finite, so that no gradient becomes NaN


class Scoring(NamedTuple):
    """How evidence becomes log-odds, `slope * (evidence - shift)`, and what gaps cost, in nats.

    Attributes:
        slope: Log-odds of a standard deviation of evidence.
        shift: Evidence that speaks neither for a pair nor against it.
        gap_open: Cost of the first residue of a gap.
        gap_extend: Cost of each further one.
    """

    slope: float
    shift: float
    gap_open: float
    gap_extend: float

    def log_odds(self, evidence: Tensor) -> Tensor:
        """Return the log-odds of pairs; `NEVER` stays."""
        odds = self.slope * (evidence - self.shift)
        return odds.masked_fill(evidence <= NEVER, NEVER)


READING = Scoring(0.3, 0.1, 4.5, 0.2)
"""Finds true partners, and how much proteins share: also what is weakly alike counts."""
SEARCHING = Scoring(0.7, 1.5, 7.0, 0.5)
"""Tells related from unrelated: long stretches of chance add up to nothing."""
AVERAGING = SEARCHING._replace(shift=2.5)
"""Tells what of a relative makes a profile: not what stands beside a common domain."""
MOST_EVIDENCE = 8.0  # of a pair; equal peptides could be as alike as one likes
USUAL_RESIDUES = 100  # of a protein; a score counts those that a peptide lacks

# --- Sums over all local alignments.


def aligned_probabilities(evidence: Sequence[Tensor], scoring: Scoring = READING) -> list[Tensor]:
    """Return the probabilities that residues of pairs of proteins are aligned, in [0, 1].

    Every local alignment, in which both residues rise from a pair to the next, weighs the product
    of the odds of its pairs and of what its gaps cost; a pair's probability is the share of the
    alignments that have it. Rows and columns sum to at most 1.

    Evidence and probabilities are `(query_residues, candidate_residues)`, of each pair of proteins.

    Example:
        >>> evidence = 4 * torch.eye(12)
        >>> evidence[5] = evidence[:, 5] = 0.0
        >>> evidence[5, 11] = 4.0  # out of order
        >>> [found] = aligned_probabilities([evidence])
        >>> found[5, 5] > found[5, 11], found.sum(0).max() < 1.001
        (tensor(True), tensor(True))
    """
    if compiled := _kernel("aligned_probabilities", evidence):
        return compiled(evidence, scoring)
    return [probability_by_logarithms(one, scoring) for one in evidence]


def probability_by_logarithms(evidence: Tensor, scoring: Scoring) -> Tensor:
    """Do what `aligned_probabilities` does for one pair, however much an alignment weighs."""
    if not evidence.numel():
        return torch.zeros_like(evidence)
    odds = scoring.log_odds(evidence.double())
    ending = _alignments_ending(odds, scoring)
    beginning = _alignments_ending(odds.flip(-2, -1), scoring).flip(-2, -1)
    # A pair is in both halves, and counts once.
    found = ending + beginning - odds - ending.flatten().logsumexp(-1)
    return found.clamp(max=0.0).exp().masked_fill(evidence <= NEVER, 0.0).to(evidence.dtype)


def alignment_scores(evidence: Sequence[Tensor], scoring: Scoring = SEARCHING) -> Tensor:
    """Return raw scores: the logarithm of the sum of all alignments' weights, `(pairs,)`.

    Example:
        >>> alignment_scores([4 * torch.eye(10)]).round(decimals=1)
        tensor([17.9000])
    """
    if compiled := _kernel("alignment_scores", evidence):
        return compiled(evidence, scoring)
    return torch.stack([_score_by_logarithms(one, scoring) for one in evidence])


def _score_by_logarithms(evidence: Tensor, scoring: Scoring) -> Tensor:
    if not evidence.numel():
        return evidence.new_tensor(NEVER)
    odds = scoring.log_odds(evidence.double())
    return _alignments_ending(odds, scoring).flatten().logsumexp(-1).to(evidence.dtype)


def _kernel(form: str, evidence: Sequence[Tensor]) -> Callable[..., Any] | None:
    """Return the compiled form; plain torch computes what has a gradient."""
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in evidence)
    return None if learns or not evidence else kernel_for(form, evidence[0])


def share_of_evidence(sums: Tensor, shorter: Tensor) -> Tensor:
    """Turn sums over alignments into scores in [0, 1]: the share of what could be in common.

    Equal proteins of the shorter one's length, and of at least `USUAL_RESIDUES` residues, have the
    most evidence at each residue. Sums are `alignment_scores` by `READING`, `(batch,)`.
    """
    each = READING.slope * (MOST_EVIDENCE - READING.shift)
    return (F.softplus(sums) / (each * shorter.clamp(min=USUAL_RESIDUES))).clamp(max=1.0)


class Evidence(NamedTuple):
    """Evidence of the residue pairs of two proteins, `(query_residues, candidate_residues)` each.

    Attributes:
        read: Tells which residues correspond, and how much two proteins share.
        scored: Less what residues have in common with their own protein: relatives from chance.
    """

    read: Tensor
    scored: Tensor


def _larger(one: Tensor, other: Tensor) -> Tensor:
    """Take the larger numbers; at a tie the gradient goes to one of them."""
    one, other = torch.broadcast_tensors(one, other)
    return torch.where(one >= other, one, other)


def _alignments_ending(odds: Tensor, scoring: Scoring, best: bool = False) -> Tensor:
    """Sum up, in logarithms, the alignments that end with a pair, or take the best; as `odds`."""
    columns = odds.shape[-1]
    add = _larger if best else torch.logaddexp
    opened = -scoring.gap_open
    extend = -scoring.gap_extend * torch.arange(1, columns + 1, device=odds.device).to(odds)
    match = query_gap = total = torch.full_like(odds[..., 0, :], NEVER)
    rows = []
    for row in odds.unbind(-2):
        # Before the pair: one residue back on both sides, or nothing, as an alignment is local.
        before = add(F.pad(total[..., :-1], (1, 0), value=NEVER), odds.new_zeros(()))
        query_gap = add(match + opened, query_gap - scoring.gap_extend)
        match = row + before
        start = F.pad(add(match, query_gap)[..., :-1], (1, 0), value=NEVER) + opened - extend
        start = start.cummax(-1).values if best else start.logcumsumexp(-1)
        total = add(add(match, query_gap), start + extend)
        rows.append(match)
    return torch.stack(rows, -2)


# --- Single alignments of two proteins; `evidence` is `(query_residues, candidate_residues)`.

Box = tuple[slice, slice]  # of the query, of the candidate


def best_stretch(evidence: Tensor, scoring: Scoring = SEARCHING) -> Box:
    """Return where the local alignment that weighs most lies in query and candidate.

    Example:
        >>> best_stretch(5 * torch.eye(3))
        (slice(0, 3, None), slice(0, 3, None))
    """
    if compiled := kernel_for("best_stretch", evidence):
        return compiled(evidence, scoring)
    with torch.enable_grad():  # the gradient of the largest weight is 1 at the pairs it is made of
        odds = scoring.log_odds(evidence.detach().double()).requires_grad_()
        weight = _alignments_ending(odds, scoring, best=True).flatten().max(0).values
        pairs = torch.autograd.grad(weight, odds)[0].nonzero()
    first, last = pairs.amin(0).tolist(), pairs.amax(0).tolist()
    return slice(first[0], last[0] + 1), slice(first[1], last[1] + 1)


def best_in_order(gain: Tensor) -> Tensor:
    """Return the pairs in order that gain most together, `(pairs, 2)`; what gains nothing is not.

    Example:
        >>> best_in_order(torch.tensor([[0.9, -0.1, 0.3], [0.2, -0.1, 0.6]])).tolist()
        [[0, 0], [1, 2]]
    """
    if compiled := kernel_for("best_in_order", gain):
        return compiled(gain)
    with torch.enable_grad():
        gain = gain.detach().double().requires_grad_()
        best = gain.new_zeros(gain.shape[1] + 1)
        for row in gain:
            best = torch.cat([best[:1], _larger(best[1:], best[:-1] + row)]).cummax(0).values
        pairs = torch.autograd.grad(best[-1], gain)[0]
    return (pairs > 0.5).nonzero().cpu()


@dataclass(frozen=True)
class Alignment:
    """A local alignment.

    Attributes:
        pairs: Residues that are aligned, 0-based, in order, `(pairs, 2)`.
        weights: Probability of each, given that the stretch is aligned, `(pairs,)`.
        raw_score: Of `alignment_scores`, without the stretches that were found before.
        left: Share of the residue pairs that these had left.
    """

    pairs: Tensor
    weights: Tensor
    raw_score: float
    left: float = 1.0


def find_alignments(
    evidence: Evidence,
    probability: Tensor,
    raw_score: float,
    is_significant: Callable[[float, float], bool],
    max_hits: int = 10,
    max_gap: int = 30,
    least: float = 0.2,
) -> list[Alignment]:
    """Find disjoint local alignments until none is significant: every copy, in any order.

    The best stretch is found and taken out, with all pairs of its residues, until what is left is
    chance. Stretches that rise together on both sides are read together, so that what lies
    between them is found, others as if these were not there; a gap of more than `max_gap`
    residues divides an alignment.

    Args:
        evidence: Of the pair.
        probability: What `aligned_probabilities` makes of what is read.
        raw_score: Of the pair.
        is_significant: Tells of a raw score, and of the share of residue pairs that are left to
            reach it, whether that is more than chance.
        max_hits: Stretches that are looked for.
        max_gap: Residues that an alignment may leave out on either side.
        least: Probability above which a pair is aligned.

    Returns:
        The alignments, the most significant first.
    """
    read, left = evidence
    stretches: list[Stretch] = []
    share = 1.0
    while len(stretches) < max_hits:
        if stretches:
            share = float((left > NEVER / 2).float().mean())
            raw_score = float(alignment_scores([left]))
        if not share or not is_significant(raw_score, share):
            break
        stretches.append((box := best_stretch(left), raw_score, share))
        left = left.clone() if left is evidence.scored else left
        left[box] = NEVER
    found, layers = [], _in_order(stretches)
    for layer in layers:
        if len(layers) > 1:
            others = read.clone()
            for box in (box for other in layers if other is not layer for box, *_ in other):
                others[box] = NEVER
            [probability] = aligned_probabilities([others])
        found += _divide(probability, layer, max_gap, least)
    return _disjoint(sorted(found, key=lambda alignment: -alignment.raw_score))


Stretch = tuple[Box, float, float]  # with its raw score, and the share that was left


def _in_order(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Put stretches that rise together into one layer, the best one first in each."""
    layers: list[list[Stretch]] = []
    for stretch in stretches:
        for layer in layers:
            if all(_rises(stretch[0], other[0]) for other in layer):
                layer.append(stretch)
                break
        else:
            layers.append([stretch])
    return layers


def _rises(one: Box, other: Box) -> bool:
    """Tell whether one stretch is before the other on both sides."""
    return all(a.stop <= b.start for a, b in zip(one, other, strict=True)) or all(
        b.stop <= a.start for a, b in zip(one, other, strict=True)
    )


def _divide(found: Tensor, layer: list[Stretch], max_gap: int, least: float) -> list[Alignment]:
    """Read the residues of stretches that rise together, and divide them at long gaps."""
    pairs = best_in_order(found - least)
    steps = (pairs[1:] - pairs[:-1]).amax(-1) > max_gap + 1
    sizes = torch.diff(steps.nonzero()[:, 0] + 1, prepend=torch.tensor([0])).tolist()
    alignments = []
    for part in pairs.split([*sizes, len(pairs) - sum(sizes)]):
        inside = [one for one in layer if _touches(part, one[0])]
        if inside:
            weights = found[part[:, 0], part[:, 1]].cpu()
            alignments.append(Alignment(part, weights, *inside[0][1:]))
    return alignments


def _disjoint(found: Iterable[Alignment]) -> list[Alignment]:
    """Leave out what lies upon a better one."""
    kept: list[Alignment] = []
    for one in found:
        if not any(_covers(better, one) for better in kept):
            kept.append(one)
    return kept


def _covers(one: Alignment, other: Alignment) -> bool:
    """Tell whether an alignment takes more than half of another's place on both sides."""
    (first, last), (start, end) = ((each.pairs[0], each.pairs[-1] + 1) for each in (one, other))
    shared = torch.minimum(last, end) - torch.maximum(first, start)
    return bool((2 * shared > end - start).all())


def _touches(pairs: Tensor, box: Box) -> bool:
    """Tell whether any pair lies in a stretch."""
    first = torch.tensor([side.start for side in box])
    last = torch.tensor([side.stop for side in box])
    return bool(((pairs >= first) & (pairs < last)).all(-1).any())


# --- What chance gives.


TAIL = 2.0  # distance that one in eight reaches
LONG = 300.0  # residues of the shorter one beyond which scores grow by more than logarithms


@dataclass(frozen=True)
class Calibration:
    """What raw scores unrelated proteins reach, by their lengths: a Gumbel distribution.

    Location and the logarithm of the scale are linear in `features` of the lengths, the scale in
    the first five: the last two are of proteins that are both longer than `LONG`. Above `TAIL`,
    which one in eight reaches, chance falls off by a scale and a shape of its own, as a Weibull
    distribution: unrelated proteins of one architecture reach more than the rest would have it,
    by what language models know much more.

    Example:
        >>> null = Calibration((8.0, 1.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0, 0.0, 0.0))
        >>> round(null.p_value(20.0, 150, 150), 4)
        0.0007
    """

    location: tuple[float, ...]
    log_scale: tuple[float, ...]
    tail: float = 1.0
    shape: float = 1.0

    @staticmethod
    def features(query_residues: float, candidate_residues: float) -> tuple[float, ...]:
        """Describe two lengths; whichever comes first."""
        first, second = math.log(query_residues), math.log(candidate_residues)
        both, shorter = first + second - 10, min(query_residues, candidate_residues)
        beyond = max(0.0, shorter - LONG) / 1000
        usual = 1.0, both, math.log(shorter) - 5, both**2 / 10, 10 / shorter
        return *usual, beyond, beyond * abs(first - second)

    def distance(self, raw_score: float, query_residues: float, candidate_residues: float) -> float:
        """Say how far a raw score is from what chance gives, in the scale of that; in nats."""
        given = self.features(query_residues, candidate_residues)
        location, log_scale = (
            sum(weight * value for weight, value in zip(weights, given, strict=False))
            for weights in (self.location, self.log_scale)
        )
        distance = (raw_score - location) / math.exp(log_scale)
        return distance if distance < TAIL else TAIL + ((distance - TAIL) / self.tail) ** self.shape

    def p_value(self, raw_score: float, query_residues: float, candidate_residues: float) -> float:
        """Return the chance that two unrelated proteins of these lengths reach a raw score."""
        return self.chance(self.distance(raw_score, query_residues, candidate_residues))

    @staticmethod
    def chance(distance: float) -> float:
        """Return the chance that unrelated proteins are so far from what chance gives."""
        return -math.expm1(-math.exp(min(-distance, 700.0)))

    def bits(self, raw_score: float, query_residues: float, candidate_residues: float) -> float:
        """Return bits: `query_residues * candidate_residues / 2**bits` are expected by chance."""
        distance = self.distance(raw_score, query_residues, candidate_residues)
        return max(0.0, distance + math.log(query_residues * candidate_residues)) / math.log(2)
