"""One protein against a store: pairs a second, and memory.

Run as `python -m tests.benchmarks.search_speed FOLDER HEAD_SIZE REPEATS` by `measure_search`: a
fresh process each, whose memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from plasma_hf.data import EmbeddingStore
from tests.benchmarks.machine import memory
from tests.benchmarks.speed_inputs import RandomEmbedder, make_model, store_sequences

ROOT = Path(__file__).parents[2]
TOP_K = 10


def build_store(folder: Path, count: int, width: int, head_size: int, longest: int) -> None:
    """Write a store of real lengths and random numbers, in float16, with projections."""
    embedder, head = RandomEmbedder(width), make_model(width, head_size)
    kinds = ("embeddings", "projections")
    store = EmbeddingStore.create(folder, embedder, head, dtype="float16", kinds=kinds)
    report = store.add(store_sequences(count, longest).items(), embedder, head)
    assert report.embedded == count and not report.bad


def measure_search(folder: Path, head_size: int, repeats: int) -> dict:
    """Run `search` in a fresh process and return what it measured."""
    command = [sys.executable, "-m", __spec__.name, str(folder), str(head_size), str(repeats)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def search(folder: Path, head_size: int, repeats: int) -> dict:
    """Score one query against all of a store, scores and the best ten alone.

    The first pass, in which kernels are loaded, is kept apart.
    """
    store = EmbeddingStore.open(folder)
    embedder = RandomEmbedder(store.header.hidden_size)
    model, query = make_model(embedder.hidden_size, head_size), embedder.query
    before = memory("VmRSS")

    def run() -> float:
        start = time.perf_counter()
        [hits] = model.score_many([query], store, top_k=TOP_K, return_plans=False)
        seconds = time.perf_counter() - start
        assert len(hits) == min(TOP_K, len(store))
        return seconds

    first, seconds = run(), [run() for _ in range(repeats)]
    peak = memory("VmHWM")
    files = folder.glob("**/*.safetensors")
    return {
        "proteins": len(store),
        "width": embedder.hidden_size,
        "first_seconds": first,
        "seconds": seconds,
        "rss_before": before,
        "rss_peak": peak,
        "store_bytes": sum(file.stat().st_size for file in files),
    }


if __name__ == "__main__":
    print(json.dumps(search(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
