"""`Trainer` for PLASMA: its figures, its order of pairs, and a card of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback

from .card import training_card
from .length_buckets import LengthBuckets
from .pair_metrics import pair_figures, pair_metrics
from .safe_saving import SafeSaving


class PlasmaTrainer(SafeSaving):
    """Train a PLASMA model, or an adapter on it, from an embedding store or from sequences.

    All of `Trainer` holds: accumulation, several processes, mixed precision (of the backbone; the
    head computes in float32), checkpoints. The loss is a mean over pairs of what each would lose
    alone, so batches, accumulated batches and ranks are shares of one large batch. What is added:

    - `evaluate` gives losses, ROC-AUC, average precision, F1-max and label match score, and keeps
      a few numbers a pair, never plans. `eval_loss` is the whole objective, `eval_score_loss` the
      part that the published recipe stops by.
    - Pairs of like length share a batch, in an order that depends on seed and epoch alone, where
      the data set has `lengths`.
    - `save_model` writes a model card with the figures of every evaluation of this run.

    Args:
        *args: As `Trainer` takes them: model, arguments, data collator, data sets.
        **kwargs: The same by name.

    Example:
        >>> import tempfile, torch
        >>> from plasma_hf import PlasmaConfig, PlasmaModel
        >>> from plasma_hf.training import PRESETS, PlasmaTrainer
        >>> model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=8))
        >>> protein = torch.arange(96.0).sin().view(12, 8)
        >>> row = {"query_embeddings": protein, "candidate_embeddings": protein,
        ...     "labels": torch.tensor(1)}
        >>> arguments = PRESETS["improved"].training_arguments(
        ...     tempfile.mkdtemp(), use_cpu=True, disable_tqdm=True, max_steps=1)
        >>> trainer = PlasmaTrainer(model, arguments, train_dataset=[row], eval_dataset=[row])
        >>> trainer.evaluate()["eval_pairs"]
        1
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what pairs need."""
        kwargs.setdefault("compute_metrics", pair_metrics)
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # what it would print is in the log history
        self.args.remove_unused_columns = False  # a pair's columns are the collator's affair
        self.label_names = ["labels"]
        self.figures: dict[str, dict[str, float]] = {}
        self.card_details: dict[str, Any] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = getattr(train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthBuckets(lengths, pairs, seed)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Align a batch and keep its loss and a few numbers a pair."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, return_plan=True)
        loss = None if output.loss is None else output.loss.detach()
        if prediction_loss_only:
            return loss, None, None
        return loss, pair_figures(output, inputs), inputs.get("labels")

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and keep the figures for the card."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        prefix = f"{metric_key_prefix}_"
        timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
        self.figures[metric_key_prefix] = {
            name.removeprefix(prefix): value
            for name, value in metrics.items()
            if name.startswith(prefix) and name.removeprefix(prefix) not in timing
        }
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; where it is not for a checkpoint, with a card of the run's figures."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            folder = Path(output_dir or str(self.args.output_dir))
            model: Any = self.model
            card = training_card(model.config, self.figures, self.details())
            card.save(folder / "README.md")

    def details(self) -> dict[str, Any]:
        """Return what there is to say of the run so far, by name."""
        args = self.args
        return {
            "learning rate": args.learning_rate,
            "pairs per update": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "updates": self.state.global_step,
            "epochs": round(self.state.epoch or 0, 2),
            "seed": args.seed,
        } | self.card_details
