"""Train a residue encoder: a small network that corrects the substitution windows.

Run as `python -m reproduce.encoder --alignments pfam/ --sites active_site.csv --output encoder`;
`--help` lists all options. The folder then serves as a backbone, by `load_backbone` and by
`plasma-hf ... --backbone`.

A family of sites says that two proteins correspond, not where. In the confident columns of a global
alignment it is plain to see, and serves to teach an encoder the cases where it is not.
"""

from __future__ import annotations

import json
import logging
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import set_seed
from transformers.utils import logging as hf_logging

from plasma_hf.cli.common import fail, one_line_errors, report
from plasma_hf.data import SiteProtein, read_site_table
from plasma_hf.data.alignments import (
    TO_BLOSUM,
    ResidueAlignment,
    blosum_aligner,
    read_reference_alignments,
)
from plasma_hf.data.clusters import nearest_identity
from plasma_hf.io.sequences import read_sequences
from plasma_hf.models.configuration_plasma import PlasmaConfig
from plasma_hf.models.modeling_plasma import (
    PlasmaModel,
    hinge_cost,
    label_match_losses,
    log_kernel,
    make_plans,
)
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.protein import (
    RESIDUE_LETTERS,
    STANDARD_RESIDUES,
    InvalidRecord,
    open_text,
    parse_fasta,
)
from plasma_hf.training.pair_data import site_correspondences
from plasma_hf.training.run import checkpoint_to_resume, lasting_settings
from plasma_hf.training.trainer import BatchTrainer

Pairs = NDArray[np.int64]

GAP_OPEN, END_GAP = 11.0, 0.5
GAP_PENALTY = -4.0
NO_PAIRS = np.empty((0, 2), dtype=np.int64)
GAPS = "-."

# --- Alignments to learn from: families, and pairs.


@dataclass(frozen=True)
class FamilyAlignment:
    """A family of aligned sequences, all rows of one length.

    A gap is `-` or `.`; residues in lower case are insertions, which correspond to nothing.
    """

    name: str
    rows: tuple[str, ...]

    def pair(self, first: int, second: int) -> ResidueAlignment:
        """Return two members, with the residues that stand in one column.

        Example:
            >>> FamilyAlignment("PF1", ("MK-V", "M-LV")).pair(0, 1).pairs.tolist()
            [[0, 0], [2, 2]]
        """
        rows = self.rows[first], self.rows[second]
        both = np.array([[letter.isupper() for letter in row] for row in rows]).all(axis=0)
        present = np.array([[letter not in GAPS for letter in row] for row in rows])
        pairs = (np.cumsum(present, axis=1) - 1)[:, both].T
        query, candidate = (re.sub(r"[-.]", "", row).upper() for row in rows)
        return ResidueAlignment(query, candidate, pairs, self.name)


def read_family_alignment(path: str | PathLike[str]) -> FamilyAlignment:
    """Read aligned FASTA, also .gz; the name of the family is the file's up to its first dot."""
    try:
        with open_text(Path(path)) as lines:
            joined = tuple(record.sequence or "" for record in parse_fasta(lines))
    except ValueError as error:
        raise ValueError(f"{path} is not an aligned FASTA file: {error}") from error
    if not joined or len({len(row) for row in joined}) != 1:
        lengths = sorted({len(row) for row in joined})[:5]
        raise ValueError(
            f"{path} holds {len(joined)} rows of lengths {lengths}; give an aligned FASTA file, "
            "whose rows are of one length"
        )
    others = sorted(set("".join(joined).upper()) - set(RESIDUE_LETTERS) - set(GAPS))
    if others:
        raise ValueError(f"{path} holds {' '.join(map(repr, others))}, not residue letters")
    return FamilyAlignment(Path(path).name.split(".")[0], joined)


def read_alignments(
    paths: Iterable[str | PathLike[str]], invalid: list[InvalidRecord] | None = None
) -> tuple[list[FamilyAlignment], list[ResidueAlignment]]:
    """Read files of either form, or folders of them: pairs from JSON, families from all others."""
    families: list[FamilyAlignment] = []
    pairs: list[ResidueAlignment] = []
    for path in map(Path, paths):
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in (one for one in inside if not one.is_dir()):
            if ".json" in file.suffixes:
                pairs += read_reference_alignments(file, invalid)
            else:
                families.append(read_family_alignment(file))
    return families, pairs


def confident_pairs(
    query: str, candidate: str, *, reach: int = 4, least: float = 1.0, least_identity: float = 0.25
) -> Pairs:
    """Align two sequences globally and keep the columns whose surroundings agree.

    Args:
        reach: Columns to each side that speak for a column.
        least: Mean BLOSUM62 score of these columns, in half-bits, that is confident; a gap
            counts as -4.
        least_identity: Share of identical columns below which no column is trusted.

    Returns:
        Corresponding residues, 0-based, `(pairs, 2)`.
    """
    query, candidate = query.translate(TO_BLOSUM), candidate.translate(TO_BLOSUM)
    aligner = blosum_aligner("global", GAP_OPEN, END_GAP)
    aligned = aligner.align(query, candidate)[0]
    columns = aligned.indices.T  # (columns, 2), -1 for a gap
    paired = (columns >= 0).all(axis=1)
    if not paired.any():
        return NO_PAIRS
    pairs = columns[paired].astype(np.int64)
    same = sum(query[i] == candidate[j] for i, j in pairs)
    if same < least_identity * len(columns):
        return NO_PAIRS
    matrix = aligner.substitution_matrix
    scores = np.full(len(columns), GAP_PENALTY)
    scores[paired] = [matrix[query[i], candidate[j]] for i, j in pairs]
    ones = np.ones(2 * reach + 1)
    around = np.convolve(scores, ones, "full")[reach : -reach or None]
    counted = np.convolve(np.ones(len(scores)), ones, "full")[reach : -reach or None]
    return pairs[(around / counted >= least)[paired]]


def merge_pairs(first: Pairs, second: Pairs) -> Pairs:
    """Join two lists of pairs; where they contradict each other, neither is believed."""
    joined = np.unique(np.concatenate([first, second]), axis=0)
    once = np.ones(len(joined), dtype=bool)
    for side in (0, 1):
        _, place, count = np.unique(joined[:, side], return_inverse=True, return_counts=True)
        once &= count[place] == 1
    return joined[once]


def shared_words(query: str, candidate: str, length: int = 3) -> float:
    """Return the share of the shorter protein's words that the other has too, a cheap likeness."""
    words = [{s[i : i + length] for i in range(len(s) - length + 1)} for s in (query, candidate)]
    fewest = min(map(len, words))
    return len(words[0] & words[1]) / fewest if fewest else 0.0


logger = logging.getLogger(__name__)

AnyPath: TypeAlias = "str | PathLike[str]"

SOURCES = ("families", "pairs", "sites", "unrelated")

LIKE = 0.5
"""Identity from which on a protein is too like an excluded one to learn from."""


@dataclass
class EncoderSources:
    """Hold what pairs are drawn from, and how often; a source without data is left out."""

    families: Sequence[FamilyAlignment] = ()
    pairs: Sequence[ResidueAlignment] = ()
    proteins: Sequence[SiteProtein] = ()  # those of one family correspond
    sequences: Sequence[str] = ()  # for masked residues
    weights: dict[str, float] = field(
        default_factory=lambda: {"families": 3.0, "pairs": 0.5, "sites": 9.0, "unrelated": 2.0}
    )

    def describe(self) -> dict[str, int]:
        """Count what there is."""
        return {
            "families": len(self.families),
            "aligned rows": sum(len(family.rows) for family in self.families),
            "aligned pairs": len(self.pairs),
            "site proteins": len(self.proteins),
            "site families": len({protein.family for protein in self.proteins}),
            "sequences": len(self.sequences),
        }


def read_sources(
    alignments: Iterable[AnyPath] = (),
    sites: Iterable[AnyPath] = (),
    sequences: Iterable[AnyPath] = (),
    *,
    exclude_uids: Iterable[str] = (),
    exclude_families: Iterable[str] = (),
    bad: list[InvalidRecord] | None = None,
) -> EncoderSources:
    """Read what to learn from, and leave out what is like the proteins to be judged on.

    Args:
        alignments: Aligned FASTA (Pfam), or JSON with pairs, or folders of them.
        sites: Tables of sites, see `read_site_table`.
        sequences: Files of sequences, see `read_sequences`.
        exclude_uids: Proteins of the tables not to learn from.
        exclude_families: Families of the tables, or names of alignments, not to learn from.
        bad: List that invalid records are added to; else they are logged.
    """
    wrong: list[InvalidRecord] = [] if bad is None else bad
    out = set(exclude_families)
    families, pairs = read_alignments(alignments, wrong)
    proteins = [protein for table in sites for protein in _read_sites(table, wrong)]
    plain = [
        protein.sequence or ""
        for file in sequences
        for protein in read_sequences(file, on_invalid=wrong.append)
    ]
    if bad is None:
        for record in wrong:
            logger.warning("%s left out: %s", record.id, record.reason)
    sources = EncoderSources(
        [family for family in families if family.name not in out],
        [pair for pair in pairs if pair.name not in out],
        proteins,
        plain,
    )
    return exclude(sources, exclude_uids, out)


def exclude(
    sources: EncoderSources, uids: Iterable[str] = (), families: Iterable[str] = ()
) -> EncoderSources:
    """Leave out proteins, whole families, and whatever is `LIKE` them.

    Aligned families of domains stay: that a domain occurs in an excluded protein says nothing of
    its site.
    """
    unwanted, groups = set(uids), set(families)
    if missing := sorted(unwanted - {protein.uid for protein in sources.proteins}):
        raise ValueError(
            f"{len(missing)} proteins to exclude are in no table, the first {missing[0]!r}; give "
            "the tables that they are from, so that what is like them can be left out as well."
        )
    # A protein of an excluded family may stand in the table under another family as well.
    unwanted |= {protein.uid for protein in sources.proteins if protein.family in groups}
    judged = sorted({p.sequence for p in sources.proteins if p.uid in unwanted})
    if not judged:
        return sources
    texts = sorted({p.sequence for p in sources.proteins} | set(sources.sequences))
    near, method = nearest_identity(texts, judged)
    like = {text for text, identity in zip(texts, near, strict=True) if identity >= LIKE}
    kept = [p for p in sources.proteins if p.uid not in unwanted and p.sequence not in like]
    plain = [sequence for sequence in sources.sequences if sequence not in like]
    logger.info(
        "%d proteins excluded, with them %d others and %d sequences alike (by %s)",
        len(unwanted),
        len(sources.proteins) - len(kept) - len(unwanted),
        len(sources.sequences) - len(plain),
        method,
    )
    return EncoderSources(sources.families, sources.pairs, kept, plain, sources.weights)


def read_names(path: AnyPath) -> list[str]:
    """Read names, one a line; `#` begins a remark."""
    lines = (line.split("#")[0].strip() for line in Path(path).read_text().splitlines())
    return [line for line in lines if line]


def _read_sites(table: AnyPath, bad: list[InvalidRecord]) -> list[SiteProtein]:
    proteins, wrong = read_site_table(table)
    name = str(table) if isinstance(table, str | PathLike) else "table"
    bad += [InvalidRecord(f"{name}, row {row.row} ({row.uid})", row.reason) for row in wrong]
    return proteins


MASKED = 1 + RESIDUE_LETTERS.index("X")
"""Token of a residue that is to be guessed: any residue."""

# Batches of one bucket are drawn together and sorted by length.
BUCKET = 16
# The partner in a family of sites is the least alike of so many.
PARTNERS = 3
# The partner of an unrelated protein is one of so many next to it in length.
NEAREST = 16


@dataclass
class EncoderExample:
    """Hold a pair to learn from."""

    query: str
    candidate: str
    pairs: Pairs | None  # corresponding residues, `(pairs, 2)`; None until they are asked for
    related: bool  # whether anything of the two corresponds
    query_sites: NDArray[np.int64]  # 0/1 a residue, all 0 where nothing is known
    candidate_sites: NDArray[np.int64]


class PairSampler:
    """Draw pairs of proteins from `EncoderSources`."""

    def __init__(self, sources: EncoderSources) -> None:
        self.sources = sources
        groups: dict[str, list[SiteProtein]] = {}
        for protein in sorted(sources.proteins, key=lambda p: (p.uid, p.family)):
            groups.setdefault(protein.family, []).append(protein)
        self.groups = [group for group in groups.values() if len(group) > 1]
        self.by_length = sorted(
            (p for group in groups.values() for p in group), key=lambda p: len(p.sequence)
        )
        self.lengths = [len(protein.sequence) for protein in self.by_length]
        self.family_odds = _odds([len(family.rows) for family in sources.families])
        self.group_odds = _odds([len(group) for group in self.groups])
        there = {
            "families": bool(sources.families),
            "pairs": bool(sources.pairs),
            "sites": bool(self.groups),
            "unrelated": len(groups) > 1 or len(sources.families) > 1,
        }
        weights = [sources.weights.get(name, 0.0) * there[name] for name in SOURCES]
        if sum(weights) <= 0:
            raise ValueError(
                "there is nothing to draw pairs from; give alignments of families or of pairs, or "
                "proteins with sites of which some share a family, and a weight above 0 for them."
            )
        self.odds = np.array(weights) / sum(weights)

    def draw(self, rng: np.random.Generator) -> EncoderExample:
        """Draw one pair; the same state of the generator gives the same pair."""
        source = SOURCES[int(rng.choice(len(SOURCES), p=self.odds))]
        if source == "families":
            family = self.sources.families[
                int(rng.choice(len(self.family_odds), p=self.family_odds))
            ]
            first, second = rng.choice(len(family.rows), size=2, replace=len(family.rows) < 2)
            return _aligned(family.pair(int(first), int(second)))
        if source == "pairs":
            return _aligned(self.sources.pairs[int(rng.integers(len(self.sources.pairs)))])
        if source == "sites":
            return self._draw_relatives(rng)
        return self._draw_unrelated(rng)

    def _draw_relatives(self, rng: np.random.Generator) -> EncoderExample:
        group = self.groups[int(rng.choice(len(self.groups), p=self.group_odds))]
        places = rng.permutation(len(group))[: 1 + PARTNERS]
        query, *others = (group[int(place)] for place in places)
        partner = min(others, key=lambda other: shared_words(query.sequence, other.sequence))
        sites = (np.array(query.site_labels), np.array(partner.site_labels))
        return EncoderExample(query.sequence, partner.sequence, None, True, *sites)

    def _draw_unrelated(self, rng: np.random.Generator) -> EncoderExample:
        families = self.sources.families
        if len(families) > 1 and (not self.groups or rng.random() < 0.25):
            first, second = rng.choice(len(families), size=2, replace=False)
            rows = [families[int(f)].rows for f in (first, second)]
            query, candidate = (
                row[int(rng.integers(len(row)))].replace("-", "").replace(".", "").upper()
                for row in rows
            )
            return _unrelated(query, candidate)
        protein = self.by_length[int(rng.integers(len(self.by_length)))]
        place = bisect_left(self.lengths, len(protein.sequence))
        first = max(0, min(place - NEAREST // 2, len(self.by_length) - NEAREST))
        near = [p for p in self.by_length[first : first + NEAREST] if p.family != protein.family]
        other = near[int(rng.integers(len(near)))] if near else self._of_other_family(protein, rng)
        return _unrelated(protein.sequence, other.sequence)

    def _of_other_family(self, protein: SiteProtein, rng: np.random.Generator) -> SiteProtein:
        others = [p for p in self.by_length if p.family != protein.family]
        return others[int(rng.integers(len(others)))]


class EncoderBatches(Dataset):
    """Batches for training an encoder, of proteins cropped to `max_residues`; item k is batch k."""

    def __init__(
        self,
        sources: EncoderSources,
        steps: int,
        pairs_per_batch: int = 16,
        max_residues: int = 384,
        masked_per_batch: int = 0,
        seed: int = 0,
    ) -> None:
        self.sampler, self.sequences = PairSampler(sources), sources.sequences
        self.steps, self.pairs_per_batch, self.seed = steps, pairs_per_batch, seed
        self.max_residues, self.masked_per_batch = max_residues, masked_per_batch
        if masked_per_batch and not sources.sequences:
            raise ValueError("masked residues need sequences, and none are given.")
        self._bucket = lru_cache(maxsize=2)(self._draw_bucket)

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Return batch `step`, see `collate`; with masked residues also `masked_*`."""
        if not 0 <= step < self.steps:
            raise IndexError(f"batch {step} of {self.steps}")
        rng = np.random.default_rng([self.seed, 1, step])
        examples = self._bucket(step // BUCKET)[step % BUCKET]
        batch = collate([crop(settle(example), self.max_residues, rng) for example in examples])
        return batch | (self._masked(rng) if self.masked_per_batch else {})

    def _draw_bucket(self, number: int) -> list[list[EncoderExample]]:
        rng = np.random.default_rng([self.seed, 0, number])
        size = self.pairs_per_batch
        drawn = [self.sampler.draw(rng) for _ in range(BUCKET * size)]
        limit = self.max_residues
        drawn.sort(key=lambda e: min(len(e.query), limit) + min(len(e.candidate), limit))
        return [drawn[i * size : (i + 1) * size] for i in rng.permutation(BUCKET)]

    def _masked(self, rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(self.sequences), size=self.masked_per_batch)
        whole = [tokens(self.sequences[int(i)]) for i in chosen]
        starts = [int(rng.integers(max(1, len(t) - self.max_residues + 1))) for t in whole]
        cut = [t[s : s + self.max_residues] for t, s in zip(whole, starts, strict=True)]
        masked = [mask_residues(t, rng) for t in cut]
        given, wanted = [g for g, _ in masked], [w for _, w in masked]
        return {
            "masked_input_ids": pad_sequence(given, batch_first=True),
            "masked_labels": pad_sequence(wanted, batch_first=True, padding_value=-100),
        }


def tokens(sequence: str) -> Tensor:
    """Return the token ids of a sequence as the tokenizer of the encoder gives them."""
    letters = np.frombuffer(sequence.upper().encode("ascii"), dtype=np.uint8)
    return torch.from_numpy(letters.astype(np.int64) - ord("A") + 1)


def mask_residues(
    ids: Tensor, rng: np.random.Generator, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Hide a share of the residues: most become X, a few another residue, a few stay.

    Returned are the tokens to read and the tokens to guess, -100 where there is nothing to guess.
    """
    hidden = rng.random(len(ids)) < share
    how = rng.random(len(ids))
    standard = np.array([1 + RESIDUE_LETTERS.index(letter) for letter in STANDARD_RESIDUES])
    original = ids.numpy()
    given = np.where(hidden & (how < 0.8), MASKED, original)
    swapped = standard[rng.integers(len(standard), size=len(ids))]
    given = np.where(hidden & (how > 0.9), swapped, given)
    wanted = np.where(hidden & np.isin(original, standard), original, -100)
    return torch.from_numpy(given), torch.from_numpy(wanted)


def settle(example: EncoderExample) -> EncoderExample:
    """Find the corresponding residues of an example that does not know them yet."""
    if example.pairs is None:
        sure = confident_pairs(example.query, example.candidate)
        sites = site_correspondences(example.query_sites.tolist(), example.candidate_sites.tolist())
        example.pairs = merge_pairs(sure, sites)
    return example


def crop(example: EncoderExample, limit: int, rng: np.random.Generator) -> EncoderExample:
    """Cut long proteins to stretches of at most `limit` residues around one corresponding pair."""
    pairs = example.pairs if example.pairs is not None else NO_PAIRS
    if max(len(example.query), len(example.candidate)) <= limit:
        return example
    anchor = pairs[int(rng.integers(len(pairs)))] if len(pairs) else None
    shift = int(rng.integers(limit))
    starts = []
    for side, sequence in enumerate((example.query, example.candidate)):
        room = max(0, len(sequence) - limit)
        place = int(anchor[side]) - shift if anchor is not None else int(rng.integers(room + 1))
        starts.append(min(max(0, place), room))
    (i, j), end = starts, np.array(starts) + limit
    kept = pairs[((pairs >= starts) & (pairs < end)).all(axis=1)] - starts
    return EncoderExample(
        example.query[i : i + limit],
        example.candidate[j : j + limit],
        kept,
        example.related,
        example.query_sites[i : i + limit],
        example.candidate_sites[j : j + limit],
    )


def collate(examples: Sequence[EncoderExample]) -> dict[str, Tensor]:
    """Pad examples to a batch.

    Returns:
        `input_ids` `(2 * batch, residues)`, the queries first; `targets` `(pairs, 3)`, example,
        query residue and candidate residue; `related` `(batch,)`; `site_labels`
        `(2 * batch, residues)`.
    """
    both = [*(e.query for e in examples), *(e.candidate for e in examples)]
    sites = [*(e.query_sites for e in examples), *(e.candidate_sites for e in examples)]
    targets = [
        np.column_stack([np.full(len(cast(Any, e.pairs)), number), cast(Any, e.pairs)])
        for number, e in enumerate(examples)
    ]
    return {
        "input_ids": pad_sequence([tokens(sequence) for sequence in both], batch_first=True),
        "targets": torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        "related": torch.tensor([e.related for e in examples]),
        "site_labels": pad_sequence([torch.from_numpy(s) for s in sites], batch_first=True),
    }


def _odds(sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return how often to draw groups: large ones more often, but not in proportion."""
    roots = np.sqrt(np.array(sizes, dtype=np.float64))
    return roots / roots.sum() if len(roots) else roots


def _aligned(alignment: ResidueAlignment) -> EncoderExample:
    nothing = [np.zeros(len(s), dtype=np.int64) for s in (alignment.query, alignment.candidate)]
    return EncoderExample(alignment.query, alignment.candidate, alignment.pairs, True, *nothing)


def _unrelated(query: str, candidate: str) -> EncoderExample:
    nothing = [np.zeros(len(s), dtype=np.int64) for s in (query, candidate)]
    return EncoderExample(query, candidate, NO_PAIRS, False, *nothing)


SMALL = 1e-6


@dataclass(frozen=True)
class ObjectiveWeights:
    """Say how much each part of the objective counts; 0 leaves it out."""

    correspondence: float = 1.0  # corresponding residues choose each other
    unrelated: float = 0.5  # residues of unrelated proteins choose none
    plan: float = 0.0  # the plan, with its support rounds, has its mass on corresponding residues
    site: float = 0.0  # residues of a site find the site of a relative (label match loss)
    masked: float = 0.0  # masked residues are guessed


class EncoderObjective(nn.Module):
    """An encoder and what it is trained for, through a parameter-free head.

    With the kernel K of a pair and the slack eps of a residue, a corresponding residue pair has
    the probabilities `K_ij / (sum_j K_ij + eps^2)` and `K_ij / (sum_i K_ij + eps^2)`: the choice
    of one residue among those of the other protein and staying alone, at the price at which a
    plan lets both stay alone. The loss is the mean of their negative logarithms; for unrelated
    proteins it is that of staying alone. The head, without parameters, says kernel and plan.
    """

    def __init__(
        self, encoder: ResidueEncoderModel, head: PlasmaModel, weights: ObjectiveWeights
    ) -> None:
        super().__init__()
        self.encoder, self.weights = encoder, weights
        self.config = head.config
        self.guess = nn.Linear(encoder.config.width, 27) if weights.masked else None

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        related: Tensor,
        site_labels: Tensor,
        masked_input_ids: Tensor | None = None,
        masked_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the parts of the loss, and their weighted sum as `loss`; see `collate`."""
        mask = input_ids > 0
        embeddings = self.encoder(input_ids, mask).last_hidden_state
        # Costs of some hundreds, exponentiated, do not survive half precision.
        with torch.autocast(input_ids.device.type, enabled=False):
            rows = F.layer_norm(embeddings.float(), embeddings.shape[-1:])
            rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
            (query, candidate), masks = rows.chunk(2), mask.chunk(2)
            kernel = log_kernel(
                hinge_cost(query, candidate), self.config.kernel_scale, masks[0], masks[1]
            )
            parts = self._choices(kernel, masks, targets, related)
            if self.weights.plan or self.weights.site:
                parts |= self._plans(kernel, masks, targets, related, site_labels.chunk(2))
        if self.guess is not None and masked_input_ids is not None:
            parts["masked"] = self._guesses(masked_input_ids, masked_labels)
        total = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()])
        return {"loss": total.sum()} | parts

    def _choices(
        self, kernel: Tensor, masks: tuple[Tensor, ...], targets: Tensor, related: Tensor
    ) -> dict[str, Tensor]:
        alone = kernel.new_tensor(2 * math.log(self.config.eps))
        row_mass, column_mass = kernel.logsumexp(-1), kernel.logsumexp(-2)
        pair, i, j = targets.unbind(-1)
        wanted = kernel[pair, i, j]
        losses = (
            torch.logaddexp(row_mass, alone)[pair, i] + torch.logaddexp(column_mass, alone)[pair, j]
        ) / 2 - wanted
        chosen = [
            _mean(F.softplus(mass - alone), side)
            for mass, side in zip((row_mass, column_mass), masks, strict=True)
        ]
        return {
            "correspondence": _mean_of_pairs(losses, pair, len(kernel)),
            "unrelated": _mean((chosen[0] + chosen[1]) / 2, ~related),
        }

    def _plans(
        self,
        kernel: Tensor,
        masks: tuple[Tensor, ...],
        targets: Tensor,
        related: Tensor,
        site_labels: tuple[Tensor, ...],
    ) -> dict[str, Tensor]:
        _, plan = make_plans(kernel, masks[1], self.config)
        pair, i, j = targets.unbind(-1)
        # A plan that is not converged has entries above 1.
        losses = -plan[pair, i, j].clamp(SMALL, 1).log()
        query_sites, candidate_sites = site_labels
        forth = label_match_losses(plan, query_sites, candidate_sites)
        back = label_match_losses(plan.transpose(1, 2), candidate_sites, query_sites)
        labelled = related & query_sites.any(-1) & candidate_sites.any(-1)
        return {
            "plan": _mean_of_pairs(losses, pair, len(kernel)),
            "site": _mean((forth + back) / 2, labelled),
        }

    def _guesses(self, input_ids: Tensor, labels: Tensor | None) -> Tensor:
        mask = input_ids > 0
        windows = self.encoder.substitution(input_ids, mask).last_hidden_state
        assert labels is not None and self.guess is not None
        logits = self.guess(self.encoder.network(windows, mask)).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Average what counts, along the last axis; 0 where nothing does."""
    weight = counted.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _mean_of_pairs(losses: Tensor, pair: Tensor, count: int) -> Tensor:
    """Average over the residues of each pair, then over the pairs that have any."""
    sums = losses.new_zeros(count).index_add(0, pair, losses)
    sizes = losses.new_zeros(count).index_add(0, pair, torch.ones_like(losses))
    return _mean(sums / sizes.clamp(min=1), sizes > 0)


HEAD: dict[str, Any] = {
    **{"head": "hinge", "kernel_scale": 0.2, "support_rounds": 3},
    **{"support_window": 25, "support_gap": 3, "support_weight": 16.0},
}
"""The parameter-free head that the encoder is trained for. The default checkpoint has fewer support
rounds and a last one for order, under which encoders were not measured."""


@dataclass
class EncoderTraining:
    """Settings of a training run; the same settings and data give the same weights."""

    steps: int = 2000
    pairs_per_batch: int = 8
    max_residues: int = 200  # longer proteins are cropped to so many
    masked_per_batch: int = 8  # sequences with masked residues, where they have a weight
    learning_rate: float = 1.5e-3  # at its highest
    warmup: float = 0.05  # share of the steps in which it rises; it falls along a cosine after
    weight_decay: float = 0.01
    save_steps: int = 200
    weights: ObjectiveWeights = field(default_factory=ObjectiveWeights)
    seed: int = 0
    device: str | None = None  # "cpu" to stay off a GPU, None for one if it is there
    head: dict[str, Any] = field(default_factory=lambda: dict(HEAD))
    kept: float = 0.4  # share of what was learnt that is kept, see `keep_share`


def train_residue_encoder(
    sources: EncoderSources,
    folder: str | Path,
    settings: EncoderTraining | None = None,
    config: ResidueEncoderConfig | None = None,
    *,
    start: ResidueEncoderModel | None = None,
    resume: bool = False,
    **options: Any,
) -> ResidueEncoderModel:
    """Train a residue encoder and save it, with its tokenizer, to a folder.

    Args:
        config: Of the encoder, if it is a new one.
        start: An encoder to go on from, instead of a new one.
        resume: Go on at the last checkpoint, if there is one.
        **options: Further fields of `TrainingArguments`.
    """
    settings, folder = settings or EncoderTraining(), Path(folder)
    checkpoints = folder / "checkpoints"
    last = checkpoint_to_resume(checkpoints, lasting_settings(settings), resume)
    set_seed(settings.seed)
    encoder = start or ResidueEncoderModel(config or ResidueEncoderConfig())
    head = PlasmaModel(PlasmaConfig(embedding_size=encoder.config.hidden_size, **settings.head))
    batches = EncoderBatches(
        sources,
        settings.steps,
        settings.pairs_per_batch,
        settings.max_residues,
        settings.masked_per_batch if settings.weights.masked else 0,
        settings.seed,
    )
    objective = EncoderObjective(encoder.train(), head, settings.weights)
    trainer = BatchTrainer(objective, checkpoints, batches, settings, options)
    trainer.train(resume_from_checkpoint=last)
    keep_share(encoder, settings.kept)
    if trainer.is_world_process_zero():
        encoder.eval().save_pretrained(folder)
        substitution_tokenizer().save_pretrained(folder)
    return encoder.eval()


@torch.no_grad()
def keep_share(encoder: ResidueEncoderModel, share: float) -> None:
    """Go only part of the way from the substitution windows to a trained encoder.

    The windows serve proteins unlike any that were learnt from, the trained encoder those like
    them; between the two lie embeddings better than either (interpolation of weights, as Wortsman
    et al. 2022 do it for classifiers).
    """
    encoder.gain.copy_(1 + share * (encoder.gain - 1))
    encoder.residual.weight.mul_(share)
    encoder.residual.bias.mul_(share)


HELP = """
Train a residue encoder: a small network that corrects the substitution windows.

It learns from pairs of proteins whose residues correspond: families aligned by Pfam, alignments of
pairs, and proteins with sites, where the confident columns of a BLOSUM62 alignment and the sites
themselves say what corresponds. Proteins of different families teach it what does not. The folder
then serves as a backbone, in Python by load_backbone and here by --backbone.

A run that was stopped goes on with --resume, and ends in the same weights.

\b
Examples:
  python -m reproduce.encoder --alignments pfam/ --sites active_site.csv \\
      --output encoder --steps 2000
  python -m reproduce.encoder --alignments pfam/ --sites active_site.csv \\
      --exclude-uids test.txt --output encoder --resume
  python -m reproduce.encoder --alignments pfam/ --sites active_site.csv \\
      --sequences pretrain.fasta.gz --masked-weight 0.3 --output encoder
"""


def command(
    output: Annotated[Path, typer.Option("--output", "--out", "-o", help="Folder of the encoder.")],
    alignments: Annotated[
        list[Path] | None,
        typer.Option(
            "--alignments", "--pfam", help="Aligned FASTA, JSON of pairs, or a folder of them."
        ),
    ] = None,
    sites: Annotated[
        list[Path] | None, typer.Option(help="Table of proteins with sites; can be repeated.")
    ] = None,
    sequences: Annotated[
        list[Path] | None, typer.Option(help="Sequences for masked residues; can be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to learn from.")] = 2000,
    pairs_per_batch: Annotated[int, typer.Option(min=1, help="Pairs in a batch.")] = 8,
    max_residues: Annotated[int, typer.Option(min=20, help="Crop longer proteins.")] = 200,
    width: Annotated[int, typer.Option(min=2, help="Channels of the network.")] = 128,
    dilations: Annotated[
        str, typer.Option(help="Dilation of each block of the network, by commas.")
    ] = "1,2,4,8",
    learning_rate: Annotated[float, typer.Option(min=0, help="At its highest.")] = 1.5e-3,
    correspondence_weight: Annotated[
        float, typer.Option(min=0, help="Corresponding residues choose each other.")
    ] = 1.0,
    unrelated_weight: Annotated[
        float, typer.Option(min=0, help="Residues of unrelated proteins choose none.")
    ] = 0.5,
    plan_weight: Annotated[
        float, typer.Option(min=0, help="The plan has its mass on corresponding residues.")
    ] = 0.0,
    site_weight: Annotated[
        float, typer.Option(min=0, help="Residues of a site find the site of a relative.")
    ] = 0.0,
    masked_weight: Annotated[
        float, typer.Option(min=0, help="Masked residues of --sequences are guessed.")
    ] = 0.0,
    kept: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share kept of what was learnt; 0 leaves the windows."),
    ] = 0.4,
    exclude_uids: Annotated[
        Path | None,
        typer.Option(help="File of proteins not to learn from, nor from those like them."),
    ] = None,
    exclude_families: Annotated[
        Path | None, typer.Option(help="File of families not to learn from, likewise.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on at the last checkpoint, if there is one.")
    ] = False,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of first weights and draws.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu to stay off a GPU; a GPU if there is one.")
    ] = None,
) -> None:
    """Train a residue encoder; see `HELP`."""
    with one_line_errors() as skipped:
        if not alignments and not sites:
            fail("there is nothing to learn from; give --alignments, --sites or both")
        if masked_weight and not sequences:
            fail("--masked-weight needs --sequences")
        if device not in (None, "cpu", "cuda"):
            fail(f"--device {device}; give cpu or cuda, or nothing for a GPU if there is one")

        blocks = _numbers(dilations)
        bad: list[InvalidRecord] = []
        sources = read_sources(
            alignments or (),
            sites or (),
            sequences or (),
            exclude_uids=read_names(exclude_uids) if exclude_uids else (),
            exclude_families=read_names(exclude_families) if exclude_families else (),
            bad=bad,
        )
        skipped.report_records(bad)
        counts = sources.describe().items()
        report(", ".join(f"{count} {what}" for what, count in counts if count))
        weights = ObjectiveWeights(
            correspondence=correspondence_weight,
            unrelated=unrelated_weight,
            plan=plan_weight,
            site=site_weight,
            masked=masked_weight,
        )
        settings = EncoderTraining(
            steps=steps,
            pairs_per_batch=pairs_per_batch,
            max_residues=max_residues,
            learning_rate=learning_rate,
            save_steps=save_steps,
            weights=weights,
            seed=seed,
            device=device,
            kept=kept,
        )
        hf_logging.set_verbosity_error()
        config = ResidueEncoderConfig(width=width, dilations=blocks)
        encoder = train_residue_encoder(sources, output, settings, config, resume=resume)
        record = {"settings": asdict(settings), "data": sources.describe()}
        (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        report(f"{encoder.num_parameters()} parameters, {steps} steps; wrote {output}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        fail(f"--dilations {text}; give whole numbers by commas, for example 1,2,4,8")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command(help=HELP)(command)

if __name__ == "__main__":
    app(prog_name="python -m reproduce.encoder")
