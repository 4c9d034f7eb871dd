"""From a plan to aligned segments: the answer to "which residues correspond"."""

# mypy: disable-error-code="override, assignment, union-attr, operator"

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .modeling_backbone import Backbone, weights_digest
from .processing_plasma import PlasmaProcessor
from .protein import BatchedPipeline, Protein, read_protein


@dataclass
class Segment:
    """One stretch of query aligned with one stretch of candidate.

    Args:
        pairs: Aligned residues in order, `(query index, candidate index, plan weight)`, 0-based.
    """

    pairs: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def query_start(self) -> int:
        """Index of the first aligned query residue."""
        return self.pairs[0][0]

    @property
    def query_end(self) -> int:
        """Index after the last aligned query residue."""
        return self.pairs[-1][0] + 1

    @property
    def candidate_start(self) -> int:
        """Index of the first aligned candidate residue."""
        return self.pairs[0][1]

    @property
    def candidate_end(self) -> int:
        """Index after the last aligned candidate residue."""
        return self.pairs[-1][1] + 1

    @property
    def score(self) -> float:
        """Plan weight of the pairs as a share of the longer stretch, in [0, 1]."""
        longer = max(self.query_end - self.query_start, self.candidate_end - self.candidate_start)
        return min(1.0, sum(weight for *_, weight in self.pairs) / longer)

    def to_dict(self) -> dict[str, Any]:
        """Return the segment as plain numbers and lists."""
        names = ("query_start", "query_end", "candidate_start", "candidate_end", "score")
        return {name: getattr(self, name) for name in names} | {
            "pairs": [list(pair) for pair in self.pairs]
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
    segments: list[Segment] = []
    for query, candidate, weight in best_pairs(plan, threshold):
        followed = [s for s in segments if _follows(s, query, candidate, max_gap)]
        if followed:
            # Of several that it continues, the one that needs the least shift.
            shift = query - candidate
            home = min(followed, key=lambda s: abs(shift - (s.pairs[-1][0] - s.pairs[-1][1])))
        else:
            segments.append(home := Segment())
        home.pairs.append((query, candidate, weight))
    return [segment for segment in segments if len(segment.pairs) >= min_pairs]


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
    mutual = plan.argmax(dim=0)[candidate] == query
    kept = mutual & (weight > threshold)
    columns = (query[kept], candidate[kept], weight[kept])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _follows(segment: Segment, query: int, candidate: int, max_gap: int) -> bool:
    last_query, last_candidate, _ = segment.pairs[-1]
    return 0 < query - last_query <= max_gap + 1 and 0 < candidate - last_candidate <= max_gap + 1


# --- `pipeline("protein-alignment")`: two proteins in, corresponding residues out.


# The base class types its hooks for one dict of tensors; a pair of proteins is none.


SIDES = ("query", "candidate")

BUNDLED = Path(__file__).parents[1] / "checkpoints"
HEAD = "plasma_head_"
"""How the folders of bundled heads begin; the task follows."""


class ProteinAlignmentPipeline(BatchedPipeline):
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
        on_error: "raise", or "report" to get `{"error": message}` for a bad pair and go on.
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

    model: Any
    processor: Any

    _load_processor = None  # a head alone has none, and takes embeddings
    _load_tokenizer = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(
        self, *args: Any, store: Any = None, task_head: str | None = None, **kwargs: Any
    ) -> None:
        """Build the pipeline; a substitution encoder brings its own processor."""
        if task_head is not None:
            # `pipeline` has loaded the default model by now, whose place a bundled head takes.
            kwargs["model"] = _bundled_head(type(kwargs["model"]), task_head)
        super().__init__(*args, **kwargs)
        self.store = store
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
        if on_error not in (None, "raise", "report"):
            raise ValueError(f"on_error={on_error!r}; accepted are 'raise' and 'report'.")
        given = {"threshold": threshold, "max_gap": max_gap, "min_pairs": min_pairs}
        post = {name: value for name, value in given.items() if value is not None}
        if return_plan is not None:
            post["return_plan"] = return_plan
        return ({} if on_error is None else {"on_error": on_error}), {}, post

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Align one pair or many; see the class."""
        if args:
            raise TypeError(
                "give a pair as one argument: pipe((query, candidate)) or "
                'pipe({"query": query, "candidate": candidate}).'
            )
        if isinstance(inputs, tuple | Mapping):
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, str | Path | Tensor):
            raise TypeError(
                f"a {type(inputs).__name__} is one protein, and an alignment needs two: "
                "pipe((query, candidate))."
            )
        if not isinstance(inputs, Iterable):
            raise TypeError(
                f"cannot align a {type(inputs).__name__}; give a pair (query, candidate), a list "
                "or generator of pairs, or a datasets.Dataset with columns query and candidate."
            )
        lazily = super().__call__((pair for pair in inputs), **kwargs)
        return list(lazily) if hasattr(inputs, "__len__") else lazily

    def size_of(self, pair: dict[str, Protein]) -> list[int]:
        """Return the lengths of both sides."""
        return [len_of(pair[side]) for side in SIDES]

    def preprocess(self, pair: Any, on_error: str = "raise") -> dict[str, Any]:
        """Read one pair as `{"query": Protein, "candidate": Protein}`."""
        try:
            sides = dict(zip(SIDES, self._split(pair), strict=True))
            return {side: self._read(value, side) for side, value in sides.items()}
        except (ValueError, TypeError, OSError, ImportError) as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}

    def _forward(self, pairs: list[dict[str, Protein]], **_: Any) -> list[dict[str, Any]]:
        queries, candidates = (self._embed([pair[side] for pair in pairs]) for side in SIDES)
        aligned = self.model.align_pairs(queries, candidates)
        return [
            {"score": score, "plan": plan}
            for score, plan in zip(aligned.scores, aligned.plans, strict=True)
        ]

    def postprocess(
        self,
        output: dict[str, Tensor],
        return_plan: bool = False,
        threshold: float | None = None,
        **options: int,
    ) -> dict[str, Any]:
        """Turn score and plan of one pair into its result."""
        threshold = self.model.config.threshold if threshold is None else threshold
        segments = find_segments(output["plan"], threshold, **options)
        result = {
            "score": float(output["score"]),
            "segments": [segment.to_dict() for segment in segments],
        }
        return result | {"plan": output["plan"].clone()} if return_plan else result

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and processor in one folder that loads on its own."""
        self.model.save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)

    def _split(self, pair: Any) -> tuple[Any, Any]:
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

    def _read(self, value: Any, side: str) -> Protein:
        protein = read_protein(value, side)
        width = self.model.config.embedding_size
        if protein.embeddings is None:
            if self.store is not None and protein.sequence in self.store:
                return protein
            self._load_backbone(side)
            return self.processor.read(protein, side)
        if width is not None and protein.embeddings.shape[-1] != width:
            raise ValueError(
                f"{side} has residue embeddings of width {protein.embeddings.shape[-1]}, this "
                f"model takes {width}; use the backbone the head was made for, or a head made for "
                "this backbone."
            )
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
        config, made = self.model.config, self.store.identity
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

    def _embed(self, proteins: list[Protein]) -> list[Tensor]:
        """Return residue embeddings `(residues, hidden)`; a repeated protein is embedded once."""
        given = {id(p): p.embeddings for p in proteins if p.embeddings is not None}
        stored = {
            id(p): self.store.embeddings(p.sequence)
            for p in proteins
            if id(p) not in given and self.store is not None and p.sequence in self.store
        }
        known = given | stored
        rest = [p for p in proteins if id(p) not in known]
        if rest:
            known |= self._embed_with_backbone(rest)
        return [known[id(p)].to(self.device).float() for p in proteins]

    def _embed_with_backbone(self, proteins: list[Protein]) -> dict[int, Tensor]:
        # A sequence says all there is to a model that reads no structures.
        by_structure = self.processor.input_format.reads_structures
        keys = [id(p) if by_structure else p.sequence for p in proteins]
        unique = dict(zip(keys, proteins, strict=True))
        backbone = Backbone(self.model.backbone, self.processor)
        embedded = dict(zip(unique, backbone.embed(list(unique.values())), strict=True))
        return {id(p): embedded[key] for p, key in zip(proteins, keys, strict=True)}


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


def len_of(protein: Protein) -> int:
    """Count the residues of a protein, however it was given."""
    return len(protein.sequence or ()) if protein.embeddings is None else len(protein.embeddings)
