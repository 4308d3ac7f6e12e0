"""WT002: a kernel whose elements are all the same number."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, kernels_of


@rule
class ConstantWeights(Rule):
    """Every element of a weight matrix or filter bank is the same number, not zero.

    What it means
    -------------
    Each output of the layer is the same multiple of the sum of its inputs: whatever tells inputs
    apart is lost.  With several outputs WT005 says that they are copies of each other as well.

    How it happens
    --------------
    A constant initialisation, which gradient descent cannot break the symmetry of; a tensor
    filled with ones or with a fill value by a script that repaired or converted the checkpoint.

    When to ignore it
    -----------------
    Fixed filters: box blurs and averages, kernels of ones that sum a window.  Averages, single
    filters and depthwise ones are therefore notes.
    """

    code = "WT002"
    name = "constant-weights"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4: breaking symmetry",
    )
    healthy = (
        Case("zeros, another rule's matter", {"fc.weight": [[0.0] * 4] * 4}),
        Case("one element that differs", {"fc.weight": [[0.5, 0.5], [0.5, 0.25]]}),
        Case("gains of a normalisation over several axes", {"norm.weight": [[[1.0] * 2] * 2] * 2}),
        Case("a single weight", {"fc.weight": [[0.5]]}),
    )
    sick = (
        Case("constant initialisation", {"fc.weight": [[0.02] * 4] * 4, "fc.bias": [0.0] * 4}),
        Case("a kernel filled with ones", {"conv/kernel": [[[[1.0] * 4] * 2] * 3] * 3}),
        Case("a box blur", {"pool.weight": [[[[0.25, 0.25], [0.25, 0.25]]]]}, severity=Severity.NOTE),
    )  # fmt: skip

    least_elements: int = threshold(
        4,
        unit="elements",
        why="two or three equal weights are no pattern",
        healthy="no kernel is constant in 1,120 kernels of 135 healthy files",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        constant = (kernels.minimum == kernels.maximum) & (kernels.maximum != 0) & kernels.finite
        for index, kernel in kernels.where(constant & (kernels.size >= self.least_elements)):
            if _is_gain(kernel):
                continue
            value, size = float(kernels.maximum[index]), kernel.info.size
            fixed = _is_filter(kernel, value)
            yield self.finding(
                kernel.info,
                f"all {size:,} weights are {value:.6g}" + (": a fixed filter?" if fixed else ""),
                severity=Severity.NOTE if fixed else Severity.WARNING,
                elements=size,
                value=value,
            )


def _is_gain(kernel: Kernel) -> bool:
    """Whether it is a gain (of a normalisation, a scaling layer) that has several axes."""
    one_per_unit = kernel.layer.kind != "embedding" and 1 in (kernel.fan_in, kernel.units)
    last = kernel.layer.name.replace("/", ".").rpartition(".")[2]
    named = re.search(r"norm|(^|_)(ln|bn|gn)_?\d*$|scale|gain|gamma|affine", last, re.IGNORECASE)
    return bool(named) or (one_per_unit and kernel.fan_in == 1)


def _is_filter(kernel: Kernel, value: float) -> bool:
    """Whether it sums or averages over a window."""
    average = abs(value * kernel.fan_in - 1) < 1e-3
    return kernel.layer.kind != "embedding" and (average or kernel.units == 1 or kernel.grouped)
