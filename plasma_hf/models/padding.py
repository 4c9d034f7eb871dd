"""Proteins of different length in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def pad_residues(proteins: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack residue embeddings, padded with zeros at the end, and say where residues are.

    Args:
        proteins: Embeddings, `(residues, hidden)` each.

    Returns:
        Embeddings `(batch, residues, hidden)` and residue mask `(batch, residues)`.

    Example:
        >>> pad_residues([torch.ones(2, 8), torch.ones(1, 8)])[1]
        tensor([[ True,  True],
                [ True, False]])
    """
    embeddings = pad_sequence(list(proteins), batch_first=True)
    lengths = torch.tensor([len(protein) for protein in proteins], device=embeddings.device)
    position = torch.arange(embeddings.shape[1], device=embeddings.device)
    return embeddings, position < lengths.unsqueeze(-1)
