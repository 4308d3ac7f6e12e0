"""Runs of a model on samples of the data, batch after batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError, UsageError
from ..live.calling import failure, user_code
from ..live.data import Data
from ..live.subject import Arrays, Observer, Subject
from ..tensors import Array

__all__ = ["Feed", "bad_rows", "by_sample"]


@dataclass(frozen=True, slots=True)
class Feed:
    """A model and the samples it is run on.

    Parameters
    ----------
    subject, data
        What is run, on what.
    size
        Samples of a batch, where the model takes any.
    folder
        Where the user's code is, for messages; empty if nowhere.
    """

    subject: Subject
    data: Data
    size: int
    folder: str = ""

    def batches(self, indices: Sequence[int] | Array) -> Iterator[Array]:
        """Yield batches of these samples."""
        yield from self.data.batches(self.size, indices)

    def run(
        self,
        indices: Sequence[int] | Array,
        observer: Observer | None = None,
        *,
        only: Collection[str] | None = None,
        rounding: str = "",
    ) -> Arrays:
        """Run the model on one batch; outputs without the rows that only filled it.

        Raises
        ------
        ModelError
            If it fails, or gives no floating-point numbers.
        UsageError
            If it does not take such inputs.
        """
        batch = self.data.filled(indices)
        with user_code("the model failed", self.folder):
            try:
                outputs = self.subject.run(batch, observer, only=only, rounding=rounding)
            except UsageError as error:
                raise failure(error, self.folder) from error
        # boxes that are none may be why: NaN passes no threshold
        if not any(array.size or not len(array) for array in outputs):
            raise ModelError("the model's outputs hold no floating-point numbers: nothing to judge")
        given, wanted = len(batch[0]), len(indices)
        return tuple(
            array[:wanted] if array.ndim and len(array) == given else array for array in outputs
        )


def by_sample(runs: Sequence[Arrays], sizes: Sequence[int]) -> dict[int, list[Array]]:
    """Return the outputs that hold a row for each sample, batch by batch, by their place.

    A loss is no such output, nor are the boxes that a detector finds: their number is theirs.

    Parameters
    ----------
    runs
        What each batch gave.
    sizes
        Samples of each batch.

    Examples
    --------
    >>> loss, scores, boxes = np.zeros(()), np.zeros((4, 3)), np.zeros((9, 5))
    >>> list(by_sample([(loss, scores, boxes)], [4]))
    [1]
    """
    found: dict[int, list[Array]] = {}
    for place in range(min(map(len, runs), default=0)):
        parts = [outputs[place] for outputs in runs]
        rows = all(part.ndim and len(part) == size for part, size in zip(parts, sizes, strict=True))
        if rows and len({part.shape[1:] for part in parts}) == 1:
            found[place] = parts
    return found


def bad_rows(outputs: Arrays, samples: int) -> Array:
    """Which samples have an output that is not finite; all, where an output is of no sample."""
    bad = np.zeros(samples, bool)
    for array in outputs:
        good = np.isfinite(array)
        if array.ndim and len(array) == samples:
            bad |= ~good.reshape(samples, -1).all(1)
        elif not good.all():
            bad[:] = True
    return bad
