"""The tensor table as text: as many columns as the width takes, names shortened before numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .escape import display, shorten
from .rows import Row

__all__ = ["LONGEST", "render_table"]

LONGEST = 20
"""Rows of the overview; what is beyond them is counted in a line of its own."""

_LAYER_WIDTH = 28
"""Most that the framework's own name for a layer may take."""

_NAME_WIDTH = 36
"""Least width of the name column that is worth more than another column of numbers."""


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[Row], str]
    priority: int
    """Columns with the highest number go first when the width is short; 0 always stays."""
    right: bool = True


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_COLUMNS = (
    _Column("layer", lambda row: display(row.layer), 1, right=False),
    _Column("tensor", lambda row: row.name, 0, right=False),
    _Column("count", lambda row: _count(row.count) if row.count > 1 else "", 2),
    _Column("dtype", lambda row: row.dtype, 4, right=False),
    _Column("shape", lambda row: "x".join(map(str, row.shape)) or "scalar", 1),
    _Column("role", lambda row: row.role, 5, right=False),
    _Column("NaN", lambda row: _count(row.nan), 1),
    _Column("+Inf", lambda row: _count(row.posinf), 1),
    _Column("-Inf", lambda row: _count(row.neginf), 1),
    _Column("zeros", lambda row: _count(row.zeros), 7),
    _Column("min", lambda row: _number(row.minimum), 3),
    _Column("max", lambda row: _number(row.maximum), 3),
    _Column("mean", lambda row: _number(row.mean), 6),
    _Column("std", lambda row: _number(row.std), 6),
)


def render_table(rows: Sequence[Row], width: int) -> list[str]:
    """Lines of a table no wider than ``width`` columns, numbers aligned right.

    Columns that would be empty are left out; those of one priority go together, ``min`` with
    ``max``.
    """
    from tabulate import tabulate  # noqa: PLC0415  (20 ms that a healthy file need not pay)

    cells = {column.title: [column.cell(row) for row in rows] for column in _COLUMNS}
    columns = [c for c in _COLUMNS if any(cells[c.title])]
    cells["layer"] = [shorten(name, min(_LAYER_WIDTH, width // 3)) for name in cells["layer"]]
    names = [display(name) for name in cells["tensor"]]
    longest = max(map(len, names), default=0)
    while True:
        others = sum(
            2 + max(len(c.title), *map(len, cells[c.title])) for c in columns if c.priority
        )
        room = width - others
        last = max(c.priority for c in columns)
        if room >= min(longest, _NAME_WIDTH) or last <= 1:
            break
        columns = [c for c in columns if c.priority < last]
    cells["tensor"] = [shorten(name, max(room, 8)) for name in names]
    # The header is a row like the others: tabulate would pad each column by two for a real one.
    head = [c.title for c in columns]
    body = list(zip(*(cells[title] for title in head), strict=True))
    widths = [max(map(len, (title, *cells[title]))) for title in head]
    text = tabulate(
        [head, ["-" * width for width in widths], *body],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["right" if c.right else "left" for c in columns],
    )
    return [line.rstrip() for line in text.split("\n")]
