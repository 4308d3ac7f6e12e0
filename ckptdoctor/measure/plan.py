"""Which bytes the statistics pass reads, in which order, and what lies in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource
from ..tensors import Checksum, TensorInfo, TensorTable
from .kernels import Kernel, kernel_of
from .ranges import FAR, Sources, int64
from .stats import Ints
from .views import Dims, distinct, is_dense, span

__all__ = ["BLOCK", "GAP", "UNIT", "Lane", "Plan", "Spans", "View", "mismatch", "plan_pass"]

BLOCK = 1 << 20
"""Bytes per read; `ckptdoctor.kernels` has the measurements."""
UNIT = 8 * BLOCK
"""Bytes that one thread takes at a time."""
GAP = 4096
"""Bytes between two runs that are read over rather than around: the headers and padding between
the members of an archive.  Reading 4 KiB takes 0.94 us, reading one byte 0.88."""
_UNMEASURED = ("opaque", "absent")

Flags = npt.NDArray[np.bool_]


class Spans:
    """Byte ranges of one source, sorted by start; ``rows`` says what each is.

    Shape of all columns ``(n,)``; ``reach`` is the furthest stop so far, as ranges may overlap.
    """

    def __init__(self, rows: Ints, starts: Ints, stops: Ints) -> None:
        self.rows, self.starts, self.stops = rows, starts, stops
        self.reach = np.maximum.accumulate(stops) if len(stops) else stops

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
    checks, crcs
        Checksums to verify, and what they are to be; rows are indices into the table's.
    places
        Every tensor that lies in this source.
    """

    source: ByteSource
    items: Spans
    kernel: Ints
    sizes: Ints
    plain: Flags
    checks: Spans
    crcs: Ints
    places: Spans

    def runs(self) -> Iterator[tuple[int, int]]:
        """Ranges to read, in order, each covering neighbours less than `GAP` apart.

        A source that only reads forward passes every gap anyway, and is one reader's.
        """
        gap = FAR if self.source.sequential else GAP
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
    """The tensors to read by offset, one array element each, before they are given to lanes.

    ``need`` counts bytes from the first to the last element; ``dims`` are those of strided views
    by position.
    """

    rows: Ints
    kernel: Ints
    need: Ints
    dims: dict[int, Dims]
    keep: Flags


def plan_pass(table: TensorTable) -> Plan:
    """Decide what to read of a table; reads nothing itself."""
    infos = tuple(table.infos.values())
    counts = [info.size for info in infos]
    rows = np.arange(len(counts))
    plan = Plan(counts, counts.copy(), rows, np.ones_like(rows))
    sources = Sources()
    draft = _draft(plan, table, infos)
    extents: list[Any] = [infos[row].extent for row in draft.rows.tolist()]
    number, starts, lengths, room = sources.locate(extents)
    fits = (draft.need <= lengths) & (lengths <= room)
    for at in np.flatnonzero(draft.keep & ~fits).tolist():
        there = min(int(lengths[at]), max(0, int(room[at])))
        message = f"expected {int(draft.need[at]):,} bytes of values, found {there:,}"
        row = int(draft.rows[at])
        plan.findings.append((row, _finding("CK004", message, infos[row])))
    draft.keep &= fits
    dense = draft.keep.copy()
    for at in (at for at, dims in draft.dims.items() if draft.keep[at] and not is_dense(dims)):
        dense[at] = False
        kernel = plan.kernels[draft.kernel[at]]
        source = sources.found[number[at]]
        view = View(int(draft.rows[at]), source, int(starts[at]), draft.dims[at], kernel)
        plan.views.append(view)
        plan.nbytes += int(draft.need[at])
    checks = _checks(plan, table.checksums, sources)
    _make_lanes(plan, sources, draft, dense, number, starts, checks)
    return plan


def _draft(plan: Plan, table: TensorTable, infos: Sequence[TensorInfo]) -> _Draft:
    """Choose what has values, and find out how many bytes each tensor needs."""
    codes: dict[tuple[str, bool], int] = {}
    rows: list[int] = []
    kernel: list[int] = []
    strided: list[int] = []
    for row, info in enumerate(infos):
        code = codes.get((info.dtype, info.big_endian))
        if code is None:
            code = codes[info.dtype, info.big_endian] = _code(plan, info)
        if code < 0 or info.encoding in _UNMEASURED or not plan.counts[row]:
            continue
        if info.extent is not None:
            if info.strides is not None:
                strided.append(len(rows))
            rows.append(row)
            kernel.append(code)
        elif table.decoder is not None:
            plan.decoded.append(row)
            plan.nbytes += info.nbytes
    sizes = np.array([each.itemsize for each in plan.kernels], np.int64)
    draft = _Draft(int64(rows), int64(kernel), int64([]), {}, np.ones(len(rows), np.bool_))
    elements = np.minimum(int64([plan.counts[row] for row in rows]), FAR >> 5)
    for at in strided:
        elements[at] = min(_view(plan, draft, infos[rows[at]], at), FAR >> 5)
    draft.need = elements * sizes[draft.kernel] if rows else elements
    return draft


def _code(plan: Plan, info: TensorInfo) -> int:
    kernel = kernel_of(info.dtype, big_endian=info.big_endian)
    if kernel is None:
        return -1
    plan.kernels.append(kernel)
    return len(plan.kernels) - 1


def _view(plan: Plan, draft: _Draft, info: TensorInfo, at: int) -> int:
    """Take a strided tensor apart; returns the elements it spans."""
    row = int(draft.rows[at])
    dims, times = distinct(info.shape, info.strides or ())
    elements = plan.stored[row] = plan.counts[row] // times
    plan.times[row] = min(times, FAR // elements)  # beyond it, the shape is a lie
    draft.dims[at] = dims
    # A small file could otherwise cost any time.
    repetitive = elements > 1 << 20 and elements > 4 * span(dims)
    if repetitive or any(stride < 0 for _, stride in dims):
        message = "overlaps itself so much that its values were not looked at"
        plan.findings.append((row, _finding("CK005", message, info)))
        draft.keep[at] = False
    return span(dims)


def _finding(code: str, message: str, info: TensorInfo) -> Finding:
    where = str(info.extent)
    return container_finding(code, Severity.ERROR, message, where=where, tensor=info.name)


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


def _checks(
    plan: Plan, checksums: Sequence[Checksum], sources: Sources
) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Source number, index, start, stop and value of each checksum, sorted."""
    number, starts, lengths, room = sources.locate([checksum.extent for checksum in checksums])
    fits = (lengths >= 0) & (lengths <= room)
    for index in np.flatnonzero(~fits | (lengths == 0)).tolist():
        checksum, row = checksums[index], len(plan.counts) + index
        if not fits[index]:
            message = f"{checksum.extent.length:,} bytes with a checksum run past the end"
            finding = container_finding("CK004", Severity.ERROR, message, where=checksum.where)
            plan.findings.append((row, finding))
        elif checksum.crc32:
            plan.findings.append((row, mismatch(checksum, 0, [])))
    order = np.lexsort((starts + lengths, starts, number))
    order = order[(fits & (lengths > 0))[order]]
    crcs = int64([checksum.crc32 for checksum in checksums])[order]
    return number[order], order, starts[order], (starts + lengths)[order], crcs


def _make_lanes(
    plan: Plan,
    sources: Sources,
    draft: _Draft,
    dense: Flags,
    number: Ints,
    starts: Ints,
    checks: Sequence[Ints],
) -> None:
    """Sort everything by place; tensors that are the same bytes of the same type become one."""
    stops = starts + draft.need
    order = np.lexsort((draft.rows, draft.kernel, stops, starts, number))
    order = order[draft.keep[order]]
    places = [column[order] for column in (number, draft.rows, starts, stops, draft.kernel)]
    items = [column[dense[order]] for column in places]
    number, rows, starts, stops, kernel = items
    new = np.ones(len(rows), np.bool_)
    new[1:] = np.any([c[1:] != c[:-1] for c in (number, starts, stops, kernel)], axis=0)
    if len(rows):
        plan.leaders[rows] = rows[new][np.cumsum(new) - 1]
    items = [column[new] for column in items]
    for lane_number, source in enumerate(sources.found):
        _, *place = _of(lane_number, places)
        _, rows, starts, stops, kernel = _of(lane_number, items)
        _, indices, firsts, lasts, crcs = _of(lane_number, checks)
        if not len(rows) and not len(indices):
            continue
        each = plan.kernels
        lane = Lane(
            source,
            Spans(rows, starts, stops),
            kernel,
            np.array([k.itemsize for k in each], np.int64)[kernel],
            np.array([k.parts == 1 for k in each], np.bool_)[kernel],
            Spans(indices, firsts, lasts),
            crcs,
            Spans(*place[:3]),
        )
        plan.lanes.append(lane)
        plan.nbytes += sum(stop - start for start, stop in lane.runs())
    plan.lanes.sort(key=lambda lane: not lane.source.sequential)


def _of(number: int, columns: Sequence[Ints]) -> list[Ints]:
    """Part of sorted columns that belongs to a source; the first column is the source number."""
    part = slice(*np.searchsorted(columns[0], [number, number + 1]).tolist())
    return [column[part] for column in columns]
