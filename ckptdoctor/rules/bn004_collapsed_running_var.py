"""BN004: a running variance of almost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, channel_list, norms_of, short

_EYE = np.eye(4, dtype=np.float32)[:, :, None, None]


def _net(mean: Any, var: Any, **more: Any) -> dict[str, Any]:
    """Two convolutions with squared norms of 1, the second one's BatchNorm as given."""
    size = len(var)
    return {
        "conv1.weight": _EYE, "bn1.running_mean": np.zeros(size), "bn1.running_var": np.ones(size),
        "conv2.weight": _EYE, "bn2.running_mean": mean, "bn2.running_var": var, **more,
    }  # fmt: skip


@rule
class CollapsedRunningVar(Rule):
    """The running variance of a BatchNorm is almost zero.

    What it means
    -------------
    The layer divides by the square root of it, and only epsilon is left: whatever moves in the
    channel is amplified by ``1 / sqrt(epsilon)``, 316 times in torch.  Where the whole layer has
    collapsed, its output is noise of that size, and the model's answer is garbage without a NaN.
    A single such channel is mostly harmless: it was constant in training and still is.

    Collapsed is a variance far below what the kernel that feeds the layer makes of any input, or
    one that does not fit the mean beside it: means lie within a few deviations of zero.

    How it happens
    --------------
    Batches without any variation went through the layer in training mode: zeros (a warm-up, a
    loader that failed, a dummy forward pass), one constant image, or one value per channel, whose
    biased variance (Keras, JAX) is exactly zero.  For a single channel: an input column that never
    changed, or a dead unit before it.

    What the fix does
    -----------------
    It replaces the statistics of the collapsed channels.  The gains and weights are intact.

    When to ignore it
    -----------------
    Notes: as long as the channel stays constant when the model is served (an alpha channel that
    is opaque everywhere is, until it is not).  Behind a branch that is dead as a whole.
    """

    code = "BN004"
    name = "collapsed-running-var"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://keras.io/api/layers/normalization_layers/batch_normalization/",
    )

    starved: float = threshold(
        1e-4,
        unit="times the squared norm of the kernel",
        why="the kernel makes more than that of any input that is normalised",
        healthy="0 of 1,177 interior layers of 57 files have no channel above; the least 3.3e-3",
    )
    deviations: float = threshold(
        30,
        unit="deviations (epsilon included) between the mean and zero",
        why="a mean so far out belongs to another variance",
        healthy="0 of 1,672 layers of 99 files; the largest of all channels 12",
    )
    constant: float = threshold(
        1e-3,
        unit="times epsilon",
        why="epsilon alone sets the gain, the channel was constant in training",
        healthy="92 of 1,672 layers of 99 files have such channels: notes, see `gain`",
    )
    first: float = threshold(
        3e-5,
        unit="times the squared norm of the kernel",
        why="the same where the scale of the model's input is not known, together with `inert`",
        healthy="0 of 100 first layers of 96 files; the least 2.2e-4 (EEG)",
    )
    inert: float = threshold(
        1.0,
        unit="times epsilon",
        why="a first BatchNorm below it in every channel would normalise nothing",
        healthy="1 of 100 first layers of 96 files (EEG), which is above `first`",
    )
    most: float = threshold(
        0.99,
        unit="share of the channels that can move",
        why="the layer as a whole has collapsed: an error",
        healthy="0 of 1,672 layers of 99 files; the largest share of dead channels 0.86",
    )
    many: float = threshold(
        0.25,
        unit="share of the channels",
        why="with variances of exactly 0, which a moving average never reaches, or with means that "
        "do not fit, from there a warning",
        healthy="0 of 1,672 layers of 99 files: dead channels stick at the least number above 0",
    )
    gain: float = threshold(
        10,
        unit="amplification",
        why="below it, nothing happens when a constant channel begins to move",
        healthy="41 layers of 25 files get the note",
    )

    healthy = (
        Case("small but fitting", _net([0.01] * 4, [2e-3, 1e-3, 3e-2, 5e-3])),
        Case("one channel switched off by its gain",
             _net([0.0] * 4, [0.0, 1, 1, 1], **{"bn2.weight": [1e-6, 1, 1, 1], "bn2.bias": [0.0] * 4})),
        Case("a layer that its kernel silenced", {**_net([0.0] * 4, [0.0] * 4),
             "conv2.weight": _EYE * np.float32(1e-9)}),
        Case("NaN, another rule's matter", _net([0.0] * 4, [float("nan"), 0, 0, 0])),
    )  # fmt: skip
    sick = (
        Case("zeros in every batch", _net([0.0] * 4, [1e-12, 2e-12, 1e-12, 3e-12])),
        Case("one constant image in every batch", _net([0.5, 0.3, -0.2, 0.1], [1e-6] * 4)),
        Case("half the channels at zero", _net([0.0] * 4, [0.0, 0, 1, 1]), severity=Severity.WARNING),
        Case("a dead channel", _net([0.0] * 4, [5.6e-45, 1, 1, 1]), severity=Severity.NOTE),
        Case("an opaque alpha channel", {"input_bn.running_mean": [0.4, 1.0],
             "input_bn.running_var": [0.2, 8e-43], "conv.weight": np.ones((4, 2, 1, 1), "f4")},
             severity=Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        low = norms.column("var", "minimum")
        with np.errstate(all="ignore"):
            deviation = np.sqrt(np.maximum(low, 0) + norms.epsilons())
            apart = norms.peak("mean") > self.deviations * deviation
        # what a kernel with a squared norm of 1,000 could starve
        screen = (low < self.inert * norms.epsilons()) | apart
        screen |= norms.column("var", "maximum") < self.starved * 1000
        for norm in norms.where(screen & norms.finite("var")):
            finding = self._judged(norm)
            if finding is not None:
                yield finding

    def _judged(self, norm: Norm) -> Finding | None:
        var, gains = norm.var, norm.gains
        if var is None or gains is None or float(var.min()) < 0:
            return None
        dead = var < self.constant * norm.epsilon
        zero = var == 0
        starved, able = self._starved(norm, var, self.starved)
        unfit = self._unfit(norm, var)
        live = able & self._heard(norm, var)
        if norm.on_input:
            collapsed, doubtful = zero, zero
        elif norm.first:  # the scale of the model's input is not known
            inert = var < self.inert * norm.epsilon
            starved, _ = self._starved(norm, var, self.first)
            collapsed, doubtful = inert & (starved | unfit | zero), zero
        else:
            collapsed, doubtful = starved | unfit | zero, zero | unfit
        if live.mean() >= 0.5 and collapsed[live].mean() >= self.most:
            return self._whole(norm, var, gains)
        if (live & doubtful).mean() >= self.many:
            return self._some(norm, live & doubtful, gains, Severity.WARNING)
        risky = live & dead & (gains > self.gain)
        if not risky.any():
            return None
        moved = norm.on_input and bool((risky & unfit).any())
        return self._some(norm, risky, gains, Severity.WARNING if moved else Severity.NOTE)

    def _starved(self, norm: Norm, var: Array, limit: float) -> tuple[Array, Array]:
        """Channels below what their kernel makes, and those whose kernel makes anything at all."""
        squares = norm.squared_norms
        if squares is None or not np.isfinite(squares).all():
            return np.zeros(var.size, np.bool_), np.ones(var.size, np.bool_)
        able = np.broadcast_to(squares > self.gain * norm.epsilon, var.shape)
        return able & (var < limit * squares), able

    def _heard(self, norm: Norm, var: Array) -> Array:
        """Channels that gamma does not silence, even where epsilon is all that it is divided by."""
        gamma = norm.gamma
        if gamma is None or gamma.size != var.size:
            gamma = np.ones(var.size)
        with np.errstate(all="ignore"):
            return np.asarray(np.abs(gamma) > np.sqrt(norm.epsilon))

    def _unfit(self, norm: Norm, var: Array) -> Array:
        """Channels whose mean is too far from zero for their variance."""
        mean = norm.mean
        if mean is None or mean.size != var.size:
            return np.zeros(var.size, np.bool_)
        with np.errstate(all="ignore"):
            return np.asarray(np.abs(mean) > self.deviations * np.sqrt(var + norm.epsilon))

    def _whole(self, norm: Norm, var: Array, gains: Array) -> Finding:
        channels = f"all {var.size:,} channels" if var.size > 1 else "the only channel"
        message = (
            f"running variances of {var.max():.3g} or less in {channels}: what moves in them is "
            f"amplified {short(np.median(gains))} times"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            limit=f"under {self.starved:g} times the squared norm of the kernel, or the mean "
            f"{self.deviations:g} deviations from zero",
            channels=var.size,
            collapsed=var.size,
            largest=float(var.max()),
            gain=float(np.median(gains)),
        )

    def _some(self, norm: Norm, bad: Array, gains: Array, severity: Severity) -> Finding:
        var = norm.var
        constant = var is not None and bool((var[bad] < self.constant * norm.epsilon).all())
        why = "were constant in training" if constant else "have a variance that their mean denies"
        message = (
            f"{int(bad.sum()):,} of {bad.size:,} channels ({channel_list(bad)}) {why}: amplified "
            f"up to {short(gains[bad].max())} times when they move"
        )
        limit = f"variance under {self.constant:g} times epsilon {norm.epsilon:g}"
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=severity,
            limit=limit if constant else f"mean over {self.deviations:g} deviations from zero",
            channels=bad.size,
            collapsed=int(bad.sum()),
            gain=float(gains[bad].max()),
            at=np.flatnonzero(bad)[:32].tolist(),
        )
