"""Contrastive losses: proteins that belong together near each other, all others apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SIGNS = ("pseudocode", "paper")
"""Whether the bias of SigLIP is added to the logits or, as the paper prints it, taken off."""


class Gathered(NamedTuple):
    """Vectors of all ranks.

    Args:
        vectors: `(pairs of all ranks, ...)`, rank after rank.
        start: Where those of this rank begin.
        ranks: How many ranks there are.
    """

    vectors: Tensor
    start: int
    ranks: int


Gather = Callable[[Tensor], Gathered]
"""What fetches the vectors of the other ranks, see `plasma_hf.training.gathered`."""


def alone(vectors: Tensor) -> Gathered:
    """Return the vectors of this process, the only one."""
    return Gathered(vectors, 0, 1)


def clip_loss(
    sequences: Tensor,
    structures: Tensor,
    logit_temperature: Tensor | float,
    groups: Tensor | None = None,
    gather: Gather = alone,
) -> Tensor:
    """Tell each pair's structure among all structures, and its sequence among all sequences.

    The mean of both cross-entropies (CLIP, Radford et al. 2021; eq. 2 of ProtAlign). Vectors are
    taken as they are: normalise before.

    Args:
        sequences: `(pairs, shared)`.
        structures: `(pairs, shared)`, in the same order.
        logit_temperature: What cosines are divided by.
        groups: `(pairs,)`, integers. Pairs of one group are no negatives of each other.
        gather: Fetch the pairs of other ranks, to be compared with those of this one. The mean of
            the ranks' losses is then the loss of all pairs.

    Example:
        >>> clip_loss(torch.eye(4), torch.eye(4), logit_temperature=0.01) < 1e-6
        tensor(True)
    """
    _check_pairs(sequences, structures)
    excluded = _same_group(groups, len(sequences), gather)

    def one_way(queries: Tensor, targets: Tensor) -> Tensor:
        everyone = gather(targets)
        logits = queries @ everyone.vectors.T / logit_temperature
        if excluded is not None:
            logits = logits.masked_fill(excluded, -math.inf)
        own = torch.arange(len(queries), device=logits.device) + everyone.start
        # The mean over the pairs of all ranks, times the ranks, whose losses are averaged.
        loss = F.cross_entropy(logits, own, reduction="sum")
        return loss * (everyone.ranks / len(everyone.vectors))

    return (one_way(sequences, structures) + one_way(structures, sequences)) / 2


def siglip_loss(
    sequences: Tensor,
    structures: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    sign: str = "pseudocode",
    groups: Tensor | None = None,
    gather: Gather = alone,
    chunk: int | None = None,
) -> Tensor:
    """Judge each sequence with each structure on its own: do they belong together?

    The negative log-likelihood, summed over all sequences and structures and divided by the pairs
    (SigLIP, Zhai et al. 2023; eq. 3 of ProtAlign). Vectors are taken as they are: normalise before.

    Args:
        sequences: `(pairs, shared)`.
        structures: `(pairs, shared)`, in the same order.
        scale: What cosines are multiplied by, the inverse of the logit temperature.
        bias: What is added, far below 0 as most sequences and structures do not belong together.
        sign: "pseudocode" adds the bias, as published code does; "paper" subtracts it, as printed.
        groups: `(pairs,)`, integers. Pairs of one group are no negatives of each other.
        gather: Fetch the structures of other ranks. The mean of the ranks' losses is then the loss
            of all pairs.
        chunk: Sequences compared at a time; the loss is the same, and needs memory for
            `chunk * pairs` logits instead of all. They are computed again for the gradient.

    Raises:
        ValueError: If `sign` is neither.

    Example:
        >>> siglip_loss(torch.eye(4), torch.eye(4), scale=100.0, bias=-50.0) < 1e-6
        tensor(True)
    """
    _check_pairs(sequences, structures)
    if sign not in SIGNS:
        raise ValueError(f"sign={sign!r}; accepted are {' and '.join(map(repr, SIGNS))}.")
    everyone = gather(structures)
    excluded = _same_group(groups, len(sequences), gather)
    offset = bias if sign == "pseudocode" else -bias

    def losses(rows: Tensor, targets: Tensor, own: Tensor, left_out: Tensor | None) -> Tensor:
        logits = scale * (rows @ targets.T) + offset
        together = F.one_hot(own, len(targets)).to(logits.dtype)
        loss = -F.logsigmoid((2 * together - 1) * logits)
        return loss.sum() if left_out is None else loss.masked_fill(left_out, 0.0).sum()

    places = torch.arange(len(sequences), device=sequences.device)
    parts = []
    for rows in places.split(chunk or len(sequences)):
        left_out = None if excluded is None else excluded[rows]
        part = (sequences[rows], everyone.vectors, rows + everyone.start, left_out)
        parts.append(
            losses(*part) if chunk is None else checkpoint(losses, *part, use_reentrant=False)
        )
    # The mean over the pairs of all ranks, times the ranks, whose losses are averaged.
    return torch.stack(parts).sum() * (everyone.ranks / len(everyone.vectors))


def _same_group(groups: Tensor | None, pairs: int, gather: Gather) -> Tensor | None:
    """Return which other pairs are of the same group, `(pairs, pairs of all ranks)`."""
    if groups is None:
        return None
    if groups.shape != (pairs,):
        raise ValueError(
            f"groups has shape {tuple(groups.shape)}; give ({pairs},), one integer for each pair."
        )
    everyone = gather(groups)
    same = groups.unsqueeze(1) == everyone.vectors
    same.diagonal(everyone.start).fill_(False)
    return same


def _check_pairs(sequences: Tensor, structures: Tensor) -> None:
    if sequences.shape != structures.shape or sequences.ndim != 2 or not len(sequences):
        raise ValueError(
            f"sequences have shape {tuple(sequences.shape)}, structures "
            f"{tuple(structures.shape)}; give (pairs, shared) for both, in the same order."
        )


class PairLoss(nn.Module):
    """The loss of ProtAlign, with its logit temperature and bias, which may be learnt.

    Args:
        config: `loss`, `logit_temperature`, `logit_bias` and what is learnt of them.
    """

    log_scale: nn.Parameter
    bias: nn.Parameter

    MAX_LOG_SCALE = math.log(100)  # beyond it, a learnt scale runs off

    def __init__(self, config: Any) -> None:
        """Build the parameters, if any are learnt."""
        super().__init__()
        self.config = config
        for name, value in self.starting_values().items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def starting_values(self) -> dict[str, float]:
        """Return what is learnt, as it is before training."""
        values = {}
        if self.config.learn_temperature:
            values["log_scale"] = -math.log(self.config.logit_temperature)
        if self.config.loss == "siglip" and self.config.learn_bias:
            values["bias"] = float(self.config.logit_bias)
        return values

    @property
    def scale(self) -> Tensor | float:
        """What cosines are multiplied by, the inverse of the logit temperature."""
        if self.config.learn_temperature:
            return self.log_scale.clamp(max=self.MAX_LOG_SCALE).exp()
        return 1 / self.config.logit_temperature

    @property
    def offset(self) -> Tensor | float:
        """What is added to the logits; CLIP adds nothing."""
        if self.config.loss == "clip":
            return 0.0
        bias = self.bias if self.config.learn_bias else self.config.logit_bias
        return bias if self.config.siglip_sign == "pseudocode" else -bias

    def logits(self, sequences: Tensor, structures: Tensor) -> Tensor:
        """Return the logits of all sequences with all structures, `(sequences, structures)`."""
        return self.scale * (sequences @ structures.T) + self.offset

    def forward(
        self,
        sequences: Tensor,
        structures: Tensor,
        groups: Tensor | None = None,
        gather: Gather = alone,
    ) -> Tensor:
        """Return the loss of pairs, see `clip_loss` and `siglip_loss`."""
        if self.config.learn_temperature:
            # Left beyond the limit it would get no gradient to come back. It is not changed as
            # autograd sees it: a batch may be compared more than once.
            self.log_scale.data.clamp_(max=self.MAX_LOG_SCALE)
        if self.config.loss == "clip":
            return clip_loss(sequences, structures, 1 / self.scale, groups, gather)
        chunk = self.config.loss_chunk
        return siglip_loss(
            sequences,
            structures,
            self.scale,
            self.offset,
            groups=groups,
            gather=gather,
            chunk=chunk,
        )
