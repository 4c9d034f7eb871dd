"""ProtSSN: residue embeddings and backbone atoms in, residue embeddings out that know both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .checkpoint_file import read_checkpoint
from .configuration_protssn import ProtSSNConfig
from .over_language_model import OverLanguageModel
from .protein_graph import EDGE_FEATURES, ProteinGraph, protein_graph
from .protssn_statistics import STANDARDISED_FROM, published_statistics
from .residues import STANDARD_RESIDUES

EDGE_WIDTH = EDGE_FEATURES + 1
"""What a layer is told of an edge: its features and the squared distance."""

EDGES_AT_ONCE = 2048
"""The published model holds 5,308 numbers an edge, 0.4 GB for a protein of 1,000 residues; this
many edges at a time need a tenth of it. With gradients, PyTorch keeps them all anyway."""


@dataclass
class ProtSSNOutput(ModelOutput):
    """What ProtSSN says about a batch of proteins.

    Args:
        last_hidden_state: `(batch, tokens or residues, hidden)`, zeros outside the residues.
        logits: Of the twenty residues in the order of `STANDARD_RESIDUES`,
            `(batch, tokens or residues, 20)`, zeros outside the residues.
    """

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None


class ProtSSNLayer(nn.Module):
    """One round of messages: each residue hears from those that have it as a neighbour.

    Upstream the first network reads target, source and edge side by side. Here its matrix is cut
    into three: the first two parts run once a residue, not once an edge, a fifth of the work.
    """

    def __init__(self, config: ProtSSNConfig) -> None:
        """Build the two networks, of messages and of residues."""
        super().__init__()
        width, message = config.hidden_size, config.message_size
        inner = 2 * (2 * width + EDGE_WIDTH)
        self.target = nn.Linear(width, inner, bias=False)
        self.source = nn.Linear(width, inner, bias=False)
        self.edge = nn.Linear(EDGE_WIDTH, inner)
        self.message = nn.Linear(inner, message)
        self.node_hidden = nn.Linear(width + message, 2 * width)
        self.node_output = nn.Linear(2 * width, width)

    def forward(self, nodes: Tensor, edge_index: Tensor, edges: Tensor) -> Tensor:
        """Pass messages along the edges and let each residue take them in.

        Args:
            nodes: `(residues, hidden)`.
            edge_index: `(2, edges)`, from source (row 0) to target (row 1).
            edges: `(edges, 94)`, what is known of an edge.

        Returns:
            `(residues, hidden)`.
        """
        by_target, by_source = self.target(nodes), self.source(nodes)
        heard = nodes.new_zeros(len(nodes), self.message.out_features)
        for start in range(0, len(edges), EDGES_AT_ONCE):
            part = slice(start, start + EDGES_AT_ONCE)
            source, target = edge_index[:, part]
            hidden = F.silu(by_target[target] + by_source[source] + self.edge(edges[part]))
            message = F.silu(self.message(hidden))
            heard.index_add_(0, target, message.to(heard.dtype))
        hidden = F.silu(self.node_hidden(torch.cat([nodes, heard], dim=-1)))
        return nodes + self.node_output(hidden)


class ProtSSNModel(OverLanguageModel):
    """Embed residues by what a language model says of them and by where they are.

    The model takes ready residue embeddings or, over a language model, token ids, and in both
    cases the backbone atoms. What it says of a protein does not depend on its batch, on padding,
    nor on how the protein is turned or moved.

    Source: ProtSSN (Tan et al., eLife 2025).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = ProtSSNModel(ProtSSNConfig(hidden_size=16, message_size=8, num_layers=2))
        >>> atoms = 10 * torch.randn(1, 30, 3, 3)
        >>> out = model.eval()(inputs_embeds=torch.randn(1, 30, 16), backbone_atoms=atoms)
        >>> out.last_hidden_state.shape, out.logits.shape
        (torch.Size([1, 30, 16]), torch.Size([1, 30, 20]))
    """

    config_class = ProtSSNConfig
    base_model_prefix = "protssn"
    _no_split_modules = ["ProtSSNLayer"]
    trained_on = "facebook/esm2_t33_650M_UR50D"

    edge_mean: Tensor
    edge_std: Tensor
    position_scale: Tensor

    def __init__(self, config: ProtSSNConfig) -> None:
        """Build the network, and the language model if the configuration has one."""
        super().__init__(config)
        self.layers = nn.ModuleList(ProtSSNLayer(config) for _ in range(config.num_layers))
        self.residue_head = nn.Linear(config.hidden_size, len(STANDARD_RESIDUES))
        # Saved with the model: a folder says itself what its edges were standardised by.
        for name, value in _statistics(config.edge_statistics).items():
            self.register_buffer(name, value.clone())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ProtSSNModel):
            for name, value in _statistics(self.config.edge_statistics).items():
                init.copy_(getattr(module, name), value)

    @classmethod
    def from_upstream(
        cls, pt: str | Path, k_neighbors: int = 20, edge_statistics: int | None = None
    ) -> ProtSSNModel:
        """Load a published ProtSSN, without the language model under it.

        The released PLASMA heads stand on the k = 20 weights over graphs of 10 neighbours:
        `ProtSSNModel.from_upstream("protssn_k20_h512.pt", k_neighbors=10)`.

        Args:
            pt: The state dict, for example `protssn_k20_h512.pt`. It is read without running any
                code in it.
            k_neighbors: Neighbours of a residue in the graph at most.
            edge_statistics: The published statistics that standardise the edges, 10, 20 or 30;
                None takes those of k_neighbors.

        Returns:
            The model in eval mode; put a language model under it with `attach_language_model`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no ProtSSN, or there are no such statistics.
        """
        state = read_checkpoint(pt)
        config = ProtSSNConfig(
            **_upstream_sizes(state, pt),
            k_neighbors=k_neighbors,
            edge_statistics=k_neighbors if edge_statistics is None else edge_statistics,
        )
        _check_upstream(state, config, pt)
        model = cls(config)
        ours = _from_upstream_names(state, config) | _statistics(config.edge_statistics)
        model.load_state_dict(ours)
        return model.eval()

    def set_neighbors(self, k_neighbors: int) -> ProtSSNModel:
        """Take graphs of so many neighbours from now on, and the statistics of such graphs.

        Args:
            k_neighbors: Neighbours of a residue at most: 10, 20 or 30.
        """
        for name, value in _statistics(k_neighbors).items():
            getattr(self, name).copy_(value)
        self.config.k_neighbors = self.config.edge_statistics = k_neighbors
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        residue_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        backbone_atoms: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ProtSSNOutput | tuple[Tensor, ...]:
        """Embed a batch of proteins with their structures.

        Masks are True (or 1) where something is there.

        Args:
            input_ids: `(batch, tokens)`, for the language model, with its special tokens.
            attention_mask: `(batch, tokens)`, what the language model attends to; None is all.
            residue_mask: `(batch, tokens)` or `(batch, residues)`, True at residues and never at
                special tokens or padding; None takes attention_mask.
            inputs_embeds: `(batch, residues, hidden)`, residue embeddings of the language model.
            backbone_atoms: N, CA and C of each residue, `(batch, residues, 3 atoms, 3)`, Å. Row i
                belongs to the i-th residue in residue_mask; what lies behind the last is padding
                and may be anything.
            return_dict: Return a `ProtSSNOutput` (default) or a tuple.

        Raises:
            ValueError: If proteins are given not at all or twice, as token ids without a language
                model to read them, without atoms, or in shapes that do not fit.
        """
        embeddings, mask = self.read(input_ids, attention_mask, residue_mask, inputs_embeds)
        edge_index, edges = self._graph(backbone_atoms, mask.sum(1).tolist())
        nodes = embeddings[mask].to(self.residue_head.weight.dtype)
        for layer in self.layers:
            nodes = layer(nodes, edge_index, edges)
        output = ProtSSNOutput(
            last_hidden_state=_place(nodes, mask), logits=_place(self.residue_head(nodes), mask)
        )
        return output.to_tuple() if return_dict is False else output

    def _graph(
        self, backbone_atoms: Tensor | None, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return one graph of all proteins: edges `(2, edges)` and `(edges, 94)` about them."""
        if backbone_atoms is None:
            raise ValueError(
                "ProtSSN reads structures and got no backbone_atoms; give the coordinates of N, "
                "CA and C, (batch, residues, 3, 3), as read_protein('file.pdb:A') has them."
            )
        shape, longest = tuple(backbone_atoms.shape), max(lengths, default=0)
        if len(shape) != 4 or shape[0] != len(lengths) or shape[1] < longest:
            raise ValueError(
                f"backbone_atoms has shape {shape}, the mask has {len(lengths)} proteins of up to "
                f"{longest} residues; give ({len(lengths)}, {longest}, 3, 3), and a residue_mask "
                "that is False at special tokens."
            )
        # On the CPU, in double precision: not every accelerator has it, and no tie between
        # neighbours should be broken differently elsewhere.
        atoms = [
            protein[:length] for protein, length in zip(backbone_atoms.cpu(), lengths, strict=True)
        ]
        graphs = [self._protein_graph(number, protein) for number, protein in enumerate(atoms)]
        starts = accumulate(lengths, initial=0)
        index = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=False)]
        device = self.edge_mean.device
        features = torch.cat([graph.edge_attr for graph in graphs]).to(device)
        distance = torch.cat([graph.distance for graph in graphs]).to(device)
        alike, varied = features.split([STANDARDISED_FROM, EDGE_FEATURES - STANDARDISED_FROM], -1)
        varied = (varied - self.edge_mean) / self.edge_std
        squared = (distance / self.position_scale).square().unsqueeze(-1)
        edges = torch.cat([alike, varied, squared], dim=-1).to(self.residue_head.weight.dtype)
        return torch.cat(index, dim=1).to(device), edges

    def _protein_graph(self, number: int, atoms: Tensor) -> ProteinGraph:
        try:
            return protein_graph(atoms, self.config.k_neighbors)
        except ValueError as error:
            raise ValueError(f"protein {number} of the batch: {error}") from error


def _statistics(k_neighbors: int) -> dict[str, Tensor]:
    """Return the published statistics by the names of a model's buffers."""
    published = published_statistics(k_neighbors)
    return {
        "edge_mean": published.mean,
        "edge_std": published.std,
        "position_scale": published.position_scale,
    }


def _place(values: Tensor, mask: Tensor) -> Tensor:
    """Put `(residues of all proteins, width)` where the mask is True, zeros elsewhere."""
    placed = values.new_zeros(*mask.shape, values.shape[-1])
    placed[mask] = values
    return placed


def _upstream_sizes(state: dict[str, Any], pt: str | Path) -> dict[str, Any]:
    """Read the sizes of a published model off its tensors."""
    names = ("GNN_model.lin.weight", "GNN_model.mpnn_layes.0.edge_mlp.3.weight")
    head, message = (state.get(name) for name in names)
    if not (isinstance(head, Tensor) and isinstance(message, Tensor) and head.ndim == 2):
        given = ", ".join(map(repr, list(state)[:3])) or "nothing"
        raise ValueError(
            f"{pt} is no published ProtSSN: it lacks {' or '.join(names)} and begins with {given}; "
            "give a file such as protssn_k20_h512.pt of the repository tyang816/ProtSSN."
        )
    return {
        "hidden_size": head.shape[1],
        "message_size": len(message),
        "num_layers": sum(str(name).endswith(".edge_mlp.0.weight") for name in state),
    }


def _check_upstream(state: dict[str, Any], config: ProtSSNConfig, pt: str | Path) -> None:
    width, message = config.hidden_size, config.message_size
    edge = 2 * width + EDGE_WIDTH
    linear = {
        "edge_mlp.0": (2 * edge, edge),
        "edge_mlp.3": (message, 2 * edge),
        "node_mlp.0": (2 * width, width + message),
        "node_mlp.3": (width, 2 * width),
    }
    wanted: dict[str, tuple[int, ...]] = {}
    shapes = {f"mpnn_layes.{i}.{n}": s for i in range(config.num_layers) for n, s in linear.items()}
    for name, shape in (shapes | {"lin": (len(STANDARD_RESIDUES), width)}).items():
        wanted |= {f"GNN_model.{name}.weight": shape, f"GNN_model.{name}.bias": shape[:1]}
    given = {str(name): tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
    differ = sorted(n for n in wanted | given if wanted.get(n) != given.get(n))
    if differ:
        some = "; ".join(
            f"{n}: {given.get(n, 'nothing')} here, {wanted.get(n, 'nothing')} in a ProtSSN of "
            f"width {width}"
            for n in differ[:3]
        )
        raise ValueError(
            f"{pt} is no published ProtSSN, {len(differ)} tensors differ ({some}); give a file "
            "such as protssn_k20_h512.pt of the repository tyang816/ProtSSN."
        )


def _from_upstream_names(state: dict[str, Any], config: ProtSSNConfig) -> dict[str, Tensor]:
    """Rename published tensors; the first matrix of the messages is cut into three."""
    names = {"edge_mlp.3": "message", "node_mlp.0": "node_hidden", "node_mlp.3": "node_output"}
    renamed = {f"residue_head.{n}": state[f"GNN_model.lin.{n}"] for n in ("weight", "bias")}
    for i in range(config.num_layers):
        theirs, ours = f"GNN_model.mpnn_layes.{i}", f"layers.{i}"
        cut = [config.hidden_size, config.hidden_size, EDGE_WIDTH]
        target, source, edge = state[f"{theirs}.edge_mlp.0.weight"].split(cut, dim=1)
        renamed |= {f"{ours}.target.weight": target, f"{ours}.source.weight": source}
        renamed |= {f"{ours}.edge.weight": edge}
        renamed |= {f"{ours}.edge.bias": state[f"{theirs}.edge_mlp.0.bias"]}
        for their_part, our_part in names.items():
            for kind in ("weight", "bias"):
                renamed[f"{ours}.{our_part}.{kind}"] = state[f"{theirs}.{their_part}.{kind}"]
    return renamed
