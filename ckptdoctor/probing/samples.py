"""The data before any model sees them: samples that are not finite, or far from the others."""

from __future__ import annotations

import numpy as np

from ..live.data import Data
from ..live.outliers import large, peaks
from ..tensors import Array
from .results import Sample, Samples
from .values import Span, span_of

__all__ = ["OUTLYING", "look_at"]

OUTLYING = 100.0
"""Times the usual magnitude, from which samples are warned of, be they few or many: images that were
not scaled are 128 to 255 times too large.  A few that are `ckptdoctor.live.outliers.LARGE` are noted."""
_BLOCK = 64
"""Samples that are looked at together."""


def look_at(data: Data, limit: int) -> tuple[Samples, Array]:
    """Look at the samples, and choose those to run.

    Parameters
    ----------
    data
        The samples as the user gave them.
    limit
        How many to take, from the first on; 0 for all.

    Returns
    -------
    tuple
        What they are, and the indices of those that are finite.
    """
    count = min(len(data), limit) if limit else len(data)
    spans: list[Span] = []
    sizes_of_reals = np.zeros(count)
    for at in range(0, count, _BLOCK):
        block = np.arange(at, min(at + _BLOCK, count))
        rows = data.take(block)
        spans += [span_of([array[i] for array in rows]) for i in range(len(block))]
        sizes_of_reals[block] = peaks(rows)
    good = np.array([not span.nonfinite for span in spans])
    sizes = np.array([span.largest for span in spans])
    usual = float(np.median(sizes[good])) if good.any() else 0.0
    far = good & (sizes > OUTLYING * usual) if usual else np.zeros(count, bool)
    whole = Span()
    for span in spans:
        whole = whole.merged(span)
    found = Samples(
        source=data.source,
        kind=data.kind,
        total=len(data),
        used=int(good.sum()),
        shapes=tuple(array.shape[1:] for array in data.arrays),
        dtypes=tuple(array.dtype.name for array in data.arrays),
        span=whole,
        nonfinite=_told(spans, ~good),
        outliers=_told(spans, far),
        large=_told(spans, large(sizes_of_reals) & good & ~far),
        usual=usual,
        alike=_alike(data, np.flatnonzero(good)),
        notes=data.notes,
    )
    return found, np.flatnonzero(good)


def _alike(data: Data, chosen: Array) -> bool:
    """Whether all samples are the same one; most sets are told by the first two."""
    if len(chosen) < 2:
        return False
    first = data.take(chosen[:1])
    return all(
        np.array_equal(a, b)
        for at in chosen[1:].tolist()
        for a, b in zip(data.take([at]), first, strict=True)
    )


def _told(spans: list[Span], chosen: Array) -> tuple[Sample, ...]:
    found = []
    for index in np.flatnonzero(chosen).tolist():
        span = spans[index]
        low, high = (span.low, span.high) if span.finite else (float("nan"), float("nan"))
        found.append(Sample(index, low, high, span.nonfinite))
    return tuple(found)
