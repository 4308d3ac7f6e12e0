"""Tables of any columns as text: as many as the width takes, names shortened before numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .escape import columns, shorten

__all__ = ["Column", "grid", "number"]

_LEAST = 16
"""Least width of the first column that is worth more than another column."""
_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column; those with the highest priority go first when the width is short, 0 stays."""

    title: str
    priority: int = 0
    right: bool = True


def number(value: float | None) -> str:
    """Four digits of a number; nothing for none.

    Examples
    --------
    >>> number(0.123456), number(65504.0), number(None)
    ('0.1235', '6.55e+04', '')
    """
    return "" if value is None else f"{value:.4g}"


def grid(heads: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    r"""Lines of a table no wider than ``width`` columns; the first column is the name.

    Columns without a cell are left out; those of one priority go together.

    Parameters
    ----------
    heads
        The columns; the first is shortened before others go.
    rows
        Cells, escaped for a terminal; a row of one cell is a line of its own.
    width
        Columns of the terminal.

    Examples
    --------
    >>> print(*grid([Column("layer", right=False), Column("max")], [["bn1", "2.5"]], 40), sep="\n")
    layer  max
    -----  ---
    bn1    2.5
    """
    cells = [row for row in rows if len(row) > 1]
    kept = [at for at in range(len(heads)) if not at or any(row[at] for row in cells)]
    wide = {at: max(map(columns, (heads[at].title, *(row[at] for row in cells)))) for at in kept}
    while True:
        room = width - sum(_GAP + wide[at] for at in kept[1:])
        last = max(heads[at].priority for at in kept)
        if room >= min(wide[0], _LEAST) or not last:
            break
        kept = [at for at in kept if heads[at].priority < last]
    wide[0] = min(wide[0], max(room, 8))
    lines = [
        [heads[at].title for at in kept],
        ["-" * wide[at] for at in kept],
        *(
            [shorten(row[0], wide[0]), *(row[at] for at in kept[1:])] if len(row) > 1 else row
            for row in rows
        ),
    ]
    return [
        _line(line, [wide[at] for at in kept], [heads[at].right for at in kept]) for line in lines
    ]


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    if len(cells) != len(widths):
        return cells[0]
    padded = [
        " " * (width - columns(cell)) + cell if flush else cell + " " * (width - columns(cell))
        for cell, width, flush in zip(cells, widths, right, strict=True)
    ]
    return (" " * _GAP).join(padded).rstrip()
