"""Build environments that no user would, and run the project in them.

    python -m tests.helpers.environments [light]

makes a virtual environment of the lowest versions in pyproject.toml, in three steps: with torch,
transformers and numpy alone the portable room and exported folders load and run on sequences; with
gemmi as well they read structures; with all the rest the core of the suite passes (`light`: a part
of it). It is run where the package is installed, and needs pip and what pip installs from.

torch has its lowest version too with `TORCH=lowest`, which downloads several GB; without, it is the
one of constraints.txt.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
FIRST = ("torch", "transformers", "numpy")
"""All that the portable room needs."""

EXTRAS = ("fast", "train", "peft", "evaluate", "search", "plot")
TOOLS = ("pytest", "pytest-socket", "hypothesis")
"""Of the extra `dev`, what the tests themselves need."""

LIGHT = "plasma pipeline structure protalign retrieval_pipeline trainer lora metrics hub_export cli"
"""Test files of the core that say most in little time; what CI runs."""

CORE = (
    f"{LIGHT} sinkhorn numba pair_batch substitution sequences backbones protein_mpnn search_index "
    "protalign_training evaluate_modules collator cli_search remote_code protalign_remote"
)
"""Alignment, pipelines, export, remote code, metrics, trainers, ProtAlign, command line."""


def lowest_versions():
    """Return the lower bounds of pyproject.toml, {"name": "version"}."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [line for line in extras["dev"] if re.split("[>=]", line)[0] in TOOLS]
    lines = [*project["dependencies"], *(line for name in EXTRAS for line in extras[name]), *tools]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines)
    if os.environ.get("TORCH") != "lowest":
        pinned = (ROOT / "constraints.txt").read_text()
        bounds["torch"] = re.search("^torch==(.+)$", pinned, re.M)[1]
    return bounds


def install(python, bounds):
    """Install packages of exactly these versions, all at once so that none moves another."""
    # Only errors: the lists of packages may be local ones that do not have all of them.
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *(f"{name}=={version}" for name, version in bounds.items())], check=True)


def write_folders(folder):
    """Write a copy of the portable room, and the bundled models as for the Hub; return scores."""
    from transformers import AutoModel, AutoProcessor, pipeline

    import plasma_hf
    from tests.helpers.portable_room import PAIR

    shutil.copytree(
        ROOT / "plasma_hf/models", folder / "room", ignore=shutil.ignore_patterns("__pycache__")
    )
    bundled = {
        "plasma": plasma_hf.DEFAULT_CHECKPOINT,
        "protalign": plasma_hf.DEFAULT_RETRIEVAL_CHECKPOINT,
    }
    for name, source in bundled.items():
        model, reads = (auto.from_pretrained(source) for auto in (AutoModel, AutoProcessor))
        plasma_hf.export_to_hub_folder(model, reads, folder / name)
        # Beside the room: weights and configuration without any code.
        shutil.copytree(source, folder / f"{name}_weights")
    search = pipeline("protein-retrieval", candidates=list(PAIR))
    return [pipeline("protein-alignment")(PAIR)["score"], search(PAIR[0])[1]["score"]]


def run_portable(python, folder, way):
    """Run tests/portable_room.py away from this project and return what it found."""
    kinds = ("plasma", "protalign")
    opened = [folder / kind for kind in kinds]
    if way == "room":
        opened = [folder, *(folder / f"{kind}_weights" for kind in kinds)]
    files = [ROOT / "demo/structures" / name for name in ("9pti_A.pdb.gz", "1eaw_B.pdb.gz")]
    words = [",".join(map(str, paths)) for paths in (opened, files)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [python, "-I", ROOT / "tests/helpers/portable_room.py", way, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_portable(python, folder, expected, structures):
    """Check that the room and the exported folders give what the installed package gives."""
    for way in ("room", "hub"):
        found = run_portable(python, folder, way)
        pairs = zip(found["sequences"], expected, strict=True)
        assert all(abs(one - other) < 1e-5 for one, other in pairs), (way, found, expected)
        if structures:
            assert all(0 < score <= 1.000001 for score in found["structures"]), (way, found)
        else:
            assert found["structures"].endswith("install it with: pip install gemmi"), (way, found)


def run_suite(python, names):
    """Run tests of the suite; what is installed may warn of what else is installed."""
    files = [f"tests/test_{name}.py" for name in names.split()]
    options = ["-p", "no:cacheprovider", "-o", "filterwarnings=", "-W", "ignore"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [python, "-m", "pytest", *options, *files], cwd=ROOT, env=environment, check=True
    )


def main(folder, names):
    """Build the environment in a folder and run all three steps, the last on named tests."""
    began = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    bounds = lowest_versions()
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    expected = write_folders(folder)
    first = {name: bounds[name] for name in FIRST}
    install(python, first)
    check_portable(python, folder, expected, structures=False)
    say(f"the portable room runs with {first}")
    install(python, first | {"gemmi": bounds["gemmi"]})
    check_portable(python, folder, expected, structures=True)
    say("and reads structures with gemmi")
    install(python, bounds)
    say(f"tests with {bounds}")
    run_suite(python, names)
    say("passed")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(temporary), LIGHT if sys.argv[1:] == ["light"] else CORE)
