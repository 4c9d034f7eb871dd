"""A few updates of ProtAlign's heads, which tests run in one process and on several ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.multiprocessing import start_processes
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from plasma_hf import ProtAlignConfig, ProtAlignModel
from plasma_hf.models.modeling_protalign import clip_loss, siglip_loss
from plasma_hf.training.distributed import gather_ranks, leave_ranks

PAIRS, UPDATES = 12, 3
LOSSES = {
    "clip": {"loss": "clip"},
    "clip_learnt": {"loss": "clip", "learn_temperature": True},
    "clip_standardized": {"loss": "clip", "spread": True, "standardize": True},
    "siglip": {"loss": "siglip"},
    "siglip_chunked": {"loss": "siglip", "loss_chunk": 2},
}


def make_batch() -> dict[str, torch.Tensor]:
    """Draw pairs of one batch; the first and the last, of different ranks, are of one group."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sequence_embeddings": torch.randn(PAIRS, 6, 16, generator=generator),
        "structure_embeddings": torch.randn(PAIRS, 5, 8, generator=generator),
        "groups": torch.tensor([0, *range(PAIRS - 2), 0]),
    }


def shares(pairs: int, ranks: int, unequal: bool = False) -> list[slice]:
    """Cut a batch for ranks; unequally, the first has two pairs more than it should."""
    ends = [pairs * (i + 1) // ranks for i in range(ranks)]
    ends[0] += 2 if unequal else 0
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def train(fields: dict, share: slice, distributed: bool) -> dict[str, torch.Tensor]:
    """Update on this rank's share, and return the weights."""
    torch.manual_seed(0)
    sizes = {"sequence_size": 16, "structure_size": 8, "hidden_size": 8, "num_heads": 2}
    model = ProtAlignModel(ProtAlignConfig(**sizes, **fields)).train()
    wrapped = DistributedDataParallel(model) if distributed else model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    batch = {name: values[share] for name, values in make_batch().items()}
    for _ in range(UPDATES):
        optimizer.zero_grad()
        wrapped(**batch, gather=gather_ranks).loss.backward()
        optimizer.step()
    return model.state_dict()


def reference(case: Path, kind: str, share: slice) -> dict[str, torch.Tensor]:
    """Return this rank's loss on reference pairs and the gradient of the ranks' mean."""
    tensors = load_file(case)
    x, y = (tensors[name].clone().requires_grad_() for name in "xy")
    mine = normalize(x, dim=-1)[share], normalize(y, dim=-1)[share]
    if kind == "clip":
        loss = clip_loss(*mine, 0.07, gather=gather_ranks)
    else:
        loss = siglip_loss(*mine, 10.0, -10.0, gather=gather_ranks, chunk=3)
    loss.backward()
    found = {"loss": loss.detach().reshape(1), "grad_x": x.grad, "grad_y": y.grad}
    for value in found.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return found


def work(rank: int, ranks: int, folder: Path, golden: list[Path]) -> None:
    """Do everything as one of several ranks; the first writes what all came to."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks
    )
    results: dict[str, torch.Tensor] = {}
    for name, fields in LOSSES.items():
        for way in ("equal", "unequal"):
            share = shares(PAIRS, ranks, way == "unequal")[rank]
            found = train(fields, share, distributed=True)
            results |= {f"{name}/{way}/{key}": value for key, value in found.items()}
    for path in golden:
        share = shares(len(load_file(path)["x"]), ranks)[rank]
        for kind in ("clip", "siglip"):
            found = reference(path, kind, share)
            results |= {f"{path.stem}/{kind}/{key}": value for key, value in found.items()}
    if rank == 0:
        save_file(results, folder / f"{ranks}.safetensors")
    leave_ranks()


if __name__ == "__main__":
    folder, *golden = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    for ranks in (2, 4):
        # Forked, the ranks need not import everything again.
        start_processes(work, (ranks, folder, golden), nprocs=ranks, start_method="fork")
