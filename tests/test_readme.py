"""Every snippet of README and docs runs, and prints what the page says it prints."""

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plasma_hf.backbones import BACKBONES
from plasma_hf.cli.main import app
from plasma_hf.models.modeling_backbone import UNTRAINED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SAID = {
    "align": "P00766|2cga_B",
    "embed": "2 embedded",
    "train": "head holds the head",
    "evaluate": "smith-waterman",
    "search": "2cga_B",
    "site": "B:H57=E:H57",
    "database": "10 proteins",
    "index": "8 embedded",
}


def snippets():
    """Yield each Python block with what the page says it prints."""
    for page in PAGES:
        blocks = BLOCK.findall(page.read_text())
        followers = [*blocks[1:], ("", "")]
        for number, ((kind, code), after) in enumerate(zip(blocks, followers, strict=False)):
            if kind == "python":
                yield pytest.param(code, after, id=f"{page.name}-{number}")


@pytest.mark.parametrize(("code", "after"), list(snippets()))
def test_python_snippets_print_what_follows_them(code, after, monkeypatch):
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    assert after == ("text", printed.getvalue())


def commands(page):
    """Yield the commands of a page in their order."""
    for kind, block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", "").splitlines() if kind == "bash" else ():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if list(commands(p))], ids=lambda p: p.name)
def test_commands(page, monkeypatch, tmp_path):
    os.symlink(ROOT / "demo", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)  # what one command writes the next may read
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, verb, *words in commands(page):
        if program == "make":
            assert verb in targets
            continue
        assert program == "plasma-hf"
        done = CliRunner().invoke(app, [verb, *words])
        assert done.exit_code == 0, (verb, words, done.output)
        assert re.search(SAID[verb], done.output), (verb, words)


def test_map_and_links_name_what_is_there():
    for page in PAGES:
        for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / path).exists(), (page.name, path)
    for room in re.findall(r"^\| `([^`]+(?:/|\.py))`", README, re.MULTILINE):
        assert (ROOT / room).exists(), room


def test_the_readme_is_short_and_its_figures_are_those_of_the_benchmark():
    assert len(README.splitlines()) <= 250
    figures = (ROOT / "tests/benchmarks/results/bundled_protalign.md").read_text()
    [attention] = [line for line in figures.splitlines() if line.startswith("| attention")]
    explained = (ROOT / "tests/benchmarks/results/explained_search.md").read_text()
    [whole] = [line for line in explained.splitlines() if ", whole |" in line]
    numbers = re.findall(r"0(\.\d+) ±", attention)[:2] + re.findall(r"0(\.\d+)", whole)[2:3]
    for number in numbers:
        assert number in README


def test_every_named_backbone_is_in_the_table():
    rows = [line for line in (ROOT / "docs/backbones.md").read_text().splitlines()]
    rows = [line for line in rows if line.startswith("| `")]
    for name, known in BACKBONES.items():
        if known.short:
            [row] = [row for row in rows if row.startswith(f"| `{known.short}` |")]
            bundled = not known.forms or name in UNTRAINED
            hub_id = "bundled" if bundled else known.model_id
            words = (hub_id, known.licence, known.size or "-", str(known.width))
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert all(map(str.startswith, cells[1:5], words)), name
        if not known.forms or name in UNTRAINED:  # any tokenizer's, or one of its own
            continue
        [row] = [row for row in rows if f"`{name}`" in row]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert str(known.width) in cells[2], name
        assert known.licence in cells[5] or "cards" in cells[5], name
        assert ("-" == cells[4]) == ("upstream" not in known.forms), name
