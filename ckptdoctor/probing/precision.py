"""The same samples in float32, float16 and bfloat16: where values leave the range, what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..live.batch_statistics import BatchStatistics
from ..live.subject import Arrays, Call
from ..tensors import Array
from .feed import Feed, bad_rows
from .norms import Agreement, compared
from .values import span_of

__all__ = ["LIMITS", "TYPES", "Precision", "in_precision", "poisoned_in_training"]

TYPES = ("float16", "bfloat16")
"""Types that values are rounded to, as mixed precision does."""

LIMITS = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}
"""Largest finite value of each type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """The model in one type.

    Parameters
    ----------
    dtype
        ``float32`` is how the model is.
    first
        The first layer whose outputs are not finite though its inputs are; empty for none.
    index
        Which call of it.
    bad
        Samples whose outputs are not finite.
    samples
        How many were run.
    agreement
        With float32; None for float32 itself, and where no output has a row for each sample.
    training
        The first BatchNorm whose batch statistics are not finite in training mode; empty for none.
    """

    dtype: str
    first: str
    index: int
    bad: int
    samples: int
    agreement: Agreement | None = None
    training: str = ""


class _Reach:
    """Observer that finds the first call that turns finite inputs into something else."""

    def __init__(self) -> None:
        self.first: tuple[str, int] | None = None
        self.weak: tuple[str, int] | None = None
        self._open: list[tuple[Call, int, list[int]]] = []

    def before(self, call: Call, inputs: Arrays) -> None:
        self._open.append((call, _badness(inputs), [0]))

    def after(self, call: Call, outputs: Arrays) -> None:
        while self._open and self._open[-1][0] != call:
            self._open.pop()
        _, given, inside = self._open.pop()
        made = _badness(outputs)
        if made > max(given, inside[0]):
            if made == 2 and self.first is None:
                self.first = call.layer, call.index
            elif self.weak is None:
                self.weak = call.layer, call.index
        if self._open:
            self._open[-1][2][0] = max(self._open[-1][2][0], inside[0], made if made > given else 0)


def _badness(arrays: Arrays) -> int:
    worst = 0
    for array in arrays:
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            worst = max(worst, span_of([array]).badness)
    return worst


def in_precision(
    feed: Feed, indices: Sequence[int] | Array, dtype: str, reference: Sequence[Arrays]
) -> Precision:
    """Run the samples with every value rounded.

    Parameters
    ----------
    feed, indices
        What is run, on which samples.
    dtype
        One of `TYPES`.
    reference
        Outputs in float32, batch by batch.
    """
    reach, bad, total = _Reach(), 0, 0
    outputs: list[Arrays] = []
    for batch in feed.batches(indices):
        found = feed.run(batch, reach, rounding=dtype)
        bad += int(bad_rows(found, len(batch)).sum())
        total += len(batch)
        outputs.append(found)
    first = reach.first or reach.weak or ("", 0)
    return Precision(
        dtype=dtype,
        first=first[0] if bad or reach.first else "",
        index=first[1],
        bad=bad,
        samples=total,
        agreement=compared(outputs, reference, [len(batch) for batch in feed.batches(indices)]),
    )


def poisoned_in_training(feed: Feed, indices: Sequence[int] | Array, dtype: str) -> str:
    """Name the first BatchNorm whose statistics a batch of these samples would spoil, or nothing.

    In training mode the running statistics take what the batch gives, NaN and Inf included, also
    where the step is skipped for its gradients.
    """
    norms = feed.subject.norms
    if not norms:
        return ""
    limit = LIMITS["float32"]
    with BatchStatistics(feed.subject, norms) as statistics:
        for batch in feed.batches(indices):
            feed.run(batch, statistics, only=frozenset(norms), rounding=dtype)
            if statistics.nonfinite:
                return next(iter(statistics.nonfinite))
    for name in statistics.names:
        count, found = statistics.pooled(name)
        if count and (np.abs(found.mean).max() > limit or found.var.max() > limit):
            return name
    return ""
