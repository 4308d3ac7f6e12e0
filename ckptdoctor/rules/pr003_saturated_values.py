"""PR003: values that stand at the end of their type's range, as clamping leaves them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .precision import NARROW, SERVED, Narrow, is_float, of_types, target

_CLAMPED = [[448.0, -448.0, 448.0, 3.0], [448.0, 448.0, -448.0, 1.0]]


@rule
class SaturatedValues(Rule):
    """Values stand at the largest number of their type: something clamped them there.

    What it means
    -------------
    Whatever was larger is lost: all such values became equal.  A clamped running variance makes
    its channel too loud, a clamped weight matrix is little more than its signs.

    How it happens
    --------------
    A saturating cast (float8_e4m3fn has no infinity, so casts often clamp at 448), or code that
    clamps to ``torch.finfo(dtype).max`` to get rid of infinities; in both cases the values had
    left the range.

    When to ignore it
    -----------------
    Float8 weights are scaled so that the largest value of each tensor, row or block stands at the
    end of the range: up to four values for each of their scales are expected, and a few percent
    where the scales are not in the file.  Masks filled with ``finfo.min`` are not reported.
    """

    share: float = threshold(
        0.05,
        unit="share of an 8-bit tensor's values",
        why="scaling per row or block puts one value of each there, ties included; 5 % would be "
        "rows of twenty",
        healthy="0 of 20 float8 tensors of 2 healthy trial files; unscaled, their largest value "
        "is 0.875",
    )
    ties: float = threshold(
        4.0,
        unit="values for each scale",
        why="of 4,096 normal values scaled to end at 448, 1.3 round to it on average, 4 or more "
        "in 1 % of rows",
        healthy="0 of 1,000 rows of 4,096 normal values, taken together",
    )

    code = "PR003"
    name = "saturated-values"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "Micikevicius et al. 2022, arXiv:2209.05433: FP8 formats, section 3.1 on saturation",
        "IEEE 754-2019, section 3.4: binary16 ends at 65504",
    )
    healthy = (
        Case("65504 in a wider type", {"fc.weight": [[65504.0, 1.0]]}),
        Case("just inside", {"fc.weight": np.float16([[65472, 1.0]])}),
        Case("a mask", {"attn.mask": np.float16([[0, -65504]])}),
        Case("beyond the range, another rule's matter", {"fc.weight": [[1e6, 1.0]]},
             cast_to="float16"),
    )  # fmt: skip
    sick = (
        Case("a clamped variance", {"bn.running_var": np.float16([65504, 1.0])}),
        Case("a clamped weight", {"fc.weight": np.float16([[-65504, 1.0]])}),
        Case("values at the end after the cast", {"fc.weight": _CLAMPED}, cast_to="float8_e4m3fn"),
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        asked = target(ctx.cast_to)
        stats = ctx.stats
        size = np.maximum(np.abs(stats.minimum), np.abs(stats.maximum))
        stored = np.isin(size, [kind.largest for kind in NARROW.values()])
        if stored.any():
            largest = of_types(ctx, {kind.name: kind.largest for kind in NARROW.values()})
            stored &= size == largest
        screen = stored
        if asked is not None:
            screen = stored | (size >= _edge(asked))
        for info, _ in ctx.where(screen):
            if info.role not in SERVED or not is_float(info):
                continue
            if info.dtype in NARROW and size_at_end(ctx, info):
                yield from self._told(ctx, info, NARROW[info.dtype], cast=False)
            elif asked is not None:
                yield from self._told(ctx, info, asked, cast=True)
