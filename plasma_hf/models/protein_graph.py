"""The graph of a protein structure: residues, joined to those near them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

FARTHEST_SEPARATION = 64
"""Residues this far apart in the sequence, or farther, count as equally far."""

CONTACT = 8.0
"""Distance of two C-alpha atoms in contact at most, Å."""

EDGE_FEATURES = FARTHEST_SEPARATION + 1 + 15 + 1 + 12


class ProteinGraph(NamedTuple):
    """Directed edges between residues, and what is known of each.

    Args:
        edge_index: `(2, edges)`; row 0 is a residue, row 1 a neighbour it has chosen.
        edge_attr: `(edges, 93)`: 65 for the separation in sequence (one-hot), 15 for the distance,
            1 for contact, 12 for position and orientation (see `protein_graph`).
        distance: Between the two C-alpha atoms, Å, `(edges,)`.
    """

    edge_index: Tensor
    edge_attr: Tensor
    distance: Tensor


def protein_graph(
    backbone_atoms: Tensor, k_neighbors: int = 20, radius: float = 30.0
) -> ProteinGraph:
    """Join each residue to its nearest neighbours and describe the edges.

    A residue has the neighbours within the radius, in the order of the sequence; where these are
    more than `k_neighbors`, the nearest of them, nearest first; where there is none, the nearest
    residue of all. The features do not change when the protein is turned or moved. The last
    twelve are, seen from the neighbour's own frame, where the residue is (Å) and how its three
    axes point.

    Args:
        backbone_atoms: N, CA and C of each residue, `(residues, 3 atoms, 3)`, Å.
        k_neighbors: Neighbours of a residue at most.
        radius: How far a neighbour is away at most, Å.

    Raises:
        ValueError: If the shape is another one or an atom has no coordinates.

    Source: ProtSSN (Tan et al., eLife 2025).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> graph = protein_graph(torch.randn(50, 3, 3) * 5, k_neighbors=10)
        >>> graph.edge_index.shape, graph.edge_attr.shape
        (torch.Size([2, 500]), torch.Size([500, 93]))
    """
    _check_atoms(backbone_atoms)
    # In double precision a turned protein keeps its order of neighbours.
    atoms = backbone_atoms.double()
    alpha = atoms[:, 1]
    edge_index = _nearest(alpha, k_neighbors, radius)
    residue, neighbour = edge_index
    separation = (residue - neighbour).abs().clamp(max=FARTHEST_SEPARATION)
    offset = alpha[residue] - alpha[neighbour]
    distance = offset.norm(dim=-1)
    widths = 1.5 ** torch.arange(15, device=atoms.device, dtype=atoms.dtype)
    axes = _axes(atoms)
    seen = torch.cat([offset.unsqueeze(1), axes[residue]], dim=1)  # (edges, 4 vectors, 3)
    edge_attr = torch.cat(
        [
            F.one_hot(separation, FARTHEST_SEPARATION + 1),
            torch.exp(-((distance / 4).square().unsqueeze(-1)) / widths),
            (distance <= CONTACT).unsqueeze(-1),
            (seen @ axes[neighbour].transpose(1, 2)).flatten(1),
        ],
        dim=-1,
    )
    return ProteinGraph(edge_index, edge_attr.float(), distance.float())


def _check_atoms(backbone_atoms: Tensor) -> None:
    if backbone_atoms.ndim != 3 or backbone_atoms.shape[1:] != (3, 3):
        raise ValueError(
            f"backbone_atoms has shape {tuple(backbone_atoms.shape)}; give (residues, 3, 3), the "
            "coordinates of N, CA and C of each residue."
        )
    complete = backbone_atoms.isfinite().all(dim=-1).all(dim=-1)
    if not complete.all():
        first = int((~complete).nonzero()[0])
        raise ValueError(
            f"residue {first} (counted from 0) has an atom without coordinates, and so have "
            f"{int((~complete).sum()) - 1} others; leave them out with "
            "with_backbone_atoms(protein)."
        )


def _nearest(alpha: Tensor, k_neighbors: int, radius: float) -> Tensor:
    """Return the edges `(2, edges)` between C-alpha atoms `(residues, 3)`."""
    residues = len(alpha)
    # By differences: the faster way, over products, loses the digits that tell neighbours apart.
    distance = torch.cdist(alpha, alpha, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(torch.inf)
    few = (distance < radius).sum(1, keepdim=True) <= k_neighbors
    nearest = distance.argsort(dim=1, stable=True)[:, : min(k_neighbors, residues - 1)]
    within = distance.gather(1, nearest) < radius
    within[:, :1] = True
    neighbours = nearest.where(within, residues)  # `residues` stands for nobody and sorts last
    neighbours = torch.where(few, neighbours.sort(dim=1).values, neighbours)
    joined = neighbours < residues
    return torch.stack([joined.nonzero()[:, 0], neighbours[joined]])


def _axes(atoms: Tensor) -> Tensor:
    """Return a frame for each residue, `(residues, 3 axes, 3)`; zeros where atoms coincide."""
    nitrogen, alpha, carbon = atoms.unbind(1)
    first = F.normalize(nitrogen - alpha, dim=-1)
    # Three atoms in a line span no plane; without the floor, rounding would choose one.
    normal = F.normalize(
        torch.linalg.cross(first, F.normalize(carbon - alpha, dim=-1)), dim=-1, eps=1e-6
    )
    return torch.stack([normal, first, torch.linalg.cross(normal, first)], dim=1)
