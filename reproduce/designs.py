"""Sequences that the published ProteinMPNN designs for structures: its decoder, and sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plasma_hf.io.structures import StructurePair
from plasma_hf.models.modeling_protein_mpnn import (
    MESSAGE_SCALE,
    ProteinMPNNEncoder,
    structure_batch,
)
from plasma_hf.models.protein import STANDARD_RESIDUES, Structure

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"  # of the published model, in its order
RESIDUES_PER_BATCH = 60_000  # designed at a time; an H100 has memory for more


class Designer:
    """The published ProteinMPNN whole: what amino acids it holds probable at each residue.

    Args:
        pt: The checkpoint, for example `v_48_020.pt`, of the full backbone.
        device: Where it runs.
    """

    def __init__(self, pt: str | Path, device: str = "cpu") -> None:
        state = torch.load(pt, map_location=device, weights_only=True)["model_state_dict"]
        self.encoder = ProteinMPNNEncoder.from_upstream(pt).to(device)
        self.state: Mapping[str, Tensor] = state
        self.layers = len({name.split(".")[1] for name in state if name.startswith("decoder_l")})

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return residues and edges as the decoder reads them, and neighbours."""
        seen: dict[str, Any] = {}
        last = self.encoder.layers[-1]
        hook = last.register_forward_hook(lambda _, given, out: seen.update(given=given, out=out))
        self.encoder(**batch)
        hook.remove()
        _, edges, neighbors, _ = seen["given"]
        return seen["out"], last.update_edges(seen["out"], edges, neighbors), neighbors

    @torch.no_grad()
    def log_probabilities(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return those of `LETTERS` where no residue is known, `(batch, residues, 21)`."""
        encoded, edges, neighbors = self.encode(batch)
        rows = torch.arange(len(encoded), device=encoded.device)[:, None, None]
        beside, there = encoded[rows, neighbors], batch["residue_mask"][rows, neighbors]
        nodes = encoded
        for number in range(self.layers):
            nodes = self._layer(number, nodes, edges, torch.zeros_like(edges), beside, there)
        return self._linear("W_out", nodes).log_softmax(-1)

    @torch.no_grad()
    def sample(
        self, batch: Mapping[str, Tensor], copies: int, generator: torch.Generator
    ) -> Tensor:
        """Draw sequences residue by residue, each in an order of its own.

        Numbers in `LETTERS`, `(batch, copies, residues)`, the last one where there are no atoms.
        """
        encoded, edges, neighbors = self.encode(batch)
        device = encoded.device
        rows = torch.arange(len(encoded) * copies, device=device)
        source = rows // copies
        mask = batch["residue_mask"][source]
        drawn = torch.rand(mask.shape, generator=generator, device=device)
        order = (drawn + 2.0 * ~mask).argsort(1)
        # A residue not yet drawn is seen by the others as the encoder left it, without a letter.
        states = torch.stack([encoded[source]] * (self.layers + 1))
        letters = torch.zeros_like(states[0])
        chosen = torch.full(mask.shape, len(LETTERS) - 1, device=device)
        for place in order[:, : int(mask.sum(1).max())].unbind(1):
            near = rows[:, None], neighbors[source, place]
            edge, there = edges[source, place], mask[near] & mask[rows, place][:, None]
            nodes = [states[0][rows, place]]
            for number in range(self.layers):
                seen = edge, letters[near], states[number][near], there
                nodes.append(self._layer(number, nodes[-1], *seen))
            chances = self._linear("W_out", nodes[-1])[:, :-1].float().softmax(-1)
            letter = torch.multinomial(chances, 1, generator=generator)[:, 0]
            for state, node in zip(states[1:], nodes[1:], strict=True):
                state[rows, place] = node
            present = mask[rows, place]
            letters[rows, place] = self.state["W_s.weight"][letter] * present[:, None]
            chosen[rows, place] = torch.where(present, letter, chosen[rows, place])
        return chosen.unflatten(0, (-1, copies))

    def _layer(
        self, number: int, own: Tensor, edge: Tensor, letter: Tensor, beside: Tensor, there: Tensor
    ) -> Tensor:
        name = f"decoder_layers.{number}."
        seen = torch.cat([own.unsqueeze(-2).expand_as(edge), edge, letter, beside], dim=-1)
        hidden = F.gelu(self._linear(f"{name}W1", seen))
        message = self._linear(f"{name}W3", F.gelu(self._linear(f"{name}W2", hidden)))
        total = (message * there.unsqueeze(-1)).sum(-2)
        nodes = self._norm(f"{name}norm1", own + total / MESSAGE_SCALE)
        inner = F.gelu(self._linear(f"{name}dense.W_in", nodes))
        return self._norm(f"{name}norm2", nodes + self._linear(f"{name}dense.W_out", inner))

    def _linear(self, name: str, values: Tensor) -> Tensor:
        return F.linear(values, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _norm(self, name: str, values: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(values, weight.shape, weight, bias)


def design(
    pairs: Sequence[StructurePair], designer: Designer, copies: int, seed: int = 0
) -> list[StructurePair]:
    """Pair the structures with designed sequences: all pairs once, then once more, and so on.

    A residue without all atoms, or that is none of the twenty amino acids, keeps its letter.
    """
    device = designer.encoder.device
    generator = torch.Generator(device).manual_seed(seed)
    most = max(1, RESIDUES_PER_BATCH // copies)
    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number].sequence))
    found: dict[int, list[str]] = {}
    while order:
        count = 1
        while count < len(order) and len(pairs[order[count]].sequence) * (count + 1) <= most:
            count += 1
        numbers, order = order[:count], order[count:]
        some = [pairs[number].structure for number in numbers]
        batch = {name: rows.to(device) for name, rows in structure_batch(some).items()}
        drawn = designer.sample(batch, copies, generator).tolist()
        for number, structure, rows in zip(numbers, some, drawn, strict=True):
            found[number] = [_write(structure, row) for row in rows]
    return [
        replace(pair, id=f"{pair.id} design {copy}", sequence=found[number][copy])
        for copy in range(copies)
        for number, pair in enumerate(pairs)
    ]


def _write(structure: Structure, row: Sequence[int]) -> str:
    written = zip(structure.sequence, row, strict=False)
    return "".join(
        LETTERS[drawn] if drawn < len(LETTERS) - 1 and letter in STANDARD_RESIDUES else letter
        for letter, drawn in written
    )
