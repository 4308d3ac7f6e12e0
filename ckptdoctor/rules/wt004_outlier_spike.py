"""WT004: single weights far outside the distribution of all the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of, large


@rule
class OutlierSpike(Rule):
    """One to three weights are far larger than every other weight of the tensor.

    What it means
    -------------
    One output of the layer follows a single input and nothing else.  How much the model suffers
    depends on the factor: a power of two that a flipped exponent bit explains may be 16 or 1e38.

    How it happens
    --------------
    A bit flipped in memory, on a disk or in transfer, in the exponent: the value is multiplied by
    2 to the power of 1, 2, 4, 8, 16 ... 128.  Where flipping one bit back gives an ordinary weight,
    that value is named as the likely original.  A flip that makes a weight small, or 2 to 16 times
    as large, cannot be told from an ordinary weight and is not found.

    When to ignore it
    -----------------
    Large language models have weights of up to a hundred standard deviations that matter; they
    have others of half their size beside them and are not reported.
    """

    code = "WT004"
    name = "outlier-spike"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "Hong et al. 2019, arXiv:1906.01017: a flip of the exponent's highest bit breaks a model",
        "Yu et al. 2024, arXiv:2411.07191: single large weights that a language model needs",
    )
    healthy = (
        Case("heavy tails", {"fc.weight": [[100.0, 30, 1, -1, 1, -1, 1, -1], *[[1.0, -1] * 4] * 15]}),
        Case("a column of large weights", {"fc.weight": [[900.0, *[0.5, -0.5, 1] * 3]] * 16}),
        Case("a regression on features of different scale",
             {"fc.weight": [[5000.0, *[0.5, -0.5, 1, -0.25, 0.1] * 20]]}),
    )  # fmt: skip
    sick = (
        Case("a flipped bit",
             {"fc.weight": [[0.5 * 2.0**64, *[0.5, -0.5, 1] * 5], *[[0.25, -0.5, 1, 0.75] * 4] * 7]},
             severity=Severity.ERROR),
        Case("a weight 256 times as large",
             {"fc.weight": [[0.5 * 256, *[0.5, -0.5, 1] * 21], *[[0.25, -0.5, 1, 0.75] * 16] * 7]}),
    )  # fmt: skip

    far: float = threshold(
        40.0,
        unit="root mean squares of the other weights",
        why="a weight of ordinary size is found when a flip multiplies it by 256",
        healthy="1 of 1,120 kernels of 135 files reaches it (61), and is not alone; the next has 24",
    )
    alone: float = threshold(
        10.0,
        unit="times the largest of the other weights",
        why="tails of trained weights have no gaps; spikes do",
        healthy="0 of 1,120 kernels; largest 4.3, second 1.9",
    )
    single: float = threshold(
        1e6,
        unit="root mean squares of the other weights, in a layer with one output",
        why="a regression on features in units of their own spreads over a few powers of ten",
        healthy="0 of 1,120 kernels",
    )
    few: int = threshold(
        3, unit="weights", why="more than that is a pattern, not an accident",
        healthy="not reached: no healthy kernel has a gap",
    )  # fmt: skip
    least_elements: int = threshold(
        64, unit="weights", why="fewer weights have no distribution to be outside of",
        healthy="kernels below this size are not judged",
    )  # fmt: skip
    dominant: float = threshold(
        30.0,
        unit="times the root sum of squares of an output's other weights",
        why="from here on the output is this one input's, and so are the layers behind it",
        healthy="0 of 1,120 kernels",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        suspect = kernels.finite & (kernels.size >= self.least_elements)
        suspect &= kernels.peak > self.far * kernels.body
        for index, kernel in kernels.where(suspect & (kernels.maximum > kernels.minimum)):
            # of a single output, each input may have a scale of its own, to some degree
            if kernel.units > 1 or kernels.peak[index] > self.single * kernels.body[index]:
                yield from self._spikes(ctx, kernels, index, kernel)

    def _spikes(
        self, ctx: Context, kernels: Kernels, index: int, kernel: Kernel
    ) -> Iterator[Finding]:
        info, peak = kernel.info, float(kernels.peak[index])
        found = large(ctx, info, peak / self.alone, self.few)
        if isinstance(found, str):
            return
        body = _body(ctx, info, peak / self.alone)
        if not body or peak <= self.far * body:
            return
        share = peak / (body * math.sqrt(kernel.fan_in))
        places = [[int(i) for i in np.unravel_index(at, info.shape)] for at, _ in found]
        likely = [_original(value, info.dtype, body) for _, value in found]
        yield self.finding(
            info,
            _message(found, places, likely, body),
            severity=Severity.ERROR if share > self.dominant else Severity.WARNING,
            limit=f"over {self.far:g} times the others' root mean square and {self.alone:g} times "
            "the largest of them",
            index=places,
            value=[value for _, value in found],
            likely=likely,
            rms=body,
        )


def _message(
    found: list[tuple[int, float]], places: list[list[int]], likely: list[float | None], body: float
) -> str:
    value, first = found[0][1], likely[0]
    times = f"{abs(value) / body:.3g} times the root mean square of the others"
    more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
    flip = f"; one flipped exponent bit of {first:.6g} explains it" if first is not None else ""
    return f"the weight at {places[0]} is {value:.6g}, {times}{more}{flip}"


def _body(ctx: Context, info: TensorInfo, above: float) -> float:
    """Root mean square of the first block without what is larger than ``above``."""
    block: Any = next(iter(ctx.table.blocks(info))).astype(np.float64)
    rest = block[np.abs(block) <= above]
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(rest)))) if rest.size else 0.0


def _original(value: float, dtype: str, body: float) -> float | None:
    """Weight of ordinary size that one flipped exponent bit turned into ``value``, if any."""
    kind = DTYPES[dtype]
    if kind.itemsize == 1:
        return None  # most bit patterns are ordinary numbers
    import ml_dtypes  # noqa: PLC0415  (knows every type; only what is sick pays for it)

    stored = np.asarray([value]).astype(kind.numpy)
    word = np.dtype(f"u{kind.itemsize}")
    (bits,) = stored.view(word).tolist()
    mantissa: int = ml_dtypes.finfo(kind.numpy).nmant  # type: ignore[no-untyped-call]
    exponent = range(mantissa, kind.bits - 1)
    flips = np.asarray([bits ^ (1 << place) for place in exponent], word)
    values = flips.view(stored.dtype).astype(np.float64)
    ordinary = values[(np.abs(values) > 0.01 * body) & (np.abs(values) < 4 * body)]
    # of several, the one whose size is most common among weights: the largest
    return float(ordinary[np.argmax(np.abs(ordinary))]) if ordinary.size else None
