"""`plasma-hf`: the package from the shell. A verb reads, calls the library, and writes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from .align import align
from .calibrate import calibrate
from .common import group
from .database import database_app
from .embed import embed
from .evaluate import evaluate, evaluate_protalign, evaluate_scope40, evaluate_transfer
from .index import index_app
from .info import info
from .mcp import mcp
from .msa import msa
from .search import search
from .site import site
from .train import train_app


class EvaluateGroup(TyperGroup):
    """Take `plasma-hf evaluate --sites ...` as `plasma-hf evaluate plasma --sites ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before options that name none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["plasma", *args]
        return super().parse_args(ctx, args)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"plasma-hf {__version__}")
        raise typer.Exit


app = group("Align proteins residue by residue.", add_completion=True)


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take options that come before a verb."""


evaluate_app = group("Evaluate models; without a name it is PLASMA.", cls=EvaluateGroup)
evaluate_app.command("plasma")(evaluate)
evaluate_app.command("protalign")(evaluate_protalign)
evaluate_app.command("scope40")(evaluate_scope40)
evaluate_app.command("transfer")(evaluate_transfer)

for run in (align, calibrate, embed, info, mcp, msa, search, site):
    app.command()(run)
app.add_typer(database_app, name="database")
app.add_typer(index_app, name="index")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
