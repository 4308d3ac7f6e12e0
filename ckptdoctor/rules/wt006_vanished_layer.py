"""WT006: a kernel so small that nothing passes through it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, batchnorm_behind, by_design, kernels_of, trained

_JUDGED = ("conv", "dense", "recurrent", "attention", "embedding")


@rule
class VanishedLayer(Rule):
    """A layer's weights are thousands of times smaller than any training leaves them.

    What it means
    -------------
    A layer's gain is the root mean square of its weights times the square root of the inputs per
    output; trained layers lie between 0.1 and 10.  Below some 1e-4 the output is the bias: inputs
    no longer matter.  Behind a BatchNorm a kernel's scale is divided out again, so a small kernel
    is sick there only if the running variance still belongs to a larger one.  An embedding's gain
    is the root mean square of its rows.

    How it happens
    --------------
    Weight decay far too strong (or applied to a layer that gets no gradient), a conversion that
    scaled twice, a cast to a type in whose smallest numbers the weights ended, memory that was
    allocated and never written.

    When to ignore it
    -----------------
    A first layer whose inputs are in the tens of thousands has small weights; it is a warning.
    Adapters and zero convolutions that have just begun to learn are left out, and so is a kernel
    whose BatchNorm has followed it down.
    """

    code = "WT006"
    name = "vanished-layer"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "He et al. 2015, arXiv:1502.01852: the variance of weights that keeps signals in range",
        "van Laarhoven 2017, arXiv:1706.05350: weights before a normalisation have no scale",
    )
    healthy = (
        Case("a young LoRA factor", {"q.lora_B.weight": [[1e-5, -1e-5]] * 4}),
        Case("small weights, small biases",
             {"a.weight": [[0.5, 1.0]], "fc.weight": [[1e-3, -2e-3]] * 4, "fc.bias": [1e-3] * 4}),
        Case("directions of a weight norm", {"fc.weight_v": [[1e-6, 2e-6]] * 4, "fc.weight_g": [[1.0]] * 4}),
        Case("a small embedding", {"embed.weight": [[5e-5, -7e-5]] * 4}),
    )  # fmt: skip
    sick = (
        Case("weight decay gone wild",
             {"a.weight": [[0.5, 1.0]] * 2, "fc.weight": [[1e-7, -2e-7]] * 4, "fc.bias": [0.1, 0.2, 0, 0]}),
        Case("nothing at all left", {"a.weight": [[0.5, 1.0]] * 2, "fc.weight": [[1e-12, -2e-12]] * 4}),
        Case("small beside no bias", {"a.weight": [[0.5, 1.0]] * 2, "fc.weight": [[1e-4, -1e-5]] * 4},
             severity=Severity.WARNING),
        Case("a first layer, perhaps of raw inputs",
             {"fc.weight": [[1e-7, -2e-7]] * 4, "fc.bias": [1.0] * 4, "b.weight": [[0.5, 1.0]] * 2},
             severity=Severity.WARNING),
        Case("an embedding whose rows are lost", {"embed.weight": [[1e-9, 2e-9]] * 4},
             severity=Severity.WARNING),
    )  # fmt: skip

    gain: float = threshold(
        3e-4,
        unit="times the input",
        why="a tenth of the smallest gain that a trained layer kept",
        healthy="0 of 974 kernels of 135 files, adapters apart; smallest 2.0e-3, second 6.0e-2",
    )
    nothing: float = threshold(
        1e-6,
        unit="times the input",
        why="inputs would have to be in the millions to matter",
        healthy="0 of 1,070 kernels of 135 files, adapters included; smallest 6.3e-4",
    )
    table: float = threshold(
        1e-5,
        unit="root mean square of an embedding",
        why="a sixth of the smallest initialisation, RWKV's; a LayerNorm's epsilon is larger",
        healthy="0 of the embeddings of 272 files",
    )
    drowned: float = threshold(
        100.0,
        unit="times the gain, root mean square of the bias",
        why="an input of ordinary size changes the output by less than 1 %",
        healthy="not reached: no healthy kernel is suspect",
    )
    remembered: float = threshold(
        1e4,
        unit="times the kernel's squared norm, running variance of the BatchNorm behind",
        why="far beyond what inputs of ordinary size make of it",
        healthy="0 of the trained BatchNorms whose kernel is known; the largest channel has 3.8",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        suspect = kernels.of(*_JUDGED) & kernels.wide & kernels.finite
        least = np.where(kernels.of("embedding"), self.table, self.gain)
        suspect &= (kernels.gain < least) & (kernels.peak > 0)
        for index, kernel in kernels.where(suspect):
            gain = float(kernels.gain[index])
            told = self._judge(ctx, kernel, gain)
            if told is None:
                continue
            severity, why = told
            yield self.finding(
                kernel.info,
                f"the layer passes on {gain:.3g} times its input: {why}",
                severity=severity,
                limit=f"gain below {least[index]:g}",
                gain=gain,
                largest=float(kernels.peak[index]),
            )

    def _judge(self, ctx: Context, kernel: Kernel, gain: float) -> tuple[Severity, str] | None:
        """How bad it is and why; None where it is as it should be."""
        if by_design(kernel.info):
            return None
        norm = batchnorm_behind(ctx, kernel.layer)
        if norm is not None:
            var = ctx.stats[norm.parts["var"].name].mean if "var" in norm.parts else None
            if var is None or var <= self.remembered * gain * gain:
                return None
            return (
                Severity.ERROR,
                f"but the BatchNorm behind ({norm.name}) remembers variance {var:.3g}",
            )
        if trained(ctx) is False:
            return (
                Severity.NOTE,
                "no normalisation layer shows any training, so it may be a beginning",
            )
        if kernel.layer.kind == "embedding":
            return Severity.WARNING, "any normalisation behind sees nothing but its own epsilon"
        if _first(ctx, kernel):
            return Severity.WARNING, "right for a first layer only if inputs are very large"
        bias = kernel.layer.parts.get("bias")
        offset = ctx.stats[bias.name] if bias is not None else None
        if offset is not None and offset.mean is not None and offset.std is not None:
            usual = (offset.mean**2 + offset.std**2) ** 0.5
            if usual > self.drowned * gain:
                return Severity.ERROR, f"the output is the bias (root mean square {usual:.3g})"
        if gain < self.nothing:
            return Severity.ERROR, "nothing of the input is left"
        return Severity.WARNING, "what is behind must amplify it as much"


def _first(ctx: Context, kernel: Kernel) -> bool:
    """Whether it is the first kernel of the model, as far as the order is known."""
    kernels, depth = kernels_of(ctx), ctx.graph.depth(kernel.layer)
    same = kernels.ema if kernel.info.role == "ema" else ~kernels.ema
    others = kernels.where(same & ~kernels.of("embedding"))
    return not any(ctx.graph.depth(other.layer) < depth for _, other in others)
