"""``--bn-reset``: running statistics back to where training starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..edits import Change, Edit, Refusal, Remark
from ..findings import Severity
from ..layers import Layer
from ..rules.batchnorm import short
from .ailments import FIRST, statistics_of
from .base import Ailment, Orders, Patient, Remedy
from .own_laws import own_law

__all__ = ["BnReset", "initial_value"]

_LOSS = {
    "channels": "",
    "layers": "Resetting whole layers loses their healthy channels too: 0.932 of 0.968 where the "
    "channels alone gave 0.972.",
    "all": "Resetting every BatchNorm destroys what the healthy ones know: models that served at "
    "0.93 to 0.99 fell to 0.10 to 0.23.",
}


class BnReset(Remedy):
    """Mean 0 and variance 1, or the layer's own initialisers, in broken channels.

    What it does
    ------------
    The channel normalises as an untrained one does: finite outputs, of another scale than those
    that the next layer was trained on.  A finite mean stays beside a variance that is NaN or
    negative; healthy channels, gamma and beta are left alone.

    What it costs
    -------------
    Little where few layers are broken (accuracy 0.924 of 0.926 with 2 of 100 layers, 0.87 of 0.995
    with 2 of 9), nearly all where all are (0.21 of 0.995).  A donor gives more, ``--recalibrate``
    gives all.
    """

    name = "bn-reset"
    kind = "destructive"
    option = "--bn-reset"

    def asked(self, orders: Orders) -> bool:
        return orders.bn_reset

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        scope = patient.orders.bn_scope if self.asked(patient.orders) else "channels"
        if _LOSS[scope]:
            yield Remark(remedy=self.name, text=_LOSS[scope])
        chosen = [a for a in ailments if a.part in ("mean", "var") and _is_norm(a)]
        left: set[str] = set()
        reset: set[str] = set()
        for ailment in _widened(patient, chosen, scope):
            if ailment.codes and not set(ailment.codes) - {"BN006", "BN009"}:
                continue  # they are at 0 and 1 already, or another layer's: nothing is broken
            if ailment.suspected and not (
                self.asked(patient.orders) and ailment.suspected == FIRST
            ):
                yield from self._left(patient, ailment, left)
                continue
            reset.add(ailment.layer.key if ailment.layer else "")
            yield from self._cost(patient, ailment)
            value = initial_value(ailment.layer, ailment.part)
            title = f"{'mean' if ailment.part == 'mean' else 'variance'} {value:g}"
            yield self.edit(ailment, np.full(ailment.bad.size, value), title)
        every = sum(1 for _ in patient.ctx.layers.batchnorms)
        if 2 * len(reset) >= every > 2 and scope != "all":
            text = (
                f"{len(reset):,} of {every:,} BatchNorms are reset: where all of them were broken "
                "that left an accuracy of 0.21 of 0.995; --donor OLD kept 0.994, "
                "--recalibrate MODEL --data BATCH 0.998."
            )
            yield Remark(remedy=self.name, text=text)
        yield from self._constant(patient, {*left, *reset})

    def _constant(self, patient: Patient, told: set[str]) -> Iterator[Refusal]:
        """Say why variances that are tiny and not 0 stay: a channel that was constant has such."""
        if not self.asked(patient.orders):
            return
        for finding in patient.about("BN004"):
            layer = patient.ctx.layers.of(finding.tensor)
            if layer is None or layer.key in told or finding.severity < Severity.ERROR:
                continue
            reason = "its variances are tiny, and finite: initial ones would be no better"
            yield self.refusal(finding.tensor, reason, (finding.code,), "--donor OLD")

    def unasked_hint(self, patient: Patient, change: Change) -> str:
        layer = patient.ctx.layers.of(change.tensor) if isinstance(change, Edit) else None
        if layer is not None and patient.ctx.graph.feed(layer).source == "input":
            return "--bn-silence"
        return self.option

    def _left(self, patient: Patient, ailment: Ailment, told: set[str]) -> Iterator[Refusal]:
        """Say once for a layer why it is left alone.

        For a warning that is no failure of the remedy; an error that stays is one.
        """
        layer = ailment.layer
        if layer is None or layer.key in told:
            return
        told.add(layer.key)
        names = {info.name for info in layer.parts.values()}
        errors = any(f.severity >= Severity.ERROR and f.tensor in names for f in patient.findings)
        yield Refusal(
            target=ailment.info.name,
            reason=ailment.suspected,
            remedy=self.name if errors and self.asked(patient.orders) else "",
            codes=ailment.codes,
            hint=f"--bn-reset --tensor {statistics_of(layer)}",
        )

    def _cost(self, patient: Patient, ailment: Ailment) -> Iterator[Remark]:
        """Say what a reset of a first layer means for the inputs."""
        if ailment.part != "var" or ailment.layer is None:
            return
        name = ailment.layer.name
        if patient.ctx.graph.feed(ailment.layer).source == "input":
            text = (
                f"{name} stands on the model's input: with variance 1 its channels let raw inputs "
                "through, which cost all accuracy where it was measured (0.104 of 0.981); "
                "--bn-silence switches the channels off instead (0.977)."
            )
            yield Remark(remedy=self.name, text=text)
        elif ailment.suspected == FIRST:
            yield Remark(remedy=self.name, text=_implied(patient, ailment, name))


def _implied(patient: Patient, ailment: Ailment, name: str) -> str:
    finding = next((f for f in patient.about("BN003") if f.tensor == ailment.info.name), None)
    scale = finding.measured.get("implied_input") if finding is not None else None
    told = f" of about {short(scale)} root mean square" if isinstance(scale, float) else ""
    return (
        f"{name} is the first BatchNorm, and only suspected: its variances imply model inputs{told}. "
        "If inputs have that scale, its statistics were right and the reset is wrong."
    )


def _is_norm(ailment: Ailment) -> bool:
    return ailment.layer is not None and ailment.layer.kind == "batchnorm"


def _widened(patient: Patient, ailments: list[Ailment], scope: str) -> Iterator[Ailment]:
    """Ailments of whole layers, or of all, where that was asked for."""
    if scope == "channels":
        yield from ailments
        return
    broken: dict[str, Ailment] = {}
    for ailment in sorted(ailments, key=lambda a: bool(a.suspected)):  # the certain ones decide
        if ailment.layer is not None:
            broken.setdefault(ailment.layer.key, ailment)
    for layer in patient.ctx.layers.batchnorms:
        known = broken.get(layer.key)
        if known is None and scope != "all":
            continue
        for part in ("mean", "var"):
            info = layer.parts.get(part)
            if info is not None and info.encoding == "plain" and info.kind.kind == "float":
                yield Ailment(
                    info=info,
                    layer=layer,
                    part=part,
                    bad=np.arange(info.size, dtype=np.int64),
                    codes=known.codes if known else (),
                    suspected=known.suspected if known else "",
                )


def initial_value(layer: Layer | None, part: str) -> float:
    """Value that the layer's own initialiser gives a part; 1 for variance and gamma, else 0."""
    usual = 1.0 if part in ("var", "gamma") else 0.0
    found = own_law(layer, part) if layer is not None else None
    if found is None or found[0].random or found[0].by_fan:
        return usual
    law = found[0]
    value = {"zeros": 0.0, "ones": 1.0}.get(law.name, dict(law.arguments).get("value", usual))
    sound = isinstance(value, float) and np.isfinite(value) and (part != "var" or value > 0)
    return float(value) if sound else usual
