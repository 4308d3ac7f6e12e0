"""NF001: NaN among a tensor's values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule
from .intended import intended

_NAN = float("nan")


@rule
class NanValues(Rule):
    """A tensor holds NaN.

    What it means
    -------------
    Whatever is computed from a NaN element is NaN.  In a weight or a running statistic that is
    the output of the model for every input; in the optimizer's state it is every weight after the
    next step.  NaN never heals: training on keeps it, averaging copies it.

    How it happens
    --------------
    Weights and optimizer state: the loss or a gradient overflowed (float16, a learning rate too
    high, a division by zero, NaN in the data) and the step was taken.  Running statistics alone:
    the forward pass of one batch overflowed, the loss scaler skipped the step, but the statistics
    had already been updated.  A variance that is NaN beside a finite mean: one value per channel.

    When to ignore it
    -----------------
    In buffers that use NaN for "not seen yet": the names known for it are reported as NF003.  In
    the training loop's own records (a logged loss) it is a warning.
    """

    code = "NF001"
    name = "nan-values"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "IEEE 754-2019, section 6.2: operations with NaN",
        "Micikevicius et al. 2018, arXiv:1710.03740: loss scaling and skipped steps",
    )
    healthy = (
        Case("infinities, another rule's matter", {"fc.weight": [[float("inf"), 1.0]]}),
        Case("an observer that saw no batch", {"act.observer.min_val": _NAN}),
        Case("visits not made yet", {"memory.last_seen": [_NAN, _NAN]}),
        Case("integers", {"steps": 3}),
    )
    sick = (
        Case("one element of a weight", {"fc.weight": [[1.0, _NAN]], "fc.bias": [0.0]}),
        Case("a running variance lost whole", {"bn.running_var": [_NAN, _NAN]}),
        Case("a learned mask token", {"mask_token": [[_NAN, 1.0]]}),
        Case("momentum", {"optimizer.state.0.exp_avg": [_NAN]}, {"optimizer.state.0.exp_avg": "optimizer"}),
        Case("a logged loss", {"logs.val": [1.0, _NAN]}, {"logs.val": "training"}, Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for info, stats in ctx.where(ctx.stats.nan):
            if intended(ctx, info, stats):
                continue
            severity = Severity.WARNING if info.role == "training" else Severity.ERROR
            if stats.nan == stats.count:
                message = f"all {stats.count:,} elements are NaN" if stats.count > 1 else "is NaN"
                yield self.finding(
                    info, message, severity=severity, elements=stats.count, nan=stats.nan
                )
                continue
            at = ctx.first(info, np.isnan)
            place = f", the first at {list(at)}" if at else ""
            message = f"{stats.nan:,} of {stats.count:,} elements are NaN{place}"
            more: dict[str, Any] = {"first": list(at)} if at else {}
            yield self.finding(
                info, message, severity=severity, elements=stats.count, nan=stats.nan, **more
            )
