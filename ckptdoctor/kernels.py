"""Bytes of elements to numbers: the loops that statistics spend their time in, all of it NumPy.

Measured on two cores (AMD EPYC, NumPy 2.4, page cache warm, GB/s of file on one | two threads):

====================================================  =====  =====  =====
what is done with a block of ...                      256k   512k   1 MiB
====================================================  =====  =====  =====
pread only                                            13|24  16|28  19|29
+ min, max, ==0, squares, two sums by einsum (here)    -     5.6|7  6.2|10
+ ... sums by BLAS (gemv) instead                     5.1|6  5.8|8  6.3|11
+ ... sums by `numpy.vecdot` (keeps the GIL)          5.7|5  6.4|7  6.9|9
+ ... sums by one BLAS dot per block (too inexact)    5.8|8  6.2|10 6.8|13
====================================================  =====  =====  =====

So a block is 1 MiB, not the 256 KiB that would stay in L2: fewer system calls, and two threads
wait less for the GIL.  Sums do not need BLAS, whose own threads would get in the way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .dtypes import DTYPES
from .stats import Columns, Partial
from .tensors import Array

__all__ = ["CHUNK", "Kernel", "Workspace", "kernel_of"]

CHUNK = 1 << 18
"""Numbers per call: 1 MiB of float32."""
_ROW = 256
"""Numbers summed in float32 before float64 takes over.  In 16 lanes that is 16 additions, a
relative error below 5e-7 even where all roundings go the same way (a constant does that: 1e-5
for 65,536 numbers).  Rows of 1,024 would be 3 % faster."""


class Workspace:
    """Scratch memory of one thread, about 5 MiB once everything was used.

    Pages that no data touched are never backed by memory, so small files pay nothing.
    """

    def __init__(self) -> None:
        self.wide = np.empty(CHUNK, np.float64)
        self.more = np.empty(CHUNK, np.float64)
        self.flags = np.empty(CHUNK, np.bool_)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How one stored type is measured.

    Parameters
    ----------
    itemsize
        Bytes of one element.
    raw
        NumPy dtype that the bytes are viewed as, in the file's byte order.
    widen
        ``(raw values, scratch) -> float32 or float64 values`` in native order, in order.
    infinity
        What infinities look like after widening; NaN is beyond it, or is NaN.
    parts
        Numbers per element: 2 for complex types.
    """

    itemsize: int
    raw: np.dtype[Any]
    widen: Callable[[Array, Array], Array]
    infinity: float = math.inf
    parts: int = 1

    def piece(self, data: Array, work: Workspace) -> Partial:
        """Measure a run of whole elements.

        Parameters
        ----------
        data
            Bytes, shape ``(n * itemsize,)``; up to `CHUNK` numbers are taken at once.
        work
            This thread's scratch memory.
        """
        step = CHUNK // self.parts * self.itemsize
        whole: Partial | None = None
        for start in range(0, len(data), step):
            part = self._chunk(self._values(data[start : start + step], work), work)
            whole = part if whole is None else whole.merge(part)
        assert whole is not None, "a piece has at least one element"
        return whole

    def many(self, data: Array, lengths: Array, work: Workspace) -> tuple[Columns, Array]:
        """Measure many small tensors that lie one behind the other; no complex types.

        Parameters
        ----------
        data
            Their bytes; at most `CHUNK` elements.
        lengths
            Elements of each, none of them 0.
        work
            This thread's scratch memory.

        Returns
        -------
        columns
            One value per tensor.
        extreme
            Indices of those whose squares leave the range of float64; measure them by `piece`.
        """
        values = self._values(data, work)
        if self.infinity != math.inf:
            _restore_nonfinite(values, self.infinity)
        return _many(values, lengths)

    def _values(self, data: Array, work: Workspace) -> Array:
        raw = data.view(self.raw)
        if not raw.flags.aligned or not raw.dtype.isnative:
            raw = raw.astype(raw.dtype.newbyteorder("="))
        return self.widen(raw, work.wide)

    def _chunk(self, values: Array, work: Workspace) -> Partial:
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        # NaN fails this comparison, whichever of the two it is.
        if not (low > -self.infinity and high < self.infinity):
            return self._sick_chunk(values, work)
        zeros = 0
        if low <= 0 <= high:
            zeros = self._count(np.equal(values, 0, out=work.flags[: values.size]), all)
        mean, std = _moments(values, values.size, low, high, work, None)
        count = values.size // self.parts
        return Partial(count, 0, 0, 0, zeros, values.size, low, high, mean, std)

    def _sick_chunk(self, values: Array, work: Workspace) -> Partial:
        """Measure numbers some of which are not finite.

        Those are set to zero by masking bits, which costs the same for one of them as for a random
        half (`numpy.where` and `numpy.copyto` are up to 18 times slower where branches are hard to
        guess): 1.7 times a clean chunk altogether.
        """
        flags = work.flags[: values.size]
        nan, posinf, neginf = self._nonfinite(values, flags)
        zeros = self._count(np.equal(values, 0, out=flags), all)
        keep = self._finite(values, flags)
        finite = int(np.count_nonzero(keep))
        count = values.size // self.parts
        if not finite:
            none = (math.inf, -math.inf, 0.0, 0.0)
            return Partial(count, nan, posinf, neginf, zeros, 0, *none)
        mask = np.negative(keep.view(np.int8))
        masked = _bits(work.more)[: values.size] if values.itemsize == 8 else None
        if masked is None:
            masked = work.more.view(np.int32)[: values.size]
        np.bitwise_and(_bits(values), mask, out=masked)
        clean = masked.view(values.dtype)
        low, high = float(np.minimum.reduce(clean)), float(np.maximum.reduce(clean))
        if not low < 0 < high and finite < values.size:
            # Zero may be the extreme only because it was filled in.
            kept = values[keep]
            low, high = float(np.minimum.reduce(kept)), float(np.maximum.reduce(kept))
        mean, std = _moments(clean, finite, low, high, work, mask)
        return Partial(count, nan, posinf, neginf, zeros, finite, low, high, mean, std)
