"""The order of pairs; it is of seed and epoch alone, so that a stopped run goes on with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BATCHES_SORTED_TOGETHER = 20


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
