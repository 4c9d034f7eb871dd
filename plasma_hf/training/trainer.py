"""Trainers of PLASMA and ProtAlign: `Trainer` with their metrics, their order, and a card."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo, ModelCard
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy

from ..hub import push
from ..hub.card import ANY_REPOSITORY, card_of
from ..metrics.pairs import average_precision, f1_max, roc_auc
from ..metrics.retrieval import best_ranks
from ..models.modeling_plasma import label_match_losses, with_labelled_site
from .distributed import gather_ranks
from .structure_data import crop_structures, mask_spans, mix_up

logger = logging.getLogger(__name__)

TIMING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
STORED = ("structure_embeddings", "structure_mask")
ATOMS = ("backbone", "structure_residue_mask", "residue_index", "chain_index")


BATCHES_SORTED_TOGETHER = 20


# --- The order of pairs; it is of seed and epoch alone, so that a stopped run goes on with it.


class EpochSampler(Sampler[int]):
    """Shuffle pairs anew in every epoch, with an eye to `about`, an integer per pair.

    A batch is that of all ranks and, where they count, accumulation steps.
    """

    def __init__(self, about: Sequence[int], batch_size: int, seed: int) -> None:
        self.about, self.batch_size, self.seed, self.epoch = about, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.about)

    def __iter__(self) -> Iterator[int]:
        # Neighbouring seeds and epochs must not meet, as those of seed + epoch would.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.about), generator=generator).tolist()
        return iter(self._arranged(order, generator))

    def _arranged(self, order: list[int], generator: torch.Generator) -> list[int]:
        """Turn a plain order into one of good batches."""
        return order


class LengthGroupedSampler(EpochSampler):
    """Shuffle pairs so that those of a batch are of like length, and little of it is padding."""

    def _arranged(self, order: list[int], generator: torch.Generator) -> list[int]:
        size = self.batch_size
        if size == 1:
            return order
        full, short = [], []
        for start in range(0, len(order), BATCHES_SORTED_TOGETHER * size):
            part = order[start : start + BATCHES_SORTED_TOGETHER * size]
            part.sort(key=lambda pair: self.about[pair])
            batches = [part[first : first + size] for first in range(0, len(part), size)]
            # Only the last is short; before others it would shift the borders of all that follow.
            short += batches.pop() if len(batches[-1]) < size else []
            full += batches
        shuffled = torch.randperm(len(full), generator=generator).tolist()
        return [pair for number in shuffled for pair in full[number]] + short


class GroupDisjointSampler(EpochSampler):
    """Shuffle pairs so that those of one group are in different batches, as far as they fit."""

    def _arranged(self, order: list[int], generator: torch.Generator) -> list[int]:
        # Large groups first, each time into the emptiest batch: they spread over all batches.
        sizes = Counter(self.about)
        order.sort(key=lambda pair: -sizes[self.about[pair]])
        batches: list[list[int]] = [[] for _ in range(len(order) // self.batch_size)]
        taken: list[set[int]] = [set() for _ in batches]
        left = []
        for pair in order:
            group = self.about[pair]
            open_ones = (n for n, batch in enumerate(batches) if len(batch) < self.batch_size)
            fitting = [number for number in open_ones if group not in taken[number]]
            if not fitting:
                left.append(pair)
                continue
            number = min(fitting, key=lambda number: len(batches[number]))
            batches[number].append(pair)
            taken[number].add(group)
        for batch in batches:  # the loss leaves pairs of one group out of each other's negatives
            while len(batch) < self.batch_size:
                batch.append(left.pop())
        return [pair for batch in batches for pair in batch] + left


# --- Trainers.


class SafeTrainer(Trainer):
    """A `Trainer` that prints nothing, and writes and uploads no pickle beside the model.

    Checkpoints alone have files of `torch.save`, to go on with a run that was stopped; `Trainer`
    reads them with `torch.load(weights_only=True)`. No export and no upload takes them along.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Nothing reads this pickle of the arguments; what they were is in the card of the run.
        Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        """Make the repository; refuse pickles, and a run without a model to export."""
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy={strategy.value!r} would upload pickles of the run with the model; "
                "accepted are 'end' and 'every_save'."
            )
        if not hasattr(self.model, "save_pretrained"):
            raise ValueError(
                f"what is trained here is a {type(self.model).__name__} around a model; leave "
                "push_to_hub out, and after training type "
                "plasma_hf.push(model, processor, '<org>/<name>')."
            )
        super().init_hf_repo(*args, **options)


class CardTrainer(SafeTrainer):
    """Keep the metrics of every evaluation by its set, and write a model card with them."""

    batch_name = "pairs per update"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.remove_unused_columns = False  # a pair's columns are the collator's affair
        self.metrics: dict[str, dict[str, float]] = {}
        self.card_details: dict[str, Any] = {}  # what the card says beside, by name

    @property
    def pairs_per_batch(self) -> int:
        """Pairs that update the weights together, or are compared with each other."""
        return self.args.train_batch_size * self.args.world_size

    def _sampler(self, kind: type[EpochSampler], about: Sequence[int]) -> EpochSampler:
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return kind(about, self.pairs_per_batch, seed)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as `Trainer` does, and keep the metrics for the card."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        prefix = f"{metric_key_prefix}_"
        named = {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)}
        self.metrics[metric_key_prefix] = {k: v for k, v in named.items() if k not in TIMING}
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; where it is not for a checkpoint, with a card of the run's metrics."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            self._card().save(Path(output_dir or str(self.args.output_dir)) / "README.md")

    def push_to_hub(  # type: ignore[override]  # None in some processes, as Trainer returns it
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> CommitInfo | None:
        """Push model, processor and card as one commit, by `plasma_hf.push`, and wait for it.

        Token, revision and privacy are by default those of the arguments; for `options`, and what
        is refused, see `plasma_hf.export_to_hub_folder`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            if private is not None:
                self.args.hub_private_repo = private
            self.init_hf_repo(token=token)
        if not self.is_world_process_zero() or self.hub_model_id is None:
            return None
        with TemporaryDirectory() as folder:
            if not getattr(self.model, "peft_config", None):  # an adapter has the card of exports
                self._card(self.hub_model_id).save(Path(folder) / "README.md")
            processor = self.processing_class or getattr(self.model, "processor", None)
            options |= {"folder": folder, "revision": revision or self.args.hub_revision}
            options |= {"message": commit_message or "End of training", "token": token}
            return push(self.model, processor, self.hub_model_id, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model as it is, where `Trainer` would upload the files of a checkpoint."""
        if self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(f"Training in progress, step {self.state.global_step}")

    def _card(self, repository: str = ANY_REPOSITORY) -> ModelCard:
        model: Any = self.model
        written = {"figures": self.metrics, "settings": self.details()}
        return card_of(model.config, written, repository)

    def details(self) -> dict[str, Any]:
        """Return what there is to say of the run so far, by name."""
        return {
            "learning rate": self.args.learning_rate,
            self.batch_name: self.pairs_per_batch,
            "updates": self.state.global_step,
            "epochs": round(self.state.epoch or 0, 2),
            "seed": self.args.seed,
        } | self.card_details


class PlasmaTrainer(CardTrainer):
    """Train a PLASMA model, or an adapter on it, from an embedding store or from sequences.

    All of `Trainer` holds, mixed precision for the backbone alone. The loss is a mean over pairs of
    what each would lose alone, so batches, accumulated or on several ranks, are shares of a large
    one. What is added:

    - `evaluate` gives losses, ROC-AUC, average precision, F1-max and label match score, and keeps
      a few numbers per pair, never plans. `eval_loss` is the whole objective, `eval_score_loss`
      the part that the published preset stops by.
    - Where the data set has `lengths`, pairs of like length share a batch.
    - `save_model` writes a model card with the metrics of every evaluation of this run, and
      `push_to_hub` pushes it with a folder that loads where plasma_hf is not installed.

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
        kwargs.setdefault("compute_metrics", pair_metrics)
        super().__init__(*args, **kwargs)
        self.label_names = ["labels"]

    @property
    def pairs_per_batch(self) -> int:
        """Pairs of an update, over all ranks and accumulation steps."""
        return super().pairs_per_batch * self.args.gradient_accumulation_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = getattr(train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        return self._sampler(LengthGroupedSampler, lengths)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Align a batch and keep its loss and a few numbers per pair."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, return_plan=True)
        loss = None if output.loss is None else output.loss.detach()
        if prediction_loss_only:
            return loss, None, None
        return loss, _pair_numbers(output, inputs), inputs.get("labels")


@torch.no_grad()
def _pair_numbers(output: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Reduce what a model says of a batch to four numbers per pair, so that no plan is kept.

    These are score, score loss, label match loss of the candidate's site and of the query's site;
    the last two are NaN where a pair has none.
    """
    scores = output.scores
    query, candidate = batch.get("query_site_labels"), batch.get("candidate_site_labels")
    nothing = torch.full_like(scores, torch.nan)
    score_loss = nothing if output.score_loss is None else output.score_loss.expand_as(scores)
    if query is None or candidate is None:
        return scores, score_loss.clone(), nothing, nothing.clone()
    sides = query.clamp(min=0), candidate.clamp(min=0)  # some mark padding by -100
    missed = []
    for plan, (own, other) in ((output.plan, sides), (output.plan.mT, sides[::-1])):
        without = ~with_labelled_site(other, batch.get("labels"))
        missed.append(label_match_losses(plan, own, other).masked_fill(without, torch.nan))
    return scores, score_loss.clone(), *missed


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute the metrics of an evaluation of PLASMA from the numbers of `_pair_numbers`."""
    numbers = (np.asarray(each, dtype=np.float64) for each in prediction.predictions)
    scores, score_loss, missed, missed_query = numbers
    labels = np.asarray(prediction.label_ids)
    metrics = {"pairs": len(scores), "score_loss": float(score_loss.mean())}
    if not np.isnan(missed).all():
        metrics["label_match_loss"] = float(np.nanmean(missed))
        metrics["label_match_score"] = float(1 - np.nanmean(missed))
    if not np.isnan(missed_query).all():
        metrics["label_match_score_query"] = float(1 - np.nanmean(missed_query))
    if 0 < labels.sum() < len(labels):
        for metric in (roc_auc, average_precision, f1_max):
            metrics[metric.__name__] = metric(labels, scores)
    return metrics


class ProtAlignTrainer(CardTrainer):
    """Train a ProtAlign model on pairs of sequence and structure.

    All of `Trainer` holds. What is added:

    - Every rank compares its pairs with those of all ranks, as one process with all of them would.
      Accumulated batches are not compared with each other.
    - Where the data set has `groups`, pairs of one group are in different batches if they fit.
    - `evaluate` lets every sequence search all structures of the data set, and the reverse.
      `eval_selection` is R@1 of sequences, and among equals R@5: what the best model is chosen by.
      `eval_loss` is of all pairs of the set, however they were batched.
    - With `left_out` a span of either protein is masked, another each time, and two such views of
      one structure have to find each other as well: forms of a protein differ in what is seen.
      With `cropped` some second views keep a span alone. Where batches have `form_embeddings`, of
      the structures with noise on their atoms, a second view is mixed with them.
    - `save_model` and `push_to_hub` as of `PlasmaTrainer`.

    Args:
        left_out: Largest share of a protein's residues that is masked in training.
        cropped: Probability that of a second view all but a span is masked.
        view_weight: How much the loss of two views of a structure counts, beside that of pairs.

    Example:
        >>> import tempfile
        >>> from plasma_hf import ProtAlignConfig, ProtAlignModel
        >>> from plasma_hf.training import PROTALIGN_PRESETS
        >>> model = ProtAlignModel(ProtAlignConfig(sequence_size=8, structure_size=8))
        >>> protein = torch.ones(4, 8)
        >>> row = {"sequence_embeddings": protein, "structure_embeddings": protein}
        >>> arguments = PROTALIGN_PRESETS["improved"].training_arguments(
        ...     tempfile.mkdtemp(), use_cpu=True, disable_tqdm=True)
        >>> trainer = ProtAlignTrainer(model, arguments, train_dataset=[row], eval_dataset=[row])
        >>> trainer.evaluate()["eval_selection"]  # R@1 + R@5 / (pairs + 1)
        1.5
    """

    batch_name = "pairs compared"

    def __init__(
        self,
        *args: Any,
        left_out: float = 0.0,
        cropped: float = 0.0,
        view_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("compute_metrics", self._compute_metrics)
        self.left_out, self.cropped, self.view_weight = left_out, cropped, view_weight
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        groups = getattr(rows, "groups", None)
        return self._sampler(GroupDisjointSampler, range(len(rows)) if groups is None else groups)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of pairs, and with `left_out` that of two views of the structures."""
        inputs = dict(inputs)
        others = inputs.pop("form_embeddings", None)
        if not self.left_out:
            output = model(**inputs, gather=gather_ranks)
            return (output.loss, output) if return_outputs else output.loss
        # Of seed and update alone: a run that was stopped goes on with the same views.
        seed = 1_000_003 * self.args.seed + self.state.global_step
        generator = torch.Generator().manual_seed(seed)
        first, second = (mask_spans(inputs, self.left_out, generator) for _ in range(2))
        second = mix_up(crop_structures(second, self.cropped, generator), others, generator)
        output = model(**first, gather=gather_ranks)
        inner: Any = self.model
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        seen = {name: second[name] for name in (*STORED, *ATOMS) if name in second}
        views = inner.get_structure_features(**seen, gather=gather_ranks)
        loss = output.loss + self.view_weight * inner.pair_loss(
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
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Return no loss, sequence features and, in the place of labels, structure features."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, return_loss=False)
        return None, output.sequence_features, output.structure_features

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Compute recall and mean reciprocal rank both ways, and the loss if it is of features."""
        model: Any = self.model
        sequences, structures = map(np.asarray, (prediction.predictions, prediction.label_ids))
        similarity = sequences @ structures.T
        found: dict[str, float] = {"pairs": len(similarity)}
        for prefix, matrix in (("", similarity), ("reverse_", similarity.T)):
            ranks = best_ranks(matrix)
            found |= {f"{prefix}recall_at_{k}": float((ranks <= k).mean()) for k in (1, 5)}
            found[f"{prefix}mrr"] = float((1 / ranks).mean())
        # R@1 goes up in steps of 1 / pairs, and R@5 must not make up for one.
        found["selection"] = found["recall_at_1"] + found["recall_at_5"] / (len(similarity) + 1)
        if model.config.normalize:
            # Of the whole set: a batch of it may hold a pair twice, where ranks fill their share.
            both = (
                torch.as_tensor(each, device=self.args.device) for each in (sequences, structures)
            )
            with torch.no_grad():
                found["loss"] = float(model.pair_loss(*both))
        return found


class BatchTrainer(SafeTrainer):
    """Train by batches that come ready, in order, and log the parts of their loss.

    The items of the data set are the batches; the model returns `{"loss": ..., part: ...}`.
    For the settings see `ResidueTraining`; options are further fields of `TrainingArguments`.
    """

    # The objective takes no count of items; Trainer must not scale the loss by one.
    model_accepts_loss_kwargs = False

    def __init__(
        self, model: nn.Module, folder: Path, batches: Any, settings: Any, options: dict[str, Any]
    ) -> None:
        fields: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": settings.steps,
            "per_device_train_batch_size": 1,  # an item of the data set is a batch
            **{"lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "save_total_limit": 2},
            "warmup_steps": round(settings.warmup * settings.steps),
            "logging_steps": max(1, min(50, settings.steps // 10)),
            "use_cpu": settings.device == "cpu",
            **{"report_to": "none", "remove_unused_columns": False},
        }
        same = ("learning_rate", "weight_decay", "save_steps", "seed")
        fields |= {name: getattr(settings, name) for name in same} | options
        arguments = TrainingArguments(**fields)
        # A batch of one item is that item.
        super().__init__(model, arguments, data_collator=itemgetter(0), train_dataset=batches)
        self._parts: dict[str, Tensor] = {}
        self._counted = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        batches: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(batches)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss, and keep its parts for the log."""
        parts: dict[str, Tensor] = model(**inputs)
        for name, part in parts.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, torch.zeros_like(part)) + part.detach()
        self._counted += 1
        return (parts["loss"], parts) if return_outputs else parts["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part since the last log."""
        if "loss" in logs and self._counted:
            logs |= {name: float(total) / self._counted for name, total in self._parts.items()}
            self._parts, self._counted = {}, 0
            logger.info("step %d: %s", self.state.global_step, logs)
        super().log(logs, *args, **kwargs)
