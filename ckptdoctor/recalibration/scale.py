"""Whether samples are those of training, by the BatchNorm that nothing broken comes before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..live.batch_statistics import FEWEST, telling
from ..live.subject import Statistics
from ..tensors import Array

__all__ = ["LARGER", "OTHER", "Scale", "scale_of"]

OTHER = 1.5
"""Factor from which samples are spoken of as of another scale.  14 kinds of network, 64 samples of their
own: 0.93 to 1.07; with added noise of a third of their size up to 1.33."""
LARGER = 1.8
"""Factor from which larger samples are refused, if their means agree; samples of twice the size measured
1.83 to 2.18 in 14 kinds of network."""
TOGETHER = 1.2
"""Up to here the factor of the means and that of the deviations are the same one: samples of 2 to 255
times the size give 0.93 to 1.12 of each other.  Batches of zeros, which shrink both statistics alike, are
at 1.7 after 10 of them, and look like larger samples otherwise."""
UNSCALED = 10.0
"""Largest value of a usual sample from which it may be that it was not scaled: what is normalised seldom
reaches it, pixels of 0 to 255 do.  Below it, kernels that are too large explain the factor as well."""
ALIKE = 0.5
"""Greatest spread (quartiles of the logarithm) of the variances' ratios that is one factor: 0.31 at most
for samples of another scale, 0.43 and more for one BatchNorm called in two places."""
_CHANNELS = 3
"""Channels below which nothing is said of their spread."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One factor by which the inputs of a BatchNorm differ from those its statistics are of.

    Parameters
    ----------
    norm
        Its name.
    factor
        Standard deviation of the samples over that of training, the median of the channels.
    together
        Whether the means differ by that factor too.
    size
        Largest magnitude of a usual sample.
    """

    norm: str
    factor: float
    together: bool
    size: float

    @property
    def refused(self) -> bool:
        """Whether the samples are at fault, as far as can be seen.

        Damage makes stored statistics too large, not too small; and kernels that are too large would
        do the same to samples that are not.
        """
        return self.together and self.factor >= LARGER and self.size > UNSCALED

    @property
    def advice(self) -> str:
        """What to look at."""
        weights = "" if self.refused else ", and at the weights before it"
        return f"look at how they are scaled and normalised{weights}"

    def __str__(self) -> str:
        """Say it as a sentence without its full stop."""
        much, than = (self.factor, "more") if self.factor > 1 else (1 / self.factor, "less")
        return (
            f"these samples vary {much:.3g} times {than} than {self.norm!r:.100}, the first BatchNorm, "
            "knows from training, in all its channels alike"
        )


def scale_of(
    norm: str,
    held: Statistics,
    data: Statistics,
    values: int,
    *,
    size: float,
    broken: Statistics | None = None,
) -> Scale | None:
    """Compare what a BatchNorm holds with the samples, in the channels that are not broken.

    Before the first BatchNorm the scale of the inputs is kept; behind it, it is lost.

    Parameters
    ----------
    norm
        The one that is called first.
    held, data
        What it holds, and the statistics of what it is given, of ``values`` of each channel.
    size
        As `Scale` has it.
    broken
        Its channels that are known to be broken.

    Returns
    -------
    Scale or None
        None where there is no one factor, or it is near 1.

    Examples
    --------
    >>> held = Statistics(np.array([1.0, -2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    >>> data = Statistics(held.mean * 255, held.var * 255**2)
    >>> found = scale_of("bn", held, data, 64, size=255.0)
    >>> round(found.factor), found.together
    (255, True)
    """
    if values < FEWEST:
        return None
    with np.errstate(all="ignore"):
        sound = np.isfinite(held.mean) & np.isfinite(held.var) & (held.var > 0)
        sound &= telling(data.var)
    if broken is not None:
        sound &= ~(broken.mean | broken.var)
    if np.count_nonzero(sound) < _CHANNELS:
        return None
    ratios = np.log(data.var[sound] / held.var[sound])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    factor = float(np.exp(middle / 2))
    if high - low > ALIKE or 1 / OTHER < factor < OTHER:
        return None
    means = _factor(held.mean[sound], data.mean[sound], held.var[sound])
    return Scale(norm, factor, 1 / TOGETHER <= means / factor <= TOGETHER, size)


def _factor(held: Array, data: Array, var: Array) -> float:
    """Factor that takes the held means nearest to those of the data, in standard deviations."""
    square = float(np.sum(held * held / var))
    return float(np.sum(held * data / var)) / square if square else 0.0
