"""Files that are published: the released PLASMA heads, checkpoints, and the heads bundled here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..backbones import find_backbone
from ..models.modeling_protein_mpnn import POSITION_FEATURES, SHAPE_FEATURES

BUNDLED = Path(__file__).parents[1] / "checkpoints"
HEAD = "plasma_head_"  # how the folders of bundled heads begin; the task follows

PARAMETERS = {
    "eta.lrl.0.weight": "alignment_head.hidden.weight",
    "eta.lrl.0.bias": "alignment_head.hidden.bias",
    "eta.lrl.2.weight": "alignment_head.output.weight",
    "eta.lrl.2.bias": "alignment_head.output.bias",
    "eta.norm.weight": "alignment_head.norm.weight",
    "eta.norm.bias": "alignment_head.norm.bias",
}
"""Parameter names in the released files and in `PlasmaModel`."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a dict that `torch.save` wrote, running no code that the file may hold."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not a file; give the path of a checkpoint.")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    # In bytes that are not a checkpoint the readers of torch meet errors of any kind.
    except Exception as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None or not isinstance(error, UnpicklingError):
            raise ValueError(
                f"{file} cannot be read as a checkpoint: it is cut short or was not written by "
                "torch.save; download it again."
            ) from error
        raise ValueError(
            f"{file} was not read: beside tensors it asks for code, {asked.group(1)}; accepted "
            "are tensors, numbers, text, lists and dicts alone. Only if you trust where it comes "
            "from, write its weights anew and read that file: "
            f"state = torch.load({str(file)!r}, weights_only=False)['state_dict']; "
            "torch.save({'state_dict': state}, 'weights.pt')."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{file} holds a {type(checkpoint).__name__}; accepted is a dict of tensors, as in "
            "torch.save(model.state_dict(), path)."
        )
    return checkpoint


def differences(
    state: Mapping[str, Any],
    wanted: Mapping[str, Any],
    here: str = "in the checkpoint",
    there: str = "by the parameters",
) -> str:
    """Say which tensors of a file are missing, surplus or of another shape than wanted."""
    given = {str(name): tuple(getattr(value, "shape", ())) for name, value in state.items()}
    right = {name: tuple(getattr(value, "shape", value)) for name, value in wanted.items()}
    differ = sorted(name for name in right | given if right.get(name) != given.get(name))
    some = "; ".join(
        f"{name}: {given.get(name, 'nothing')} {here}, {right.get(name, 'nothing')} {there}"
        for name in differ[:3]
    )
    return f"{len(differ)} tensors differ ({some})" if differ else ""


def read_released_head(
    repo_or_dir: str | Path,
    task: str | None = None,
    backbone: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a released head as fields of a `PlasmaConfig` and a state dict of `PlasmaModel`."""
    folder = _find_folder(repo_or_dir, task, backbone, revision)
    sidecar = folder / "metadata.json"
    metadata = json.loads(sidecar.read_text()) if sidecar.exists() else None
    tensors = load_file(folder / "model.safetensors")
    fields = _config_fields(folder / "config.json", metadata)
    expected = set(PARAMETERS) if fields["head"] == "lrl" else set()
    if set(tensors) != expected:
        raise ValueError(
            f"{folder / 'model.safetensors'} has the tensors {sorted(tensors)}, a released head "
            f"of kind {fields['head']!r} has {sorted(expected)}."
        )
    if tensors:
        fields["head_size"], fields["embedding_size"] = tensors["eta.lrl.0.weight"].shape
    else:
        fields["embedding_size"] = None
    return fields, {PARAMETERS[name]: tensor for name, tensor in tensors.items()}


def write_released_head(config: Any, state: dict[str, Tensor], folder: Path) -> Path:
    """Write a head as the released ones are laid out, and return the folder of its files.

    That is `weights/{task}/{backbone}/` below `folder`, or itself for a head that names neither.
    A ValueError says so where the layout has no place for a head.
    """
    if config.head == "residual":
        raise ValueError(
            'the layout of the released heads has no place for head="residual"; save with '
            'model.save_pretrained(), or train with head="lrl".'
        )
    metadata = config.released_metadata
    if metadata and metadata.get("task") and metadata.get("backbone"):
        folder = folder / "weights" / metadata["task"] / metadata["backbone"]
    folder.mkdir(parents=True, exist_ok=True)
    learned = config.head == "lrl"
    own = {"hidden_dim": config.head_size} if learned else {"normalize": config.normalize}
    kernel = {"n_iters": config.n_iters, "temperature": config.kernel_scale}
    described = {"eta": config.head, "eta_kwargs": own}
    described |= {"omega": "sinkhorn", "omega_kwargs": kernel}
    scored = {"K": config.diagonal_window, "threshold": config.threshold}
    metadata = (metadata or {}) | {"score_config": scored}
    tensors = {theirs: state[ours].contiguous() for theirs, ours in PARAMETERS.items() if learned}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True))
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1))
    return folder


def bundled_head(task: str) -> Path:
    """Return the folder of the head for a task that comes with the package."""
    folders = {folder.name.removeprefix(HEAD): folder for folder in BUNDLED.glob(f"{HEAD}*")}
    if task not in folders:
        there = ", ".join(map(repr, sorted(folders)))
        raise ValueError(f"task_head={task!r}; the heads that are bundled are {there}.")
    return folders[task]


def _find_folder(
    repo_or_dir: str | Path, task: str | None, backbone: str | None, revision: str | None
) -> Path:
    root = Path(repo_or_dir)
    inner = f"weights/{task}/{backbone}" if task and backbone else ""
    if not root.exists():
        if not inner:
            raise ValueError(
                f"{repo_or_dir} is no folder here; to load from the Hub give task and backbone, "
                'for example task="active_site", backbone="esm2_t33_650M_UR50D".'
            )
        pattern = f"{inner}/*"
        root = Path(snapshot_download(str(repo_or_dir), revision=revision, allow_patterns=pattern))
    for folder in (root / inner, root):
        if (folder / "model.safetensors").exists() and (folder / "config.json").exists():
            return folder
    heads = sorted(str(p.parent.relative_to(root)) for p in root.rglob("model.safetensors"))
    raise FileNotFoundError(
        f"{repo_or_dir} has no head for task={task!r}, backbone={backbone!r}; "
        f"it has: {', '.join(heads) or 'none'}."
    )


def _config_fields(file: Path, metadata: dict[str, Any] | None) -> dict[str, Any]:
    """Translate the released JSON; threshold, window and backbone are in the metadata alone."""
    described = json.loads(file.read_text())
    if described.get("eta") not in ("lrl", "hinge") or described.get("omega") != "sinkhorn":
        raise ValueError(
            f"{file} describes no released PLASMA head: it says eta={described.get('eta')!r}, "
            f"omega={described.get('omega')!r}; accepted are eta 'lrl' or 'hinge' with omega "
            "'sinkhorn'."
        )
    kernel, told = described.get("omega_kwargs", {}), metadata or {}
    scored, name = told.get("score_config", {}), told.get("backbone")
    known = find_backbone(name) if name else None  # a published one, in its released input format
    return {
        "head": described["eta"],
        "normalize": described.get("eta_kwargs", {}).get("normalize", False),
        # The released class scales by 1 where its JSON is silent; 20 iterations are its default.
        "kernel_scale": kernel.get("temperature", 1.0),
        "n_iters": kernel.get("n_iters", 20),
        "threshold": scored.get("threshold", 0.5),
        "diagonal_window": scored.get("K", 10),
        "plm_name_or_path": name,
        "plm_recipe": f"{known.family}/upstream" if known is not None else None,
        "released_metadata": metadata,
    }


MESSAGE_PARTS = ("residue", "edge", "neighbor")
"""What the first matrix of a message of ProteinMPNN reads, in the order of the published one."""

PROTEIN_MPNN = {
    "edges.position": "features.embeddings.linear",
    "edges.embedding": "features.edge_embedding",
    "edges.norm": "features.norm_edges",
    "edges.output": "W_e",
}
PROTEIN_MPNN_LAYER = {
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


def read_protein_mpnn(pt: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a published ProteinMPNN: the fields of its configuration, and its tensors.

    Raises:
        ValueError: If the file is no ProteinMPNN.
    """
    checkpoint = read_checkpoint(pt)
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
    sizes = {"hidden_size": given[0], "num_layers": max(len(layers), 1), "k_neighbors": edges}
    return sizes | {"atoms": widths[given[1]]}, state


def protein_mpnn_state(
    state: Mapping[str, Any], wanted: Mapping[str, Tensor], pt: str | Path
) -> dict[str, Tensor]:
    """Rename published tensors to those wanted; a message's first matrix is cut into three.

    Raises:
        ValueError: If some are missing or of another shape.
    """
    renamed, differ = {}, {}
    for name, ours in wanted.items():
        published, part = _protein_mpnn_name(name)
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


def _protein_mpnn_name(name: str) -> tuple[str, int | None]:
    """Return what a tensor is called upstream, and which third of that it is."""
    module, kind = name.rsplit(".", 1)
    if module in PROTEIN_MPNN:
        return f"{PROTEIN_MPNN[module]}.{kind}", None
    _, layer, module = module.split(".", 2)
    message, _, part = module.partition(".")
    if part in MESSAGE_PARTS:
        first = f"encoder_layers.{layer}.{'W1' if message == 'node_message' else 'W11'}.{kind}"
        return first, MESSAGE_PARTS.index(part) if kind == "weight" else None
    return f"encoder_layers.{layer}.{PROTEIN_MPNN_LAYER[module]}.{kind}", None
