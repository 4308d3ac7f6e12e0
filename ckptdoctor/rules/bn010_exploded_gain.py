"""BN010: a BatchNorm that amplifies beyond measure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, channel_list, norms_of, short


@rule
class ExplodedGain(Rule):
    """A BatchNorm amplifies its channels far beyond what trained ones do.

    What it means
    -------------
    A BatchNorm multiplies what moves in a channel by ``|gamma| / sqrt(var + epsilon)``, and what
    comes out has about the size of gamma.  A gain that is thousands of times larger than others
    drowns all other channels, or leaves the range of float16 behind the next kernel.

    How it happens
    --------------
    Divergence in the update of the gains (a learning rate too high, no weight decay), damaged
    bytes, a conversion that took one vector for another, a gain folded in twice.

    When to ignore it
    -----------------
    When validation, with the stored statistics, is as good as it should be: a gain above a
    thousand over a tiny variance is on record for a healthy InceptionV3.
    """

    code = "BN010"
    name = "exploded-gain"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2",
        "Szegedy et al. 2016, arXiv:1512.00567: Inception v3",
    )

    learned: float = threshold(
        50,
        unit="magnitude of gamma",
        why="what comes out of a channel is as large; it starts at 1",
        healthy="0 of 2,185 layers of 129 files; the largest 8.7",
    )
    certain: float = threshold(
        1e4,
        unit="magnitude of gamma",
        why="an error: a thousand times what training leads to",
        healthy="0 of 2,185 layers of 129 files; the largest 8.7",
    )
    effective: float = threshold(
        3000,
        unit="|gamma| / sqrt(var + epsilon)",
        why="with a variance above epsilon; below, BN004 tells",
        healthy="0 of 2,185 layers of 129 files; the largest 532, 1,000 is on record",
    )

    healthy = (
        Case("ordinary gains", {"bn.weight": [8.7, -0.1], "bn.bias": [0.0] * 2,
             "bn.running_mean": [0.0] * 2, "bn.running_var": [3e-4, 1.0]}),
        Case("a dead channel", {"bn.weight": [3.0, 1.0], "bn.bias": [0.0] * 2,
             "bn.running_mean": [0.0] * 2, "bn.running_var": [5.6e-45, 1.0]}),
        Case("a LayerNorm", {"ln.weight": [1e6, 1.0], "ln.bias": [0.0] * 2}),
    )  # fmt: skip
    sick = (
        Case("one gain far off", {"bn.weight": [100.0, 1.0], "bn.bias": [0.0] * 2,
             "bn.running_mean": [0.0] * 2, "bn.running_var": [1.0] * 2}),
        Case("diverged gains", {"bn/gamma": [-1e6, 2e6], "bn/beta": [0.0] * 2,
             "bn/moving_mean": [0.0] * 2, "bn/moving_variance": [1.0] * 2},
             severity=Severity.ERROR),
        Case("a large gain over a small variance", {"bn.weight": [30.0, 1.0], "bn.bias": [0.0] * 2,
             "bn.running_mean": [0.0] * 2, "bn.running_var": [2e-5, 1.0]}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        peak = norms.peak("gamma")
        with np.errstate(all="ignore"):
            low = np.maximum(norms.column("var", "minimum"), norms.epsilons())
            suspect = peak > np.fmin(self.learned, self.effective * np.sqrt(low))
        for norm in norms.where(suspect & norms.finite("gamma")):
            gamma = norm.gamma
            if gamma is None:
                continue
            finding = self._judged(norm, np.abs(gamma))
            if finding is not None:
                yield finding

    def _judged(self, norm: Norm, gamma: Array) -> Finding | None:
        gains, var = norm.gains, norm.var
        effective = np.zeros(gamma.size)
        if gains is not None and var is not None and gains.size == gamma.size:
            with np.errstate(all="ignore"):
                effective = np.where(var > norm.epsilon, gains, 0)
        bad = (gamma > self.learned) | (effective > self.effective)
        if not bad.any():
            return None
        largest, gain = float(gamma.max()), float(effective.max())
        message = f"{int(bad.sum()):,} of {gamma.size:,} gains ({channel_list(bad)}) reach "
        if gain > self.effective:
            message += f"{short(largest)} and amplify up to {short(gain)} times"
        else:
            message += f"{short(largest)}, where trained ones are about 1"
        return self.finding(
            norm.layer.parts["gamma"],
            message,
            severity=Severity.ERROR if largest > self.certain else Severity.WARNING,
            limit=f"over {self.learned:g}, or {self.effective:g} divided by the deviation",
            channels=gamma.size,
            exploded=int(bad.sum()),
            largest=largest,
            gain=gain,
        )
