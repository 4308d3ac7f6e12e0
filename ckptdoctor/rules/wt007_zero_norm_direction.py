"""WT007: a kernel kept as direction and length whose direction has no length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule
from .kernels import Kernel, kernels_of


@rule
class ZeroNormDirection(Rule):
    """A reparametrised kernel divides by a norm that is zero.

    What it means
    -------------
    Weight norm keeps a kernel as length g and direction v and computes g * v / |v|; spectral norm
    divides by the largest singular value.  A row of zeros in v, or a kernel of zeros, makes that
    0 / 0: the unit is NaN at run time, and so is everything behind it, though every stored number
    is finite.

    How it happens
    --------------
    Pruning that zeroed rows of v instead of g; a kernel set to zero by hand or by a conversion
    that did not know the reparametrisation; memory that was never filled.

    When to ignore it
    -----------------
    In models that compute the norm with an epsilon of their own (TensorFlow Addons does).
    """

    code = "WT007"
    name = "zero-norm-direction"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Salimans & Kingma 2016, arXiv:1602.07868: weight normalization",
        "Miyato et al. 2018, arXiv:1802.05957: spectral normalization",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.parametrizations.weight_norm.html",
    )
    healthy = (
        Case("rows with some zeros",
             {"fc.weight_v": [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]], "fc.weight_g": [[1.0]] * 3}),
        Case("a length of zero", {"fc.weight_v": [[1.0, 2.0]] * 2, "fc.weight_g": [[0.0], [1.0]]}),
        Case("zeros in a plain kernel", {"fc.weight": [[0.0, 0.0], [1.0, 2.0]]}),
        Case("one norm for the whole kernel", {"fc.weight_v": [[0.0, 0.0], [1.0, 2.0]], "fc.weight_g": 1.0}),
    )  # fmt: skip
    sick = (
        Case("a pruned row",
             {"fc.parametrizations.weight.original1": [[0.0, 0.0], [1.0, 2.0]],
              "fc.parametrizations.weight.original0": [[0.0], [1.0]]}),
        Case("a column, normed along the other axis",
             {"fc.weight_v": [[1.0, 0.0], [1.0, 0.0]], "fc.weight_g": [[1.0, 1.0]]}),
        Case("one norm, all zeros", {"fc.weight_v": [[0.0, 0.0]] * 2, "fc.weight_g": 1.0}),
        Case("a spectrally normed kernel of zeros",
             {"fc.weight_orig": [[0.0, 0.0]] * 2, "fc.weight_u": [1.0, 0.0], "fc.weight_v": [1.0, 0.0]}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        for index, kernel in kernels.where(kernels.finite & (kernels.zeros > 0)):
            if kernel.layer.kind == "spectralnorm" and kernels.peak[index] == 0:
                message = "all weights are zero: the spectral norm divides by 0, which gives NaN"
                yield self.finding(kernel.info, message, elements=kernel.info.size)
            elif kernel.layer.kind == "weightnorm":
                yield from self._rows(ctx, kernel, int(kernels.zeros[index]))

    def _rows(self, ctx: Context, kernel: Kernel, zeros: int) -> Iterator[Finding]:
        info, length = kernel.info, kernel.layer.parts["g"]
        rows = length.size
        if not rows or zeros < info.size // rows:
            return  # too few for one row
        bad = _without_norm(ctx, info, length)
        if not bad:
            return
        where = f"row {bad[0]}" if len(bad) == 1 else f"rows {', '.join(map(str, bad[:5]))}"
        where = where + (" ..." if len(bad) > 5 else "")
        yield self.finding(
            info,
            f"{len(bad):,} of {rows:,} directions have norm 0 ({where}): weight norm makes them NaN",
            directions=rows,
            zero=len(bad),
            first=bad[0],
        )


def _without_norm(ctx: Context, info: TensorInfo, length: TensorInfo) -> list[int]:
    """List the directions that are zero in every element."""
    alive = ctx.read(info) != 0
    kept = _axis(info.shape, length.shape)
    if kept is None:
        return [] if alive.any() else [0]
    others = tuple(axis for axis in range(len(info.shape)) if axis != kept)
    listed: list[int] = np.flatnonzero(~alive.any(axis=others)).tolist()
    return listed


def _axis(shape: tuple[int, ...], length: tuple[int, ...]) -> int | None:
    """Axis of the kernel along which there is a length each; None for one length in all."""
    if len(length) == len(shape):
        return next((i for i, n in enumerate(length) if n == shape[i] and n > 1), None)
    return next((i for i, n in enumerate(shape) if length and n == length[0] and n > 1), None)
