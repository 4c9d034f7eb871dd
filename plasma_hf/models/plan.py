"""The plan of a pair, solved by the kernels that fit and supported where the model asks for it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from .kernels import kernels_for
from .plan_numba import converged_plan_numba, sinkhorn_numba
from .plan_triton import sinkhorn_triton
from .sinkhorn import ConvergedPlan, sinkhorn
from .support import supported_plan


def solve(log_kernel: Tensor, query_mask: Tensor, candidate_mask: Tensor, config: Any) -> Tensor:
    """Scale a kernel to its plan, as `sinkhorn` does, with the kernels for its device.

    Args:
        log_kernel: `(batch, query_residues, candidate_residues)`.
        query_mask: True where there is a residue, `(batch, query_residues)`.
        candidate_mask: True where there is a residue, `(batch, candidate_residues)`.
        config: The `PlasmaConfig`, which says eps, iterations or tolerance, and domain.
    """
    kernels = kernels_for(log_kernel) if config.domain == "linear" else "torch"
    if kernels == "numba" and config.tol is not None:
        further = (query_mask, candidate_mask, config.eps, config.tol, config.max_iters)
        return ConvergedPlan.apply(log_kernel, lambda k: converged_plan_numba(k, *further))
    if kernels != "torch" and config.tol is None:
        form = sinkhorn_numba if kernels == "numba" else sinkhorn_triton
        return form(log_kernel, candidate_mask, config.eps, config.n_iters)
    return sinkhorn(
        log_kernel,
        query_mask,
        candidate_mask,
        eps=config.eps,
        n_iters=config.n_iters,
        tol=config.tol,
        max_iters=config.max_iters,
        domain=config.domain,
    )


def make_plans(
    log_kernel: Tensor, query_mask: Tensor, candidate_mask: Tensor, config: Any
) -> tuple[Tensor, Tensor]:
    """Return the plan without support, which is scored, and the plan with it."""
    solve_kernel = partial(
        solve, query_mask=query_mask, candidate_mask=candidate_mask, config=config
    )
    first_plan = solve_kernel(log_kernel)
    plan = supported_plan(
        solve_kernel,
        log_kernel,
        first_plan,
        rounds=config.support_rounds,
        window=config.support_window,
        gap=config.support_gap,
        weight=config.support_weight,
        order_weight=config.order_weight,
    )
    return first_plan, plan
