"""Several ranks: what a contrastive loss is compared with comes from all of them."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..models.modeling_protalign import Gathered, alone


def wait_for_all() -> None:
    """Wait until every rank is here; without ranks, go on."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave_ranks() -> None:
    """Leave the process group, if there is one, when the trainers of this process are done.

    Gloo's threads end with the last object that holds the group. One that still ran as the
    interpreter ends could abort the process: a trainer holds the group, in a circle of references,
    by what it wraps its model in, so what nobody holds any more is collected here.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def gather_ranks(vectors: Tensor) -> Gathered:
    """Fetch what every rank has in the place of `vectors`; alone, nothing.

    The loss of one rank sends a gradient to the vectors of all ranks. Where the ranks' gradients
    are averaged, as DistributedDataParallel does, the update is that of one process with all pairs.
    All ranks must call this equally often, with equal dimensions but the first.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return alone(vectors)
    own = torch.tensor([len(vectors)], device=vectors.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    pairs = [int(count) for count in counts]
    start = sum(pairs[: dist.get_rank()])
    return Gathered(_GatherWithGradient.apply(vectors, pairs, start), start, len(pairs))


class _GatherWithGradient(torch.autograd.Function):
    """All-gather; in the backward pass a rank's vectors get the gradients of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: list[int], start: int) -> Tensor:
        """Return the vectors of all ranks, rank after rank."""
        ctx.start, ctx.pairs = start, len(vectors)
        # Collectives want equal shapes: short ranks are filled up, and cut again.
        filled = vectors.new_zeros(max(pairs), *vectors.shape[1:])
        filled[: len(vectors)] = vectors
        parts = [torch.empty_like(filled) for _ in pairs]
        dist.all_gather(parts, filled)
        return torch.cat([part[:n] for part, n in zip(parts, pairs, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the sum over ranks of the gradients to this rank's vectors."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.pairs], None, None
