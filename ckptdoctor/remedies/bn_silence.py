"""``--bn-silence``: channels whose statistics are lost are switched off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..edits import Change, Refusal, Remark
from .ailments import BN_CODES, statistics_of
from .base import Ailment, Orders, Patient, Remedy
from .bn_reset import initial_value

__all__ = ["BnSilence"]


class BnSilence(Remedy):
    """Gamma and beta 0 in broken channels, whose statistics become finite.

    What it does
    ------------
    The channel gives 0 whatever its input.  What the others carry is served undisturbed.

    What it costs
    -------------
    The channel.  With one of 4 input bands lost it kept 0.977 of 0.981, where resetting kept
    0.104; where every channel of a layer is broken nothing passes through it (0.10).
    """

    name = "bn-silence"
    kind = "destructive"
    option = "--bn-silence"

    def asked(self, orders: Orders) -> bool:
        return orders.bn_silence

    def propose(
        self, patient: Patient, ailments: Sequence[Ailment]
    ) -> Iterator[Change | Refusal | Remark]:
        if not self.asked(patient.orders):
            return
        broken: dict[str, list[Ailment]] = {}
        for ailment in ailments:
            layer = ailment.layer
            statistics = ailment.part in ("mean", "var") and set(ailment.codes) & set(BN_CODES)
            if layer is None or layer.kind != "batchnorm":
                continue
            if patient.orders.bn_reset and patient.ctx.graph.feed(layer).source != "input":
                continue  # with both options each does what it does better
            if statistics or ailment.info.name in patient.named:
                broken.setdefault(layer.key, []).append(ailment)
        for group in broken.values():
            yield from self._layer(group)

    def _layer(self, group: list[Ailment]) -> Iterator[Change | Refusal | Remark]:
        layer = group[0].layer
        if layer is None:
            return
        held = next((a.suspected for a in group if a.suspected), "")
        group = [ailment for ailment in group if not ailment.suspected] or group
        if held and group[0].suspected:
            hint = f"--bn-silence --tensor {statistics_of(layer)}"
            name = group[0].info.name
            yield Refusal(target=name, reason=held, codes=group[0].codes, hint=hint)
            return
        if "gamma" not in layer.parts and "beta" not in layer.parts:
            reason = f"{layer.name} has no gamma and no beta: it cannot be switched off"
            yield self.refusal(layer.name, reason, group[0].codes, "--bn-reset")
            return
        channels = np.unique(np.concatenate([ailment.bad for ailment in group]))
        if channels.size == layer.channels:
            text = f"every channel of {layer.name} is switched off: nothing passes through it."
            yield Remark(remedy=self.name, text=text)
        for ailment in group:
            value = initial_value(layer, ailment.part)
            title = f"{'mean' if ailment.part == 'mean' else 'variance'} {value:g}"
            yield self.edit(ailment, np.full(ailment.bad.size, value), title)
        for part in ("gamma", "beta"):
            info = layer.parts.get(part)
            if info is None or info.size != layer.channels:
                continue
            silent = Ailment(info=info, layer=layer, part=part, bad=channels, codes=group[0].codes)
            yield self.edit(silent, np.zeros(channels.size), f"{part} 0: the channel is silent")
        if "gamma" not in layer.parts:
            text = f"{layer.name} has no gamma: its channels are reset, not silent."
            yield Remark(remedy=self.name, text=text)
