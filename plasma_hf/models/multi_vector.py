"""Late interaction: one vector per residue, as sentence-transformers and PyLate take them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torch.nn import functional as F

from .modeling_backbone import pad_residues
from .modeling_plasma import PlasmaModel
from .processing_plasma import PlasmaProcessor


class ResidueVectors(InputModule):
    """Encode proteins as what PLASMA compares: a unit vector of each residue.

    It is the one module of a `MultiVectorEncoder`, whose MaxSim adds up the highest cosine of each
    residue of the query: an alignment without order, which indexes of many vectors find fast.

    Args:
        model: A PLASMA model with its backbone.
        processor: That of the backbone.

    Example:
        >>> from plasma_hf.backbones import load_aligner
        >>> from sentence_transformers import MultiVectorEncoder
        >>> aligner = load_aligner("near")
        >>> encoder = MultiVectorEncoder(modules=[ResidueVectors(aligner, aligner.processor)])
        >>> encoder.encode_query("MKTAYIAKQR").shape
        torch.Size([10, 256])
    """

    def __init__(self, model: PlasmaModel, processor: PlasmaProcessor) -> None:
        super().__init__()
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Tokenize sequences; they have no prompt.

        Raises:
            ValueError: If a sequence is none, or longer than the language model reads.
        """
        most = self.processor.input_format.max_residues
        if most and (longest := max(map(len, inputs))) > most:
            raise ValueError(
                f"a protein of {longest} residues, and this language model reads {most}; cut it."
            )
        return self.processor.encode(list(inputs))

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        """Return `token_embeddings`, `(batch, residues, axes)`, and which are residues."""
        further = (features[name] for name in ("attention_mask", "mask"))
        embedded, residues = self.model.embed(features["input_ids"], *further)
        rows = [self.vectors(row[kept]) for row, kept in zip(embedded, residues, strict=True)]
        vectors, mask = pad_residues(rows)
        return {"token_embeddings": vectors, "attention_mask": mask}

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Turn the embeddings of one protein, `(residues, hidden)`, into unit vectors."""
        projected = self.model.project(embeddings)
        own = projected[:, :-3] if self.model.knows_background else projected
        return F.normalize(own, dim=-1)

    def get_embedding_dimension(self) -> int:
        """Return how many numbers a vector has."""
        embeddings = torch.zeros(1, self.model.config.embedding_size or 1)
        return self.vectors(embeddings.to(self.model.device)).shape[-1]

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save model, processor and this code."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        shutil.copy(__file__, os.path.join(output_path, os.path.basename(__file__)))

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> ResidueVectors:
        """Load what was saved, and the backbone that it names."""
        model = PlasmaModel.from_pretrained(model_name_or_path, revision=revision)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        processor = PlasmaProcessor.from_pretrained(model_name_or_path, **options)
        return cls(model.eval(), processor)
