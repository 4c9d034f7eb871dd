"""Tables and picture of the speed benchmarks, from the figures that `speed.py` measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median

COLOURS = {
    "plasma_hf": "#1f5fa8",
    "plasma_hf, plain torch": "#7fb0dd",
    "published form": "#d9822b",
    "Smith-Waterman (Biopython)": "#777777",
    "TM-align (tmtools)": "#aaaaaa",
}


def write_table(figures: dict, path: Path) -> None:
    """Write everything as Markdown."""
    sections = [
        _machine(figures),
        *("### Score and plan of a pair", _pairs(figures)),
        *("### Forward and backward of a training batch", _training(figures)),
        *("### One protein against a store", _search(figures), _profile(figures)),
        *("### Growth with length", _growth(figures)),
        *("### Distance from the arithmetic limit", _cost(figures)),
    ]
    path.write_text("\n\n".join(sections) + "\n")


def _table(head: list[str], rows: list[list[str]], texts: int = 1) -> str:
    """Lay out a Markdown table, its first columns text, the others numbers."""
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def milliseconds(row: dict) -> float:
    """Return the median of a row."""
    return 1000 * median(row["seconds"])


def _spread(row: dict) -> str:
    times = sorted(1000 * seconds for seconds in row["seconds"])
    return f"{_number(times[0])} to {_number(times[-1])}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _against_ours(rows: list[dict], ours: str) -> dict[int, float]:
    """Return our milliseconds by threads."""
    return {row["threads"]: milliseconds(row) for row in rows if row["method"] == ours}


def _machine(figures: dict) -> str:
    machine, settings = figures["machine"], figures["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores; {versions}. Medians of {settings['repeats']} "
        f"turns ({settings['slow_repeats']} in training and search), in each of which every method "
        "runs once, every other turn in reverse order. "
        f"Embeddings of width {settings['width']}, projections of {settings['head_size']}."
    )


def _pairs(figures: dict) -> str:
    rows, settings = figures["pairs"], figures["settings"]
    ours = _against_ours(rows, "plasma_hf, projections at hand")
    cells = [
        [
            row["method"],
            str(row["threads"]),
            _number(milliseconds(row)),
            _spread(row),
            _number(milliseconds(row) / ours[row["threads"]]),
        ]
        for row in rows
    ]
    head = ["method", "threads", "ms a pair", "lowest to highest", "as a multiple of ours"]
    return (
        f"{settings['pairs']} pairs of {settings['shortest']} to {settings['longest']} residues, "
        "random embeddings with a common stretch; TM-align on real structures of about the same "
        'lengths. A line without "projections at hand" projects both proteins as well. Ours is the '
        "first line on as many threads.\n\n" + _table(head, cells)
    )


def _training(figures: dict) -> str:
    rows = figures["training"]
    ours = _against_ours(rows, "plasma_hf")
    ready = _against_ours(rows, "plasma_hf, projections at hand")
    cells = [
        [
            row["method"],
            str(row["threads"]),
            _number(milliseconds(row)),
            _spread(row),
            _number(
                milliseconds(row)
                / (ready if row["method"].endswith("at hand") else ours)[row["threads"]]
            ),
        ]
        for row in rows
    ]
    head = ["method", "threads", "ms a batch", "lowest to highest", "as a multiple of ours"]
    return (
        f"{figures['settings']['pairs']} pairs, half of them positive, losses of score and label "
        "match; ours as one padded batch, the published form pair by pair. With projections at "
        "hand gradients end at the projections; the projection itself is matrix products, which "
        "no kernel here makes faster.\n\n" + _table(head, cells)
    )


def _search(figures: dict) -> str:
    rows = figures["search"]
    head = ["proteins", "width", "store", "pairs/s", "first pass", "peak memory", "no file behind"]
    cells = [
        [
            f"{row['proteins']:,}",
            str(row["width"]),
            f"{row['store_bytes'] / 1e6:,.0f} MB",
            _number(row["proteins"] / median(row["seconds"])),
            f"{row['first_seconds']:.1f} s",
            f"{row['rss_before'] / 1e6:,.0f} + "
            f"{(row['rss_peak'] - row['rss_before']) / 1e6:,.0f} MB",
            f"{row['anonymous_peak'] / 1e6:,.0f} MB",
        ]
        for row in rows
    ]
    return (
        f"A query of {rows[0]['query_residues']} residues, scores and the best ten, "
        f"{rows[0]['threads']} threads, float16 store in the page cache, a fresh process each. "
        "Memory is what was resident before the search and what came on top of it at most; pages "
        "of mapped files count there, which the system takes back when it needs them, so memory "
        "that no file is behind has a column of its own.\n\n" + _table(head, cells, texts=0)
    )


def _profile(figures: dict) -> str:
    row = max(figures["search"], key=lambda row: row["residues"])
    profile = row["profile"]
    main, beside = Counter(profile["main"]), Counter(profile["beside"])
    names = [name for name, _ in (main + beside).most_common()]
    cells = [
        [name, *(f"{100 * part[name] / profile['seconds']:.1f} %" for part in (main, beside))]
        for name in names
    ]
    return (
        f"Where the time goes ({row['proteins']:,} proteins, width {row['width']}), as shares of "
        "the time of a pass: in the main thread and, at the same time, in those beside it.\n\n"
        + _table(["what", "main thread", "beside it"], cells)
        + f"\n\nThe cost alone takes {100 * _cost_share(figures, row):.0f} % of a pass at the rate "
        f"that it has by itself on one thread (below), were that reached on {row['threads']}."
    )


def _cost_share(figures: dict, row: dict) -> float:
    """Work out the share of the cost in a pass, which compiled code does not show by itself."""
    cost = figures["cost"]
    operations = 2 * row["query_residues"] * row["residues"] * cost["channels"]
    rate = row["threads"] * cost["operations"] / median(cost["rows"][0]["seconds"])
    return operations / rate / median(row["seconds"])


def _growth(figures: dict) -> str:
    rows = figures["growth"]
    lengths = sorted({row["length"] for row in rows})
    times = {(row["method"], row["length"]): milliseconds(row) for row in rows}
    cells = [
        [method, *(_number(times[method, length]) for length in lengths)]
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    return "ms a pair, one thread, projections at hand.\n\n" + _table(
        ["residues of both", *map(str, lengths)], cells
    )


def _cost(figures: dict) -> str:
    cost = figures["cost"]
    peak = cost["peak_operations_per_second"]
    cells = []
    for row in cost["rows"]:
        rate = cost["operations"] / median(row["seconds"])
        share = f"{100 * rate / peak:.0f} %" if peak else "-"
        cells.append([row["method"], f"{milliseconds(row):.3g}", f"{rate / 1e9:.3g}", share])
    n, channels = cost["residues"], cost["channels"]
    limit = (
        f"one core was measured at {peak / 1e9:.3g} thousand million a second from registers, "
        f"which makes {1000 * cost['operations'] / peak:.2g} ms."
        if peak
        else "the limit was not measured, as numba is not installed."
    )
    return (
        f"The cost of a pair of {n} and {n} residues in {channels} channels takes one max and one "
        f"add a channel; {limit}\n\n"
        + _table(["cost, one thread", "ms", "10^9 operations/s", "of the limit"], cells)
    )


def write_figure(figures: dict, path: Path) -> None:
    """Draw ms a pair as bars and time against length, both on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 9, "svg.hashsalt": "speed"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        _draw_bars(left, figures)
        _draw_growth(right, figures)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _colour(method: str) -> str:
    return next(colour for name, colour in reversed(COLOURS.items()) if method.startswith(name))


def _draw_bars(axes, figures: dict) -> None:
    """Draw one bar a method, those on one thread, which all of them can do."""
    rows = sorted((row for row in figures["pairs"] if row["threads"] == 1), key=milliseconds)
    times = [milliseconds(row) for row in rows]
    bars = axes.barh(
        [row["method"].replace(", ", "\n", 1) for row in rows],
        times,
        color=[_colour(row["method"]) for row in rows],
    )
    axes.bar_label(bars, [_number(time) for time in times], padding=3)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 2, 2.5 * max(times))
    settings = figures["settings"]
    axes.set_xlabel("ms a pair, one thread")
    axes.set_title(f"Score and plan, {settings['shortest']} to {settings['longest']} residues")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_growth(axes, figures: dict) -> None:
    """Draw a line a method."""
    rows = figures["growth"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        lengths, times = [row["length"] for row in mine], [milliseconds(row) for row in mine]
        axes.plot(lengths, times, "o-", ms=4, color=_colour(method), label=method)
    lengths = sorted({row["length"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()
    axes.set_xlabel("residues of both proteins")
    axes.set_ylabel("ms a pair, one thread")
    axes.set_title("Growth with length, projections at hand")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
