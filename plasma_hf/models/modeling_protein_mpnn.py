"""The encoder of ProteinMPNN: backbone atoms in, residue embeddings out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .modeling_backbone import SafeWeights, check_settings, from_package
from .protein import Structure, usual_beta

CHOICES = {"atoms": ("backbone", "ca"), "mask_fill": ("inf", "rowmax")}


@strict
class ProteinMPNNConfig(PreTrainedConfig):
    """Configure the ProteinMPNN encoder.

    Args:
        hidden_size: Width of a residue embedding and of an edge.
        num_layers: Rounds of messages.
        k_neighbors: Neighbours of a residue at most, itself among them.
        atoms: "backbone" reads N, CA, C and O; "ca" reads CA alone, and what it then says depends,
            as published, on how the protein is turned.
        mask_fill: How far off a masked residue counts. "inf" makes it nobody's neighbour. "rowmax"
            does what the original does: in a chain with fewer than `k_neighbors` residues, a
            masked one can push out the farthest neighbour, and with "ca" it lies at the origin.
        dropout: Share of numbers dropped in training.
        augment_eps: Standard deviation in angstrom of the noise on coordinates, in training only.
    """

    model_type = "protein_mpnn"

    hidden_size: int = 128
    num_layers: int = 3
    k_neighbors: int = 48
    atoms: str = "backbone"
    mask_fill: str = "inf"
    dropout: float | int = 0.1
    augment_eps: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        above_0 = ("hidden_size", "num_layers", "k_neighbors")
        check_settings(self, above_0, ("augment_eps",), CHOICES)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}; give a number from 0 to below 1.")
        super().__post_init__(**kwargs)


ALPHA = 1  # where CA stands among N, CA, C, O
NEAR_IN_CHAIN = 32  # residues of one chain farther apart than this count as this far apart
POSITIONS = 2 * NEAR_IN_CHAIN + 2  # offsets from -32 to 32, and one more for two chains
POSITION_FEATURES = 16
BASES = 16  # a distance is described by its nearness to so many centres
MESSAGE_SCALE = 30  # messages are summed and divided by this, however many there are
LONGEST_GAP = 1000  # a jump in author numbers beyond any gap; farther than 32 nothing changes

# N, CA, C, O and the virtual CB are 0-4. First the atom of the residue, then that of its neighbour.
ATOM_PAIRS = (
    *((1, 1), (0, 0), (2, 2), (3, 3), (4, 4), (1, 0), (1, 2), (1, 3), (1, 4), (0, 2), (0, 3)),
    *((0, 4), (4, 2), (4, 3), (3, 2), (0, 1), (2, 1), (3, 1), (4, 1), (2, 0), (3, 0), (4, 0)),
    *((2, 4), (3, 4), (2, 3)),
)

# CA of the residue before, the residue itself and the one after are 0-2.
ALPHA_PAIRS = ((1, 1), (0, 0), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))

# Numbers that describe the shape of an edge, by the atoms that are read.
SHAPE_FEATURES = {"backbone": len(ATOM_PAIRS) * BASES, "ca": len(ALPHA_PAIRS) * BASES + 7}


def structure_batch(structures: Sequence[Structure], atoms: str = "backbone") -> dict[str, Tensor]:
    """Pad structures, one at least, to the arguments of `ProteinMPNNEncoder.forward`, in its order.

    `backbone` is `(batch, residues, 4, 3)` in angstrom, 0 where an atom is missing; `residue_mask`,
    `residue_index` and `chain_index` are `(batch, residues)`. The index is 100 per chain plus the
    position among all residues, those counted that the author numbers skip, and -100 in padding;
    chains are 1, 2 and so on in the order of the structure, and 0 in padding.

    Args:
        structures: As they were read.
        atoms: What a residue must have: "backbone" is N, CA, C and O, "ca" is CA.
    """
    if not structures:
        raise ValueError("there are no structures; give a list of at least one.")
    places = [torch.tensor(_places(each), dtype=torch.long) for each in structures]
    rows = {
        "backbone": [each.backbone.nan_to_num(0.0, 0.0, 0.0) for each in structures],
        "residue_mask": [atoms_present(each.backbone, atoms) for each in structures],
        "residue_index": [index for index, _ in places],
        "chain_index": [chain for _, chain in places],
    }
    padding = {"residue_index": -100}
    return {name: pad_sequence(each, True, padding.get(name, 0)) for name, each in rows.items()}


def atoms_present(backbone: Tensor, atoms: str) -> Tensor:
    """Tell which residues have the atoms that are read, `(..., residues, 4, 3)` -> residues."""
    read = backbone[..., ALPHA, :] if atoms == "ca" else backbone.flatten(-2)
    return read.isfinite().all(-1)


def _places(structure: Structure) -> tuple[list[int], list[int]]:
    """Return residue index and chain index of each residue."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(structure.chain_ids):
        members.setdefault(name, []).append(row)
    index, chains, start = [0] * len(structure), [0] * len(structure), 0
    for chain, rows in enumerate(members.values()):
        positions = positions_in_chain([structure.author_numbers[row] for row in rows])
        for row, position in zip(rows, positions, strict=True):
            index[row], chains[row] = 100 * chain + start + position, chain + 1
        start += positions[-1] + 1
    return index, chains


def positions_in_chain(author_numbers: Sequence[str]) -> list[int]:
    """Count the residues of a chain, those that the author numbers skip too.

    A number is "52" or, with an insertion code, "52A"; where it is no higher than the one before,
    the count goes on by one.

    Example:
        >>> positions_in_chain(["-1", "0", "4", "4A", "2", "7"])
        [0, 1, 5, 6, 7, 12]
    """
    positions: list[int] = []
    before = None
    for name in author_numbers:
        match = re.match(r"[+-]?\d{1,9}", name.strip())
        number = int(match.group()) if match else None
        step = 1 if before is None or number is None else number - before
        positions.append(positions[-1] + min(max(step, 1), LONGEST_GAP) if positions else 0)
        before = number
    return positions


def _at_neighbors(values: Tensor, neighbors: Tensor) -> Tensor:
    """Look up `(batch, residues, ...)` at neighbours, `(batch, residues, neighbors, ...)`."""
    batch, residues = values.shape[:2]
    first = residues * torch.arange(batch, device=neighbors.device)
    rows = (neighbors + first[:, None, None]).flatten()
    return values.flatten(0, 1).index_select(0, rows).view(*neighbors.shape, *values.shape[2:])


@torch.no_grad()
def nearest(alpha: Tensor, mask: Tensor, k_neighbors: int, mask_fill: str) -> Tensor:
    """Return the neighbours of each residue by its CA, nearest first, itself among them."""
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


def backbone_shape(backbone: Tensor, neighbors: Tensor) -> Tensor:
    """Describe the shape between residue and neighbour by the distances of their atoms."""
    nitrogen, alpha, carbon, _ = backbone.unbind(-2)
    beta = usual_beta(nitrogen, alpha, carbon)
    atoms = torch.cat([backbone, beta.unsqueeze(-2)], dim=-2)
    return _bases(_distances(atoms, neighbors, ATOM_PAIRS)).flatten(-2)


def _alpha_shape(
    alpha: Tensor, mask: Tensor, running: Tensor, neighbors: Tensor, mask_fill: str
) -> Tensor:
    """Describe the same by CA atoms and those next to them: distances, direction, quaternion.

    The original puts every CA that is not there, before the first residue for one, at the origin,
    so that it matters where a protein lies. With "inf" they all stand together infinitely far off;
    no protein with 30 angstrom between it and the origin notices the difference. `running` is the
    position of a residue with those counted that have no row; `(batch, residues, neighbors, 151)`.
    """
    follows = mask[:, 1:] & mask[:, :-1] & (running.diff(dim=1) == 1)
    before, after = F.pad(follows, (1, 0)), F.pad(follows, (0, 1))
    there = torch.stack([before, mask, after], dim=-1)
    atoms = torch.stack([alpha.roll(1, 1), alpha, alpha.roll(-1, 1)], dim=-2)
    atoms = atoms.masked_fill(~there.unsqueeze(-1), 0.0)
    bases = _bases(_distances(atoms, neighbors, ALPHA_PAIRS))
    if mask_fill == "inf":
        first, second = torch.tensor(ALPHA_PAIRS, device=alpha.device).unbind(-1)
        alike = there[:, :, None, first] == _at_neighbors(there, neighbors)[..., second]
        bases = bases * alike.unsqueeze(-1)
    frames = _frames(alpha, mask, follows)
    towards = _at_neighbors(alpha, neighbors) - alpha.unsqueeze(2)
    direction = _unit((frames.unsqueeze(2) @ towards.unsqueeze(-1)).squeeze(-1))
    # As published, with the axes as rows: this product depends on how the protein is turned, the
    # one with the transpose on the other side would not.
    turn = frames.transpose(-1, -2).unsqueeze(2) @ _at_neighbors(frames, neighbors)
    return torch.cat([bases.flatten(-2), direction, _quaternions(turn)], dim=-1)


def _distances(atoms: Tensor, neighbors: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return distances, `(batch, residues, neighbors, pairs)`."""
    first, second = torch.tensor(pairs, device=atoms.device).unbind(-1)
    apart = atoms[:, :, None, first] - _at_neighbors(atoms, neighbors)[..., second, :]
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


class EdgeEmbedding(nn.Module):
    """Embed what lies between a residue and its neighbour: offset in the chain and shape."""

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__()
        width, shape = config.hidden_size, SHAPE_FEATURES[config.atoms]
        self.position = nn.Linear(POSITIONS, POSITION_FEATURES)
        self.embedding = nn.Linear(POSITION_FEATURES + shape, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)

    def forward(self, offset: Tensor, shape: Tensor) -> Tensor:
        """Embed edges, from offsets of 0 to 65 and 400 (or 151) numbers of their shape."""
        weight = self.position.weight
        table = self.position(torch.eye(POSITIONS, dtype=weight.dtype, device=weight.device))
        position = F.embedding(offset, table)
        features = torch.cat([position, shape.to(position.dtype)], dim=-1)
        return self.output(self.norm(self.embedding(features)))


class Message(nn.Module):
    """Tell a residue about its neighbour, given both and the edge between them.

    Upstream the first matrix reads residue, edge and neighbour side by side. Here it is cut into
    three: two parts then run once per residue, not once per edge.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residue = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(width, width)
        self.neighbor = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, nodes: Tensor, edges: Tensor, neighbors: Tensor) -> Tensor:
        """Return messages before their last projection, `output`, in the shape of the edges."""
        hidden = self.edge(edges) + _at_neighbors(self.neighbor(nodes), neighbors)
        hidden = F.gelu(hidden + self.residue(nodes).unsqueeze(2))
        return F.gelu(self.hidden(hidden))


class ProteinMPNNLayer(nn.Module):
    """Let residues hear from their neighbours, then tell the edges."""

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.node_message, self.edge_message = Message(width), Message(width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.node_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.edge_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, nodes: Tensor, edges: Tensor, neighbors: Tensor, mask: Tensor) -> Tensor:
        """Update the residues, `(batch, residues, hidden)`, zeros where `mask` is False."""
        heard = (_at_neighbors(mask, neighbors) & mask.unsqueeze(-1)).to(edges.dtype)
        count = heard.sum(-1, keepdim=True)
        total = (heard.unsqueeze(-2) @ self.node_message(nodes, edges, neighbors)).squeeze(-2)
        # The last projection is linear: once on the mean is as good as on every message.
        mean = self.node_message.output(total / count.clamp(min=1))
        nodes = self.node_norm(nodes + self.dropout(mean * count / MESSAGE_SCALE))
        inner = self.outer(F.gelu(self.inner(nodes)))
        nodes = self.inner_norm(nodes + self.dropout(inner))
        return nodes.masked_fill(~mask.unsqueeze(-1), 0.0)

    def update_edges(self, nodes: Tensor, edges: Tensor, neighbors: Tensor) -> Tensor:
        """Update the edges, in shapes as in `forward`."""
        message = self.edge_message.output(self.edge_message(nodes, edges, neighbors))
        return self.edge_norm(edges + self.dropout(message))


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Leave training mode and gradients for a while."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


class ProteinMPNNEncoder(SafeWeights):
    """Embed residues by the backbone around them; the sequence is not read.

    What it says of a protein does not depend on its batch, on padding, nor on how the protein is
    turned or moved; a mirror image is another protein. The published model of CA atoms alone does
    depend on turning: it compares the axes of two residues in those of the file.

    Source: ProteinMPNN (Dauparas et al., Science 2022), its encoder.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = ProteinMPNNEncoder(ProteinMPNNConfig(hidden_size=16, num_layers=2))
        >>> backbone, mask = 10 * torch.randn(1, 30, 4, 3), torch.ones(1, 30, dtype=torch.bool)
        >>> index, chain = torch.arange(30)[None], torch.ones(1, 30, dtype=torch.long)
        >>> model.eval()(backbone, mask, index, chain).last_hidden_state.shape
        torch.Size([1, 30, 16])
    """

    config_class = ProteinMPNNConfig
    config: ProteinMPNNConfig
    base_model_prefix = "protein_mpnn"
    main_input_name = "backbone"
    _no_split_modules = ["ProteinMPNNLayer"]

    def __init__(self, config: ProteinMPNNConfig) -> None:
        super().__init__(config)
        self.edges = EdgeEmbedding(config)
        self.layers = nn.ModuleList(ProteinMPNNLayer(config) for _ in range(config.num_layers))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)

    @classmethod
    def from_upstream(cls, pt: str | Path) -> ProteinMPNNEncoder:
        """Load the encoder of a published ProteinMPNN, in eval mode; its decoder is left out.

        Args:
            pt: The checkpoint, for example `v_48_020.pt`, of the full backbone or of CA atoms
                alone. It is read without running any code in it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no ProteinMPNN.
        """
        upstream = from_package("hub.upstream", "the published ProteinMPNN is read")
        fields, state = upstream.read_protein_mpnn(pt)
        model = cls(ProteinMPNNConfig(**fields))
        model.load_state_dict(upstream.protein_mpnn_state(state, model.state_dict(), pt))
        return model.eval()

    def forward(
        self,
        backbone: Tensor,
        residue_mask: Tensor,
        residue_index: Tensor,
        chain_index: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Embed a batch of structures as `(batch, residues, hidden)`, zeros where masked.

        Args:
            backbone: N, CA, C and O in angstrom, `(batch, residues, 4, 3)`.
            residue_mask: True at residues, `(batch, residues)`. Residues without finite
                coordinates are masked too.
            residue_index, chain_index: Where a residue stands, in which chain, `(batch, residues)`.
            output_hidden_states: Return the residues after each layer too.
            return_dict: Return a `BaseModelOutput` (default) or a tuple.

        Raises:
            ValueError: If the shapes do not fit.
        """
        shapes = [tuple(each.shape) for each in (residue_mask, residue_index, chain_index)]
        if {tuple(backbone.shape)} != {(*shape, 4, 3) for shape in shapes}:
            raise ValueError(
                f"backbone has shape {tuple(backbone.shape)}, residue_mask, residue_index and "
                f"chain_index have {shapes}; give (batch, residues, 4, 3) and three times (batch, "
                "residues), for example structure_batch(structures)."
            )
        weight = self.edges.embedding.weight
        mask = residue_mask.bool() & atoms_present(backbone, self.config.atoms)
        # Geometry in half precision would be off by tenths of an angstrom.
        backbone = backbone.to(torch.promote_types(weight.dtype, torch.float32))
        backbone = backbone.masked_fill(~mask[..., None, None], 0.0)
        if self.training and self.config.augment_eps > 0:
            backbone = backbone + self.config.augment_eps * torch.randn_like(backbone)
        neighbors, edges = self._edges(backbone, mask, residue_index, chain_index)
        nodes = weight.new_zeros(*mask.shape, self.config.hidden_size)
        states = [nodes]
        before: Any = None
        for layer in self.layers:
            edges = edges if before is None else before.update_edges(nodes, edges, neighbors)
            nodes, before = layer(nodes, edges, neighbors, mask), layer
            states.append(nodes)
        hidden_states = tuple(states) if output_hidden_states else None
        output = BaseModelOutput(last_hidden_state=nodes, hidden_states=hidden_states)
        return output.to_tuple() if return_dict is False else output

    def _edges(
        self, backbone: Tensor, mask: Tensor, residue_index: Tensor, chain_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the neighbours of each residue and the edges to them."""
        alpha = backbone[:, :, ALPHA]
        neighbors = nearest(alpha, mask, self.config.k_neighbors, self.config.mask_fill)
        if self.config.atoms == "ca":
            running = residue_index - 100 * chain_index
            shape = _alpha_shape(alpha, mask, running, neighbors, self.config.mask_fill)
        else:
            shape = backbone_shape(backbone, neighbors)
        offset = residue_index[:, :, None] - _at_neighbors(residue_index, neighbors)
        offset = (offset + NEAR_IN_CHAIN).clamp(0, 2 * NEAR_IN_CHAIN)
        apart = chain_index[:, :, None] != _at_neighbors(chain_index, neighbors)
        return neighbors, self.edges(offset.masked_fill(apart, POSITIONS - 1), shape)

    def embed(self, structures: Sequence[Structure], batch_size: int = 8) -> list[Tensor]:
        """Embed structures as `(residues, hidden)` each, on the CPU, without dropout or noise.

        It is zeros at residues without all atoms; a structure without any other is refused.
        """
        for structure in structures:
            if not atoms_present(structure.backbone, self.config.atoms).any():
                wanted = "CA" if self.config.atoms == "ca" else "N, CA, C and O"
                raise ValueError(
                    f"{structure.id} has no residue with {wanted}; leave this structure out."
                )
        order = sorted(range(len(structures)), key=lambda number: len(structures[number]))
        embedded: dict[int, Tensor] = {}
        with inference(self):
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                batch = structure_batch([structures[n] for n in numbers], self.config.atoms)
                hidden = self(**{name: value.to(self.device) for name, value in batch.items()})[0]
                for number, rows in zip(numbers, hidden.cpu(), strict=True):
                    embedded[number] = rows[: len(structures[number])].clone()
        return [embedded[number] for number in range(len(structures))]
