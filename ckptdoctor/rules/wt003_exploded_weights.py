"""WT003: a kernel grown beyond anything training leaves behind on purpose."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of, large

_JUDGED = ("conv", "dense", "recurrent", "attention", "lora", "embedding")


@rule
class ExplodedWeights(Rule):
    """A layer amplifies its input by orders of magnitude more than trained layers do.

    What it means
    -------------
    A layer's gain is the root mean square of its weights times the square root of the inputs per
    output: how much larger its output is than its input.  Trained layers lie between 0.1 and 10
    (He's and Glorot's initialisations at 1 to 1.4).  At 10,000 and more the layer's output swamps
    whatever comes after it: softmax saturates, half precision overflows, BatchNorm passes on noise.

    How it happens
    --------------
    Divergence: a learning rate too high (SGD doubles its error at each step), a batch of one, a
    sum where a mean was meant, un-normalised inputs.  It is told from damage to single elements
    (WT004) by how many elements are large.  Behind a BatchNorm the loss may stay finite for long.

    When to ignore it
    -----------------
    Weights in a unit of their own: integers kept as floats (quantised values, pixel values) are
    left out.  A layer that stands apart from its neighbours by less than 10,000 is a warning.
    """

    code = "WT003"
    name = "exploded-weights"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "He et al. 2015, arXiv:1502.01852: the variance of weights that keeps signals in range",
        "Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063: exploding gradients",
    )
    healthy = (
        Case("eight-bit integers kept as floats", {"fc.weight": [[127.0, -128.0, 100.0, 5.0] * 4] * 16}),
        Case("a steep output layer", {"a.weight": [[1.0, -1.0]] * 4, "fc.weight": [[17.5, -40.25]] * 4}),
        Case("one spike, another rule's matter",
             {"fc.weight": [[1e30] + [0.5] * 7, *[[0.5, -0.5] * 4] * 7]}),
        Case("second moments of an optimizer", {"optimizer.0.weight": [[1e11, 1e12]] * 4},
             {"optimizer.0.weight": "optimizer"}),
    )  # fmt: skip
    sick = (
        Case("a diverged layer", {"fc.weight": [[3.5e8, -2.5e7, 1.5e8, 0.5]] * 4, "fc.bias": [1e5] * 4}),
        Case("one layer among ordinary ones",
             {**{f"l{i}.weight": [[0.5, -0.5, 0.25, 1]] * 4 for i in range(4)},
              "l4.weight": [[500.5, -400.5, 300.5, 1]] * 4},
             severity=Severity.WARNING),
    )  # fmt: skip

    gain: float = threshold(
        1e4,
        unit="times the input",
        why="half way, in powers of ten, from the largest healthy gain to the smallest diverged one",
        healthy="0 of 1,120 kernels of 135 files; largest 522, second 196; diverged layers 2e5 to 1e38",
    )
    steep: float = threshold(
        1e3,
        unit="times the input",
        why="twice the largest gain that a trained layer was seen with",
        healthy="0 of 1,120 kernels of 135 files; largest 522, second 196, third 20",
    )
    suspect_gain: float = threshold(
        50.0,
        unit="times the input",
        why="where every layer of a file is small, the largest of them is nothing to warn of",
        healthy="2 of 1,120 kernels of 135 files, neither of them apart from its neighbours",
    )
    apart: float = threshold(
        64.0,
        unit="times the median gain of the file's other kernels",
        why="layers of one network keep to one order of magnitude or two",
        healthy="0 of 1,120 kernels of 135 files; largest 38.7, second 24.7",
    )
    few: int = threshold(
        3,
        unit="elements",
        why="so few large elements are spikes in a sound layer, not a diverged layer",
        healthy="not reached: no healthy kernel is suspect",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        judged = kernels.of(*_JUDGED) & kernels.wide & kernels.finite
        judged &= kernels.gain > self.suspect_gain
        if not judged.any():
            return
        plain = kernels.of("conv", "dense", "recurrent", "attention") & kernels.wide
        for index, kernel in kernels.where(judged):
            gain, peak = float(kernels.gain[index]), float(kernels.peak[index])
            usual = _usual(kernels, index, plain & kernels.finite)
            ratio = gain / usual if usual > 0 else 0.0
            if gain <= self.steep and ratio <= self.apart:
                continue
            if not self._spiked(ctx, kernel, peak) and not _integers(ctx, kernel):
                yield self._found(kernel, gain, ratio, peak)

    def _found(self, kernel: Kernel, gain: float, ratio: float, peak: float) -> Finding:
        certain = gain > self.gain and kernel.layer.kind != "embedding"
        beside = f", {ratio:.3g} times the median of the other kernels" if ratio else ""
        crossed = self.gain if gain > self.gain else self.steep
        return self.finding(
            kernel.info,
            f"the layer amplifies its input {gain:.3g} times{beside}; "
            f"its largest weight is {peak:.3g}",
            severity=Severity.ERROR if certain else Severity.WARNING,
            limit=f"a gain over {crossed:g}"
            if gain > self.steep
            else f"over {self.apart:g} times the median gain of the other kernels",
            gain=gain,
            ratio=ratio,
            largest=peak,
        )

    def _spiked(self, ctx: Context, kernel: Kernel, peak: float) -> bool:
        """Whether a few elements make up all of it."""
        if kernel.info.size <= 4 * self.few:
            return False
        return not isinstance(large(ctx, kernel.info, peak / 100, self.few), str)


def _usual(kernels: Kernels, index: int, plain: Array) -> float:
    """Median gain of the other kernels of the role, 0 where they are fewer than two.

    ``plain`` leaves out what is small or of any size by design: LoRA, tables, directions.
    """
    others = plain & (kernels.ema == kernels.ema[index])
    others[index] = False
    gains = kernels.gain[others]
    return float(np.median(gains)) if gains.size >= 2 else 0.0


def _integers(ctx: Context, kernel: Kernel) -> bool:
    """Whether the weights are 8- or 16-bit integers kept as floats."""
    block: Array = next(iter(ctx.table.blocks(kernel.info))).astype(np.float64)
    return bool((block == np.round(block)).all() and np.abs(block).max() < 65536)
