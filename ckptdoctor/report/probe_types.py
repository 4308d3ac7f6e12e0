"""The types of a probe as a table: what is lost in narrower ones."""

from __future__ import annotations

from collections.abc import Iterator

from ..probing.precision import Precision
from ..probing.results import ProbeReport
from ..results import View
from .escape import shorten
from .grid import Column, grid
from .probe_layers import layer_name
from .words import INDENT, prose

__all__ = ["types_table"]

_TYPE_COLUMNS = (
    Column("type", right=False),
    Column("not finite"),
    Column("same answer", 1),
    Column("difference", 1),
    Column("leaves the range in", 0, right=False),
    Column("training spoils", 2, right=False),
)


def types_table(report: ProbeReport, view: View) -> Iterator[str]:
    """Lines of the table of types, or the one that stands for it."""
    if len(report.precisions) < 2:
        return
    if len({(p.first, p.bad, p.training) for p in report.precisions}) == 1 and report.bad:
        names = " and ".join(p.dtype for p in report.precisions[1:])
        yield from prose(f"{names}: as in float32", view, INDENT)
        return
    rows = []
    for found in report.precisions:
        alike = found.agreement
        known = alike is not None and alike.reference > 0
        rows.append(
            [
                found.dtype,
                f"{found.bad:,} of {found.samples:,}",
                f"{alike.share:.1%}" if alike and known and alike.share is not None else "",
                f"{alike.difference:.2g}" if alike and known else "",
                _leaves_in(found),
                shorten(layer_name(found.training), 30) if found.training else "",
            ]
        )
    yield from (INDENT + line for line in grid(_TYPE_COLUMNS, rows, view.width - len(INDENT)))
    top = max(report.rows, key=lambda row: row.outputs.largest, default=None)
    if top is not None and top.outputs.largest:
        largest = top.outputs.largest
        text = f"largest value {largest:.4g} in {layer_name(top.layer)}: "
        left = 65504 / largest
        if left >= 1:
            text += f"float16 ends at 65504, {left:,.3g} times that"
        else:
            text += "beyond the end of float16, 65504"
        yield from prose(text, view, INDENT, INDENT)


def _leaves_in(found: Precision) -> str:
    """Where values first leave the range of a type; the samples themselves may."""
    if found.first:
        return shorten(layer_name(found.first), 36)
    return "the data" if found.bad and found.dtype != "float32" else "-"
