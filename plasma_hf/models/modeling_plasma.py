"""PLASMA: residue embeddings of two proteins in, an alignment plan and one score out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .aligned_pairs import AlignedPairs, align_pairs
from .alignment_heads import HEADS, LayerNormalization, ScoreAffine, ZeroLinear
from .configuration_plasma import PlasmaConfig
from .cost import at_least_float32, hinge_cost
from .kernels import kernels_for
from .language_model import build_language_model
from .losses import mean_losses, pair_losses
from .one_against_many import Hit, score_many
from .pair_batch import PairBatch
from .pair_plans_numba import pair_plans_numba
from .parameter_free import ParameterFree
from .plan import make_plans
from .pretrained_backbone import OWN_MODELS
from .released_heads import read_released_head, write_released_head
from .score import collinear_score, matched_mass, published_score, soft_score
from .sinkhorn import log_kernel
from .weights_digest import weights_digest
from .with_backbone import WithBackbone

if TYPE_CHECKING:
    # Files named by an import travel with a saved model: the folder then has its pipeline.
    from .pipeline_protein_alignment import ProteinAlignmentPipeline  # noqa: F401


@dataclass
class PlasmaOutput(ModelOutput):
    """What PLASMA says about a batch of pairs.

    Args:
        loss: Mean over pairs of what each would lose alone: score loss plus weighted label match
            loss plus weighted correspondence loss, of those that labels are given for.
        scores: One score in [0, 1] a pair, `(batch,)`.
        plan: `(batch, query_residues, candidate_residues)`, with `return_plan=True`.
        cost: Same shape, with `return_plan=True`; what the kernel is made of.
        score_loss: Mean over pairs of the loss that comes from pair labels.
        label_match_loss: Mean over positive pairs of the loss that comes from site labels,
            unweighted; 0 where no pair is positive.
        correspondence_loss: Mean over pairs of the loss that comes from residue correspondences,
            unweighted.
    """

    loss: Tensor | None = None
    scores: Tensor | None = None
    plan: Tensor | None = None
    cost: Tensor | None = None
    score_loss: Tensor | None = None
    label_match_loss: Tensor | None = None
    correspondence_loss: Tensor | None = None


class AlignedBatch(NamedTuple):
    """Hold cost, plan without support and plan with it, `(batch, query, candidate)` each."""

    cost: Any  # a tensor, but in training, where it is not kept
    first_plan: Tensor
    plan: Tensor


class PlasmaModel(ParameterFree, WithBackbone):
    """Align two proteins by optimal transport between their residue embeddings.

    The model is a head, and takes ready embeddings, or a head over a backbone, and takes token
    ids as well. A pair's score, plan and loss do not depend on its batch nor on padding.

    Source: PLASMA (ICLR 2026).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = PlasmaModel(PlasmaConfig(embedding_size=64, head="hinge"))
        >>> protein = torch.randn(1, 30, 64)
        >>> out = model(protein, protein[:, 5:20], return_plan=True)
        >>> out.plan.shape, out.scores.shape
        (torch.Size([1, 30, 15]), torch.Size([1]))
    """

    config_class = PlasmaConfig
    base_model_prefix = "plasma"
    main_input_name = "query_embeddings"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever accumulates it
    _keep_in_fp32_modules_strict = {"alignment_head", "score_affine"}
    _no_split_modules: list[str] = []
    _supports_sdpa = True

    def __init__(self, config: PlasmaConfig) -> None:
        """Build the head, and the backbone if the configuration has one."""
        super().__init__(config)
        under = config.plm_config if config.backbone_saved else None
        self.backbone = None if under is None else build_backbone(under)
        self.alignment_head = HEADS[config.head](config)
        if config.score_loss_form == "affine":
            self.score_affine = ScoreAffine()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            # PyTorch's own defaults, with which the released heads were trained.
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerNormalization):
            init.zeros_(module.placeholder)
        elif isinstance(module, ScoreAffine):
            init.copy_(module.weight, torch.tensor([10.0, -5.0]))

    @classmethod
    def from_upstream(
        cls,
        repo_or_dir: str | Path,
        task: str | None = None,
        backbone: str | None = None,
        revision: str | None = None,
    ) -> PlasmaModel:
        """Load a released PLASMA head as a head-only model.

        Args:
            repo_or_dir: Hub id, or a folder with `weights/{task}/{backbone}/`, or that inner
                folder itself.
            task: "active_site", "binding_site" or "motif".
            backbone: For example "esm2_t33_650M_UR50D".
            revision: Commit, branch or tag on the Hub.

        Raises:
            FileNotFoundError: If there is no such head; the message lists those that are there.
            ValueError: If the files are no released head.
        """
        fields, state = read_released_head(repo_or_dir, task, backbone, revision)
        model = cls(PlasmaConfig(**fields))
        model.load_state_dict(state, strict=fields["head"] == "lrl")
        return model.eval()

    def save_upstream(self, folder: str | Path) -> Path:
        """Write the head in the layout of the released heads and return the folder it is in.

        Raises:
            ValueError: If the head is of a form that was never released.
        """
        if self.config.head == "residual":
            raise ValueError(
                'the layout of the released heads has no place for head="residual"; save with '
                'model.save_pretrained(), or train with head="lrl".'
            )
        state = self.alignment_head.state_dict(prefix="alignment_head.")
        return write_released_head(self.config, state, Path(folder))

    def project(self, embeddings: Tensor) -> Tensor:
        """Project residue embeddings `(..., hidden)` to what the cost compares, in float32."""
        return self.alignment_head(at_least_float32(embeddings))

    @property
    def head_identity(self) -> dict[str, str]:
        """What projections depend on: the form of the head and a digest of its parameters."""
        config, digest = self.config, weights_digest(self.alignment_head)
        return {"head": config.head, "normalize": str(config.normalize), "weights": digest}

    def align_pairs(
        self,
        queries: Sequence[Tensor],
        candidates: Sequence[Tensor],
        *,
        query_projections: Sequence[Tensor] | None = None,
        candidate_projections: Sequence[Tensor] | None = None,
        return_plans: bool = True,
    ) -> AlignedPairs:
        """Align query p with candidate p, without gradient and without padding.

        It computes what `forward` does, as fast as the machine allows.

        Args:
            queries: Residue embeddings, `(residues, hidden)` each; one may stand there repeatedly.
            candidates: As many.
            query_projections: What `project` makes of them, `(residues, head_size)` each, where it
                is at hand.
            candidate_projections: The same for the candidates.
            return_plans: Return plans beside scores; without them less is computed.

        Example:
            >>> model = PlasmaModel(PlasmaConfig(embedding_size=8, head="hinge"))
            >>> protein = torch.arange(96.0).sin().view(12, 8)
            >>> aligned = model.align_pairs([protein, protein], [protein, protein[3:9]])
            >>> aligned.scores.shape, [plan.shape for plan in aligned.plans]
            (torch.Size([2]), [torch.Size([12, 12]), torch.Size([12, 6])])
        """
        return align_pairs(
            self, queries, candidates, query_projections, candidate_projections, return_plans
        )

    def score_many(
        self,
        queries: Tensor | Sequence[Tensor],
        store: Any,
        *,
        top_k: int = 10,
        return_plans: bool = True,
        precision: str = "float32",
        progress: bool | None = None,
    ) -> list[list[Hit]]:
        """Score queries against every protein of an embedding store.

        Queries are projected once, candidates pass by once for all queries, a batch at a time;
        plans are made for the hits alone.

        Args:
            queries: Residue embeddings, `(residues, hidden)`, of one protein or several.
            store: A `plasma_hf.data.EmbeddingStore`, best with the projections of this head.
            top_k: Hits to keep for each query.
            return_plans: Add their plans.
            precision: "uint8" to look for hits by projections rounded to 8 bits, on a CPU with
                numba; the best are then scored again exactly. "float32" computes as `forward`.
            progress: Show progress; None where standard error is a terminal.

        Returns:
            The hits of each query, best first.

        Raises:
            ValueError: If the store is of another head or of a backbone of another width, or
                `precision` or `top_k` are none.
        """
        several = [queries] if isinstance(queries, Tensor) else list(queries)
        return score_many(self, several, store, top_k, return_plans, precision, progress=progress)

    def forward(
        self,
        query_embeddings: Tensor | None = None,
        candidate_embeddings: Tensor | None = None,
        query_mask: Tensor | None = None,
        candidate_mask: Tensor | None = None,
        query_input_ids: Tensor | None = None,
        candidate_input_ids: Tensor | None = None,
        query_attention_mask: Tensor | None = None,
        candidate_attention_mask: Tensor | None = None,
        query_backbone_atoms: Tensor | None = None,
        candidate_backbone_atoms: Tensor | None = None,
        query_site_labels: Tensor | None = None,
        candidate_site_labels: Tensor | None = None,
        labels: Tensor | None = None,
        correspondences: Tensor | None = None,
        return_plan: bool = False,
        return_dict: bool | None = None,
    ) -> PlasmaOutput | tuple[Tensor, ...]:
        """Align a batch of pairs.

        Each side comes as embeddings, or as token ids with a backbone. Masks are True (or 1) at
        residues; `None` means that every position is one.

        Args:
            query_embeddings: `(batch, query_residues, hidden)`, any floating dtype.
            candidate_embeddings: `(batch, candidate_residues, hidden)`.
            query_mask: `(batch, query_residues)`, or over tokens with `query_input_ids`.
            candidate_mask: The same for the candidate.
            query_input_ids: `(batch, query_tokens)`.
            candidate_input_ids: `(batch, candidate_tokens)`.
            query_attention_mask: `(batch, query_tokens)`.
            candidate_attention_mask: `(batch, candidate_tokens)`.
            query_backbone_atoms: N, CA and C in Å, `(batch, query_residues, 3, 3)`, beside the
                token ids of a backbone that reads structures.
            candidate_backbone_atoms: The same for the candidate.
            query_site_labels: 0/1 a residue, `(batch, query_residues)`.
            candidate_site_labels: 0/1 a residue, `(batch, candidate_residues)`.
            labels: 1 where the two share a site, `(batch,)`.
            correspondences: Residues (i, j) that are known to correspond, `(batch, n, 2)`; rows
                of -1 are padding.
            return_plan: Return plan and cost too.
            return_dict: Return a `PlasmaOutput` (default) or a tuple.

        Raises:
            ValueError: If a side is missing or given twice, or shapes do not fit together.
        """
        tokens = (query_input_ids, query_attention_mask, query_mask, query_backbone_atoms)
        query, query_mask = self._side("query", query_embeddings, query_mask, tokens)
        tokens = (
            candidate_input_ids,
            candidate_attention_mask,
            candidate_mask,
            candidate_backbone_atoms,
        )
        candidate, candidate_mask = self._side(
            "candidate", candidate_embeddings, candidate_mask, tokens
        )
        if len(query) != len(candidate):
            raise ValueError(
                f"{len(query)} queries and {len(candidate)} candidates; give as many of each."
            )
        # Costs of some hundreds, exponentiated, do not survive half precision.
        with torch.autocast(query.device.type, enabled=False):
            site_labels = (
                _masked_labels("query", query_site_labels, query_mask),
                _masked_labels("candidate", candidate_site_labels, candidate_mask),
            )
            sides = ((query, candidate), (query_mask, candidate_mask), site_labels)
            output = self._align_batch(PairBatch(*sides, labels, correspondences), return_plan)
        return output.to_tuple() if return_dict is False else output

    def _align_batch(self, batch: PairBatch, return_plan: bool) -> PlasmaOutput:
        """Align pairs together, or one by one where padding would be much of the work."""
        alone = kernels_for(batch.embeddings[0]) == "numba" and batch.mostly_padding
        parts = batch.singles(self.project) if alone else [batch.projected(self.project)]
        if alone and not return_plan and self.config.solved_as_published:
            aligned = self._plans_with_gradient(parts)
        else:
            aligned = [self.align_projected(*part.projections, *part.masks) for part in parts]
        scores = [
            self.score_plan(a.first_plan, *part.embeddings, *part.masks)
            for a, part in zip(aligned, parts, strict=True)
        ]
        config: Any = self.config
        affine = self.score_affine() if config.score_loss_form == "affine" else None
        losses = [
            pair_losses(part, score, a.plan, config, affine)
            for part, score, a in zip(parts, scores, aligned, strict=True)
        ]
        all_losses = {name: torch.cat([part[name] for part in losses]) for name in losses[0]}
        return PlasmaOutput(
            scores=torch.cat(scores),
            plan=batch.joined([a.plan for a in aligned]) if return_plan else None,
            cost=batch.joined([a.cost for a in aligned]) if return_plan else None,
            **mean_losses(all_losses, batch, config),
        )

    def _plans_with_gradient(self, singles: list[PairBatch]) -> list[AlignedBatch]:
        """Make the plans of pairs without padding by kernels that keep no cost."""
        query, candidate = zip(*(single.projections for single in singles), strict=True)
        config = self.config
        scale = float(config.kernel_scale)
        plans = pair_plans_numba(query, candidate, scale, config.eps, config.n_iters)
        return [AlignedBatch(None, plan, plan) for plan in plans]

    def _side(
        self,
        side: str,
        embeddings: Tensor | None,
        mask: Tensor | None,
        tokens: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings, whatever stands at padding, and residue mask of one side."""
        input_ids, *further = tokens
        if (embeddings is None) == (input_ids is None):
            raise ValueError(
                f"give the {side} either as {side}_embeddings or as {side}_input_ids"
                + (", not as both." if embeddings is not None else "; neither is here.")
            )
        if input_ids is not None:
            embeddings, mask = self.embed(input_ids, *further)
        assert embeddings is not None
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        self._check_side(side, embeddings, mask)
        return at_least_float32(embeddings), mask.bool()

    def _check_side(self, side: str, embeddings: Tensor, mask: Tensor) -> None:
        width = self.config.embedding_size
        if embeddings.ndim != 3 or not embeddings.is_floating_point():
            raise ValueError(
                f"{side}_embeddings is {embeddings.dtype} of shape {tuple(embeddings.shape)}; give "
                "floating point numbers of shape (batch, residues, hidden)."
            )
        if width is not None and embeddings.shape[-1] != width:
            raise ValueError(
                f"{side}_embeddings has width {embeddings.shape[-1]}, this head takes {width}; "
                "use the backbone the head was made for, or a head made for this backbone."
            )
        if mask.shape != embeddings.shape[:2]:
            raise ValueError(
                f"{side}_mask has shape {tuple(mask.shape)}; give {tuple(embeddings.shape[:2])}, "
                "(batch, residues), True at residues."
            )

    def align_projected(
        self, query: Tensor, candidate: Tensor, query_mask: Tensor, candidate_mask: Tensor
    ) -> AlignedBatch:
        """Make the plans of a padded batch from what `project` gave.

        Args:
            query: `(batch, query_residues, head_size)`.
            candidate: `(batch, candidate_residues, head_size)`.
            query_mask: True at residues, `(batch, query_residues)`.
            candidate_mask: True at residues, `(batch, candidate_residues)`.
        """
        config = self.config
        cost = hinge_cost(query, candidate)
        kernel = log_kernel(cost, config.kernel_scale, query_mask, candidate_mask)

        return AlignedBatch(cost, *make_plans(kernel, query_mask, candidate_mask, config))

    def score_plan(
        self,
        plan: Tensor,
        query: Tensor,
        candidate: Tensor,
        query_mask: Tensor,
        candidate_mask: Tensor,
    ) -> Tensor:
        """Score a padded batch, `(batch,)`, by its first plans and the backbone's embeddings."""
        config = self.config
        if config.score_form == "mass":
            return matched_mass(plan, query_mask, candidate_mask, threshold=config.threshold)
        if config.score_form == "collinear":
            return collinear_score(plan, query_mask, candidate_mask)
        options = {"threshold": config.threshold, "diagonal_window": config.diagonal_window}
        if config.score_form == "soft":
            options["softness"] = config.softness
        form = soft_score if config.score_form == "soft" else published_score
        return form(plan, query, candidate, query_mask, candidate_mask, **options)


def build_backbone(config: Any) -> PreTrainedModel:
    """Build an untrained backbone from its configuration."""
    if config.model_type in OWN_MODELS:
        return OWN_MODELS[config.model_type](config)
    return build_language_model(config)


def _masked_labels(side: str, labels: Tensor | None, mask: Tensor) -> Tensor | None:
    """Return site labels with 0 at padding, whatever the collator put there (-100, say)."""
    if labels is None:
        return None
    if labels.shape != mask.shape:
        raise ValueError(
            f"{side}_site_labels has shape {tuple(labels.shape)}; give {tuple(mask.shape)}, one "
            "0 or 1 for each residue."
        )
    return labels.masked_fill(~mask, 0)
