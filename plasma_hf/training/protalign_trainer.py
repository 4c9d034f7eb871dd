"""`Trainer` for ProtAlign: negatives of all ranks, retrieval figures, and a card of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback

from ..metrics.retrieval import best_ranks
from .structure_data import ApartInBatches
from .trainer import SafeSaving, gather_ranks, training_card

MASKS = ("sequence_mask", "structure_mask", "structure_residue_mask")
STRUCTURE_MASKS = MASKS[1:]
CROPPED_TO, SHORTEST_CROP = 0.3, 20
"""Least part of its residues that a cropped structure keeps, and least number if it has so many."""

STRUCTURE_INPUTS = (
    "structure_embeddings",
    "structure_mask",
    "backbone",
    "structure_residue_mask",
    "residue_index",
    "chain_index",
)
NOT_FIGURES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


class ProtAlignTrainer(SafeSaving):
    """Train a ProtAlign model on pairs of sequence and structure.

    All of `Trainer` holds. What is added:

    - Every rank compares its pairs with those of all ranks; the update is that of one process with
      all of them. Accumulated batches are not compared with each other.
    - Pairs of one group, where the data set has `groups`, are in different batches as far as they
      fit. The order depends on seed and epoch alone.
    - `evaluate` lets every sequence search all structures of the data set, and the reverse.
      `eval_selection` is R@1 of sequences, and among equals R@5: what the best model is chosen by.
      `eval_loss` compares all pairs of the set with each other, however they were batched.
    - With `left_out` a stretch of either protein is left out, another each time, and two such views
      of one structure have to find each other as well: forms of a protein differ in what is seen.
      With `cropped` some second views keep a stretch alone. Where batches have `form_embeddings`,
      of the structures with noise on their atoms, a second view is on the way to them.
    - `save_model` writes a model card with the figures of every evaluation of this run.

    Args:
        *args: As `Trainer` takes them: model, arguments, data collator, data sets.
        left_out: Largest share of a protein's residues that is left out in training.
        cropped: Probability that of a second view all but a stretch is left out.
        view_weight: How much the loss of two views of a structure counts, beside that of pairs.
        **kwargs: The same by name.

    Example:
        >>> import tempfile
        >>> from plasma_hf.models.configuration_protalign import ProtAlignConfig
        >>> from plasma_hf.models.modeling_protalign import ProtAlignModel
        >>> from plasma_hf.training.arguments import PROTALIGN_PRESETS
        >>> model = ProtAlignModel(ProtAlignConfig(sequence_size=8, structure_size=8))
        >>> protein = torch.ones(4, 8)
        >>> row = {"sequence_embeddings": protein, "structure_embeddings": protein}
        >>> arguments = PROTALIGN_PRESETS["improved"].training_arguments(
        ...     tempfile.mkdtemp(), use_cpu=True, disable_tqdm=True)
        >>> trainer = ProtAlignTrainer(model, arguments, train_dataset=[row], eval_dataset=[row])
        >>> trainer.evaluate()["eval_recall_at_1"]
        1.0
    """

    def __init__(
        self,
        *args: Any,
        left_out: float = 0.0,
        cropped: float = 0.0,
        view_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Fill in what pairs need."""
        kwargs.setdefault("compute_metrics", self._metrics)
        self.left_out, self.cropped = left_out, cropped
        self.view_weight = view_weight
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # what it would print is in the log history
        self.args.remove_unused_columns = False  # a pair is the collator's affair
        model: Any = self.model
        self.inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.figures: dict[str, dict[str, float]] = {}
        self.card_details: dict[str, Any] = {}

    @property
    def losses(self) -> list[float]:
        """Training loss as it was logged, in an order by time."""
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        groups = getattr(rows, "groups", None)
        groups = list(range(len(rows))) if groups is None else groups
        return ApartInBatches(groups, args.train_batch_size * args.world_size, seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of pairs, and with `left_out` that of two views of the structures."""
        inputs = dict(inputs)
        form = inputs.pop("form_embeddings", None)
        if not self.left_out:
            output = model(**inputs, gather=gather_ranks)
            return (output.loss, output) if return_outputs else output.loss
        # Of seed and update alone: a run that was stopped goes on with the same views.
        drawn = torch.Generator().manual_seed(1_000_003 * self.args.seed + self.state.global_step)
        first, second = (leave_out(inputs, self.left_out, drawn) for _ in range(2))
        second = mix_forms(crop(second, self.cropped, drawn), form, drawn)
        output = model(**first, gather=gather_ranks)
        views = self.inner.get_structure_features(
            **{name: second[name] for name in STRUCTURE_INPUTS if name in second},
            gather=gather_ranks,
        )
        loss = output.loss + self.view_weight * self.inner.pair_loss(
            views, output.structure_features, inputs.get("groups"), gather_ranks
        )
        return (loss, output) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batch all pairs: what `dataloader_drop_last` drops, it drops in training alone."""
        dropping, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropping

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Return no loss, sequence features and, in the place of labels, structure features."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, return_loss=False)
        return None, output.sequence_features, output.structure_features

    def _metrics(self, prediction: Any) -> dict[str, float]:
        """Add the loss to the figures, unless it looks at more than these features."""
        model: Any = self.model
        figures = retrieval_metrics(prediction)
        if not model.config.normalize:
            return figures
        # Of the whole set: a batch of it may hold a pair twice, where ranks fill up their share.
        both = (prediction.predictions, prediction.label_ids)
        sequences, structures = (torch.as_tensor(side, device=self.args.device) for side in both)
        with torch.no_grad():
            return figures | {"loss": float(model.pair_loss(sequences, structures))}

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and keep the figures for the card."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        prefix = f"{metric_key_prefix}_"
        named = {name.removeprefix(prefix): v for name, v in metrics.items() if prefix in name}
        self.figures[metric_key_prefix] = {k: v for k, v in named.items() if k not in NOT_FIGURES}
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; where it is not for a checkpoint, with a card of the run's figures."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            folder = Path(output_dir or str(self.args.output_dir))
            model: Any = self.model
            training_card(model.config, self.figures, self.details()).save(folder / "README.md")

    def details(self) -> dict[str, Any]:
        """Return what there is to say of the run so far, by name."""
        args = self.args
        return {
            "learning rate": args.learning_rate,
            "pairs compared": args.train_batch_size * args.world_size,
            "updates": self.state.global_step,
            "epochs": round(self.state.epoch or 0, 2),
            "seed": args.seed,
        } | self.card_details


def leave_out(inputs: dict[str, Any], share: float, drawn: torch.Generator) -> dict[str, Any]:
    """Mask a stretch of every protein of a batch, of random place and length.

    Args:
        inputs: Of `ProtAlignModel.forward`.
        share: Largest part of the residues that is left out.
        drawn: What places and lengths are drawn from.

    Returns:
        The inputs with new masks; every protein keeps residues.

    Example:
        >>> protein = {"sequence_embeddings": torch.ones(1, 10, 4)}
        >>> protein["sequence_mask"] = torch.ones(1, 10).bool()
        >>> 5 <= leave_out(protein, 0.5, torch.Generator())["sequence_mask"].sum() <= 10
        tensor(True)
    """
    masks = {name: inputs[name].bool() for name in MASKS if inputs.get(name) is not None}
    return inputs | {name: m & ~_stretch(m, 0.0, share, drawn) for name, m in masks.items()}


def crop(inputs: dict[str, Any], share: float, drawn: torch.Generator) -> dict[str, Any]:
    """Mask all but a stretch of some structures of a batch, as if only a domain were known.

    Args:
        inputs: Of `ProtAlignModel.forward`.
        share: Probability that a structure is cropped.
        drawn: What places and lengths are drawn from.

    Returns:
        The inputs with new masks; see `CROPPED_TO` for what is kept at least.

    Example:
        >>> protein = {"structure_mask": torch.ones(1, 100).bool()}
        >>> 30 <= crop(protein, 1.0, torch.Generator())["structure_mask"].sum() <= 100
        tensor(True)
    """
    masks = {name: inputs[name].bool() for name in STRUCTURE_MASKS if inputs.get(name) is not None}
    changed = {}
    for name, mask in masks.items():
        whole = torch.rand(len(mask), 1, generator=drawn).to(mask.device) >= share
        kept = _stretch(mask, CROPPED_TO, 1.0, drawn, SHORTEST_CROP)
        changed[name] = mask & (whole | kept)
    return inputs | changed


def mix_forms(
    inputs: dict[str, Any], form: Tensor | None, drawn: torch.Generator
) -> dict[str, Any]:
    """Go from stored structure embeddings some way, drawn for each, to those of another form.

    Args:
        inputs: Of `ProtAlignModel.forward`.
        form: Embeddings of the other forms, `(batch, residues, hidden)`, or None.
        drawn: What the ways are drawn from.

    Returns:
        The inputs, with other `structure_embeddings` if there is a form.
    """
    if form is None:
        return inputs
    way = torch.rand(len(form), 1, 1, generator=drawn).to(form)
    return inputs | {"structure_embeddings": torch.lerp(inputs["structure_embeddings"], form, way)}


def _stretch(
    mask: Tensor, least: float, most: float, drawn: torch.Generator, shortest: int = 0
) -> Tensor:
    """Draw a stretch of each protein, of between two parts of its residues, `(batch, residues)`."""
    place = mask.cumsum(1) - 1  # among the residues
    count = mask.sum(1, keepdim=True)
    how_much, where = torch.rand(2, len(mask), 1, generator=drawn).to(mask.device)
    length = ((least + how_much * (most - least)) * count).floor()
    length = length.clamp(min=shortest).minimum(count)
    start = (where * (count - length + 1)).floor()
    return (place >= start) & (place < start + length)


def retrieval_metrics(prediction: Any) -> dict[str, float]:
    """Compute the figures of an evaluation, as `compute_metrics` of a `Trainer`.

    Args:
        prediction: An `EvalPrediction` with sequence features as predictions and structure
            features as labels, `(pairs, shared)` each, of length 1.

    Returns:
        Recall at 1 and 5 and mean reciprocal rank both ways, `pairs`, and `selection`.

    Example:
        >>> from transformers import EvalPrediction
        >>> retrieval_metrics(EvalPrediction(np.eye(4), np.eye(4)))["selection"]
        1.2
    """
    similarity = np.asarray(prediction.predictions) @ np.asarray(prediction.label_ids).T
    figures: dict[str, float] = {"pairs": len(similarity)}
    for prefix, matrix in (("", similarity), ("reverse_", similarity.T)):
        ranks = best_ranks(matrix)
        figures |= {f"{prefix}recall_at_{k}": float((ranks <= k).mean()) for k in (1, 5)}
        figures[f"{prefix}mrr"] = float((1 / ranks).mean())
    # R@1 goes up in steps of 1 / pairs, and R@5 must not make up for one.
    figures["selection"] = figures["recall_at_1"] + figures["recall_at_5"] / (len(similarity) + 1)
    return figures
