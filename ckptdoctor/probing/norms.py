"""BatchNorms: what they hold against what the data give them, when the layers above behave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..live.batch_statistics import FEWEST, BatchStatistics, telling
from ..live.subject import Arrays, NormLayer, Statistics, Subject
from ..tensors import Array
from .feed import by_sample

__all__ = [
    "EXPLODED",
    "SHIFTED",
    "Agreement",
    "Channel",
    "Drift",
    "agreement",
    "compared",
    "drift_of",
    "drifts",
]

EXPLODED = 100.0
"""Ratio of variances, either way, that no other data explain.

Five trained networks on 64 samples of their own: 1.8 at most in a healthy layer, 1e7 and more in one
that exploded.
"""
SHIFTED = 10.0
"""Distance of the means in standard deviations of the data; healthy 0.32, exploded 2000."""
STALE = 5.0
"""Ratio that counts where inference and training mode disagree; 20 where nothing was ever learnt."""
OFF = 1.0
"""Distance that counts there; 1.9 where nothing was ever learnt."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel: what the BatchNorm holds, and what the data give."""

    index: int
    mean: float
    var: float
    data_mean: float
    data_var: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the running statistics of a BatchNorm are from those of the data.

    Parameters
    ----------
    layer
        Its name.
    channels, alive
        How many it has, and in how many the data have values enough, and vary enough, to compare.
    values
        Values of each channel that the data's statistics are from; 0 where they never were finite.
    nonfinite, negative
        Channels whose running statistics are NaN or infinite; whose variance is negative by more
        than epsilon.
    ratio
        Of the channel where it is farthest from 1, running variance over that of the data, both
        with epsilon; None without a finite one.
    typical
        Median of that ratio over the channels.
    distance
        Largest distance of the means, in standard deviations of the data; None as above.
    var, data_var
        Least and greatest variance it holds, and that the data give it, finite ones.
    new
        Whether it holds what a new layer does in every channel: mean 0, variance 1.
    exploded
        Channels beyond `EXPLODED`, `SHIFTED`, or not finite.
    worst
        A few of these channels, the worst first.
    """

    layer: str
    channels: int
    alive: int
    values: int
    nonfinite: int
    negative: int
    ratio: float | None
    typical: float | None
    distance: float | None
    var: tuple[float, float] | None
    data_var: tuple[float, float] | None
    exploded: int
    worst: tuple[Channel, ...]
    new: bool = False

    @property
    def broken(self) -> bool:
        """Whether some channel gives NaN, or nothing, whatever the data."""
        return bool(self.nonfinite or self.negative)

    @property
    def far(self) -> bool:
        """Whether it does not fit the data."""
        return self.broken or self.exploded > 0

    @property
    def stale(self) -> bool:
        """Whether it fits so badly that it may explain other answers than in training mode."""
        if self.ratio is None or self.distance is None:
            return False
        return not 1 / STALE <= self.ratio <= STALE or self.distance > OFF

    @property
    def score(self) -> float:
        """How bad it is, to sort by: the factor of the variances, infinite where it is broken."""
        if self.broken:
            return float("inf")
        factor = 1.0 if self.ratio is None else max(self.ratio, 1 / max(self.ratio, 1e-300))
        return max(factor, (self.distance or 0.0) * EXPLODED / SHIFTED)


def drifts(subject: Subject, batch_statistics: BatchStatistics) -> tuple[Drift, ...]:
    """Compare all BatchNorms that were observed; the model's own statistics must be in place.

    In training mode each layer is given what healthy layers above would give it, so that the drift
    of one does not show in all below.
    """
    found = []
    for name in batch_statistics.names:
        values, data = batch_statistics.pooled(name)
        found.append(drift_of(subject.norms[name], subject.statistics(name), data, values))
    return tuple(found)


def drift_of(norm: NormLayer, held: Statistics, data: Statistics, values: int) -> Drift:
    """Compare one BatchNorm with the statistics of its data, over ``values`` of each channel."""
    finite = np.isfinite(held.mean) & np.isfinite(held.var)
    with np.errstate(all="ignore"):
        negative = finite & (held.var + norm.epsilon <= 0)
    known = values >= FEWEST
    alive = finite & ~negative
    alive &= telling(data.var) if known else False
    with np.errstate(all="ignore"):
        ratio = (held.var + norm.epsilon) / (data.var + norm.epsilon)
        distance = np.abs(held.mean - data.mean) / np.sqrt(data.var + norm.epsilon)
        factor = np.where(alive, np.maximum(ratio, 1 / ratio), 1.0)
        apart = np.where(alive, distance, 0.0)
    far = (factor > EXPLODED) | (apart > SHIFTED)
    bad = ~finite | negative
    order = np.argsort(-np.where(bad, np.inf, np.maximum(factor, apart * EXPLODED / SHIFTED)))
    shown = [int(c) for c in order if bad[c] or far[c]][:_SHOWN]
    at = int(np.argmax(factor)) if alive.any() else -1
    return Drift(
        layer=norm.name,
        channels=norm.channels,
        alive=int(np.count_nonzero(alive)),
        values=values,
        nonfinite=int(np.count_nonzero(~finite)),
        negative=int(np.count_nonzero(negative)),
        ratio=float(ratio[at]) if at >= 0 else None,
        typical=float(np.median(ratio[alive])) if at >= 0 else None,
        distance=float(apart.max()) if at >= 0 else None,
        var=_range(held.var),
        data_var=_range(data.var) if values else None,
        exploded=int(np.count_nonzero(far & ~bad)),
        worst=tuple(_channel(c, held, data) for c in shown),
        new=not held.mean.any() and bool((held.var == 1).all()),
    )


def _range(values: Array) -> tuple[float, float] | None:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _channel(index: int, held: Statistics, data: Statistics) -> Channel:
    parts = (held.mean, held.var, data.mean, data.var)
    return Channel(index, *(float(part[index]) for part in parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How alike two ways of running a model are, by their outputs.

    Parameters
    ----------
    samples
        How many were compared.
    same
        Of those, how many have their largest output in the same place; None where the outputs are
        no scores, one row of several for each sample.
    difference
        Norm of the differences over that of the second; infinite where one is not finite.
    finite, reference
        Samples whose outputs are finite in the first, and in the second.
    """

    samples: int
    same: int | None
    difference: float
    finite: int
    reference: int

    @property
    def share(self) -> float | None:
        """Share of samples with the same largest output."""
        return None if self.same is None or not self.samples else self.same / self.samples


def compared(
    ours: Sequence[Arrays], theirs: Sequence[Arrays], sizes: Sequence[int]
) -> Agreement | None:
    """Compare two ways of running the same batches, by the first output with a row for each sample.

    None where no output has: a detector may find more boxes in one way than in the other.
    """
    known, other = by_sample(ours, sizes), by_sample(theirs, sizes)
    for place in known:
        if place in other and known[place][0].shape[1:] == other[place][0].shape[1:]:
            return agreement(list(zip(known[place], other[place], strict=True)))
    return None


def agreement(pairs: Sequence[tuple[Array, Array]]) -> Agreement:
    """Compare outputs, batch by batch, samples first.

    Examples
    --------
    >>> a, b = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.0], [1.0, 3.0]])
    >>> found = agreement([(a, b)])
    >>> found.samples, found.same
    (2, 1)
    """
    samples = finite = reference = same = 0
    gap = norm = 0.0
    scores = True
    for ours, theirs in pairs:
        samples += len(ours)
        good, other = _finite_rows(ours), _finite_rows(theirs)
        finite += int(good.sum())
        reference += int(other.sum())
        scores &= ours.ndim == 2 and ours.shape[1] > 1
        if scores:
            alike = ours.argmax(1) == theirs.argmax(1)
            same += int(np.count_nonzero(alike & good & other))
        with np.errstate(all="ignore"):
            gap += float(np.square(ours.astype(np.float64) - theirs).sum())
            norm += float(np.square(theirs.astype(np.float64)).sum())
    difference = (gap / norm) ** 0.5 if norm > 0 else float("inf") if gap else 0.0
    if not np.isfinite(difference):
        difference = float("inf")
    return Agreement(
        samples=samples,
        same=same if scores and samples else None,
        difference=difference,
        finite=finite,
        reference=reference,
    )


def _finite_rows(values: Array) -> Array:
    return np.asarray(np.isfinite(values).all(tuple(range(1, values.ndim))))
