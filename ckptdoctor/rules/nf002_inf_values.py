"""NF002: infinities among a tensor's values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule
from .intended import intended

_INF = float("inf")

_LIMITS = {"float16": "65504", "float8_e5m2": "57344"}
"""Largest finite value of the types that overflow first."""


@rule
class InfValues(Rule):
    """A tensor holds infinities.

    What it means
    -------------
    An infinite weight gives infinite sums, and NaN as soon as it meets a zero, another infinity
    or a softmax.  An infinite running variance is quieter: its channel becomes a constant, and the
    outputs are finite and wrong.  In an optimizer's second moment it stops its element for good.

    How it happens
    --------------
    A value left the range of its type: a cast to float16 (largest value 65504) or float8, one
    huge sample in the running statistics, a gradient spike that entered the optimizer's moments.
    Infinity is mostly the last finite step before NaN.

    When to ignore it
    -----------------
    Where infinity is the value meant: masks, masked classes, open bounds, observers and best
    scores are recognised by name and pattern and reported as NF003.
    """

    code = "NF002"
    name = "inf-values"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "IEEE 754-2019, section 6.1: infinity arithmetic",
        "Micikevicius et al. 2022, arXiv:2209.05433: ranges of the 8-bit formats",
    )
    healthy = (
        Case("a causal mask", {"attn.bias_k": [[0.0, -_INF], [0.0, 0.0]]}),
        Case("a padded vocabulary", {"lm_head.bias": [0.1, 0.2, -_INF]}),
        Case("a best score", {"callbacks.x": _INF}, {"callbacks.x": "training"}),
        Case("NaN, another rule's matter", {"fc.weight": [float("nan")]}),
    )
    sick = (
        Case("a running variance", {"bn.running_var": [1.0, _INF]}),
        Case("an overflowed bias of a head", {"lm_head.bias": [0.1, 0.2, _INF]}),
        Case("a bias inside the net", {"layer.0.bias": [0.1, -_INF, 0.2]}),
        Case("a mask name over +Inf", {"attn.mask": [[_INF, 0.0], [0.0, 0.0]]}),
        Case("second moment", {"optimizer.state.0.exp_avg_sq": [_INF]}, {"optimizer.state.0.exp_avg_sq": "optimizer"}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for info, stats in ctx.where(ctx.stats.posinf + ctx.stats.neginf):
            if intended(ctx, info, stats):
                continue
            counts = ((stats.posinf, "+Inf"), (stats.neginf, "-Inf"))
            kinds = " and ".join(f"{n:,} {kind}" for n, kind in counts if n)
            at = ctx.first(info, np.isinf)
            place = f", the first at {list(at)}" if at and stats.count > 1 else ""
            limit = _LIMITS.get(info.dtype)
            range_ = f" ({info.dtype} ends at {limit})" if limit else ""
            amount = f" among {stats.count:,} elements" if stats.count > 1 else ""
            message = f"{kinds}{amount}{range_}{place}"
            more: dict[str, Any] = {"first": list(at)} if at else {}
            yield self.finding(
                info,
                message,
                elements=stats.count,
                posinf=stats.posinf,
                neginf=stats.neginf,
                **more,
            )
