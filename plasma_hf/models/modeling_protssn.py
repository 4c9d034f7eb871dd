"""ProtSSN: residue embeddings and backbone atoms in, residue embeddings out that know both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .modeling_backbone import check_settings, from_package, register_backbone
from .modeling_plm_encoder import PLMEncoder, PLMEncoderConfig
from .processing_plasma import ESM2, InputFormat
from .protein import STANDARD_RESIDUES

STANDARDISED_FROM = 64
"""The first column of the 93 edge features that is standardised; those before stay 0 or 1."""

# By number of neighbours: position scale, 29 means, 29 standard deviations; measured by the authors
# on 31,848 CATH domains, `norm/cath_k{10,20,30}_mean_attr.pt` of the repository tyang816/ProtSSN.
# MIT licence, Copyright (c) 2023 Yang Tan.
MEASURED = {
    10: """
8.773371696472168 0.06532334 0.15621077 0.2617431 0.38582513 0.5132673 0.6303866 0.72896665
0.8065739 0.8647264 0.90677434 0.93641824 0.95695037 0.9709977 0.9805283 0.9869571 0.9912772
0.83664477 -0.1380628 0.56486744 0.741643 0.06276783 0.10398891 -0.072692394 0.104939185 0.12797768
-0.14627978 -0.07253796 -0.14690311 0.03408184 0.20688 0.13944139 0.17304437 0.18693879 0.18022658
0.15844339 0.12955993 0.100234285 0.07438538 0.053522974 0.037648786 0.026052458 0.017819146
0.01208876 0.008155066 0.0054802233 0.36411515 3.4588566 3.8873794 3.5812705 0.57400763 0.5482299
0.5788716 0.54758334 0.54377216 0.5784997 0.5792842 0.57813936 0.5387987
""",
    20: """
8.769831657409668 0.10703119 0.08116802 0.1441385 0.23196565 0.34153062 0.46230146 0.5806206
0.6855417 0.7715715 0.8380666 0.8872756 0.92256176 0.9473005 0.96437126 0.9760215 0.983912
0.45783544 -0.070394486 0.34372634 0.44074914 0.03635744 0.06098849 -0.049693972 0.06213101
0.068117216 -0.07153819 -0.050296992 -0.07115625 0.022343513 0.26280284 0.124232374 0.17111103
0.20709245 0.22292738 0.21649316 0.19287163 0.16026506 0.12603268 0.09492839 0.06914975 0.04910582
0.034219094 0.023521481 0.016012471 0.010827549 0.4964923 4.935838 5.129869 4.9339366 0.58053833
0.5587394 0.5788581 0.5584098 0.5680115 0.58352965 0.57893366 0.5833946 0.55720305
""",
    30: """
8.771967887878418 0.13104936 0.05451412 0.098123714 0.16325907 0.2531865 0.36384362 0.48373568
0.5993729 0.7007326 0.7832013 0.84662145 0.8933923 0.9268467 0.95025784 0.96639067 0.9773897
0.30628362 -0.027591623 0.41476277 0.5307502 0.026659517 0.03990914 -0.032829553 0.041649383
0.04889268 -0.042563844 -0.034365926 -0.042685583 0.0212192 0.28763738 0.10849955 0.15462866
0.19608817 0.22339946 0.23058926 0.21788646 0.1907727 0.15671408 0.12219153 0.09137733 0.06615045
0.04673222 0.032431167 0.02222335 0.015094663 0.46004045 5.896394 6.040406 5.860393 0.5837274
0.5621732 0.5775467 0.5613007 0.5742878 0.5840067 0.5781422 0.58332515 0.5636885
""",
}


@cache
def published_statistics(k_neighbors: int) -> dict[str, Tensor]:
    """Return what standardises the edges of graphs with 10, 20 or 30 neighbours per residue.

    These are mean and standard deviation of columns 64 to 92, `(29,)`, and the mean standard
    deviation of a coordinate (Å).
    """
    numbers = torch.tensor([float(number) for number in MEASURED[k_neighbors].split()])
    return {"edge_mean": numbers[1:30], "edge_std": numbers[30:], "position_scale": numbers[0]}


@strict
class ProtSSNConfig(PLMEncoderConfig):
    """Configure ProtSSN and, optionally, the protein language model under it.

    The released PLASMA heads were trained on its k = 20 weights over graphs and statistics of 10
    neighbours: `ProtSSNConfig(k_neighbors=10, edge_statistics=10)`.

    Args:
        hidden_size: Width of a residue embedding, in and out.
        message_size: Width of what one residue tells another.
        num_layers: Rounds of messages.
        k_neighbors: Neighbours of a residue in the graph at most.
        edge_statistics: The published statistics that standardise the edges: those of graphs with
            10, 20 or 30 neighbours.
        initializer_range: Standard deviation of untrained weights.
        plm_config: See `PLMEncoderConfig`, and so for plm_name_or_path and plm_revision.
    """

    model_type = "protssn"

    hidden_size: int = 1280
    message_size: int = 512
    num_layers: int = 6
    k_neighbors: int = 20
    edge_statistics: int = 20
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        check_settings(self, ("message_size", "num_layers", "k_neighbors"))
        if self.edge_statistics not in MEASURED:
            raise ValueError(
                f"edge_statistics={self.edge_statistics}; ProtSSN was published with statistics of "
                f"{', '.join(map(str, MEASURED))} neighbours, name the nearest of these."
            )
        super().__post_init__(**kwargs)


FARTHEST = 64  # residues this far apart in the sequence, or farther, count as equally far
CONTACT = 8.0  # distance of two C-alpha atoms in contact at most, Å


class ProteinGraph(NamedTuple):
    """Directed edges between residues, and what is known of each."""

    edge_index: Tensor  # (2, edges); row 0 is a residue, row 1 a neighbour it has chosen
    edge_attr: Tensor  # (edges, 93), see `protein_graph`
    distance: Tensor  # between the two C-alpha atoms, Å, (edges,)


def protein_graph(
    backbone_atoms: Tensor, k_neighbors: int = 20, radius: float = 30.0
) -> ProteinGraph:
    """Join each residue to its nearest neighbours and describe the edges.

    A residue has the neighbours within the radius (Å), in the order of the sequence; where these
    are more than `k_neighbors`, the nearest of them, nearest first; where there is none, the
    nearest residue of all. The features, which do not change when the protein is turned or moved,
    are 65 for the separation in sequence (one-hot), 15 for the distance, 1 for contact, and 12 for
    where the residue is (Å) and how its three axes point, seen from the neighbour's own frame.
    `backbone_atoms` are N, CA and C of each residue, `(residues, 3 atoms, 3)`, Å.

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
    separation = (residue - neighbour).abs().clamp(max=FARTHEST)
    offset = alpha[residue] - alpha[neighbour]
    distance = offset.norm(dim=-1)
    widths = 1.5 ** torch.arange(15, device=atoms.device, dtype=atoms.dtype)
    axes = _axes(atoms)
    seen = torch.cat([offset.unsqueeze(1), axes[residue]], dim=1)  # (edges, 4 vectors, 3)
    edge_attr = torch.cat(
        [
            F.one_hot(separation, FARTHEST + 1),
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
    wanting = (~backbone_atoms.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if wanting:
        raise ValueError(
            f"residue {wanting[0]} (counted from 0) has an atom without coordinates, and so have "
            f"{len(wanting) - 1} others; leave them out with with_backbone_atoms(protein)."
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


EDGE_WIDTH = 94
"""What a layer is told of an edge: its features and the squared distance."""

PUBLISHED = {
    "edge_mlp.0": ("target", "source", "edge"),
    "edge_mlp.3": ("message",),
    "node_mlp.0": ("node_hidden",),
    "node_mlp.3": ("node_output",),
}
"""What the published model calls a layer's parts; the first matrix is cut into three."""

EDGES_AT_ONCE = 2048
"""The published model holds 5,308 numbers per edge, 0.4 GB for a protein of 1,000 residues; this
many edges at a time need a tenth of it. With gradients, PyTorch keeps them all anyway."""


@dataclass
class ProtSSNOutput(ModelOutput):
    """What ProtSSN says about a batch of proteins; zeros outside the residues."""

    last_hidden_state: Tensor | None = None  # (batch, tokens or residues, hidden)
    logits: Tensor | None = None  # of the STANDARD_RESIDUES, (batch, tokens or residues, 20)


class ProtSSNLayer(nn.Module):
    """One round of messages: each residue hears from those that have it as a neighbour.

    Upstream the first network reads target, source and edge side by side. Here its matrix is cut
    into three: the first two parts run once per residue, not once per edge, a fifth of the work.
    """

    def __init__(self, config: ProtSSNConfig) -> None:
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
        """Pass messages from sources (row 0) to targets; nodes are `(residues, hidden)`."""
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


@register_backbone
class ProtSSNModel(PLMEncoder):
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
    trained_on = ESM2

    edge_mean: Tensor
    edge_std: Tensor
    position_scale: Tensor

    def __init__(self, config: ProtSSNConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(ProtSSNLayer(config) for _ in range(config.num_layers))
        self.residue_head = nn.Linear(config.hidden_size, len(STANDARD_RESIDUES))
        # Saved with the model: a folder says itself what its edges were standardised by.
        for name, value in published_statistics(config.edge_statistics).items():
            self.register_buffer(name, value.clone())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ProtSSNModel):
            for name, value in published_statistics(self.config.edge_statistics).items():
                init.copy_(getattr(module, name), value)

    @classmethod
    def from_upstream(
        cls, pt: str | Path, k_neighbors: int = 20, edge_statistics: int | None = None
    ) -> ProtSSNModel:
        """Load a published ProtSSN in eval mode; `attach_language_model` completes it.

        Args:
            pt: The state dict, for example `protssn_k20_h512.pt`; no code in it is run.
            k_neighbors: Neighbours of a residue in the graph at most; 10 for the released heads.
            edge_statistics: The published statistics that standardise the edges, 10, 20 or 30;
                None takes those of k_neighbors.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a ProtSSN, or there are no such statistics.
        """
        upstream = from_package("hub.upstream", "the published ProtSSN is read")
        state = upstream.read_checkpoint(pt)
        statistics = k_neighbors if edge_statistics is None else edge_statistics
        sizes = _upstream_sizes(state, pt) | {"k_neighbors": k_neighbors}
        model = cls(ProtSSNConfig(**sizes, edge_statistics=statistics))
        maps, wanted = model._published_maps(), dict[str, Any]()
        for name, parts in maps.items():
            columns = sum(part.in_features for part in parts)
            wanted[f"{name}.weight"] = (parts[0].out_features, columns)
            wanted[f"{name}.bias"] = (parts[0].out_features,)
        there = f"in a ProtSSN of width {model.config.hidden_size}"
        if differ := upstream.differences(state, wanted, "here", there):
            raise ValueError(
                f"{pt} is no published ProtSSN, {differ}; give a file such as "
                "protssn_k20_h512.pt of the repository tyang816/ProtSSN."
            )
        for name, parts in maps.items():
            weights = state[f"{name}.weight"].split([part.in_features for part in parts], dim=1)
            for part, weight in zip(parts, weights, strict=True):
                part.weight.data.copy_(weight)
            parts[-1].bias.data.copy_(state[f"{name}.bias"])
        return model.eval()

    def _published_maps(self) -> dict[str, list[nn.Linear]]:
        """Name each published linear map, and those of ours that it is cut into."""
        maps: dict[str, list[Any]] = {"GNN_model.lin": [self.residue_head]}
        for i, layer in enumerate(self.layers):
            for theirs, ours in PUBLISHED.items():
                maps[f"GNN_model.mpnn_layes.{i}.{theirs}"] = [getattr(layer, o) for o in ours]
        return maps

    @property
    def saved_format(self) -> str:
        """Input format of a saved model, by the size of its graphs."""
        return "protssn/upstream" if self.config.k_neighbors == 10 else "protssn/native"

    def complete(
        self, source: str, input_format: InputFormat | None, **options: Any
    ) -> tuple[str, str | None]:
        """Take the graphs of the input format, and load what is missing; see `PLMEncoder`."""
        if input_format is not None and input_format.k_neighbors:
            self.config.k_neighbors = self.config.edge_statistics = input_format.k_neighbors
            for name, value in published_statistics(input_format.k_neighbors).items():
                getattr(self, name).copy_(value)
        return super().complete(source, input_format, **options)

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

        Args:
            input_ids: For this and the next three see `PLMEncoder.read`.
            backbone_atoms: N, CA and C of each residue, `(batch, residues, 3 atoms, 3)`, Å. Row i
                belongs to the i-th residue in residue_mask; what lies behind the last is padding
                and may be anything.
            return_dict: Return a `ProtSSNOutput` (default) or a tuple.
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
        graphs = []
        for number, (atoms, length) in enumerate(zip(backbone_atoms.cpu(), lengths, strict=True)):
            try:
                graphs.append(protein_graph(atoms[:length], self.config.k_neighbors))
            except ValueError as error:
                raise ValueError(f"protein {number} of the batch: {error}") from error
        starts = accumulate(lengths, initial=0)
        index = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=False)]
        device = self.edge_mean.device
        features = torch.cat([graph.edge_attr for graph in graphs]).to(device)
        distance = torch.cat([graph.distance for graph in graphs]).to(device)
        alike, varied = features.tensor_split([STANDARDISED_FROM], dim=-1)
        varied = (varied - self.edge_mean) / self.edge_std
        squared = (distance / self.position_scale).square().unsqueeze(-1)
        edges = torch.cat([alike, varied, squared], dim=-1).to(self.residue_head.weight.dtype)
        return torch.cat(index, dim=1).to(device), edges


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
