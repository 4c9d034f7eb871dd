"""ProtAlign: the sequences and structures of proteins in one vector space.

Two attention pools, one for the residues of sequences and one for those of structures, and a
contrastive loss that brings the two vectors of a protein together, apart from all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_protalign import ProtAlignConfig
from .modeling_backbone import Backbone, PreTrainedHead, build_backbone, pad_residues, residue_mask
from .modeling_protein_mpnn import ProteinMPNNEncoder, inference, structure_batch
from .processing_protalign import ProtAlignProcessor
from .protein import Protein, Structure, clean_sequence

if TYPE_CHECKING:
    from .pipeline_protein_retrieval import ProteinRetrievalPipeline  # noqa: F401

Item = TypeVar("Item", Protein, Structure)
Given = Tensor | None
Pooled = tuple[Tensor, Tensor]  # vectors, and how much each residue weighs in its protein's


class Gathered(NamedTuple):
    """Vectors of all ranks, rank after rank, where those of this one begin, and how many ranks."""

    vectors: Tensor
    start: int
    ranks: int


Gather = Callable[[Tensor], Gathered]
"""What fetches the vectors of the other ranks; see `plasma_hf.training.distributed`."""


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
        groups: `(pairs,)`, integers. Pairs of one group are not negatives of each other.
        gather: Fetch the pairs of other ranks, to be compared with those of this one. The mean of
            the ranks' losses is then the loss of all pairs.
    """
    excluded = _excluded(sequences, structures, groups, gather)

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
    groups: Tensor | None = None,
    gather: Gather = alone,
    chunk: int | None = None,
) -> Tensor:
    """Judge each sequence with each structure on its own: do they belong together?

    The negative log-likelihood, summed over all sequences and structures and divided by the pairs
    (SigLIP, Zhai et al. 2023; eq. 3 of ProtAlign). Arguments as of `clip_loss`, and:

    Args:
        scale: What cosines are multiplied by, the inverse of the logit temperature.
        bias: What is added, far below 0 as most sequences and structures do not belong together.
        chunk: Sequences compared at a time, their logits computed again for the gradient: the loss
            is the same, in memory for `chunk * pairs` logits.
    """
    excluded = _excluded(sequences, structures, groups, gather)
    everyone = gather(structures)

    def losses(rows: Tensor, targets: Tensor, own: Tensor, left_out: Tensor | None) -> Tensor:
        logits = scale * (rows @ targets.T) + bias
        together = F.one_hot(own, len(targets)).to(logits.dtype)
        loss = -F.logsigmoid((2 * together - 1) * logits)
        return loss.sum() if left_out is None else loss.masked_fill(left_out, 0.0).sum()

    places = torch.arange(len(sequences), device=sequences.device)
    run = losses if chunk is None else partial(checkpoint, losses, use_reentrant=False)
    parts = []
    for rows in places.split(chunk or len(sequences)):
        left_out = None if excluded is None else excluded[rows]
        parts.append(run(sequences[rows], everyone.vectors, rows + everyone.start, left_out))
    return torch.stack(parts).sum() * (everyone.ranks / len(everyone.vectors))  # as in `clip_loss`


def _excluded(sequences: Tensor, structures: Tensor, groups: Given, gather: Gather) -> Given:
    """Check pairs; return which others are of the same group, `(pairs, pairs of all ranks)`."""
    if sequences.shape != structures.shape or sequences.ndim != 2 or not len(sequences):
        raise ValueError(
            f"sequences have shape {tuple(sequences.shape)}, structures "
            f"{tuple(structures.shape)}; give (pairs, shared) for both, in the same order."
        )
    if groups is None:
        return None
    if groups.shape != sequences.shape[:1]:
        raise ValueError(
            f"groups has shape {tuple(groups.shape)}; give ({len(sequences)},), one integer for "
            "each pair."
        )
    everyone = gather(groups)
    same = groups.unsqueeze(1) == everyone.vectors
    same.diagonal(everyone.start).fill_(False)
    return same


class PairLoss(nn.Module):
    """The loss of ProtAlign, with its logit temperature and bias, which may be learnt."""

    log_scale: nn.Parameter
    bias: nn.Parameter

    MAX_LOG_SCALE = math.log(100)  # beyond it, a learnt scale runs off

    def __init__(self, config: Any) -> None:
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
        self, sequences: Tensor, structures: Tensor, groups: Given = None, gather: Gather = alone
    ) -> Tensor:
        """Return the loss of pairs, see `clip_loss` and `siglip_loss`."""
        if self.config.learn_temperature:
            # Left beyond the limit it would get no gradient to come back. It is not changed as
            # autograd sees it: a batch may be compared more than once.
            self.log_scale.data.clamp_(max=self.MAX_LOG_SCALE)
        if self.config.loss == "clip":
            return clip_loss(sequences, structures, 1 / self.scale, groups, gather)
        options = {"groups": groups, "gather": gather, "chunk": self.config.loss_chunk}
        return siglip_loss(sequences, structures, self.scale, self.offset, **options)


class Standardize(nn.BatchNorm1d):
    """Give each number of a vector mean 0 and deviation 1, over the vectors of a batch.

    In inference these are the mean and deviation of training: no vector depends on its batch.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, affine=False)

    def forward(self, vectors: Tensor, gather: Gather = alone) -> Tensor:
        """Scale `(batch, numbers)`; in training a batch is that of all ranks, two at least."""
        everyone = gather(vectors) if self.training else alone(vectors)
        return super().forward(everyone.vectors)[everyone.start :][: len(vectors)]


class AttentionPool(nn.Module):
    """Look at all residues of a protein with one learnt query, and keep what it sees.

    There is no residual connection and no network behind the attention: a multi-head attention
    from the query token to the residues, and a layer norm. Several queries are averaged.

    Not in the paper, and off by default: `spread` adds how much residues differ from what the query
    sees on average, `standardize` spreads proteins over all directions of the space.

    Source: ProtAlign (arXiv 2603.06722), section 2.

    Example:
        >>> pool = AttentionPool(ProtAlignConfig(hidden_size=8, num_heads=2), residue_size=16)
        >>> vectors, weights = pool(torch.randn(3, 20, 16), torch.ones(3, 20).bool())
        >>> vectors.shape, weights.shape
        (torch.Size([3, 8]), torch.Size([3, 20]))
    """

    def __init__(self, config: ProtAlignConfig, residue_size: int) -> None:
        super().__init__()
        width, sizes = config.hidden_size, {"kdim": residue_size, "vdim": residue_size}
        self.query = nn.Parameter(torch.empty(1, config.num_queries, width).normal_(0.0, 0.02))
        # Of torch's attention the weights are used, and `forward` does what it would do.
        self.attention = nn.MultiheadAttention(
            width, config.num_heads, config.attention_dropout, batch_first=True, **sizes
        )
        self.spread = nn.Linear(width, width, bias=False) if config.spread else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.scale = Standardize(width) if config.standardize else None

    def forward(self, embeddings: Tensor, mask: Tensor, gather: Gather = alone) -> Pooled:
        """Pool a batch of proteins; padding, often the most of it, is not computed.

        They become vectors `(batch, shared)`; beside them is how much each residue weighs, `(batch,
        residues)`: the mean over heads, 0 at padding, with the sum 1.

        Args:
            embeddings: `(batch, residues, hidden)`, anything at padding.
            mask: True at residues, `(batch, residues)`; every protein needs one.
            gather: For `Standardize`.
        """
        empty = (~mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"protein {empty[0]} of the batch ({len(empty)} in all) has no residue that the "
                "mask lets through; leave it out, or give a mask that is True at its residues."
            )
        attention, heads = self.attention, self.attention.num_heads
        if attention.in_proj_weight is None:  # torch keeps them in one where widths are equal
            to_query, to_key = attention.q_proj_weight, attention.k_proj_weight
            to_value = attention.v_proj_weight
        else:
            to_query, to_key, to_value = attention.in_proj_weight.chunk(3)
        query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
        residues = embeddings[mask].to(self.norm.weight.dtype)
        protein, _ = mask.nonzero(as_tuple=True)  # of each residue
        # A key is asked by few queries alone: they go through its projection, not all residues.
        # Its bias is the same for all residues of a protein and leaves their weights alone.
        query = F.linear(self.query[0], to_query, query_bias).unflatten(-1, (heads, -1))
        asked = torch.einsum("qhd,hde->qhe", query, to_key.unflatten(0, (heads, -1)))
        asked = torch.einsum("re,qhe->rqh", residues, asked) / attention.head_dim**0.5
        scores = asked.new_full((*mask.shape, *asked.shape[1:]), -torch.inf)
        scores[mask] = asked
        weights = F.dropout(scores.softmax(1), attention.dropout, self.training)
        weight = weights[mask].unsqueeze(-1)

        def mean_of(values: Tensor) -> Tensor:
            seen = weight * values  # (residues, queries, heads, numbers)
            return seen.new_zeros(len(mask), *seen.shape[1:]).index_add(0, protein, seen)

        values = F.linear(residues, to_value, value_bias).unflatten(-1, (heads, -1)).unsqueeze(1)
        mean = mean_of(values)
        pooled = attention.out_proj(mean.flatten(-2))
        if self.spread is not None:
            variance = mean_of((values - mean[protein]).square())
            # The slack keeps the gradient finite where all residues are alike.
            pooled = pooled + self.spread((variance + self.norm.eps).sqrt().flatten(-2))
        vectors = self.norm(pooled.mean(1))
        vectors = vectors if self.scale is None else self.scale(vectors, gather)
        return vectors, weights.mean((2, 3))


@dataclass
class ProtAlignOutput(ModelOutput):
    """What ProtAlign says about a batch of pairs.

    Attributes:
        loss: The contrastive loss, where there are as many sequences as structures.
        logits: How well each sequence fits each structure, `(sequences, structures)`; not in
            training with `loss_chunk`.
        sequence_features: `(sequences, shared)`, of length 1.
        structure_features: `(structures, shared)`, of length 1.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sequence_features: Tensor | None = None
    structure_features: Tensor | None = None


class ProtAlignModel(PreTrainedHead):
    """Embed sequences and structures so that those of one protein have the highest cosine.

    The model is two attention pools, and takes ready residue embeddings. Over a sequence encoder
    it takes token ids as well, over a structure encoder the atoms of the backbone. What it says
    of a protein does not depend on its batch nor on padding.

    Source: ProtAlign (arXiv 2603.06722).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = ProtAlignModel(ProtAlignConfig(sequence_size=32, structure_size=16))
        >>> out = model(torch.randn(3, 30, 32), structure_embeddings=torch.randn(3, 25, 16))
        >>> out.logits.shape, out.sequence_features.shape
        (torch.Size([3, 3]), torch.Size([3, 128]))
    """

    config_class = ProtAlignConfig
    base_model_prefix = "protalign"
    main_input_name = "sequence_embeddings"
    encoders = ("backbone", "structure_encoder")
    takes_embeddings = "sequence_embeddings"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever accumulates it
    _keep_in_fp32_modules_strict = {"sequence_pool", "structure_pool", "pair_loss"}
    structure_encoder: Any

    def __init__(self, config: ProtAlignConfig) -> None:
        super().__init__(config)
        sequences = config.plm_config if config.backbone_saved else None
        structures: Any = config.structure_config
        self.backbone = None if sequences is None else build_backbone(sequences)
        self.structure_encoder = None if structures is None else ProteinMPNNEncoder(structures)
        self.sequence_pool = AttentionPool(config, config.sequence_size)
        self.structure_pool = AttentionPool(config, config.structure_size)
        self.pair_loss = PairLoss(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AttentionPool):
            init.normal_(module.query, 0.0, 0.02)
            bound = 1 / math.sqrt(self.config.hidden_size)  # as in every torch attention
            init.uniform_(module.attention.out_proj.weight, -bound, bound)
        elif isinstance(module, PairLoss):
            for name, value in module.starting_values().items():
                init.constant_(getattr(module, name), value)

    @property
    def sequence_encoder(self) -> Any:
        """The encoder of sequences, or None; put one there with `attach_backbone`."""
        return self.backbone

    @property
    def processor(self) -> ProtAlignProcessor | None:
        """What makes the model's inputs: the one set, or that of the encoder, or that saved."""
        if self._processor is not None:
            return self._processor
        structures, sequences = self.config.structure_config, self.config.plm_config
        options = {} if structures is None else {"atoms": structures.atoms}
        if self._fetched is not None:
            came = self._fetched.processor
            self._processor = ProtAlignProcessor(came.tokenizer, came.input_format, **options)
        elif getattr(sequences, "model_type", "") in ("substitution_window", "residue_encoder"):
            self._processor = ProtAlignProcessor(**options)
        else:
            with suppress(OSError, ValueError):  # it was not loaded, or none was saved with it
                self._processor = ProtAlignProcessor.from_pretrained(self.name_or_path or "")
        return self._processor

    @processor.setter
    def processor(self, processor: ProtAlignProcessor) -> None:
        self._processor = processor

    def attach_structure_encoder(self, encoder: ProteinMPNNEncoder) -> Self:
        """Put a structure encoder under the model, frozen until `requires_grad_(True)` of it.

        Raises:
            ValueError: If the model was made for another width.
        """
        width = encoder.config.hidden_size
        if width != self.config.structure_size:
            raise ValueError(
                f"this model takes structure embeddings of width {self.config.structure_size}, the "
                f"encoder gives {width}; make a model with ProtAlignConfig(structure_size={width})."
            )
        self.structure_encoder = encoder.requires_grad_(False).eval()
        self.config.structure_config = encoder.config
        return self

    def forward(
        self,
        sequence_embeddings: Tensor | None = None,
        sequence_mask: Tensor | None = None,
        structure_embeddings: Tensor | None = None,
        structure_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        backbone: Tensor | None = None,
        structure_residue_mask: Tensor | None = None,
        residue_index: Tensor | None = None,
        chain_index: Tensor | None = None,
        groups: Tensor | None = None,
        return_loss: bool = True,
        return_dict: bool | None = None,
        gather: Gather = alone,
    ) -> ProtAlignOutput | tuple[Tensor, ...]:
        """Compare sequences with structures; sequence i belongs to structure i.

        Each side comes as residue embeddings or as what its encoder reads. Masks are True at
        residues; None means that every position is one.

        Args:
            *_embeddings: `(batch, residues, sequence_size or structure_size)`, any floating dtype.
            *_mask: `(batch, residues)`, or over tokens with `input_ids`.
            input_ids: `(batch, tokens)`, as is `attention_mask`.
            backbone: N, CA, C and O in angstrom, `(batch, residues, 4, 3)`.
            structure_residue_mask: True at residues with these atoms, `(batch, residues)`.
            residue_index, chain_index: `(batch, residues)` each, see `structure_batch`.
            groups: `(batch,)`, integers. Pairs of one group are too alike to be negatives of each
                other, and are left out of the loss.
            return_loss: Compute the loss; else the two sides need not be of the same number.
            return_dict: Return a `ProtAlignOutput` (default) or a tuple.
            gather: Compare with the pairs of other ranks as well, see `clip_loss`.

        Raises:
            ValueError: If a side is missing or given twice, or shapes do not fit together.
        """
        sequences, _ = self.pool_sequences(
            sequence_embeddings, sequence_mask, input_ids, attention_mask, gather
        )
        atoms = (backbone, structure_residue_mask, residue_index, chain_index)
        structures, _ = self.pool_structures(structure_embeddings, structure_mask, *atoms, gather)
        # A logit is a cosine times up to 100: half precision would round it to nothing.
        with torch.autocast(sequences.device.type, enabled=False):
            widest = torch.promote_types(sequences.dtype, torch.float32)
            sequences, structures = sequences.to(widest), structures.to(widest)
            features = F.normalize(sequences, dim=-1), F.normalize(structures, dim=-1)
            compared = features if self.config.normalize else (sequences, structures)
            chunked = self.training and self.config.loss_chunk is not None
            output = ProtAlignOutput(
                loss=self.pair_loss(*compared, groups, gather) if return_loss else None,
                logits=None if chunked else self.pair_loss.logits(*compared),
                sequence_features=features[0],
                structure_features=features[1],
            )
        return output.to_tuple() if return_dict is False else output

    def get_sequence_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the vectors of sequences, `(batch, shared)`, of length 1; see `pool_sequences`."""
        return F.normalize(self.pool_sequences(*args, **kwargs)[0], dim=-1)

    def get_structure_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return those of structures, `(batch, shared)`, of length 1; see `pool_structures`."""
        return F.normalize(self.pool_structures(*args, **kwargs)[0], dim=-1)

    def pool_sequences(
        self,
        sequence_embeddings: Given = None,
        sequence_mask: Given = None,
        input_ids: Given = None,
        attention_mask: Given = None,
        gather: Gather = alone,
    ) -> Pooled:
        """Return sequences' vectors, not yet normalised, and attention weights; see `forward`."""
        embeddings, mask = sequence_embeddings, sequence_mask
        _check_given_once("sequence_embeddings", embeddings, "input_ids", input_ids)
        if input_ids is not None:
            embeddings, mask = self.embed(input_ids, attention_mask, mask)
        mask = residue_mask("sequence", embeddings, mask, self.config.sequence_size)
        return self.sequence_pool(embeddings, mask, gather)

    def pool_structures(
        self,
        structure_embeddings: Tensor | None = None,
        structure_mask: Tensor | None = None,
        backbone: Tensor | None = None,
        structure_residue_mask: Tensor | None = None,
        residue_index: Tensor | None = None,
        chain_index: Tensor | None = None,
        gather: Gather = alone,
    ) -> Pooled:
        """Return the vectors of structures before they are normalised, and attention weights."""
        embeddings, mask = structure_embeddings, structure_mask
        _check_given_once("structure_embeddings", embeddings, "backbone", backbone)
        if backbone is not None:
            self.check_encoder("structure")
            mask = structure_residue_mask
            atoms = (backbone, mask, residue_index, chain_index)
            embeddings = self.structure_encoder(*atoms).last_hidden_state
        mask = residue_mask("structure", embeddings, mask, self.config.structure_size)
        return self.structure_pool(embeddings, mask, gather)

    def embed_sequences(self, sequences: Sequence[str], batch_size: int = 32) -> Tensor:
        """Return the vectors of sequences, `(sequences, shared)` float32 on the CPU, in order.

        Long ones are embedded in windows, see `Backbone`; `batch_size` changes no vector.

        Raises:
            ValueError: If a sequence is unusable, by its position, or there is no encoder.
        """
        cleaned = [clean_sequence(each, f"sequence {i}") for i, each in enumerate(sequences)]
        proteins = [Protein(f"sequence {i}", each) for i, each in enumerate(cleaned)]
        return self._embed_batches(proteins, self._pool_proteins, batch_size)

    def embed_structures(self, structures: Sequence[Structure], batch_size: int = 8) -> Tensor:
        """Do the same for structures, as `read_structures` gives them.

        Raises:
            ValueError: If a structure has no residue with all atoms, or there is no encoder.
        """
        return self._embed_batches(structures, self._pool_atoms, batch_size)

    def explain_sequence(self, sequence: str) -> Tensor:
        """Return how much each residue weighs in the vector, `(residues,)`, with the sum 1."""
        with inference(self):
            cleaned = clean_sequence(sequence, "the sequence")
            return self._pool_proteins([Protein("the sequence", cleaned)])[1][0].float().cpu()

    def explain_structure(self, structure: Structure) -> Tensor:
        """Do the same for a structure; a residue without all atoms has 0."""
        with inference(self):
            return self._pool_atoms([structure])[1][0].float().cpu()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model, always with its structure encoder, and its processor if it has one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        processor = self._processor if self.backbone is None else self.processor
        if processor is not None and kwargs.get("is_main_process", True):
            processor.save_pretrained(save_directory)

    def check_encoder(self, side: str) -> None:
        """Refuse to read a side ("sequence", "structure") whose encoder is not there."""
        if getattr(self, f"{side}_encoder") is None:
            attach = {"sequence": "load_backbone()", "structure": "attach_structure_encoder(...)"}
            raise ValueError(
                f"this model has no {side} encoder and takes {side} embeddings alone; pass "
                f"{side}_embeddings, or put an encoder under it with model.{attach[side]}."
            )

    def _pool_proteins(self, proteins: list[Protein]) -> Pooled:
        """Pool proteins by their sequences, long ones embedded in windows."""
        self.check_encoder("sequence")
        if self.processor is None:
            raise ValueError(
                "the model does not know how to write sequences for its encoder, as no processor "
                "was saved with it; set model.processor = ProtAlignProcessor(tokenizer)."
            )
        rows = Backbone(self.sequence_encoder, self.processor).embed(proteins)
        return self.pool_sequences(*pad_residues([row.to(self.device) for row in rows]))

    def _pool_atoms(self, structures: list[Structure]) -> Pooled:
        """Pool structures by the atoms of their backbones."""
        self.check_encoder("structure")
        batch = structure_batch(structures, self.structure_encoder.config.atoms)
        for structure, mask in zip(structures, batch["residue_mask"], strict=True):
            if not mask.any():
                raise ValueError(
                    f"structure {structure.id} has no residue with all the backbone atoms that "
                    "are read; leave it out, or give one with coordinates."
                )
        atoms: Any = (part.to(self.device) for part in batch.values())  # as they are ordered there
        return self.pool_structures(None, None, *atoms)

    def _embed_batches(
        self, items: Sequence[Item], pool: Callable[[list[Item]], Pooled], batch_size: int
    ) -> Tensor:
        """Pool in batches of like length, and normalise the vectors."""
        vectors = torch.zeros(len(items), self.config.hidden_size)
        longest_first = sorted(range(len(items)), key=lambda i: -len(items[i]))
        with inference(self):
            for start in range(0, len(items), batch_size):
                places = longest_first[start : start + batch_size]
                pooled, _ = pool([items[i] for i in places])
                vectors[places] = F.normalize(pooled, dim=-1).float().cpu()
        return vectors


def _check_given_once(first: str, one: Given, second: str, other: Given) -> None:
    if (one is None) == (other is None):
        raise ValueError(
            f"give either {first} or {second}"
            + ("; neither is here." if one is None else ", not both.")
        )
