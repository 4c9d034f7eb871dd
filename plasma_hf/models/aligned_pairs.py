"""Pairs of ready embeddings aligned without gradient and padding, in fused kernels if possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .align_numba import align_pairs_numba
from .cost import at_least_float32, check_widths, hinge_cost
from .kernels import kernels_for
from .padding import pad_residues
from .score import of_lengths
from .score_triton import align_scores_triton
from .sinkhorn import log_kernel

if TYPE_CHECKING:
    from .modeling_plasma import PlasmaModel

PADDED_PAIRS = 16
"""Pairs that are padded to one batch where the fused kernels cannot be used."""


@dataclass
class AlignedPairs:
    """Hold what PLASMA says about a list of pairs.

    Attributes:
        scores: One score a pair, `(pairs,)`.
        plans: `(query_residues, candidate_residues)` each, if they were asked for.
    """

    scores: Tensor
    plans: list[Tensor] | None = None


@torch.no_grad()
def align_pairs(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    query_projections: Sequence[Tensor] | None = None,
    candidate_projections: Sequence[Tensor] | None = None,
    return_plans: bool = True,
) -> AlignedPairs:
    """Align query p with candidate p; see `PlasmaModel.align_pairs`."""
    if len(queries) != len(candidates):
        raise ValueError(
            f"{len(queries)} queries and {len(candidates)} candidates; give as many of each."
        )
    query, candidate = (
        project_each(model, side) if given is None else given
        for side, given in ((queries, query_projections), (candidates, candidate_projections))
    )
    for sides in zip(query, candidate, strict=True):
        check_widths(*sides)
    if not len(queries):
        return AlignedPairs(torch.zeros(0), [] if return_plans else None)
    if can_fuse(model, query[0]):
        matches = fused_matches(model, query, candidate, return_plans)
        return AlignedPairs(
            match_scores(model, matches, queries, lambda p: candidates[p]), matches.plans
        )
    return _align_padded(model, queries, candidates, query, candidate, return_plans)


@torch.no_grad()  # also where a thread calls it that knows nothing of its caller's no_grad
def project_each(model: PlasmaModel, proteins: Sequence[Tensor]) -> list[Tensor]:
    """Project proteins `(residues, hidden)`; one that stands there repeatedly, once."""
    known = {id(protein): protein for protein in proteins}
    projected = {key: model.project(protein) for key, protein in known.items()}
    return [projected[id(protein)] for protein in proteins]


def can_fuse(model: PlasmaModel, example: Tensor) -> bool:
    """Tell whether the fused kernels compute what the configuration asks for."""
    config = model.config
    return (
        kernels_for(at_least_float32(example)) == "numba"
        and config.domain == "linear"
        and config.score_form != "soft"
    )


def fused_matches(
    model: PlasmaModel,
    query_projections: Sequence[Tensor],
    candidate_projections: Sequence[Tensor],
    return_plans: bool,
    quantum: float | None = None,
) -> Any:
    """Run the fused kernels: what is matched in each pair, and the plans if they are wanted.

    With `quantum` projections are 8-bit codes, see `quantised_numba`.
    """
    config = model.config
    sides = [query_projections, candidate_projections]
    if quantum is None:
        sides = [[at_least_float32(protein) for protein in side] for side in sides]
    return align_pairs_numba(
        *sides,
        quantum=quantum,
        kernel_scale=config.kernel_scale,
        eps=config.eps,
        n_iters=config.n_iters,
        tol=config.tol,
        max_iters=config.max_iters,
        support_rounds=config.support_rounds,
        support_window=config.support_window,
        support_gap=config.support_gap,
        support_weight=config.support_weight,
        order_weight=config.order_weight,
        threshold=config.threshold,
        diagonal_window=config.diagonal_window,
        collinear=config.score_form == "collinear",
        return_plans=return_plans,
    )


def match_scores(
    model: PlasmaModel,
    matches: Any,
    queries: Sequence[Tensor],
    read_candidate: Callable[[int], Tensor],
) -> Tensor:
    """Score pairs by what is matched in them; embeddings are read where something is.

    Args:
        model: Whose form of the score it is.
        matches: What `fused_matches` returned.
        queries: Query embeddings, `(residues, hidden)`, by pair.
        read_candidate: Gives candidate embeddings, `(residues, hidden)`, by the number of the pair.

    Returns:
        Scores, `(pairs,)`.
    """
    if model.config.score_form in ("mass", "collinear"):
        lengths = [
            torch.tensor([len(side) for side in sides]) for sides in (matches.sent, matches.gates)
        ]
        if model.config.score_form == "collinear":
            return of_lengths(matches.collinear, *lengths)
        return (matches.mass / torch.minimum(*lengths).clamp(min=1)).clamp(0, 1)
    similarity = torch.zeros(len(queries))
    # Few pairs have anything matched, and few residues in them: the others are not even read.
    for p in (matches.mass != 0).nonzero()[:, 0].tolist():
        senders, receivers = (side[p].nonzero()[:, 0] for side in (matches.sent, matches.gates))
        transported = matches.sent[p][senders] @ at_least_float32(queries[p][senders])
        present = matches.gates[p][receivers] @ at_least_float32(read_candidate(p)[receivers])
        similarity[p] = F.cosine_similarity(transported, present, dim=-1)
    return _with_stretch(similarity, matches.stretch, model.config.diagonal_window)


def _with_stretch(similarity: Tensor, stretch: Tensor, window: int) -> Tensor:
    if window > 0:
        similarity = similarity * stretch.clamp(0, window) / window
    return similarity.clamp(0, 1)


def _align_padded(
    model: PlasmaModel,
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    query_projections: Sequence[Tensor],
    candidate_projections: Sequence[Tensor],
    return_plans: bool,
) -> AlignedPairs:
    """Do the same in padded batches, with whatever kernels there are."""
    scores: list[Tensor] = []
    plans: list[Tensor] = []
    for start in range(0, len(queries), PADDED_PAIRS):
        part = slice(start, start + PADDED_PAIRS)
        sides = (queries[part], candidates[part])
        embeddings, masks = zip(*map(pad_residues, sides), strict=True)
        projections = [
            pad_residues(side[part])[0] for side in (query_projections, candidate_projections)
        ]
        if not return_plans and _can_fuse_on_cuda(model, projections[0]):
            scores.append(_fused_scores_on_cuda(model, embeddings, projections, masks))
            continue
        aligned = model.align_projected(*projections, *masks)
        scores.append(model.score_plan(aligned.first_plan, *embeddings, *masks))
        lengths = zip(*(map(len, side) for side in sides), strict=True)
        plans += [p[:n, :m] for p, (n, m) in zip(aligned.plan, lengths, strict=True)]
    return AlignedPairs(torch.cat(scores), plans if return_plans else None)


def _can_fuse_on_cuda(model: PlasmaModel, example: Tensor) -> bool:
    config = model.config
    return (
        kernels_for(example) == "triton"
        and config.domain == "linear"
        and config.tol is None
        and config.score_form in ("published", "mass")
    )


def _fused_scores_on_cuda(
    model: PlasmaModel,
    embeddings: Sequence[Tensor],
    projections: Sequence[Tensor],
    masks: Sequence[Tensor],
) -> Tensor:
    """Score a padded batch without writing its plans."""
    config = model.config
    kernel = log_kernel(hinge_cost(*projections), config.kernel_scale, *masks)
    lengths = [mask.sum(-1) for mask in masks]
    matches = align_scores_triton(
        kernel,
        *lengths,
        eps=config.eps,
        n_iters=config.n_iters,
        threshold=config.threshold,
        diagonal_window=config.diagonal_window,
    )
    if config.score_form == "mass":
        return (matches.mass / torch.minimum(*lengths).clamp(min=1)).clamp(0, 1)
    gates = (matches.sent, matches.candidate_gate)
    transported, present = (
        (gate.unsqueeze(-2) @ at_least_float32(side)).squeeze(-2)
        for gate, side in zip(gates, embeddings, strict=True)
    )
    similarity = F.cosine_similarity(transported, present, dim=-1)
    return _with_stretch(similarity, matches.stretch, config.diagonal_window)
