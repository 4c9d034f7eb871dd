"""The partial Sinkhorn plan in the linear domain, compiled for a CPU; see `sinkhorn`.

Every iteration reads the kernel once: a row gives its query potential and, while it is still in
the nearest cache, its share of the column sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .compiled_numba import Number, compiled, full_registers, share_out

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]

SUMS = ("reassoc", "contract", "nsz")
"""What sums may do: be taken in any order. NaN and infinity stay what they are."""
TOGETHER = 4
"""Rows that are read together, so that column sums are loaded and stored more rarely."""
LOWEST = -87.33
"""Where the exponential leaves the range of normal numbers, below which it gives 0."""
HIGHEST = 88.37
"""Above which it gives infinity, a little early."""


def sinkhorn_numba(
    log_kernel: Tensor, candidate_mask: Tensor, eps: float = 1e-8, n_iters: int = 20
) -> Tensor:
    """Scale a kernel to its plan by a fixed number of iterations, as `sinkhorn` does.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)` in float32, `NEVER` where masked.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        n_iters: Iterations, at least 1.

    Returns:
        The plan, shaped like `log_kernel`.
    """
    return _PublishedPlan.apply(log_kernel, candidate_mask, eps, n_iters)


class _PublishedPlan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_kernel: Tensor, candidate_mask: Tensor, eps: float, n_iters: int
    ) -> Tensor:
        logs = log_kernel.detach().contiguous()
        batch, rows, columns = logs.shape
        plan = torch.empty_like(logs)
        kernel = torch.empty_like(logs)
        u = torch.empty(batch, n_iters, rows)
        v = torch.empty(batch, n_iters + 1, columns)
        v[:, 0] = 1 / candidate_mask.sum(-1, keepdim=True).clamp(min=1).float()
        arrays = [tensor.numpy() for tensor in (logs, kernel, u, v, plan)]
        slack = np.float32(eps)
        share_out(lambda pair: _published(*(array[pair] for array in arrays), slack), batch)
        if log_kernel.requires_grad:
            ctx.save_for_backward(kernel, u, v)
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, u, v = ctx.saved_tensors
        out = torch.empty_like(kernel)
        tensors = (kernel, u, v, grad.contiguous().to(kernel.dtype), out)
        arrays = [tensor.numpy() for tensor in tensors]
        share_out(lambda pair: published_backward(*(array[pair] for array in arrays)), len(kernel))
        return out, None, None, None


def converged_plan_numba(
    log_kernel: Tensor,
    query_mask: Tensor,
    candidate_mask: Tensor,
    eps: float,
    tol: float,
    max_iters: int,
) -> Tensor:
    """Scale a kernel until no potential moves any more; without gradient.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)` in float32, `NEVER` where masked.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        tol: Change of a log-potential that counts as none.
        max_iters: Where to stop at the latest.

    Returns:
        The plan, shaped like `log_kernel`.
    """
    logs = log_kernel.detach().contiguous().numpy()
    q_mask, c_mask = query_mask.bool().numpy(), candidate_mask.bool().numpy()
    out = torch.empty(log_kernel.shape)
    plan = out.numpy()
    slack = np.float32(eps)

    def pair_plan(pair: int) -> None:
        _converged(logs[pair], q_mask[pair], c_mask[pair], slack, tol, max_iters, plan[pair])

    share_out(pair_plan, len(logs))
    return out


@compiled(fastmath=("contract",))
def exponential(x: Number) -> Number:
    """Return `exp(x)` to about 1e-7, and 0 where that is no normal number.

    Written without branches, so that loops over it become vectors.
    """
    bounded = x if x > np.float32(LOWEST) else np.float32(LOWEST)
    bounded = bounded if bounded < np.float32(HIGHEST) else np.float32(HIGHEST)
    whole = np.floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    # The logarithm of 2 in two parts, the first short enough for an exact product.
    rest = bounded - whole * np.float32(0.693359375)
    rest = rest - whole * np.float32(-2.12194440e-4)
    series = np.float32(1 / 5040)
    series = series * rest + np.float32(1 / 720)
    series = series * rest + np.float32(1 / 120)
    series = series * rest + np.float32(1 / 24)
    series = series * rest + np.float32(1 / 6)
    series = series * rest + np.float32(0.5)
    series = series * rest * rest + rest + np.float32(1.0)
    # The bits of 2^whole, as a number that is exact in float32 too.
    power = np.int32((whole + np.float32(127.0)) * np.float32(8388608.0)).view(np.float32)
    value = series * power
    value = value if x >= np.float32(LOWEST) else np.float32(0.0)
    value = value if x <= np.float32(HIGHEST) else np.float32(np.inf)
    return value if x == x else x


@compiled(fastmath=SUMS)
def pass_over(kernel: Array, v: Array, eps: Number, u: Array, column_sums: Array) -> None:
    """Answer the candidate potentials and sum what the columns get from it, in one pass.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        v: Candidate potentials, `(candidate_residues,)`.
        eps: Slack of each residue.
        u: Where the query potentials `1 / (kernel @ v + eps)` go, `(query_residues,)`.
        column_sums: Where `u @ kernel` goes, `(candidate_residues,)`.
    """
    full_registers()
    rows, columns = kernel.shape
    one, zero = np.float32(1.0), np.float32(0.0)
    column_sums[:] = zero
    whole = rows - rows % TOGETHER
    for i in range(0, whole, TOGETHER):
        first, second, third, fourth = kernel[i], kernel[i + 1], kernel[i + 2], kernel[i + 3]
        a, b, c, d = zero, zero, zero, zero
        for j in range(columns):
            a += first[j] * v[j]
            b += second[j] * v[j]
            c += third[j] * v[j]
            d += fourth[j] * v[j]
        a, b, c, d = one / (a + eps), one / (b + eps), one / (c + eps), one / (d + eps)
        u[i], u[i + 1], u[i + 2], u[i + 3] = a, b, c, d
        for j in range(columns):
            column_sums[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j])
    for i in range(whole, rows):
        row, a = kernel[i], zero
        for j in range(columns):
            a += row[j] * v[j]
        u[i] = a = one / (a + eps)
        for j in range(columns):
            column_sums[j] += a * row[j]


@compiled
def answer(sums: Array, eps: Number, out: Array) -> None:
    """Turn sums of a side into its potentials, `1 / (sums + eps)`."""
    full_registers()
    for j in range(len(out)):
        out[j] = np.float32(1.0) / (sums[j] + eps)


@compiled
def scale(kernel: Array, u: Array, v: Array, out: Array) -> None:
    """Write the plan `u kernel v`, in whichever place, also that of the kernel."""
    full_registers()
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out[i, j] = u[i] * kernel[i, j] * v[j]


@compiled
def exponentials(logs: Array, out: Array) -> None:
    """Write `exp(logs)`, in whichever place, also in the same."""
    full_registers()
    for i in range(logs.shape[0]):
        for j in range(logs.shape[1]):
            out[i, j] = exponential(logs[i, j])


@compiled
def _published(logs: Array, kernel: Array, u: Array, v: Array, plan: Array, eps: Number) -> None:
    full_registers()
    exponentials(logs, kernel)
    iterate(kernel, u, v, eps)
    scale(kernel, u[-1], v[-1], plan)


@compiled
def iterate(kernel: Array, u: Array, v: Array, eps: Number) -> None:
    """Run the published form and keep the potentials of every iteration.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        u: Where the query potentials go, `(n_iters, query_residues)`.
        v: Where the candidate potentials go after the first, which are given,
            `(n_iters + 1, candidate_residues)`.
        eps: Slack of each residue.
    """
    full_registers()
    sums = np.empty(kernel.shape[1], np.float32)
    for t in range(len(u)):
        pass_over(kernel, v[t], eps, u[t], sums)
        answer(sums, eps, v[t + 1])


@compiled(fastmath=SUMS)
def published_backward(kernel: Array, u: Array, v: Array, grad: Array, out: Array) -> None:
    """Follow the iterations back; the kernel's gradient is a sum of outer products of vectors.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        u: Query potentials of all iterations, `(n_iters, query_residues)`.
        v: Candidate potentials, with the first, `(n_iters + 1, candidate_residues)`.
        grad: Of the plan, shaped like `kernel`.
        out: Where the gradient of the log-kernel goes.
    """
    full_registers()
    (n_iters, rows), columns = u.shape, v.shape[1]
    du, dv = np.empty(rows, np.float32), np.zeros(columns, np.float32)
    # Minus the gradients of the sums whose inverses the potentials are.
    a, b = np.empty(u.shape, np.float32), np.empty((n_iters, columns), np.float32)
    for i in range(rows):
        total = np.float32(0.0)
        for j in range(columns):
            weighted = grad[i, j] * kernel[i, j]
            total += weighted * v[n_iters, j]
            dv[j] += weighted * u[n_iters - 1, i]
        du[i] = total
    for t in range(n_iters - 1, -1, -1):
        for j in range(columns):
            b[t, j] = v[t + 1, j] * v[t + 1, j] * dv[j]
        _pass_back(kernel, u[t], b[t], du, a[t], dv)
        du[:] = np.float32(0.0)
    for i in range(rows):
        _gather_row(kernel[i], u[:, i], v, grad[i], a[:, i], b, out[i])


@compiled(fastmath=SUMS)
def _pass_back(kernel: Array, u: Array, b: Array, du: Array, a: Array, dv: Array) -> None:
    """Carry gradients from one side's sums to the other side's potentials, in one pass."""
    full_registers()
    rows, columns = kernel.shape
    dv[:] = np.float32(0.0)
    for i in range(rows):
        row, total = kernel[i], np.float32(0.0)
        for j in range(columns):
            total += row[j] * b[j]
        a[i] = u[i] * u[i] * (du[i] - total)
        for j in range(columns):
            dv[j] -= a[i] * row[j]


# Without liberties: with them its sums came out different in the process that compiled it and in
# those that loaded it from the disk.
@compiled
def _gather_row(
    kernel: Array, u: Array, v: Array, grad: Array, a: Array, b: Array, out: Array
) -> None:
    """Sum what all iterations say about one row of the log-kernel."""
    full_registers()
    n_iters, columns = b.shape
    for j in range(columns):
        out[j] = grad[j] * u[n_iters - 1] * v[n_iters, j]
    for t in range(n_iters):
        for j in range(columns):
            out[j] -= u[t] * b[t, j] + a[t] * v[t, j]
    for j in range(columns):
        out[j] *= kernel[j]


@compiled
def _converged(
    logs: Array,
    query_mask: Flags,
    candidate_mask: Flags,
    eps: Number,
    tol: Number,
    max_iters: int,
    plan: Array,
) -> None:
    full_registers()
    exponentials(logs, plan)
    u, v = np.empty(len(query_mask), np.float32), np.empty(len(candidate_mask), np.float32)
    converge(plan, query_mask, candidate_mask, eps, tol, max_iters, u, v)
    scale(plan, u, v, plan)


@compiled
def converge(
    kernel: Array,
    query_mask: Flags,
    candidate_mask: Flags,
    eps: Number,
    tol: Number,
    max_iters: int,
    u: Array,
    v: Array,
) -> None:
    """Iterate to a fixed point and write its potentials; see `_converge` of `sinkhorn`.

    Args:
        kernel: `(query_residues, candidate_residues)`.
        query_mask: True where there is a residue, `(query_residues,)`.
        candidate_mask: True where there is a residue, `(candidate_residues,)`.
        eps: Slack of each residue.
        tol: Change of a log-potential that counts as none.
        max_iters: Where to stop at the latest.
        u: Where the query potentials go.
        v: Where the candidate potentials go.
    """
    full_registers()
    query_count, candidate_count = query_mask.sum(), candidate_mask.sum()
    new_u, new_v = np.empty_like(u), np.empty_like(v)
    sums = np.empty_like(v)
    v[:] = np.float32(1.0) / np.float32(max(candidate_count, 1))
    # Before the first iteration there is no query potential to compare with: any would do.
    u[:] = np.float32(1.0)
    for t in range(max_iters):
        pass_over(kernel, v, eps, new_u, sums)
        answer(sums, eps, new_v)
        factor = _exchange(
            _total(new_u, query_mask) * eps,
            _total(new_v, candidate_mask) * eps,
            np.float64(query_count - candidate_count),
        )
        if t == 0:
            u[:] = new_u
        largest = max(
            _settle(u, new_u, np.float32(factor), query_mask),
            _settle(v, new_v, np.float32(1 / factor), candidate_mask),
        )
        if not largest > tol:
            break


@compiled
def _total(potentials: Array, mask: Flags) -> Number:
    total = 0.0
    for i in range(len(mask)):
        total += np.float64(potentials[i]) if mask[i] else 0.0
    return total


@compiled
def _exchange(query_slack: Number, candidate_slack: Number, surplus: Number) -> Number:
    """Return the best factor between both potentials; see `_balance` of `sinkhorn`."""
    half = (np.sqrt(surplus**2 + 4 * query_slack * candidate_slack) + abs(surplus)) / 2
    factor = half / query_slack if surplus >= 0 else candidate_slack / half
    return factor if np.isfinite(factor) and factor > 0 else 1.0


@compiled
def _settle(old: Array, new: Array, factor: Number, mask: Flags) -> Number:
    """Replace potentials by `factor * new`; return by how much their logarithm changes at most."""
    lowest, highest = np.float32(1.0), np.float32(1.0)
    for i in range(len(mask)):
        value = new[i] * factor
        ratio = value / old[i] if mask[i] else np.float32(1.0)
        lowest, highest = min(lowest, ratio), max(highest, ratio)
        old[i] = value
    return max(np.log(highest), -np.log(lowest))
