"""How pairs are drawn, as the verbs that draw them take it."""

from __future__ import annotations

from enum import StrEnum


class ProtocolName(StrEnum):
    """Ways to split proteins into sets, as typer takes a choice."""

    strict = "strict"
    upstream = "upstream"
