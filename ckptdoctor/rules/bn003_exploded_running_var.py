"""BN003: a running variance far beyond what the layer's input can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..tensors import Array
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import Norm, Norms, Reference, channel_list, norms_of, short

_EYE = np.eye(4, dtype=np.float32)[:, :, None, None]


def _net(first: Any, second: Any, kernel: Any = 1.0) -> Mapping[str, Any]:
    """Two convolutions with squared norms of 1 (times ``kernel``), each with a BatchNorm."""
    mean = np.zeros(len(second))
    return {
        "conv1.weight": _EYE, "bn1.running_mean": mean, "bn1.running_var": first,
        "conv2.weight": _EYE * np.float32(kernel), "bn2.running_mean": mean,
        "bn2.running_var": second,
    }  # fmt: skip


@rule
class ExplodedRunningVar(Rule):
    """The running variance of a BatchNorm is far beyond what its input can have.

    What it means
    -------------
    At inference the layer divides by the square root of this variance: its channels come out as
    the constant ``beta``, or close to it, and the model answers the same whatever it is asked.
    There is no NaN, and in training, which uses the statistics of the batch, nothing shows.  It is
    often the first layer of a chain whose last ones are NaN.

    No absolute limit tells: healthy variances reach 4.6e8 behind raw inputs, exploded ones begin
    at 354.  What tells is ``running_var[c] / ||W_c||^2``, with W the kernel that feeds the layer:
    the mean square of the kernel's input that this variance implies.  Behind another
    normalisation that input is of the order of one.  Where a sum feeds the layer, or nobody knows
    what does, the largest kernel that could is taken.  The first BatchNorm of a net sees the
    model's input, whose scale the file does not state: there the implied scale is named.

    How it happens
    --------------
    One or a few batches with activations far too large went through the forward pass (an
    un-normalised image among normalised ones, a step that diverged and was rolled back, float16
    close to overflow).  The loss scaler or a guard skipped the step, the statistics stayed.  With
    a momentum of 0.99 such a batch is still felt a thousand steps later.

    What the fix does
    -----------------
    It replaces the statistics of the exploded channels, never of the first BatchNorm unasked.
    Statistics recomputed from data are best.

    When to ignore it
    -----------------
    The first BatchNorm: when the model is served with inputs of the scale that is named.  Inside
    the net: when a layer before it really sums over hundreds of values (a pooling by sum, a graph
    network on nodes with very many neighbours).
    """

    code = "BN003"
    name = "exploded-running-var"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2",
        "Micikevicius et al. 2018, arXiv:1710.03740: loss scaling and skipped steps",
    )

    limit: float = threshold(
        30,
        unit="times the squared norm of the kernel",
        why="the middle channel behind a convolution: a warning, if the file's other layers "
        "are not as large (`apart`)",
        healthy="0 of 1,177 interior layers of 57 files; the largest 16, 99 % below 4.3",
    )
    features: float = threshold(
        50,
        unit="times the squared norm of the kernel",
        why="the same behind a dense layer, whose inputs may move together, and where the "
        "kernel is only guessed",
        healthy="0 of 8 layers of 6 files behind a dense layer, the largest 2.3; 0 of 385 layers "
        "of 35 files whose kernel is guessed, the largest 11",
    )
    certain: float = threshold(
        500,
        unit="times the squared norm of the kernel",
        why="an error; the least of the exploded layers have 1,359",
        healthy="0 of 1,177 interior layers of 57 files; the largest 16",
    )
    apart: float = threshold(
        40,
        unit="times what is usual in the same file",
        why="in nets that sum over neighbours or points, every layer is large",
        healthy="1 of 1,570 interior layers, which is below `limit`",
    )
    beyond: float = threshold(
        1e5,
        unit="times the squared norm of the kernel",
        why="an error even where every layer of the file is as large, and behind a dense layer, "
        "which may see a sum over many points",
        healthy="0 of 1,185 interior layers; a net that sums over 1,000 points has 3.6e4, graph "
        "networks on nodes with 50 neighbours 2e3",
    )
    carried: float = threshold(
        10,
        unit="times the largest variance before it that sums carry on",
        why="residual sums of pre-activation nets hand on the scale of the model's input",
        healthy="a pre-activation net trained on 0..255 has 1.0 in three layers, which are 1e5 "
        "times the largest kernel",
    )
    guessed: float = threshold(
        10,
        unit="times `certain`",
        why="an error takes so much more where the kernel is only guessed",
        healthy="0 of 385 layers of 35 files whose kernel is guessed; the largest 11",
    )
    spike: float = threshold(
        2000,
        unit="times the squared norm of the kernel",
        why="a single channel, whose kernel may be small by itself: a warning",
        healthy="0 of 1,570 interior layers; the largest 722",
    )
    spike_apart: float = threshold(
        3000,
        unit="times the middle variance of the layer",
        why="a single channel among ordinary ones; half-dead layers have no ordinary ones",
        healthy="12 of 1,672 layers of 99 files (half of their channels are dead), none of them "
        "above `spike`",
    )
    spike_certain: float = threshold(
        1e5,
        unit="times the squared norm of the kernel",
        why="an error for a single channel",
        healthy="0 of 1,570 interior layers; the largest 722",
    )
    pixels: float = threshold(
        100,
        unit="implied mean square of the model's input",
        why="root 10: inputs were not standardised; a note to serve them alike",
        healthy="10 of 100 first layers of 96 files (0..255 pixels): a note, nothing worse",
    )
    raw: float = threshold(
        2e5,
        unit="implied mean square of the model's input",
        why="root 450: wider than 0..255 can be",
        healthy="0 of 100 first layers of 96 files; the largest 2.2e4",
    )
    impossible: float = threshold(
        1e20,
        unit="implied mean square of the model's input",
        why="root 1e10: no kernel is fed with that on purpose",
        healthy="0 of 100 first layers of 96 files; the largest 2.2e4",
    )
    columns: float = threshold(
        65535.0**2,
        unit="variance of an input channel",
        why="a BatchNorm on the input itself is there to take raw values; beyond 16-bit integers "
        "it is worth a question",
        healthy="0 of 2 such layers, whose largest is 2.1e6; 4.6e8 is on record",
    )
    pruned: float = threshold(
        1e-3,
        unit="times the largest squared norm of the layer",
        why="pruned filters keep the variance of before",
        healthy="1,177 interior layers of 57 files: the largest middle channel is 16 with it and "
        "17 without; pruned nets need it",
    )
    start: float = threshold(
        1.0,
        unit="variance",
        why="where every running variance starts: what is not above it did not explode",
        healthy="four of ten healthy layers are above it and are looked at",
    )
    alone: float = threshold(
        1000,
        unit="times the middle of the file's other BatchNorms",
        why="where a file holds no kernels at all: a warning",
        healthy="0 of 1,566 interior layers of 95 files; the largest 127",
    )

    healthy = (
        Case("ordinary layers", _net([1.0] * 4, [0.5, 1, 2, 4])),
        Case("a large kernel", _net([1.0] * 4, [1e8] * 4, kernel=1e4)),
        Case("raw satellite bands", {"input_bn.running_mean": [9e3] * 2,
             "input_bn.running_var": [4.6e8, 1e6], "conv.weight": np.ones((4, 2, 1, 1), "f4")}),
        Case("statistics that never moved, small kernel", _net([1.0] * 4, [1.0] * 4, kernel=1e-3)),
        Case("NaN, another rule's matter", _net([1.0] * 4, [1e9, float("nan"), 1e9, 1e9])),
    )  # fmt: skip
    sick = (
        Case("one exploded layer inside", _net([1.0] * 4, [2e3, 4e3, 6e3, 8e3])),
        Case("a layer that is large", _net([1.0] * 4, [40.0, 41, 43, 44]), severity=Severity.WARNING),
        Case("one channel", _net([1.0] * 4, [1.0, 1, 1, 1e6])),
        Case("pixels of 0..255", _net([5e3] * 4, [1.0] * 4), severity=Severity.NOTE),
        Case("inputs that were not normalised", _net([5e6, 2e7, 5e6, 5e6], [1.0] * 4),
             severity=Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        norms = norms_of(ctx)
        large = norms.column("var", "maximum") > self.start
        for norm in norms.where(large & norms.finite("var")):
            finding = self._judged(ctx, norms, norm)
            if finding is not None:
                yield finding

    def _judged(self, ctx: Context, norms: Norms, norm: Norm) -> Finding | None:
        if norm.on_input:
            return self._on_input(ctx, norm)
        reference = norm.reference
        if reference is None:
            return self._alone(norms, norm)
        largest = ctx.stats[norm.layer.parts["var"].name].maximum or 0.0
        if largest <= self.limit / 3 * reference.rough:
            return None  # no channel is close, unless its kernel is far below the others
        squares, var = norm.squared_norms, norm.var
        if squares is None or var is None:
            return None
        ratio = self._ratio(var, squares, norm.epsilon)
        if norm.first:
            found = self._first(norm, var, ratio)
        else:
            found = self._inside(norms, norm, var, ratio, reference)
        if found is None or found.severity is Severity.NOTE:
            found = self._spike(norm, var, ratio, reference) or found
        return found

    def _ratio(self, var: Array, squares: Array, epsilon: float) -> Array:
        """Variance by squared norm; NaN where that says nothing.

        A kernel that was pruned, or makes less than epsilon, keeps the variance it had before; a
        variance that never rose may be the one it started with.
        """
        with np.errstate(all="ignore"):
            ratio = var / squares
            able = (squares > epsilon) & (squares > self.pruned * squares.max())
        ratio = np.where(able & np.isfinite(ratio), ratio, np.nan)
        return np.where(var > self.start, ratio, np.minimum(ratio, 1.0))

    def _inside(
        self, norms: Norms, norm: Norm, var: Array, ratio: Array, reference: Reference
    ) -> Finding | None:
        middle = _middle(ratio)
        exact = reference.exact
        limit = self.limit if exact and not reference.dense else self.features
        if middle <= limit:
            return None
        usual = norms.typical(norm.layer.role)
        if middle <= self.apart * usual and middle <= self.beyond:
            return None
        if not exact and float(var.mean()) <= self.carried * norms.carried(norm):
            return None
        certain = self.certain if exact else self.certain * self.guessed
        if reference.dense:
            certain = self.beyond
        severity = Severity.ERROR if middle > certain else Severity.WARNING
        message = (
            f"{_range(var)} in {_channels(var)}: {short(middle)} times the squared norm of "
            f"{reference.told_by}, where {short(usual)} times is usual in this file"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=severity,
            limit=f"over {limit:g} times the squared norm of the kernel",
            **_numbers(var),
            ratio=middle,
            usual=usual,
        )

    def _spike(self, norm: Norm, var: Array, ratio: Array, reference: Reference) -> Finding | None:
        """Single channels far above the layer's middle one."""
        with np.errstate(invalid="ignore"):
            wild = (ratio > self.spike) & (var > self.spike_apart * np.median(var))
        if not wild.any():
            return None
        peak = float(ratio[wild].max())
        certain = self.spike_certain if reference.exact else self.spike_certain * self.guessed
        message = (
            f"{int(wild.sum()):,} of {_channels(var)} ({channel_list(wild)}) reach "
            f"{short(var[wild].max())}, the middle one is {short(np.median(var))}: {short(peak)} "
            f"times the squared norm of {reference.told_by}"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=Severity.ERROR if peak > certain else Severity.WARNING,
            limit=f"over {self.spike:g} times the squared norm of the kernel",
            **_numbers(var),
            ratio=peak,
            at=np.flatnonzero(wild)[:32].tolist(),
        )

    def _first(self, norm: Norm, var: Array, ratio: Array) -> Finding | None:
        """No normalisation before it: the variance tells the scale of the model's input."""
        middle = _middle(ratio)
        if middle <= self.pixels:
            return None
        scale = float(np.sqrt(middle))
        severity, asks = Severity.NOTE, "as pixels of 0..255 have; serve it with the same"
        limit = self.pixels
        if middle > self.raw:
            severity, limit = Severity.WARNING, self.raw
            asks = "as 0..65535 would give, not 0..255: was it normalised in training?"
            if scale > 2 * 65535:
                asks = "more than 0..65535 would give: was it normalised in training?"
        if middle > self.impossible:
            severity, limit, asks = Severity.ERROR, self.impossible, "which no data has"
        message = (
            f"{_range(var)} in {_channels(var)} of the first BatchNorm imply a model input of about "
            f"{short(scale)} root mean square, {asks}"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=severity,
            limit=f"implied mean square of the input over {limit:g}",
            **_numbers(var),
            ratio=middle,
            implied_input=scale,
        )

    def _on_input(self, ctx: Context, norm: Norm) -> Finding | None:
        numbers = ctx.stats[norm.layer.parts["var"].name]
        if numbers.maximum is None or numbers.maximum <= self.columns or norm.var is None:
            return None
        scale = float(np.sqrt(numbers.maximum))
        message = (
            f"{_range(norm.var)} in {_channels(norm.var)}: the model's input has a deviation of "
            f"{short(scale)}, more than 0..65535 can: is it normalised where it is served?"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=Severity.WARNING,
            limit=f"over {self.columns:g}",
            **_numbers(norm.var),
            implied_input=scale,
        )

    def _alone(self, norms: Norms, norm: Norm) -> Finding | None:
        """Without a kernel in the file: compare with the other BatchNorms."""
        means = norms.column("var", "mean")
        others = np.delete(means, norm.index)
        others = others[np.isfinite(others) & (others > 0)]
        if norm.first or others.size < 2 or norm.var is None:
            return None
        usual, own = float(np.median(others)), float(means[norm.index])
        if own <= self.alone * max(usual, norm.epsilon):
            return None
        message = (
            f"{_range(norm.var)} in {_channels(norm.var)}: {short(own / usual)} times what the other "
            f"{others.size:,} BatchNorms of this file have"
        )
        return self.finding(
            norm.layer.parts["var"],
            message,
            severity=Severity.WARNING,
            limit=f"over {self.alone:g} times the other BatchNorms",
            **_numbers(norm.var),
            usual=usual,
        )


def _middle(ratio: Array) -> float:
    known = ratio[~np.isnan(ratio)]
    return float(np.median(known)) if known.size else 0.0


def _range(var: Array) -> str:
    low, high = short(var.min()), short(var.max())
    return f"variances of {low}..{high}" if low != high else f"a variance of {high}"


def _channels(var: Array) -> str:
    return f"{var.size:,} channels" if var.size > 1 else "the only channel"


def _numbers(var: Array) -> dict[str, float]:
    return {"channels": var.size, "largest": float(var.max()), "median": float(np.median(var))}
