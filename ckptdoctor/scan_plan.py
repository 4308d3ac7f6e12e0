"""Which bytes the statistics pass reads, in which order, and what lies in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .findings import Finding, Severity, container_finding
from .kernels import Kernel, kernel_of
from .sources import ByteSource, Extent, WindowSource
from .stats import Ints
from .tensors import Checksum, TensorInfo, TensorTable
from .views import Dims, distinct, is_dense, span

__all__ = ["BLOCK", "UNIT", "Lane", "Plan", "Spans", "View", "mismatch", "plan_pass"]

BLOCK = 1 << 20
"""Bytes per read; `ckptdoctor.kernels` has the measurements."""
UNIT = 8 * BLOCK
"""Bytes that one thread takes at a time."""
GAP = 4096
"""Bytes between two runs that are read over rather than around: the headers and padding between
the members of an archive.  A read costs about as much as 10 kB."""


class Spans:
    """Byte ranges of one source, sorted by start; ``rows`` says what each is.

    Shape of all columns ``(n,)``; ``reach`` is the furthest stop so far, as ranges may overlap.
    """

    def __init__(self, rows: npt.ArrayLike, starts: npt.ArrayLike, stops: npt.ArrayLike) -> None:
        columns = [np.asarray(column, np.int64) for column in (rows, starts, stops)]
        order = np.lexsort((columns[2], columns[1]))
        self.rows, self.starts, self.stops = (column[order] for column in columns)
        self.reach = np.maximum.accumulate(self.stops) if len(order) else self.stops

    def near(self, start: int, stop: int) -> slice:
        """Those among which all are that share a byte with a range (a few more may be)."""
        low = int(np.searchsorted(self.reach, start, "right"))
        return slice(low, max(low, int(np.searchsorted(self.starts, stop, "left"))))

    def touching(self, start: int, stop: int) -> Ints:
        """Rows of all that share a byte with a range."""
        near = self.near(start, stop)
        return self.rows[near][self.stops[near] > start]


@dataclass(slots=True)
class Lane:
    """One source and what is to be read of it.

    Parameters
    ----------
    source
        The file, or the source that inflates a member of it.
    items
        Tensors to measure, one for each distinct run of bytes and type.
    kernel, sizes, plain
        For each item, shape ``(n,)``: index into the plan's kernels, bytes per element, and
        whether many can be measured at once (complex numbers cannot).
    checks
        Checksums to verify; rows are indices into the table's.
    places
        Every tensor that lies in this source.
    """

    source: ByteSource
    items: Spans
    kernel: Ints
    sizes: Ints
    plain: npt.NDArray[np.bool_]
    checks: Spans
    places: Spans

    def runs(self) -> Iterator[tuple[int, int]]:
        """Ranges to read, in order, each covering neighbours less than `GAP` apart.

        A source that only reads forward passes every gap anyway, and is one reader's.
        """
        gap = _FAR if self.source.sequential else GAP
        starts = np.concatenate((self.items.starts, self.checks.starts))
        stops = np.concatenate((self.items.stops, self.checks.stops))
        order = np.argsort(starts, kind="stable")
        starts, reach = starts[order], np.maximum.accumulate(stops[order])
        new = np.flatnonzero(starts[1:] > reach[:-1] + gap) + 1
        firsts = np.concatenate(([0], new)).astype(np.int64)
        lasts = np.concatenate((new - 1, [len(starts) - 1])).astype(np.int64)
        return zip(starts[firsts].tolist(), reach[lasts].tolist(), strict=True)


@dataclass(frozen=True, slots=True)
class View:
    """A tensor whose elements do not fill their span: gathered piece by piece."""

    row: int
    source: ByteSource
    offset: int
    dims: Dims
    kernel: Kernel


@dataclass(slots=True)
class Plan:
    """Everything one pass will do.

    Parameters
    ----------
    counts
        Elements of every tensor.
    stored
        Distinct elements, which are measured.
    leaders
        For every row the one that is measured in its place, itself included.
    times
        How often a row shows each element of its leader: views may repeat them.
    lanes, views, decoded
        What to read by offset, to gather, and to take from the table's decoder (rows).
    kernels
        What `Lane.kernel` counts through.
    findings
        Tensors that cannot be measured, with the row.
    nbytes
        Bytes to read or decode.
    """

    counts: list[int]
    stored: list[int]
    leaders: Ints
    times: Ints
    lanes: list[Lane] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    findings: list[tuple[int, Finding]] = field(default_factory=list)
    nbytes: int = 0


@dataclass(slots=True)
class _Draft:
    """A lane while it is being collected: one list per column."""

    source: ByteSource
    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    kernel: list[int] = field(default_factory=list)
    checks: list[tuple[int, int, int]] = field(default_factory=list)
    other: list[tuple[int, int, int]] = field(default_factory=list)


_FAR = 1 << 62
"""Columns are int64; an inflating source may declare any size."""


class _Drafts(dict[int, _Draft]):
    """Lanes by the identity of their source."""

    def place(self, extent: Extent) -> tuple[_Draft, int] | None:
        """Lane and offset in it of an extent; None where its source ends before it does."""
        source, offset, length = extent.source, extent.offset, extent.length
        while True:
            if offset < 0 or length < 0 or offset + length > min(source.size, _FAR):
                return None
            if type(source) is not WindowSource:
                break
            offset += source.offset
            source = source.below
        draft = self.get(id(source))
        if draft is None:
            draft = self[id(source)] = _Draft(source)
        return draft, offset


def plan_pass(table: TensorTable) -> Plan:
    """Decide what to read of a table; reads nothing itself."""
    infos = table.infos
    counts = [info.size for info in infos.values()]
    rows = np.arange(len(counts))
    plan = Plan(counts, counts.copy(), rows, np.ones_like(rows))
    codes: dict[tuple[str, bool], int] = {}
    drafts = _Drafts()
    for row, info in enumerate(infos.values()):
        if info.encoding in _UNMEASURED or not counts[row]:
            continue
        code = codes.get((info.dtype, info.big_endian))
        if code is None:
            kernel = kernel_of(info.dtype, big_endian=info.big_endian)
            code = -1 if kernel is None else len(plan.kernels)
            codes[info.dtype, info.big_endian] = code
            plan.kernels += [kernel] if kernel else []
        if code < 0:
            continue
        if info.extent is None:
            if table.decoder is not None:
                plan.decoded.append(row)
                plan.nbytes += info.nbytes
        else:
            _place(plan, drafts, row, info, code)
    for index, checksum in enumerate(table.checksums):
        _place_check(plan, drafts, len(counts) + index, checksum)
    for draft in drafts.values():
        _finish(plan, draft)
    plan.lanes.sort(key=lambda lane: not lane.source.sequential)
    return plan


_UNMEASURED = ("opaque", "absent")


def _place(plan: Plan, drafts: _Drafts, row: int, info: TensorInfo, code: int) -> None:
    """Put a tensor into its lane, or among the views."""
    extent, kernel = info.extent, plan.kernels[code]
    assert extent is not None, "tensors without an extent are the decoder's"
    dims: Dims = ()
    elements = plan.counts[row]
    if info.strides is not None:
        dims, times = distinct(info.shape, info.strides)
        elements = plan.stored[row] = elements // times
        plan.times[row] = min(times, _FAR // elements)  # beyond it, a lie
        if any(stride < 0 for _, stride in dims) or _repetitive(dims, elements):
            message = "overlaps itself so much that its values were not looked at"
            plan.findings.append((row, _finding("CK005", message, extent, info)))
            return
    length = span(dims) * kernel.itemsize if dims else elements * kernel.itemsize
    placed = drafts.place(extent)
    if placed is None or length > extent.length:
        there = extent.length if placed else max(0, extent.source.size - extent.offset)
        message = f"expected {length:,} bytes of values, found {there:,}"
        plan.findings.append((row, _finding("CK004", message, extent, info)))
        return
    draft, offset = placed
    if is_dense(dims):
        draft.rows.append(row)
        draft.starts.append(offset)
        draft.stops.append(offset + length)
        draft.kernel.append(code)
        return
    draft.other.append((row, offset, offset + length))
    plan.views.append(View(row, draft.source, offset, dims, kernel))
    plan.nbytes += length


def _repetitive(dims: Dims, elements: int) -> bool:
    """Tell whether a view shows its elements so often that a small file could cost any time."""
    return elements > 1 << 20 and elements > 4 * span(dims)


def _finding(code: str, message: str, extent: Extent, info: TensorInfo) -> Finding:
    return container_finding(code, Severity.ERROR, message, where=str(extent), tensor=info.name)


def _place_check(plan: Plan, drafts: _Drafts, row: int, checksum: Checksum) -> None:
    if not checksum.extent.length:
        if checksum.crc32:
            plan.findings.append((row, mismatch(checksum, 0, [])))
        return
    placed = drafts.place(checksum.extent)
    if placed is None:
        message = f"{checksum.extent.length:,} bytes with a checksum run past the end of the data"
        finding = container_finding("CK004", Severity.ERROR, message, where=checksum.where)
        plan.findings.append((row, finding))
        return
    draft, offset = placed
    draft.checks.append((row - len(plan.counts), offset, offset + checksum.extent.length))


def mismatch(checksum: Checksum, found: int, tensors: Sequence[str]) -> Finding:
    """CK001 for a run of bytes, with the names of the tensors that lie in it."""
    names = ", ".join(repr(name[:200]) for name in tensors[:3])
    more = f" and {len(tensors) - 3:,} more" if len(tensors) > 3 else ""
    held = f"; it holds {names}{more}" if tensors else ""
    message = f"CRC-32 of the data is {found:#010x}, the file states {checksum.crc32:#010x}{held}"
    return container_finding(
        "CK001",
        Severity.ERROR,
        message,
        where=checksum.where,
        tensor=tensors[0] if len(tensors) == 1 else "",
        found=found,
        expected=checksum.crc32,
        tensors=list(tensors[:100]),
    )


def _finish(plan: Plan, draft: _Draft) -> None:
    """Turn lists into columns; tensors that are the same bytes of the same type become one."""
    columns = (draft.rows, draft.starts, draft.stops, draft.kernel)
    rows, starts, stops, kernel = (np.array(column, np.int64) for column in columns)
    order = np.lexsort((rows, kernel, stops, starts))
    rows, starts, stops, kernel = (c[order] for c in (rows, starts, stops, kernel))
    keys = np.stack((starts, stops, kernel))
    new = np.ones(len(rows), np.bool_)
    new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    plan.leaders[rows] = rows[new][np.cumsum(new) - 1]
    items = Spans(rows[new], starts[new], stops[new])
    checks, other = (np.array(c, np.int64).reshape(-1, 3).T for c in (draft.checks, draft.other))
    places = Spans(
        *(np.concatenate(pair) for pair in zip((rows, starts, stops), other, strict=True))
    )
    kernel = kernel[new]
    sizes = np.array([each.itemsize for each in plan.kernels], np.int64)[kernel]
    plain = np.array([each.parts == 1 for each in plan.kernels], np.bool_)[kernel]
    lane = Lane(draft.source, items, kernel, sizes, plain, Spans(*checks), places)
    if len(items.rows) or len(lane.checks.rows):
        plan.lanes.append(lane)
        plan.nbytes += sum(stop - start for start, stop in lane.runs())
