"""The hinge cost of matching a query residue with a candidate residue."""

from __future__ import annotations

import torch
from torch import Tensor

from .cost_numba import hinge_cost_numba
from .cost_triton import hinge_cost_triton
from .kernels import kernels_for


def hinge_cost(query: Tensor, candidate: Tensor) -> Tensor:
    """Sum over channels what the query residue has in excess of the candidate residue.

    `C_ij = sum_k relu(q_ik - c_jk)`, which equals half of `|q_i - c_j|_1 + sum q_i - sum c_j`; no
    form has a `(query_residues, candidate_residues, channels)` intermediate.

    Args:
        query: Projected query residues, `(batch, query_residues, channels)`.
        candidate: Projected candidate residues, `(batch, candidate_residues, channels)`.

    Returns:
        The cost, `(batch, query_residues, candidate_residues)`, in float32 or wider.

    Source: PLASMA (ICLR 2026), the hinge cost.

    Example:
        >>> q, c = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[1.0, 5.0], [3.0, 0.0]]])
        >>> hinge_cost(q, c)
        tensor([[[2., 0.]]])
    """
    check_widths(query, candidate)
    kernels = kernels_for(query)
    if kernels == "triton":
        return hinge_cost_triton(query, candidate)
    query, candidate = at_least_float32(query), at_least_float32(candidate)
    form = hinge_cost_numba if kernels == "numba" else hinge_cost_torch
    return form(query, candidate)


def hinge_cost_torch(query: Tensor, candidate: Tensor) -> Tensor:
    """Do the same in plain torch: the form that the compiled ones are compared with."""
    distance = torch.cdist(query, candidate, p=1.0)
    excess = query.sum(-1).unsqueeze(-1) - candidate.sum(-1).unsqueeze(-2)
    return (distance + excess) / 2


def check_widths(query: Tensor, candidate: Tensor) -> None:
    """Refuse residues of different widths; a compiled kernel would read past the narrower ones.

    Raises:
        ValueError: If the last axes differ.
    """
    if query.shape[-1] != candidate.shape[-1]:
        raise ValueError(
            f"query embeddings have width {query.shape[-1]}, candidate embeddings "
            f"{candidate.shape[-1]}; embed both with the same backbone."
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision, which the head does not compute in."""
    # cdist has no kernel for half precision on a CPU, and costs of some hundreds need the bits.
    return tensor if tensor.dtype == torch.float64 else tensor.float()
