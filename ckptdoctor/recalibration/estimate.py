"""Running statistics of chosen channels, recomputed over batches with everything else frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..live.batch_statistics import BatchStatistics
from ..live.subject import Statistics, Subject

if TYPE_CHECKING:
    from ..tensors import Array

__all__ = ["Batches", "Channels", "Told", "estimate", "every_channel", "masked", "merged"]

Batches = Sequence[Sequence["Array"]]
"""One sequence per batch, with one array per input of the model."""
Channels = Mapping[str, Statistics]
"""BatchNorms by name, with boolean masks: which means and which variances."""
Told = Callable[[int], None]
"""Called after each batch with its samples."""


def every_channel(subject: Subject) -> Channels:
    """Choose all channels of all BatchNorms."""
    return {
        name: Statistics(np.ones(norm.channels, bool), np.ones(norm.channels, bool))
        for name, norm in subject.norms.items()
    }


def masked(marks: Iterable[tuple[str, str, int, Array]]) -> dict[str, Statistics]:
    """Choose channels by BatchNorm, ``mean`` or ``var``, their number, and the indices of some.

    Examples
    --------
    >>> masked([("bn", "var", 3, np.array([1]))])["bn"].var
    array([False,  True, False])
    """
    chosen: dict[str, Statistics] = {}
    for norm, part, channels, indices in marks:
        if norm not in chosen:
            chosen[norm] = Statistics(np.zeros(channels, bool), np.zeros(channels, bool))
        getattr(chosen[norm], part)[indices] = True
    return chosen


def estimate(
    subject: Subject, channels: Channels, batches: Batches, told: Told | None = None
) -> dict[str, Statistics]:
    """Recompute statistics as the framework would store them, over all batches together.

    While a batch runs, chosen channels normalise by the batch itself, which is what training does,
    so that broken statistics reach nothing downstream.  Moments are pooled over the batches: the
    mean, and the variance around it, of all their samples as one (the population estimator of
    Ioffe and Szegedy 2015, algorithm 2).

    Parameters
    ----------
    subject
        Not changed.
    channels
        Of which BatchNorms and channels.
    batches
        Samples.
    told
        Of progress.

    Returns
    -------
    dict
        Statistics of whole layers: in channels that were not chosen, what the model holds.  A
        BatchNorm that is not called, such as one of a head for training alone, is not among them.

    Raises
    ------
    UsageError
        If none of them is called on these data, or the input of one is not finite even so.
    """
    with BatchStatistics(subject, channels, channels) as observer:
        for batch in batches:
            subject.run(batch, observer, only=observer.names)
            if told is not None:
                told(len(batch[0]))
        found = {name: observer.pooled(name) for name in channels}
    made: dict[str, Statistics] = {}
    for name, (count, pooled) in found.items():
        if observer.nonfinite.get(name):
            raise UsageError(
                f"the input of {name!r:.100} is not finite in training mode either: no statistics "
                "of BatchNorm are to blame",
                hint="ckptdoctor probe shows the first layer that goes wrong",
            )
        if not count:
            continue
        if count < 2:
            reason = "sees one value per channel: there is nothing to recompute it from"
            raise UsageError(f"{name!r:.100} {reason}")
        share = count / (count - 1) if subject.norms[name].unbiased else 1.0
        new = Statistics(pooled.mean, pooled.var * share)
        made[name] = merged(channels[name], new, subject.statistics(name))
    if channels and not made:
        name, *others = channels
        more = f", nor are {len(others):,} more" if others else ""
        reason = "there is nothing to recompute it from"
        raise UsageError(f"{name!r:.100} is not called on these data{more}: {reason}")
    return made


def merged(chosen: Statistics, new: Statistics, own: Statistics) -> Statistics:
    """Take the chosen channels of ``new``, the others of ``own``."""
    return Statistics(
        np.where(chosen.mean, new.mean, own.mean), np.where(chosen.var, new.var, own.var)
    )
