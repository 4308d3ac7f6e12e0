"""WT008: a layer that still is what its initialiser made of it, in a model that was trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, Kernels, kernels_of, trained

_JUDGED = ("conv", "dense", "recurrent", "attention", "embedding")

_CUT = 0.87962566103423978
"""Standard deviation of a normal law cut at two of its own."""


class _Law(NamedTuple):
    """What an initialiser makes of one kernel.

    ``edge`` is the density at the bound, relative to that of a uniform law of the same range.
    """

    what: str
    bound: float
    std: float
    kurtosis: float
    edge: float


def _even(bound: float) -> list[list[float]]:
    """Weights that have range, mean and deviation of a uniform law, for cases: 36 of 32 units."""
    return [[-bound, bound, 0.0, 0.0, 0.0, 0.0] * 6] * 32


_MOVED = {f"l{i}.weight": [[-1.0, 1.0, -0.5, 0.25, 0.25, 0.0] * 6] * 32 for i in range(4)}


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
    checkpoint from the start of training.  The match is statistical (range, standard deviation,
    mean), and needs a law that ends somewhere: normal and orthogonal initialisations are not
    found, because layers keep their moments through short trainings.
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
             {f"l{i}.weight": _even(1 / 6) for i in range(4)}),
        Case("a model in which everything has moved", _MOVED),
    )  # fmt: skip
    sick = (
        Case("a head with torch's default initialisation",
             {**_MOVED, "head.weight": _even(1 / 6)}),
        Case("a head with Glorot's",
             {"head/kernel": _even(math.sqrt(6 / 68)), "head/bias": [0.0] * 36, **_MOVED}),
        Case("inputs of an LSTM of 9 states, with torch's default initialisation",
             {**_MOVED, "rnn.weight_ih_l0": [[-1 / 3, 1 / 3, 0.0, 0.0, 0.0, 0.0] * 3] * 36,
              "rnn.weight_hh_l0": [[-1.0, 1.0, -0.5, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]] * 36}),
    )  # fmt: skip

    least_elements: int = threshold(
        512, unit="weights", why="the range of fewer weights says too little",
        healthy="kernels below this size are not judged",
    )  # fmt: skip
    least_truncated: int = threshold(
        16384, unit="weights", why="a truncated normal law has few weights at its edge",
        healthy="smaller kernels are not compared with truncated normal laws",
    )  # fmt: skip
    sigmas: float = threshold(
        4.0,
        unit="standard errors of the sample's standard deviation and mean",
        why="an initialised layer is further off once in 10,000 times",
        healthy="see the share: range, deviation and mean must all hold",
    )
    gap: float = threshold(
        10.0,
        unit="weights that the law puts into the gap between the largest one and the bound",
        why="an initialised layer leaves such a gap once in 20,000 times",
        healthy="see the share: range, deviation and mean must all hold",
    )
    most: float = threshold(
        0.5,
        unit="share of the file's kernels that match",
        why="where most layers match, the model is new, and nothing is left out of training",
        healthy="1 note on 974 kernels of 135 files: range and deviation are torch's default to four digits",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        judged = kernels.of(*_JUDGED) & kernels.wide & kernels.finite
        judged &= (kernels.size >= self.least_elements) & (kernels.std > 0)
        with np.errstate(all="ignore"):
            ends = kernels.peak / kernels.std  # 1.73 of a uniform law, 2.27 of a truncated one
        near = (np.abs(ends - math.sqrt(3)) < 0.2) | (np.abs(ends - 2 / _CUT) < 0.1)
        matched = [
            (index, kernel, law)
            for index, kernel in kernels.where(judged & near)
            if (law := self._law(kernels, index, kernel)) is not None
        ]
        if not matched or len(matched) > self.most * int(judged.sum()) or trained(ctx) is False:
            return
        for index, kernel, law in matched:
            std, peak = float(kernels.std[index]), float(kernels.peak[index])
            yield self.finding(
                kernel.info,
                f"still at its initialisation: {kernel.info.size:,} weights of standard deviation "
                f"{std:.4g}, all within {law.bound:.6g}, as {law.what} makes them",
                law=law.what,
                largest=peak,
                std=std,
            )

    def _law(self, kernels: Kernels, index: int, kernel: Kernel) -> _Law | None:
        """Find the initialiser that made the kernel, None where none fits."""
        std, size = float(kernels.std[index]), float(kernels.size[index])
        slack = {"bfloat16": 4e-3, "float16": 5e-4}.get(kernel.info.dtype, 1e-5)
        for law in _laws(kernel):
            # the standard error of a standard deviation depends on the law's kurtosis
            error = math.sqrt((law.kurtosis - 1) / 4 / size)
            if (
                abs(std / law.std - 1) <= self.sigmas * error + slack
                and abs(float(kernels.mean[index])) <= self.sigmas * law.std / math.sqrt(size)
                and (law.edge == 1 or size >= self.least_truncated)
                and self._in_range(kernels, index, law, slack)
            ):
                return law
        return None

    def _in_range(self, kernels: Kernels, index: int, law: _Law, slack: float) -> bool:
        """Whether weights end where the law does, on both sides."""
        low, high = -float(kernels.minimum[index]), float(kernels.maximum[index])
        gap = self.gap / law.edge / float(kernels.size[index]) + slack
        return law.bound * (1 - gap) <= max(low, high) <= law.bound * (1 + slack) and min(
            low, high
        ) >= law.bound * (1 - 2 * gap)


def _laws(kernel: Kernel) -> tuple[_Law, ...]:
    """List the initialisers with a bounded range for a kernel of this shape."""
    shape, fan_in = kernel.info.shape, kernel.fan_in
    if kernel.layer.kind == "embedding":
        return (_uniform("Keras' default", 0.05), _BERT)
    inputs = shape[-2] if kernel.keras else shape[1]
    both = fan_in + kernel.info.size / inputs
    # torch has one law for all of a recurrent layer: that of its states
    states = kernel.layer.parts.get("recurrent")
    return (
        _uniform("torch's default", 1 / math.sqrt(states.shape[-1] if states else fan_in)),
        _uniform("Glorot's uniform law", math.sqrt(6 / both)),
        _uniform("He's uniform law", math.sqrt(6 / fan_in)),
        _uniform("LeCun's uniform law", math.sqrt(3 / fan_in)),
        _truncated("Glorot's truncated normal law", math.sqrt(2 / both)),
        _truncated("He's truncated normal law", math.sqrt(2 / fan_in)),
        _truncated("LeCun's truncated normal law", math.sqrt(1 / fan_in)),
        _BERT,
    )


def _uniform(what: str, bound: float) -> _Law:
    return _Law(what, bound, bound / math.sqrt(3), 1.8, 1.0)


def _truncated(what: str, std: float) -> _Law:
    # Cut at two standard deviations of a normal law whose own is larger by 1 / 0.87962566; at the
    # cut its density is 0.226 of that of a uniform law of the same range.
    return _Law(what, 2 * std / _CUT, std, 2.3656, 0.226)


_BERT = _truncated("a truncated normal law of 0.02", 0.02 * _CUT)
