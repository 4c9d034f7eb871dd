"""How long it takes to build, open and search an index; prints a table.

Run it from the root of the repository: python -m tests.benchmarks.search_index [RECORDS ...]
The vectors are random, 384 wide: what is measured is the index, not a model.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from plasma_hf.search import Index, build_index

WIDTH, QUERIES, TOP_K = 384, 50, 5


class Random(nn.Module):
    """Embed every sequence as noise."""

    config = SimpleNamespace(name_or_path="random")

    def embed_sequences(self, sequences: list[str], batch_size: int = 32) -> torch.Tensor:
        return torch.randn(len(sequences), WIDTH)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure(count: int) -> dict[str, float]:
    """Give seconds for a build, an opening, one query (median), and a query among many."""
    model = Random()
    letters = "ACDEFGHIKLMNPQRSTVWY"
    records = ((f"P{i}", letters[i % 20] * (10 + i % 90)) for i in range(count))
    queries = torch.randn(QUERIES, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        build, _ = seconds(lambda: build_index(model, records, folder))
        opened, index = seconds(lambda: Index.open(folder, model))
        alone = [seconds(lambda q=query: index.search(q[None], TOP_K))[0] for query in queries]
        together, _ = seconds(lambda: index.search(queries, TOP_K))
    return {
        "build": build,
        "open": opened,
        "first query": alone[0],
        "query": median(alone),
        "slowest query": max(alone[1:]),
        "query among 50": together / QUERIES,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    for count in map(int, sys.argv[1:] or ["10000"]):
        print(f"{count} records")
        for name, value in measure(count).items():
            print(f"  {name:<15} {1000 * value:10.1f} ms")
