"""PLASMA as one of the aligners that an evaluation compares."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

from torch import Tensor

from ..data.pairs import ProteinPair
from ..models.configuration_plasma import PlasmaConfig
from ..models.modeling_plasma import PlasmaModel
from .aligner import AlignedPair
from .embedding_source import EmbeddingSource


class PlasmaAligner:
    """Align with a PLASMA model over ready embeddings.

    Args:
        model: The head; a backbone in it is not used.
        source: Where embeddings come from.
        name: What a table calls it.
        backbone: What a table calls the embeddings.

    Example:
        >>> from plasma_hf import load_backbone
        >>> from plasma_hf.data import SiteProtein
        >>> from plasma_hf.evaluation import EmbeddedOnce
        >>> source = EmbeddedOnce(load_backbone("substitution"))
        >>> aligner = PlasmaAligner(parameter_free(), source, "PLASMA-PF")
        >>> protein = SiteProtein("P1", "F", "MKVLATWCHE" * 3, (0,) * 30)
        >>> [result] = aligner.align([ProteinPair(protein, protein, label=1)])
        >>> result.plan.shape, result.score > 0.9
        ((30, 30), True)
    """

    def __init__(
        self, model: PlasmaModel, source: EmbeddingSource, name: str, backbone: str = "-"
    ) -> None:
        """Keep the parts; the model is made to infer."""
        self.model, self.source = model.eval(), source
        self.name, self.backbone = name, backbone

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each."""
        queries = [pair.query.sequence for pair in pairs]
        candidates = [pair.candidate.sequence for pair in pairs]
        device = self.model.device
        embeddings: dict[str, Tensor] = {
            sequence: rows.to(device)
            for sequence, rows in self.source.get(queries + candidates).items()
        }
        aligned = self.model.align_pairs(
            [embeddings[sequence] for sequence in queries],
            [embeddings[sequence] for sequence in candidates],
        )
        return [
            AlignedPair(score, plan.cpu().numpy())
            for score, plan in zip(aligned.scores.tolist(), aligned.plans or (), strict=True)
        ]


def parameter_free(**changes: Any) -> PlasmaModel:
    """Build PLASMA-PF, the published head without a parameter, for embeddings of any width.

    Args:
        **changes: Fields of `PlasmaConfig` to set otherwise.

    Example:
        >>> parameter_free(kernel_scale=0.2).config.head
        'hinge'
    """
    return PlasmaModel(PlasmaConfig(**{"embedding_size": None, "head": "hinge"} | changes)).eval()


def with_settings(model: PlasmaModel, **changes: Any) -> PlasmaModel:
    """Return a model of the same weights with some fields of its configuration changed.

    Args:
        model: It stays as it is; the two share their weights.
        **changes: Fields of `PlasmaConfig` that no layer depends on: kernel_scale, n_iters,
            threshold, diagonal_window, support_rounds, ...

    Raises:
        ValueError: If a field is out of its range.

    Example:
        >>> model = parameter_free()
        >>> with_settings(model, threshold=0.3).config.threshold, model.config.threshold
        (0.3, 0.5)
    """
    changed = copy(model)
    changed.config = deepcopy(model.config)
    for name, value in changes.items():
        setattr(changed.config, name, value)
    changed.config._check_ranges()
    return changed
