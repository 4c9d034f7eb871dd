"""Batches of proteins that are the same whoever computes them, and whenever."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import torch


def sequence_hash(sequence: str) -> str:
    """Return the SHA-256 of a sequence in hexadecimal, which is its key in an embedding store.

    Example:
        >>> sequence_hash("MKVLA")[:12]
        '069d329ad0b9'
    """
    return hashlib.sha256(sequence.encode()).hexdigest()


def cut_batches(sequences: Iterable[str], residues_per_batch: int) -> list[list[str]]:
    """Cut sequences into batches of like length, the longest first.

    The last bits of an embedding depend on the batch it is computed in. These batches depend on
    the set of sequences alone, so a job that was stopped, or is shared among ranks, computes the
    same ones. Longest first: what does not fit into memory fails at once.

    Args:
        sequences: sequences in any order; a repeated one counts once.
        residues_per_batch: most residues of a batch, padding included; a longer sequence is
            alone.

    Returns:
        Batches that hold each sequence once.

    Raises:
        ValueError: if `residues_per_batch` is no positive number.

    Example:
        >>> cut_batches(["MKV", "MK", "MKVLA", "MK", "MKVLAG"], residues_per_batch=9)
        [['MKVLAG'], ['MKVLA'], ['MKV', 'MK']]
    """
    if residues_per_batch < 1:
        raise ValueError(f"residues_per_batch is {residues_per_batch}; give at least 1.")
    ordered = sorted(set(sequences), key=lambda sequence: (-len(sequence), sequence_hash(sequence)))
    return [ordered[part] for part in cut(list(map(len, ordered)), residues_per_batch)]


def cut(lengths: Sequence[int], residues_per_batch: int) -> Iterator[slice]:
    """Cut a row of lengths, sorted either way, where a padded batch would become too large."""
    start = 0
    for end in range(1, len(lengths) + 1):
        longest = max(lengths[start], lengths[end - 1])
        if end - start > 1 and longest * (end - start) > residues_per_batch:
            yield slice(start, end - 1)
            start = end - 1
    if start < len(lengths):
        yield slice(start, len(lengths))


def rank_and_world_size() -> tuple[int, int]:
    """Return which of how many processes this is, as torch.distributed or torchrun say.

    Example:
        >>> rank_and_world_size()
        (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
