"""Optimizer moments that are NaN, infinite or negative: start them afresh, those elements only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from ..edits import Change, Edit, Refusal
from ..rules.optimizer_slots import numbered_variables, second_moments
from ..rules.training_state import groups_of, infos_of, is_finite
from ..shell import quoted
from ..tensors import TensorInfo
from .base import Ailment, Patient, Remedy

__all__ = ["OptimizerState"]

_CODES = ("TS001", "TS002")

_TORCH_ZERO = frozenset(
    {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_avg_var", "max_exp_avg_var", "exp_inf",
        "exp_avg_diff", "exp_hessian_diag_sq", "momentum_buffer", "square_avg", "grad_avg",
        "acc_delta", "prev",
    }
)  # fmt: skip
"""Slots of torch's optimizers, and those written after them, that start at 0."""

_KERAS_ZERO = frozenset(
    {
        "momentum", "velocity", "velocity_hat", "norm", "average_gradient", "accumulated_grad",
        "accumulated_delta_var", "m", "v", "vhat", "u", "average", "mg", "rms", "accum_grad",
        "accum_var",
    }
)  # fmt: skip
"""Slots of Keras' optimizers of all generations that start at 0."""

_KERAS_OTHER = frozenset({"accumulator", "linear", "r", "c"})

_KERAS_GROUPS = frozenset(
    {"m", "v", "vhat", "u", "r", "c", "momentum", "velocity", "accumulator", "linear", "average",
     "accumulated_grad", "accumulated_delta_var", "average_gradient"}
)  # fmt: skip
"""Keras 2.11 and later: ``Adam/v/fc/kernel``."""

_KERAS_LEAVES = frozenset(
    {"m", "v", "vhat", "rms", "mg", "momentum", "accumulator", "linear", "accum_grad", "accum_var"}
)
"""Keras before 2.11: ``Adam/fc/kernel/v``."""

_KERAS_SUFFIXES = (
    "accumulated_delta_var", "accumulated_grad", "average_gradient", "velocity_hat", "velocity",
    "momentum", "accumulator", "linear", "norm",
)  # fmt: skip
"""Keras 3: ``adam/fc_kernel_velocity``; the longer before those that they end with."""

_DROP = "--drop-optimizer"


class _Slot(NamedTuple):
    """What an optimizer's tensor is: whose, and which of its averages."""

    owner: tuple[str, ...]
    name: str


class OptimizerState(Remedy):
    """Set broken elements of an optimizer's moments back to where they started.

    What it does
    ------------
    NaN, infinities and negative second moments become 0, or what Adagrad's accumulator starts
    with.  The same elements of all moments of that parameter are set back with them, the maximum
    that AMSGrad keeps included.  Second moments alone would be worse than nothing: Adam's step is
    ``lr * m / (sqrt(v) + eps)``, and with v at 0 and m as it was, one step after a gradient of 0
    moves a weight by ``lr * m / eps``, 1e5 times the learning rate for m = 1e-3.  Step counters
    stay: they belong to the whole tensor, and learning rate schedules hang on them.

    What it costs
    -------------
    What a few steps had averaged, for those elements.  Since the counter stays, the correction
    for the start is not made again: Adam's first step there is at most 3.2 times the learning
    rate (0.1 of a gradient by the root of 0.001 of its square), as against 1 for a new optimizer.

    How well it does
    ----------------
    Measured with torch 2.13 and Adam's defaults, 1,200 steps taken, m = 1e-3, next gradient 1e-3
    or 0: the weight moves by 2.6 or 0 learning rates; by 26 or 90,000 where only v is set back.
    """

    name = "optimizer-state"
    kind = "statistical"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        slots = _Slots(patient)
        broken: dict[tuple[object, tuple[int, ...]], list[Ailment]] = {}
        for ailment in ailments:
            if ailment.info.role != "optimizer" or not set(_CODES).intersection(ailment.codes):
                continue
            if ailment.suspected:
                continue
            slot = slots.of(ailment.info)
            reason = _no_moment(ailment.info) if slot is None else slots.refused(slot)
            if reason or slot is None:
                hint = (
                    f"--set {quoted(ailment.info.name[:100] + '=NUMBER')}"
                    if ailment.info.size == 1
                    else _DROP
                )
                yield self.refusal(ailment.info.name, reason, ailment.codes, hint)
            else:
                broken.setdefault((slot.owner, ailment.info.shape), []).append(ailment)
        for (owner, shape), group in broken.items():
            yield from self._parameter(slots, owner, shape, group)
        yield from self._numbers(patient)

    def _parameter(
        self, slots: _Slots, owner: object, shape: tuple[int, ...], group: Sequence[Ailment]
    ) -> Iterator[Edit]:
        """Set the elements that are broken in any of a parameter's moments back in all of them."""
        bad = reduce(np.union1d, (ailment.bad for ailment in group))
        codes = tuple(dict.fromkeys(code for ailment in group for code in ailment.codes))
        own = {ailment.info.name: ailment.codes for ailment in group}
        for info, start in slots.moments(owner, shape):
            with np.errstate(over="ignore"):
                values = np.full(bad.size, start, info.kind.numpy)
            also = "" if info.name in own else ", with the moment that is broken there"
            yield Edit(
                tensor=info.name,
                indices=bad,
                values=values,
                remedy=self.name,
                kind=self.kind,
                cures=own.get(info.name, codes),
                title=f"starts again at {start:g}{also}",
            )

    def _numbers(self, patient: Patient) -> Iterator[Refusal]:
        """Name settings that are not finite: only who trains knows what they were."""
        for finding in patient.about("TS001"):
            name = finding.tensor
            value = patient.ctx.table.scalars.get(name)
            if value is not None and not is_finite(value) and name not in patient.orders.numbers:
                reason = "is a setting or a counter, and nothing in the file says what it was"
                hint = f"--set {quoted(name[:100] + '=NUMBER')}"
                yield Refusal(target=name, reason=reason, codes=(finding.code,), hint=hint)


def _no_moment(info: TensorInfo) -> str:
    leaf = info.path[-1].partition(":")[0]
    if leaf == "step" or info.size == 1:
        return "is a counter or a setting, not a moment: it stays"
    if leaf.isdecimal():
        return "is stored by number, and nothing tells which moments belong together"
    return f"is no moment that is known ({leaf[:40]!r}): what it starts with is not known"


class _Slots:
    """Moments of a checkpoint's optimizers, by parameter; made when first asked for."""

    def __init__(self, patient: Patient) -> None:
        self._ctx = patient.ctx
        self._settings = _keras_settings(patient)
        self._infos = infos_of(patient.ctx, "optimizer")
        self._known: dict[str, _Slot] | None = None
        self._by_owner: dict[object, list[tuple[TensorInfo, str]]] = {}

    def of(self, info: TensorInfo) -> _Slot | None:
        """Whose slot a tensor is; None where that is not known."""
        if self._known is None:
            self._known = {}
            numbered = self._numbered()
            for each in self._infos:
                slot = numbered.get(each.name) or _torch_slot(each) or _keras_slot(each)
                if slot is not None and each.kind.kind in ("float", "complex"):
                    self._known[each.name] = slot
                    self._by_owner.setdefault(slot.owner, []).append((each, slot.name))
        return self._known.get(info.name)

    def refused(self, slot: _Slot) -> str:
        """Say why a parameter's slots cannot be set back; empty where they can."""
        names = {name for _, name in self._by_owner[slot.owner]}
        if "linear" in names:
            return "belongs to Ftrl, which keeps the weights themselves in it"
        if {"exp_avg_sq_row", "r"} & names and slot.name not in _TORCH_ZERO | _KERAS_ZERO:
            return (
                "is a factor of a second moment: one number stands for a row or column of weights"
            )
        return ""

    def moments(self, owner: object, shape: tuple[int, ...]) -> Iterator[tuple[TensorInfo, float]]:
        """Yield the moments of a parameter that have its shape, and what each starts with."""
        for info, name in self._by_owner[owner]:
            if info.shape == shape:
                yield info, self._start(info, name)

    def _start(self, info: TensorInfo, name: str) -> float:
        if name == "sum":
            optimizer = ".".join(info.path[:-3])
            groups = [group for group in groups_of(self._ctx) if group.optimizer == optimizer]
            mine = [group for group in groups if info.path[-2] in group.parameters] or groups
            start = mine[0].settings.get("initial_accumulator_value", 0.0) if mine else 0.0
        elif name == "accumulator":
            start = self._settings.get("initial_accumulator_value", 0.1)
        else:
            return 0.0
        return start if 0 <= start < 65504 else 0.0  # a number of the file, be it what it may

    def _numbered(self) -> dict[str, _Slot]:
        """Slots that are stored by number, where it is known which belong together."""
        found: dict[str, _Slot] = {}
        second = {info.name for info in second_moments(self._ctx)[1]}
        for group, places in numbered_variables(self._ctx).items():
            infos = [self._infos[place] for place in places if self._infos[place].shape]
            owners = _owners(infos, self._settings, second)
            for info, (owner, name) in zip(infos, owners, strict=False):
                found[info.name] = _Slot((group, str(owner)), name)
        return found


def _owners(
    infos: Sequence[TensorInfo], settings: Mapping[str, float], second: set[str]
) -> list[tuple[int, str]]:
    """Parameter and slot of each numbered variable; empty where that is not known.

    Keras 3 numbers Adam's variables m, v, m, v ..., with AMSGrad's maxima behind them all.
    """
    shapes = [info.shape for info in infos]
    count = len(shapes)
    paired = _is_paired(shapes)
    third = count // 3
    tripled = (
        third > 0
        and count % 3 == 0
        and _is_paired(shapes[: 2 * third])
        and shapes[0 : 2 * third : 2] == shapes[2 * third :]
    )
    if _has(settings, "beta_1", "beta_2", "epsilon") or _has(settings, "rho", lacks="momentum"):
        if paired and not tripled:
            return [(place // 2, "mv"[place % 2]) for place in range(count)]
        if tripled and not paired and "beta_1" in settings:
            ahead = [(place // 2, "mv"[place % 2]) for place in range(2 * third)]
            return ahead + [(place, "vhat") for place in range(third)]
        return []
    if _has(settings, "beta_1", "beta_2") or _has(settings, "momentum", lacks="rho"):
        return [(place, "momentum") for place in range(count)]  # Lion, SGD
    if _has(settings, "initial_accumulator_value", lacks="learning_rate_power"):
        return [(place, "accumulator") for place in range(count)]  # Adagrad
    if not settings and paired and not tripled and infos[1].name in second:
        return [(place // 2, "mv"[place % 2]) for place in range(count)]
    return []


def _has(settings: Mapping[str, float], *names: str, lacks: str = "") -> bool:
    return all(name in settings for name in names) and lacks not in settings


def _is_paired(shapes: Sequence[tuple[int, ...]]) -> bool:
    return bool(shapes) and list(shapes[::2]) == list(shapes[1::2])


def _keras_settings(patient: Patient) -> dict[str, float]:
    """Numbers of the optimizer's stored configuration, the inner one's included."""
    groups = [group for group in groups_of(patient.ctx) if not group.optimizer]
    return {name: value for group in groups for name, value in group.settings.items()}


def _torch_slot(info: TensorInfo) -> _Slot | None:
    path = info.path
    if len(path) < 3 or path[-3] != "state":
        return None
    known = path[-1] in _TORCH_ZERO or path[-1] in ("sum", "exp_avg_sq_row", "exp_avg_sq_col")
    return _Slot(path[:-1], path[-1]) if known else None


def _keras_slot(info: TensorInfo) -> _Slot | None:
    path = info.path
    if path[0] != "optimizer_weights" or len(path) < 2:
        return None
    leaf = path[-1].partition(":")[0]
    for depth in (1, 2):
        legacy = depth == 2 and leaf in _KERAS_LEAVES
        if len(path) > depth + 1 and path[depth] in _KERAS_GROUPS and not legacy:
            return _Slot((*path[:depth], "", *path[depth + 1 :]), path[depth])
    if leaf in _KERAS_LEAVES and len(path) > 2:
        return _Slot(path[:-1], leaf)
    for suffix in _KERAS_SUFFIXES:
        if leaf.endswith(f"_{suffix}"):
            return _Slot((*path[:-1], leaf.removesuffix(f"_{suffix}"), "_"), suffix)
    return None
