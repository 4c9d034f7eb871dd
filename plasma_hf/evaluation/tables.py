"""Tables in Markdown, and figures as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table.

    Args:
        head: Names of the columns.
        rows: Cells as text, as many in a row.
        left: How many columns stand on the left; the others are numbers, on the right.

    Example:
        >>> print(markdown_table(("aligner", "ROC-AUC"), [("eba", "0.9")]))
        | aligner | ROC-AUC |
        |---|--:|
        | eba | 0.9 |
    """
    lines = [_line(head), "|" + "---|" * left + "--:|" * (len(head) - left)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def figure_text(value: float, error: float = float("nan")) -> str:
    """Write a figure to three places, with its standard error where there is one.

    Example:
        >>> figure_text(0.91234), figure_text(0.9, 0.0123), figure_text(float("nan"))
        ('.912', '.900 ± .012', '-')
    """
    if value != value:
        return "-"
    return _short(value) if error != error else f"{_short(value)} ± {_short(error)}"


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
