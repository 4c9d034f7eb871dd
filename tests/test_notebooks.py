"""Every notebook runs from the top, in a process that may open the sockets of its kernel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub import serve

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print("".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ())))
"""


def run(path, **environment):
    """Run a notebook from the top and return what its cells printed."""
    command = [sys.executable, "-c", RUN, path.name]
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    run(path, HF_HOME=str(tmp_path))


@pytest.mark.slow
def test_what_is_published_loads_from_a_hub(tmp_path):
    path = ROOT / "notebooks" / "5_publish_and_load.ipynb"
    with serve() as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        place = {"PUBLISH_TO": "org/plasma", "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path)}
        printed = run(path, **hub, **place)
    assert re.search(r"^transformers_modules PlasmaModel\n0\.\d+ 0\.\d+$", printed, re.M)
    assert (tmp_path / "hub" / "models--org--plasma").is_dir()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_of_it_is_short_and_names_no_machine(path):
    text = path.read_text()
    assert len(text) < 200_000
    assert str(ROOT) not in text
    assert '"name": "stderr"' not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_of_it_was_run_from_the_top(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    links = re.findall(r"\]\(([^)#]+\.ipynb)\)", path.read_text())
    assert all((path.parent / link).is_file() for link in links)
