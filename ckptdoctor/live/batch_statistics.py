"""BatchNorms made to normalise by their batch, as in training, while a model in inference mode runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from .subject import Arrays, Call, NormLayer, Statistics, Subject

if TYPE_CHECKING:
    from ..tensors import Array

__all__ = ["FEWEST", "BatchStatistics", "Moments", "moments", "telling"]

_BLOCK = 1 << 20
"""Elements taken to float64 at a time: 8 MiB."""
FEWEST = 32
"""Values of a channel that its variance is known from within a factor of 2."""
_ALIVE = 1e-3
"""Of the median variance of the channels: one below it tells nothing in these data."""


class Moments(NamedTuple):
    """How many values each channel had, their mean and biased variance, in float64."""

    number: int
    mean: Array
    var: Array

    def merged(self, other: Moments) -> Moments:
        """Moments of both together, by Chan's formula: no sum of squares that cancels.

        Examples
        --------
        >>> a, b = moments(np.array([[1.0], [3.0]]), 1), moments(np.array([[8.0]]), 1)
        >>> a.merged(b)
        Moments(number=3, mean=array([4.]), var=array([8.66666667]))
        """
        if not self.number or not other.number:
            return self if self.number else other
        number = self.number + other.number
        share = other.number / number
        with np.errstate(all="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * share
            within = self.var * (1 - share) + other.var * share
            return Moments(number, mean, within + delta * delta * share * (1 - share))


def moments(values: Array, axis: int) -> Moments:
    """Mean and variance over all dimensions but one, in float64, whatever the values' magnitude.

    Parameters
    ----------
    values
        At least two dimensions, samples first.
    axis
        Dimension of the channels; not the first.

    Examples
    --------
    >>> moments(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32), -1)
    Moments(number=2, mean=array([2., 5.]), var=array([1., 0.]))
    """
    axis = range(values.ndim)[axis]
    others = tuple(d for d in range(values.ndim) if d != axis)
    found = Moments(0, np.zeros(values.shape[axis]), np.zeros(values.shape[axis]))
    if not values.size:
        return found
    rows = max(1, _BLOCK * len(values) // values.size)
    for at in range(0, len(values), rows):
        block = values[at : at + rows].astype(np.float64)
        with np.errstate(all="ignore"):
            mean = block.mean(others, keepdims=True)
            block -= mean
            np.square(block, out=block)
            part = Moments(block.size // block.shape[axis], mean.ravel(), block.mean(others))
        found = found.merged(part)
    return found


def telling(var: Array) -> Array:
    """Mask of the channels that vary enough in some data to be compared with what is held of them.

    Parameters
    ----------
    var
        Variances of the data, shape ``(channels,)``.

    Examples
    --------
    >>> telling(np.array([1.0, 2.0, 1e-9])).tolist()
    [True, True, False]
    """
    found: Array = var > _ALIVE * np.median(var)
    return found


def _axis_of(norm: NormLayer, values: Array) -> int | None:
    """Dimension of the channels: where the layer's is another one, the last; None for neither.

    Classes of the user's own may have them last, where torch's have them second.
    """
    for axis in (norm.axis, -1):
        if -values.ndim <= axis < values.ndim and values.shape[axis] == norm.channels:
            return axis
    return None


class BatchStatistics:
    """Observer under which BatchNorms use the statistics of their own input.

    They are set before each call, which is training mode without its updates.  The model's own are
    put back at the end of the ``with`` block; the observer is of use within it only.

    Parameters
    ----------
    subject
        The model that will be run.
    names
        BatchNorms of `Subject.norms`; the others keep what they hold.
    channels
        By name, which means and which variances (boolean) come from the batch; the other channels
        keep their own.  All of them where a name is missing.

    Attributes
    ----------
    nonfinite
        By name, how many values of its inputs were NaN or infinite.  Batches with such a value are
        normalised as they are, and not pooled.
    first
        The one that was called first; empty before that.
    """

    def __init__(
        self,
        subject: Subject,
        names: Iterable[str],
        channels: Mapping[str, Statistics] | None = None,
    ) -> None:
        self.subject = subject
        self._channels = channels or {}
        self.names = tuple(dict.fromkeys(names))
        self.nonfinite: dict[str, int] = {}
        self.first = ""
        self._own: dict[str, Statistics] = {}
        self._pools: dict[str, Moments] = {}

    def __enter__(self) -> Self:
        self._own = {name: self.subject.statistics(name) for name in self.names}
        return self

    def __exit__(self, *_: object) -> None:
        for name, statistics in self._own.items():
            self.subject.set_statistics(name, statistics)
        self._own = {}

    def before(self, call: Call, inputs: Arrays) -> None:
        """Set the statistics of a BatchNorm to those of what it is about to be given."""
        if call.layer not in self._own or not inputs:
            return
        self.first = self.first or call.layer
        values = inputs[0]
        axis = _axis_of(self.subject.norms[call.layer], values)
        if axis is None:
            return
        found = moments(values, axis)
        if not found.number:
            return
        bad = 0
        if not (np.isfinite(found.mean).all() and np.isfinite(found.var).all()):
            bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            self.nonfinite[call.layer] = self.nonfinite.get(call.layer, 0) + bad
        else:
            pool = self._pools.get(call.layer)
            self._pools[call.layer] = found if pool is None else pool.merged(found)
        used = Statistics(found.mean, found.var)
        chosen = self._channels.get(call.layer)
        if chosen is not None:
            own = self._own[call.layer]
            used = Statistics(
                np.where(chosen.mean, used.mean, own.mean), np.where(chosen.var, used.var, own.var)
            )
        self.subject.set_statistics(call.layer, used)

    def after(self, call: Call, outputs: Arrays) -> None:
        """Nothing to do when a call ends."""

    def pooled(self, name: str) -> tuple[int, Statistics]:
        """Moments of everything a BatchNorm was given so far, of all calls and batches.

        Returns
        -------
        tuple
            How many values of each channel there were, and their mean and biased variance; 0 and
            NaN where it was never called with finite inputs.
        """
        pool = self._pools.get(name)
        if pool is None:
            unknown = np.full(self.subject.norms[name].channels, np.nan)
            return 0, Statistics(unknown, unknown.copy())
        return pool.number, Statistics(pool.mean.copy(), pool.var.copy())
