"""Measure how fast pairs are aligned, trained on and searched, and what others take for it.

Run as `python -m tests.benchmarks.speed [--quick] [--out FOLDER]`. It writes `speed.json` with
every figure, `speed.md` with the tables and `speed.svg` with the picture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import use_kernels
from plasma_hf.models.modeling_plasma import hinge_cost
from tests.benchmarks.machine import describe_machine, peak_operations, threads
from tests.benchmarks.published_form import PublishedForm
from tests.benchmarks.search_speed import build_store, measure_search
from tests.benchmarks.site_pairs import GAP_OPEN, align
from tests.benchmarks.speed_figure import write_figure, write_table
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
        growth: lengths of both proteins of a pair.
        stores: proteins and width of each store that is searched.
        store_longest: longest protein of a store.
        peak_turns: turns of the loop that measures the arithmetic limit.
    """

    pairs: int = 16
    shortest: int = 150
    longest: int = 500
    width: int = 1280
    head_size: int = 512
    repeats: int = 5
    slow_repeats: int = 3
    growth: tuple[int, ...] = (100, 200, 400, 800, 1600)
    stores: tuple[tuple[int, int], ...] = ((1000, 320), (5000, 320), (1000, 1280))
    store_longest: int = 1024
    peak_turns: int = 20_000_000


QUICK = Settings(
    pairs=2,
    shortest=30,
    longest=50,
    width=16,
    head_size=8,
    repeats=2,
    slow_repeats=1,
    growth=(20, 40),
    stores=((12, 16),),
    store_longest=100,
    peak_turns=100_000,
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
        align(query, candidate, "local", GAP_OPEN["smith_waterman"])


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


def measure_growth(settings: Settings) -> list[dict]:
    """Time one pair of two proteins of one length, projections at hand, on one thread."""
    model = make_model(settings.width, settings.head_size)
    published = PublishedForm(model).eval()
    rows = []
    for length in settings.growth:
        sides = make_pairs([(length, length)], settings.width)
        with torch.no_grad():
            sides += tuple([model.project(side[0])] for side in sides)
        queries, candidates, query_projections, candidate_projections = sides
        ours = partial(
            model.align_pairs,
            queries,
            candidates,
            query_projections=query_projections,
            candidate_projections=candidate_projections,
        )
        theirs = torch.no_grad()(partial(published, *(side[0] for side in sides)))
        sequences = make_sequences([(length, length)])
        tasks = [
            Task(OURS, 1, ours),
            Task(OURS_TORCH, 1, ours, "torch"),
            Task(PUBLISHED, 1, theirs),
            Task(SMITH_WATERMAN, 1, partial(_smith_waterman, sequences)),
        ]
        rows += [{"length": length} | row for row in take_turns(tasks, settings.repeats)]
    return rows


def measure_cost(settings: Settings, length: int = 300) -> dict:
    """Compare the cost of one pair with the arithmetic limit: operations a second of one core."""
    generator = torch.Generator().manual_seed(0)
    size = (1, min(length, settings.longest), settings.head_size)
    query, candidate = (torch.randn(size, generator=generator) for _ in range(2))
    operations = 2 * size[1] ** 2 * size[2]  # one max and one add a channel
    run = torch.no_grad()(partial(hinge_cost, query, candidate))
    tasks = [Task(OURS, 1, run), Task(OURS_TORCH, 1, run, "torch")]
    # On a machine that others use too, the limit is what it gave at best, before or after.
    peaks = [peak_operations(settings.peak_turns, settings.repeats)]
    rows = take_turns(tasks, settings.repeats)
    peaks.append(peak_operations(settings.peak_turns, settings.repeats))
    found = [peak for peak in peaks if peak is not None]
    return {
        "residues": size[1],
        "channels": size[2],
        "operations": operations,
        "peak_operations_per_second": max(found) if found else None,
        "rows": rows,
    }


def measure_searches(settings: Settings) -> list[dict]:
    """Search stores on disk, each in a process of its own."""
    rows = []
    for count, width in settings.stores:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "store"
            build_store(folder, count, width, settings.head_size, settings.store_longest)
            rows.append(measure_search(folder, settings.head_size, settings.slow_repeats))
    return rows


def measure(settings: Settings) -> dict:
    """Measure everything."""
    all_threads = torch.get_num_threads()
    figures = {"settings": asdict(settings), "machine": describe_machine()}
    steps = {
        "cost": partial(measure_cost, settings),
        "pairs": partial(measure_pairs, settings, all_threads),
        "training": partial(measure_training, settings, all_threads),
        "growth": partial(measure_growth, settings),
        "search": partial(measure_searches, settings),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        figures[name] = step()
        print(f"{name}: measured in {time.perf_counter() - start:.0f} s", flush=True)
    return figures


def write(figures: dict, folder: Path) -> None:
    """Write figures, tables and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_table(figures, folder / "speed.md")
    write_figure(figures, folder / "speed.svg")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all")
    parser.add_argument("--out", type=Path, help=f"folder of the results, by default {RESULTS}")
    options = parser.parse_args(arguments)
    # Figures of tiny sizes mean nothing, and never take the place of real ones by default.
    folder = options.out or (Path(tempfile.mkdtemp()) if options.quick else RESULTS)
    write(measure(QUICK if options.quick else Settings()), folder)
    print((folder / "speed.md").read_text())
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
