"""WT011: a gain, a variance or a quantisation scale that destroys what it scales."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..measure.stats import TensorStats
from ..tensors import Quantisation, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .kernels import trained


@rule
class ZeroOrNonfiniteScale(Rule):
    """A number that multiplies (or divides) a whole channel is zero, negative, NaN or infinite.

    What it means
    -------------
    A LayerNorm's gain, the variance of an input normalisation, the scale of a quantised tensor:
    each stands for a channel or a layer.  NaN and Inf spread to all of it.  A gain or scale of zero
    leaves the constant offset; a variance of zero multiplies its feature by ten million, a
    negative one gives NaN.

    How it happens
    --------------
    Overflow in half precision; a scale computed from an all-zero or non-finite block; a
    Normalization layer adapted to one sample, to a constant column or to data with NaN.

    When to ignore it
    -----------------
    Gains start at zero where a residual branch is to start switched off, and in norms that store
    the difference to one (Gemma, Megatron's ``layernorm_1p``): notes and warnings.  Single scales
    of zero belong to groups of zeros.
    """

    code = "WT011"
    name = "zero-or-nonfinite-scale"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Ba, Kiros & Hinton 2016, arXiv:1607.06450: layer normalization",
        "https://keras.io/api/layers/preprocessing_layers/numerical/normalization/",
        "Jacob et al. 2017, arXiv:1712.05877: real value = scale * (integer - zero point)",
    )
    replaces = ("NF001", "NF002")
    healthy = (
        Case("ordinary gains", {"ln.weight": [1.0, 0.0, 0.5], "ln.bias": [0.0, 0.0, 0.1]}),
        Case("ordinary variances", {"normalization/mean": [1.0, 2.0], "normalization/variance": [4.0, 1e-9]}),
        Case("NaN in a kernel, another rule's matter", {"fc.weight": [[float("nan")]]}),
        Case("slopes of a PReLU", {"act.weight": [0.0]}),
        Case("scales of a quantised kernel",
             {"q.weight": np.ones((2, 2), np.int8), "q.weight_scale": [0.5, 0.25]}),
    )  # fmt: skip
    sick = (
        Case("a gain that is NaN", {"ln_f.weight": [1.0, float("nan")], "ln_f.bias": [0.0, 0.0]}),
        Case("a gain lost, its offset kept",
             {"ln_1.weight": [1.0, 0.9], "ln_1.bias": [0.1, 0.0],
              "ln_2.weight": [0.0, 0.0], "ln_2.bias": [0.1, 0.2]}),
        Case("a gain of zero, and no offset",
             {"ln_1.weight": [1.0, 0.9], "ln_2.weight": [0.0, 0.0]}, severity=Severity.WARNING),
        Case("the only gain, its offset trained",
             {"fc.weight": [[1.0, 2.0]], "ln_f.weight": [0.0, 0.0], "ln_f.bias": [0.1, 0.2]},
             severity=Severity.WARNING),
        Case("gains that are stored as differences to one",
             {"input_norm.weight": [0.0, 0.0], "post_norm.weight": [0.0, 0.1]}, severity=Severity.NOTE),
        Case("a negative variance", {"normalization/mean": [0.0, 0.0], "normalization/variance": [1.0, -1.0]}),
        Case("a constant column",
             {"normalization/mean": [0.0, 0.0], "normalization/variance": [1.0, 0.0]},
             severity=Severity.WARNING),
        Case("a quantisation scale of infinity",
             {"q.weight": np.ones((2, 2), np.int8), "q.weight_scale": [0.5, float("inf")]}),
        Case("a group of zeros",
             {"q.weight": np.ones((2, 2), np.int8), "q.weight_scale": [0.5, 0.0]},
             severity=Severity.NOTE),
    )  # fmt: skip

    centred: float = threshold(
        0.2,
        unit="median of the means of the file's other gains",
        why="gains of trained norms lie around one, differences to one around zero",
        healthy="0 gains are zero throughout in the norms of 135 files",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        stats = ctx.stats
        sick = (stats.nan + stats.posinf + stats.neginf > 0) | (
            (stats.minimum == 0) & (stats.maximum == 0)
        )
        for info, seen in ctx.where(sick):
            layer = ctx.layers.of(info.name)
            if layer is None or layer.kind != "norm" or layer.parts.get("gamma") is not info:
                continue
            if _is_norm(layer):
                yield from self._nonfinite(info, seen, "gain") or self._gain(ctx, layer, info)
        for layer in ctx.layers.of_kind("normalization", "quantised"):
            for part, info in layer.parts.items():
                seen = stats[info.name]
                if part == "var":
                    yield from self._nonfinite(info, seen, "variance") or self._variance(info, seen)
                elif part in ("scale", "input_scale"):
                    yield from self._nonfinite(info, seen, "scale") or self._scale(info, seen, part)
        yield from self._tensor_scales(ctx)

    def _nonfinite(self, info: TensorInfo, stats: TensorStats, what: str) -> list[Finding]:
        if not stats.nonfinite:
            return []
        kinds = ((stats.nan, "NaN"), (stats.posinf, "+Inf"), (stats.neginf, "-Inf"))
        told = " and ".join(f"{number:,} {kind}" for number, kind in kinds if number)
        return [
            self.finding(
                info,
                f"{told} among the {stats.count:,} values of the {what}",
                elements=stats.count,
                nan=stats.nan,
                inf=stats.posinf + stats.neginf,
            )
        ]

    def _gain(self, ctx: Context, layer: Layer, info: TensorInfo) -> list[Finding]:
        stats = ctx.stats[info.name]
        beta = layer.parts.get("beta")
        offset = ctx.stats[beta.name] if beta is not None else None
        lives = offset is not None and offset.zeros < offset.count
        usual = self._usual(ctx, info)
        if usual is None and lives:  # a trained norm, and no other to say what its gains are
            severity, why = (
                Severity.WARNING,
                "the output is the offset, unless one is added to them",
            )
        elif trained(ctx) is False or usual is None or usual <= self.centred:
            severity, why = Severity.NOTE, "a beginning, or a difference to one"
        elif lives:
            severity, why = Severity.ERROR, "the output is the offset, whatever the input"
        else:
            severity, why = Severity.WARNING, "the layer passes on nothing"
        message = f"all {stats.count:,} gains are zero: {why}"
        return [
            self.finding(info, message, severity=severity, elements=stats.count, zeros=stats.zeros)
        ]

    def _usual(self, ctx: Context, info: TensorInfo) -> float | None:
        """Median gain of the file's other norms, None where no other has any."""
        means = [
            abs(stats.mean)
            for layer in ctx.layers.of_kind("norm")
            if _is_norm(layer) and (other := layer.parts["gamma"]).name != info.name
            and (stats := ctx.stats[other.name]).mean is not None and stats.zeros < stats.count
        ]  # fmt: skip
        return float(np.median(means)) if means else None

    def _variance(self, info: TensorInfo, stats: TensorStats) -> list[Finding]:
        if stats.minimum is None or stats.minimum > 0:
            return []
        if stats.minimum < 0:
            message = (
                f"the least of {stats.count:,} variances is {stats.minimum:.3g}: its root is NaN"
            )
            return [self.finding(info, message, elements=stats.count, minimum=stats.minimum)]
        every = stats.zeros == stats.count
        message = (
            f"{stats.zeros:,} of {stats.count:,} variances are zero: any change is scaled by 1e7"
        )
        severity = Severity.ERROR if every else Severity.WARNING
        return [
            self.finding(info, message, severity=severity, elements=stats.count, zeros=stats.zeros)
        ]

    def _scale(self, info: TensorInfo, stats: TensorStats, part: str) -> list[Finding]:
        if not stats.zeros:
            return []
        every = stats.zeros == stats.count
        divides = part == "input_scale"
        why = "the input is divided by it" if divides else "what it scales is zero"
        message = f"{stats.zeros:,} of {stats.count:,} scales are zero: {why}"
        severity = Severity.ERROR if every or divides else Severity.NOTE
        return [
            self.finding(info, message, severity=severity, elements=stats.count, zeros=stats.zeros)
        ]

    def _tensor_scales(self, ctx: Context) -> Iterator[Finding]:
        """Scales that a quantised tensor carries with it."""
        for info in ctx.table.infos.values():
            scheme: Quantisation | None = info.quantisation
            if scheme is None or isinstance(scheme.scale, str):
                continue
            if not math.isfinite(scheme.scale) or scheme.scale == 0:
                message = f"its quantisation scale is {scheme.scale:g}"
                yield self.finding(info, message, scale=scheme.scale)


def _is_norm(layer: Layer) -> bool:
    """Whether it is a normalisation, not another layer with a vector called weight."""
    named = re.search(r"norm|(^|[._/])(ln|rms|gn)", layer.name, re.IGNORECASE)
    return "beta" in layer.parts or bool(named)
