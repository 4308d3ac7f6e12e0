"""Gain and offset of a normalisation layer that are NaN or infinite: those of a new layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ..edits import Change, Refusal
from ..layers import Layer
from ..tensors import Array
from .base import Ailment, Patient, Remedy
from .laws import Law, draw, generator, law
from .own_laws import fans, own_law

__all__ = ["Affine"]

_CODES = frozenset({"NF001", "NF002"})
_PARTS = {"gamma": "gain", "beta": "offset"}
_SAYS_NORM = r"norm|(^|[^a-z])(ln|bn|gn|rms)(?![a-z])"


class Affine(Remedy):
    """Give broken channels of a normalisation layer the gain and offset of a new one.

    What it does
    ------------
    Where gamma is NaN or infinite it becomes 1, where beta is it becomes 0, or what the layer's
    own initialisers in a Keras configuration say.  Sound channels keep their values.

    What it costs
    -------------
    What the channels had learnt.  Trained gains lie between 0.1 and 3 and few are near 1, and a
    gain that was pruned to 0 comes back to life; an older checkpoint (``--donor``) knows better.
    Layers that store gamma - 1 (Gemma's RMSNorm) double their gain where it becomes 1.

    How well it does
    ----------------
    Not measured by itself: where gains are lost, the kernels around them mostly are, too.
    """

    name = "affine"
    kind = "destructive"

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        for ailment in ailments:
            layer, part = ailment.layer, ailment.part
            if layer is None or layer.kind not in ("batchnorm", "norm") or part not in _PARTS:
                continue
            if ailment.suspected or not _CODES.intersection(ailment.codes):
                continue
            if not _is_norm(layer):
                reason = "may be the gain of a normalisation layer or any other vector"
                yield self.refusal(ailment.info.name, reason, ailment.codes, "--donor FILE")
                continue
            own = own_law(layer, part)
            chosen, source = own or (law("ones" if part == "gamma" else "zeros"), "the usual")
            values = _values(patient, ailment, chosen)
            if not np.isfinite(values.astype(np.float64)).all():
                chosen, source = law("ones" if part == "gamma" else "zeros"), "the usual"
                values = _values(patient, ailment, chosen)
            title = f"{_PARTS[part]} of a new layer: {chosen}, {source}"
            yield self.edit(ailment, values, title)


def _is_norm(layer: Layer) -> bool:
    """Whether it is one for certain: a lone vector called ``weight`` may be anything."""
    if layer.kind == "batchnorm" or {"gamma", "beta"} <= set(layer.parts):
        return True
    if "norm" in layer.class_name.lower():
        return True
    leaf = layer.parts["gamma"].path[-1] if "gamma" in layer.parts else ""
    named = re.search(_SAYS_NORM, layer.name[-200:].lower()) is not None
    return named or leaf.partition(":")[0] in ("gamma", "beta")


def _values(patient: Patient, ailment: Ailment, chosen: Law) -> Array:
    info = ailment.info
    fan_in, fan_out = fans(info.shape, keras=True)
    if not chosen.random:
        whole = draw(chosen, (1,), fan_in=1, fan_out=1, rng=generator(0, ""), dtype=info.kind.numpy)
        return np.repeat(whole, ailment.bad.size)
    rng = generator(patient.orders.seed, info.name)
    drawn = draw(chosen, info.shape, fan_in=fan_in, fan_out=fan_out, rng=rng, dtype=info.kind.numpy)
    return drawn.reshape(-1)[ailment.bad]
