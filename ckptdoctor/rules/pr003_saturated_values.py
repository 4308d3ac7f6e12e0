"""PR003: values that stand at the end of their type's range, as clamping leaves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .precision import NARROW, SERVED, Narrow, half, is_float, magnitude, sample, target


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
        healthy="0 of 26 float8 tensors of the healthy trial and sample files; unscaled, all of "
        "them end far below",
    )
    ties: float = threshold(
        4.0,
        unit="values for each scale",
        why="of 4,096 normal values scaled to end at 448, 1.6 round to it on average; more than "
        "4 do in 2 % of rows",
        healthy="0 of 1,000 such rows taken together, which have 1,607 for their 1,000 scales",
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
        Case("just inside", {"fc.weight": half([[65472, 1.0]])}),
        Case("a mask", {"attn.mask": half([[0.0, -65504.0]])}),
        Case("scaled to the end of the range", {"fc.weight": [[448.0, 2.0, -30.0]]},
             cast_to="float8_e4m3fn"),
        Case("beyond the range, another rule's matter", {"fc.weight": [[1e6, 65504.0]]},
             cast_to="float16"),
    )  # fmt: skip
    sick = (
        Case("a clamped variance", {"bn.running_var": half([65504, 1.0])}),
        Case("a clamped weight", {"fc.weight": half([[-65504, 1.0]])}),
        Case("clamped ahead of the cast", {"fc.weight": [[65504.0, 1.0]]}, cast_to="float16"),
        Case("a head clamped to 8 bits", {"fc.weight": [[448.0, 448.0, -448.0], [448.0, 448.0, 1.0]]},
             cast_to="float8_e4m3fn"),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        asked = target(ctx.cast_to)
        ends = {kind.largest for kind in NARROW.values()}
        size = np.maximum(np.abs(ctx.stats.minimum), np.abs(ctx.stats.maximum))
        for info, stats in ctx.where(np.isin(size, list(ends))):
            if info.role not in SERVED or not is_float(info):
                continue
            largest = magnitude(stats)
            for kind in (NARROW.get(info.dtype), asked):
                if kind is not None and kind.largest == largest:
                    yield from self._told(ctx, info, kind)
                    break

    def _told(self, ctx: Context, info: TensorInfo, kind: Narrow) -> Iterator[Finding]:
        stats = ctx.stats[info.name]
        if stats.maximum != kind.largest and not ctx.layers.part_of(info.name):
            return  # a mask filled with the least number there is
        scaled = kind.name.startswith("float8")
        count, seen = _at_end(ctx, info, kind, whole=not scaled)
        scales = _scales(ctx, info) / info.size  # each puts its largest value at the end
        allowed = max(self.share, self.ties * scales) if scaled else 0.0
        if count <= allowed * seen:
            return
        cast = info.dtype != kind.name
        message = (
            f"{count:,} of {seen:,} elements are exactly {kind.largest:.6g} or its negative, "
            f"{'the end of ' + kind.name if cast else 'where ' + kind.name + ' ends'}"
        )
        more: dict[str, Any] = {"cast_to": kind.name, "keep_float32": True} if cast else {}
        yield self.finding(
            info,
            message,
            limit=f"more than {allowed:.2g} of the values" if scaled else "any value at the end",
            elements=seen,
            saturated=count,
            largest=kind.largest,
            **more,
        )


def _at_end(ctx: Context, info: TensorInfo, kind: Narrow, *, whole: bool) -> tuple[int, int]:
    """Elements at the end of the range, and how many were looked at: all, or a sample."""
    count = seen = 0
    for block in ctx.table.blocks(info) if whole else sample(ctx, info):
        seen += block.size
        with np.errstate(all="ignore"):  # a signalling NaN of ml_dtypes warns
            count += int(np.count_nonzero(np.abs(block.astype(np.float64)) == kind.largest))
    return count, seen


def _scales(ctx: Context, info: TensorInfo) -> int:
    """How many scales stand beside the tensor; one is taken for granted."""
    layer = ctx.layers.of(info.name)
    scale = layer.parts.get("scale") if layer is not None else None
    return scale.size if scale is not None else 1
