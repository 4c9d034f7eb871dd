"""The order in which pairs are trained on: by chance, with batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

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
