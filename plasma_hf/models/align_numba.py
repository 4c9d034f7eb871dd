"""Plans and what scores are made of for pairs of any lengths, compiled for a CPU.

Nothing is padded: every pair is computed by one thread, from projections to its score's parts, in
scratch memory that stays in the nearest caches. Results depend on neither the other pairs nor the
number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import (
    Number,
    compiled,
    full_registers,
    scratch_floats,
    share_out,
    share_out_with,
)
from .cost_numba import BLOCK, WIDTH, hidden_nan, larger_sums, self_sums
from .diagonal_numba import best_nearby, best_window, move_on
from .order_numba import UNLIKELY, logarithm, write_odds, write_probabilities
from .plan_numba import SUMS, answer, converge, exponential, pass_over, scale
from .quantised_numba import Codes, excess_sums, whole_vectors

Array = NDArray[np.float32]
Settings = tuple[Any, ...]


@dataclass
class Matches:
    """What is matched in pairs, one entry a pair in each list and tensor.

    Attributes:
        sent: What each query residue sends to matched candidate residues, 0 if it is not matched
            itself, `(query_residues,)`.
        gates: 1 where a candidate residue is matched, `(candidate_residues,)`.
        stretch: Largest sum along a diagonal stretch of the plan, `(pairs,)`.
        mass: Sum of plan entries above the threshold, `(pairs,)`.
        collinear: Largest sum of plan entries in order, `(pairs,)`; 0 if it was not asked for.
        plans: Plans with support, `(query_residues, candidate_residues)`, if asked for.
    """

    sent: list[Tensor]
    gates: list[Tensor]
    stretch: Tensor
    mass: Tensor
    collinear: Tensor
    plans: list[Tensor] | None


def align_pairs_numba(
    query: Sequence[Tensor],
    candidate: Sequence[Tensor],
    *,
    kernel_scale: float,
    eps: float = 1e-8,
    n_iters: int = 20,
    tol: float | None = None,
    max_iters: int = 2000,
    support_rounds: int = 0,
    support_window: int = 25,
    support_gap: int = 3,
    support_weight: float = 16.0,
    order_weight: float = 0.0,
    threshold: float = 0.5,
    diagonal_window: int = 10,
    collinear: bool = False,
    return_plans: bool = False,
    quantum: float | None = None,
) -> Matches:
    """Align `query[p]` with `candidate[p]` in the linear domain; without gradient.

    Args:
        query: Projected proteins, `(residues, channels)` in float32; one may come repeatedly. Or
            all of both sides as codes in uint8, see `quantise`: about four times as fast a cost.
        candidate: As many, likewise.
        kernel_scale: What multiplies the cost in the exponent.
        eps: Slack of each residue.
        n_iters: Iterations of the published form.
        tol: Tolerance of the converged form; None for the published form.
        max_iters: Where the converged form stops at the latest.
        support_rounds: How often support is added, to plans only: scores take the plan without.
        support_window: Steps to each side that speak for a residue pair.
        support_gap: Residues aside.
        support_weight: Bonus in the exponent.
        order_weight: Weight of a last round for what is in order, to plans only; 0 for none.
        threshold: Plan entry above which a residue is matched.
        diagonal_window: Steps of the stretch; 0 gives a stretch of 0.
        collinear: Whether to sum what is in order.
        return_plans: Whether to write plans at all.
        quantum: Difference between neighbouring codes, with codes only.

    Returns:
        Gates, stretch, mass and collinear mass of the plan without support, and the plan with it.

    Raises:
        ValueError: For codes without quantum or the reverse, and for codes on one side only.
    """
    pairs = _as_arrays(query, candidate, quantum)
    # The cost of codes is a number of quanta; it is scaled once, for both reasons.
    kernel_scale *= 1.0 if quantum is None else quantum
    settings = (
        (np.float32(kernel_scale), np.float32(eps), n_iters, -1.0 if tol is None else float(tol)),
        (max_iters, support_rounds if return_plans else 0, support_window, support_gap)
        + (np.float32(support_weight), np.float32(order_weight if return_plans else 0.0)),
        (np.float32(threshold), diagonal_window, collinear),
    )
    out = Matches(
        sent=list(torch.zeros(sum(len(q) for q, _ in pairs)).split([len(q) for q, _ in pairs])),
        gates=list(torch.zeros(sum(len(c) for _, c in pairs)).split([len(c) for _, c in pairs])),
        stretch=torch.zeros(len(pairs)),
        mass=torch.zeros(len(pairs)),
        collinear=torch.zeros(len(pairs)),
        plans=[torch.zeros(len(q), len(c)) for q, c in pairs] if return_plans else None,
    )
    numbers, none = np.zeros((len(pairs), 3)), np.empty((0, 0), np.float32)

    finish_pair = _finish if quantum is None else _finish_codes

    def finish(scratch: Array, pair: int) -> None:
        sent, gate = out.sent[pair].numpy(), out.gates[pair].numpy()
        plan = none if out.plans is None else out.plans[pair].numpy()
        finish_pair(*pairs[pair], scratch, *settings, sent, gate, numbers[pair], plan)

    sums = sum_rows if quantum is None else _sum_code_rows
    supported = settings[1][1] or settings[1][-1]
    _share_out_pairs(pairs, 3 if supported else 1, sums, finish)
    out.stretch.copy_(torch.from_numpy(numbers[:, 0]))
    out.mass.copy_(torch.from_numpy(numbers[:, 1]))
    out.collinear.copy_(torch.from_numpy(numbers[:, 2]))
    return out


def _as_arrays(
    query: Sequence[Tensor], candidate: Sequence[Tensor], quantum: float | None
) -> list[tuple[Any, Any]]:
    """Return the arrays of all pairs; a protein that comes repeatedly is converted once."""
    proteins: dict[int, Any] = {}
    for tensor in (*query, *candidate):
        if (tensor.dtype == torch.uint8) == (quantum is None):
            raise ValueError(
                f"A projection in {tensor.dtype} with quantum={quantum}; give quantum and codes in "
                "torch.uint8 on both sides, or neither."
            )
        if id(tensor) not in proteins:
            side = tensor.detach()
            whole = side.contiguous().numpy() if quantum is None else whole_vectors(side)
            proteins[id(tensor)] = whole
    return [(proteins[id(q)], proteins[id(c)]) for q, c in zip(query, candidate, strict=True)]


def _share_out_pairs(
    pairs: list[tuple[Any, Any]], matrices: int, sum_rows: Any, finish: Any
) -> None:
    """Give pairs to threads, the largest first; a lone pair is shared by its query rows."""
    areas = [area(q, c) for q, c in pairs]
    order = sorted(
        (p for p, (q, c) in enumerate(pairs) if q.size and c.size), key=areas.__getitem__
    )
    order.reverse()

    def scratch() -> Array:
        # Once a thread, not once a pair: fresh memory costs more than what is done in it.
        return scratch_floats(matrices * max(areas, default=0))

    def whole_pair(own: Array, number: int) -> None:
        pair = order[number]
        sum_rows(*pairs[pair], own, 0, len(pairs[pair][0]))
        finish(own, pair)

    if len(order) > 1:
        share_out_with(scratch, whole_pair, len(order))
    elif order:
        (q, c), own = pairs[order[0]], scratch()
        blocks = -(-len(q) // BLOCK)
        share_out(lambda n: sum_rows(q, c, own, n * BLOCK, min(n * BLOCK + BLOCK, len(q))), blocks)
        finish(own, order[0])


def area(query: Array, candidate: Array) -> int:
    """Return the floats of a scratch matrix for two proteins."""
    return (-(-len(query) // WIDTH) * WIDTH) * (-(-len(candidate) // WIDTH) * WIDTH)


@compiled
def matrix_of(scratch: Array, number: int, rows: int, columns: int) -> Array:
    """Return scratch as a matrix of whole tiles and vectors."""
    height, width = -(-rows // WIDTH) * WIDTH, -(-columns // WIDTH) * WIDTH
    area = height * width
    return scratch[number * area : (number + 1) * area].reshape(height, width)


@compiled
def sum_rows(query: Array, candidate: Array, scratch: Array, first: int, last: int) -> None:
    """Write the sums that the cost is made of, of query rows `first` to `last`."""
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for start in range(first, last, BLOCK):
        larger_sums(query, candidate, start, min(start + BLOCK, last), matrix[start:])


@compiled
def _sum_code_rows(query: Codes, candidate: Codes, scratch: Array, first: int, last: int) -> None:
    """Write costs in quanta, of query rows `first` to `last`."""
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for start in range(first, last, BLOCK):
        excess_sums(query, candidate, start, min(start + BLOCK, last), matrix[start:])


@compiled
def _finish(
    query: Array,
    candidate: Array,
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Go from sums over channels to the plan and the parts of the score.

    Args:
        query: `(query_residues, channels)`.
        candidate: `(candidate_residues, channels)`.
        scratch: What `sum_rows` wrote, and room for as much twice more with support.
        solver: kernel_scale, eps, n_iters, and tol, negative for none.
        support: max_iters, rounds, window, gap and weight of the support, and weight of the order.
        score: threshold, steps of the stretch, and whether to sum what is in order.
        sent: `(query_residues,)`, to be written.
        gate: `(candidate_residues,)`, to be written.
        numbers: Stretch, mass and collinear mass, to be written.
        plan: `(query_residues, candidate_residues)`, to be written if not empty.
    """
    full_registers()
    rows = len(query)
    to_exponents(query, candidate, matrix_of(scratch, 0, rows, len(candidate))[:rows], solver[0])
    _finish_exponents(scratch, solver, support, score, sent, gate, numbers, plan)


@compiled
def _finish_codes(
    query: Codes,
    candidate: Codes,
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Do the same from what `_sum_code_rows` wrote; kernel_scale is that of a quantum."""
    full_registers()
    matrix = matrix_of(scratch, 0, len(query), len(candidate))
    for i in range(len(query)):
        for j in range(matrix.shape[1]):
            matrix[i, j] *= -solver[0]
    _finish_exponents(scratch, solver, support, score, sent, gate, numbers, plan)


@compiled
def _finish_exponents(
    scratch: Array,
    solver: Settings,
    support: Settings,
    score: Settings,
    sent: Array,
    gate: Array,
    numbers: NDArray[np.float64],
    plan: Array,
) -> None:
    """Go from exponents to the plan and the parts of the score."""
    full_registers()
    rows, columns = len(sent), len(gate)
    _, rounds, window, gap, weight, order_weight = support
    threshold, steps, in_order = score
    matrix = matrix_of(scratch, 0, rows, columns)[:rows]
    logs, nearby = matrix, matrix
    last = rounds + 1 if order_weight > 0.0 else rounds
    if last > 0:
        logs = matrix_of(scratch, 1, rows, columns)[:rows]
        nearby = matrix_of(scratch, 2, rows, columns)[:rows]
        logs[:] = matrix
    for number in range(last + 1):
        if number > rounds:
            odds = np.empty((rows, columns))
            write_odds(matrix, max(rows, columns), odds)
            write_probabilities(odds, matrix)
            _add_logarithms(matrix, columns, order_weight, logs)
        if number > 0:
            best_nearby(matrix, gap, nearby)
            nearby[:, columns:] = np.float32(0.0)
            _add_support(logs, nearby, window, weight, matrix)
        _exponentiate(matrix, columns)
        _solve(matrix, columns, solver, support[0])
        if number == 0:
            numbers[1] = _gates(matrix, threshold, sent, gate)
            numbers[0] = best_window(matrix, columns, steps) if steps > 0 else 0.0
            numbers[2] = _collinear(matrix, columns) if in_order else 0.0
    if plan.size:
        plan[:] = matrix[:, :columns]


@compiled
def to_exponents(query: Array, candidate: Array, matrix: Array, kernel_scale: Number) -> None:
    """Turn what `sum_rows` wrote into `-kernel_scale * cost`, in its place."""
    full_registers()
    rows, columns = len(query), len(candidate)
    offsets, own = np.zeros(matrix.shape[1], np.float32), np.empty(rows, np.float32)
    self_sums(candidate, offsets[:columns])
    self_sums(query, own)
    for i in range(rows):
        excess = hidden_nan(own[i])
        for j in range(matrix.shape[1]):
            matrix[i, j] = -kernel_scale * (matrix[i, j] - offsets[j] + excess)


@compiled
def _exponentiate(matrix: Array, columns: int) -> None:
    full_registers()
    for i in range(len(matrix)):
        for j in range(columns):
            matrix[i, j] = exponential(matrix[i, j])
        for j in range(columns, matrix.shape[1]):
            matrix[i, j] = np.float32(0.0)


@compiled
def _solve(matrix: Array, columns: int, solver: Settings, max_iters: int) -> None:
    """Turn a kernel into its plan, in its place."""
    full_registers()
    (rows, width), (_, eps, n_iters, tol) = matrix.shape, solver
    u, v = np.empty(rows, np.float32), np.empty(width, np.float32)
    if tol >= 0:
        query_mask, candidate_mask = np.ones(rows, np.bool_), np.zeros(width, np.bool_)
        candidate_mask[:columns] = True
        converge(matrix, query_mask, candidate_mask, eps, tol, max_iters, u, v)
    else:
        sums = np.empty(width, np.float32)
        v[:] = np.float32(1.0) / np.float32(columns)
        for _ in range(n_iters):
            pass_over(matrix, v, eps, u, sums)
            answer(sums, eps, v)
    scale(matrix, u, v, matrix)


@compiled
def _gates(plan: Array, threshold: Number, sent: Array, gate: Array) -> Number:
    """Write what gated residues send to gated residues; return the mass above the threshold."""
    full_registers()
    (rows, width), columns, mass = plan.shape, len(gate), 0.0
    open_columns = np.zeros(width, np.float32)
    for i in range(rows):
        above = _above(plan[i], threshold, open_columns)
        sent[i] = above  # a row with nothing above has 0 here, and is not matched
        mass += above
    for j in range(columns):
        gate[j] = open_columns[j]
    for i in range(rows):
        if sent[i] != 0.0:
            sent[i] = _dot(plan[i], open_columns)
    return mass


@compiled
def _collinear(plan: Array, columns: int) -> Number:
    """Sum the plan along its best path, see `collinear_score`."""
    full_registers()
    best, ahead = np.zeros(columns + 1, np.float32), np.empty(columns, np.float32)
    for i in range(len(plan)):
        for j in range(columns):
            ahead[j] = max(best[j] + plan[i, j], best[j + 1])
        furthest = np.float32(0.0)
        for j in range(columns):
            furthest = max(furthest, ahead[j])
            best[j + 1] = furthest
    return best[columns]


@compiled(fastmath=SUMS)
def _above(row: Array, threshold: Number, open_columns: Array) -> Number:
    """Sum what is above the threshold and mark where; NaN is above it, so that it shows."""
    full_registers()
    total = np.float32(0.0)
    for j in range(len(row)):
        below = row[j] <= threshold
        total += np.float32(0.0) if below else row[j]
        open_columns[j] = open_columns[j] if below else np.float32(1.0)
    return total


@compiled(fastmath=SUMS)
def _dot(row: Array, weights: Array) -> Number:
    full_registers()
    total = np.float32(0.0)
    for j in range(len(row)):
        total += row[j] * weights[j]
    return total


@compiled
def _add_logarithms(probabilities: Array, columns: int, weight: Number, logs: Array) -> None:
    full_registers()
    for i in range(len(logs)):
        for j in range(columns):
            logs[i, j] += weight * logarithm(probabilities[i, j] + np.float32(UNLIKELY))


@compiled
def _add_support(logs: Array, nearby: Array, window: int, weight: Number, out: Array) -> None:
    full_registers()
    rows, width = logs.shape
    sums = np.zeros(rows + width, np.float64)
    share = np.float64(weight) / (2 * window + 1)
    for i in range(rows):
        move_on(sums, nearby, i, window, window)
        mine = sums[rows - 1 - i : rows - 1 - i + width]
        for j in range(width):
            out[i, j] = logs[i, j] + np.float32(share * mine[j])
