"""Samples that statistics can be recomputed from: finite ones, of the usual size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..live.outliers import LARGE, large, peaks
from ..tensors import Array

__all__ = ["usable"]


def usable(inputs: Sequence[Array]) -> tuple[Sequence[Array], tuple[str, ...]]:
    """Leave out samples with NaN or Inf, and the odd one that is far larger than all others.

    A variance is a mean of squares: one such sample decides it.  Where all samples have NaN, or many
    are large, the model is made for that, and they stay.

    Parameters
    ----------
    inputs
        One array per input of the model, samples first.

    Returns
    -------
    tuple
        What is left, and a sentence for each kind of sample that is not.

    Examples
    --------
    >>> values = np.ones((40, 3), np.float32)
    >>> values[7] = 1e3
    >>> left, told = usable([values])
    >>> len(left[0]), told
    (39, ('Left out 1 of 40 samples, over 10 times as large as usual: number 7.',))
    """
    sizes = peaks(inputs)
    finite = np.isfinite(sizes)
    if not finite.any():
        return inputs, ()
    told = []
    if not finite.all():
        told.append(_left_out(~finite, " for NaN or Inf"))
    far = large(sizes)
    if far.any():
        told.append(_left_out(far, f", over {LARGE:g} times as large as usual"))
        finite &= ~far
    return (inputs if finite.all() else [values[finite] for values in inputs]), tuple(told)


_SHOWN = 5


def _left_out(chosen: Array, why: str) -> str:
    at = np.flatnonzero(chosen)
    more = f" and {at.size - _SHOWN:,} more" if at.size > _SHOWN else ""
    numbers = (
        f"number{'s' if at.size > 1 else ''} {', '.join(map(str, at[:_SHOWN].tolist()))}{more}"
    )
    return f"Left out {at.size:,} of {chosen.size:,} samples{why}: {numbers}."
