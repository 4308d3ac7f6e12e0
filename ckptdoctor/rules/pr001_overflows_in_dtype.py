"""PR001: values that do not fit into the type the model is to be cast to."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule
from .precision import SERVED, Narrow, is_float, magnitude, target


@rule
class OverflowsInDtype(Rule):
    """A tensor holds values beyond the range of the type asked for with ``--cast-to``.

    What it means
    -------------
    The cast turns them into Inf or NaN (float8_e4m3fn has no infinity; some casts clamp instead).
    An infinite weight makes the output NaN or Inf; an infinite running variance silences its
    channel.  The model as it is stored is not affected: keep these tensors in float32 (the
    findings are the list), or scale them before the cast.

    The limits are exact, rounding included: 65520 for float16, 61440 for float8_e5m2, above 464
    for float8_e4m3fn, 2^128 (1 - 2^-9) for bfloat16.

    How it happens
    --------------
    Running variances of layers that see raw, unscaled input; weights that diverged; counters,
    positions and scales stored as floating numbers.  ``model.half()`` casts them all.

    When to ignore it
    -----------------
    When the deployed cast leaves these tensors out (mixed precision keeps normalisation layers in
    float32), or scales each tensor first, as float8 kernels do.  Large negative numbers in a mask
    are a warning: -Inf masks as well, unless a row is masked whole.
    """

    code = "PR001"
    name = "overflows-in-dtype"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "IEEE 754-2019, section 4.3.1: rounding to nearest, ties to even",
        "Micikevicius et al. 2022, arXiv:2209.05433: FP8 formats for deep learning",
        "Micikevicius et al. 2018, arXiv:1710.03740: mixed precision training",
    )
    healthy = (
        Case("large values, no cast asked for", {"bn.running_var": [1e6, 1.0]}),
        Case("values that round to the largest", {"fc.weight": [[-65519.0, 1]]}, cast_to="float16"),
        Case("the same exponents as float32", {"fc.weight": [[1e30, 1.0]]}, cast_to="bfloat16"),
        Case("a counter, which stays an integer", {"steps": np.array(10**6)}, cast_to="float16"),
        Case("batches counted in float32", {"bn.running_var": [1.0],
             "bn.num_batches_tracked": 1e6}, cast_to="float16"),
        Case("an optimizer's state", {"exp_avg_sq": [1e6]}, {"exp_avg_sq": "optimizer"},
             cast_to="float16"),
    )  # fmt: skip
    sick = (
        Case("raw input's variance", {"bn.running_var": [4.6e8, 1.0]}, cast_to="float16"),
        Case("one step too far", {"fc.weight": [[-65520.0, 1.0]]}, cast_to="float16"),
        Case("unscaled weights", {"fc.weight": [[465.0, 1.0]]}, cast_to="float8_e4m3fn"),
        Case("beyond e5m2", {"fc.weight": [[61440.0, 1.0]]}, cast_to="float8_e5m2"),
        Case("a mask's large number", {"attn.mask": [[0.0, -1e9]]}, {}, Severity.WARNING,
             cast_to="float16"),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        kind = target(ctx.cast_to)
        if kind is None:
            return
        low, high = ctx.stats.minimum, ctx.stats.maximum
        for info, _ in ctx.where(kind.overflows(np.maximum(np.abs(low), np.abs(high)))):
            if info.role not in SERVED or not is_float(info):
                continue
            if ctx.layers.part_of(info.name) != "count":  # of batches: nothing is computed with it
                yield self._told(ctx, info, kind)

    def _told(self, ctx: Context, info: TensorInfo, kind: Narrow) -> Finding:
        stats = ctx.stats[info.name]
        largest = magnitude(stats)
        count = _beyond(ctx, info, kind)
        negative = stats.maximum != largest
        masks = stats.maximum is not None and not kind.overflows(stats.maximum)
        message = (
            f"{count:,} of {stats.count:,} elements become {kind.beyond} in {kind.name}, "
            f"the largest is {-largest if negative else largest:.6g}"
        )
        return self.finding(
            info,
            message,
            severity=Severity.WARNING if masks and _masks(ctx, info) else Severity.ERROR,
            limit=f"{kind.name} ends at {kind.largest:.6g}",
            elements=stats.count,
            overflows=count,
            largest=largest,
            cast_to=kind.name,
            keep_float32=True,
        )


def _beyond(ctx: Context, info: TensorInfo, kind: Narrow) -> int:
    count = 0
    for block in ctx.table.blocks(info):
        with np.errstate(all="ignore"):  # a signalling NaN of ml_dtypes warns
            size = np.abs(block.astype(np.float64))
        count += int(np.count_nonzero(kind.overflows(size) & np.isfinite(size)))
    return count


def _masks(ctx: Context, info: TensorInfo) -> bool:
    """Whether large negative numbers stand for what must not be seen."""
    return not ctx.layers.part_of(info.name) and bool(re.search("mask", info.name, re.IGNORECASE))
