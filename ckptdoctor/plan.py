"""Findings + orders -> plan: every remedy in turn, for what the ones before it left."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .edits import CLASSES, Change, Edit, NumberEdit, Refusal, Remark, Removal, RepairPlan, Restamp
from .errors import UsageError
from .findings import Severity
from .hints import suggestion
from .remedies import LADDER
from .remedies.ailments import ailments_of
from .remedies.base import Ailment, Patient, Remedy
from .selection import exactly
from .shell import quoted
from .tensors import Array, TensorInfo

__all__ = ["make_plan", "name_tensors"]

_STATISTICS = {"mean", "var"}
"""Parts of one layer that one refusal speaks for."""


def make_plan(patient: Patient) -> RepairPlan:
    """Plan the repair of a diagnosed checkpoint.

    Where actions are asked for by name, they are all that is done.  Otherwise each finding gets
    the best remedy whose class is allowed.

    Raises
    ------
    UsageError
        If the orders name tensors, numbers or laws that do not exist.
    """
    explicit = patient.orders.actions
    _check_named(patient)
    planner = _Planner(patient)
    for remedy in LADDER:
        if not explicit or remedy.asked(patient.orders):
            planner.take(remedy)
    planner.conclude(explicit=explicit)
    return RepairPlan(
        changes=tuple(planner.changes),
        refusals=tuple(planner.refusals),
        warnings=tuple(dict.fromkeys(planner.warnings)),
        explicit=explicit,
    )


def _check_named(patient: Patient) -> None:
    """Refuse to reset or silence tensors that are no running statistics."""
    orders = patient.orders
    if not patient.named or orders.donor or not (orders.bn_reset or orders.bn_silence):
        return
    parts = {patient.ctx.layers.part_of(name) for name in patient.named}
    if not parts & _STATISTICS:
        option = "--bn-reset" if orders.bn_reset else "--bn-silence"
        message = f"{option} treats running means and variances, and --tensor names none"
        raise UsageError(message, where=patient.ctx.table.path)


def name_tensors(patient: Patient) -> frozenset[str]:
    """Tensors that the orders' patterns name.

    Raises
    ------
    UsageError
        If a pattern names none.
    """
    names: set[str] = set()
    for pattern in patient.orders.tensors:
        found = {info.name for info in patient.matching(pattern)}
        if not found:
            layers = dict.fromkeys(info.layer for info in patient.ctx.table.values())
            hint = suggestion(pattern, (*patient.ctx.table.infos, *filter(None, layers)))
            message = f"no tensor matches {pattern!r:.200}"
            raise UsageError(message, where=patient.ctx.table.path, hint=hint)
        names |= found
    return frozenset(names)


class _Planner:
    """The plan as it comes together.

    Ailments and edits are kept by tensor and by memory: a file may have 20,000 sick layers.
    """

    def __init__(self, patient: Patient) -> None:
        self._patient = patient
        ailments = ailments_of(patient)
        if patient.named:
            ailments = [a for a in ailments if a.info.name in patient.named]
        self._open: dict[str, list[Ailment]] = {}
        self._names: dict[TensorInfo, list[str]] = {}
        for ailment in ailments:
            self._open.setdefault(ailment.info.name, []).append(ailment)
        for name in self._open:
            memory = _memory(patient.ctx.table[name])
            if memory is not None:
                self._names.setdefault(memory, []).append(name)
        self._made: dict[TensorInfo, list[Edit]] = {}
        self.changes: list[Change] = []
        self.refusals: list[Refusal] = []
        self.warnings: list[str] = []

    @property
    def left(self) -> tuple[Ailment, ...]:
        """Ailments that nothing treats yet."""
        return tuple(ailment for group in self._open.values() for ailment in group)

    def take(self, remedy: Remedy) -> None:
        """Let a remedy propose for what is open."""
        before, remarks = len(self.changes), list[str]()
        for proposed in remedy.propose(self._patient, self.left):
            if isinstance(proposed, Remark):
                remarks.append(proposed.text)
            elif isinstance(proposed, Refusal):
                self.refusals.append(proposed)
            elif self._is_told(proposed):
                continue
            elif self._allowed(remedy, proposed):
                self.changes.append(proposed)
                self._close(proposed)
            else:
                hint = remedy.unasked_hint(self._patient, proposed)
                self.refusals.append(_not_allowed(remedy, proposed, hint))
        if len(self.changes) > before:  # what nobody does costs nothing
            self.warnings += remarks

    def _allowed(self, remedy: Remedy, change: Change) -> bool:
        orders = self._patient.orders
        if remedy.asked(orders):
            return True
        return CLASSES.index(change.kind) <= CLASSES.index(orders.allow)

    def _is_told(self, change: Change) -> bool:
        """Whether the same memory is treated already, under another name."""
        if not isinstance(change, Edit):
            return False
        memory = _memory(self._patient.ctx.table[change.tensor])
        for other in self._made.get(memory, ()) if memory is not None else ():
            if other.tensor == change.tensor or not _same_indices(change.indices, other.indices):
                continue
            if not change.cures and other.title != change.title:
                message = f"{change.tensor!r:.100} and {other.tensor!r:.100} share their memory"
                raise UsageError(f"{message}: expected one wish for both, found two")
            return True
        return False

    def _close(self, change: Change) -> None:
        """Take what a change treats off the list, other names of the same memory included."""
        if not isinstance(change, Edit):
            return
        memory = _memory(self._patient.ctx.table[change.tensor])
        if memory is not None:
            self._made.setdefault(memory, []).append(change)
        for name in self._reached(change):
            group = self._open.pop(name, [])
            rest = [
                left
                for ailment in group
                if change.indices is not None
                and (left := ailment.without(change.indices)) is not None
            ]
            if rest:
                self._open[name] = rest

    def _targets(self, change: Change) -> tuple[str, ...]:
        """Tensors or the number that a change is about; an empty name for the file."""
        if isinstance(change, Edit):
            return self._reached(change)
        return (change.name if isinstance(change, NumberEdit) else "",)

    def _reached(self, edit: Edit) -> tuple[str, ...]:
        """Tensors that change with an edit: its own, and ailing ones of the same memory."""
        memory = _memory(self._patient.ctx.table[edit.tensor])
        names = self._names.get(memory, []) if memory is not None else []
        return (edit.tensor, *(name for name in names if name != edit.tensor))

    def conclude(self, *, explicit: bool) -> None:
        """Say of what nothing treats why not; keep one refusal of each, and none of what is cured."""
        table = self._patient.ctx.table
        gone = {name for c in self.changes if isinstance(c, Removal) for name in c.names}
        self.changes = [
            c for c in self.changes if not (isinstance(c, Edit) and table[c.tensor].path[0] in gone)
        ]
        still = set(self._open)
        edits = [change for change in self.changes if isinstance(change, Edit)]
        treated = {name for edit in edits for name in self._reached(edit)} - still
        kept: dict[tuple[str, str], Refusal] = {}
        for refusal in self.refusals:
            if refusal.target not in treated:
                kept.setdefault((refusal.target, refusal.remedy), refusal)
        told = {target for target, _ in kept}
        layers = {a.layer.key for a in self.left if a.layer is not None and a.info.name in told}
        if not explicit:
            for ailment in self.left:
                layer = ailment.layer if ailment.part in _STATISTICS else None
                known = layer is not None and layer.key in layers
                if ailment.info.name not in told and not known:
                    kept[ailment.info.name, ""] = _untreated(ailment)
                told.add(ailment.info.name)
            for refusal in self._unknown(told):
                kept[refusal.target, ""] = refusal
        self.refusals = list(kept.values())

    def _unknown(self, told: set[str]) -> Iterator[Refusal]:
        """Errors that no remedy knows."""
        cured = {
            (code, name)
            for change in self.changes
            for name in self._targets(change)
            for code in change.cures
        }
        codes = {code for code, _ in cured}
        for finding in self._patient.findings:
            target = finding.tensor or finding.where
            if finding.severity < Severity.ERROR or target in told:
                continue
            if (finding.code, finding.tensor) in cured or (
                not finding.tensor and finding.code in codes
            ):
                continue
            reason = f"no remedy is known for {finding.name}"
            yield Refusal(target=target, reason=reason, codes=(finding.code,))


def _memory(info: TensorInfo) -> TensorInfo | None:
    """Return what is the same of two names of one tensor; None where memory is not shared."""
    if info.extent is None:
        return None
    return info._replace(name="", path=(), layer_name="", role="model")


def _same_indices(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


_NOT_UNASKED = {
    "destructive": "invents values, and is done only when asked for; --donor OLD and --recalibrate restore more",
    "statistical": "estimates what was there, which --allow lossless rules out",
}


def _not_allowed(remedy: Remedy, change: Change, hint: str) -> Refusal:
    target = change.tensor if isinstance(change, Edit) else change.title
    if isinstance(change, Restamp):
        target = change.where
    return Refusal(
        target=target,
        reason=f"{remedy.name} {_NOT_UNASKED[change.kind]}",
        remedy=remedy.name,
        codes=change.cures,
        hint=hint,
    )


def _untreated(ailment: Ailment) -> Refusal:
    """Say why nothing is done about an ailment."""
    info = ailment.info
    if ailment.part in _STATISTICS:
        hint = "--donor OLD, or --recalibrate MODEL --data BATCH"
        reason = "no other statistics are at hand"
    elif info.role == "optimizer":
        reason, hint = "its initial value is not known", "--drop-optimizer"
    elif ailment.part in ("gamma", "beta"):
        reason, hint = "what was trained is lost", "--donor OLD"
    else:
        reason = "what was trained is lost: no statistic tells a weight"
        hint = f"--donor OLD --tensor {quoted(exactly(info.name))}"
    return Refusal(target=info.name, reason=reason, codes=ailment.codes, hint=hint)
