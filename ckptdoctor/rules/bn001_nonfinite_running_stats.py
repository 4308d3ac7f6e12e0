"""BN001: NaN or infinities in the running statistics of a BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..measure.stats import TensorStats
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule
from .batchnorm import channel_list, per_channel

_NAN, _INF = float("nan"), float("inf")


@rule
class NonfiniteRunningStats(Rule):
    """The running mean or variance of a BatchNorm holds NaN or infinities.

    What it means
    -------------
    Training uses the statistics of the batch and goes on as if nothing had happened; inference
    uses the stored ones.  With a NaN, or an infinite mean, everything behind the layer becomes NaN
    or infinite, whatever the input.  An infinite variance is quieter: its channel is the constant
    ``beta``, the outputs are finite and wrong, and no NaN ever shows.

    How it happens
    --------------
    The forward pass of one batch overflowed (float16, a huge or un-normalised sample) or met a NaN
    in its input.  The loss scaler or a guard skipped the step, so that every weight stayed finite,
    but the layer had already mixed the batch's statistics into its own.  NaN and infinity never
    leave a moving average again.  A variance that is NaN beside a finite mean in torch: a batch
    with a single value per channel, whose unbiased variance is 0/0; TensorFlow's fused kernel on a
    GPU does the same.

    What the fix does
    -----------------
    It replaces the statistics of the bad channels, never those of whole layers, and nothing else:
    the weights are intact.  Best are statistics recomputed from data.

    When to ignore it
    -----------------
    Never in a checkpoint that will be served.  Training on does not cure it either.
    """

    code = "BN001"
    name = "nonfinite-running-stats"
    severity = Severity.ERROR
    since = "0.1"
    replaces = ("NF001", "NF002")
    references = (
        "Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2: inference uses moving averages",
        "Micikevicius et al. 2018, arXiv:1710.03740: loss scaling and skipped steps",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://github.com/keras-team/keras/issues/17204: one layer is NaN at inference only",
        "https://github.com/tensorflow/tensorflow/issues/34062: one value per channel",
    )
    healthy = (
        Case("finite statistics", {"bn.running_mean": [0.0, 3.0], "bn.running_var": [0.0, 9e9]}),
        Case("a NaN weight, another rule's matter", {"bn.weight": [_NAN], "bn.bias": [0.0],
             "bn.running_mean": [0.0], "bn.running_var": [1.0]}),
        Case("an adapted normalisation layer", {"norm/mean": [_NAN], "norm/variance": [1.0]}),
    )  # fmt: skip
    sick = (
        Case("a mean lost whole", {"bn.running_mean": [_NAN] * 3, "bn.running_var": [1.0] * 3}),
        Case("one value per channel", {"bn.running_mean": [0.1, 0.2], "bn.running_var": [_NAN] * 2}),
        Case("a silenced channel", {"bn/moving_mean": [0.1] * 3, "bn/moving_variance": [1, _INF, 2]}),
        Case("an overflowed mean", {"bn.running_mean": [_INF, _NAN, 0], "bn.running_var": [1.0] * 3}),
        Case("a cast that overflowed", {"bn.running_mean": np.array([0, 0], "f2"),
             "bn.running_var": np.array([_INF, 1], "f2")}),
        Case("the averaged copy", {"ema.bn.running_var": [_NAN]}, {"ema.bn.running_var": "ema"}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        stats = ctx.stats
        for info, numbers in ctx.where(stats.nan + stats.posinf + stats.neginf):
            layer = ctx.layers.of(info.name)
            if layer is None or layer.kind != "batchnorm":
                continue
            part = ctx.layers.part_of(info.name)
            if part in ("mean", "var"):
                yield self._told(ctx, info, numbers, part)

    def _told(self, ctx: Context, info: TensorInfo, numbers: TensorStats, part: str) -> Finding:
        inf = numbers.posinf + numbers.neginf
        kinds = [f"{n:,} {kind}" for n, kind in ((numbers.nan, "NaN"), (inf, "infinite")) if n]
        bad, channels = numbers.nonfinite, numbers.count
        more: dict[str, Any] = {}
        if bad == channels and len(kinds) == 1:
            message = f"all {channels:,} channels are {'NaN' if numbers.nan else 'infinite'}"
        else:
            message = f"of {channels:,} channels {' and '.join(kinds)}"
        values = per_channel(ctx, info) if bad < channels else None
        if values is not None:
            wrong = ~np.isfinite(values)
            message += f" ({channel_list(wrong)})"
            more["at"] = np.flatnonzero(wrong)[:32].tolist()
        return self.finding(
            info,
            message + _effect(ctx, info, numbers, part),
            channels=channels,
            nan=numbers.nan,
            inf=inf,
            **more,
        )


def _effect(ctx: Context, info: TensorInfo, numbers: TensorStats, part: str) -> str:
    """Tell what such channels come out as, and what gives the cause away."""
    if part == "mean":
        return ": the layer's output is not finite"
    if numbers.nan or numbers.neginf:
        layer = ctx.layers.of(info.name)
        mean = layer.parts.get("mean") if layer is not None else None
        if mean is not None and not ctx.stats[mean.name].nonfinite:
            return " beside a finite mean: the output is NaN"
        return ": the output is NaN"
    if info.dtype == "float16":
        return ", which in float16 begins at 65520: such a channel is constant"
    return ": such a channel is constant, without a NaN"
