"""The layers of a probe as a table: all of them, or those around what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..probing.results import ProbeReport
from ..probing.trace import LayerRow
from ..results import View
from .escape import display, shorten
from .grid import Column, grid, number
from .words import INDENT, many, prose

__all__ = ["Layers", "chosen", "layer_name", "layer_table"]

Layers = Literal["near", "all", "none"]
"""Which rows of the layer table: those around what is wrong, all, or none."""

_FEW = 24
"""Layers that are shown all where something is wrong."""
_AROUND = 2
"""Rows before and after where it begins."""
_WEAK = 6
"""Other rows that matter, at most, with the one before and after: what is beyond is counted."""
_NAME = 60

_LAYER_COLUMNS = (
    Column("layer", right=False),
    Column("call", 6),
    Column("class", 3, right=False),
    Column("output", 4),
    Column("in min", 5),
    Column("in max", 5),
    Column("min", 1),
    Column("max", 1),
    Column("mean |x|", 2),
    Column("zeros", 7),
    Column("not finite", 1),
    Column("", 0, right=False),
)


def layer_table(report: ProbeReport, view: View, layers: Layers) -> Iterator[str]:
    """Lines of the table of layers, or of what stands in its place."""
    rows = report.rows
    if layers == "none" or not rows:
        return
    shown = list(range(len(rows))) if layers == "all" else chosen(report)
    if not shown:
        top = max(rows, key=lambda row: row.outputs.largest)
        text = f"largest value {top.outputs.largest:.4g}, in {layer_name(top.layer)}"
        again = "; every layer: --layers all"
        yield from prose(f"{many(len(rows), 'call')}: {text}{again}", view, INDENT, INDENT)
        return
    lines: list[list[str]] = []
    before = -1
    for at in shown:
        if at > before + 1:
            lines.append([f"... {at - before - 1:,} more"])
        lines.append(_layer_row(rows[at], report))
        before = at
    if before + 1 < len(rows):
        lines.append([f"... {len(rows) - before - 1:,} more"])
    yield from (INDENT + line for line in grid(_LAYER_COLUMNS, lines, view.width - len(INDENT)))
    if len(shown) < len(rows):
        yield f"{INDENT}In execution order, {len(shown):,} of {len(rows):,}; all: --layers all"


def chosen(report: ProbeReport) -> list[int]:
    """Rows that matter and those beside them: where it begins, and BatchNorms that do not fit."""
    rows = report.rows
    far = {d.layer for d in report.norms if d.far}
    first = {id(r) for r in (report.first.row if report.first else None, report.frozen) if r}
    strong = [at for at, row in enumerate(rows) if id(row) in first]
    if report.first is not None and report.first.origin == "code":
        strong += _beside(rows, report.first.row)
    weak = [at for at, row in enumerate(rows) if row.layer in far or row.stuck or row.began]
    wanted = [*strong, *(at for at in weak if at not in strong)]
    if wanted and len(rows) <= _FEW:
        return list(range(len(rows)))
    around = [(at, _AROUND) for at in strong] + [(at, 1) for at in wanted[len(strong) :][:_WEAK]]
    near = {row for at, by in around for row in range(at - by, at + by + 1) if 0 <= row < len(rows)}
    return sorted(near)


def _beside(rows: Sequence[LayerRow], first: LayerRow) -> Iterator[int]:
    """Layers between which the code of ``first`` made the values: the last fine, the first not."""
    before, after = first.between
    at = next((i for i, row in enumerate(rows) if row.layer == after and row.inputs.badness), None)
    if at is not None:
        yield at
    ended = [i for i, row in enumerate(rows[:at]) if row.layer == before]
    yield from ended[-1:]


def _layer_row(row: LayerRow, report: ProbeReport) -> list[str]:
    ins, out = row.inputs, row.outputs
    return [
        display(row.layer) or "(model)",
        str(row.index + 1) if row.index else "",
        shorten(display(row.class_name), 20),
        "x".join(map(str, row.shape[1:])),
        number(ins.low if ins.finite else None),
        number(ins.high if ins.finite else None),
        number(out.low if out.finite else None),
        number(out.high if out.finite else None),
        number(out.mean_abs),
        _share(out.zeros, out.size),
        _share(out.nonfinite, out.size),
        ", ".join(_marks(row, report)),
    ]


def _share(count: int, size: int) -> str:
    """Share of some values, never 0 % where there are any."""
    if not count:
        return ""
    return f"{count / size:.0%}" if count / size >= 0.005 else "<1%"


def _marks(row: LayerRow, report: ProbeReport) -> Iterator[str]:
    """Words behind a row: what is odd about it."""
    if report.first is not None and row is report.first.row:
        yield "<- first"
    elif row.began:
        yield "begins"
    if row.constant:
        yield "constant"
    if row.stuck:
        yield "saturated"
    drift = next((d for d in report.norms if d.layer == row.layer), None)
    if drift is not None and drift.far:
        yield "broken" if drift.broken else f"variance x{drift.ratio or 0:.2g}"


def layer_name(layer: str) -> str:
    """Name of a layer for a sentence."""
    return shorten(display(layer), _NAME) if layer else "the model itself"
