"""The encoder of ProteinMPNN: backbone atoms in, residue embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .checkpoint_file import read_checkpoint
from .configuration_protein_mpnn import ProteinMPNNConfig
from .protein_mpnn_features import (
    ALPHA,
    POSITIONS,
    SHAPE_FEATURES,
    alpha_shape,
    at_neighbors,
    atoms_present,
    backbone_shape,
    nearest,
    offsets_in_chain,
    structure_batch,
)
from .safe_weights import SafeWeights
from .structure import Structure

POSITION_FEATURES = 16
MESSAGE_SCALE = 30
"""Messages are summed and divided by this, however many there are."""

MESSAGE_PARTS = ("residue", "edge", "neighbor")
"""What the first matrix of a message reads, in the order of the published one."""

UPSTREAM_NAMES = {
    "edges.position": "features.embeddings.linear",
    "edges.embedding": "features.edge_embedding",
    "edges.norm": "features.norm_edges",
    "edges.output": "W_e",
}
UPSTREAM_LAYER_NAMES = {
    "node_norm": "norm1",
    "inner_norm": "norm2",
    "edge_norm": "norm3",
    "inner": "dense.W_in",
    "outer": "dense.W_out",
    "node_message.hidden": "W2",
    "node_message.output": "W3",
    "edge_message.hidden": "W12",
    "edge_message.output": "W13",
}


class EdgeEmbedding(nn.Module):
    """Embed what lies between a residue and its neighbour: offset in the chain and shape."""

    def __init__(self, config: ProteinMPNNConfig) -> None:
        """Build the projections."""
        super().__init__()
        width, shape = config.hidden_size, SHAPE_FEATURES[config.atoms]
        self.position = nn.Linear(POSITIONS, POSITION_FEATURES)
        self.embedding = nn.Linear(POSITION_FEATURES + shape, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, width)

    def forward(self, offset: Tensor, shape: Tensor) -> Tensor:
        """Embed edges.

        Args:
            offset: `(batch, residues, neighbors)`, 0 to 65.
            shape: `(batch, residues, neighbors, 400)`, or 151 numbers of CA atoms alone.

        Returns:
            `(batch, residues, neighbors, hidden)`.
        """
        weight = self.position.weight
        table = self.position(torch.eye(POSITIONS, dtype=weight.dtype, device=weight.device))
        position = F.embedding(offset, table)
        features = torch.cat([position, shape.to(position.dtype)], dim=-1)
        return self.output(self.norm(self.embedding(features)))


class Message(nn.Module):
    """Tell a residue about its neighbour, given both and the edge between them.

    Upstream the first matrix reads residue, edge and neighbour side by side. Here it is cut into
    three: two parts then run once a residue, not once an edge.
    """

    def __init__(self, width: int) -> None:
        """Build the projections."""
        super().__init__()
        self.residue = nn.Linear(width, width, bias=False)
        self.edge = nn.Linear(width, width)
        self.neighbor = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, nodes: Tensor, edges: Tensor, neighbors: Tensor) -> Tensor:
        """Return messages before their last projection, `output`, in the shape of the edges."""
        hidden = self.edge(edges) + at_neighbors(self.neighbor(nodes), neighbors)
        hidden = F.gelu(hidden + self.residue(nodes).unsqueeze(2))
        return F.gelu(self.hidden(hidden))


class ProteinMPNNLayer(nn.Module):
    """Let residues hear from their neighbours, then tell the edges."""

    def __init__(self, config: ProteinMPNNConfig) -> None:
        """Build the two networks of messages and the one of residues."""
        super().__init__()
        width = config.hidden_size
        self.node_message, self.edge_message = Message(width), Message(width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.node_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.edge_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, nodes: Tensor, edges: Tensor, neighbors: Tensor, mask: Tensor) -> Tensor:
        """Update the residues.

        Args:
            nodes: `(batch, residues, hidden)`.
            edges: `(batch, residues, neighbors, hidden)`.
            neighbors: `(batch, residues, neighbors)`.
            mask: True at residues, `(batch, residues)`.

        Returns:
            `(batch, residues, hidden)`, zeros where `mask` is False.
        """
        heard = (at_neighbors(mask, neighbors) & mask.unsqueeze(-1)).to(edges.dtype)
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


class ProteinMPNNEncoder(SafeWeights):
    """Embed residues by the backbone around them; the sequence is not read.

    What it says of a protein does not depend on its batch, on padding, nor on how the protein is
    turned or moved. A mirror image is another protein. The published model of CA atoms alone is an
    exception: turning a protein changes what it says, because it compares the axes of two residues
    in those of the file.

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
    _supports_sdpa = True  # there is no attention; any request for a kind of it is met

    def __init__(self, config: ProteinMPNNConfig) -> None:
        """Build the edge embedding and the layers."""
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
        """Load the encoder of a published ProteinMPNN; its decoder is left out.

        Args:
            pt: The checkpoint, for example `v_48_020.pt`, of the full backbone or of CA atoms
                alone. It is read without running any code in it.

        Returns:
            The encoder in eval mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no ProteinMPNN.
        """
        checkpoint = read_checkpoint(pt)
        model = cls(ProteinMPNNConfig(**_upstream_sizes(checkpoint, pt)))
        model.load_state_dict(_from_upstream_names(checkpoint["model_state_dict"], model, pt))
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
        """Embed a batch of structures, as `structure_batch` makes it.

        Args:
            backbone: N, CA, C and O in angstrom, `(batch, residues, 4, 3)`.
            residue_mask: True at residues, `(batch, residues)`. Residues without finite
                coordinates are masked too.
            residue_index: Where a residue stands, `(batch, residues)`.
            chain_index: The chain it is of, `(batch, residues)`.
            output_hidden_states: Return the residues after each layer too.
            return_dict: Return a `BaseModelOutput` (default) or a tuple.

        Returns:
            `last_hidden_state`, `(batch, residues, hidden)`, zeros where the mask is False.

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
        layers = cast("list[ProteinMPNNLayer]", list(self.layers))
        for number, layer in enumerate(layers):
            if number:
                edges = layers[number - 1].update_edges(nodes, edges, neighbors)
            nodes = layer(nodes, edges, neighbors, mask)
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
            shape = alpha_shape(alpha, mask, running, neighbors, self.config.mask_fill)
        else:
            shape = backbone_shape(backbone, neighbors)
        offset = offsets_in_chain(residue_index, chain_index, neighbors)
        return neighbors, self.edges(offset, shape)

    @torch.no_grad()
    def embed(self, structures: Sequence[Structure], batch_size: int = 8) -> list[Tensor]:
        """Embed structures, those of like length together, without dropout or noise.

        Args:
            structures: Any number; the order is kept.
            batch_size: Structures at a time.

        Returns:
            `(residues, hidden)` a structure, on the CPU; zeros at residues without all atoms.

        Raises:
            ValueError: If a structure has no residue with all atoms.
        """
        for structure in structures:
            if not atoms_present(structure.backbone, self.config.atoms).any():
                wanted = "CA" if self.config.atoms == "ca" else "N, CA, C and O"
                raise ValueError(
                    f"{structure.id} has no residue with {wanted}; leave this structure out."
                )
        order = sorted(range(len(structures)), key=lambda number: len(structures[number]))
        embedded: dict[int, Tensor] = {}
        training = self.training
        self.eval()
        try:
            for start in range(0, len(order), batch_size):
                numbers = order[start : start + batch_size]
                batch = structure_batch([structures[n] for n in numbers], self.config.atoms)
                hidden = self(**{name: value.to(self.device) for name, value in batch.items()})[0]
                for number, rows in zip(numbers, hidden.cpu(), strict=True):
                    embedded[number] = rows[: len(structures[number])].clone()
        finally:
            self.train(training)
        return [embedded[number] for number in range(len(structures))]


def _upstream_sizes(checkpoint: dict[str, Any], pt: str | Path) -> dict[str, Any]:
    """Read the sizes of a published model off its tensors."""
    state, name = checkpoint.get("model_state_dict"), "features.edge_embedding.weight"
    state = state if isinstance(state, dict) else {}
    weight, edges = state.get(name), checkpoint.get("num_edges")
    widths = {POSITION_FEATURES + shape: atoms for atoms, shape in SHAPE_FEATURES.items()}
    given = tuple(getattr(weight, "shape", ()))
    if len(given) != 2 or given[1] not in widths or not isinstance(edges, int):
        first = ", ".join(map(repr, list(checkpoint)[:3])) or "nothing"
        raise ValueError(
            f"{pt} is no published ProteinMPNN: it begins with {first}, its num_edges is {edges} "
            f"and its {name} in model_state_dict has shape {given or 'nothing'}; accepted are a "
            f"number and (hidden, {') or (hidden, '.join(map(str, widths))}). Give a file such as "
            "v_48_020.pt of the repository dauparas/ProteinMPNN."
        )
    layers = {key.split(".")[1] for key in state if str(key).startswith("encoder_layers.")}
    return {
        "hidden_size": given[0],
        "num_layers": max(len(layers), 1),
        "k_neighbors": edges,
        "atoms": widths[given[1]],
    }


def _from_upstream_names(
    state: dict[str, Any], model: ProteinMPNNEncoder, pt: str | Path
) -> dict[str, Tensor]:
    """Rename published tensors; the first matrix of the messages is cut into three."""
    renamed, differ = {}, {}
    for name, ours in model.state_dict().items():
        published, part = _upstream_name(name)
        shape = tuple(ours.shape) if part is None else (len(ours), len(MESSAGE_PARTS) * len(ours))
        theirs = state.get(published)
        if not isinstance(theirs, Tensor) or tuple(theirs.shape) != shape:
            differ[published] = f"{tuple(getattr(theirs, 'shape', ())) or 'missing'}, not {shape}"
        elif not differ:
            renamed[name] = theirs if part is None else theirs.chunk(len(MESSAGE_PARTS), 1)[part]
    if differ:
        some = "; ".join(f"{name}: {what}" for name, what in list(differ.items())[:3])
        raise ValueError(
            f"{pt} is no published ProteinMPNN, {len(differ)} tensors of its encoder are missing "
            f"or of another shape ({some}); give a file such as v_48_020.pt of the repository "
            "dauparas/ProteinMPNN."
        )
    return renamed


def _upstream_name(name: str) -> tuple[str, int | None]:
    """Return what a tensor is called upstream, and which third of that it is."""
    module, kind = name.rsplit(".", 1)
    if module in UPSTREAM_NAMES:
        return f"{UPSTREAM_NAMES[module]}.{kind}", None
    _, layer, module = module.split(".", 2)
    message, _, part = module.partition(".")
    if part in MESSAGE_PARTS:
        first = f"encoder_layers.{layer}.{'W1' if message == 'node_message' else 'W11'}.{kind}"
        return first, MESSAGE_PARTS.index(part) if kind == "weight" else None
    return f"encoder_layers.{layer}.{UPSTREAM_LAYER_NAMES[module]}.{kind}", None
