"""The command line: a file a verb."""

from .main import app

__all__ = ["app"]
