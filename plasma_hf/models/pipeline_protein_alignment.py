"""`pipeline("protein-alignment")`: two proteins in, corresponding residues out."""

# mypy: disable-error-code="override"

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .modeling_backbone import Backbone, weights_digest
from .processing_plasma import PlasmaProcessor
from .protein import Protein, ProteinPipeline, read_protein

SIDES = ("query", "candidate")

BUNDLED = Path(__file__).parents[1] / "checkpoints"
HEAD = "plasma_head_"
"""How the folders of bundled heads begin; the task follows."""

KEPT_BYTES, KEPT_PROTEINS = 2**28, 4096
"""Embeddings, and proteins as they were read, that one call keeps for the pairs that follow."""


@dataclass
class Segment:
    """One stretch of query aligned with one stretch of candidate.

    Args:
        pairs: Aligned residues in order, `(query index, candidate index, plan weight)`, 0-based.

    Attributes:
        query_start, query_end, candidate_start, candidate_end: 0-based, ends exclusive.
        score: Plan weight of the pairs as a share of the longer stretch, in [0, 1].
    """

    pairs: list[tuple[int, int, float]]

    def __post_init__(self) -> None:
        """Work out the ends and the score."""
        (self.query_start, self.candidate_start, _), (query, candidate, _) = (
            self.pairs[0],
            self.pairs[-1],
        )
        self.query_end, self.candidate_end = query + 1, candidate + 1
        longer = max(self.query_end - self.query_start, self.candidate_end - self.candidate_start)
        self.score = min(1.0, sum([weight for *_, weight in self.pairs]) / longer)

    def to_dict(self) -> dict[str, Any]:
        """Return the segment as plain numbers and lists."""
        return {
            "query_start": self.query_start,
            "query_end": self.query_end,
            "candidate_start": self.candidate_start,
            "candidate_end": self.candidate_end,
            "score": self.score,
            "pairs": [list(pair) for pair in self.pairs],
        }


def find_segments(
    plan: Tensor, threshold: float = 0.5, max_gap: int = 10, min_pairs: int = 3
) -> list[Segment]:
    """Read the aligned segments of one pair from its plan.

    Two residues are aligned where each is the other's best partner and their plan weight exceeds
    `threshold`. Pairs that follow each other in both proteins, with at most `max_gap` residues
    left out on either side, make a segment; segments need not be in order, so swapped and repeated
    parts are found as well.

    Args:
        plan: `(query_residues, candidate_residues)`.
        threshold: Plan weight above which a pair counts.
        max_gap: Residues that a segment may leave out between two pairs, on either side.
        min_pairs: Pairs that make a segment; fewer are left out.

    Returns:
        Segments in the order of their first query residue.

    Example:
        >>> [segment] = find_segments(torch.eye(5)[:, 1:], min_pairs=3)
        >>> segment.query_start, segment.query_end, segment.candidate_start, segment.score
        (1, 5, 0, 1.0)
    """
    segments: list[list[tuple[int, int, float]]] = []
    for query, candidate, weight in best_pairs(plan, threshold):
        home, least = None, 0
        for segment in segments:
            last_query, last_candidate, _ = segment[-1]
            down, across = query - last_query, candidate - last_candidate
            follows = 0 < down <= max_gap + 1 and 0 < across <= max_gap + 1
            # Of several that it continues, the one that needs the least shift.
            if follows and (home is None or abs(down - across) < least):
                home, least = segment, abs(down - across)
        if home is None:
            segments.append(home := [])
        home.append((query, candidate, weight))
    return [Segment(pairs) for pairs in segments if len(pairs) >= min_pairs]


def best_pairs(plan: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """List residue pairs above `threshold` that are each other's best, in query order.

    Args:
        plan: `(query_residues, candidate_residues)`.
        threshold: Plan weight above which a pair counts.
    """
    plan = plan.detach().float().cpu()
    if plan.numel() == 0:
        return []
    weight, candidate = plan.max(dim=1)
    query = torch.arange(len(plan))
    kept = (plan.argmax(dim=0)[candidate] == query) & (weight > threshold)
    columns = query[kept].tolist(), candidate[kept].tolist(), weight[kept].tolist()
    return list(zip(*columns, strict=True))


class _Seen:
    """What one call has met: proteins as they were read, and their embeddings, the latest last."""

    def __init__(self) -> None:
        self.proteins: OrderedDict[Any, Protein] = OrderedDict()
        self.embeddings: OrderedDict[str | None, Tensor] = OrderedDict()

    def forget(self) -> None:
        """Let go of the oldest, so that a call without end needs no memory without end."""
        kept = sum([rows.nbytes for rows in self.embeddings.values()])
        while kept > KEPT_BYTES:
            kept -= self.embeddings.popitem(last=False)[1].nbytes
        while len(self.proteins) > KEPT_PROTEINS:
            self.proteins.popitem(last=False)


class ProteinAlignmentPipeline(ProteinPipeline):
    """Align pairs of proteins.

    A pair is `{"query": ..., "candidate": ...}` or a 2-tuple; each side a sequence, a path (FASTA,
    PDB, mmCIF) or residue embeddings. One pair gives one result; a list or `datasets.Dataset` a
    list; a generator or a streamed data set an iterator, so that nothing piles up.

    A result is `{"score": float, "segments": [...]}`, each segment with `query_start`,
    `query_end`, `candidate_start`, `candidate_end` (0-based, ends exclusive), `score` and `pairs`,
    a list of `[query index, candidate index, plan weight]`.

    `task_head="active_site"`, "binding_site" or "motif" takes the head that was trained for the
    task in place of the default model; they come with the installed package.

    A head that names its backbone loads it at the first sequence. With `store=EmbeddingStore(...)`
    a sequence that is in the store is not embedded again.

    Call with, or build with:
        return_plan: Add `"plan"`, a tensor `(query_residues, candidate_residues)`.
        threshold: Plan weight above which residues are aligned; the model's own by default.
        max_gap: Residues a segment may leave out between two pairs.
        min_pairs: Pairs that make a segment.
        on_error: "raise", or "report" to get `{"error": message}` for an invalid pair and go on.
        batch_size: Pairs computed together; results do not depend on it.

    Example:
        >>> from transformers import pipeline
        >>> import plasma_hf
        >>> align = pipeline("protein-alignment")
        >>> result = align(("MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS"))
        >>> segment = result["segments"][0]
        >>> segment["query_start"], segment["query_end"], segment["candidate_start"]
        (3, 20, 0)
    """

    def __init__(
        self, *args: Any, store: Any = None, task_head: str | None = None, **kwargs: Any
    ) -> None:
        """Build the pipeline; a substitution encoder brings its own processor."""
        if task_head is not None:
            # `pipeline` has loaded the default model by now, whose place a bundled head takes.
            kwargs["model"] = _bundled_head(type(kwargs["model"]), task_head)
        super().__init__(*args, **kwargs)
        self.store = store
        self._made: Backbone | None = None
        backbone = getattr(self.model.config, "plm_config", None)
        if self.processor is None and getattr(backbone, "model_type", "") == "substitution_window":
            self.processor = PlasmaProcessor()
        if self.processor is None:
            self.processor = getattr(self.model, "processor", None)
        self._check_recipe()
        if store is not None:
            self._check_store()

    def _sanitize_parameters(
        self,
        return_plan: bool | None = None,
        threshold: float | None = None,
        max_gap: int | None = None,
        min_pairs: int | None = None,
        on_error: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        reading, forward, _ = super()._sanitize_parameters(on_error)
        post = {"return_plan": return_plan, "threshold": threshold}
        post |= {"max_gap": max_gap, "min_pairs": min_pairs}
        return reading, forward, {k: value for k, value in post.items() if value is not None}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Align one pair or many; see the class."""
        if args:
            raise TypeError(
                "give a pair as one argument: pipe((query, candidate)) or "
                'pipe({"query": query, "candidate": candidate}).'
            )
        if isinstance(inputs, tuple | Mapping):
            return super().__call__(inputs, **kwargs)
        given = type(inputs).__name__
        if isinstance(inputs, str | Path | Tensor):
            raise TypeError(
                f"a {given} is one protein, and an alignment needs two: pipe((query, candidate))."
            )
        refusal = (
            f"cannot align a {given}; give a pair (query, candidate), a list or generator of "
            "pairs, or a datasets.Dataset with columns query and candidate."
        )
        return self.answer_each(inputs, refusal, **kwargs)

    def get_iterator(self, *args: Any) -> Iterator[dict[str, Any]]:
        """Yield one result per pair; a protein that comes again is read and embedded once."""
        inputs, workers, batch_size, reading, forward, post = args
        seen = {"seen": _Seen()}
        return super().get_iterator(
            inputs, workers, batch_size, reading | seen, forward | seen, post
        )

    def size_of(self, pair: dict[str, Protein]) -> list[int]:
        """Return the lengths of both sides."""
        return [len(pair[side]) for side in SIDES]

    def read(self, pair: Any, seen: _Seen | None = None) -> dict[str, Protein]:
        """Read one pair as `{"query": Protein, "candidate": Protein}`."""
        query, candidate = _sides_of(pair)
        seen = seen or _Seen()
        return {
            "query": self._read_side(query, "query", seen),
            "candidate": self._read_side(candidate, "candidate", seen),
        }

    def _forward(
        self, pairs: list[dict[str, Protein]], seen: _Seen | None = None
    ) -> list[dict[str, Any]]:
        rows = self._embed([pair[side] for side in SIDES for pair in pairs], seen or _Seen())
        aligned = self.model.align_pairs(rows[: len(pairs)], rows[len(pairs) :])
        scored = zip(aligned.scores.tolist(), aligned.plans, strict=True)
        return [{"score": score, "plan": plan} for score, plan in scored]

    def postprocess(
        self,
        output: dict[str, Any],
        return_plan: bool = False,
        threshold: float | None = None,
        **options: int,
    ) -> dict[str, Any]:
        """Turn score and plan of one pair into its result."""
        threshold = self.model.config.threshold if threshold is None else threshold
        segments = find_segments(output["plan"], threshold, **options)
        result = {
            "score": output["score"],
            "segments": [segment.to_dict() for segment in segments],
        }
        return result | {"plan": output["plan"].clone()} if return_plan else result

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and processor in one folder that loads on its own."""
        self.model.save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)

    def _read_side(self, value: Any, side: str, seen: _Seen) -> Protein:
        """Read a protein, once in a call, and see to it that the model can use it."""
        by_value = (
            isinstance(value, str | Path | Protein) and getattr(value, "embeddings", None) is None
        )
        if by_value and value in seen.proteins:
            return seen.proteins[value]
        protein, width = read_protein(value, side), self.model.config.embedding_size
        if protein.embeddings is None:
            if self.store is None or protein.sequence not in self.store:
                self._load_backbone(side)
                protein = self.processor.read(protein, side)
        elif width is not None and protein.embeddings.shape[-1] != width:
            raise ValueError(
                f"{side} has residue embeddings of width {protein.embeddings.shape[-1]}, this "
                f"model takes {width}; use the backbone the head was made for, or a head made for "
                "this backbone."
            )
        if by_value:
            seen.proteins[value] = protein
        return protein

    def _load_backbone(self, side: str) -> None:
        """Load the backbone that the head names, now that a sequence needs it."""
        model = self.model
        if model.backbone is None and model.config.plm_name_or_path:
            processor = model.load_backbone()
            self.processor = self.processor or processor
            self._check_recipe()
        if model.backbone is None or self.processor is None:
            width = model.config.embedding_size
            raise ValueError(
                f"{side} is a sequence, and this model is a head without a backbone (or without "
                f"the processor of one); give residue embeddings (residues, {width or 'hidden'}), "
                "or load its backbone with model.load_backbone('<Hub id or folder>')."
            )

    def _check_recipe(self) -> None:
        wanted = self.model.config.plm_recipe
        if self.processor is not None and wanted not in (None, self.processor.input_format.name):
            raise ValueError(
                f"this head was made for sequences in the input format {wanted!r}, the processor "
                f"has {self.processor.input_format.name!r}; give "
                f"processor=PlasmaProcessor(tokenizer, input_format={wanted!r}), or none."
            )

    def _check_store(self) -> None:
        """Refuse a store that another backbone made, as far as can be told without loading it."""
        config, made = self.model.config, self.store.fingerprint
        name, recipe = config.plm_name_or_path, config.plm_recipe
        # A released head knows its backbone by the last part of the id.
        same = name is None or Path(made["backbone"]).name == Path(name).name
        if not same or recipe not in (None, made["recipe"]):
            raise ValueError(
                f"the store holds embeddings of {made['backbone']} ({made['recipe']}), this model "
                f"takes those of {name} ({recipe or 'any input format'}); make a store with: "
                f"plasma-hf embed --backbone {name} --input-format {recipe or 'generic'}."
            )
        backbone = self.model.backbone
        if backbone is not None and weights_digest(backbone) != made["weights"]:
            raise ValueError(
                f"the store was made by {made['backbone']} with other weights than this model's "
                "backbone has, which was trained further perhaps; make a store with it: "
                "plasma-hf embed --model <folder of this model>."
            )

    def _embed(self, proteins: list[Protein], seen: _Seen) -> list[Tensor]:
        """Return residue embeddings `(residues, hidden)`; a repeated protein is embedded once."""
        # A sequence says all there is to a model that reads no structures.
        by_structure = self.processor is not None and self.processor.input_format.reads_structures
        keys = [protein.sha if by_structure else protein.sequence for protein in proteins]
        known, new = seen.embeddings, {}
        for key, protein in zip(keys, proteins, strict=True):
            if protein.embeddings is None and key not in known:
                if self.store is not None and protein.sequence in self.store:
                    known[key] = self.store.embeddings(protein.sequence)
                else:
                    new[key] = protein
        if new:
            known.update(zip(new, self._backbone().embed(list(new.values())), strict=True))
        rows = []
        for key, protein in zip(keys, proteins, strict=True):
            given = known[key] if protein.embeddings is None else protein.embeddings
            rows.append(given.to(self.device).float())
            if protein.embeddings is None:
                known[key] = rows[-1]  # one tensor, however often, is projected once
                known.move_to_end(key)
        seen.forget()
        return rows

    def _backbone(self) -> Backbone:
        """Return model and processor together, as one that infers."""
        model, made = self.model.backbone, self._made
        if made is None or made.model is not model or made.processor is not self.processor:
            self._made = made = Backbone(model, self.processor)
        if model.training:
            model.eval()
        return made


def _sides_of(pair: Any) -> tuple[Any, Any]:
    if isinstance(pair, Mapping):
        missing = [side for side in SIDES if side not in pair]
        if missing:
            raise ValueError(
                f"a pair has no {' and no '.join(missing)}, only {sorted(map(str, pair))}; "
                'give {"query": ..., "candidate": ...}.'
            )
        return pair["query"], pair["candidate"]
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    size = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
    raise ValueError(
        f"a pair is a {type(pair).__name__}{size}; give (query, candidate) or "
        '{"query": ..., "candidate": ...}.'
    )


def _bundled_head(model_class: Any, task: str) -> Any:
    """Load the head for a task from the checkpoints that come with the installed package.

    Raises:
        ValueError: If there is none of that name.
    """
    folders = {folder.name.removeprefix(HEAD): folder for folder in BUNDLED.glob(f"{HEAD}*")}
    if task not in folders:
        there = ", ".join(map(repr, sorted(folders))) or "none, in a folder of remote code"
        raise ValueError(f"task_head={task!r}; the heads that are bundled are {there}.")
    return model_class.from_pretrained(folders[task]).eval()
