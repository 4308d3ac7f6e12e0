"""Bytes of elements to numbers: the loops that statistics spend their time in, all of it NumPy.

Best of 12 on two cores that others used too (AMD EPYC, NumPy 2.4, page cache warm), GB/s of file on
one | two threads, in two runs that compare within themselves only:

===============================================  ===========  ===========  ===========
what is done with a block of ...                 256 KiB      512 KiB      1 MiB
===============================================  ===========  ===========  ===========
run 1: pread only                                13.0 | 24.3  16.1 | 27.6  19.1 | 29.4
min, max, ==0, sums by `numpy.vecdot`             5.7 | 5.4    6.4 | 6.7    6.9 | 8.7
min, max, ==0, one BLAS dot a block (inexact)     5.8 | 8.2    6.2 | 10.3   6.8 | 12.9
run 2: min, max, ==0, squares, sums by einsum                  5.6 | 7.4    6.2 | 10.3
the same with sums by BLAS (gemv)                              5.8 | 7.7    6.3 | 10.6
===============================================  ===========  ===========  ===========

So a block is 1 MiB, not the 256 KiB that would stay in L2: fewer system calls, and two threads
wait less for the GIL.  Sums by einsum need no BLAS, whose own threads would get in the way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..dtypes import DTYPES
from ..tensors import Array
from .stats import EMPTY, Columns, Partial

__all__ = ["CHUNK", "Kernel", "Workspace", "kernel_of"]

CHUNK = 1 << 18
"""Numbers per call: 1 MiB of float32."""
_ROW = 256
"""Numbers summed in float32 before float64 takes over.  In 16 lanes that is 16 additions, a
relative error below 5e-7 even where all roundings go the same way (a constant does that: 1e-5
for 65,536 numbers).  Rows of 1,024 take 129 us a chunk instead of 137."""


class Workspace:
    """Scratch memory of one thread: 6 MiB, of which a small file touches little."""

    def __init__(self) -> None:
        self.wide, self.clean, self.squares = (np.empty(CHUNK, np.float64) for _ in range(3))
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
        ``(raw values, scratch) -> float32 or float64 values``, native byte order, same order.
    limit
        What +Inf is after widening; NaN lies beyond it, or is NaN.
    parts
        Numbers per element: 2 for complex types.
    """

    itemsize: int
    raw: np.dtype[Any]
    widen: Callable[[Array, Array], Array]
    limit: float = math.inf
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
        whole = EMPTY
        for start in range(0, len(data), step):
            part = self._chunk(self._values(data[start : start + step], work), work)
            whole = whole.merge(part) if start else part
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
            Indices of tensors whose squares are too large, too small or too alike for plain sums
            in float64: measure them by `piece`.
        """
        values = self._values(data, work)
        if self.limit != math.inf:
            _restore_nonfinite(values, self.limit)
        return _many(values, lengths, work)

    def _values(self, data: Array, work: Workspace) -> Array:
        raw = data.view(self.raw)
        if not raw.flags.aligned or not raw.dtype.isnative:
            raw = raw.astype(raw.dtype.newbyteorder("="))
        return self.widen(raw, work.wide)

    def _chunk(self, values: Array, work: Workspace) -> Partial:
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        if not (low > -self.limit and high < self.limit):  # either, where there is a NaN
            return self._sick_chunk(values, work)
        zeros = self._zeros(values, work) if low <= 0 <= high else 0
        mean, std = _moments(values, values.size, low, high, work, None)
        count = values.size // self.parts
        return Partial(count, 0, 0, 0, zeros, values.size, low, high, mean, std)

    def _zeros(self, values: Array, work: Workspace) -> int:
        flags = np.equal(values, 0, out=work.flags[: values.size])
        if self.parts == 2:
            return int(np.count_nonzero(flags.view(np.uint16) == 0x0101))
        return int(np.count_nonzero(flags))

    def _sick_chunk(self, values: Array, work: Workspace) -> Partial:
        """Measure numbers some of which are not finite.

        Those are set to zero by masking bits, which costs the same for one of them as for a random
        half (`numpy.where`, `numpy.copyto` and indexing are up to 18 times slower where branches
        are hard to guess).
        """
        limit = self.limit
        if self.parts == 2 and limit != math.inf:
            _restore_nonfinite(values, limit)
            limit = math.inf
        keep, low, high = _screen(values, limit, work)
        finite = int(np.count_nonzero(keep))
        mask = np.negative(keep.view(np.int8))
        if self.parts == 2:
            nan, posinf, neginf = _complex_nonfinite(values)
        else:
            flags = work.flags[: values.size]  # `keep` is no longer needed
            posinf = (
                int(np.count_nonzero(np.equal(values, limit, out=flags))) if high >= limit else 0
            )
            neginf = (
                int(np.count_nonzero(np.equal(values, -limit, out=flags))) if low <= -limit else 0
            )
            nan = values.size - finite - posinf - neginf
        zeros = self._zeros(values, work)
        count = values.size // self.parts
        if not finite:
            return Partial(count, nan, posinf, neginf, zeros, 0, math.inf, -math.inf, 0.0, 0.0)
        clean = _masked(values, mask, work)
        if low <= -limit:
            low = _extreme(clean, mask, work, -1, zero=zeros > 0)
        if high >= limit:
            high = _extreme(clean, mask, work, 1, zero=zeros > 0)
        mean, std = _moments(clean, finite, low, high, work, mask)
        return Partial(count, nan, posinf, neginf, zeros, finite, low, high, mean, std)


_BITS: dict[int, np.dtype[Any]] = {4: np.dtype(np.int32), 8: np.dtype(np.int64)}
# Largest magnitudes between which squares neither vanish nor overflow, and how far the mean may
# lie off before the squares' own rounding shows in the standard deviation.
_RANGE = {4: (1e-15, 1e17, 1.0), 8: (1e-140, 1e150, 1e6)}


def _screen(values: Array, limit: float, work: Workspace) -> tuple[Array, float, float]:
    """Which numbers are finite, and the extremes: exact, or infinite if there are infinities."""
    flags = work.flags[: values.size]
    if limit == math.inf:
        low, high = float(np.fmin.reduce(values)), float(np.fmax.reduce(values))
        return np.isfinite(values, out=flags), low, high
    magnitude = np.abs(values, out=work.squares.view(values.dtype)[: values.size])
    return np.less(magnitude, limit, out=flags), -limit, limit


def _extreme(clean: Array, mask: Array, work: Workspace, sign: int, *, zero: bool) -> float:
    """Maximum (``sign`` 1) or minimum (-1) of the numbers that ``mask`` keeps.

    The others are 0 in ``clean``; ``zero`` tells that some of the kept ones are, too.
    """
    reduce = np.maximum.reduce if sign > 0 else np.minimum.reduce
    found = float(reduce(clean))
    if found * sign > 0 or zero:
        return found
    filler = work.squares.view(_BITS[clean.itemsize])[: clean.size]
    never = np.array(-sign * math.inf, clean.dtype).view(filler.dtype)
    np.bitwise_and(np.invert(mask), never, out=filler)
    np.bitwise_or(filler, clean.view(filler.dtype), out=filler)
    return float(reduce(filler.view(clean.dtype)))


def _complex_nonfinite(values: Array) -> tuple[int, int, int]:
    nan = np.isnan(values).reshape(-1, 2).any(axis=1)
    posinf = (values == math.inf).reshape(-1, 2).any(axis=1) & ~nan
    neginf = (values == -math.inf).reshape(-1, 2).any(axis=1) & ~nan & ~posinf
    return (*(int(np.count_nonzero(flags)) for flags in (nan, posinf, neginf)),)  # type: ignore[return-value]


def _total(values: Array) -> float:
    """Sum: rows in the type of the values, their sums in float64."""
    full = values.size & -_ROW
    rest = float(np.add.reduce(values[full:], dtype=np.float64))
    if not full:
        return rest
    rows = np.einsum("ij->i", values[:full].reshape(-1, _ROW))
    return rest + float(np.add.reduce(rows, dtype=np.float64))


def _moments(
    values: Array, finite: int, low: float, high: float, work: Workspace, mask: Array | None
) -> tuple[float, float]:
    """Mean and standard deviation of the ``finite`` numbers that ``mask`` keeps, the others being 0."""
    if low == high:
        return low, 0.0
    tiny, huge, trust = _RANGE[values.itemsize]
    span, pivot = high - low, low / 2 + high / 2
    if tiny < max(-low, high) < huge:
        mean = _total(values) / finite
        squares = np.multiply(values, values, out=work.squares.view(values.dtype)[: values.size])
        std = math.sqrt(max(0.0, _total(squares) / finite - mean * mean))
        # What rounding may have done to the squares, about 5e-7 * (mean**2 + std**2), must
        # stay below 1e-6 * span in the root.
        if abs(mean) <= trust * span and mean * mean <= trust * std * span:
            return mean, std
        pivot = min(max(mean, low), high)
    return _moments_about(pivot, values, finite, max(-low, high), work, mask)


def _moments_about(
    pivot: float,
    values: Array,
    finite: int,
    biggest: float,
    work: Workspace,
    mask: Array | None,
) -> tuple[float, float]:
    """Moments in float64, of differences from ``pivot`` in units that keep their squares in range."""
    unit = 1.0
    if not _RANGE[8][0] < biggest < _RANGE[8][1]:
        unit = math.ldexp(1.0, max(-1000, math.frexp(biggest)[1]) - 1)
    apart = work.squares[: values.size]
    np.copyto(apart, values)
    if unit != 1.0:
        np.divide(apart, unit, out=apart)
    np.subtract(apart, pivot / unit, out=apart)
    if mask is not None:
        np.bitwise_and(apart.view(np.int64), mask, out=apart.view(np.int64))
    shift = _total(apart) / finite
    np.multiply(apart, apart, out=apart)
    std = math.sqrt(max(0.0, _total(apart) / finite - shift * shift))
    return pivot + shift * unit, std * unit


def _restore_nonfinite(values: Array, limit: float) -> None:
    """Make float32 numbers at and beyond ``limit`` the infinities and NaN that they stand for."""
    beyond = np.abs(values) >= limit
    if beyond.any():
        bits = values.view(np.int32)
        bits |= np.negative(beyond.view(np.int8)) & np.int32(0x7F800000)


def _many(values: Array, lengths: Array, work: Workspace) -> tuple[Columns, Array]:
    """`Kernel.many` after widening.  Large temporaries would cost more than the arithmetic."""
    starts = np.cumsum(lengths) - lengths
    columns = Columns.unmeasured(len(starts))
    flags = np.equal(values, 0, out=work.flags[: values.size])
    if flags.any():
        columns.zeros[:] = _flagged(flags, starts)
    if np.isfinite(values, out=flags).all():
        finite, clean = lengths, values
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    else:
        clean, low, high = _many_sick(values, starts, columns, work)
        finite = lengths - columns.nan - columns.posinf - columns.neginf
    some = np.where(finite > 0, finite, np.nan)
    low, high = np.where(finite > 0, (low, high), np.nan).astype(np.float64)
    exact = work.squares[: values.size]
    np.copyto(exact, clean)
    # A constant's mean is that constant, whatever the rounding.
    mean = np.clip(np.add.reduceat(exact, starts) / some, low, high)
    np.multiply(exact, exact, out=exact)
    variance = np.maximum(np.add.reduceat(exact, starts) / some - mean * mean, 0)
    std = np.where(low == high, 0.0, np.sqrt(variance))
    columns.minimum[:], columns.maximum[:] = low + 0.0, high + 0.0
    columns.mean[:], columns.std[:] = mean, std
    biggest, span = np.maximum(-low, high), high - low
    tiny, huge, trust = _RANGE[8]
    good = (biggest > tiny) & (biggest < huge) & (mean * mean <= trust / 10 * std * span)
    return columns, np.flatnonzero(~(good | (low == high) | (finite == 0)))


def _many_sick(
    values: Array, starts: Array, columns: Columns, work: Workspace
) -> tuple[Array, Array, Array]:
    """Count what is not finite; returns values with that set to zero, and the extremes without it."""
    flags = work.flags[: values.size]
    columns.nan[:] = _flagged(np.isnan(values, out=flags), starts)
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    infinite = bool(np.isinf(low).any() or np.isinf(high).any())
    keep = np.isfinite(values, out=flags)
    clean = _masked(values, np.negative(keep.view(np.int8)), work)
    if infinite:
        low = np.minimum.reduceat(np.where(keep, values, math.inf), starts)
        high = np.maximum.reduceat(np.where(keep, values, -math.inf), starts)
        columns.posinf[:] = _flagged(values == math.inf, starts)
        columns.neginf[:] = _flagged(values == -math.inf, starts)
    return clean, low, high


def _masked(values: Array, mask: Array, work: Workspace) -> Array:
    """Numbers where ``mask`` (int8) is -1, 0 where it is 0."""
    bits = work.clean.view(_BITS[values.itemsize])[: values.size]
    np.bitwise_and(values.view(bits.dtype), mask, out=bits)
    return bits.view(values.dtype)


def _flagged(flags: Array, starts: Array) -> Array:
    return np.add.reduceat(flags, starts, dtype=np.int64)


def _same(raw: Array, _: Array) -> Array:
    return raw


def _copied(raw: Array, scratch: Array) -> Array:
    """Integers, exactly: up to 16 bits as float32, wider ones as (rounded) float64."""
    wide = scratch if raw.itemsize > 2 else scratch.view(np.float32)
    np.copyto(wide[: raw.size], raw)
    return wide[: raw.size]


def _flag(raw: Array, scratch: Array) -> Array:
    """Booleans, any byte but 0 being true."""
    return _copied(raw != 0, scratch)


def _bfloat16(raw: Array, scratch: Array) -> Array:
    """Bits are the upper half of a float32's: 15 GB/s."""
    bits = scratch.view(np.uint32)[: raw.size]
    np.copyto(bits, raw)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)


_HALF_LIMIT = 65536.0


def _float16(raw: Array, scratch: Array) -> Array:
    """Move sign, exponent and fraction into place and mend the exponent's bias: 7 GB/s.

    NumPy's own conversion does 1.2.  Subnormals come out right; infinities and NaN become
    `_HALF_LIMIT` and numbers beyond.
    """
    bits = scratch.view(np.int32)[: raw.size]
    np.copyto(bits, raw)  # int16: fills the upper half with the sign
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)
    values = bits.view(np.float32)
    np.multiply(values, np.float32(2.0**112), out=values)
    return values


def _looked_up(dtype: str) -> Callable[[Array, Array], Array]:
    """8-bit floats through a table of their 256 values: 1.3 GB/s."""
    kind = DTYPES[dtype].numpy
    table = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)

    def widen(raw: Array, scratch: Array) -> Array:
        values = scratch.view(np.float32)[: raw.size]
        # "clip" checks nothing; the default would copy the output first.
        np.take(table, raw, out=values, mode="clip")
        return values

    return widen


@functools.cache
def kernel_of(dtype: str, *, big_endian: bool = False) -> Kernel | None:
    """Kernel for a name of `ckptdoctor.dtypes.DTYPES`; None for opaque types."""
    kind = DTYPES[dtype]
    order: Literal["<", ">"] = ">" if big_endian else "<"
    size = kind.itemsize
    if kind.kind == "bool":
        return Kernel(size, np.dtype(np.uint8), _flag)
    if kind.kind == "int":
        return Kernel(size, np.dtype(kind.stored).newbyteorder(order), _copied)
    if kind.kind == "opaque":
        return None
    parts = 2 if kind.kind == "complex" else 1
    width = size // parts
    if dtype == "bfloat16":
        return Kernel(size, np.dtype(f"{order}u2"), _bfloat16)
    if width == 1:
        return Kernel(size, np.dtype(np.uint8), _looked_up(dtype))
    if width == 2:
        return Kernel(size, np.dtype(f"{order}i2"), _float16, _HALF_LIMIT, parts)
    return Kernel(size, np.dtype(f"{order}f{width}"), _same, math.inf, parts)
