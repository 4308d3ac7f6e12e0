"""``--drop-optimizer``: the optimizer's state goes, the rest of the checkpoint stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..edits import Change, Refusal, Removal
from ..findings import Severity
from ..roles import role_of
from .base import Ailment, Orders, Patient, Remedy

__all__ = ["DropOptimizer"]


class DropOptimizer(Remedy):
    """Remove everything that the optimizer has stored.

    What it does
    ------------
    The outermost keys or groups that hold the optimizer's state (``optimizer``,
    ``optimizer_states``, Keras' ``optimizer_weights``) are taken out of the checkpoint, its
    tensors and its numbers.  Weights, scaler, scheduler and counters stay.  A key that holds
    other tensors as well is not touched.

    What it costs
    -------------
    The averages of the last steps and the step counters: a new optimizer starts with its
    warm-up and, for Adam, with steps of the full learning rate.  A loop that insists on finding
    the key has to be told.  Bytes move: this is no overwriting in place.

    How well it does
    ----------------
    It is exact: what stays is what was there.
    """

    name = "drop-optimizer"
    kind = "destructive"
    option = "--drop-optimizer"

    def asked(self, orders: Orders) -> bool:
        return orders.drop_optimizer

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        del ailments
        if not patient.orders.drop_optimizer:
            return
        table = patient.ctx.table
        others = {info.path[0]: info for info in table.values() if info.role != "optimizer"}
        keys = dict.fromkeys(info.path[0] for info in table.values() if info.role == "optimizer")
        keys |= dict.fromkeys(_numbered_only(patient))
        if not keys:
            yield self.refusal("the optimizer", "the file holds no optimizer state")
            return
        going = [key for key in keys if key not in others]
        for key in keys:
            if key in others:
                other = others[key]
                reason = f"holds the optimizer and {other.name!r:.200}, which is {other.role}"
                yield self.refusal(key, reason)
        if going and not others and table:
            yield self.refusal(going[0], "the file would be left without any tensor")
        elif going:
            yield Removal(
                names=tuple(going),
                remedy=self.name,
                kind=self.kind,
                cures=_cured(patient, frozenset(going)),
                title="the optimizer's state goes, moments, counters and settings",
            )


def _numbered_only(patient: Patient) -> Iterator[str]:
    """Yield keys of optimizers that have no tensors: SGD without momentum has only settings.

    Keras' configuration names an optimizer, too: it stays, for a model that is to be trained on.
    """
    if patient.ctx.table.format.startswith("keras"):
        return
    settings = (name for name in patient.ctx.table.scalars if ".param_groups." in name)
    for key in dict.fromkeys(name.partition(".")[0] for name in settings):
        if role_of((key, "param_groups", "")) == "optimizer":
            yield key


def _cured(patient: Patient, keys: frozenset[str]) -> tuple[str, ...]:
    """Codes of the findings about what goes."""
    table = patient.ctx.table
    found: dict[str, None] = {}
    for finding in patient.findings:
        info = table.get(finding.tensor)
        key = info.path[0] if info is not None else finding.tensor.partition(".")[0]
        if finding.severity > Severity.NOTE and finding.tensor and key in keys:
            found[finding.code] = None
    return tuple(found)
