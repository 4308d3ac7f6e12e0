"""BN002: negative running variance in a BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, channel_list, norms_of


@rule
class NegativeRunningVar(Rule):
    """The running variance of a BatchNorm is below zero.

    What it means
    -------------
    At inference the layer computes ``(x - mean) / sqrt(var + epsilon) * gamma + beta``.  A channel
    with ``var <= -epsilon`` comes out as NaN or infinite, whatever its input, and the next layer
    spreads it to all channels.  Between ``-epsilon`` and zero the output is finite, but the channel
    is amplified by more than ``1 / sqrt(epsilon)``: its true variance is not known.

    How it happens
    --------------
    Hardly by training: each step takes a weighted mean of the old variance, which starts at one,
    and of a batch's variance, and only a formula that subtracts large numbers (``E[x^2] - E[x]^2``
    in older Keras and in XLA) leaves less than zero.  What remains is arithmetic on checkpoints
    (``a + 2 * (b - a)``, merging with a negative coefficient, extrapolated averages), a round trip
    through a signed integer type, damaged bytes, edits by hand.

    What the fix does
    -----------------
    It replaces the statistics of the negative channels.  Clamping them to zero does not repair
    them: the channel stays amplified by ``1 / sqrt(epsilon)``.

    When to ignore it
    -----------------
    Never in a checkpoint that will be served.  A variance that is negative by a rounding error
    (``E[x^2] - E[x]^2`` in float32) is a note: it makes no difference.
    """

    code = "BN002"
    name = "negative-running-var"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2",
        "Izmailov et al. 2018, arXiv:1803.05407: averaged weights need new statistics",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://github.com/keras-team/keras/pull/18795: variances below zero by rounding",
    )

    rounding: float = threshold(
        0.01,
        unit="times epsilon",
        why="up to there the channel's gain differs by half a percent from that of variance 0",
        healthy="0 of 1,672 BatchNorms of 99 files have any negative variance",
    )
    amplified: float = threshold(
        0.75,
        unit="times epsilon",
        why="from there on the channel is amplified at least twice as much as a dead one",
        healthy="0 of 1,672 BatchNorms of 99 files have any negative variance",
    )

    healthy = (
        Case("zero is allowed", {"bn.running_mean": [0.0, 0.0], "bn.running_var": [0.0, -0.0]}),
        Case("a learned gain below zero", {"bn.weight": [-1.0], "bn.bias": [0.0],
             "bn.running_mean": [0.0], "bn.running_var": [1.0]}),
    )  # fmt: skip
    sick = (
        Case("one channel of four", {"bn.running_mean": [0] * 4, "bn.running_var": [0.9, 1, -0.2, 1]}),
        Case("beyond Keras' epsilon", {"bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1, -2e-3]}),
        Case("within Keras' epsilon", {"bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1, -1e-4]},
             severity=Severity.WARNING),
        Case("a rounding error", {"bn.running_mean": [0.0] * 2, "bn.running_var": [1, -1e-8]},
             severity=Severity.NOTE),
        Case("statistics without a mean", {"bn.running_var": [-1.0]}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        for norm in norms.where(norms.column("var", "minimum") < 0):
            if norm.var is not None:
                yield self._told(norm, norm.var)

    def _told(self, norm: Norm, var: np.ndarray) -> Finding:
        epsilon, known_from = norm.layer.epsilon
        negative = var < 0
        lowest = float(var[negative].min())
        fatal = int((var <= -epsilon).sum())
        severity = Severity.ERROR
        if fatal:
            effect = f"{fatal:,} of them can only give NaN"
        else:
            effect = f"amplified {1 / np.sqrt(lowest + epsilon):,.3g} times"
            if lowest > -self.amplified * epsilon:
                severity = Severity.WARNING
            if lowest >= -self.rounding * epsilon:
                severity, effect = Severity.NOTE, "a rounding error"
        message = (
            f"{int(negative.sum()):,} of {var.size:,} channels are below zero "
            f"({channel_list(negative)}), the lowest {lowest:.3g}: {effect}"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=severity,
            limit=f"epsilon {epsilon:g} ({known_from})",
            channels=var.size,
            negative=int(negative.sum()),
            nonfinite=fatal,
            lowest=lowest,
            epsilon=epsilon,
        )
