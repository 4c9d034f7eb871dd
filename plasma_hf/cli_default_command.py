"""A group of commands in the shell, one of which may be left unnamed."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class EvaluateGroup(TyperGroup):
    """Take `plasma-hf evaluate --sites ...` as `plasma-hf evaluate plasma --sites ...`."""

    default_command = "plasma"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before options that name none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)
