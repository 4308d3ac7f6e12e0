"""BN005: gains of almost zero in a BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, norms_of


@rule
class DeadGammas(Rule):
    """Part of a BatchNorm's gains is almost zero.

    What it means
    -------------
    Such a channel is the constant ``beta`` whatever its input: the kernel that computes it and the
    weights that read it can be removed without a change of the output.  Nothing is wrong with the
    model, but it is larger than it needs to be.  When all gains of a trained layer are exactly
    zero, its branch is switched off.

    How it happens
    --------------
    Sparsity training (an L1 penalty on the gains), weight decay on the gains of channels that are
    of no use, dead units.  All exactly zero: the zero initialisation of residual branches, before
    training; in a trained layer a failed load or a pruned branch.

    When to ignore it
    -----------------
    Always, unless the model was meant to use these channels: shipped compact networks have them.
    """

    code = "BN005"
    name = "dead-gammas"
    severity = Severity.NOTE
    since = "0.1"
    references = (
        "Liu et al. 2017, arXiv:1708.06519: network slimming by L1 on the gains",
        "Goyal et al. 2017, arXiv:1706.02677, section 5.1: zero gains at the end of residual blocks",
        "Mehta et al. 2019, arXiv:1811.12495: implicit filter-level sparsity",
    )

    dead: float = threshold(
        1e-2,
        unit="magnitude of a gain",
        why="a hundredth of where gains start; sparsity training leaves them between 1e-2 and 1e-4",
        healthy="131 of 2,185 layers in 15 of 129 files have more than a tenth below it: a note",
    )
    share: float = threshold(
        0.1,
        unit="share of the channels",
        why="less is not worth pruning",
        healthy="24 of 1,624 layers in 7 of 91 files: a note",
    )

    healthy = (
        Case("gains of both signs", {"bn.weight": [1.0, -1.0, 0.5, 0.02], "bn.bias": [0.0] * 4,
             "bn.running_mean": [0.0] * 4, "bn.running_var": [0.9] * 4}),
        Case("one of eleven", {"bn.weight": [0.0] + [1.0] * 10, "bn.bias": [0.0] * 11,
             "bn.running_mean": [0.0] * 11, "bn.running_var": [0.9] * 11}),
    )  # fmt: skip
    sick = (
        Case("half the channels", {"bn.weight": [1e-3, -5e-3, 1.0, 0.5], "bn.bias": [0.0] * 4,
             "bn.running_mean": [0.0] * 4, "bn.running_var": [0.9] * 4}),
        Case("a residual branch before training", {"bn2.weight": [0.0] * 2, "bn2.bias": [0.0] * 2,
             "bn2.running_mean": [0.0] * 2, "bn2.running_var": [1.0] * 2}),
        Case("a trained layer switched off", {"bn2.weight": [0.0] * 2, "bn2.bias": [0.1] * 2,
             "bn2.running_mean": [0.3, 0.2], "bn2.running_var": [0.7, 0.8]}, severity=Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        low, high = norms.column("gamma", "minimum"), norms.column("gamma", "maximum")
        nearest = np.maximum(low, -high)  # no gain is closer to zero; negative with both signs
        for norm in norms.where((nearest < self.dead) & norms.finite("gamma")):
            gamma = norm.gamma
            if gamma is None:
                continue
            dead = np.abs(gamma) < self.dead
            if not gamma.any():
                yield self._off(norm, gamma)
            elif dead.mean() > self.share:
                yield self._some(norm, gamma, dead)

    def _off(self, norm: Norm, gamma: Array) -> Finding:
        trained = norm.var is not None and bool((norm.var != 1).any())
        told = "although its statistics are trained" if trained else "as before training"
        return self.finding(
            norm.layer.parts["gamma"],
            f"all {gamma.size:,} gains are exactly zero, {told}: the layer's output is constant",
            severity=Severity.WARNING if trained else Severity.NOTE,
            channels=gamma.size,
            dead=gamma.size,
        )

    def _some(self, norm: Norm, gamma: Array, dead: Array) -> Finding:
        count = int(dead.sum())
        zeros = int((gamma == 0).sum())
        exact = f", {zeros:,} exactly zero" if zeros else ""
        return self.finding(
            norm.layer.parts["gamma"],
            f"{count:,} of {gamma.size:,} gains ({dead.mean():.0%}) are below {self.dead:g}{exact}: "
            "their channels can be pruned",
            limit=f"over {self.share:.0%} below {self.dead:g}",
            channels=gamma.size,
            dead=count,
            share=float(dead.mean()),
        )
