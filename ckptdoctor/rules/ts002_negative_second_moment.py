"""TS002: a second moment below zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..findings import Finding, Severity
from .base import Case, Context, Rule, rule
from .optimizer_slots import second_moments
from .training_state import shown


@rule
class NegativeSecondMoment(Rule):
    """A second moment of the optimizer is negative.

    What it means
    -------------
    Adam, RMSprop and Adagrad divide each update by the root of an average of squared gradients.
    No square is negative, and the root of a negative number is NaN: the first step after resuming
    makes those weights NaN.  Serving is not affected.

    How it happens
    --------------
    Not by training.  Arithmetic on checkpoints (averages with negative weights, extrapolation
    a + 2(b - a)), an optimizer's tensors swapped or loaded into the wrong slot, a flipped sign bit,
    edits by hand.

    When to ignore it
    -----------------
    When the file is only served, or only its weights are loaded.
    """

    code = "TS002"
    name = "negative-second-moment"
    severity = Severity.ERROR
    since = "0.1"
    references = (
        "Kingma & Ba 2015, arXiv:1412.6980, algorithm 1: v is an average of squares",
        "https://keras.io/api/optimizers/adam/",
    )
    healthy = (
        Case(
            "zeros",
            {"optimizer.state.0.exp_avg_sq": [0.0, 1e-12]},
            {"optimizer.state.0.exp_avg_sq": "optimizer"},
        ),
        Case(
            "a first moment",
            {"optimizer.state.0.exp_avg": [-1.0]},
            {"optimizer.state.0.exp_avg": "optimizer"},
        ),
        Case("a weight of that name", {"block.exp_avg_sq": [-1.0]}),
        Case(
            "Keras momentum of a layer named v",
            {"optimizer_weights/Adam/v/kernel/m:0": [-1.0]},
            {"optimizer_weights/Adam/v/kernel/m:0": "optimizer"},
        ),
        Case(
            "numbered momenta of SGD",
            {f"optimizer/vars/{n}": [-1.0, 1.0] for n in range(4)},
            {f"optimizer/vars/{n}": "optimizer" for n in range(4)},
        ),
    )
    sick = (
        Case("Adam", {"optimizer.state.0.exp_avg_sq": [1.0, -1e-12]}, {"optimizer.state.0.exp_avg_sq": "optimizer"}),
        Case("Adagrad", {"optimizer.state.0.sum": [-1.0]}, {"optimizer.state.0.sum": "optimizer"}),
        Case("Keras 3", {"optimizer_weights/adam/fc_kernel_velocity": [-1.0]}, {"optimizer_weights/adam/fc_kernel_velocity": "optimizer"}),
        Case("Keras 2.11", {"optimizer_weights/v/fc/kernel:0": [-1.0]}, {"optimizer_weights/v/fc/kernel:0": "optimizer"}),
        Case("Keras 2", {"optimizer_weights/RMSprop/fc/kernel/rms:0": [-1.0]}, {"optimizer_weights/RMSprop/fc/kernel/rms:0": "optimizer"}),
        Case(
            "numbered pairs of Adam",
            {f"optimizer/vars/{n}": [float(n % 2), -1.0 if n in (0, 2, 4, 5) else 0.0] for n in range(6)},
            {f"optimizer/vars/{n}": "optimizer" for n in range(6)},
        ),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        rows, infos = second_moments(ctx)
        with np.errstate(invalid="ignore"):  # NaN where nothing is finite
            wrong = np.flatnonzero(ctx.stats.minimum[rows] < 0)
        for hit in wrong.tolist():
            info, stats = infos[hit], ctx.stats[infos[hit].name]
            if stats.minimum is None:
                continue
            at = ctx.first(info, lambda block: block.real < 0)
            place = f", the first negative one at {list(at)}" if at and stats.count > 1 else ""
            more: dict[str, Any] = {"first": list(at)} if at else {}
            yield self.finding(
                info,
                f"second moments go down to {shown(stats.minimum)}{place}",
                limit="under 0",
                minimum=stats.minimum,
                **more,
            )
