"""WT008: a layer that still is what its initialiser made of it, in a model that was trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of, trained

_JUDGED = frozenset(("conv", "dense", "recurrent", "attention", "embedding"))


class _Law(NamedTuple):
    """What an initialiser makes of one kernel: largest magnitude (0: none), and moments."""

    what: str
    bound: float
    std: float
    kurtosis: float


def _hash(count: int, seed: int) -> list[float]:
    """Reproducible numbers in (-1, 1) that look uniform, for cases."""
    return [math.modf((i + 1) * 0.6180339887498949 + seed * 0.37)[0] * 2 - 1 for i in range(count)]


def _grid(units: int, fan_in: int, scale: float, seed: int = 0) -> list[list[float]]:
    flat = [scale * x for x in _hash(units * fan_in, seed)]
    return [flat[i * fan_in : (i + 1) * fan_in] for i in range(units)]


def _peaked(units: int, fan_in: int, seed: int) -> list[list[float]]:
    return [[2 * x * abs(x) for x in row] for row in _grid(units, fan_in, 1.0, seed)]


@rule
class UntrainedLayer(Rule):
    """A kernel matches its initialiser to the last digit while its neighbours have moved on.

    What it means
    -------------
    The layer was never updated.  If it is part of the forward pass, the model was trained around
    random weights, or the layer was added or lost afterwards.

    How it happens
    --------------
    A new head on a pretrained backbone that was saved before training; keys that did not match at
    loading (``strict=False``), so that the layer stayed random; a layer left out of the optimizer,
    frozen by accident, or not reached by any gradient.

    When to ignore it
    -----------------
    Random features, frozen on purpose; auxiliary heads that the forward pass does not use; a
    checkpoint from the start of training.  The match is statistical (range or kurtosis, standard
    deviation, mean); layers of fewer than 512 weights, or orthogonal ones, are not compared.
    """

    code = "WT008"
    name = "untrained-layer"
    severity = Severity.NOTE
    since = "0.1"
    references = (
        "Glorot & Bengio 2010: Understanding the difficulty of training deep feedforward networks",
        "He et al. 2015, arXiv:1502.01852: Delving deep into rectifiers",
        "Braiek & Khomh 2022, arXiv:2204.00694: TheDeepChecker tests parameters against their law",
    )
    healthy = (
        Case("a model in which everything is new",
             {f"l{i}.weight": _grid(32, 32, 1 / math.sqrt(32), i) for i in range(4)}),
        Case("a model in which everything has moved",
             {f"l{i}.weight": _peaked(32, 32, i) for i in range(4)}),
    )  # fmt: skip
    sick = (
        Case("a head with torch's default initialisation",
             {**{f"l{i}.weight": _peaked(32, 32, i) for i in range(4)},
              "head.weight": _grid(32, 32, 1 / math.sqrt(32))}),
        Case("a head with Glorot's",
             {**{f"l{i}/kernel": _peaked(32, 32, i) for i in range(4)},
              "head/kernel": _grid(32, 32, math.sqrt(6 / 64)), "head/bias": [0.0] * 32}),
    )  # fmt: skip

    least_elements: int = threshold(
        512, unit="weights", why="the range of fewer weights says too little",
        healthy="kernels below this size are not judged",
    )  # fmt: skip
    least_normal: int = threshold(
        4096, unit="weights", why="a normal law has no range: only many weights tell it from others",
        healthy="kernels below this size are not compared with normal laws",
    )  # fmt: skip
    sigmas: float = threshold(
        4.0,
        unit="standard errors of the sample's standard deviation, mean and kurtosis",
        why="an initialised layer is further off once in 10,000 times",
        healthy="see the share: mean, deviation and shape must all hold",
    )
    gap: float = threshold(
        10.0,
        unit="divided by the number of weights: share by which the largest may miss the bound",
        why="of a uniform sample it is further off once in 20,000 times",
        healthy="see the share: the range must hold as well",
    )
    most: float = threshold(
        0.5,
        unit="share of the file's kernels that match",
        why="where most layers match, the model is new, and nothing is left out of training",
        healthy="HEALTHY_NOTE",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        judged = kernels.finite & (kernels.size >= self.least_elements) & (kernels.std > 0)
        chosen = [
            (index, kernel)
            for index, kernel in kernels.where(judged)
            if kernel.layer.kind in _JUDGED and not kernel.info.dtype.startswith("float8")
        ]
        matched = [
            (index, kernel, law)
            for index, kernel in chosen
            if (law := self._law(ctx, kernels, index, kernel)) is not None
        ]
        if not matched or len(matched) > self.most * len(chosen) or trained(ctx) is False:
            return
        for index, kernel, law in matched:
            std, peak = float(kernels.std[index]), float(kernels.peak[index])
            within = f", all within {law.bound:.6g}" if law.bound else ""
            yield self.finding(
                kernel.info,
                f"still at its initialisation: {kernel.info.size:,} weights of standard deviation "
                f"{std:.4g}{within}, as {law.what} makes them",
                law=law.what,
                largest=peak,
                std=std,
            )

    def _law(self, ctx: Context, kernels: Kernels, index: int, kernel: Kernel) -> _Law | None:
        """Find the initialiser that made the kernel, None where none fits."""
        std, size = float(kernels.std[index]), float(kernels.size[index])
        slack = {"bfloat16": 4e-3, "float16": 5e-4}.get(kernel.info.dtype, 1e-5)
        for law in _laws(kernel):
            # the standard error of a standard deviation depends on the law's kurtosis
            error = math.sqrt((law.kurtosis - 1) / 4 / size)
            if abs(std / law.std - 1) > self.sigmas * error + slack:
                continue
            if abs(float(kernels.mean[index])) > self.sigmas * law.std / math.sqrt(size):
                continue
            if self._in_shape(ctx, kernels, index, law, slack) and _bias_at_start(ctx, kernel, law):
                return law
        return None

    def _in_shape(
        self, ctx: Context, kernels: Kernels, index: int, law: _Law, slack: float
    ) -> bool:
        """Whether the range fits a uniform law, or the kurtosis (of a first block) a normal one."""
        size, peak = float(kernels.size[index]), float(kernels.peak[index])
        if law.kurtosis < 2:
            reach = min(-float(kernels.minimum[index]), float(kernels.maximum[index]))
            return law.bound * (1 - self.gap / size - slack) <= peak <= law.bound * (
                1 + slack
            ) and reach >= law.bound * (1 - 2 * self.gap / size - slack)
        if size < self.least_normal or (law.bound and peak > law.bound * (1 + slack)):
            return False
        values = next(iter(ctx.table.blocks(kernels.all[index].info))).astype(np.float64)
        if values.size < self.least_normal:
            return False
        kurtosis = float(np.mean(((values - values.mean()) / values.std()) ** 4))
        return abs(kurtosis - law.kurtosis) <= self.sigmas * math.sqrt(24 / values.size)


def _bias_at_start(ctx: Context, kernel: Kernel, law: _Law) -> bool:
    """Whether the layer's bias is zero, or within the range of a uniform law."""
    info = kernel.layer.parts.get("bias")
    stats = ctx.stats[info.name] if info is not None else None
    if stats is None or stats.minimum is None or stats.maximum is None:
        return True
    allowed = law.bound * (1 + 1e-3) if law.kurtosis < 2 else 0.0
    return max(-stats.minimum, stats.maximum) <= allowed


def _laws(kernel: Kernel) -> tuple[_Law, ...]:
    """List the initialisers in use for a kernel of this shape."""
    shape, fan_in = kernel.info.shape, kernel.fan_in
    if kernel.layer.kind == "embedding":
        return (_uniform("Keras' default", 0.05), _normal("torch's default", 1.0), *_GPT)
    inputs = shape[-2] if kernel.keras else shape[1]
    fan_out = kernel.info.size / inputs
    return (
        _uniform("torch's default", 1 / math.sqrt(fan_in)),
        _uniform("Glorot's uniform law", math.sqrt(6 / (fan_in + fan_out))),
        _uniform("He's uniform law", math.sqrt(6 / fan_in)),
        _uniform("LeCun's uniform law", math.sqrt(3 / fan_in)),
        *_GPT,
        _normal("He's normal law", math.sqrt(2 / fan_in)),
        _normal("He's normal law by outputs", math.sqrt(2 / fan_out)),
        _normal("Glorot's normal law", math.sqrt(2 / (fan_in + fan_out))),
        _truncated("He's truncated normal law", math.sqrt(2 / fan_in)),
        _truncated("He's truncated normal law by outputs", math.sqrt(2 / fan_out)),
        _truncated("LeCun's truncated normal law", math.sqrt(1 / fan_in)),
    )


def _uniform(what: str, bound: float) -> _Law:
    return _Law(what, bound, bound / math.sqrt(3), 1.8)


def _normal(what: str, std: float) -> _Law:
    return _Law(what, 0.0, std, 3.0)


def _truncated(what: str, std: float) -> _Law:
    # cut at two standard deviations of a normal law whose own is larger by 1 / 0.87962566
    return _Law(what, 2 * std / 0.87962566103423978, std, 2.3656)


_GPT = (
    _normal("a normal law of 0.02 (GPT-2, ViT, DCGAN)", 0.02),
    _normal("a normal law of 0.01", 0.01),
    _truncated("a truncated normal law of 0.02 (BERT)", 0.02 * 0.87962566103423978),
)
