"""What the shell says of bad input: one line on standard error, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the library says of bad input into one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # the reader has seen enough; typer ends quietly
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        fail(str(error))


def report(message: str) -> None:
    """Say something in one line on standard error."""
    typer.echo(f"plasma-hf: {' '.join(message.split())}", err=True)


def fail(message: str) -> NoReturn:
    """Say what is wrong and end with exit code 2."""
    report(message)
    raise typer.Exit(2)
