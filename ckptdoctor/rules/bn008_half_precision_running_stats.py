"""BN008: running statistics in a type too narrow for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .batchnorm import norms_of
from .precision import NARROW, Narrow, target


@rule
class HalfPrecisionRunningStats(Rule):
    """The running statistics of a BatchNorm are stored in 16 or 8 bits, or would not survive it.

    What it means
    -------------
    float16 ends at 65504 and begins at 6e-8: a larger variance becomes infinite and its channel
    constant, a smaller one becomes zero.  bfloat16 has the range, but only 8 bits of precision.
    Frameworks keep statistics in float32 in mixed precision, because an update of a hundredth of
    a value that has 8 or 11 bits is rounded away: training on from such a file freezes them.

    How it happens
    --------------
    ``model.half()`` or a cast of the whole state dict, where a cast of the weights was meant;
    Keras models under the policy ``float16``.

    When to ignore it
    -----------------
    When the file is for inference only and its statistics are well within the range: then it is a
    note.
    """

    code = "BN008"
    name = "half-precision-running-stats"
    severity = Severity.NOTE
    since = "0.1"
    replaces = ("PR001",)
    references = (
        "Micikevicius et al. 2018, arXiv:1710.03740: mixed precision training",
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html",
        "https://keras.io/api/mixed_precision/: BatchNormalization stays in float32",
    )

    near: float = threshold(
        0.25,
        unit="of the largest value of the type",
        why="within a factor of 4 of it a little more training overflows",
        healthy="0 of 3 layers of healthy files stored in float16",
    )

    healthy = (
        Case("float32", {"bn.running_mean": [0.0], "bn.running_var": [1e6]}),
        Case("a cast that they survive", {"bn.running_mean": [0.0], "bn.running_var": [6e4]},
             cast_to="float16"),
        Case("a type with the range of float32", {"bn.running_mean": [0.0],
             "bn.running_var": [1e30]}, cast_to="bfloat16"),
    )  # fmt: skip
    sick = (
        Case("stored in float16", {"bn.running_mean": np.zeros(2, "f2"),
             "bn.running_var": np.ones(2, "f2")}),
        Case("stored near the end of float16", {"bn.running_mean": np.zeros(2, "f2"),
             "bn.running_var": np.array([1, 5e4], "f2")}, severity=Severity.WARNING),
        Case("raw inputs cast to float16", {"bn.running_mean": [0.0],
             "bn.running_var": [4.6e8]}, cast_to="float16", severity=Severity.ERROR),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        yield from self._stored(ctx)
        kind = target(ctx.cast_to)
        if kind is None:
            return
        norms = norms_of(ctx)
        for part in ("mean", "var"):
            with np.errstate(all="ignore"):
                beyond = kind.overflows(norms.peak(part))
            for norm in norms.where(beyond):
                yield self._cast(ctx, norm.layer, part, kind)

    def _stored(self, ctx: Context) -> Iterator[Finding]:
        """One note for all layers of a type, a warning for each that is near its end."""
        groups: dict[tuple[str, str], list[TensorInfo]] = {}
        for layer in ctx.layers.batchnorms:
            info = layer.parts.get("var")
            if info is None or info.encoding != "plain" or info.dtype not in NARROW:
                continue
            kind = NARROW[info.dtype]
            largest = _largest(ctx, info)
            if largest > self.near * kind.largest:
                message = f"variances up to {largest:.4g} in {info.dtype}, which is near its end"
                yield self._told(info, message, Severity.WARNING, kind, largest, 1)
            else:
                groups.setdefault((info.role, info.dtype), []).append(info)
        for (_, dtype), infos in groups.items():
            largest = max(_largest(ctx, info) for info in infos)
            others = (
                f"this and {len(infos) - 1:,} more layers have" if infos[1:] else "this layer has"
            )
            message = f"{others} variances in {dtype}, the largest is {largest:.4g}"
            yield self._told(infos[0], message, Severity.NOTE, NARROW[dtype], largest, len(infos))

    def _told(
        self,
        info: TensorInfo,
        message: str,
        severity: Severity,
        kind: Narrow,
        largest: float,
        layers: int,
    ) -> Finding:
        return self.finding(
            info,
            message,
            severity=severity,
            limit=f"{kind.name} ends at {kind.largest:.6g}",
            channels=info.size,
            layers=layers,
            largest=largest,
        )

    def _cast(self, ctx: Context, layer: Layer, part: str, kind: Narrow) -> Finding:
        info = layer.parts[part]
        largest = _largest(ctx, info)
        name = "variance" if part == "var" else "mean"
        return self.finding(
            info,
            f"a running {name} of {largest:.4g} becomes {kind.beyond} in {kind.name}",
            severity=Severity.ERROR,
            limit=f"{kind.name} ends at {kind.largest:.6g}",
            channels=info.size,
            largest=largest,
            cast_to=kind.name,
            keep_float32=True,
        )


def _largest(ctx: Context, info: TensorInfo) -> float:
    """Greatest magnitude; 0 where nothing is finite."""
    numbers = ctx.stats[info.name]
    ends = [end for end in (numbers.minimum, numbers.maximum) if end is not None]
    return max(map(abs, ends), default=0.0)
