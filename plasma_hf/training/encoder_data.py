"""Batches that a residue encoder learns from: corresponding, unrelated and masked residues.

Batch number k is a function of the data, the seed and k alone. So training resumes at any step
without reading what came before, and any number of workers or ranks see the same batches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..data.alignments import ResidueAlignment
from ..data.pairs import SiteProtein
from ..models.residues import RESIDUE_LETTERS, STANDARD_RESIDUES
from .correspondences import NO_PAIRS, Pairs, confident_pairs, merge_pairs, shared_words
from .encoder_sources import SOURCES, EncoderSources
from .site_correspondences import site_correspondences

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
    """Hold a pair to learn from.

    Attributes:
        query: One-letter residues.
        candidate: One-letter residues.
        pairs: Corresponding residues, `(pairs, 2)`; None until they are asked for.
        related: Whether anything of the two corresponds.
        query_sites: 0/1 a residue, all 0 where nothing is known.
        candidate_sites: The same for the candidate.
    """

    query: str
    candidate: str
    pairs: Pairs | None
    related: bool
    query_sites: NDArray[np.int64]
    candidate_sites: NDArray[np.int64]


class PairSampler:
    """Draw pairs of proteins from `EncoderSources`.

    Args:
        sources: What to draw from.

    Raises:
        ValueError: If there is nothing to draw from.
    """

    def __init__(self, sources: EncoderSources) -> None:
        """Group the proteins by family and sort them by length."""
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
    """Batches for training an encoder; item k is batch k.

    Args:
        sources: What to draw from.
        steps: Number of batches.
        pairs_per_batch: Pairs in a batch.
        max_residues: Longer proteins are cropped to a stretch of so many.
        masked_per_batch: Sequences with masked residues in a batch; 0 for none.
        seed: Of the draws.
    """

    def __init__(
        self,
        sources: EncoderSources,
        steps: int,
        pairs_per_batch: int = 16,
        max_residues: int = 384,
        masked_per_batch: int = 0,
        seed: int = 0,
    ) -> None:
        """Remember the settings."""
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
    """Return the token ids of a sequence as the tokenizer of the encoder gives them, `(residues,)`.

    Example:
        >>> tokens("ABz").tolist()
        [1, 2, 26]
    """
    letters = np.frombuffer(sequence.upper().encode("ascii"), dtype=np.uint8)
    return torch.from_numpy(letters.astype(np.int64) - ord("A") + 1)


def mask_residues(
    ids: Tensor, rng: np.random.Generator, share: float = 0.15
) -> tuple[Tensor, Tensor]:
    """Hide some residues: most become X, a few another residue, a few stay.

    Args:
        ids: Token ids, `(residues,)`.
        rng: Numpy generator.
        share: How many of the residues.

    Returns:
        The tokens to read, and the tokens to guess, -100 where there is nothing to guess.
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
