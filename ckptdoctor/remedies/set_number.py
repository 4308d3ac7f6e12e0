"""``--set PATH=VALUE``: a number of the training state that the caller knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..edits import Change, Class, Edit, NumberEdit, Refusal
from ..errors import UsageError
from ..hints import shown, suggestion
from ..rules.training_state import as_float
from ..shell import quoted
from ..tensors import TensorInfo
from .base import Ailment, Orders, Patient, Remedy
from .reinit import fits

__all__ = ["SetNumber"]

_CURED = frozenset({"TS001", "TS003", "TS004", "TS005", "TS009", "NF001", "NF002"})
"""Findings about one number that another number settles; CF002 is about a layer's epsilon."""

_EPSILONS = frozenset({"eps", "epsilon"})
_MOST_NAMES = 5_000
"""Names that are searched for one alike: comparing takes about 20 us each."""


class SetNumber(Remedy):
    """Set a number: a learning rate, an epsilon, a loss scale, a step counter.

    What it does
    ------------
    Numbers of the training state are set by their path (``optimizer.param_groups.0.lr``), tensors
    of one element by their name; the type stays.  A value that the type cannot hold is refused.

    What it costs
    -------------
    The number that was there.  Where a finding says that it cannot be used (a learning rate of
    NaN, an epsilon of 0) nothing is lost and the caller's number is an estimate of what it should
    be: statistical.  Any other change is destructive, for the file no longer says what was.

    How well it does
    ----------------
    It is exact; whether the number is a good one is the caller's judgement.
    """

    name = "set"
    kind = "destructive"
    option = "--set"

    def asked(self, orders: Orders) -> bool:
        return bool(orders.numbers)

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        del ailments
        table = patient.ctx.table
        for name, value in patient.orders.numbers.items():
            if isinstance(value, bool) or math.isnan(as_float(value)):
                raise UsageError(f"expected a number for {shown(name)}, found {shown(value)}")
            if name in table.scalars:
                yield self._number(patient, name, value)
                variable = _variable(patient, name)
                if variable is not None and variable.name not in patient.orders.numbers:
                    yield self._tensor(patient, variable, value)
            elif name in table.infos:
                yield self._tensor(patient, table[name], value)
            else:
                raise UsageError(f"no number {shown(name)}", hint=_alike(patient, name))
        for finding in patient.about("TS003", "TS004"):
            if finding.tensor not in patient.orders.numbers:
                reason = "is a setting, and nothing in the file says what it should be"
                hint = f"--set {quoted(finding.tensor[:100] + '=NUMBER')}"
                yield Refusal(
                    target=finding.tensor, reason=reason, codes=(finding.code,), hint=hint
                )

    def _number(self, patient: Patient, name: str, value: float) -> NumberEdit:
        before = patient.ctx.table.scalars[name]
        if isinstance(before, float):
            try:
                value = float(value)
            except OverflowError:
                raise UsageError(f"{shown(name)} cannot hold {shown(value)}") from None
        elif as_float(value).is_integer():
            value = int(value)
        cures = _cures(patient, name)
        return NumberEdit(
            name=name, before=before, value=value, remedy=self.name, kind=self._class(cures),
            cures=cures, title=f"set to {shown(value)}, as asked",
        )  # fmt: skip

    def _tensor(self, patient: Patient, info: TensorInfo, value: float) -> Edit:
        where = shown(info.name)
        if info.size != 1:
            hint = f"it holds {info.size:,} of them; --set is for one"
            raise UsageError(f"{where} is no single number", hint=hint)
        if info.encoding != "plain" or info.kind.kind not in ("float", "int", "bool"):
            stored = info.dtype if info.encoding == "plain" else f"{info.encoding} {info.dtype}"
            raise UsageError(f"{where} holds {stored}, which is no plain number")
        if not _holds(info, value):
            raise UsageError(f"{where} is {info.dtype}, which cannot hold {shown(value)}")
        cures = _cures(patient, info.name)
        return Edit(
            tensor=info.name,
            indices=np.zeros(1, np.int64),
            values=np.array([value]).astype(info.kind.numpy),
            remedy=self.name,
            kind=self._class(cures),
            cures=cures,
            title=f"set to {shown(value)}, as asked",
        )

    def _class(self, cures: Sequence[str]) -> Class:
        return "statistical" if cures else self.kind


def _variable(patient: Patient, name: str) -> TensorInfo | None:
    """Variable of Keras that holds a learning rate again, and wins when the file is loaded.

    Keras 2 and 3 name it in ``.h5``; in ``.keras`` and ``.weights.h5`` it is the optimizer's second,
    behind the counter of steps.
    """
    table = patient.ctx.table
    if not table.format.startswith("keras") or name.rpartition("/")[2] not in (
        "learning_rate",
        "lr",
    ):
        return None
    before = table.scalars[name]
    for info in table.values():
        if info.role != "optimizer" or info.size != 1 or info.kind.kind != "float":
            continue
        leaf = info.path[-1].partition(":")[0]
        numbered = info.path[-3:] == ("optimizer", "vars", "1")
        if leaf == "learning_rate" or numbered:
            held = float(table.read(info.name).reshape(-1)[0])
            if math.isclose(held, before, rel_tol=1e-6):
                return info
    return None


def _holds(info: TensorInfo, value: float) -> bool:
    """Whether a tensor's type holds a value; an infinity only where it has one."""
    real = as_float(value)
    if math.isinf(real):
        if isinstance(value, int) or info.kind.kind != "float":
            return False
        with np.errstate(all="ignore"):
            held = float(np.array([value]).astype(info.kind.numpy)[0])
        return held == real
    return fits(value, info.kind)


def _cures(patient: Patient, name: str) -> tuple[str, ...]:
    """Codes of the findings that are about this number."""
    above, _, leaf = name.rpartition(".")
    found = [
        finding.code
        for finding in patient.findings
        if (finding.tensor == name and finding.code in _CURED)
        or (finding.code == "CF002" and leaf in _EPSILONS and above == finding.layer)
    ]
    return tuple(dict.fromkeys(found))


def _alike(patient: Patient, name: str) -> str:
    """Suggest a name that exists, or say where such a number is kept."""
    table = patient.ctx.table
    cut = max(name.rfind("."), name.rfind("/"))
    if name[cut + 1 :] in (*_EPSILONS, "momentum") and name[: max(cut, 0)] in table.layers:
        return "it is part of the stored configuration of a layer, which is not edited"
    known = [*table.scalars, *(info.name for info in table.values() if info.size == 1)]
    same = [other for other in known if other.endswith(name[cut + 1 :])]
    hint = suggestion(name, (same or known)[:_MOST_NAMES])
    return hint or f"the file has {len(known):,} numbers"
