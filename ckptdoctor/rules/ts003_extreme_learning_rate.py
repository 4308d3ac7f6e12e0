"""TS003: a learning rate that no training survives."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Finding, Severity
from ..tensors import TensorInfo
from .base import Case, Context, Rule, rule, threshold
from .optimizer_slots import is_second_moment, numbered_variables
from .training_state import Group, groups_of, infos_of, is_finite, only_value, shown

_NAN, _INF = float("nan"), float("inf")


def _torch(lr: float, **settings: float) -> dict[str, float]:
    numbers = {"lr": lr, **settings}
    return {f"optimizer.param_groups.0.{name}": value for name, value in numbers.items()}


@rule
class ExtremeLearningRate(Rule):
    """The learning rate is NaN, negative, or far beyond what trains.

    What it means
    -------------
    The weights in the file may be sound, for they were made by the steps before.  The next step
    is not: Adam and its kin change every weight by about the learning rate, whatever the gradient,
    and SGD by the learning rate times the gradient.  Resuming throws the weights away in one step.

    How it happens
    --------------
    A schedule whose factor is the wrong way round (gamma 10 where 0.1 was meant), a warm-up or a
    polynomial stepped beyond its end (negative), a schedule stepped per batch instead of per
    epoch, a division by zero steps (NaN, Inf), a unit slip in the configuration.

    When to ignore it
    -----------------
    When the schedule sets the rate before the first step.  A rate of 0 or 1e-9 is the normal end
    of a schedule and not reported.  Optimizers that scale by themselves (LARS, Prodigy,
    D-Adaptation, Adafactor, Adadelta) take 1.0, language models were trained by SGD with 30.
    """

    code = "TS003"
    name = "extreme-learning-rate"
    severity = Severity.ERROR
    since = "0.1"
    replaces = ("NF001", "NF002", "TS001")
    references = (
        "Kingma & Ba 2015, arXiv:1412.6980, section 2.1: the step is bounded by the rate",
        "Merity et al. 2017, arXiv:1708.02182: SGD with a rate of 30",
        "You, Gitman & Ginsburg 2017, arXiv:1708.03888: LARS with rates up to tens",
    )
    adaptive_warning: float = threshold(
        1.0,
        unit="learning rate of an optimizer that normalises its steps, exclusive",
        why="every weight moves by about 1 per step, where weights are below 1 (median 0.5)",
        healthy="largest of 23 healthy Adam and RMSprop checkpoints 0.012; Adadelta's default 1",
    )
    adaptive_error: float = threshold(
        10.0,
        unit="learning rate of an optimizer that normalises its steps, inclusive",
        why="one step moves every weight by 20 times the median weight of healthy files",
        healthy="0 of 23 healthy Adam and RMSprop checkpoints above 0.012",
    )
    plain_warning: float = threshold(
        100.0,
        unit="learning rate of any other optimizer, inclusive",
        why="the highest on record that trained are 30 (AWD-LSTM) and about 60 (LARS)",
        healthy="largest of 11 healthy SGD checkpoints 0.1",
    )
    plain_error: float = threshold(
        1000.0,
        unit="learning rate of any optimizer, inclusive",
        why="gradients that survive it are below 1e-4 times the weights",
        healthy="0 of 34 healthy checkpoints above 0.1",
    )
    healthy = (
        Case("the end of a schedule", {}, scalars=_torch(0.0, initial_lr=0.1)),
        Case("almost the end", {}, scalars=_torch(1e-9, momentum=0.9)),
        Case("Adadelta's default", {}, scalars=_torch(1.0, rho=0.9, eps=1e-6)),
        Case("Prodigy", {}, scalars=_torch(1.0, **{"betas.0": 0.9, "d": 1e-4})),
        Case("a language model by SGD", {}, scalars=_torch(30.0, momentum=0)),
        Case("a module's own attribute", {}, scalars={"model.lr": 1e9}),
    )
    sick = (
        Case("a schedule the wrong way round", {}, scalars=_torch(5e7, momentum=0.9, initial_lr=0.05)),
        Case("Adam with 10", {}, scalars=_torch(10.0, **{"betas.0": 0.9})),
        Case("Adam with 2", {}, scalars=_torch(2.0, **{"betas.0": 0.9}), severity=Severity.WARNING),
        Case("SGD with 200", {}, scalars=_torch(200.0, momentum=0.9), severity=Severity.WARNING),
        Case("a schedule past its end", {}, scalars=_torch(-1e-4)),
        Case("NaN", {}, scalars=_torch(_NAN)),
        Case("Inf", {}, scalars=_torch(_INF)),
        Case("Keras configuration", {}, scalars={"compile_config/optimizer/config/learning_rate": 1e4}),
        Case("Keras variable", {"optimizer_weights/sgd/learning_rate": 1e4}, {"optimizer_weights/sgd/learning_rate": "optimizer"}),
    )  # fmt: skip

    def check(self, ctx: Context) -> Iterator[Finding]:
        for group in groups_of(ctx):
            rate = group.first("lr", "learning_rate")
            if rate is None:
                continue
            path, value = rate
            verdict = self._judge(value, normalised=_normalises(group))
            if verdict:
                severity, message, limit = verdict
                start = group.settings.get("initial_lr")
                if start is not None and 0 < start < value < _INF:
                    message += f", {shown(value / start)} times the initial {shown(start)}"
                yield self.number_finding(
                    path, message, severity=severity, limit=limit, learning_rate=value
                )
        for info in _stored_rates(ctx):
            stored = only_value(ctx, info)
            if stored is None:
                continue
            normalised = any(is_second_moment(other) for other in infos_of(ctx, "optimizer"))
            verdict = self._judge(stored, normalised=normalised)
            if verdict:
                severity, message, limit = verdict
                yield self.finding(
                    info, message, severity=severity, limit=limit, learning_rate=stored
                )

    def _judge(self, rate: float, *, normalised: bool) -> tuple[Severity, str, str] | None:
        message = f"the learning rate is {shown(rate)}"
        if not is_finite(rate) or rate < 0:
            return Severity.ERROR, message, "under 0" if rate < 0 else "not finite"
        error = self.adaptive_error if normalised else self.plain_error
        kind = "an optimizer that normalises its steps" if normalised else "any optimizer"
        if rate >= error:
            return Severity.ERROR, message, f"at least {error:g} for {kind}"
        if normalised and rate > self.adaptive_warning:
            return Severity.WARNING, message, f"over {self.adaptive_warning:g} for {kind}"
        if not normalised and rate >= self.plain_warning:
            return Severity.WARNING, message, f"at least {self.plain_warning:g} for {kind}"
        return None


def _normalises(group: Group) -> bool:
    """Whether the optimizer divides its steps by the gradients' size, and not by its own ``d``."""
    known = ("betas.0", "beta_1", "beta_2", "rho", "alpha")
    return "d" not in group.settings and any(name in group.settings for name in known)


def _stored_rates(ctx: Context) -> Iterator[TensorInfo]:
    """Learning rates that are tensors: Keras variables, and torch's where it captures graphs."""
    for info in infos_of(ctx, "optimizer"):
        if info.path[-1].partition(":")[0] in ("learning_rate", "lr"):
            yield info
    for variables in numbered_variables(ctx).values():
        infos = [infos_of(ctx, "optimizer")[place] for place in variables[:3]]
        kinds = [(info.kind.kind, info.shape) for info in infos]
        # Keras 3 puts iteration and rate first; a third scalar may be the slot of a scalar
        if kinds[:2] == [("int", ()), ("float", ())] and kinds[2:] != [("float", ())]:
            yield infos[1]
