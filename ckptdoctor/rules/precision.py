"""What narrow floating types can hold, and which tensors are asked to fit into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..tensors import Array, TensorInfo
from .base import Context

__all__ = [
    "NARROW",
    "SERVED",
    "Counts",
    "Narrow",
    "below",
    "half",
    "is_float",
    "of_types",
    "target",
]

SERVED = ("model", "ema")
"""Roles of weights that are cast and served; an optimizer's state stays as it was trained."""

PIECES, PIECE = 8, 1 << 12
"""A sample is that many runs of that many elements, evenly spread."""


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
    """Type that ``--cast-to`` asks for; None where it asks for none.

    Raises
    ------
    UsageError
        If it is none of `NARROW`.
    """
    if not name:
        return None
    if name not in NARROW:
        message = f"expected a type to cast to of {', '.join(NARROW)}, found {name!r:.100}"
        raise UsageError(message)
    return NARROW[name]


def is_float(info: TensorInfo) -> bool:
    """Whether a cast of the model reaches this tensor: real numbers, plainly stored."""
    return info.encoding == "plain" and info.kind.kind == "float"


def of_types(ctx: Context, column: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """Value of ``column`` for every tensor's dtype, NaN where it has none; table order."""
    other = float("nan")
    values = (column.get(info.dtype, other) for info in ctx.table.infos.values())
    return np.fromiter(values, np.float64, len(ctx.table))


def half(values: npt.ArrayLike) -> Array:
    """Values as float16, for cases."""
    return np.array(values, np.float16)


def below(ctx: Context, info: TensorInfo, kind: Narrow, share: float) -> Counts | None:
    """Count the elements too small for ``kind``; None where they are not ``share`` of the nonzero.

    A tensor larger than a sample is counted only where the sample comes near that share.
    """
    if info.size > PIECES * PIECE and info.extent is not None and info.strides is None:
        seen = _count(_pieces(info), kind)
        if seen.low < share * seen.nonzero / 2:
            return None
    counts = _count(ctx.table.blocks(info), kind)
    return counts if counts.nonzero and counts.low >= share * counts.nonzero else None


def _pieces(info: TensorInfo) -> Iterator[Array]:
    extent, dtype = info.extent, info.kind.numpy
    if extent is None:
        return
    last = extent.length // dtype.itemsize - PIECE
    for i in range(PIECES):
        start = extent.offset + last * i // (PIECES - 1) * dtype.itemsize
        piece = np.frombuffer(extent.source.pread(start, PIECE * dtype.itemsize), dtype)
        yield piece.byteswap() if info.big_endian else piece


def _count(blocks: Iterator[Array], kind: Narrow) -> Counts:
    nonzero = low = vanishing = 0
    for block in blocks:
        with np.errstate(all="ignore"):  # a signalling NaN of ml_dtypes warns
            size = np.abs(block.astype(np.float64))
            nonzero += int(np.count_nonzero(size))
            small = size[size < kind.low]
        low += int(np.count_nonzero(small))
        vanishing += int(np.count_nonzero((small > 0) & (small <= kind.step / 2)))
    return Counts(nonzero, low, vanishing)
