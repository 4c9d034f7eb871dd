"""How likely residues are aligned in order, compiled for a CPU; without gradient; see `order`.

Sums over alignments are kept as they are instead of as logarithms: a few additions and
multiplications an entry. They are float64, and each row has a factor of its own.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import Number, compiled, full_registers, share_out
from .plan_numba import exponential

Array = NDArray[np.float32]
Sums = NDArray[np.float64]

FLOOR = 1e-5
"""Added to every plan entry: none is impossible."""
BACKGROUND = 0.8
"""Entry that speaks neither for a pair nor against it, over that of residues all alike."""
POWER = 0.1
"""How much of an entry's log-odds counts: neighbours in a plan are no independent witnesses."""
OPEN, EXTEND = -6.0, -0.3
"""Log-weights of the first residue of a gap and of each further one."""
HIGHEST = 1000.0
"""Log-odds that an alignment may sum up to: float64 then holds it and whatever rivals it."""
UNLIKELY = 1e-3
"""Added to a probability before its logarithm: what is out of order is never ruled out."""
UNIT = 1e300
"""How a sum of 1 is written at first, so that small sums beside large ones have the range."""
BY_GAP, BY_EXTENSION = exp(OPEN), exp(EXTEND)


def in_order_numba(plan: Tensor, allowed: Tensor) -> Tensor:
    """Do what `in_order` does; without gradient.

    Args:
        plan: `(batch, query_residues, candidate_residues)` in float32.
        allowed: True where both are residues, same shape.

    Returns:
        The probabilities, shaped like `plan`.
    """
    given = plan.detach().masked_fill(~allowed, 0.0).contiguous().numpy()
    mask, longer = allowed.contiguous().numpy(), longer_of(allowed).tolist()
    out = torch.empty(plan.shape)
    found = out.numpy()

    def pair(number: int) -> None:
        odds = np.empty(given.shape[1:])
        write_odds(given[number], longer[number], odds)
        odds *= mask[number]
        write_probabilities(odds, found[number])

    share_out(pair, len(given))
    return out


def longer_of(allowed: Tensor) -> Tensor:
    """Count the residues of the longer protein, `(batch,)`, from where both have one."""
    return torch.maximum(allowed.any(-1).sum(-1), allowed.any(-2).sum(-1)).clamp(min=1)


@compiled
def write_odds(plan: Array, longer: int, odds: Sums) -> None:
    """Write what the entries of a plan say for their pairs; 1 says nothing.

    Args:
        plan: `(query_residues, candidate_residues or more)`.
        longer: Residues of the longer protein.
        odds: `(query_residues, candidate_residues)`, to be written.
    """
    full_registers()
    rows, columns = odds.shape
    of_query, of_candidate = 0.0, np.zeros(columns, np.float32)
    logs = np.empty((rows, columns), np.float32)
    background = np.float32(POWER * log(BACKGROUND / longer))
    for i in range(rows):
        for j in range(columns):
            logs[i, j] = np.float32(POWER) * logarithm(plan[i, j] + np.float32(FLOOR))
            logs[i, j] -= background
            of_candidate[j] = max(of_candidate[j], logs[i, j])
        of_query += max(logs[i].max(), np.float32(0.0))
    bound = max(min(of_query, np.float64(of_candidate.sum())), HIGHEST)
    factor = np.float32(HIGHEST / bound)
    for i in range(rows):
        for j in range(columns):
            odds[i, j] = exponential(factor * logs[i, j])


@compiled(fastmath=("contract",))
def logarithm(x: Number) -> Number:
    """Return `log(x)` of a positive normal number to about 1e-7; loops over it become vectors."""
    bits = np.float32(x).view(np.int32)
    # The number is 2^power times a fraction from 0.71 to 1.41.
    power = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))
    fraction = np.int32(bits - (power << np.int32(23))).view(np.float32)
    ratio = (fraction - np.float32(1.0)) / (fraction + np.float32(1.0))
    square = ratio * ratio
    series = np.float32(2 / 9)
    series = series * square + np.float32(2 / 7)
    series = series * square + np.float32(2 / 5)
    series = series * square + np.float32(2 / 3)
    series = series * square + np.float32(2.0)
    return series * ratio + np.float32(power) * np.float32(0.693147181)


@compiled
def write_probabilities(odds: Sums, out: Array) -> None:
    """Write the probabilities that pairs are aligned.

    Args:
        odds: `(query_residues, candidate_residues)`, 0 where nothing may be aligned.
        out: `(query_residues, candidate_residues or more)`, to be written.
    """
    full_registers()
    rows, columns = odds.shape
    ending, logs = _alignments_ending(odds)
    # From the last residues on, what ends with a pair is what begins with it.
    beginning, other_logs = _alignments_ending(odds[::-1, ::-1].copy())
    every = 0.0
    for i in range(rows):
        every += ending[i].sum() / UNIT * exp(logs[i] - logs[-1])
    every = log(every) + logs[-1]
    for i in range(rows):
        # The factor in halves: a row may have sums that are large, but not in one alignment.
        half = exp((logs[i] + other_logs[rows - 1 - i] - every) / 2) / UNIT
        backwards = beginning[rows - 1 - i, ::-1]
        for j in range(columns):
            # A pair is in both, and counts once.
            both = (ending[i, j] * half) * (backwards[j] * half)
            out[i, j] = min(both / odds[i, j], 1.0) if odds[i, j] > 0.0 else 0.0


@compiled
def _alignments_ending(odds: Sums) -> tuple[Sums, Sums]:
    """Sum up the alignments that end with a pair; a sum is `exp(logs[row]) / UNIT` times that."""
    rows, columns = odds.shape
    sums, logs = np.empty((rows, columns)), np.zeros(rows)
    match, query_gap, total = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    unit = UNIT
    for i in range(rows):
        match, largest = sums[i], _next_row(odds[i], unit, match, query_gap, total, sums[i])
        logs[i] = log(UNIT) - log(unit)
        if largest > UNIT:
            factor = UNIT / largest
            match *= factor
            query_gap *= factor
            total *= factor
            unit *= factor
            logs[i] -= log(factor)
    return sums, logs


@compiled
def _next_row(
    odds: Sums, unit: Number, above: Sums, query_gap: Sums, total: Sums, match: Sums
) -> Number:
    """Go on by a query residue, and return the largest sum.

    Args:
        odds: Of its pairs, `(candidate_residues,)`.
        unit: How a sum of 1 is written.
        above: Alignments that end with a pair of the residue before, by candidate residue.
        query_gap: With query residues left out after a pair, to be moved on.
        total: With whatever may come before the next pair, to be moved on.
        match: Alignments that end with a pair of this residue, to be written.
    """
    full_registers()
    before, candidate_gap, opening, largest = 0.0, 0.0, 0.0, 0.0
    for j in range(len(odds)):
        # A local alignment begins anywhere: with a sum of 1 before its first pair.
        match[j] = odds[j] * (before + unit)
        before = total[j]
        query_gap[j] = above[j] * BY_GAP + query_gap[j] * BY_EXTENSION
        candidate_gap = opening * BY_GAP + candidate_gap * BY_EXTENSION
        opening = match[j] + query_gap[j]
        total[j] = opening + candidate_gap
        largest = max(largest, match[j])
    return largest
