"""One thread of the statistics pass: reads blocks, measures what ends in them, takes checksums."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable

import numpy as np

from ..errors import FormatError
from ..tensors import Array
from .kernels import CHUNK, Kernel, Workspace, kernel_of
from .plan import BLOCK, GAP, Lane
from .state import State, Unit
from .stats import EMPTY, Ints, Partial
from .views import gather

__all__ = ["Worker"]

TAIL = 16
"""Bytes kept of the block before: an element belongs to the block in which it ends."""
SMALL = 1 << 16
"""Tensors up to this many bytes are measured many at a time: 0.2 us for one of 100 float32 instead
of 11, 18 instead of 24 for one of 16,384, but 36 instead of 31 for one of 32,768."""


class Worker:
    """One thread's buffer and scratch memory, and what it does with a unit."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.work = Workspace()
        self.bytes = memoryview(bytearray(TAIL + BLOCK))
        self.buffer = np.frombuffer(self.bytes, np.uint8)
        self.pieces: dict[int, Partial] = {}
        self.crcs: dict[int, tuple[int, int]] = {}

    def run_all(self) -> None:
        """Take units until none is left; what any thread raises ends all of them."""
        try:
            # Overflow and invalid operations are what the kernels look for.  The setting is the
            # thread's own, so it is made here.
            with np.errstate(all="ignore"):
                while unit := self.state.next():
                    self.run(unit)
        except BaseException:
            self.state.stopped = True
            raise

    def run(self, unit: Unit) -> None:
        """Do one unit of work."""
        lane = unit.lane
        if lane is None:
            self._run_specials()
            return
        have_tail = False
        for start in range(unit.start, unit.stop, BLOCK):
            if self.state.stopped:
                return
            stop = min(start + BLOCK, unit.stop)
            if have_tail:
                self.buffer[:TAIL] = self.buffer[BLOCK:]
            lead = 0 if have_tail else min(TAIL, start - unit.first)
            have_tail = True
            try:
                into = self.bytes[TAIL - lead : TAIL + stop - start]
                lane.source.pread_into(start - lead, into)
            except FormatError as error:
                if lane.source.sequential:
                    self._give_up(lane, start, unit.stop, error)
                    break
                self._rescue(lane, start, stop, error)
                have_tail = False
            else:
                self._check(lane, start, stop)
                self._measure(lane, start, stop)
            self.state.advance(stop - start)
        for row, piece in self.pieces.items():
            self.state.add(row, unit.start, piece)
        for index, (crc, length) in self.crcs.items():
            self.state.add_crc(index, unit.start, crc, length)
        self.pieces.clear()
        self.crcs.clear()

    def _check(self, lane: Lane, start: int, stop: int) -> None:
        """Take the checksums of what lies in a block further."""
        checks = lane.checks
        near = checks.near(start, stop)
        firsts, lasts, rows = checks.starts[near], checks.stops[near], checks.rows[near]
        low, high = np.maximum(firsts, start), np.minimum(lasts, stop)
        whole = (low == firsts) & (high == lasts)
        low += TAIL - start
        high += TAIL - start
        ranges = zip(low[whole].tolist(), high[whole].tolist(), strict=True)
        # 100,000 members of an archive: a list, not a call per member.
        found = np.array([zlib.crc32(self.bytes[a:b]) for a, b in ranges], np.int64)
        for at in np.flatnonzero(found != lane.crcs[near][whole]).tolist():
            self.state.check(int(rows[whole][at]), int(found[at]))
        for at in np.flatnonzero(~whole & (low < high)).tolist():
            crc, length = self.crcs.get(int(rows[at]), (0, 0))
            crc = zlib.crc32(self.bytes[int(low[at]) : int(high[at])], crc)
            self.crcs[int(rows[at])] = crc, length + int(high[at] - low[at])

    def _measure(self, lane: Lane, start: int, stop: int) -> None:
        """Measure the elements that end in a block."""
        items, kernels = lane.items, self.state.plan.kernels
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
            for code in sorted(set(codes[small].tolist())):  # np.unique imports numpy.ma, 8 ms
                chosen = small & (codes == code)
                self._measure_many(kernels[code], rows[chosen], low[chosen], high[chosen])
        else:
            small[:] = False
        for i in np.flatnonzero((high > low) & ~small).tolist():
            piece = kernels[codes[i]].piece(self.buffer[low[i] : high[i]], self.work)
            self._keep(int(rows[i]), piece, whole=bool(whole[i]))

    def _keep(self, row: int, piece: Partial, *, whole: bool) -> None:
        if whole:
            self.state.columns.put(row, piece)
        else:
            known = self.pieces.get(row)
            self.pieces[row] = piece if known is None else known.merge(piece)

    def _measure_many(self, kernel: Kernel, rows: Ints, low: Ints, high: Ints) -> None:
        """Measure small tensors of one type that lie whole in the buffer."""
        lengths = (high - low) // kernel.itemsize
        # Half a chunk, because the tensor that crosses the limit still belongs to its group.
        groups = (np.cumsum(lengths) - lengths) // (CHUNK // 2)
        cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            part = slice(first, last)
            data = self._joined(low[part], high[part])
            columns, extreme = kernel.many(data, lengths[part], self.work)
            self.state.columns.put_many(rows[part], columns)
            for i in (extreme + first).tolist():
                piece = kernel.piece(self.buffer[low[i] : high[i]], self.work)
                self.state.columns.put(int(rows[i]), piece)

    def _joined(self, low: Ints, high: Ints) -> Array:
        if (low[1:] == high[:-1]).all():
            return self.buffer[low[0] : high[-1]]
        ranges = zip(low.tolist(), high.tolist(), strict=True)
        return np.frombuffer(b"".join([self.bytes[a:b] for a, b in ranges]), np.uint8)

    def _rescue(self, lane: Lane, start: int, stop: int, error: FormatError) -> None:
        """Read what can be read of a block that cannot be read as a whole."""
        items, kernels = lane.items, self.state.plan.kernels
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
                self.state.fail([row], [], own)
            else:
                piece = kernels[code].piece(data, self.work)
                self._keep(row, piece, whole=(low, high) == (first, last))
        self.state.fail([], lane.checks.touching(start, stop).tolist(), error)

    def _give_up(self, lane: Lane, start: int, end: int, error: FormatError) -> None:
        """Use what a source that only reads forward gave before it broke; the rest is lost."""
        good, stop = start, min(start + BLOCK, end)
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
        rows, checks = (s.touching(good, end).tolist() for s in (lane.items, lane.checks))
        self.state.fail(rows, checks, error)

    def _run_specials(self) -> None:
        """Gather views and take decoded values, one after the other: decoders need not be safe."""
        run = self.state
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
        run, whole = self.state, EMPTY
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
