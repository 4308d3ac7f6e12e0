"""What the threads of the statistics pass share: the work left, and the results so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ..errors import FormatError
from ..findings import Finding, Severity, container_finding
from ..tensors import TensorTable
from .crc import combine
from .plan import UNIT, Lane, Plan, mismatch
from .stats import EMPTY, Columns, Partial, StatsTable

__all__ = ["Progress", "State", "Unit"]

T = TypeVar("T")
Progress = Callable[[int, int], None]
PROGRESS_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of a lane that one thread reads from start to end.

    ``first`` is where the range's run starts.  Without a lane: all views and decoded tensors.
    """

    lane: Lane | None
    first: int
    start: int
    stop: int


def _units(plan: Plan) -> Iterator[Unit]:
    """All work, what cannot be shared first."""
    if plan.views or plan.decoded:
        yield Unit(None, 0, 0, 0)
    for lane in plan.lanes:
        for first, stop in lane.runs():
            step = stop - first if lane.source.sequential else UNIT
            for start in range(first, stop, step):
                yield Unit(lane, first, start, min(start + step, stop))


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


class State:
    """One pass in progress; everything that writes to it holds the lock."""

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

    def next(self) -> Unit | None:
        """Next unit of work; None when there is none left, or somebody failed."""
        with self.lock:
            return None if self.stopped else next(self.units, None)

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

    def conclude(self) -> tuple[StatsTable, tuple[Finding, ...]]:
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
        return StatsTable(self.table.infos, plan.counts, columns), findings


def _unread(error: FormatError, *, tensor: str = "", where: str = "") -> Finding:
    what = "values" if tensor else "bytes with a checksum"
    message = f"{what} cannot be read: {error.message}"
    return container_finding(
        "CK004", Severity.ERROR, message, where=where or error.where, tensor=tensor
    )
