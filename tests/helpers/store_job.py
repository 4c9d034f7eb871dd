"""A small random ESM as an embedder, and a job with it that tests start, stop and share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import EsmConfig, EsmModel

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import EmbeddingReport, EmbeddingStore
from tests.helpers.kill_points import serve

SHARD_BYTES = 200_000
RESIDUES_PER_BATCH = 1000


class TinyEsm:
    """Embed a padded batch at once, so that a record depends on its batch in the last bits."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        config = EsmConfig(
            vocab_size=33,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            position_embedding_type="rotary",
            pad_token_id=1,
            mask_token_id=32,
        )
        self.model = EsmModel(config, add_pooling_layer=False).eval()
        self.hidden_size, self.calls = width, 0
        self.fingerprint = {
            "backbone": f"tiny/esm{width}",
            "revision": "main",
            "recipe": "esm2/native",
            "weights": f"{seed:064x}",
        }

    def embed(self, sequences: list[str]) -> list[torch.Tensor]:
        self.calls += 1
        longest = max(map(len, sequences))
        ids = torch.tensor([[ord(c) - 61 for c in s] + [1] * (longest - len(s)) for s in sequences])
        hidden = self.model(input_ids=ids, attention_mask=(ids != 1).long()).last_hidden_state
        return [row[: len(s)] for row, s in zip(hidden, sequences, strict=True)]


def make_head(width: int = 32, seed: int = 1) -> PlasmaModel:
    torch.manual_seed(seed)
    return PlasmaModel(PlasmaConfig(embedding_size=width, head_size=8)).eval()


def run(fasta: str | Path, folder: str | Path) -> EmbeddingReport:
    embedder, head = TinyEsm(), make_head()
    store = EmbeddingStore.create(folder, embedder, head, dtype="float16")
    job = store.prepare(fasta, RESIDUES_PER_BATCH)
    store.shard_bytes = SHARD_BYTES
    return store.run(job, embedder, head)


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
        run(sys.argv[1], sys.argv[2])
        torch.distributed.barrier()  # torchrun's store goes when the first rank does
        torch.distributed.destroy_process_group()
    else:
        serve(run)
