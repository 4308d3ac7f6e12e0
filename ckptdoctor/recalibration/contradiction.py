"""Whether broken channels hold what the data contradict, however little of it reaches the outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..live.batch_statistics import telling
from ..live.subject import NormLayer, Statistics

__all__ = ["FAR", "TIMES", "contradicted"]

TIMES = 10.0
"""Times that a held variance is larger than that of the data.  Healthy layers of five networks: 1.8 at
most with 64 samples; what explodes is 1e7 times too large."""
FAR = 3.0
"""Distance of the means in standard deviations of the data; healthy 0.32, 0.8 with 16 samples."""


def contradicted(
    norms: Mapping[str, NormLayer],
    held: Mapping[str, Statistics],
    data: Mapping[str, Statistics],
    broken: Mapping[str, Statistics],
) -> bool:
    """Whether any broken channel holds what no data give, or by far not these.

    A variance of infinity makes a channel constant.  One among 64 costs the outputs a relative error
    of 0.1, which others have for want of samples: no comparison of outputs sees it.  Variances that
    are too small do not hide so.

    Parameters
    ----------
    norms
        BatchNorms of the model.
    held, data
        What they hold, and what was recomputed of it, by name; the latter of those that were called.
    broken
        Masks of their channels that are known to be broken.
    """
    return any(
        _contradicts(held[name], given, broken[name], norms[name].epsilon)
        for name, given in data.items()
    )


def _contradicts(held: Statistics, data: Statistics, broken: Statistics, epsilon: float) -> bool:
    with np.errstate(all="ignore"):  # epsilon may be 0
        return _is_lost(held, broken, epsilon) or _is_far(held, data, broken, epsilon)


def _is_lost(held: Statistics, broken: Statistics, epsilon: float) -> bool:
    lost = broken.mean & ~np.isfinite(held.mean)
    lost |= broken.var & (~np.isfinite(held.var) | (held.var + epsilon <= 0))
    return bool(lost.any())


def _is_far(held: Statistics, data: Statistics, broken: Statistics, epsilon: float) -> bool:
    large = (held.var + epsilon) / (data.var + epsilon) > TIMES
    far = np.abs(held.mean - data.mean) / np.sqrt(data.var + epsilon) > FAR
    return bool((telling(data.var) & (broken.var & large | broken.mean & far)).any())
