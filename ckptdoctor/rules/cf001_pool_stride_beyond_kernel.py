"""CF001: pooling that steps over part of its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ..findings import Finding, Severity
from ..tensors import LayerConfig
from .base import Case, Context, Rule, rule

MOST = 1 << 31
"""A window or stride that large is none; a pickle can hold integers of any length."""

_POOL = "MaxPooling2D"


@rule
class PoolStrideBeyondKernel(Rule):
    """A pooling layer's stride is larger than its window.

    What it means
    -------------
    Between two windows lie inputs that no window covers: they never reach the output, and their
    gradients are always zero.  Nothing crashes, and the model trains on part of what it is given.

    How it happens
    --------------
    Kernel size and stride changed one without the other, or swapped.  Some frameworks padded such
    layers with values nobody had set; Caffe's loss became NaN by it.

    When to ignore it
    -----------------
    When the layer is there to thin out its input.  A window of one is taken to mean that (the
    shortcuts of Keras' ResNet V2 are pools of size 1 and stride 2) and is not reported.
    """

    code = "CF001"
    name = "pool-stride-beyond-kernel"
    severity = Severity.WARNING
    since = "0.1"
    references = (
        "keras.layers.MaxPooling2D: pool_size, and strides, which default to it",
        "torch.nn.MaxPool2d: kernel_size, stride and dilation",
        "keras.applications.resnet: MaxPooling2D(1, strides=stride) as a V2 shortcut",
    )
    healthy = (
        Case("windows side by side", {}, layers=(
            LayerConfig(name="pool", class_name=_POOL,
                        settings={"pool_size": (2, 2), "strides": (2, 2)}),)),
        Case("overlapping windows", {}, layers=(
            LayerConfig(name="pool", class_name="MaxPool2d",
                        settings={"kernel_size": 3, "stride": 2}),)),
        Case("a shortcut that thins out on purpose", {}, layers=(
            LayerConfig(name="pool", class_name=_POOL,
                        settings={"pool_size": (1, 1), "strides": (2, 2)}),)),
        Case("no stride stated", {}, layers=(
            LayerConfig(name="pool", class_name=_POOL, settings={"pool_size": (2, 2)}),)),
        Case("a window spread out", {}, layers=(
            LayerConfig(name="pool", class_name="MaxPool1d",
                        settings={"kernel_size": 2, "stride": 3, "dilation": 2}),)),
        Case("a convolution", {}, layers=(
            LayerConfig(name="conv", class_name="Conv2D",
                        settings={"kernel_size": (2, 2), "strides": (4, 4)}),)),
    )  # fmt: skip
    sick = (
        Case("in Keras, along one axis", {}, layers=(
            LayerConfig(name="pool", class_name=_POOL,
                        settings={"pool_size": (2, 2), "strides": (2, 3)}),)),
        Case("in torch", {}, layers=(
            LayerConfig(name="pool", class_name="AvgPool2d",
                        settings={"kernel_size": 2, "stride": 3}),)),
        Case("window stated once for both axes", {}, layers=(
            LayerConfig(name="pool", class_name="MaxPool2d",
                        settings={"kernel_size": 2, "stride": (4, 4)}),)),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for layer in ctx.table.layers.values():
            if "pool" not in layer.class_name.lower():
                continue
            window, stride = _axes(layer.settings)
            seen = [w / s for w, s in zip(window, stride, strict=True) if s > w > 1]
            if not seen:
                continue
            unseen = 1 - prod(seen)
            message = (
                f"strides of {_shown(stride)} step over a window of {_shown(window)}: "
                f"{unseen:.0%} of the input is never seen"
            )
            finding = self.number_finding(
                "", message, role="model", window=list(window), stride=list(stride),
                unseen=round(unseen, 4),
                limit="a stride larger than the window",
            )  # fmt: skip
            yield replace(finding, layer=layer.name)


def _axes(settings: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reach of the window and stride along each axis; empty where they are not stated."""
    window = _ints(settings.get("pool_size", settings.get("kernel_size")))
    stride = _ints(settings.get("strides", settings.get("stride")))
    spread = _ints(settings.get("dilation", 1))
    rank = max(len(window), len(stride), len(spread))
    if any(len(axes) not in (1, rank) for axes in (window, stride, spread)):
        return (), ()
    window, stride, spread = (
        axes * rank if len(axes) < rank else axes for axes in (window, stride, spread)
    )
    return tuple(d * (w - 1) + 1 for w, d in zip(window, spread, strict=True)), stride


def _ints(value: object) -> tuple[int, ...]:
    """Read a number or a short list of them, as either framework stores it."""
    axes = value if isinstance(value, tuple) else (value,)
    return axes if all(type(axis) is int and axis < MOST for axis in axes) else ()


def _shown(axes: tuple[int, ...]) -> str:
    return " x ".join(map(str, axes))
