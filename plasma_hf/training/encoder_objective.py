"""What a residue encoder is trained for: the plan that PLASMA-PF makes of its embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.cost import hinge_cost
from ..models.losses import label_match_losses
from ..models.modeling_plasma import PlasmaModel
from ..models.modeling_residue_encoder import ResidueEncoderModel
from ..models.plan import make_plans
from ..models.sinkhorn import log_kernel

SMALL = 1e-6


@dataclass(frozen=True)
class ObjectiveWeights:
    """Say how much each part of the objective counts; 0 leaves it out.

    Attributes:
        correspondence: Corresponding residues choose each other.
        unrelated: Residues of unrelated proteins choose none.
        plan: The plan, with its support rounds, has its mass on corresponding residues.
        site: Residues of a site find the site of a relative (label match loss).
        masked: Masked residues are guessed.
    """

    correspondence: float = 1.0
    unrelated: float = 0.5
    plan: float = 0.0
    site: float = 0.0
    masked: float = 0.0


class EncoderObjective(nn.Module):
    """An encoder and what it is trained for, through a parameter-free head.

    With the kernel K of a pair and the slack eps of a residue, a corresponding residue pair has
    the probabilities `K_ij / (sum_j K_ij + eps^2)` and `K_ij / (sum_i K_ij + eps^2)`: the choice
    of one residue among those of the other protein and staying alone, at the price at which a
    plan lets both stay alone. The loss is the mean of their negative logarithms; for unrelated
    proteins it is that of staying alone.

    Args:
        encoder: The encoder to train.
        head: A `PlasmaModel` without parameters (`head="hinge"`), which says kernel and plan.
        weights: Of the parts.
    """

    def __init__(
        self, encoder: ResidueEncoderModel, head: PlasmaModel, weights: ObjectiveWeights
    ) -> None:
        """Put a guess of masked residues beside the encoder, where it is asked for."""
        super().__init__()
        self.encoder, self.weights = encoder, weights
        self.config = head.config
        self.guess = nn.Linear(encoder.config.width, 27) if weights.masked else None

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        related: Tensor,
        site_labels: Tensor,
        masked_input_ids: Tensor | None = None,
        masked_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the parts of the loss, and their weighted sum as `loss`; see `collate`."""
        mask = input_ids > 0
        embeddings = self.encoder(input_ids, mask).last_hidden_state
        # Costs of some hundreds, exponentiated, do not survive half precision.
        with torch.autocast(input_ids.device.type, enabled=False):
            rows = F.layer_norm(embeddings.float(), embeddings.shape[-1:])
            rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
            (query, candidate), masks = rows.chunk(2), mask.chunk(2)
            kernel = log_kernel(
                hinge_cost(query, candidate), self.config.kernel_scale, masks[0], masks[1]
            )
            parts = self._choices(kernel, masks, targets, related)
            if self.weights.plan or self.weights.site:
                parts |= self._plans(kernel, masks, targets, related, site_labels.chunk(2))
        if self.guess is not None and masked_input_ids is not None:
            parts["masked"] = self._guesses(masked_input_ids, masked_labels)
        total = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()])
        return {"loss": total.sum()} | parts

    def _choices(
        self, kernel: Tensor, masks: tuple[Tensor, ...], targets: Tensor, related: Tensor
    ) -> dict[str, Tensor]:
        alone = kernel.new_tensor(2 * math.log(self.config.eps))
        row_mass, column_mass = kernel.logsumexp(-1), kernel.logsumexp(-2)
        pair, i, j = targets.unbind(-1)
        wanted = kernel[pair, i, j]
        losses = (
            torch.logaddexp(row_mass, alone)[pair, i] + torch.logaddexp(column_mass, alone)[pair, j]
        ) / 2 - wanted
        chosen = [
            _mean(F.softplus(mass - alone), side)
            for mass, side in zip((row_mass, column_mass), masks, strict=True)
        ]
        return {
            "correspondence": _mean_of_pairs(losses, pair, len(kernel)),
            "unrelated": _mean((chosen[0] + chosen[1]) / 2, ~related),
        }

    def _plans(
        self,
        kernel: Tensor,
        masks: tuple[Tensor, ...],
        targets: Tensor,
        related: Tensor,
        site_labels: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        _, plan = make_plans(kernel, masks[0], masks[1], self.config)
        pair, i, j = targets.unbind(-1)
        # A plan that is not converged has entries above 1.
        losses = -plan[pair, i, j].clamp(SMALL, 1).log()
        query_sites, candidate_sites = site_labels
        forth = label_match_losses(plan, query_sites, candidate_sites)
        back = label_match_losses(plan.transpose(1, 2), candidate_sites, query_sites)
        labelled = related & query_sites.any(-1) & candidate_sites.any(-1)
        return {
            "plan": _mean_of_pairs(losses, pair, len(kernel)),
            "site": _mean((forth + back) / 2, labelled),
        }

    def _guesses(self, input_ids: Tensor, labels: Tensor | None) -> Tensor:
        mask = input_ids > 0
        windows = self.encoder.substitution(input_ids, mask).last_hidden_state
        assert labels is not None and self.guess is not None
        logits = self.guess(self.encoder.network(windows, mask)).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Average what counts, along the last axis; 0 where nothing does."""
    weight = counted.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _mean_of_pairs(losses: Tensor, pair: Tensor, count: int) -> Tensor:
    """Average over the residues of each pair, then over the pairs that have any."""
    sums = losses.new_zeros(count).index_add(0, pair, losses)
    sizes = losses.new_zeros(count).index_add(0, pair, torch.ones_like(losses))
    return _mean(sums / sizes.clamp(min=1), sizes > 0)
