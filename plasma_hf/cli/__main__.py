"""`python -m plasma_hf.cli` is `plasma-hf`."""

from . import app

app(prog_name="plasma-hf")
