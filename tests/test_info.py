"""`plasma-hf info` and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import plasma_hf
from plasma_hf.cli.main import app


def test_what_is_here_is_said() -> None:
    told = json.loads(CliRunner().invoke(app, ["info", "--format", "json"]).stdout)
    assert told["versions"]["plasma_hf"] == plasma_hf.__version__
    assert "threads" in told["computes"]["cpu"]
    assert told["models"]["near"].startswith("bsd-3-clause")
    assert told["models"]["plasma_pf_substitution"].startswith("mit")
    text = CliRunner().invoke(app, ["info"])
    assert text.exit_code == 0
    for title, values in told.items():
        assert title in text.stdout.splitlines()
        assert all(value in text.stdout for value in values.values())


def test_a_shell_completes_verbs() -> None:
    asked = {
        "_PLASMA_HF_COMPLETE": "complete_bash",
        "COMP_WORDS": "plasma-hf si",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'plasma-hf'; from plasma_hf.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked | {"PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["site"], done.stderr
