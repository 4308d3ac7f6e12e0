"""The one pass over a checkpoint's bytes: statistics of every tensor, and the stated checksums."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .crc import combine
from .errors import FormatError
from .findings import Finding, Severity, container_finding
from .kernels import CHUNK, Kernel, Workspace, kernel_of
from .scan_plan import BLOCK, GAP, UNIT, Lane, Plan, mismatch, plan_pass
from .stats import EMPTY, Columns, Ints, Partial, StatsTable
from .tensors import Array, TensorTable
from .views import gather

__all__ = ["Measured", "Progress", "measure"]

T = TypeVar("T")
Progress = Callable[[int, int], None]

TAIL = 16
"""Bytes kept of the block before: an element belongs to the block in which it ends."""
SMALL = 1 << 15
"""Tensors up to this many bytes are measured many at a time."""
WORTH_THREADS = 1 << 26
"""Bytes from which a second thread pays for itself: it costs 6 ms to import."""
PROGRESS_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """What the pass found.

    Parameters
    ----------
    stats
        Of every tensor, in table order.
    findings
        Checksums that differ (CK001) and tensors that could not be read (CK004), in file order.
    """

    stats: StatsTable
    findings: tuple[Finding, ...]


def measure(table: TensorTable, *, progress: Progress | None = None, workers: int = 2) -> Measured:
    """Read everything once; measure every tensor and verify every checksum.

    Memory does not depend on sizes: about 8 MiB per thread, and 300 bytes per tensor.

    Parameters
    ----------
    table
        An open checkpoint.
    progress
        Called with bytes done and bytes in total, from the reading threads, not too often.
    workers
        Threads at most; one is used where the work is not worth more.

    Raises
    ------
    ChangedError, ReadError
        If the file changes under the reader, or the operating system fails it.  Bytes that are
        wrong or missing become findings instead.

    Examples
    --------
    >>> import numpy as np
    >>> table = TensorTable.from_arrays({"w": np.array([1.0, np.nan, 3.0])})
    >>> measure(table).stats["w"].mean
    2.0
    """
    plan = plan_pass(table)
    run = _Pass(table, plan, progress)
    if workers > 1 and plan.nbytes >= WORTH_THREADS:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

        with ThreadPoolExecutor(workers - 1, "ckptdoctor-scan") as pool:
            others = [pool.submit(run.work) for _ in range(workers - 1)]
            run.work()
            for other in others:
                other.result()
    else:
        run.work()
    return run.conclude()


@dataclass(frozen=True, slots=True)
class _Unit:
    """A range of a lane that one thread reads from start to end; ``first`` is where its run starts."""

    lane: Lane
    first: int
    start: int
    stop: int


def _units(plan: Plan) -> Iterator[_Unit | None]:
    """All work, what cannot be shared first; None stands for views and decoded tensors."""
    if plan.views or plan.decoded:
        yield None
    for lane in plan.lanes:
        for first, stop in lane.runs():
            step = stop - first if lane.source.sequential else UNIT
            for start in range(first, stop, step):
                yield _Unit(lane, first, start, min(start + step, stop))


class _Parts(Generic[T]):
    """Results for parts of a whole, given back in file order."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, T]] = []
        self.size = 0

    def add(self, at: int, part: T, size: int) -> int:
        """Keep a part; returns the size of all so far."""
        self.parts.append((at, part))
        self.size += size
        return self.size

    def __iter__(self) -> Iterator[T]:
        return (part for _, part in sorted(self.parts, key=lambda entry: entry[0]))


class _Pass:
    """State that the threads share; everything that writes to it holds the lock."""

    def __init__(self, table: TensorTable, plan: Plan, progress: Progress | None) -> None:
        self.table, self.plan, self.progress = table, plan, progress
        self.infos = tuple(table.infos.values())
        self.columns = Columns.unmeasured(len(self.infos))
        self.units = _units(plan)
        self.lock = threading.Lock()
        self.stopped = False
        self.done, self.told = 0, time.monotonic()
        self.pending: dict[int, _Parts[Partial]] = {}
        self.crcs: dict[int, _Parts[tuple[int, int]]] = {}
        self.failed: dict[int, FormatError] = {}
        self.broken: dict[int, FormatError] = {}
        self.found: list[tuple[int, Finding]] = list(plan.findings)

    def work(self) -> None:
        """Take units until none is left; what any thread raises ends all of them."""
        worker = _Worker(self)
        try:
            # Overflow and invalid operations are what the kernels look for.  The setting is the
            # thread's own, so it is made here.
            with np.errstate(all="ignore"):
                while (unit := self.next()) is not _END:
                    worker.run(unit)
        finally:
            self.stopped = True

    def next(self) -> Any:
        with self.lock:
            return _END if self.stopped else next(self.units, _END)

    def advance(self, nbytes: int) -> None:
        with self.lock:
            self.done += nbytes
            if self.progress is not None and time.monotonic() - self.told > PROGRESS_SECONDS:
                self.progress(min(self.done, self.plan.nbytes), self.plan.nbytes)
                self.told = time.monotonic()

    def add(self, row: int, at: int, piece: Partial) -> None:
        """Keep a piece of a tensor; the last one that is missing completes the row.

        Pieces merge in file order, whichever thread is faster: results repeat to the bit.
        """
        with self.lock:
            parts = self.pending.setdefault(row, _Parts())
            if parts.add(at, piece, piece.count) < self.plan.stored[row]:
                return
            whole = EMPTY
            for part in self.pending.pop(row):
                whole = whole.merge(part)
            self.columns.put(row, whole)

    def add_crc(self, index: int, at: int, crc: int, length: int) -> None:
        """Keep the checksum of a part; the last one that is missing completes the whole."""
        with self.lock:
            parts = self.crcs.setdefault(index, _Parts())
            if parts.add(at, (crc, length), length) < self.table.checksums[index].extent.length:
                return
            whole = 0
            for part, size in self.crcs.pop(index):
                whole = combine(whole, part, size)
        self.check(index, whole)

    def check(self, index: int, crc: int) -> None:
        checksum = self.table.checksums[index]
        if crc != checksum.crc32:
            row = len(self.infos) + index
            finding = mismatch(checksum, crc, self.names(index))
            with self.lock:
                self.found.append((row, finding))

    def rows_in(self, index: int) -> list[int]:
        """Tensors that lie in the bytes of a checksum."""
        for lane in self.plan.lanes:
            at = np.flatnonzero(lane.checks.rows == index)
            if len(at):
                start, stop = (int(c[at[0]]) for c in (lane.checks.starts, lane.checks.stops))
                return sorted(lane.places.touching(start, stop).tolist())
        return []

    def names(self, index: int) -> list[str]:
        return [self.infos[row].name for row in self.rows_in(index)]

    def fail(self, rows: Iterable[int], checks: Iterable[int], error: FormatError) -> None:
        """Remember tensors and checksums some of whose bytes cannot be read."""
        with self.lock:
            for row in rows:
                self.failed.setdefault(row, error)
            for index in checks:
                self.broken.setdefault(index, error)

    def conclude(self) -> Measured:
        """Turn failures into findings, give aliases their numbers, and order everything."""
        plan, columns = self.plan, self.columns
        columns.forget(self.failed)
        for row in np.flatnonzero(np.isin(plan.leaders, list(self.failed))).tolist():
            error = self.failed[int(plan.leaders[row])]
            self.found.append((row, _unread(error, tensor=self.infos[row].name)))
        for index, error in self.broken.items():
            if not any(int(plan.leaders[row]) in self.failed for row in self.rows_in(index)):
                where = self.table.checksums[index].where
                self.found.append((len(self.infos) + index, _unread(error, where=where)))
        columns.share(plan.leaders, plan.times)
        findings = tuple(finding for _, finding in sorted(self.found, key=lambda entry: entry[0]))
        return Measured(StatsTable(self.table.infos, plan.counts, columns), findings)


_END = object()


def _unread(error: FormatError, *, tensor: str = "", where: str = "") -> Finding:
    what = "values" if tensor else "bytes with a checksum"
    message = f"{what} cannot be read: {error.message}"
    return container_finding(
        "CK004", Severity.ERROR, message, where=where or error.where, tensor=tensor
    )


class _Worker:
    """One thread's buffer and scratch memory, and what it does with a unit."""

    def __init__(self, run: _Pass) -> None:
        self.run_ = run
        self.work = Workspace()
        self.buffer = np.empty(TAIL + BLOCK, np.uint8)
        self.bytes = memoryview(self.buffer)
        self.pieces: dict[int, Partial] = {}
        self.crcs: dict[int, tuple[int, int]] = {}

    def run(self, unit: _Unit | None) -> None:
        if unit is None:
            self._run_specials()
            return
        for start in range(unit.start, unit.stop, BLOCK):
            if self.run_.stopped:
                return
            stop = min(start + BLOCK, unit.stop)
            if start > unit.start:
                self.buffer[:TAIL] = self.buffer[BLOCK:]
            lead = min(TAIL, start - unit.first) if start == unit.start else 0
            try:
                into = self.bytes[TAIL - lead : TAIL + stop - start]
                unit.lane.source.pread_into(start - lead, into)
            except FormatError as error:
                if unit.lane.source.sequential:
                    self._give_up(unit, start, error)
                    break
                self._rescue(unit.lane, start, stop, error)
            else:
                self._check(unit.lane, start, stop)
                self._measure(unit.lane, start, stop)
            self.run_.advance(stop - start)
        for row, piece in self.pieces.items():
            self.run_.add(row, unit.start, piece)
        for index, (crc, length) in self.crcs.items():
            self.run_.add_crc(index, unit.start, crc, length)
        self.pieces.clear()
        self.crcs.clear()

    def _check(self, lane: Lane, start: int, stop: int) -> None:
        """Take the checksums of what lies in a block further."""
        near = lane.checks.near(start, stop)
        columns = (lane.checks.rows, lane.checks.starts, lane.checks.stops)
        offset = TAIL - start
        for index, first, last in zip(*(column[near].tolist() for column in columns), strict=True):
            if last <= start:
                continue
            low, high = max(first, start), min(last, stop)
            crc, length = self.crcs.get(index, (0, 0))
            crc = zlib.crc32(self.bytes[low + offset : high + offset], crc)
            if low == first and high == last:
                self.run_.check(index, crc)
            else:
                self.crcs[index] = crc, length + high - low

    def _measure(self, lane: Lane, start: int, stop: int) -> None:
        """Measure the elements that end in a block."""
        items, kernels = lane.items, self.run_.plan.kernels
        near = items.near(start, stop)
        rows, firsts, lasts = items.rows[near], items.starts[near], items.stops[near]
        codes, sizes = lane.kernel[near], lane.sizes[near]
        low = firsts + np.maximum(0, (start - firsts) // sizes * sizes)
        high = firsts + (np.minimum(lasts, stop) - firsts) // sizes * sizes
        whole = (low == firsts) & (high == lasts)
        small = whole & (high - low <= SMALL) & lane.plain[near]
        low += TAIL - start
        high += TAIL - start
        if len(small) > 1 and small.any():
            for code in np.unique(codes[small]).tolist():
                chosen = small & (codes == code)
                self._measure_many(kernels[code], rows[chosen], low[chosen], high[chosen])
        else:
            small[:] = False
        for i in np.flatnonzero((high > low) & ~small).tolist():
            piece = kernels[codes[i]].piece(self.buffer[low[i] : high[i]], self.work)
            self._keep(int(rows[i]), piece, whole=bool(whole[i]))

    def _keep(self, row: int, piece: Partial, *, whole: bool) -> None:
        if whole:
            self.run_.columns.put(row, piece)
        else:
            known = self.pieces.get(row)
            self.pieces[row] = piece if known is None else known.merge(piece)

    def _measure_many(self, kernel: Kernel, rows: Ints, low: Ints, high: Ints) -> None:
        """Measure small tensors of one type that lie whole in the buffer."""
        lengths = (high - low) // kernel.itemsize
        # Half a chunk, because the tensor that crosses the limit still belongs to its group.
        groups = (np.cumsum(lengths) - lengths) // (CHUNK // 2)
        cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(rows)]
        for first, last in zip(cuts, cuts[1:], strict=False):
            part = slice(first, last)
            data = self._joined(low[part], high[part])
            columns, extreme = kernel.many(data, lengths[part], self.work)
            self.run_.columns.put_many(rows[part], columns)
            for i in (extreme + first).tolist():
                piece = kernel.piece(self.buffer[low[i] : high[i]], self.work)
                self.run_.columns.put(int(rows[i]), piece)

    def _joined(self, low: Ints, high: Ints) -> Array:
        if (low[1:] == high[:-1]).all():
            return self.buffer[low[0] : high[-1]]
        ranges = zip(low.tolist(), high.tolist(), strict=True)
        return np.frombuffer(b"".join([self.bytes[a:b] for a, b in ranges]), np.uint8)

    def _rescue(self, lane: Lane, start: int, stop: int, error: FormatError) -> None:
        """Read what can be read of a block that cannot be read as a whole."""
        items, kernels = lane.items, self.run_.plan.kernels
        near = items.near(start, stop)
        columns = (items.rows, items.starts, items.stops, lane.kernel)
        for row, first, last, code in zip(*(c[near].tolist() for c in columns), strict=True):
            size = kernels[code].itemsize
            low = first + max(0, (start - first) // size * size)
            high = first + (min(last, stop) - first) // size * size
            if high <= low:
                continue
            try:
                data = np.frombuffer(lane.source.pread(low, high - low), np.uint8)
            except FormatError as own:
                self.run_.fail([row], [], own)
            else:
                piece = kernels[code].piece(data, self.work)
                self._keep(row, piece, whole=(low, high) == (first, last))
        self.run_.fail([], lane.checks.touching(start, stop).tolist(), error)

    def _give_up(self, unit: _Unit, start: int, error: FormatError) -> None:
        """Use what a source that only reads forward gave before it broke; the rest is lost."""
        lane, good = unit.lane, start
        stop = min(start + BLOCK, unit.stop)
        try:
            while good < stop:
                step = min(GAP, stop - good)
                at = TAIL + good - start
                lane.source.pread_into(good, self.bytes[at : at + step])
                good += step
        except FormatError:
            pass
        if good > start:
            self._measure(lane, start, good)
        rows, checks = (s.touching(good, unit.stop).tolist() for s in (lane.items, lane.checks))
        self.run_.fail(rows, checks, error)

    def _run_specials(self) -> None:
        """Gather views and take decoded values, one after the other: decoders need not be safe."""
        run = self.run_
        for view in run.plan.views:
            pieces = gather(view.source, view.offset, view.kernel.itemsize, view.dims, BLOCK)
            self._run_special(view.row, (p.reshape(-1) for p in pieces), view.kernel)
        for row in run.plan.decoded:
            info = run.infos[row]
            kernel = kernel_of(info.dtype)
            assert kernel is not None, "the plan leaves opaque tensors out"
            blocks = run.table.blocks(info)
            self._run_special(row, (_raw(block, kernel) for block in blocks), kernel)

    def _run_special(self, row: int, pieces: Iterable[Array], kernel: Kernel) -> None:
        run, whole = self.run_, EMPTY
        try:
            for data in pieces:
                if run.stopped:
                    return
                if data.size:
                    whole = whole.merge(kernel.piece(data, self.work))
                    run.advance(data.size)
        except FormatError as error:
            run.fail([row], [], error)
            return
        if whole.count == run.plan.stored[row]:
            run.columns.put(row, whole)
        else:
            message = f"expected {run.plan.stored[row]:,} elements, found {whole.count:,}"
            run.fail([row], [], FormatError(message, where=run.table.path))


def _raw(block: Array, kernel: Kernel) -> Array:
    """Bytes of decoded values."""
    if block.dtype.itemsize != kernel.itemsize:
        message = f"expected elements of {kernel.itemsize} bytes, found {block.dtype}"
        raise FormatError(message)
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8)
