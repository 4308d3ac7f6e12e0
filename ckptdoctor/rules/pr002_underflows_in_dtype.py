"""PR002: values too small for the type they are stored in, or are to be cast to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..tensors import Array, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .precision import (
    NARROW,
    SERVED,
    Counts,
    Narrow,
    count_low,
    half,
    is_float,
    magnitude,
    of_types,
    target,
)

MOST = 1024
"""Tensors whose values are read at most, the smallest first: 30 ms where all are suspect."""

_MOMENTS = "optimizer.state.0.exp_avg_sq"


@rule
class UnderflowsInDtype(Rule):
    """Most values of a tensor are, or become, zero or subnormal in a narrow type.

    What it means
    -------------
    Below the smallest normal value (6.1e-5 in float16, 1.2e-38 in bfloat16) digits get lost, and
    below the smallest step (6e-8 in float16, 0.002 in float8_e4m3fn) all of them: the value is 0.
    Some hardware flushes subnormal values to 0 at once.  A layer whose weights all become 0
    computes nothing but its bias; a running variance that becomes 0 multiplies its channel by
    1/sqrt(epsilon); a second moment that is 0 makes the next step as large as its epsilon lets it.

    Of stored values only the subnormal ones tell: a zero may always have been one.  In 8-bit
    types subnormal values are in normal use, so there only values of at most two steps count.

    How it happens
    --------------
    ``half()`` of a model with tiny weights (a layer that vanished, strong weight decay, weights
    scaled for float32); training in pure float16, whose Adam second moments (squares of small
    gradients) are mostly below 6e-8; a cast to float8 without a scale per tensor.

    When to ignore it
    -----------------
    In adapters (LoRA) that have hardly been trained, and in gains, shifts and biases: stored, they
    are notes; a cast of them is not reported.  Nor are values too small beside much larger ones.
    """

    share: float = threshold(
        0.5,
        unit="share of the nonzero values",
        why="half of the values: weights of a normal distribution get there in float16 with a "
        "standard deviation of 9e-5 and less, in float8_e4m3fn of 0.006",
        healthy="0 of 159 tensors in 16 bits and 26 in float8 of the healthy trial and sample "
        "files; their largest share is 0.03",
    )
    reach: float = threshold(
        16.0,
        unit="times the smallest value that keeps its digits",
        why="beside a larger root mean square, half of the values hold less than 0.2 % of its "
        "square, and what becomes of them does not matter; nor are they read again",
        healthy="cast to float16, 2 layers of 1 of 155 healthy trial files have most values too "
        "small (decayed to 1e-40) beside a root mean square above it",
    )
    gain: float = threshold(
        0.25,
        unit="relative change of sqrt(variance + epsilon)",
        why="float8_e4m3fn's own rounding changes it by 0.03 at most; a quarter scales the "
        "channel visibly",
        healthy="0 of 516 BatchNorm layers of 73 healthy files cast to float16, bfloat16 or "
        "float8_e5m2; 13 of them cast to float8_e4m3fn, which does change them so",
    )

    code = "PR002"
    name = "underflows-in-dtype"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "IEEE 754-2019, section 3.4: subnormal numbers",
        "Micikevicius et al. 2018, arXiv:1710.03740: values that become zeros in half precision",
        "Micikevicius et al. 2022, arXiv:2209.05433: FP8 formats for deep learning",
    )
    healthy = (
        Case("small weights in float32", {"fc.weight": [[1e-6, -2e-6]]}),
        Case("half precision", {"fc.weight": half([[0.02, -1e-5], [0.01, 0.0]])}),
        Case("pruned weights", {"fc.weight": half([[0.02, 0.0], [0.0, 0.0]])}),
        Case("nothing but zeros, another rule's matter", {"fc.weight": half([[0.0, 0.0]])}),
        Case("a cast that keeps the exponents", {"fc.weight": [[1e-6, 2e-6]]}, cast_to="bfloat16"),
        Case("a variance that epsilon hides", {"bn.running_var": [1e-8, 1.0, 1.0]},
             cast_to="float16"),
    )  # fmt: skip
    sick = (
        Case("weights of 1e-6 stored in float16", {"fc.weight": half([[1e-6, -2e-6], [3e-6, 0.0]])}),
        Case("Adam's second moments in float16", {_MOMENTS: half([[1e-7, 3e-7, 0.0]])},
             {_MOMENTS: "optimizer"}),
        Case("a cast that leaves few digits", {"fc.weight": [[1e-6, -2e-6]]}, cast_to="float16"),
        Case("a layer that the cast erases", {"fc.weight": [[1e-9, -2e-9]]}, {}, Severity.ERROR,
             cast_to="float16"),
        Case("a variance that becomes 0", {"bn.running_var": [5e-4, 1.0, 1.0]},
             cast_to="float8_e4m3fn"),
        Case("gains of a pruned layer", {"bn.weight": half([1e-6, 2e-6]),
             "bn.running_var": half([1.0, 1.0])}, {}, Severity.NOTE),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        kind = target(ctx.cast_to)
        seen: set[str] = set()
        if kind is not None:
            for finding in self._cast(ctx, kind):
                seen.add(finding.tensor)
                yield finding
        for finding in self._stored(ctx):
            if finding.tensor not in seen:
                seen.add(finding.tensor)
                yield finding

    def _stored(self, ctx: Context) -> Iterator[Finding]:
        low = {kind.name: kind.low for kind in NARROW.values()}
        for info, _ in ctx.where(self._small(ctx, low)):
            kind = NARROW[info.dtype]
            if info.role not in (*SERVED, "optimizer") or not is_float(info):
                continue
            counts = count_low(ctx, info, kind)
            if counts.low >= self.share * counts.nonzero > 0:
                carries = info.role == "optimizer" or _carries(ctx, info)
                severity = Severity.WARNING if carries else Severity.NOTE
                yield self._told(info, kind, counts, severity, "are")
        # one channel's variance is not small beside another's
        for layer in ctx.layers.batchnorms:
            variance = layer.parts.get("var")
            if variance is None or variance.dtype not in NARROW or not is_float(variance):
                continue
            kind = NARROW[variance.dtype]
            counts = count_low(ctx, variance, kind)
            if counts.low >= self.share * counts.nonzero > 0:
                yield self._told(variance, kind, counts, Severity.NOTE, "are")

    def _small(self, ctx: Context, low: Mapping[str, float]) -> Array:
        """Mask of the tensors whose values are near ``low`` of their dtype, or below it."""
        stats = ctx.stats
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.hypot(stats.mean, stats.std)
            small: Array = (size > 0) & (size < self.reach * of_types(ctx, low))
        hits = np.flatnonzero(small)
        small[hits[np.argsort(size[hits], kind="stable")[MOST:]]] = False
        return small

    def _cast(self, ctx: Context, kind: Narrow) -> Iterator[Finding]:
        wider = dict.fromkeys(_wider(kind), kind.low)
        for layer in ctx.layers.batchnorms:
            if "var" in layer.parts and layer.parts["var"].dtype in wider:
                yield from self._variance(ctx, layer, kind)
        for info, stats in ctx.where(self._small(ctx, wider)):
            if info.role not in SERVED or not is_float(info) or not _carries(ctx, info):
                continue
            counts = count_low(ctx, info, kind)
            if counts.low >= self.share * counts.nonzero > 0:
                erased = magnitude(stats) <= kind.step / 2
                severity = Severity.ERROR if erased else Severity.WARNING
                yield self._told(info, kind, counts, severity, "become")

    def _told(
        self, info: TensorInfo, kind: Narrow, counts: Counts, severity: Severity, verb: str
    ) -> Finding:
        zeros = counts.vanishing / counts.nonzero
        what = "subnormal" if kind.low == kind.tiny else "one or two steps from 0"
        message = (
            f"{counts.low / counts.nonzero:.0%} of {counts.nonzero:,} nonzero values {verb} {what}"
            f"{f' ({zeros:.0%} become 0)' if zeros else ''} in {kind.name}"
        )
        more: dict[str, Any] = {"cast_to": kind.name, "keep_float32": True}
        return self.finding(
            info,
            message,
            severity=severity,
            limit=f"at least {self.share:.0%} of the nonzero values below {kind.low:.2g}",
            nonzero=counts.nonzero,
            low=counts.low,
            vanishing=counts.vanishing,
            **(more if verb == "become" else {}),
        )

    def _variance(self, ctx: Context, layer: Layer, kind: Narrow) -> Iterator[Finding]:
        """Judge a variance, which matters as far as epsilon does not hide it."""
        info = layer.parts["var"]
        smallest = ctx.stats[info.name].minimum
        if smallest is None or smallest > kind.step / 2 or info.encoding != "plain":
            return
        epsilon, known = layer.epsilon
        values = ctx.read(info).astype(np.float64)
        values = values[np.isfinite(values) & (values > 0) & (values <= kind.step / 2)]
        worst = float(values.max()) if values.size else 0.0
        change = np.sqrt((worst + epsilon) / epsilon) - 1 if epsilon > 0 else float(worst > 0)
        if change <= self.gain:
            return
        message = (
            f"{values.size:,} of {info.size:,} variances become 0 in {kind.name}; the gain of the "
            f"largest of them, {worst:.3g}, grows by {change:.0%} at epsilon {epsilon:g} ({known})"
        )
        yield self.finding(
            info,
            message,
            limit=f"a change of more than {self.gain:.0%}",
            vanishing=values.size,
            largest=worst,
            change=float(change),
            epsilon=epsilon,
            cast_to=kind.name,
            keep_float32=True,
        )


def _wider(kind: Narrow) -> list[str]:
    """Types whose values a cast to ``kind`` can make too small."""
    return [
        "float64",
        "float32",
        *(row.name for row in NARROW.values() if row.step < kind.step),
    ]


def _carries(ctx: Context, info: TensorInfo) -> bool:
    """Whether it matters that values are tiny.

    It does not in shifts and gains, which pruning leaves near 0, nor in an adapter that has
    hardly been trained.
    """
    if len(info.shape) < 2 or ctx.layers.part_of(info.name) in ("bias", "beta", "gamma", "mean"):
        return False
    layer = ctx.layers.of(info.name)
    return layer is None or layer.kind != "lora"
