"""Measure how fast pairs are aligned, trained on and searched, and what others take for it.

Run as `python -m tests.benchmarks.speed [--quick] [--out FOLDER]`. It writes `speed.md`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import pipeline

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.evaluation.aligners import align_sequences
from plasma_hf.io.formats import markdown_table
from plasma_hf.kernels import use_kernels
from tests.benchmarks.machine import describe_machine, threads
from tests.benchmarks.published_form import PublishedForm
from tests.benchmarks.search_speed import build_store, measure_search
from tests.benchmarks.speed_inputs import (
    make_model,
    make_pairs,
    make_sequences,
    make_training_batch,
    random_lengths,
    structures_like,
)

RESULTS = Path(__file__).parent / "results"
OURS, OURS_TORCH, PUBLISHED = "plasma_hf", "plasma_hf, plain torch", "published form"
SHORT = 2.0
"""Seconds, below which a task is run once unmeasured before it is measured."""
AT_HAND = ", projections at hand"
SMITH_WATERMAN, TM_ALIGN = "Smith-Waterman (Biopython)", "TM-align (tmtools)"


@dataclass(frozen=True)
class Settings:
    """Hold how much is measured.

    Attributes:
        pairs: pairs that are aligned; also those of a training batch.
        shortest, longest: bounds of their random lengths.
        width: of residue embeddings.
        head_size: of projections.
        repeats: turns, in each of which every method runs once.
        slow_repeats: the same for training and for passes over a store.
        stores: proteins and width of each store that is searched.
        store_longest: longest protein of a store.
    """

    pairs: int = 16
    shortest: int = 150
    longest: int = 500
    width: int = 1280
    head_size: int = 512
    repeats: int = 5
    slow_repeats: int = 3
    stores: tuple[tuple[int, int], ...] = ((1000, 320), (5000, 320), (1000, 1280))
    store_longest: int = 1024


QUICK = Settings(
    pairs=2,
    shortest=30,
    longest=50,
    width=16,
    head_size=8,
    repeats=2,
    slow_repeats=1,
    stores=((12, 16),),
    store_longest=100,
)


@dataclass(frozen=True)
class Task:
    """Hold one thing to time: what it is called, on how many threads, and the call."""

    method: str
    threads: int
    run: Callable[[], object]
    kernels: str | None = None

    def seconds(self) -> float:
        """Time one call."""
        with threads(self.threads), use_kernels(self.kernels) if self.kernels else nullcontext():
            start = time.perf_counter()
            self.run()
            return time.perf_counter() - start


def take_turns(tasks: list[Task], repeats: int, per: int = 1) -> list[dict]:
    """Time tasks in turns, every other turn backwards, so that drift of the machine meets all.

    Returns for each task its name, threads and seconds of each turn, divided by `per`.
    """
    seconds: list[list[float]] = [[] for _ in tasks]
    first = [task.seconds() for task in tasks]  # compiles kernels, among other things
    for turn in range(repeats):
        order = range(len(tasks)) if turn % 2 == 0 else reversed(range(len(tasks)))
        for i in order:
            if first[i] < SHORT:
                tasks[i].seconds()  # settles: the last task's threads may still be awake
            seconds[i].append(tasks[i].seconds() / per)
    return [
        {"method": task.method, "threads": task.threads, "seconds": each}
        for task, each in zip(tasks, seconds, strict=True)
    ]


def measure_pairs(settings: Settings, all_threads: int) -> list[dict]:
    """Time score and plan of pairs: ours, the published form, Smith-Waterman and TM-align."""
    lengths = random_lengths(settings.pairs, settings.shortest, settings.longest)
    queries, candidates = make_pairs(lengths, settings.width)
    model = make_model(settings.width, settings.head_size)
    published = PublishedForm(model).eval()
    with torch.no_grad():
        projections = [[model.project(p) for p in side] for side in (queries, candidates)]
    at_hand = dict(zip(("query_projections", "candidate_projections"), projections, strict=True))

    def ours(**given):
        model.align_pairs(queries, candidates, **given)

    def ours_singly():
        for query, candidate, *pair in zip(queries, candidates, *projections, strict=True):
            given = {name: [p] for name, p in zip(at_hand, pair, strict=True)}
            model.align_pairs([query], [candidate], **given)

    @torch.no_grad()
    def theirs(*given):
        for pair in zip(queries, candidates, *given, strict=True):
            published(*pair)

    tasks = []
    for count in sorted({all_threads, 1}, reverse=True):
        tasks += [
            Task(OURS + AT_HAND, count, partial(ours, **at_hand)),
            Task(f"{OURS}{AT_HAND}, one pair a call", count, ours_singly),
            Task(OURS_TORCH + AT_HAND, count, partial(ours, **at_hand), "torch"),
            Task(OURS, count, ours),
            Task(PUBLISHED + AT_HAND, count, partial(theirs, *projections)),
            Task(PUBLISHED, count, theirs),
        ]
    tasks += [Task(SMITH_WATERMAN, 1, partial(_smith_waterman, make_sequences(lengths)))]
    tasks += _tm_align(lengths)
    return take_turns(tasks, settings.repeats, per=settings.pairs)


def _smith_waterman(pairs: list[tuple[str, str]]) -> None:
    for query, candidate in pairs:
        align_sequences(query, candidate, "local")


def _tm_align(lengths: list[tuple[int, int]]) -> list[Task]:
    """Return a task on real structures of about these lengths, or none with the reason said."""
    try:
        from tmtools import tm_align

        pairs = structures_like(lengths)
    except (ImportError, FileNotFoundError) as error:
        print(f"TM-align is left out: {error}")
        return []

    def run():
        for (first, first_letters), (second, second_letters) in pairs:
            tm_align(first, second, first_letters, second_letters)

    return [Task(TM_ALIGN, 1, run)]


def measure_training(settings: Settings, all_threads: int) -> list[dict]:
    """Time forward and backward of one batch: padded, and as single pairs in the published form."""
    lengths = random_lengths(settings.pairs, settings.shortest, settings.longest)
    padded, single = make_training_batch(lengths, settings.width)
    model = make_model(settings.width, settings.head_size).train()
    published = PublishedForm(model).train()
    # The same without the projection, which is matrix products in any form: its gradient ends
    # at the projections.
    ready, ready_single = make_training_batch(lengths, settings.head_size)
    ready_config = PlasmaConfig(embedding_size=settings.head_size, head="hinge", normalize=False)
    ready_model, ready_published = PlasmaModel(ready_config).train(), PublishedForm(model).train()
    ready_published.project = torch.nn.Identity()
    for side in ("query_embeddings", "candidate_embeddings"):
        ready[side].requires_grad_(True)
    for query, candidate, *_ in ready_single:
        query.requires_grad_(True), candidate.requires_grad_(True)

    def ours(model, batch):
        model.zero_grad()
        model(**batch).loss.backward()

    def theirs(published, pairs):
        published.zero_grad()
        torch.stack([published.loss(*pair) for pair in pairs]).sum().backward()

    tasks = []
    for count in sorted({all_threads, 1}, reverse=True):
        tasks += [
            Task(OURS, count, partial(ours, model, padded)),
            Task(OURS_TORCH, count, partial(ours, model, padded), "torch"),
            Task(PUBLISHED, count, partial(theirs, published, single)),
            Task(OURS + AT_HAND, count, partial(ours, ready_model, ready)),
            Task(PUBLISHED + AT_HAND, count, partial(theirs, ready_published, ready_single)),
        ]
    return take_turns(tasks, settings.slow_repeats)


def measure_default(settings: Settings) -> list[dict]:
    """Time the default from sequences to segments, the published form over it, Smith-Waterman."""
    sequences = make_sequences(random_lengths(settings.pairs, settings.shortest, settings.longest))
    default = pipeline("protein-alignment")
    published = pipeline(
        "protein-alignment",
        model=PlasmaModel(PlasmaConfig(embedding_size=420, head="hinge")).attach_backbone(
            default.model.backbone
        ),
        processor=default.processor,
    )
    tasks = [
        Task("the default", 1, partial(default, sequences)),
        Task("PLASMA-PF, published form, over the same windows", 1, partial(published, sequences)),
        Task(SMITH_WATERMAN, 1, partial(_smith_waterman, sequences)),
    ]
    return take_turns(tasks, settings.repeats, per=settings.pairs)


def measure_searches(settings: Settings) -> list[dict]:
    """Search stores on disk, each in a process of its own."""
    rows = []
    for count, width in settings.stores:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "store"
            build_store(folder, count, width, settings.head_size, settings.store_longest)
            rows.append(measure_search(folder, settings.head_size, settings.slow_repeats))
    return rows


def table(rows: list[dict], each: str) -> str:
    """Lay out times, each beside that of the first row of as many threads and as much at hand."""
    first: dict = {}
    cells = []
    for row in rows:
        times = [1000 * seconds for seconds in row["seconds"]]
        kind = row["threads"], row["method"].endswith("at hand") or each != "ms a batch"
        ratio = median(times) / first.setdefault(kind, median(times))
        spread = f"{_number(min(times))} to {_number(max(times))}"
        cells.append(
            [row["method"], str(row["threads"]), _number(median(times)), spread, _number(ratio)]
        )
    head = ["method", "threads", each, "lowest to highest", "times the first"]
    return markdown_table(head, cells)


def search_table(rows: list[dict]) -> str:
    """Lay out what searches took."""
    head = ["proteins", "width", "store", "pairs/s", "first pass", "memory before", "and on top"]
    return markdown_table(
        head,
        [
            [
                f"{row['proteins']:,}",
                str(row["width"]),
                f"{row['store_bytes'] / 1e6:,.0f} MB",
                _number(row["proteins"] / median(row["seconds"])),
                f"{row['first_seconds']:.1f} s",
                f"{row['rss_before'] / 1e6:,.0f} MB",
                f"{(row['rss_peak'] - row['rss_before']) / 1e6:,.0f} MB",
            ]
            for row in rows
        ],
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(settings: Settings) -> str:
    """Measure everything, and return it as Markdown."""
    count = torch.get_num_threads()
    lengths = f"{settings.pairs} pairs of {settings.shortest} to {settings.longest} residues"
    return "\n\n".join(
        [
            f"{describe_machine()}. Medians of {settings.repeats} turns "
            f"({settings.slow_repeats} in training and search), in each of which every method runs "
            "once, every other turn in reverse order.",
            "### The default, from sequences to segments",
            f"{lengths}, random sequences with a common stretch.",
            table(measure_default(settings), "ms a pair"),
            "### Score and plan of a pair, as published",
            f"{lengths}, random embeddings with a common stretch, width {settings.width}, "
            f"projections of {settings.head_size}; TM-align on real structures of about the same "
            'lengths. A line without "projections at hand" projects both proteins as well.',
            table(measure_pairs(settings, count), "ms a pair"),
            "### Forward and backward of a training batch",
            f"{settings.pairs} pairs, half of them positive, losses of score and label match; ours "
            "as one padded batch, the published form pair by pair. With projections at hand "
            "gradients end at the projections, and are compared with such.",
            table(measure_training(settings, count), "ms a batch"),
            "### One protein against a store",
            "A query of 300 residues by the published form, scores and the best ten, float16 store "
            f"in the page cache, a fresh process each, {count} threads. Pages of mapped files "
            "count as memory; the system takes them back when it needs them.",
            search_table(measure_searches(settings)),
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--out", type=Path, help=f"folder of the results, by default {RESULTS}")
    options = parser.parse_args(arguments)
    # Figures of tiny sizes mean nothing, and never take the place of real ones by default.
    folder = options.out or (Path(tempfile.mkdtemp()) if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    text = measure(QUICK if options.quick else Settings())
    (folder / "speed.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
