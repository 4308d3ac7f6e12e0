"""Changes of a repair as a table: layer, values, what stood there, what comes, by which remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..edits import Change, Edit, NumberEdit, Removal, Trim
from ..outcome import Before, Outcome
from ..tensors import TensorTable
from .escape import display, shorten
from .findings import place
from .rows import fold_names

__all__ = ["LONGEST", "ChangeRow", "change_table", "layer_of", "rows_of"]

LONGEST = 20
"""Rows of the table: above that, tensors that differ in their numbers only are folded; what is left
beyond them is counted."""
_CELL = 24
"""Columns that any cell but a name may take."""
_LAYER, _NAME = 24, 20
"""Columns of names that are worth more than another column."""
_LEAST = 8
_NAMES = 24
"""Columns of two names at their least, and the gaps between: a narrow table has half of what is
left for what was and half for what becomes."""
_DIGITS = 16
"""Digits up to which a number is written out."""

_NUMBER = re.compile(r"[0-9]{1,9}")
_COUNTED = re.compile(r"([0-9][0-9,]*) (\D.*)")
_RANGE = re.compile(r"(\S+?)\.\.(\S+)")
_KERAS_WORDS = {"mean": "moving_mean", "var": "moving_variance"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """One line of the table: a change, or ``tensors`` of them that differ only in their numbers.

    ``count`` and ``total`` are -1 where there are no elements to count, or nobody did.
    """

    layer: str
    name: str
    was: str
    becomes: str
    remedy: str
    kind: str
    cures: tuple[str, ...]
    count: int = -1
    total: int = -1
    tensors: int = 1


def rows_of(outcome: Outcome) -> list[ChangeRow]:
    """Rows of all changes, in the plan's order; folded where there are more than `LONGEST`."""
    if outcome.plan is None:
        return []
    names = _Names(outcome)
    rows = [_row(c, outcome.details.get(n), names) for n, c in enumerate(outcome.plan.changes)]
    return rows if len(rows) <= LONGEST else _folded(rows)


def layer_of(tensor: str, table: TensorTable | None) -> str:
    """Layer as the framework names it; empty for what is no part of one."""
    info = table.infos.get(tensor) if table is not None else None
    return info.layer if info is not None and info.role in ("model", "ema") else ""


class _Names:
    """What the layers and tensors are called: the framework's words rather than the file's."""

    def __init__(self, outcome: Outcome) -> None:
        self.file = outcome.file
        self.table = outcome.before.table if outcome.before is not None else None
        self.part_of: Callable[[str], str] | None = None

    def of(self, tensor: str) -> tuple[str, str]:
        info = self.table.infos.get(tensor) if self.table is not None else None
        if info is None or not info.layer:
            return "", tensor
        leaf = tensor[max(tensor.rfind("."), tensor.rfind("/")) + 1 :]
        if "/" in tensor:
            leaf = tensor.rpartition("/")[2]
        if leaf.isdecimal() and tensor.endswith(f"/vars/{leaf}"):
            return info.layer, self._part(tensor) or f"vars/{leaf}"
        return info.layer, leaf

    def _part(self, tensor: str) -> str:
        """Say what a numbered variable of Keras 3 is."""
        if self.part_of is None:
            from ..layers import read_layers  # noqa: PLC0415  (most names say what they are)

            assert self.table is not None  # it had the tensor
            self.part_of = read_layers(self.table).part_of
        part = self.part_of(tensor)
        return _KERAS_WORDS.get(part, part)


def _row(change: Change, before: Before | None, names: _Names) -> ChangeRow:
    layer, name, was, becomes = _said(change, names)
    row = ChangeRow(
        layer=layer, name=name, was=was, becomes=becomes,
        remedy=change.remedy, kind=change.kind, cures=change.cures,
    )  # fmt: skip
    if isinstance(change, Edit) and change.indices is not None:
        row = replace(row, count=change.indices.size)
    if before is None:
        return row
    return replace(
        row, count=before.count, total=before.total, was=before.was, becomes=before.becomes
    )


def _said(change: Change, names: _Names) -> tuple[str, str, str, str]:
    """Layer, name, and what was and becomes of it, for each kind of change."""
    if isinstance(change, Edit):
        return *names.of(change.tensor), "", ""
    if isinstance(change, NumberEdit):
        return "", change.name, _number(change.before), _number(change.value)
    if isinstance(change, Removal):
        more = f" and {len(change.names) - 3:,} more" if len(change.names) > 3 else ""
        return "", ", ".join(change.names[:3]) + more, "", "removed"
    if isinstance(change, Trim):
        return "", f"bytes from {change.size:,} on", "", "dropped"
    return "", place(change.where, names.file), "", "recomputed"


def _number(value: float) -> str:
    """Text of a number; a whole one can have more digits than Python writes."""
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        return "a huge number"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _folded(rows: Iterable[ChangeRow]) -> list[ChangeRow]:
    groups: dict[object, list[ChangeRow]] = {}
    for row in rows:
        leaf = row.name if row.layer else _NUMBER.sub("#", row.name)
        key = (_NUMBER.sub("#", row.layer), leaf, row.remedy, row.kind, row.cures, row.count < 0)
        groups.setdefault(key, []).append(row)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[ChangeRow]) -> ChangeRow:
    first = group[0]
    if len(group) == 1:
        return first
    whole = all(row.total >= 0 for row in group)
    return replace(
        first,
        layer=fold_names([row.layer for row in group]),
        name=first.name if first.layer else fold_names([row.name for row in group]),
        was=_together([row.was for row in group]),
        becomes=_together([row.becomes for row in group]),
        count=sum(row.count for row in group) if first.count >= 0 else -1,
        total=sum(row.total for row in group) if whole else -1,
        tensors=len(group),
    )


def _together(words: Sequence[str]) -> str:
    """One text for several: counts are added up, numbers become the range they span.

    Examples
    --------
    >>> _together(["1", "1"]), _together(["16 NaN, 1", "8 NaN, 2 Inf"]), _together(["0.5..2", "8"])
    ('1', '24 NaN, 2 Inf, 1', '0.5..8')
    """
    if len(set(words)) == 1 and not _COUNTED.match(words[0]):
        return words[0]
    counts: dict[str, int] = {}
    numbers: dict[float, str] = {}
    for part in (part for text in words for part in text.split(", ") if part):
        counted = _COUNTED.fullmatch(part)
        if counted:
            counts[counted[2]] = counts.get(counted[2], 0) + int(counted[1].replace(",", ""))
            continue
        ends = _RANGE.fullmatch(part)
        for end in ends.groups() if ends else (part,):
            try:
                numbers[float(end)] = end
            except ValueError:
                return "(differs)"
    parts = [f"{count:,} {noun}" for noun, count in counts.items()]
    if numbers:
        low, high = numbers[min(numbers)], numbers[max(numbers)]
        parts.append(low if low == high else f"{low}..{high}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    cell: Callable[[ChangeRow], str]
    priority: int = 0
    """Columns with the highest number go first when the width is short; 0 always stays."""
    right: bool = False


def _values(row: ChangeRow) -> str:
    if row.count < 0:
        return ""
    if row.total < 0:
        return f"{row.count:,}"
    return f"all {row.total:,}" if row.count == row.total else f"{row.count:,} of {row.total:,}"


_COLUMNS = (
    _Column("layer", lambda row: row.layer),
    _Column("tensor", lambda row: row.name),
    _Column("tensors", lambda row: f"{row.tensors:,}" if row.tensors > 1 else "", 1, right=True),
    _Column("values", _values, 1, right=True),
    _Column("was", lambda row: row.was),
    _Column("becomes", lambda row: row.becomes),
    _Column("remedy", lambda row: row.remedy, 3),
    _Column("class", lambda row: row.kind, 4),
    _Column("cures", lambda row: ", ".join(row.cures), 5),
)


def change_table(rows: Sequence[ChangeRow], width: int) -> Iterator[str]:
    """Yield the lines of a table no wider than ``width`` columns (from 40 on).

    Columns that would be empty are left out; names are shortened before numbers.
    """
    from tabulate import tabulate  # noqa: PLC0415  (20 ms that a message need not pay)

    cells = {c.title: [display(c.cell(row)) for row in rows] for c in _COLUMNS}
    columns = [c for c in _COLUMNS if any(cells[c.title])]
    for title, texts in cells.items():
        if title not in ("layer", "tensor"):
            most = min(_CELL, (width - _NAMES) // 2)
            texts[:] = [shorten(text, most) for text in texts]
    longest = {t: max(map(len, (t, *texts)), default=0) for t, texts in cells.items()}
    longest["layer"] *= any(cells["layer"])
    # Where every change is by one remedy, the line below the table names it as well.
    kept = 1 + 2 * (len(set(cells["remedy"])) > 1)
    wanted = min(longest["layer"], _LAYER) + min(longest["tensor"], _NAME)
    columns = _fitting(columns, longest, width, wanted, kept)
    columns = _fitting(columns, longest, width, 2 * _LEAST, 0)
    room = _room(columns, longest, width)
    name = max(_LEAST, min(longest["tensor"], max(room - longest["layer"], room // 2)))
    layer = max(_LEAST, min(longest["layer"], room - name))
    cells["tensor"] = [shorten(text, name) for text in cells["tensor"]]
    cells["layer"] = [shorten(text, layer) for text in cells["layer"]]
    # The header is a row like the others: tabulate would pad each column by two for a real one.
    head = [c.title for c in columns]
    widths = [max(map(len, (title, *cells[title]))) for title in head]
    body = list(zip(*(cells[title] for title in head), strict=True))
    text = tabulate(
        [head, ["-" * w for w in widths], *body],
        tablefmt="plain",
        disable_numparse=True,
        colalign=["right" if c.right else "left" for c in columns],
    )
    return (line.rstrip() for line in text.split("\n"))


def _fitting(
    columns: list[_Column], longest: dict[str, int], width: int, wanted: int, kept: int
) -> list[_Column]:
    """Leave out columns of more than the priority ``kept`` until the names have what is wanted."""
    while _room(columns, longest, width) < wanted:
        last = max(c.priority for c in columns)
        if last <= kept:
            break
        columns = [c for c in columns if c.priority < last]
    return columns


def _room(columns: Sequence[_Column], longest: dict[str, int], width: int) -> int:
    """Columns that are left for the names of layer and tensor."""
    others = sum(longest[c.title] for c in columns if c.title not in ("layer", "tensor"))
    return width - others - 2 * (len(columns) - 1)
