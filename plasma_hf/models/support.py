"""Support rounds: let neighbouring residues that match speak for each other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from .diagonal import diagonal_sums, learns
from .diagonal_numba import diagonal_support_numba
from .kernels import kernels_for
from .order import in_order
from .order_numba import UNLIKELY
from .sinkhorn import NEVER


def diagonal_support(plan: Tensor, allowed: Tensor, window: int, gap: int) -> Tensor:
    """Measure how well the surroundings of a residue pair are aligned, between 0 and 1.

    The mean of the plan over `window` steps along the diagonal in each direction, where each step
    may look up to `gap` residues aside. It looks aside once along the query and once along the
    candidate and averages both, so that support of (b, a) is the transpose of that of (a, b).

    Args:
        plan: `(batch, query_residues, candidate_residues)`.
        allowed: True where both are residues, same shape; elsewhere nothing is found, as beyond
            the ends.
        window: Steps to each side.
        gap: Residues aside, the insertions and deletions that are tolerated.
    """
    if not learns(plan) and kernels_for(plan) == "numba":
        return diagonal_support_numba(plan, allowed, window, gap)
    kernel = 2 * gap + 1
    along_candidate = F.max_pool2d(plan, (1, kernel), stride=1, padding=(0, gap))
    along_query = F.max_pool2d(plan, (kernel, 1), stride=1, padding=(gap, 0))
    best = ((along_candidate + along_query) / 2).masked_fill(~allowed, 0.0)
    return diagonal_sums(best, window, window) / (2 * window + 1)


def supported_plan(
    solve: Callable[[Tensor], Tensor],
    log_kernel: Tensor,
    plan: Tensor,
    *,
    rounds: int,
    window: int,
    gap: int,
    weight: float | Tensor,
    order_weight: float = 0.0,
) -> Tensor:
    """Solve again, `rounds` times, with `weight * diagonal_support` added to the log-kernel.

    A transport plan knows no order: a lone residue may match anywhere. Support prefers, among
    equal matches, the one whose neighbours match as well. A last round, of `order_weight`, looks
    at whole alignments: its support is that of the probabilities of `in_order`, and their
    logarithms are added as well.

    Args:
        solve: Turns a log-kernel into a plan.
        log_kernel: `(batch, query_residues, candidate_residues)`.
        plan: The plan without support, same shape.
        rounds: How often to repeat; 0 returns `plan`.
        window: See `diagonal_support`.
        gap: See `diagonal_support`.
        weight: Bonus in the exponent for a pair with perfect surroundings.
        order_weight: What multiplies the logarithms in the last round; 0 for no such round.
    """
    allowed = log_kernel > NEVER / 2
    for _ in range(rounds):
        plan = solve(log_kernel + weight * diagonal_support(plan, allowed, window, gap))
    if order_weight:
        ordered = in_order(plan, allowed)
        support = weight * diagonal_support(ordered, allowed, window, gap)
        plan = solve(log_kernel + support + order_weight * (ordered + UNLIKELY).log())
    return plan
