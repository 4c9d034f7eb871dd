"""Negatives from all ranks: what a contrastive loss is compared with, with its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from huggingface_hub import ModelCard
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from ..hub.card import card_of
from ..metrics.pairs import average_precision, f1_max, roc_auc
from ..models.modeling_plasma import label_match_losses, with_labelled_site
from ..models.modeling_protalign import Gathered, alone


def gather_ranks(vectors: Tensor) -> Gathered:
    """Fetch what every rank has in the place of `vectors`.

    The loss of one rank sends a gradient to the vectors of all ranks. Where the ranks' gradients
    are averaged, as DistributedDataParallel does, the update is that of one process with all
    pairs, also where ranks have unequally many. All ranks must call this equally often.

    Without `torch.distributed`, or with one rank, nothing is fetched.

    Args:
        vectors: `(pairs of this rank, ...)`; the other dimensions are equal on all ranks.

    Example:
        >>> gather_ranks(torch.ones(3, 2)).ranks
        1
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return alone(vectors)
    own = torch.tensor([len(vectors)], device=vectors.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    pairs = [int(count) for count in counts]
    start = sum(pairs[: dist.get_rank()])
    return Gathered(_GatherWithGradient.apply(vectors, pairs, start), start, len(pairs))


class _GatherWithGradient(torch.autograd.Function):
    """All-gather; in the backward pass a rank's vectors get the gradients of all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: list[int], start: int) -> Tensor:
        """Return the vectors of all ranks, rank after rank."""
        ctx.start, ctx.pairs = start, len(vectors)
        # Collectives want equal shapes: short ranks are filled up, and cut again.
        filled = vectors.new_zeros(max(pairs), *vectors.shape[1:])
        filled[: len(vectors)] = vectors
        parts = [torch.empty_like(filled) for _ in pairs]
        dist.all_gather(parts, filled)
        return torch.cat([part[:n] for part, n in zip(parts, pairs, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the sum over ranks of the gradients to this rank's vectors."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.pairs], None, None


# --- The order in which pairs are trained on: by chance, with batches of like length.


BATCHES_SORTED_TOGETHER = 20


class LengthBuckets(Sampler[int]):
    """Shuffle pairs so that those of a batch are of like length, and little of it is padding.

    The order depends on seed and epoch alone: a run that was stopped goes on with the same one.

    Args:
        lengths: Length of each pair.
        batch_size: Pairs of an update, over all ranks and accumulation steps; 1 for plain chance.
        seed: Of the generator.

    Example:
        >>> order = list(LengthBuckets([5, 9, 5, 9], batch_size=2, seed=0))
        >>> sorted(order), {order[0] % 2, order[1] % 2} in ({0}, {1})
        ([0, 1, 2, 3], True)
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Keep what the order depends on."""
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        # Neighbouring seeds and epochs must not meet, as those of seed + epoch would.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.batch_size == 1:
            return iter(order)
        together = BATCHES_SORTED_TOGETHER * self.batch_size
        batches = []
        for start in range(0, len(order), together):
            part = sorted(order[start : start + together], key=lambda pair: self.lengths[pair])
            batches += [
                part[first : first + self.batch_size]
                for first in range(0, len(part), self.batch_size)
            ]
        # A short batch stays last: before others it would shift the borders of all that follow.
        whole = len(self.lengths) // self.batch_size
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [pair for batch in batches if len(batch) < self.batch_size for pair in batch]
        shuffled = torch.randperm(whole, generator=generator).tolist()
        return iter([pair for number in shuffled for pair in full[number]] + short)


# --- The model card of a training run, with its own figures.


HELD_OUT = {"interpolation": "test", "extrapolation": "test_hard"}
"""What the two test sets of a split are called in the figures."""


def training_card(
    config: Any, figures: Mapping[str, Mapping[str, float]], details: Mapping[str, Any]
) -> ModelCard:
    """Write the card of a model that was just trained, PLASMA or ProtAlign.

    Args:
        config: The model's configuration.
        figures: Metrics by the name of the evaluation set, as the trainer's `figures` has them.
        details: What else there is to say of the run, by name.

    Returns:
        A card with the figures as a table, and for the Hub as metadata.

    Example:
        >>> from plasma_hf import PlasmaConfig
        >>> figures = {"extrapolation": {"roc_auc": 0.91, "label_match_score": 0.5, "pairs": 200}}
        >>> card = training_card(PlasmaConfig(), figures, {"preset": "published"})
        >>> card.data.eval_results[0].metric_value
        0.91
    """
    return card_of(config, {"figures": figures, "settings": details})


# --- What a `Trainer` of this package writes: safetensors and JSON, no pickle beside the model.


class SafeSaving(Trainer):
    """Save the model without `training_args.bin`, and upload nothing.

    Folders of a checkpoint have three files of `torch.save` besides, to go on with a run that was
    stopped: `optimizer.pt`, `scheduler.pt` and `rng_state.pth` (in several processes one each).
    `Trainer` reads them with `torch.load(weights_only=True)`, only to resume, and only from the
    folder that it is told. No export takes them along.
    """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Nothing reads this pickle of the arguments; what they were is in the card of the run.
        Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def init_hf_repo(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: uploads of `Trainer` take checkpoints and pickles along."""
        raise ValueError(
            "push_to_hub=True would upload pickles of the run with the model; leave it out, and "
            "after training type plasma_hf.push(model, processor, '<org>/<name>')."
        )

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse, as `init_hf_repo` does."""
        self.init_hf_repo()


# --- Figures of an evaluation, from a few numbers a pair.


@torch.no_grad()
def pair_figures(output: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Reduce what a model says of a batch to numbers a pair, so that no plan is kept.

    Args:
        output: The `PlasmaOutput` of the batch, with its plans.
        batch: What the model was given.

    Returns:
        Score, score loss, label match loss of the candidate's site and of the query's site, each
        `(batch,)`; the last two NaN where a pair has none.
    """
    scores = output.scores
    query, candidate = batch.get("query_site_labels"), batch.get("candidate_site_labels")
    nothing = torch.full_like(scores, torch.nan)
    score_loss = nothing if output.score_loss is None else output.score_loss.expand_as(scores)
    if query is None or candidate is None:
        return scores, score_loss.clone(), nothing, nothing.clone()
    query, candidate = query.clamp(min=0), candidate.clamp(min=0)  # some mark padding by -100
    labels = batch.get("labels")
    ahead = _missed(output.plan, query, candidate, labels)
    return scores, score_loss.clone(), ahead, _missed(output.plan.mT, candidate, query, labels)


def _missed(plan: Tensor, query: Tensor, candidate: Tensor, labels: Tensor | None) -> Tensor:
    missed = label_match_losses(plan, query, candidate)
    return missed.masked_fill(~with_labelled_site(candidate, labels), torch.nan)


def pair_metrics(prediction: Any) -> dict[str, float]:
    """Compute the figures of an evaluation, as `compute_metrics` of a `Trainer`.

    Args:
        prediction: An `EvalPrediction` with what `pair_figures` gives, `(pairs,)` each, and the
            pair labels.

    Returns:
        `score_loss`, `label_match_score` (of the candidate's sites, over positive pairs),
        `label_match_score_query` (of the query's sites), `label_match_loss`, and where there are
        pairs of both kinds `roc_auc`, `average_precision` and `f1_max`; `pairs` counts them.

    Example:
        >>> from transformers import EvalPrediction
        >>> import numpy as np
        >>> numbers = np.array([[0.9, 0.2], [0.3, 0.3], [0.1, np.nan], [0.2, np.nan]])
        >>> metrics = pair_metrics(EvalPrediction(tuple(numbers), np.array([1, 0])))
        >>> metrics["roc_auc"], metrics["label_match_score"]
        (1.0, 0.9)
    """
    scores, score_loss, missed, missed_query = (
        np.asarray(numbers, dtype=np.float64) for numbers in prediction.predictions
    )
    labels = np.asarray(prediction.label_ids)
    figures = {"pairs": len(scores), "score_loss": float(score_loss.mean())}
    if not np.isnan(missed).all():
        figures["label_match_loss"] = float(np.nanmean(missed))
        figures["label_match_score"] = float(1 - np.nanmean(missed))
    if not np.isnan(missed_query).all():
        figures["label_match_score_query"] = float(1 - np.nanmean(missed_query))
    if 0 < labels.sum() < len(labels):
        figures["roc_auc"] = roc_auc(labels, scores)
        figures["average_precision"] = average_precision(labels, scores)
        figures["f1_max"] = f1_max(labels, scores)
    return figures


# --- `Trainer` for PLASMA: its figures, its order of pairs, and a card of every run.


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
