"""What ProteinMPNN sees of a structure: residues, their neighbours and the shape between them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .structure import Structure

ALPHA = 1
"""Where CA stands among N, CA, C, O."""

NEAR_IN_CHAIN = 32
"""Residues of one chain farther apart than this count as this far apart."""

POSITIONS = 2 * NEAR_IN_CHAIN + 2
"""Offsets from -32 to 32, and one more for two chains."""

BASES = 16
"""A distance is described by its nearness to so many centres."""

# N, CA, C, O and the virtual CB are 0-4. First the atom of the residue, then that of its neighbour.
ATOM_PAIRS = (
    *((1, 1), (0, 0), (2, 2), (3, 3), (4, 4), (1, 0), (1, 2), (1, 3), (1, 4), (0, 2), (0, 3)),
    *((0, 4), (4, 2), (4, 3), (3, 2), (0, 1), (2, 1), (3, 1), (4, 1), (2, 0), (3, 0), (4, 0)),
    *((2, 4), (3, 4), (2, 3)),
)

# CA of the residue before, the residue itself and the one after are 0-2.
ALPHA_PAIRS = ((1, 1), (0, 0), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))

SHAPE_FEATURES = {"backbone": len(ATOM_PAIRS) * BASES, "ca": len(ALPHA_PAIRS) * BASES + 7}
"""Numbers that describe the shape of an edge, by the atoms that are read."""

LONGEST_GAP = 1000
"""A jump in author numbers beyond any gap; farther than `NEAR_IN_CHAIN` nothing changes."""


def structure_batch(structures: Sequence[Structure], atoms: str = "backbone") -> dict[str, Tensor]:
    """Pad structures to the arguments of `ProteinMPNNEncoder.forward`.

    Chains are numbered in the order in which the structure has them (the original sorts them by
    name; what the encoder says of a residue does not depend on it). Residues that the author
    numbers skip are counted and get no row.

    Args:
        structures: At least one.
        atoms: What a residue must have to be there: "backbone" is N, CA, C and O, "ca" is CA.

    Returns:
        `backbone`, `(batch, residues, 4, 3)` in angstrom, 0 where an atom is missing;
        `residue_mask`, `(batch, residues)`; `residue_index`, 100 a chain plus the position among
        all residues, -100 in padding; `chain_index`, 1, 2 and so on, 0 in padding.

    Raises:
        ValueError: If there are no structures.
    """
    if not structures:
        raise ValueError("there are no structures; give a list of at least one.")
    places = [_places(structure) for structure in structures]
    atoms_or_zeros = [each.backbone.nan_to_num(0.0, 0.0, 0.0) for each in structures]
    columns = {
        "backbone": (atoms_or_zeros, 0),
        "residue_mask": ([atoms_present(each.backbone, atoms) for each in structures], 0),
        "residue_index": ([torch.tensor(index, dtype=torch.long) for index, _ in places], -100),
        "chain_index": ([torch.tensor(chain, dtype=torch.long) for _, chain in places], 0),
    }
    return {
        name: pad_sequence(rows, batch_first=True, padding_value=padding)
        for name, (rows, padding) in columns.items()
    }


def atoms_present(backbone: Tensor, atoms: str) -> Tensor:
    """Tell which residues have the atoms that are read.

    Args:
        backbone: `(..., residues, 4, 3)` in angstrom, NaN where an atom is missing.
        atoms: "backbone" or "ca".

    Returns:
        `(..., residues)`, bool.
    """
    read = backbone[..., ALPHA, :] if atoms == "ca" else backbone.flatten(-2)
    return read.isfinite().all(-1)


def _places(structure: Structure) -> tuple[list[int], list[int]]:
    """Return residue index and chain index of each residue."""
    chains = {name: number for number, name in enumerate(dict.fromkeys(structure.chain_ids))}
    members: list[list[int]] = [[] for _ in chains]
    for row, name in enumerate(structure.chain_ids):
        members[chains[name]].append(row)
    index, start = [0] * len(structure.chain_ids), 0
    for chain, rows in enumerate(members):
        positions = positions_in_chain([structure.author_numbers[row] for row in rows])
        for row, position in zip(rows, positions, strict=True):
            index[row] = 100 * chain + start + position
        start += positions[-1] + 1
    return index, [chains[name] + 1 for name in structure.chain_ids]


def positions_in_chain(author_numbers: Sequence[str]) -> list[int]:
    """Count the residues of a chain, those that the author numbers skip too.

    Args:
        author_numbers: Number and insertion code, "52" or "52A". Where they do not increase, the
            count goes on by one.

    Returns:
        One position a residue, from 0 and increasing.

    Example:
        >>> positions_in_chain(["-1", "0", "4", "4A", "2", "7"])
        [0, 1, 5, 6, 7, 12]
    """
    numbers = [re.match(r"[+-]?\d{1,9}", name.strip()) for name in author_numbers]
    positions: list[int] = []
    before = None
    for match in numbers:
        number = int(match.group()) if match else None
        step = 1 if before is None or number is None else number - before
        positions.append(positions[-1] + min(max(step, 1), LONGEST_GAP) if positions else 0)
        before = number
    return positions


def at_neighbors(values: Tensor, neighbors: Tensor) -> Tensor:
    """Look up what the neighbours of each residue hold.

    Args:
        values: `(batch, residues, ...)`.
        neighbors: `(batch, residues, neighbors)`, rows of `values`.

    Returns:
        `(batch, residues, neighbors, ...)`.
    """
    batch, residues = values.shape[:2]
    first = residues * torch.arange(batch, device=neighbors.device)
    rows = (neighbors + first[:, None, None]).flatten()
    return values.flatten(0, 1).index_select(0, rows).view(*neighbors.shape, *values.shape[2:])


@torch.no_grad()
def nearest(alpha: Tensor, mask: Tensor, k_neighbors: int, mask_fill: str) -> Tensor:
    """Return the neighbours of each residue, nearest first, itself among them.

    Args:
        alpha: CA atoms, `(batch, residues, 3)` in angstrom, finite throughout.
        mask: True at residues, `(batch, residues)`.
        k_neighbors: Neighbours at most.
        mask_fill: "inf" or "rowmax", see `ProteinMPNNConfig`.

    Returns:
        `(batch, residues, neighbors)`.
    """
    # One axis at a time: nothing larger than (batch, residues, residues) is ever held.
    squared = torch.zeros(*mask.shape, mask.shape[1], dtype=alpha.dtype, device=alpha.device)
    for axis in alpha.unbind(-1):
        squared += (axis[:, :, None] - axis[:, None, :]).square_()
    distance = squared.add_(1e-6).sqrt_()
    outside = ~(mask[:, :, None] & mask[:, None, :])
    if mask_fill == "rowmax":
        distance = distance.masked_fill_(outside, 0.0)
        distance = torch.where(outside, distance.amax(-1, keepdim=True), distance)
    else:
        distance = distance.masked_fill_(outside, torch.inf)
    return distance.topk(min(k_neighbors, mask.shape[1]), largest=False).indices


def offsets_in_chain(residue_index: Tensor, chain_index: Tensor, neighbors: Tensor) -> Tensor:
    """Number the offset along the chain between residue and neighbour.

    Args:
        residue_index: `(batch, residues)`.
        chain_index: `(batch, residues)`.
        neighbors: `(batch, residues, neighbors)`.

    Returns:
        `(batch, residues, neighbors)`, 0 to 64, and 65 between two chains.
    """
    offset = residue_index[:, :, None] - at_neighbors(residue_index, neighbors)
    offset = (offset + NEAR_IN_CHAIN).clamp(0, 2 * NEAR_IN_CHAIN)
    same = chain_index[:, :, None] == at_neighbors(chain_index, neighbors)
    return offset.masked_fill(~same, POSITIONS - 1)


def backbone_shape(backbone: Tensor, neighbors: Tensor) -> Tensor:
    """Describe the shape between residue and neighbour by the distances of their atoms.

    Args:
        backbone: N, CA, C, O, `(batch, residues, 4, 3)` in angstrom, finite throughout.
        neighbors: `(batch, residues, neighbors)`.

    Returns:
        `(batch, residues, neighbors, 400)`.
    """
    nitrogen, alpha, carbon, _ = backbone.unbind(-2)
    b, c = alpha - nitrogen, carbon - alpha
    a = torch.linalg.cross(b, c)
    beta = -0.58273431 * a + 0.56802827 * b - 0.54067466 * c + alpha
    atoms = torch.cat([backbone, beta.unsqueeze(-2)], dim=-2)
    return _bases(_distances(atoms, neighbors, ATOM_PAIRS)).flatten(-2)


def alpha_shape(
    alpha: Tensor, mask: Tensor, running: Tensor, neighbors: Tensor, mask_fill: str
) -> Tensor:
    """Describe the shape between residue and neighbour by their CA atoms and those next to them.

    The original puts every CA that is not there, before the first residue for one, at the origin,
    so that it matters where a protein lies. With "inf" they all stand together infinitely far off;
    no protein with 30 angstrom between it and the origin notices the difference.

    Args:
        alpha: `(batch, residues, 3)` in angstrom, finite throughout.
        mask: True at residues, `(batch, residues)`.
        running: Position of a residue with those counted that have no row, `(batch, residues)`.
        neighbors: `(batch, residues, neighbors)`.
        mask_fill: "inf" or "rowmax", see `ProteinMPNNConfig`.

    Returns:
        `(batch, residues, neighbors, 151)`: distances, unit direction, quaternion.
    """
    follows = mask[:, 1:] & mask[:, :-1] & (running.diff(dim=1) == 1)
    before, after = F.pad(follows, (1, 0)), F.pad(follows, (0, 1))
    there = torch.stack([before, mask, after], dim=-1)
    atoms = torch.stack([alpha.roll(1, 1), alpha, alpha.roll(-1, 1)], dim=-2)
    atoms = atoms.masked_fill(~there.unsqueeze(-1), 0.0)
    bases = _bases(_distances(atoms, neighbors, ALPHA_PAIRS))
    if mask_fill == "inf":
        first, second = torch.tensor(ALPHA_PAIRS, device=alpha.device).unbind(-1)
        alike = there[:, :, None, first] == at_neighbors(there, neighbors)[..., second]
        bases = bases * alike.unsqueeze(-1)
    frames = _frames(alpha, mask, follows)
    towards = at_neighbors(alpha, neighbors) - alpha.unsqueeze(2)
    direction = _unit((frames.unsqueeze(2) @ towards.unsqueeze(-1)).squeeze(-1))
    # As published, with the axes as rows: this product depends on how the protein is turned, the
    # one with the transpose on the other side would not.
    turn = frames.transpose(-1, -2).unsqueeze(2) @ at_neighbors(frames, neighbors)
    return torch.cat([bases.flatten(-2), direction, _quaternions(turn)], dim=-1)


def _distances(atoms: Tensor, neighbors: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return distances, `(batch, residues, neighbors, pairs)`."""
    first, second = torch.tensor(pairs, device=atoms.device).unbind(-1)
    apart = atoms[:, :, None, first] - at_neighbors(atoms, neighbors)[..., second, :]
    return (apart.square().sum(-1) + 1e-6).sqrt()


def _bases(distance: Tensor) -> Tensor:
    """Return the nearness of each distance to 2-22 angstrom, one more axis of 16."""
    centres = torch.linspace(2.0, 22.0, BASES, dtype=distance.dtype, device=distance.device)
    exponent = -(((distance.unsqueeze(-1) - centres) / (20 / BASES)) ** 2)
    # Not exp(-90): on a CPU, denormal numbers make the products after this twenty times slower.
    return F.threshold(exponent, -50.0, -torch.inf).exp()


def _unit(vector: Tensor) -> Tensor:
    return F.normalize(vector, dim=-1, eps=1e-6)


def _frames(alpha: Tensor, mask: Tensor, follows: Tensor) -> Tensor:
    """Return the axes of each residue, `(batch, residues, 3, 3)`, zeros near an end or gap."""
    step = alpha.diff(dim=1)
    length = step.norm(dim=-1)
    # As published, the last residue but one has none either.
    still_to_come = mask.flip(1).cumsum(1).flip(1)[:, :-1]
    bonded = follows & (length > 3.6) & (length < 4.0)
    step = _unit(step.masked_fill(~bonded.unsqueeze(-1), 0.0))
    came, goes = step[:, :-1], step[:, 1:]
    bisector, normal = _unit(came - goes), _unit(torch.linalg.cross(came, goes))
    frames = torch.stack([bisector, normal, torch.linalg.cross(bisector, normal)], dim=-2)
    frames = frames.masked_fill(still_to_come[:, 1:, None, None] <= 2, 0.0)
    return F.pad(frames, (0, 0, 0, 0, 1, 1))[:, : alpha.shape[1]]


def _quaternions(turn: Tensor) -> Tensor:
    """Turn rotation matrices, `(..., 3, 3)`, into unit quaternions, `(..., 4)`, real part last."""
    x, y, z = turn.diagonal(dim1=-2, dim2=-1).unbind(-1)
    squared = torch.stack([x - y - z, y - x - z, z - x - y], dim=-1) + 1
    twice = turn - turn.transpose(-1, -2)
    difference = torch.stack([twice[..., 2, 1], twice[..., 0, 2], twice[..., 1, 0]], dim=-1)
    # The root of 0 has no finite gradient.
    imaginary = difference.sign() * (squared.abs() + 1e-12).sqrt() / 2
    real = ((1 + x + y + z).relu() + 1e-12).sqrt().unsqueeze(-1) / 2
    # Roots of rounding errors are large; short of half a turn there is an exact way around them.
    imaginary = torch.where(real > 0.1, difference / (4 * real), imaginary)
    return _unit(torch.cat([imaginary, real], dim=-1))
