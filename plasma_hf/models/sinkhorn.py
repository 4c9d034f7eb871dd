"""The partial Sinkhorn plan: which query residue goes with which candidate residue.

Every residue may also stay unmatched, at a price of `-log eps` in the exponent: this slack is what
makes the transport partial, so rows and columns of a plan sum to at most about one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEVER = -1e30
"""Log-kernel of a pair that may not match; finite, so that no gradient becomes NaN."""


def log_kernel(
    cost: Tensor, kernel_scale: float, query_mask: Tensor, candidate_mask: Tensor
) -> Tensor:
    """Turn a cost into the logarithm of the transport kernel, `-kernel_scale * cost`.

    Args:
        cost: `(batch, query_residues, candidate_residues)`.
        kernel_scale: What multiplies the cost in the exponent, 1 / tau in the paper's notation.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.

    Returns:
        The log-kernel, shaped like `cost`; `NEVER` where either residue is masked.
    """
    logs = -kernel_scale * cost
    # On a CPU it costs little to know that nothing is masked, and saves a pass or two.
    if cost.device.type == "cpu" and query_mask.all() and candidate_mask.all():
        return logs
    allowed = query_mask.unsqueeze(-1) & candidate_mask.unsqueeze(-2)
    return logs.masked_fill(~allowed, NEVER)


class Scaling:
    """Scale a kernel to a plan, in the linear domain: two matrix-vector products an iteration.

    A potential never exceeds `1 / eps`. A kernel entry that underflows could therefore not have
    given a plan entry above `smallest_float / eps^2`: with the published eps nothing is lost.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`.
        eps: Slack of each residue.
    """

    def __init__(self, log_kernel: Tensor, eps: float) -> None:
        """Prepare the kernel."""
        self.kernel, self.eps = log_kernel.exp(), eps

    def start(self, candidate_mask: Tensor) -> Tensor:
        """Return the first candidate potential, 1 / candidate residues: `(batch, residues)`."""
        count = candidate_mask.sum(-1, keepdim=True).clamp(min=1).to(self.kernel.dtype)
        return (1 / count).expand(candidate_mask.shape)

    def query(self, candidate: Tensor) -> Tensor:
        """Return the query potential that answers a candidate potential."""
        return 1 / ((self.kernel @ candidate.unsqueeze(-1)).squeeze(-1) + self.eps)

    def candidate(self, query: Tensor) -> Tensor:
        """Return the candidate potential that answers a query potential."""
        return 1 / ((query.unsqueeze(-2) @ self.kernel).squeeze(-2) + self.eps)

    def plan(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Return the plan of two potentials."""
        return query.unsqueeze(-1) * self.kernel * candidate.unsqueeze(-2)

    def log(self, potential: Tensor) -> Tensor:
        """Return the logarithm of a potential."""
        return potential.log()

    def shift(self, potential: Tensor, log_factor: Tensor) -> Tensor:
        """Multiply a potential by `exp(log_factor)`, one factor a pair."""
        return potential * log_factor.exp().unsqueeze(-1)


class LogScaling(Scaling):
    """Scale in the logarithm: slower, and safe for any eps and any kernel_scale."""

    def __init__(self, log_kernel: Tensor, eps: float) -> None:
        """Prepare the kernel."""
        self.kernel, self.eps = log_kernel, eps
        self.log_eps = log_kernel.new_tensor(math.log(eps))

    def start(self, candidate_mask: Tensor) -> Tensor:
        """Return the logarithm of the first candidate potential."""
        return super().start(candidate_mask).log()

    def query(self, candidate: Tensor) -> Tensor:
        """Return the query potential that answers a candidate potential."""
        mass = (self.kernel + candidate.unsqueeze(-2)).logsumexp(-1)
        return -torch.logaddexp(mass, self.log_eps)

    def candidate(self, query: Tensor) -> Tensor:
        """Return the candidate potential that answers a query potential."""
        mass = (self.kernel + query.unsqueeze(-1)).logsumexp(-2)
        return -torch.logaddexp(mass, self.log_eps)

    def plan(self, query: Tensor, candidate: Tensor) -> Tensor:
        """Return the plan of two potentials."""
        return (self.kernel + query.unsqueeze(-1) + candidate.unsqueeze(-2)).exp()

    def log(self, potential: Tensor) -> Tensor:
        """Return the potential, a logarithm already."""
        return potential

    def shift(self, potential: Tensor, log_factor: Tensor) -> Tensor:
        """Add `log_factor`, one a pair."""
        return potential + log_factor.unsqueeze(-1)


DOMAINS = {"linear": Scaling, "log": LogScaling}


def sinkhorn(
    log_kernel: Tensor,
    query_mask: Tensor,
    candidate_mask: Tensor,
    *,
    eps: float = 1e-8,
    n_iters: int = 20,
    tol: float | None = None,
    max_iters: int = 2000,
    domain: str = "linear",
) -> Tensor:
    """Scale a kernel to a partial transport plan.

    Without `tol` this is the published form, `n_iters` alternating updates that end with the
    candidate's: columns sum to at most 1, rows to up to candidate/query residues. With `tol` the
    updates go on until no potential moves by a factor of more than `1 + tol`; then rows as well
    sum to at most 1, and the plan of (b, a) is the transpose of that of (a, b).

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`, see `log_kernel`.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        eps: Slack of each residue.
        n_iters: Iterations of the published form.
        tol: Tolerance of the converged form; None for the published form.
        max_iters: Where the converged form stops at the latest.
        domain: "linear" or "log".

    Returns:
        The plan, shaped like `log_kernel`; 0 where either residue is masked.

    Source: PLASMA (ICLR 2026), the partial Sinkhorn plan.

    Example:
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> sinkhorn(torch.tensor([[[0.0, -40.0], [-40.0, 0.0]]]), mask, mask).round(decimals=3)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    scaling = DOMAINS[domain]
    if tol is not None:

        def solve(log_kernel: Tensor) -> Tensor:
            kernel = scaling(log_kernel, eps)
            return kernel.plan(*_converge(kernel, query_mask, candidate_mask, tol, max_iters))

        return ConvergedPlan.apply(log_kernel, solve)
    kernel = scaling(log_kernel, eps)
    candidate = kernel.start(candidate_mask)
    for _ in range(n_iters):
        query = kernel.query(candidate)
        candidate = kernel.candidate(query)
    return kernel.plan(query, candidate)


class ConvergedPlan(torch.autograd.Function):
    """The converged plan, differentiated at the fixed point instead of through the iterations.

    At the fixed point every row and column satisfies `mass + slack = 1`. Differentiating these
    equations gives one symmetric linear system in the log-potentials, `[[I, M], [M', I]]`.
    """

    @staticmethod
    def forward(ctx: Any, log_kernel: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """Solve, by whatever gives the converged plan of a log-kernel."""
        plan = solve(log_kernel)
        ctx.save_for_backward(plan)
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Solve the linear system for the gradient of the log-kernel."""
        (plan,) = ctx.saved_tensors
        # float64: balanced pairs leave the system within eps of singular.
        m, g = plan.double(), grad.double()
        weighted = g * m
        rows, columns = weighted.sum(-1, keepdim=True), weighted.sum(-2).unsqueeze(-1)
        identity = torch.eye(m.shape[-2], dtype=m.dtype, device=m.device)
        query = torch.linalg.solve(
            (1 + 1e-12) * identity - m @ m.transpose(-1, -2), rows - m @ columns
        )
        candidate = columns - m.transpose(-1, -2) @ query
        kernel_grad = weighted - m * (query + candidate.transpose(-1, -2))
        return kernel_grad.to(grad.dtype), None


def _converge(
    kernel: Scaling, query_mask: Tensor, candidate_mask: Tensor, tol: float, max_iters: int
) -> tuple[Tensor, Tensor]:
    """Iterate to a fixed point; a pair that has arrived stays, whatever its batch still does."""
    candidate = kernel.start(candidate_mask)
    query = kernel.query(candidate)
    moving = torch.ones(len(query), 1, dtype=torch.bool, device=query.device)
    for _ in range(max_iters):
        new_query = kernel.query(candidate)
        new_candidate = kernel.candidate(new_query)
        shift = _balance(kernel, new_query, new_candidate, query_mask, candidate_mask)
        new_query = kernel.shift(new_query, shift)
        new_candidate = kernel.shift(new_candidate, -shift)
        change = torch.maximum(
            _largest_change(kernel, query, new_query, query_mask),
            _largest_change(kernel, candidate, new_candidate, candidate_mask),
        )
        query = torch.where(moving, new_query, query)
        candidate = torch.where(moving, new_candidate, candidate)
        moving = moving & (change > tol)
        if not moving.any():
            break
    return query, candidate


def _balance(
    kernel: Scaling, query: Tensor, candidate: Tensor, query_mask: Tensor, candidate_mask: Tensor
) -> Tensor:
    """Return the best exchange of one factor between both potentials, as a logarithm: `(batch,)`.

    The plan does not change when one potential grows by the factor by which the other shrinks,
    only the slack does. Alternating updates find this one number last, in hundreds of steps for
    proteins of about equal length; requiring equal mass from both sides gives it in closed form.
    """
    query_slack = _slack(kernel, query, query_mask)
    candidate_slack = _slack(kernel, candidate, candidate_mask)
    surplus = (query_mask.sum(-1) - candidate_mask.sum(-1)).to(query_slack.dtype)
    # The positive root of slack_q f^2 - surplus f - slack_c = 0, in the form without cancellation.
    half = ((surplus**2 + 4 * query_slack * candidate_slack).sqrt() + surplus.abs()) / 2
    factor = torch.where(surplus >= 0, half / query_slack, candidate_slack / half)
    # A side without residues, or without slack to speak of, has nothing to exchange.
    return torch.where(factor.isfinite() & (factor > 0), factor, 1.0).log()


def _slack(kernel: Scaling, potential: Tensor, mask: Tensor) -> Tensor:
    return (kernel.log(potential) + math.log(kernel.eps)).exp().masked_fill(~mask, 0.0).sum(-1)


def _largest_change(kernel: Scaling, old: Tensor, new: Tensor, mask: Tensor) -> Tensor:
    change = (kernel.log(new) - kernel.log(old)).abs().masked_fill(~mask, 0.0)
    return change.amax(-1, keepdim=True)
