"""TS005: a loss scale of mixed precision that fell to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..findings import Finding, Severity
from ..roles import role_of
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .optimizer_slots import numbered_variables
from .training_state import as_float, infos_of, only_value, shown

_NAN, _INF = float("nan"), float("inf")

_OWN_NAMES = frozenset({"loss_scale", "cur_scale", "dynamic_scale", "current_loss_scale"})
"""apex and fairseq, DeepSpeed, Keras 3, Keras 2: names that stand for nothing else."""


def _scaler(scale: float) -> dict[str, float]:
    return {"scaler.scale": scale, "scaler.growth_factor": 2.0, "scaler.growth_interval": 2000}


@rule
class CollapsedLossScale(Rule):
    """The loss scale of mixed-precision training fell below 1, to 0, or is not finite.

    What it means
    -------------
    A scaler halves its factor whenever a gradient overflows and skips that step.  It starts at
    65536: below 1 it has been halved more than sixteen times without recovering, so that step
    after step was skipped and the weights stood still.  At 0 every gradient is 0, and dividing it
    by the scale gives NaN: resuming cannot train.  Serving is not affected by the scale itself.

    How it happens
    --------------
    Not the scale's fault: gradients are NaN or infinite at any scale.  NaN in the weights, in
    running statistics or in the data, a loss that divides by zero or takes the logarithm of zero,
    an operation that overflows float16 in the forward pass.

    When to ignore it
    -----------------
    When training goes on without a scaler (float32, bfloat16), or the file is only served.
    """

    code = "TS005"
    name = "collapsed-loss-scale"
    severity = Severity.ERROR
    since = "0.1"
    replaces = ("NF001", "NF002", "TS001")
    references = (
        "Micikevicius et al. 2018, arXiv:1710.03740, section 3.2: loss scaling",
        "https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling",
        "https://www.deepspeed.ai/docs/config-json/#fp16-training-options: min_loss_scale is 1",
    )
    smallest: float = threshold(
        1.0,
        unit="loss scale, exclusive",
        why="DeepSpeed, Megatron and Keras 2 stop there; below, scaling makes underflow worse",
        healthy="few at hand: the one scaler stored by a run that trained on stands at 512",
    )
    healthy = (
        Case("where it starts", {}, scalars=_scaler(65536.0)),
        Case("scaling by 1", {}, scalars=_scaler(1.0)),
        Case("a feature scaler", {}, scalars={"scaler.scale_factor": 0.1, "standard.scale": 0.0}),
        Case("a weight", {"scaler.scale": [0.0, 0.1]}),
    )
    sick = (
        Case("torch, halved away", {}, scalars=_scaler(0.0)),
        Case("torch, far down", {}, scalars=_scaler(2.0**-20), severity=Severity.WARNING),
        Case("a file of the scaler alone", {}, scalars={"scale": 0.0, "growth_factor": 2.0, "backoff_factor": 0.5}),
        Case("DeepSpeed", {}, scalars={"optimizer.loss_scaler.cur_scale": 0.0}),
        Case("apex", {}, scalars={"amp.loss_scaler0.loss_scale": _NAN}),
        Case("Keras 3", {"optimizer_weights/loss_scale_optimizer/dynamic_scale": 0.0}, {"optimizer_weights/loss_scale_optimizer/dynamic_scale": "optimizer"}),
        Case("Megatron", {"optimizer.grad_scaler.scale": [0.5]}, {"optimizer.grad_scaler.scale": "optimizer"}, Severity.WARNING),
        Case("infinite", {}, scalars=_scaler(_INF)),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        numbers = ctx.table.scalars
        for name, value in numbers.items():
            if name.endswith("scale") and _is_loss_scale(name, numbers):
                told = role_of(name.split("."))
                role: Role = told if told == "optimizer" else "scaler"
                verdict = self._judge(as_float(value))
                if verdict:
                    severity, message, limit = verdict
                    tracker = numbers.get(name.removesuffix("scale") + "_growth_tracker")
                    if tracker is not None:
                        message += f"; {shown(tracker)} steps since the last overflow"
                    yield self.number_finding(
                        name,
                        message,
                        role=role,
                        severity=severity,
                        limit=limit,
                        scale=as_float(value),
                    )
        for info in _stored_scales(ctx):
            scale = only_value(ctx, info)
            verdict = None if scale is None else self._judge(scale)
            if verdict:
                severity, message, limit = verdict
                yield self.finding(info, message, severity=severity, limit=limit, scale=scale)

    def _judge(self, scale: float) -> tuple[Severity, str, str] | None:
        message = f"the loss scale is {shown(scale)}"
        if not 0 < scale < _INF:
            limit = "not above 0" if scale <= 0 else "not finite"
            return Severity.ERROR, message, limit
        if scale < self.smallest:
            return Severity.WARNING, message, f"under {self.smallest:g}"
        return None


def _is_loss_scale(name: str, numbers: Mapping[str, float]) -> bool:
    head, _, leaf = name.rpartition(".")
    if leaf in _OWN_NAMES:
        return True
    prefix = f"{head}." if head else ""
    return leaf in ("scale", "_scale") and f"{prefix}growth_factor" in numbers


def _stored_scales(ctx: Context) -> Iterator[TensorInfo]:
    for info in (*infos_of(ctx, "scaler"), *infos_of(ctx, "optimizer")):
        leaf = info.path[-1].partition(":")[0]
        if leaf in _OWN_NAMES or (
            leaf in ("scale", "_scale") and "scaler" in "".join(info.path[-2:-1])
        ):
            yield info
    for variables in numbered_variables(ctx).values():
        # Keras 3's LossScaleOptimizer: iteration, rate, step counter, scale, then the inner
        # optimizer's iteration and rate
        infos = [infos_of(ctx, "optimizer")[place] for place in variables[:6]]
        kinds = [info.kind.kind for info in infos if not info.shape]
        if kinds == ["int", "float"] * 3:
            yield infos[3]
