"""Every snippet of the README runs, and prints what the README says it prints."""

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

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(README)

SAID = {
    "align": "P00766",
    "embed": "2 embedded",
    "train": "head holds the head",
    "evaluate": "smith-waterman",
    "search": "2cga_B",
    "index": "8 embedded",
}


def test_python_snippets_print_what_follows_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    snippets = 0
    for (language, code), (following, wanted) in zip(BLOCKS, BLOCKS[1:] + [("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
        assert following == "text" and printed.getvalue() == wanted
        snippets += 1
    assert snippets >= 2


def commands():
    blocks = [block.replace("\\\n", "") for kind, block in BLOCKS if kind == "bash"]
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Where commands run one after another; what one writes the next may read."""
    folder = tmp_path_factory.mktemp("readme")
    os.symlink(ROOT / "demo", folder / "demo")
    return folder


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands(command, monkeypatch, workplace):
    if command[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert command[1] in targets
        return
    monkeypatch.chdir(workplace)
    assert command[0] == "plasma-hf"
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    assert SAID[command[1]] in done.output


def test_map_and_links_name_what_is_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    for room in re.findall(r"^\| `([^`]+(?:/|\.py))`", README, re.MULTILINE):
        assert (ROOT / room).exists(), room


@pytest.mark.parametrize("name", ["bundled_protalign", "speed"])
def test_the_figures_are_those_of_the_benchmark(name):
    figures = (ROOT / f"tests/benchmarks/results/{name}.md").read_text()
    assert figures.strip() in README


def test_every_named_backbone_is_in_the_table():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    for name, known in BACKBONES.items():
        [row] = [row for row in rows if f"`{name}`" in row]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert str(known.width) in cells[2], name
        assert known.licence in cells[5] or "cards" in cells[5], name
        assert ("-" == cells[4]) == ("upstream" not in known.forms), name
