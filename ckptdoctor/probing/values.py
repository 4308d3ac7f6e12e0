"""What is remembered of the values that a layer takes and gives: ranges and counts, no values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..tensors import Array

__all__ = ["ALIKE", "Span", "span_of", "varies"]

ALIKE = 1e-5
"""Of the largest magnitude: samples whose outputs differ by no more are told apart by nothing.

float32 rounds at 6e-8 an operation; the outputs of a healthy network differ by more than 1e-2.
"""

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """Ranges and counts of values.

    Parameters
    ----------
    size, zeros, nan, posinf, neginf
        How many there are.
    low, high
        Least and greatest finite value; ``inf`` and ``-inf`` where there is none.
    total
        Sum of the magnitudes of the finite ones.
    """

    size: int = 0
    zeros: int = 0
    nan: int = 0
    posinf: int = 0
    neginf: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0

    @property
    def nonfinite(self) -> int:
        """NaN and infinities of either sign."""
        return self.nan + self.posinf + self.neginf

    @property
    def finite(self) -> int:
        """Values that are numbers."""
        return self.size - self.nonfinite

    @property
    def largest(self) -> float:
        """Greatest magnitude of a finite value; 0 where there is none."""
        return max(abs(self.low), abs(self.high)) if self.finite else 0.0

    @property
    def mean_abs(self) -> float | None:
        """Mean magnitude of the finite values; None where there is none."""
        return self.total / self.finite if self.finite else None

    @property
    def badness(self) -> int:
        """0 for finite values; 1 where some are -Inf, as masks are; 2 for NaN or +Inf."""
        return 2 if self.nan or self.posinf else 1 if self.neginf else 0

    def merged(self, other: Span) -> Span:
        """Span of both together."""
        return Span(
            self.size + other.size,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.posinf + other.posinf,
            self.neginf + other.neginf,
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
        )


def span_of(arrays: Iterable[Array]) -> Span:
    """Look at all values of some arrays.

    Examples
    --------
    >>> span = span_of([np.array([[-2.0, 0.0, np.nan]])])
    >>> span.low, span.high, span.nan, span.zeros, span.mean_abs
    (-2.0, 0.0, 1, 1, 1.0)
    """
    found = Span()
    for array in arrays:
        if array.size:
            for block in _blocks(array):
                found = found.merged(_block(block))
    return found


def _blocks(array: Array) -> Iterable[Array]:
    if array.ndim < 2:
        yield array
        return
    rows = max(1, _BLOCK * len(array) // array.size)
    for at in range(0, len(array), rows):
        yield array[at : at + rows]


def _block(block: Array) -> Span:
    low, high = float(block.min()), float(block.max())
    zeros = block.size - int(np.count_nonzero(block))
    if np.isfinite(low) and np.isfinite(high):
        return Span(block.size, zeros, low=low, high=high, total=_total(block))
    good = np.isfinite(block)
    held = block[good]
    low, high = (float(held.min()), float(held.max())) if held.size else (np.inf, -np.inf)
    return Span(
        block.size,
        zeros,
        nan=int(np.count_nonzero(np.isnan(block))),
        posinf=int(np.count_nonzero(block == np.inf)),
        neginf=int(np.count_nonzero(block == -np.inf)),
        low=low,
        high=high,
        total=_total(held),
    )


def _total(values: Array) -> float:
    return float(np.abs(values).sum(dtype=np.float64))


def varies(array: Array, samples: int) -> bool | None:
    """Whether what a layer makes of the samples of a batch differs between them.

    Parameters
    ----------
    array
        Values with the samples first.
    samples
        How many the batch has.

    Returns
    -------
    bool or None
        None where that cannot be said: a single sample, values that are not finite, or an array
        that has no row for each sample.
    """
    if samples < 2 or not array.ndim or len(array) != samples or not array.size:
        return None
    first = array[0]
    if not np.isfinite(first).all():
        return None
    for row in array[1:]:  # most differ at once
        with np.errstate(all="ignore"):
            spread = float(np.abs(row - first).max())
        if not np.isfinite(spread):
            return None
        if spread > ALIKE * max(float(np.abs(first).max()), float(np.abs(row).max())):
            return True
    return False
