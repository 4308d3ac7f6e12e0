"""TS009: NaN and infinities in the records of the training loop."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..findings import Finding, Severity
from ..roles import role_of
from .base import Case, Context, Rule, rule
from .training_state import is_finite, nonfinite, rows_where

_NAN, _INF = float("nan"), float("inf")

_SCORE = (
    r"(.*[_/])?(best|kth|loss(es)?|scores?|metrics?|acc(uracy)?|error|fitness|reward|value)(_.*)?"
)
"""Numbers whose infinity is worth a note; of others (a norm to clip at) it says "no limit"."""


@rule
class NonfiniteLoopState(Rule):
    """A record of the training loop is NaN or infinite.

    What it means
    -------------
    Nothing for the weights by itself.  An infinite best score is what a loop starts with: no
    validation has improved on it yet.  A loss or a score of NaN says that training had diverged by
    then, or that the metric was computed from nothing (an empty validation set, 0 divided by 0).
    A best score of NaN is never beaten: every comparison with it is false.

    How it happens
    --------------
    Lightning's callbacks keep ``best_model_score``, ``kth_value`` and ``best_k_models``; loops of
    one's own keep ``best_loss = inf`` and histories of losses.

    When to ignore it
    -----------------
    Where the value is infinite.  For NaN, look at what the other rules say about the weights: if
    they are sound, the file was saved in time, or the metric is at fault.
    """

    code = "TS009"
    name = "nonfinite-loop-state"
    severity = Severity.NOTE
    since = "0.1"
    replaces = ("NF001", "NF002", "NF003")
    references = (
        "https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.ModelCheckpoint.html",
        "IEEE 754-2019, section 5.11: comparisons with NaN are false",
    )
    healthy = (
        Case("a finite score", {"callbacks.best": 0.5}, {"callbacks.best": "training"}),
        Case("a weight, another rule's matter", {"fc.weight": [_NAN]}),
        Case("a criterion's own weights", {"loss.proxies": [[_NAN]]}, {"loss.proxies": "training"}),
        Case("a norm to clip at", {}, scalars={"args.max_norm": _INF}),
        Case(
            "a learning rate, another rule's matter",
            {},
            scalars={"optimizer.param_groups.0.lr": _NAN},
        ),
        Case("a module's own attribute", {}, scalars={"act.loss": _NAN}),
    )
    sick = (
        Case("a best score not set yet", {"callbacks.best": _INF}, {"callbacks.best": "training"}),
        Case("a lost score", {"callbacks.kth_value": _NAN}, {"callbacks.kth_value": "training"}),
        Case("a history with a hole", {"logs.val": [1.0, _NAN]}, {"logs.val": "training"}),
        Case("a loss", {}, scalars={"val_loss": _NAN}),
        Case("a best loss", {}, scalars={"best_loss": _INF}),
        Case("a list of losses", {}, scalars={"history.loss.0": 1.0, "history.loss.1": _NAN, "history.loss.2": _NAN}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for info in rows_where(ctx, "training", nonfinite(ctx)):
            if len(info.shape) > 1:
                continue  # weights of a criterion, whose container has such a name
            stats = ctx.stats[info.name]
            message = _message(stats.count, stats.nan, stats.posinf + stats.neginf)
            yield self.finding(
                info,
                message,
                elements=stats.count,
                nan=stats.nan,
                posinf=stats.posinf,
                neginf=stats.neginf,
            )
        yield from self._numbers(ctx)

    def _numbers(self, ctx: Context) -> Iterator[Finding]:
        """Report numbers; a list of them once."""
        lists: dict[str, list[tuple[str, float]]] = {}
        for name, value in ctx.table.scalars.items():
            if not is_finite(value) and _is_record(name, value):
                head, _, last = name.rpartition(".")
                lists.setdefault(head if last.isdecimal() else name, []).append((name, value))
        for numbers in lists.values():
            name, value = numbers[0]
            nan = sum(bool(np.isnan(number)) for _, number in numbers)
            more = f"; {len(numbers) - 1:,} more of this list are not finite" if numbers[1:] else ""
            yield self.number_finding(
                name,
                f"is {'NaN' if np.isnan(value) else 'infinite'}{_hint(nan)}{more}",
                role="training",
                value=value,
                nan=nan,
                numbers=len(numbers),
            )


def _is_record(name: str, value: float) -> bool:
    path = name.split(".")
    if role_of(path) != "training":
        return False
    words = path[-2:] if path[-1].isdecimal() else path[-1:]
    return bool(np.isnan(value)) or any(re.fullmatch(_SCORE, word.lower()) for word in words)


def _message(count: int, nan: int, infinite: int) -> str:
    kinds = " and ".join(f"{n:,} {kind}" for n, kind in ((nan, "NaN"), (infinite, "Inf")) if n)
    if count == 1:
        return f"is {'NaN' if nan else 'infinite'}{_hint(nan)}"
    return f"{kinds} among {count:,} values{_hint(nan)}"


def _hint(nan: int) -> str:
    if nan:
        return ": training had diverged by then, or the metric was computed from nothing"
    return ", as it is before the first result"
