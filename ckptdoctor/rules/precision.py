"""What narrow floating types can hold, and which tensors are asked to fit into one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import repeat
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..measure.stats import TensorStats
from ..tensors import Array, TensorInfo
from .base import Context

__all__ = [
    "NARROW",
    "SERVED",
    "Counts",
    "Narrow",
    "half",
    "is_float",
    "magnitude",
    "of_types",
    "sample",
    "target",
]

SERVED = ("model", "ema")
"""Roles of weights that are cast and served; an optimizer's state stays as it was trained."""

PIECES, PIECE = 8, 1 << 12
"""A sample is that many runs of that many elements, evenly spread: it tells a share to 0.01."""


class Narrow(NamedTuple):
    """One floating type of 16 or 8 bits.

    Parameters
    ----------
    name
        As in the dtype table.
    largest
        Greatest finite value.
    limit
        Magnitude from which rounding to nearest, ties to even, leaves the range.
    holds_limit
        Whether ``limit`` itself still rounds to ``largest``.
    beyond
        What a value out of range turns into.
    tiny
        Smallest normal value.
    step
        Smallest value above zero; half of it rounds to zero.
    low
        Below it a value has lost what the type promises.  16 bits: ``tiny``, where digits begin
        to go.  8 bits: two steps, because subnormal values are in normal use there (18 % of a
        healthy layer's in float8_e4m3fn).
    """

    name: str
    largest: float
    limit: float
    holds_limit: bool
    beyond: str
    tiny: float
    step: float
    low: float

    def overflows(self, magnitude: Array | float) -> Array:
        """Whether magnitudes leave the range when they are cast.

        Examples
        --------
        >>> NARROW["float16"].overflows(np.float64([65519.9, 65520])).tolist()
        [False, True]
        >>> NARROW["float8_e4m3fn"].overflows(np.float64([464, 464.1])).tolist()
        [False, True]
        """
        beyond = np.greater if self.holds_limit else np.greater_equal
        found: Array = beyond(magnitude, self.limit)
        return found


NARROW: Mapping[str, Narrow] = {
    row.name: row
    for row in (
        Narrow("float16", 65504.0, 65520.0, False, "Inf", 2.0**-14, 2.0**-24, 2.0**-14),
        Narrow(
            "bfloat16", 2.0**128 * (1 - 2.0**-8), 2.0**128 * (1 - 2.0**-9), False, "Inf",
            2.0**-126, 2.0**-133, 2.0**-126,
        ),
        # the code after 448 is NaN, so that 464 lies halfway to nothing and rounds to even
        Narrow(
            "float8_e4m3fn", 448.0, 464.0, True, "NaN, or 448 where casts saturate (torch 2.13)",
            2.0**-6, 2.0**-9, 2.0**-8,
        ),
        Narrow("float8_e5m2", 57344.0, 61440.0, False, "Inf", 2.0**-14, 2.0**-16, 2.0**-15),
    )
}  # fmt: skip
"""The types that weights are cast to, by name; each row is compared with real casts in the tests."""


class Counts(NamedTuple):
    """Elements of a tensor (or of a sample of it) by how small they are; zeros left out."""

    nonzero: int
    low: int
    """Below `Narrow.low`, those that become zero included."""
    vanishing: int
    """That become zero when they are cast."""


def target(name: str) -> Narrow | None:
    """Type that ``--cast-to`` asks for; None where it asks for none."""
    return NARROW[name] if name else None


def is_float(info: TensorInfo) -> bool:
    """Whether a cast of the model reaches this tensor: real numbers, plainly stored."""
    return info.encoding == "plain" and info.kind.kind == "float"


def magnitude(stats: TensorStats) -> float:
    """Largest finite value but for its sign; 0 where there is none."""
    ends = (stats.minimum, stats.maximum)
    return max((abs(end) for end in ends if end is not None), default=0.0)


def of_types(ctx: Context, column: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Value of ``column`` for every tensor's dtype, NaN where it has none; table order."""
    dtypes = map(attrgetter("dtype"), ctx.table.infos.values())  # 4 ms for 100,000 tensors
    return np.fromiter(map(column.get, dtypes, repeat(math.nan)), np.float64, len(ctx.table))


def half(values: npt.ArrayLike) -> Array:
    """Values as float16, for cases."""
    return np.array(values, np.float16)


def count_low(ctx: Context, info: TensorInfo, kind: Narrow) -> Counts:
    """Count the elements too small for ``kind``, in a sample where the tensor is large."""
    nonzero = low = vanishing = 0
    for block in sample(ctx, info):
        with np.errstate(all="ignore"):  # a signalling NaN of ml_dtypes warns
            size = np.abs(block.astype(np.float64))
            small = size[(size > 0) & (size < kind.low)]
        nonzero += int(np.count_nonzero(size))
        low += small.size
        vanishing += int(np.count_nonzero(small <= kind.step / 2))
    return Counts(nonzero, low, vanishing)


def sample(ctx: Context, info: TensorInfo) -> Iterator[Array]:
    """Yield all values of a small tensor, runs of values from all over a large one.

    What is compressed or strided can only be read from its start.
    """
    if info.size <= PIECES * PIECE or info.extent is None or info.strides is not None:
        seen = 0
        for block in ctx.table.blocks(info):
            yield block
            seen += block.size
            if seen >= PIECES * PIECE:
                return
        return
    extent, dtype = info.extent, info.kind.numpy
    for i in range(PIECES):
        at = (info.size - PIECE) * i // (PIECES - 1)
        raw = extent.source.pread(extent.offset + at * dtype.itemsize, PIECE * dtype.itemsize)
        piece = np.frombuffer(raw, dtype)
        yield piece.byteswap() if info.big_endian else piece
