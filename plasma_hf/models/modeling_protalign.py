"""ProtAlign: sequences and structures of proteins in one vector space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .attention_pool import AttentionPool, check_residues
from .backbone import Backbone
from .configuration_protalign import ProtAlignConfig
from .contrastive import Gather, PairLoss, alone
from .cost import at_least_float32
from .modeling_protein_mpnn import ProteinMPNNEncoder
from .processing_protalign import ProtAlignProcessor
from .protalign_embedding import (
    embed_sequences,
    embed_structures,
    sequence_weights,
    structure_weights,
)
from .structure import Structure
from .with_backbone import WithBackbone, build_backbone

if TYPE_CHECKING:
    # Files named by an import travel with a saved model: the folder then has its pipeline.
    from .pipeline_protein_retrieval import ProteinRetrievalPipeline  # noqa: F401

ONE_TOKENIZER = ("substitution_window", "residue_encoder")
"""Model types of sequence encoders that all read the same token ids."""


@dataclass
class ProtAlignOutput(ModelOutput):
    """What ProtAlign says about a batch of pairs.

    Args:
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


class ProtAlignModel(WithBackbone):
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
    takes_embeddings = "sequence_embeddings"
    accepts_loss_kwargs = False  # the loss is a mean over the batch, whatever accumulates it
    _keep_in_fp32_modules_strict = {"sequence_pool", "structure_pool", "pair_loss"}
    _no_split_modules: list[str] = []
    _supports_sdpa = True

    gather: Gather = staticmethod(alone)
    """What fetches the features of other ranks in training; see `plasma_hf.training.gathered`."""

    structure_encoder: Any

    def __init__(self, config: ProtAlignConfig) -> None:
        """Build the pools, and the encoders that the configuration has."""
        super().__init__(config)
        sequences = config.plm_config if config.backbone_saved else None
        structures: Any = config.structure_config
        self.backbone = None if sequences is None else build_backbone(sequences)
        self.structure_encoder = None if structures is None else ProteinMPNNEncoder(structures)
        self.sequence_pool = _pool(config, config.sequence_size)
        self.structure_pool = _pool(config, config.structure_size)
        self.pair_loss = PairLoss(config)
        self._processor: ProtAlignProcessor | None = None
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

    @classmethod
    def from_pretrained(cls, name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a saved model, its encoders frozen; see `WithBackbone.from_pretrained`."""
        loaded = super().from_pretrained(name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.structure_encoder is not None:
            model.structure_encoder.requires_grad_(False).eval()
        return loaded

    @property
    def sequence_encoder(self) -> Any:
        """The encoder of sequences, or None; put one there with `attach_backbone`."""
        return self.backbone

    @property
    def processor(self) -> ProtAlignProcessor | None:
        """What makes the model's inputs: the one set, or that of the encoder, or that saved."""
        if self._processor is None:
            self._processor = self._find_processor()
        return self._processor

    @processor.setter
    def processor(self, processor: ProtAlignProcessor) -> None:
        self._processor = processor

    def _find_processor(self) -> ProtAlignProcessor | None:
        structures = self.config.structure_config
        options = {} if structures is None else {"atoms": structures.atoms}
        if self._fetched is not None:
            came = self._fetched.processor
            return ProtAlignProcessor(came.tokenizer, came.recipe, **options)
        if getattr(self.config.plm_config, "model_type", None) in ONE_TOKENIZER:
            return ProtAlignProcessor(**options)
        try:
            return ProtAlignProcessor.from_pretrained(self.name_or_path or "")
        except (OSError, ValueError):  # it was not loaded, or none was saved with it
            return None

    def attach_backbone(
        self, backbone: Backbone | PreTrainedModel, name: str | None = None
    ) -> Self:
        """Put a sequence encoder under the model, frozen; see `WithBackbone.attach_backbone`."""
        self._processor = None
        return super().attach_backbone(backbone, name)

    def attach_structure_encoder(self, encoder: ProteinMPNNEncoder) -> Self:
        """Put a structure encoder under the model, frozen.

        To train it, call `model.structure_encoder.requires_grad_(True)`.

        Raises:
            ValueError: If the model was made for another width.
        """
        width = encoder.config.hidden_size
        if width != self.config.structure_size:
            raise ValueError(
                f"this model takes structure embeddings of width {self.config.structure_size}, "
                f"the encoder gives {width}; make a model with "
                f"ProtAlignConfig(structure_size={width})."
            )
        self.structure_encoder = encoder.requires_grad_(False).eval()
        self.config.structure_config = encoder.config
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen encoder goes on embedding as in inference."""
        super().train(mode)
        if self.structure_encoder is not None and not any(
            parameter.requires_grad for parameter in self.structure_encoder.parameters()
        ):
            self.structure_encoder.eval()
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
    ) -> ProtAlignOutput | tuple[Tensor, ...]:
        """Compare sequences with structures; sequence i belongs to structure i.

        Each side comes as residue embeddings or as what its encoder reads. Masks are True (or 1)
        at residues; None means that every position is one.

        Args:
            sequence_embeddings: `(batch, residues, sequence_size)`, any floating dtype.
            sequence_mask: `(batch, residues)`, or over tokens with `input_ids`.
            structure_embeddings: `(batch, residues, structure_size)`.
            structure_mask: `(batch, residues)`.
            input_ids: `(batch, tokens)`.
            attention_mask: `(batch, tokens)`.
            backbone: N, CA, C and O in angstrom, `(batch, residues, 4, 3)`.
            structure_residue_mask: True at residues with these atoms, `(batch, residues)`.
            residue_index: Position of each residue, `(batch, residues)`, see `structure_batch`.
            chain_index: Chain of each residue, `(batch, residues)`.
            groups: `(batch,)`, integers. Pairs of one group are too alike to be negatives of each
                other, and are left out of the loss.
            return_loss: Compute the loss; else the two sides need not be of the same number.
            return_dict: Return a `ProtAlignOutput` (default) or a tuple.

        Raises:
            ValueError: If a side is missing or given twice, or shapes do not fit together.
        """
        sequences, _ = self.pool_sequences(
            sequence_embeddings, sequence_mask, input_ids, attention_mask
        )
        atoms = (backbone, structure_residue_mask, residue_index, chain_index)
        structures, _ = self.pool_structures(structure_embeddings, structure_mask, *atoms)
        # A logit is a cosine times up to 100: half precision would round it to nothing.
        with torch.autocast(sequences.device.type, enabled=False):
            sequences, structures = at_least_float32(sequences), at_least_float32(structures)
            features = F.normalize(sequences, dim=-1), F.normalize(structures, dim=-1)
            compared = features if self.config.normalize else (sequences, structures)
            chunked = self.training and self.config.loss_chunk is not None
            output = ProtAlignOutput(
                loss=self.pair_loss(*compared, groups, self._gather) if return_loss else None,
                logits=None if chunked else self.pair_loss.logits(*compared),
                sequence_features=features[0],
                structure_features=features[1],
            )
        return output.to_tuple() if return_dict is False else output

    def get_sequence_features(
        self,
        sequence_embeddings: Tensor | None = None,
        sequence_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the vectors of sequences, `(batch, shared)`, of length 1; see `forward`."""
        pooled, _ = self.pool_sequences(
            sequence_embeddings, sequence_mask, input_ids, attention_mask
        )
        return F.normalize(pooled, dim=-1)

    def get_structure_features(
        self,
        structure_embeddings: Tensor | None = None,
        structure_mask: Tensor | None = None,
        backbone: Tensor | None = None,
        structure_residue_mask: Tensor | None = None,
        residue_index: Tensor | None = None,
        chain_index: Tensor | None = None,
    ) -> Tensor:
        """Return the vectors of structures, `(batch, shared)`, of length 1; see `forward`."""
        atoms = (backbone, structure_residue_mask, residue_index, chain_index)
        pooled, _ = self.pool_structures(structure_embeddings, structure_mask, *atoms)
        return F.normalize(pooled, dim=-1)

    def embed_sequences(self, sequences: Sequence[str], batch_size: int = 32) -> Tensor:
        """Return the vectors of sequences, without gradient.

        Long sequences are embedded in windows, see `Backbone`.

        Args:
            sequences: One letter a residue.
            batch_size: Sequences computed together; vectors do not depend on it.

        Returns:
            `(sequences, shared)`, float32, on the CPU, in the order given.

        Raises:
            ValueError: If a sequence is unusable, by its position, or there is no encoder.
        """
        return embed_sequences(self, sequences, batch_size)

    def embed_structures(self, structures: Sequence[Structure], batch_size: int = 8) -> Tensor:
        """Return the vectors of structures, without gradient.

        Args:
            structures: As `read_structures` gives them.
            batch_size: Structures computed together; vectors do not depend on it.

        Returns:
            `(structures, shared)`, float32, on the CPU, in the order given.

        Raises:
            ValueError: If a structure has no residue with all atoms, or there is no encoder.
        """
        return embed_structures(self, structures, batch_size)

    def explain_sequence(self, sequence: str) -> Tensor:
        """Return how much each residue weighs in the vector of a sequence.

        Returns:
            `(residues,)`, the attention weights' mean over heads; their sum is 1.
        """
        return sequence_weights(self, sequence)

    def explain_structure(self, structure: Structure) -> Tensor:
        """Return how much each residue weighs in the vector of a structure.

        Returns:
            `(residues,)`, the attention weights' mean over heads; their sum is 1. A residue
            without all atoms has 0.
        """
        return structure_weights(self, structure)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model, and its processor if it has one; see `WithBackbone.save_pretrained`.

        The weights of the structure encoder are always saved along.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        processor = self._processor if self.backbone is None else self.processor
        if processor is not None and kwargs.get("is_main_process", True):
            processor.save_pretrained(save_directory)

    def pool_sequences(
        self,
        embeddings: Tensor | None = None,
        mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return vectors before they are normalised, and attention weights."""
        _check_given_once("sequence_embeddings", embeddings, "input_ids", input_ids)
        if input_ids is not None:
            embeddings, mask = self.embed(input_ids, attention_mask, mask)
        assert embeddings is not None
        mask = check_residues("sequence", embeddings, mask, self.config.sequence_size)
        return self.sequence_pool(embeddings, mask, self._gather)

    def pool_structures(
        self,
        embeddings: Tensor | None = None,
        mask: Tensor | None = None,
        backbone: Tensor | None = None,
        residue_mask: Tensor | None = None,
        residue_index: Tensor | None = None,
        chain_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return vectors before they are normalised, and attention weights."""
        _check_given_once("structure_embeddings", embeddings, "backbone", backbone)
        if backbone is not None:
            self.check_encoder("structure")
            atoms = (backbone, residue_mask, residue_index, chain_index)
            embeddings, mask = self.structure_encoder(*atoms).last_hidden_state, residue_mask
        assert embeddings is not None
        mask = check_residues("structure", embeddings, mask, self.config.structure_size)
        return self.structure_pool(embeddings, mask, self._gather)

    @property
    def _gather(self) -> Gather:
        return self.gather if self.training else alone

    def check_encoder(self, side: str) -> None:
        """Refuse to read what the encoder of a side ("sequence", "structure") would have to.

        Raises:
            ValueError: If that encoder is not there.
        """
        if getattr(self, f"{side}_encoder") is None:
            attach = {"sequence": "load_backbone()", "structure": "attach_structure_encoder(...)"}
            raise ValueError(
                f"this model has no {side} encoder and takes {side} embeddings alone; pass "
                f"{side}_embeddings, or put an encoder under it with model.{attach[side]}."
            )


def _pool(config: ProtAlignConfig, residue_size: int) -> AttentionPool:
    return AttentionPool(
        residue_size,
        config.hidden_size,
        config.num_heads,
        config.attention_dropout,
        config.layer_norm_eps,
        config.num_queries,
        config.spread,
        config.standardize,
    )


def _check_given_once(first: str, one: Tensor | None, second: str, other: Tensor | None) -> None:
    if (one is None) == (other is None):
        raise ValueError(
            f"give either {first} or {second}"
            + ("; neither is here." if one is None else ", not both.")
        )
