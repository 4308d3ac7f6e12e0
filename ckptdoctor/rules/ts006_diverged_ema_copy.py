"""TS006: of the model and its moving average, one copy is sick and the other is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ..findings import Finding, Severity
from ..measure.stats import TensorStats
from ..tensors import Role, TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .ema_copies import ema_copies
from .intended import intended
from .training_state import infos_of, nonfinite, shown

_NAN = float("nan")

_EMA: Mapping[str, Role] = {"ema.fc.weight": "ema"}
_FINE, _SICK = [[0.5, -0.5]], [[0.5, _NAN]]


@rule
class DivergedEmaCopy(Rule):
    """The model and its moving average disagree: one copy is finite and the other is not.

    What it means
    -------------
    The file holds the same weights twice.  Where one copy is NaN or has exploded, the other can
    take its place: nothing is lost.  Which one is served decides what users see; a NaN average
    stays NaN for ever, whatever the model does.

    How it happens
    --------------
    A NaN lasted one step: the weights were restored or the step was skipped, but the average had
    already taken it in.  The reverse, a sick model beside a sound average, is a divergence just
    before saving.  An average that exploded was updated with a decay outside 0..1.

    When to ignore it
    -----------------
    When the sick copy is neither served nor trained on.
    """

    code = "TS006"
    name = "diverged-ema-copy"
    severity = Severity.ERROR
    since = "0.1"
    replaces = ("NF001", "NF002", "BN001")
    references = (
        "Polyak & Juditsky 1992, SIAM J. Control Optim. 30(4): averaging of the iterates",
        "https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema",
    )
    ratio: float = threshold(
        100.0,
        unit="root mean square of one copy over that of the other, inclusive",
        why="a distance of 99 times the smaller copy's norm: no average of the model's past",
        healthy="largest of the 7 pairs of weight matrices at hand 1.43",
    )
    floor: float = threshold(
        10.0,
        unit="root mean square of the larger copy, inclusive",
        why="weights that start at zero leave an average that lags a thousandfold behind",
        healthy="largest root mean square of those weight matrices 0.41",
    )
    healthy = (
        Case("a pair", {"model.fc.weight": _FINE, "ema.fc.weight": [[0.4, -0.4]]}, _EMA),
        Case("both sick", {"model.fc.weight": _SICK, "ema.fc.weight": _SICK}, _EMA),
        Case(
            "an average of something else",
            {"model.fc.weight": [[0.5], [0.1]], "ema.fc.weight": _SICK},
            _EMA,
        ),
        Case(
            "a layer that started at zero",
            {"model.fc.weight": _FINE, "ema.fc.weight": [[1e-4, 0.0]]},
            _EMA,
        ),
        Case(
            "running variances",
            {"model.bn.running_var": [1e6], "ema.bn.running_var": [1.0]},
            {"ema.bn.running_var": "ema"},
        ),
    )
    sick = (
        Case("a sick average", {"model.fc.weight": _FINE, "ema.fc.weight": _SICK}, _EMA),
        Case("a sick model", {"model.fc.weight": _SICK, "ema.fc.weight": _FINE}, _EMA, Severity.NOTE),
        Case("a wrapped average", {"fc.weight": _FINE, "ema.module.fc.weight": _SICK}, {"ema.module.fc.weight": "ema"}),
        Case("latent diffusion", {"model.fc.weight": _FINE, "model_ema.fcweight": _SICK}, {"model_ema.fcweight": "ema"}),
        Case("an exploded average", {"model.fc.weight": _FINE, "ema.fc.weight": [[1e6, 0.0]]}, _EMA, Severity.WARNING),
        Case("an exploded model", {"model.fc.weight": [[1e6, 0.0]], "ema.fc.weight": _FINE}, _EMA, Severity.WARNING),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        if not infos_of(ctx, "ema"):
            return
        bad = nonfinite(ctx) > 0
        sick = {info.name for info, stats in ctx.where(bad) if not intended(ctx, info, stats)}
        lost: dict[str, str] = {}
        for ema, model in ema_copies(ctx).items():
            pair = ctx.table[ema], ctx.table[model]
            if ctx.stats[ema].minimum is None and ema not in sick:
                continue  # not measured
            if ema in sick and model not in sick:
                if ctx.stats[model].minimum is not None:
                    yield self._sick(ctx, *pair)
            elif model in sick and ema not in sick:
                lost[model] = ema
            elif model not in sick:
                yield from self._apart(ctx, *pair)
        if lost:
            yield self._intact(ctx, lost)

    def _sick(self, ctx: Context, ema: TensorInfo, model: TensorInfo) -> Finding:
        stats = ctx.stats[ema.name]
        return self.finding(
            ema,
            f"{stats.nonfinite:,} of {stats.count:,} elements of the average are not finite, "
            f"all of {model.name!r:.200} are",
            elements=stats.count,
            nan=stats.nan,
            posinf=stats.posinf,
            neginf=stats.neginf,
            intact=model.name,
        )

    def _intact(self, ctx: Context, lost: Mapping[str, str]) -> Finding:
        """Say that sick weights of the model have a sound copy: one finding for all."""
        model, ema = next(iter(lost.items()))
        more = f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        return self.finding(
            ctx.table[ema],
            f"an intact copy of {model!r:.200}{more}, not finite in the model",
            severity=Severity.NOTE,
            tensors=len(lost),
            copies=dict(lost),
        )

    def _apart(self, ctx: Context, ema: TensorInfo, model: TensorInfo) -> Iterator[Finding]:
        if len(ema.shape) < 2:
            return
        sizes = _root_mean_square(ctx.stats[ema.name]), _root_mean_square(ctx.stats[model.name])
        high, low = max(sizes), min(sizes)
        if high < self.floor or high < self.ratio * low:
            return
        worse, other = (ema, model) if sizes[0] > sizes[1] else (model, ema)
        yield self.finding(
            worse,
            f"its values are about {shown(high)}, those of its copy {other.name!r:.200} about "
            f"{shown(low)}",
            severity=Severity.WARNING,
            limit=f"at least {self.ratio:g} times its copy",
            root_mean_square=high,
            copy_root_mean_square=low,
            copy=other.name,
        )


def _root_mean_square(stats: TensorStats) -> float:
    return math.hypot(stats.mean or 0.0, stats.std or 0.0)
