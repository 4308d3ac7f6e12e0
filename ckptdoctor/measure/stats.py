"""Statistics of tensors: one row's numbers, the columns of all rows, and partial results to merge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EMPTY", "Floats", "Ints", "Partial", "StatsTable", "TensorStats"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Counts and moments of one tensor.

    Parameters
    ----------
    count
        All elements.
    nan, posinf, neginf, zeros
        Elements that are NaN, +Inf, -Inf, and zero of either sign.  A complex element counts as
        NaN when either part is, else as Inf by the sign of an infinite part (+Inf before -Inf);
        it is zero when both parts are.
    minimum, maximum, mean, std
        Over the finite elements (of complex types over their finite parts), ``std`` as population
        standard deviation; of quantised tensors over the stored integers.  None without a finite
        element, and where the values are not measured: opaque, absent or unreadable data.

    Examples
    --------
    >>> TensorStats(2, 1, 0, 0, 0, 3.0, 3.0, 3.0, 0.0).nonfinite
    1
    """

    count: int
    nan: int
    posinf: int
    neginf: int
    zeros: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None

    @property
    def nonfinite(self) -> int:
        """Elements that are NaN or infinite."""
        return self.nan + self.posinf + self.neginf


@dataclass(frozen=True, slots=True)
class Partial:
    """What one piece of a tensor came to; pieces merge to the whole.

    ``count`` counts elements; ``finite`` counts the numbers that ``low``, ``high``, ``mean`` and
    ``std`` are over, which are twice as many as elements for complex types.

    Examples
    --------
    >>> one, three = (Partial(1, 0, 0, 0, 0, 1, x, x, x, 0.0) for x in (1.0, 3.0))
    >>> both = one.merge(three)
    >>> both.low, both.high, both.mean, both.std
    (1.0, 3.0, 2.0, 1.0)
    """

    count: int
    nan: int
    posinf: int
    neginf: int
    zeros: int
    finite: int
    low: float
    high: float
    mean: float
    std: float

    def merge(self, other: Partial) -> Partial:
        """Combine two pieces as in Chan, Golub & LeVeque (1983), by deviations instead of squares.

        A variance of 1e400 has a representable root: `math.hypot` never leaves the range.
        """
        n = self.finite + other.finite
        mean, std = (self.mean, self.std) if self.finite else (other.mean, other.std)
        if self.finite and other.finite:
            a, b = self.finite / n, other.finite / n
            # Halved: two means can lie further apart than the largest number.
            apart = other.mean / 2 - self.mean / 2
            mean = self.mean + 2 * (apart * b)
            within = math.hypot(math.sqrt(a) * self.std / 2, math.sqrt(b) * other.std / 2)
            std = 2 * math.hypot(within, math.sqrt(a * b) * apart)
        return Partial(
            self.count + other.count,
            self.nan + other.nan,
            self.posinf + other.posinf,
            self.neginf + other.neginf,
            self.zeros + other.zeros,
            n,
            min(self.low, other.low),
            max(self.high, other.high),
            mean,
            std,
        )


EMPTY = Partial(0, 0, 0, 0, 0, 0, math.inf, -math.inf, 0.0, 0.0)
"""The piece without elements, neutral in merging."""


@dataclass(frozen=True, slots=True)
class Columns:
    """One value per row of the table, shape ``(rows,)``; NaN where a row has no finite element."""

    nan: Ints
    posinf: Ints
    neginf: Ints
    zeros: Ints
    minimum: Floats
    maximum: Floats
    mean: Floats
    std: Floats

    @classmethod
    def unmeasured(cls, rows: int) -> Columns:
        """Columns that say nothing about any row."""
        nan, posinf, neginf, zeros = (np.zeros(rows, np.int64) for _ in range(4))
        return cls(nan, posinf, neginf, zeros, *(np.full(rows, np.nan) for _ in range(4)))

    def put(self, row: int, whole: Partial) -> None:
        """Set one row from the merged pieces of its tensor."""
        self.nan[row], self.posinf[row] = whole.nan, whole.posinf
        self.neginf[row], self.zeros[row] = whole.neginf, whole.zeros
        if whole.finite:
            # -0.0 and 0.0 are the same number, and only one of them should be printed.
            self.minimum[row], self.maximum[row] = whole.low + 0.0, whole.high + 0.0
            self.mean[row], self.std[row] = whole.mean, whole.std

    def put_many(self, rows: Ints, values: Columns) -> None:
        """Set rows from columns of the same length as ``rows``."""
        for name in _COLUMNS:
            getattr(self, name)[rows] = getattr(values, name)

    def forget(self, rows: Iterable[int]) -> None:
        """Set rows back to unmeasured."""
        for row in rows:
            for name in _COLUMNS[:4]:
                getattr(self, name)[row] = 0
            for name in _COLUMNS[4:]:
                getattr(self, name)[row] = np.nan

    def share(self, leaders: Ints, times: Ints) -> None:
        """Give every row the numbers of its leader, counts multiplied by ``times``."""
        for name in _COLUMNS[:4]:
            getattr(self, name)[:] = getattr(self, name)[leaders] * times
        for name in _COLUMNS[4:]:
            getattr(self, name)[:] = getattr(self, name)[leaders]


_COLUMNS = tuple(field.name for field in fields(Columns))


class StatsTable(Mapping[str, TensorStats]):
    """Statistics by tensor name, kept as columns.

    A hundred thousand rows are a few megabytes; `TensorStats` are made when asked for.

    Parameters
    ----------
    names
        Of all tensors, in table order.
    counts
        Elements of each.
    columns
        The numbers.

    Examples
    --------
    >>> columns = Columns.unmeasured(1)
    >>> table = StatsTable(["w"], [3], columns)
    >>> table["w"].count, table["w"].mean, table.nan
    (3, None, array([0]))
    """

    def __init__(self, names: Iterable[str], counts: Iterable[int], columns: Columns) -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        self._counts = list(counts)
        self._columns = columns
        self._tuples: list[tuple[Any, ...]] = []

    def with_rows(self, other: StatsTable) -> StatsTable:
        """Return the same table with other numbers for the tensors that ``other`` has.

        Examples
        --------
        >>> old = StatsTable(["a", "b"], [3, 2], Columns.unmeasured(2))
        >>> new = Columns.unmeasured(1)
        >>> new.nan[0] = 2
        >>> old.with_rows(StatsTable(["b"], [2], new)).nan.tolist()
        [0, 2]
        """
        columns = Columns(*(getattr(self._columns, name).copy() for name in _COLUMNS))
        columns.put_many(np.array([self._rows[name] for name in other], np.int64), other._columns)
        return StatsTable(self._rows, self._counts, columns)

    @property
    def nan(self) -> Ints:
        """NaN elements of every tensor, shape ``(rows,)``, table order."""
        return self._columns.nan

    @property
    def posinf(self) -> Ints:
        """+Inf elements of every tensor."""
        return self._columns.posinf

    @property
    def neginf(self) -> Ints:
        """-Inf elements of every tensor."""
        return self._columns.neginf

    @property
    def zeros(self) -> Ints:
        """Zero elements of every tensor."""
        return self._columns.zeros

    @property
    def minimum(self) -> Floats:
        """Least finite value of every tensor, NaN where there is none."""
        return self._columns.minimum

    @property
    def maximum(self) -> Floats:
        """Greatest finite value of every tensor, NaN where there is none."""
        return self._columns.maximum

    @property
    def mean(self) -> Floats:
        """Mean of the finite values of every tensor, NaN where there is none."""
        return self._columns.mean

    @property
    def std(self) -> Floats:
        """Population standard deviation of the finite values, NaN where there is none."""
        return self._columns.std

    def __getitem__(self, name: str) -> TensorStats:
        row = self._rows[name]
        if not self._tuples:
            # All at once: elements of arrays cost 0.1 us each when taken one by one.
            lists = [self._listed(getattr(self._columns, column)) for column in _COLUMNS]
            self._tuples = list(zip(self._counts, *lists, strict=True))
        return TensorStats(*self._tuples[row])

    @staticmethod
    def _listed(column: Ints | Floats) -> list[Any]:
        listed: list[Any] = column.tolist()
        for row in np.flatnonzero(np.isnan(column)).tolist():
            listed[row] = None
        return listed

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
