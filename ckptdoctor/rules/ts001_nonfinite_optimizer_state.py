"""TS001: NaN and infinities in what the optimizer keeps between steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from ..roles import role_of
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule
from .optimizer_slots import owners_of
from .training_state import is_finite, nonfinite, rows_where, shown

_NAN, _INF = float("nan"), float("inf")

_UNBOUNDED = r"growth_rate|.*(max|min|clip|bound|limit|thres|norm|cap|best|loss|patience).*"
"""Settings that are infinite to say "no limit": Prodigy's and D-Adaptation's ``growth_rate``."""


@rule
class NonfiniteOptimizerState(Rule):
    """The optimizer's or the gradient scaler's state holds NaN or infinities.

    What it means
    -------------
    The weights may still be sound: serving is not affected.  Resuming is: the next step multiplies
    the state into the weights.  A NaN momentum or second moment makes its weights NaN; an infinite
    second moment divides every later update of its elements to zero, so that they never learn
    again.  Neither decays: 0.999 times infinity is infinity.

    How it happens
    --------------
    A gradient overflowed (a spike, a loss of NaN, float16 without a scaler) and the step was taken
    or half taken; a gradient of 1e20 is finite, its square is not.  Weights sound and optimizer
    sick means that the fault was caught in time: keep the weights, start the optimizer afresh.

    When to ignore it
    -----------------
    When the file is only served, or only its weights are loaded.  Settings that are infinite to say
    "no limit" (a growth rate, a norm to clip at) are not reported.
    """

    code = "TS001"
    name = "nonfinite-optimizer-state"
    severity = Severity.ERROR
    since = "0.1"
    replaces = ("NF001", "NF002")
    references = (
        "Kingma & Ba 2015, arXiv:1412.6980, algorithm 1: the moments and how they decay",
        "https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html",
    )
    healthy = (
        Case(
            "huge finite moments",
            {"optimizer.state.0.exp_avg_sq": [1e11]},
            {"optimizer.state.0.exp_avg_sq": "optimizer"},
        ),
        Case("a weight, another rule's matter", {"fc.weight": [_NAN]}),
        Case(
            "Prodigy's growth without limit",
            {},
            scalars={"optimizer.param_groups.0.growth_rate": _INF},
        ),
        Case("a best score", {}, scalars={"optimizer.best_score": _INF, "best_loss": _NAN}),
        Case("a step number beyond every float", {}, scalars={"optimizer.state.0.step": 10**400}),
    )
    sick = (
        Case("a momentum", {"optimizer.state.0.momentum_buffer": [_NAN, 1.0]}, {"optimizer.state.0.momentum_buffer": "optimizer"}),
        Case("every second moment", {"optimizer.state.0.exp_avg_sq": [_INF]}, {"optimizer.state.0.exp_avg_sq": "optimizer"}),
        Case("Keras velocity", {"optimizer_weights/adam/fc_kernel_velocity": [_INF, 1.0]}, {"optimizer_weights/adam/fc_kernel_velocity": "optimizer"}),
        Case("a scaler's tensor", {"scaler.found_inf": [_NAN]}, {"scaler.found_inf": "scaler"}),
        Case("weight decay", {}, scalars={"optimizer.param_groups.0.weight_decay": _NAN}),
        Case("an infinite step", {}, scalars={"optimizer.state.3.step": _INF}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        screen = nonfinite(ctx)
        roles: tuple[Role, ...] = ("optimizer", "scaler")
        for role in roles:
            for info in rows_where(ctx, role, screen):
                yield self._tensor(ctx, info)
        for name, value in ctx.table.scalars.items():
            if not is_finite(value) and _counts(name, value):
                kind = "NaN" if np.isnan(value) else shown(value)
                told = role_of(name.split("."))
                yield self.number_finding(name, f"is {kind}", role=told, value=value)

    def _tensor(self, ctx: Context, info: TensorInfo) -> Finding:
        stats = ctx.stats[info.name]
        counts = ((stats.nan, "NaN"), (stats.posinf, "+Inf"), (stats.neginf, "-Inf"))
        kinds = " and ".join(f"{n:,} {kind}" for n, kind in counts if n)
        measured: dict[str, Any] = {
            "elements": stats.count,
            "nan": stats.nan,
            "posinf": stats.posinf,
            "neginf": stats.neginf,
        }
        message = f"{kinds} among {stats.count:,} elements"
        if 1 < stats.count == stats.nonfinite:
            message = f"none of {stats.count:,} elements is finite: {kinds}"
        elif stats.count > 1:
            at = ctx.first(info, _is_nonfinite)
            if at:
                message += f", the first at {list(at)}"
                measured["first"] = list(at)
        owner = owners_of(ctx).get((".".join(info.path[:-3]), info.path[max(-2, -len(info.path))]))
        if owner:
            message += f"; by order and shape it belongs to {owner!r:.200}"
            measured["parameter"] = owner
        return self.finding(info, message, **measured)


def _is_nonfinite(block: Any) -> Any:
    return ~np.isfinite(block)


def _counts(name: str, value: float) -> bool:
    """Whether a number that is not finite is a fault of this rule's."""
    path = re.split(r"[./]", name)
    if role_of(path) not in ("optimizer", "scaler"):
        return False
    leaf = path[-1]
    if leaf in ("lr", "learning_rate", "scale", "cur_scale", "loss_scale", "dynamic_scale"):
        return False  # TS003 and TS005
    return bool(np.isnan(value)) or not re.fullmatch(_UNBOUNDED, leaf, re.IGNORECASE)
