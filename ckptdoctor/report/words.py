"""Pieces of text that the parts of the report share: wrapped lines, colours, counts."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from ..results import View

__all__ = ["COLORS", "INDENT", "human_bytes", "labelled", "many", "paint", "prose", "word", "wrap"]

COLORS = {
    "error": "31;1", "unfit": "31;1", "unsafe": "31;1", "warning": "33;1", "suspect": "33;1",
    "note": "36", "fit": "32;1", "safe": "32;1", "label": "1",
}  # fmt: skip
INDENT = "  "


def wrap(text: str, view: View, indent: str, hanging: str = "") -> list[str]:
    """Lines of a text no wider than the view, at least one."""
    return textwrap.wrap(
        text,
        max(view.width, 40),
        initial_indent=indent,
        subsequent_indent=hanging or indent,
        break_on_hyphens=False,
    ) or [""]


_READABLE = 110
"""Columns that prose takes at most: longer lines are hard to follow."""


def prose(text: str, view: View, indent: str, hanging: str = "") -> list[str]:
    """Lines of a text no wider than the view, nor than what is easy to read."""
    return wrap(text, replace(view, width=min(view.width, _READABLE)), indent, hanging)


def labelled(label: str, text: str, view: View, width: int, color: str = "label") -> list[str]:
    """Lines of a text beside a label that takes ``width`` columns, painted."""
    room = " " * (len(INDENT) + width)
    first, *rest = prose(text, view, room)
    painted = paint(label, COLORS[color], view) if label else ""
    return [INDENT + painted + " " * (width - len(label)) + first.strip(), *rest]


def word(text: str, view: View, width: int = 0) -> str:
    """Word in its own colour, padded."""
    return paint(text, COLORS[text], view) + " " * max(0, width - len(text))


def paint(text: str, code: str, view: View) -> str:
    """Text in a colour where the view has them."""
    return f"\x1b[{code}m{text}\x1b[0m" if view.color else text


def many(count: int, noun: str) -> str:
    """Count with its noun.

    Examples
    --------
    >>> many(1, "tensor"), many(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def human_bytes(count: int) -> str:
    """Bytes in the unit that a person would take.

    Examples
    --------
    >>> human_bytes(100), human_bytes(2048), human_bytes(3 << 30)
    ('100 bytes', '2.0 KiB', '3.0 GiB')
    """
    if count < 1024:
        return many(count, "byte")
    value, unit = float(count), ""
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):  # noqa: B007
        value /= 1024
        if value < 1024:
            break
    return f"{value:.1f} {unit}"
