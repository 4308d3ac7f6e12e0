"""Which samples of the data break a model: row by row where they do not mix, else by halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..live.batch_statistics import BatchStatistics
from ..live.data import Data
from ..live.subject import Statistics
from ..tensors import Array
from .feed import Feed, bad_rows

__all__ = ["Culprit", "Search", "breaking", "search_inference", "search_training"]

Test = Callable[[Array], bool]

_COMPANY = 8
"""Samples in whose company others are tried in training mode: they are run again every time."""
_LEAST = 3
"""Samples of a group that is still halved in search of company."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """A sample that breaks the model: its index, and the range of its values."""

    index: int
    low: float
    high: float
    usual: float
    """Median of the largest magnitudes of all samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What one search came to.

    Parameters
    ----------
    mode
        ``inference`` or ``training``, the type behind it where values were rounded.
    samples
        How many were searched.
    culprits
        Those that break it alone.
    groups
        Indices that break it together only.
    everyone
        Whether every sample breaks it: then the model is at fault, not the data.
    """

    mode: str
    samples: int
    culprits: tuple[Culprit, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    everyone: bool = False

    @property
    def clean(self) -> bool:
        """Whether no sample breaks it."""
        return not (self.culprits or self.groups or self.everyone)


def breaking(bad: Test, indices: Array) -> tuple[list[int], list[tuple[int, ...]]]:
    """Find what of a group is bad, by halves.

    Parameters
    ----------
    bad
        Whether a group is; asked for at most ``2 k log2(n / k)`` groups, k of n being bad alone.
    indices
        The group, known to be bad.

    Returns
    -------
    tuple
        Single members that are bad; and of every part that is, though no half of it is, the fewest
        members that are together.

    Examples
    --------
    >>> breaking(lambda group: 5 in group or {1, 6} <= set(group), np.arange(8))
    ([5], [])
    >>> breaking(lambda group: {1, 6} <= set(group), np.arange(8))
    ([], [(1, 6)])
    """
    if len(indices) == 1:
        return [int(indices[0])], []
    alone: list[int] = []
    groups: list[tuple[int, ...]] = []
    for half in np.array_split(indices, 2):
        if bad(half):
            singles, together = breaking(bad, half)
            alone += singles
            groups += together
    if not alone and not groups:
        groups.append(tuple(map(int, _needed(bad, indices, indices[:0]))))
    return alone, groups


def _needed(bad: Test, part: Array, company: Array) -> Array:
    """Fewest members of a part that are bad in the company of others, which alone are not."""
    if len(part) == 1:
        return part
    left, right = np.array_split(part, 2)
    for half in (left, right):
        if bad(np.concatenate([company, half])):
            return _needed(bad, half, company)
    rest = _needed(bad, right, np.concatenate([company, left]))
    return np.concatenate([_needed(bad, left, np.concatenate([company, rest])), rest])


def search_inference(feed: Feed, indices: Sequence[int] | Array, rounding: str = "") -> Search:
    """Find the samples whose outputs are not finite.

    Where a sample is bad in its batch and fine alone (three are asked), the model mixes samples:
    the batch is then searched by halves.
    """

    def alone(group: Array) -> bool:
        return bool(bad_rows(feed.run(group, rounding=rounding), len(group)).any())

    culprits: list[int] = []
    groups: list[tuple[int, ...]] = []
    for batch in feed.batches(indices):
        bad = batch[bad_rows(feed.run(batch, rounding=rounding), len(batch))]
        if not len(bad):
            continue
        if all(alone(bad[[at]]) for at in {0, len(bad) // 2, len(bad) - 1}):
            culprits += map(int, bad)
        else:
            singles, together = breaking(alone, batch)
            culprits += singles
            groups += together
    mode = f"inference{f' in {rounding}' if rounding else ''}"
    return _search(mode, feed.data, indices, culprits, groups)


def search_training(feed: Feed, indices: Sequence[int] | Array, rounding: str = "") -> Search:
    """Find the samples whose batch would leave statistics that are not finite, or outputs.

    A sample alone has no variance: each is tried in the company of some that are fine.
    """
    norms = feed.subject.norms

    def bad(group: Array) -> bool:
        with BatchStatistics(feed.subject, norms) as statistics:
            outputs = feed.run(group, statistics, only=frozenset(norms), rounding=rounding)
        if statistics.nonfinite or bad_rows(outputs, len(group)).any():
            return True
        return any(_leaves_range(statistics.pooled(name)[1]) for name in norms)

    batches = list(feed.batches(indices))
    company = next((batch[:_COMPANY] for batch in batches if not bad(batch)), None)
    mode = f"training{f' in {rounding}' if rounding else ''}"
    if company is None:
        company = next(filter(len, (_fine(bad, batch) for batch in batches)), batches[0][:0])
        if not len(company) and len(batches) > 1:
            return Search(mode=mode, samples=len(indices), everyone=True)

    def in_company(group: Array) -> bool:
        return bad(np.concatenate([group, np.setdiff1d(company, group)]))

    culprits: list[int] = []
    groups: list[tuple[int, ...]] = []
    for batch in batches:
        if bad(batch):
            singles, together = breaking(in_company, batch)
            culprits += singles
            groups += together
    return _search(mode, feed.data, indices, culprits, groups)


def _fine(bad: Test, batch: Array) -> Array:
    """Find some samples that are fine together, two at least; none where there are none."""
    while len(batch) > _LEAST:
        halves = np.array_split(batch, 2)
        fine = next((half for half in halves if not bad(half)), None)
        if fine is not None:
            return fine[:_COMPANY]
        batch = halves[0]
    return batch[:0]


def _leaves_range(found: Statistics) -> bool:
    """Whether statistics become infinite where they are kept, as float32."""
    limit = float(np.finfo(np.float32).max)
    return bool((np.abs(found.mean) > limit).any() or (found.var > limit).any())


def _search(
    mode: str,
    data: Data,
    indices: Sequence[int] | Array,
    culprits: list[int],
    groups: list[tuple[int, ...]],
) -> Search:
    everyone = len(culprits) == len(indices) and len(indices) > 1
    return Search(
        mode=mode,
        samples=len(indices),
        culprits=() if everyone else tuple(_culprit(data, index, indices) for index in culprits),
        groups=tuple(groups),
        everyone=everyone,
    )


def _culprit(data: Data, index: int, indices: Sequence[int] | Array) -> Culprit:
    ranges = [(float(a[index].min()), float(a[index].max())) for a in data.arrays]
    step = max(1, len(indices) // 64)
    sizes = [max(float(np.abs(a[i]).max()) for a in data.arrays) for i in indices[::step]]
    return Culprit(
        index=index,
        low=min(low for low, _ in ranges),
        high=max(high for _, high in ranges),
        usual=float(np.median(sizes)),
    )
