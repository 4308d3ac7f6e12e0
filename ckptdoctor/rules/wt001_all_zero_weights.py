"""WT001: a kernel of nothing but zeros."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule, threshold
from .kernels import Kernel, batchnorm_behind, by_design, kernels_of, trained


@rule
class AllZeroWeights(Rule):
    """Every element of a weight matrix or filter bank is zero.

    What it means
    -------------
    The layer's output does not depend on its input: it is the bias, for every sample.  In a plain
    chain of layers the model's output is then a constant; in the branch of a residual network the
    branch is switched off.

    How it happens
    --------------
    A tensor allocated and never filled (a shard or a key missing at conversion, a failed
    broadcast), weights wiped by a pruning mask or by an optimizer with enormous weight decay, or a
    zero initialisation that no gradient ever reached.  A BatchNorm behind it that remembers an
    ordinary variance, or a bias that was trained, proves that the weights were not zero in training.

    When to ignore it
    -----------------
    LoRA's second factors, zero convolutions, adaptive norms and the like start at zero on purpose,
    and so do last layers of models that have not been trained: these are notes.  A residual branch
    without any sign of training (identity blocks of an expanded model) is a warning.
    """

    code = "WT001"
    name = "all-zero-weights"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Zhang, Dauphin & Ma 2019, arXiv:1901.09321: Fixup's zero initialisation of residual branches",
        "Hu et al. 2021, arXiv:2106.09685: LoRA starts with B = 0",
    )
    healthy = (
        Case("one dead unit", {"fc.weight": [[0.0, 0.0], [1.0, 2.0]], "fc.bias": [1.0, 0.0]}),
        Case("zeros of a buffer and of a bias", {"mask": [[0.0] * 4] * 4, "fc.bias": [0.0] * 4}),
        Case("momentum before the first step", {"optimizer.state.0.m.weight": [[0.0] * 4] * 4},
             {"optimizer.state.0.m.weight": "optimizer"}),
    )  # fmt: skip
    sick = (
        Case("a dense layer of a chain", {"fc2.weight": [[0.0] * 4] * 4, "fc2.bias": [0.5, -1, 2, 0]}),
        Case("a kernel without bias", {"head/kernel": [[0.0] * 3] * 5}),
        Case("an untrained LoRA pair",
             {"q.lora_A.weight": [[1.0, 2, 3, 4]], "q.lora_B.weight": [[0.0]] * 4},
             severity=Severity.NOTE),
        Case("a residual branch that may never have been on",
             {"block.0.mlp.down_proj.weight": [[0.0] * 4] * 4}, severity=Severity.WARNING),
        Case("a model before its first step",
             {"ln.weight": [1.0, 1.0], "ln.bias": [0.0, 0.0],
              "head.weight": [[0.0, 0.0]] * 3, "head.bias": [0.0] * 3},
             severity=Severity.NOTE),
    )  # fmt: skip

    least_elements: int = threshold(
        4,
        unit="elements",
        why="a gate or scale kept as a 1x1 kernel may well be zero",
        healthy="no kernel of any size is all zero in 1,120 kernels of 135 healthy files",
    )

    def check(self, ctx: Context) -> Iterator[Finding]:
        kernels = kernels_of(ctx)
        zero = (kernels.minimum == 0) & (kernels.maximum == 0) & kernels.finite
        for _, kernel in kernels.where(zero & (kernels.size >= self.least_elements)):
            if kernel.layer.kind in ("weightnorm", "spectralnorm"):
                continue  # NaN, not zeros: WT007
            severity, why = _judge(ctx, kernel)
            size = kernel.info.size
            message = f"all {size:,} weights are zero: {why}"
            yield self.finding(kernel.info, message, severity=severity, elements=size, zeros=size)


_BRANCH_END = (
    r"(.*[._/])?(o_proj|out_proj|down_proj|c_proj|proj|proj_out|fc2|linear2|w2|wo|to_out([._]0)?"
    r"|output[._/]dense|conv2|conv3|pwconv2|pw_conv2|lin2)[._/](weight|kernel)(:\d+)?"
)
"""Last kernels of residual branches, as the common implementations name them."""


def _judge(ctx: Context, kernel: Kernel) -> tuple[Severity, str]:
    """How bad zeros are here, and by which evidence."""
    reason = by_design(kernel.info)
    if reason:
        return Severity.NOTE, f"{reason} that was never trained"
    norm = batchnorm_behind(ctx, kernel.layer)
    if norm is not None and _remembers(ctx, norm.parts):
        return Severity.ERROR, f"but the BatchNorm behind ({norm.name}) remembers a varying output"
    if trained(ctx) is False:
        return Severity.NOTE, "no normalisation layer shows any training, so it may be a beginning"
    if kernel.layer.kind == "embedding":
        return Severity.WARNING, "every index gets the same vector"
    if kernel.part == "recurrent":
        return Severity.WARNING, "the layer has no memory"
    bias = kernel.layer.parts.get("bias")
    offset = ctx.stats[bias.name] if bias is not None else None
    if offset is not None and offset.zeros < offset.count:
        return Severity.ERROR, "the output is the bias, whatever the input"
    if re.fullmatch(_BRANCH_END, kernel.info.name):
        return Severity.WARNING, "a branch that ends here is switched off"
    return Severity.ERROR, "the output is zero, whatever the input"


def _remembers(ctx: Context, parts: object) -> bool:
    """Whether running statistics say that the kernel's output varied in training."""
    info = parts.get("var") if isinstance(parts, dict) else None
    stats = ctx.stats[info.name] if info is not None else None
    if stats is None or stats.maximum is None or stats.minimum is None:
        return False
    # 1 everywhere was never updated; below 1e-10 nothing but rounding came through
    return stats.minimum != stats.maximum and stats.maximum > 1e-10
