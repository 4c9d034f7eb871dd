"""`pipeline("protein-alignment")`: two proteins in, corresponding residues out."""

# mypy: disable-error-code="override"

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .alignment_result import SIDES, SIGNIFICANCE, AlignmentResult, AlignmentResults
from .local_alignment import AVERAGING, Alignment, Evidence, aligned_probabilities, find_alignments
from .modeling_backbone import Backbone, check_embeddings, from_package
from .processing_plasma import PlasmaProcessor
from .protein import Protein, ProteinPipeline, read_protein

# Embeddings, and proteins as they were read, that one call keeps for the pairs that follow.
KEPT_BYTES, KEPT_PROTEINS = 2**28, 4096
SCREENED_TOGETHER = 32  # candidates; more take more memory, and time to get it


def find_segments(
    plan: Tensor, threshold: float = 0.5, max_gap: int = 10, min_pairs: int = 3
) -> list[dict[str, Any]]:
    """Read the aligned segments of one pair from its plan, `(query_residues, candidate_residues)`.

    Two residues are aligned where each is the other's best partner and their plan weight exceeds
    `threshold`. Pairs that follow each other in both proteins, with at most `max_gap` residues
    left out on either side, make a segment; segments need not be in order, so swapped and repeated
    parts are found as well. One of fewer than `min_pairs` pairs is left out.

    Example:
        >>> [segment] = find_segments(torch.eye(5)[:, 1:], min_pairs=3)
        >>> segment["query_start"], segment["query_end"], segment["candidate_start"]
        (1, 5, 0)
    """
    check_reading(threshold, max_gap, min_pairs)
    segments: list[list[tuple[int, int, float]]] = []
    for query, candidate, weight in _best_pairs(plan, threshold):
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
    return [describe_segment(pairs) for pairs in segments if len(pairs) >= min_pairs]


def check_reading(threshold: float, max_gap: int, min_pairs: int) -> None:
    """Refuse settings that make no sense."""
    if not threshold >= 0 or max_gap < 0 or min_pairs < 1:  # NaN is not, either
        given = f"threshold={threshold}, max_gap={max_gap}, min_pairs={min_pairs}"
        raise ValueError(f"{given}; give 0 or more, 0 or more and 1 or more.")


def describe_segment(pairs: list[tuple[int, int, float]]) -> dict[str, Any]:
    """Say where a segment begins and ends, 0-based with ends exclusive, and score it.

    The score is the plan weight of its pairs as a share of the longer stretch, in [0, 1].
    """
    (query_start, candidate_start, _), (query_last, candidate_last, _) = pairs[0], pairs[-1]
    longer = 1 + max(query_last - query_start, candidate_last - candidate_start)
    return {
        "query_start": query_start,
        "query_end": query_last + 1,
        "candidate_start": candidate_start,
        "candidate_end": candidate_last + 1,
        "score": min(1.0, sum([weight for *_, weight in pairs]) / longer),
        "pairs": [list(pair) for pair in pairs],
    }


def _weighed(alignment: Alignment) -> list[tuple[int, int, float]]:
    columns = *alignment.pairs.T.tolist(), alignment.weights.tolist()
    return list(zip(*columns, strict=True))


def _best_pairs(plan: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """List residue pairs above `threshold` that are each other's best, in query order."""
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


LEAST_OPTIONS = {"evalue": 0, "database_size": 1, "max_hits": 1}


class ProteinAlignmentPipeline(ProteinPipeline):
    """Align pairs of proteins.

    A pair is `{"query": ..., "candidate": ...}` or a 2-tuple; each side a sequence, a path (FASTA,
    PDB, mmCIF) or residue embeddings. One pair gives one result; a list or `datasets.Dataset` a
    list; a generator or a streamed data set an iterator, so that nothing piles up.

    A result is `{"score": float, "segments": [...]}`, an `AlignmentResult` that prints, shows and
    converts itself, each segment with `query_start`,
    `query_end`, `candidate_start`, `candidate_end` (0-based, ends exclusive), `score` and `pairs`,
    a list of `[query index, candidate index, plan weight]`. A model that reads by "posterior" adds
    `bits` and `p_value` to result and segments, None before it is calibrated.

    `task_head="active_site"`, "binding_site" or "motif" takes the head that was trained for the
    task in place of the default model; they come with the installed package.
    `backbone="esm2-8m"`, a name, Hub id or folder, takes the default's head over that backbone.

    A head that names its backbone loads it at the first sequence. With `store=EmbeddingStore(...)`
    a sequence that is in the store is not embedded again.

    Call with, or build with:
        return_plan: Add `"plan"`, a tensor `(query_residues, candidate_residues)`.
        threshold: Plan weight above which residues are aligned; the model's own by default.
        max_gap: Residues a segment may leave out between two pairs: 30, of a plan 10.
        min_pairs: Pairs that make a segment.
        evalue: Hits expected by chance, at most, of a segment that is shown (.01).
        database_size: How many proteins the candidate was picked from (1); adds `evalue`s.
        max_hits: Segments that are looked for, at most (10).
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
        self,
        *args: Any,
        store: Any = None,
        task_head: str | None = None,
        backbone: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        # `pipeline` has loaded the default model by now, whose place another takes.
        if backbone is not None:
            package = from_package("backbones", "named backbones come")
            if task_head or kwargs["model"].name_or_path != package.DEFAULT_CHECKPOINT:
                raise ValueError("backbone= takes the default head; give no model, no task_head.")
            kwargs["model"] = model = package.load_aligner(backbone)
            kwargs |= {"processor": model.processor, "tokenizer": None}
        elif task_head is not None:
            folder = from_package("hub.upstream", "heads are bundled").bundled_head(task_head)
            kwargs["model"] = type(kwargs["model"]).from_pretrained(folder).eval()
        super().__init__(*args, **kwargs)
        self.store = store
        if self.processor is None:
            model_type = getattr(self.model.config.plm_config, "model_type", "")
            substitution = model_type == "substitution_window"
            self.processor = PlasmaProcessor() if substitution else self.model.processor
        self._check_recipe()
        if store is not None:
            store.check_model(self.model)

    def _sanitize_parameters(
        self, on_error: str | None = None, **options: Any
    ) -> tuple[dict, dict, dict]:
        known = {"return_plan", "threshold", "max_gap", "min_pairs"}
        if unknown := options.keys() - known - {"evalue", "database_size", "max_hits"}:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}.")
        reading, forward, _ = super()._sanitize_parameters(on_error)
        post = {name: value for name, value in options.items() if value is not None}
        for name, least in LEAST_OPTIONS.items():
            value = post.get(name, least)
            if not isinstance(value, Real) or not float(value) >= least:
                raise ValueError(f"{name}={value!r}; give a number that is at least {least}.")
        deciding = {"return_plan", "evalue", "database_size"} & post.keys()
        return reading, forward | {name: post[name] for name in deciding}, post

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Align one pair or many; see the class."""
        if args:
            raise TypeError(
                "give a pair as one argument: pipe((query, candidate)) or "
                'pipe({"query": query, "candidate": candidate}).'
            )
        if isinstance(inputs, tuple | Mapping):
            return super().__call__(inputs, **kwargs)
        refusal = (
            f"cannot align a {type(inputs).__name__}, and an alignment needs two proteins: give a "
            "pair (query, candidate), a list or generator of pairs, or a datasets.Dataset with "
            "columns query and candidate."
        )
        if isinstance(inputs, str | Path | Tensor):
            raise TypeError(refusal)
        found = self.answer_each(inputs, refusal, **kwargs)
        return AlignmentResults(found) if isinstance(found, list) else found

    def get_iterator(self, *args: Any) -> Iterator[dict[str, Any]]:
        """Yield one result per pair; a protein that comes again is read and embedded once."""
        *given, reading, forward, post = args
        seen = {"seen": _Seen()}
        return super().get_iterator(*given, reading | seen, forward | seen, post)

    def size_of(self, pair: dict[str, Protein]) -> list[int]:
        """Return the lengths of both sides."""
        return [len(pair[side]) for side in SIDES]

    def read(self, pair: Any, seen: _Seen | None = None) -> dict[str, Protein]:
        """Read one pair as `{"query": Protein, "candidate": Protein}`."""
        given = zip(_sides_of(pair), SIDES, strict=True)
        seen = seen or _Seen()
        read = {side: self._read_side(value, side, seen) for value, side in given}
        self.model.check_memory([self.size_of(read)], plans=True)
        return read

    @torch.no_grad()
    def screen(self, query: Any, candidates: Sequence[Protein]) -> Iterator[float]:
        """Yield how far each candidate is from what chance gives, in nats, without aligning it.

        Of a calibrated model; `Calibration.chance` of it is the p-value that `align` finds.

        Example:
            >>> from transformers import pipeline
            >>> import plasma_hf
            >>> align = pipeline("protein-alignment")
            >>> found = align.screen("MKTAYIAKQRQISFVKSHFSRQ", [Protein("a", "AYIAKQRQLSFVKSHFS")])
            >>> [round(distance) for distance in found]
            [32]
        """
        null, seen = self.model.calibration, _Seen()
        assert null is not None
        [own] = self.project([query])
        for start in range(0, len(candidates), SCREENED_TOGETHER):
            part = candidates[start : start + SCREENED_TOGETHER]
            others = self.model.project_each(self._embed(part, seen))
            raw_scores = self.model.raw_scores(own, others).tolist()
            for raw_score, other in zip(raw_scores, others, strict=True):
                yield null.distance(raw_score, len(own), len(other))

    @torch.no_grad()
    def profile(self, query: Any, relatives: Sequence[Any]) -> Protein:
        """Return a query each of whose residues is the mean of itself and those aligned with it.

        What relatives have in common finds more of them than any one does. It stands wherever a
        protein does; its letters stay those of the query.

        Source: the barycentric projection of the transport plans.

        Example:
            >>> from transformers import pipeline
            >>> import plasma_hf
            >>> align = pipeline("protein-alignment")
            >>> profile = align.profile("MKTAYIAKQRQISFVKSHFSRQ", ["AYIAKQRQLSFVKSHFS"])
            >>> profile.sequence, profile.embeddings.shape
            ('MKTAYIAKQRQISFVKSHFSRQ', torch.Size([22, 420]))
        """
        seen = _Seen()
        read = [self._read_side(one, "protein", seen) for one in (query, *relatives)]
        own, *others = self._embed(read, seen)
        pairs = [own] * len(others), others
        aligned = self.model.align_pairs(*pairs, is_read=lambda *pair: False)
        plans = aligned.plans or []
        if aligned.evidence:
            # As plans are read, they go on into what stands beside a common domain, no relative.
            plans = aligned_probabilities([one.scored for one in aligned.evidence], AVERAGING)
        total, weight = own.clone(), torch.ones_like(own[:, :1])
        for plan, other in zip(plans, others, strict=True):
            total += plan @ other
            weight += plan.sum(1, keepdim=True)
        return replace(read[0], embeddings=total / weight)

    @torch.no_grad()
    def pool(self, proteins: Sequence[Any]) -> Tensor:
        """Return a vector of each protein, `(proteins, axes)`; those of relatives are near.

        Of a calibrated model.

        Example:
            >>> from transformers import pipeline
            >>> import plasma_hf
            >>> pipeline("protein-alignment").pool(["MKTAYIAKQR", "AYIAKQRQLS"]).shape
            torch.Size([2, 256])
        """
        return self.model.pool(self.project(proteins))

    @torch.no_grad()
    def project(self, proteins: Sequence[Any]) -> list[Tensor]:
        """Return what the model makes of the residues of each protein, `(residues, head_size)`."""
        seen = _Seen()
        read = [self._read_side(one, "protein", seen) for one in proteins]
        parts = (read[n : n + SCREENED_TOGETHER] for n in range(0, len(read), SCREENED_TOGETHER))
        return [one for part in parts for one in self.model.project_each(self._embed(part, seen))]

    def _forward(
        self,
        pairs: list[dict[str, Protein]],
        seen: _Seen | None = None,
        return_plan: bool = False,
        evalue: float = 0.01,
        database_size: int = 1,
    ) -> list[tuple[Any, ...]]:
        def is_read(raw_score: float, lengths: Sequence[int]) -> bool:
            p_value = self._significance(raw_score, lengths)["p_value"]
            return return_plan or p_value is None or p_value * database_size <= evalue

        rows = self._embed([pair[side] for side in SIDES for pair in pairs], seen or _Seen())
        sides = rows[: len(pairs)], rows[len(pairs) :]
        aligned = self.model.align_pairs(*sides, is_read=is_read)
        columns: list[Any] = [aligned.scores.tolist(), aligned.plans]
        if aligned.raw_scores is not None:
            columns += [aligned.raw_scores.tolist(), aligned.evidence]
        return [(pair, *of_pair) for pair, *of_pair in zip(pairs, *columns, strict=True)]

    def postprocess(
        self,
        output: tuple[Any, ...],
        return_plan: bool = False,
        threshold: float | None = None,
        max_gap: int | None = None,
        min_pairs: int = 3,
        **options: Any,
    ) -> AlignmentResult:
        """Turn what was computed for one pair into its result."""
        pair, score, plan, *read = output
        threshold = self.model.config.threshold if threshold is None else threshold
        result: dict[str, Any] = {"score": score}
        if read:
            given = plan, threshold, 30 if max_gap is None else max_gap, min_pairs
            result |= self._hits(read[0], Evidence(*read[1]), *given, **options)
        else:
            gap = 10 if max_gap is None else max_gap
            result["segments"] = find_segments(plan, threshold, gap, min_pairs)
        result |= {"plan": plan.clone()} if return_plan else {}
        return AlignmentResult(result, **pair, evalue=options.get("evalue", 0.01))

    def _hits(
        self,
        raw_score: float,
        evidence: Evidence,
        plan: Tensor,
        threshold: float,
        max_gap: int,
        min_pairs: int,
        evalue: float = 0.01,
        database_size: int | None = None,
        max_hits: int = 10,
    ) -> dict[str, Any]:
        """Find the hits of a pair that are significant, and say how much so."""
        lengths, size = evidence.scored.shape, database_size

        def is_significant(raw_score: float, left: float) -> bool:
            p_value = self._significance(raw_score, lengths, left=left)["p_value"]
            return p_value is None or p_value * (size or 1) <= evalue

        check_reading(threshold, max_gap, min_pairs)
        most = max_hits if self.model.calibration else 1
        given = evidence, plan, raw_score, is_significant
        found = find_alignments(*given, most, max_gap, threshold)
        segments = [
            describe_segment(_weighed(one))
            | self._significance(one.raw_score, lengths, size, one.left)
            for one in found
            if len(one.pairs) >= min_pairs
        ]
        for before, after in pairwise(segments):
            if (after["p_value"] or 0.0) < (before["p_value"] or 0.0):
                # It was not found first, among more that it could be: so much it is not worth.
                after |= {name: before[name] for name in SIGNIFICANCE if name in before}
        return self._significance(raw_score, lengths, size) | {"segments": segments}

    def _significance(
        self,
        raw_score: float,
        shape: Sequence[int],
        database_size: int | None = None,
        left: float = 1.0,
    ) -> dict[str, float | None]:
        """Say what a raw score means, None where the model was not calibrated."""
        null, names = self.model.calibration, ["bits", "p_value"]
        values: list[float | None] = [None, None]
        if null is not None:
            # What a share of the residue pairs reaches, shorter proteins with as many would.
            lengths = tuple(max(1.0, length * math.sqrt(left)) for length in shape)
            values = [null.bits(raw_score, *lengths), null.p_value(raw_score, *lengths)]
        if database_size is not None:
            names.append("evalue")
            values.append(None if values[1] is None else values[1] * database_size)
        return dict(zip(names, values, strict=True))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save model and processor in one folder that loads on its own."""
        self.model.save_pretrained(save_directory, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(save_directory, **kwargs)

    def _read_side(self, value: Any, side: str, seen: _Seen) -> Protein:
        """Read a protein, once in a call, and see to it that the model can use it."""
        embedded = getattr(value, "embeddings", None) is not None
        by_value = isinstance(value, str | Path | Protein) and not embedded
        if by_value and value in seen.proteins:
            return seen.proteins[value]
        protein, width = read_protein(value, side), self.model.config.embedding_size
        if protein.embeddings is None:
            if self.store is None or not self.store.has_sequence(protein.sequence):
                self._load_backbone(side)
                protein = self.processor.read(protein, side)
        elif width is not None and protein.embeddings.shape[-1] != width:
            raise ValueError(
                f"{side} has residue embeddings of width {protein.embeddings.shape[-1]}, this "
                f"model takes {width}; use the backbone the head was made for."
            )
        else:
            check_embeddings(protein.embeddings, side)
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
                f"{side} is a sequence, and this model is a head without a backbone and processor; "
                f"give residue embeddings (residues, {width or 'hidden'}), or load the backbone: "
                "model.load_backbone('<Hub id or folder>')."
            )

    def _check_recipe(self) -> None:
        wanted = self.model.config.plm_recipe
        if self.processor is not None and wanted not in (None, self.processor.input_format.name):
            raise ValueError(
                f"this head takes sequences in the input format {wanted!r}, the processor has "
                f"{self.processor.input_format.name!r}; give one with input_format={wanted!r}."
            )

    def _embed(self, proteins: Sequence[Protein], seen: _Seen) -> list[Tensor]:
        """Return residue embeddings `(residues, hidden)`; a repeated protein is embedded once."""
        # A sequence says all there is to a model that reads no structures.
        by_structure = self.processor is not None and self.processor.input_format.reads_structures
        keys = [protein.sha if by_structure else protein.sequence for protein in proteins]
        known, sides = seen.embeddings, list(zip(keys, proteins, strict=True))
        new = {key: p for key, p in sides if p.embeddings is None and key not in known}
        if self.store is not None:
            for key in [key for key, p in new.items() if self.store.has_sequence(p.sequence)]:
                known[key] = self.store.read_sequence(new.pop(key).sequence, "embeddings")
        if new:
            backbone = Backbone(self.model.backbone, self.processor)
            known.update(zip(new, backbone.embed(list(new.values())), strict=True))
        rows = []
        for key, protein in sides:
            given = known[key] if protein.embeddings is None else protein.embeddings
            rows.append(given.to(self.device).float())
            if protein.embeddings is None:
                known[key] = rows[-1]  # one tensor, however often, is projected once
                known.move_to_end(key)
        seen.forget()
        return rows


def _sides_of(pair: Any) -> tuple[Any, Any]:
    wanted = 'give (query, candidate) or {"query": ..., "candidate": ...}.'
    if isinstance(pair, Mapping):
        if missing := [side for side in SIDES if side not in pair]:
            has = f"has no {' and no '.join(missing)}, only {sorted(map(str, pair))}"
            raise ValueError(f"a pair {has}; {wanted}")
        return pair["query"], pair["candidate"]
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    size = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
    raise ValueError(f"a pair is a {type(pair).__name__}{size}; {wanted}")
