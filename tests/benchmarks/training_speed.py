"""Pairs a second, forward and backward, from an embedding store, and the memory that takes.

Run as `python -m tests.benchmarks.training_speed [--sites active_site.csv] [--pairs 320]`. All
proteins of the table are embedded once by the bundled encoder; then pairs drawn from all of them
are trained on by `PlasmaTrainer` in batches, and by a plain loop in the published style at batch 1.
The peak of resident memory is that of the whole process, the mapped part of the store included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from plasma_hf import PlasmaModel
from plasma_hf.data import EmbeddingStore, PairCollator, read_site_table, sample_matched_pairs
from plasma_hf.data.store import sequence_hash
from plasma_hf.training import PRESETS, PairRows, PlasmaTrainer
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.published_form import PublishedForm

SITES = Path(__file__).parents[3] / "shared" / "data" / "sites" / "active_site.csv"


def bundled_backbone():
    """Return the backbone of the default checkpoint."""
    from plasma_hf.cli.embed import load_embedder

    return load_embedder(None, None, None, None, "cpu", False)[0]


def make_store(folder, proteins, backbone, dtype):
    store = EmbeddingStore.create(folder, backbone, dtype=dtype)
    sequences = sorted({protein.sequence for protein in proteins})
    store.add([(sequence_hash(sequence), sequence) for sequence in sequences], backbone)
    return EmbeddingStore.open(folder)


def with_trainer(store, pairs, width, preset, folder, **arguments):
    """Return pairs a second of `PlasmaTrainer`, after a few batches that are not counted."""
    recipe = PRESETS[preset]
    given = recipe.training_arguments(
        folder, use_cpu=True, disable_tqdm=True, num_train_epochs=1, **arguments
    )
    given.eval_strategy = given.save_strategy = "no"
    model = PlasmaModel(recipe.plasma_config(width))
    collate = PairCollator(store)
    seconds = 0.0
    for part in (pairs[: 2 * given.train_batch_size], pairs):  # kernels compile in the first
        rows = PairRows(part, recipe.correspondences)
        trainer = PlasmaTrainer(
            model, given, data_collator=collate, train_dataset=rows, eval_dataset=rows
        )
        seconds = trainer.train().metrics["train_runtime"]
    return len(pairs) / seconds


def with_plain_loop(store, pairs, width):
    """Return pairs a second of a loop over single pairs, all in plain torch."""
    model = PlasmaModel(PRESETS["published"].plasma_config(width))
    published = PublishedForm(model).train()
    optimizer = torch.optim.Adam(published.parameters(), lr=1e-4)
    start = time.perf_counter()
    for pair in pairs:
        sides = [
            store.read_sequence(p.sequence, dtype=torch.float32)
            for p in (pair.query, pair.candidate)
        ]
        sites = [torch.tensor(p.site_labels).float() for p in (pair.query, pair.candidate)]
        optimizer.zero_grad()
        published.loss(*sides, pair.label, *sites).backward()
        optimizer.step()
    return len(pairs) / (time.perf_counter() - start)


def peak_resident_bytes():
    """Return the most memory that this process had resident, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(sites, folder, n_pairs, n_plain, dtype, max_length=1024):
    proteins = [p for p in read_site_table(sites)[0] if len(p.sequence) <= max_length]
    backbone = bundled_backbone()
    start = time.perf_counter()
    store = make_store(Path(folder) / "store", proteins, backbone, dtype)
    embedding = time.perf_counter() - start
    pairs = sample_matched_pairs(proteins, n_pairs // 2, n_pairs // 2, seed=1)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [pairs[i] for i in order]
    width = backbone.hidden_size
    figures = {
        "improved": with_trainer(store, pairs, width, "improved", folder),
        "published": with_trainer(store, pairs[:n_plain], width, "published", folder),
        "published, batches of 16": with_trainer(
            store, pairs, width, "published", folder, per_device_train_batch_size=16
        ),
    }
    peak = peak_resident_bytes()
    figures["plain loop, batch 1"] = with_plain_loop(store, pairs[:n_plain], width)
    return {
        "pairs_per_second": {name: round(value, 2) for name, value in figures.items()},
        "pairs": n_pairs,
        "proteins": len(proteins),
        "embedding_seconds": round(embedding, 1),
        "peak_gigabytes": round(peak / 1e9, 2),
        "store_gigabytes": round(store.estimate(store.lengths.values()) / 1e9, 2),
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }


def to_markdown(result):
    speeds = result["pairs_per_second"]
    plain = speeds["plain loop, batch 1"]
    lines = ["| training | pairs/s | times the plain loop |", "|---|--:|--:|"]
    lines += [f"| {name} | {value:.1f} | {value / plain:.1f} |" for name, value in speeds.items()]
    return "\n".join(
        [
            *lines,
            "",
            f"{result['proteins']} proteins, {result['pairs']} pairs drawn from all, "
            f"{result['threads']} thread(s); a store of {result['store_gigabytes']} GB, peak "
            f"resident memory {result['peak_gigabytes']} GB.",
        ]
    )


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=Path, default=SITES)
    parser.add_argument("--pairs", type=int, default=640)
    parser.add_argument("--plain-pairs", type=int, default=64)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        result = measure(
            given.sites, folder, given.pairs, given.plain_pairs, given.dtype, given.max_length
        )
    print(to_markdown(result))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "training_speed.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.out / "training_speed.md").write_text(to_markdown(result) + "\n")
    return result


if __name__ == "__main__":
    main()
