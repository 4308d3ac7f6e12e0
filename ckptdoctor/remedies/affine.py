"""Gain and offset of a normalisation layer that are NaN or infinite: those of a new layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ..edits import Change, Refusal
from ..layers import Layer
from ..tensors import Array, TensorInfo
from .base import Ailment, Patient, Remedy
from .laws import Law, draw, generator, law
from .own_laws import STORED, fans, own_law

__all__ = ["Affine"]

_CODES = frozenset({"NF001", "NF002", "WT011"})
_PARTS = {"gamma": "gain", "beta": "offset"}
CENTRED = 0.2
"""Median of the means of a file's gains up to which they are differences to one, see WT011."""

_SAYS_NORM = r"norm|(^|[^a-z])(ln|bn|gn|rms)(?![a-z])"


class Affine(Remedy):
    """Give broken channels of a normalisation layer the gain and offset of a new one.

    What it does
    ------------
    Where gamma is NaN or infinite it becomes 1, where beta is it becomes 0, or what the layer's
    own initialisers in a Keras configuration say.  Where the file's other gains lie around 0 they
    are stored as differences to one (Gemma, Megatron's ``layernorm_1p``), and it becomes 0.  Sound
    channels keep their values.

    What it costs
    -------------
    What the channels had learnt.  Trained gains lie between 0.1 and 3 and few are near 1, and a
    gain that was pruned to 0 comes back to life; an older checkpoint (``--donor``) knows better.

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
            values = patient.ctx.read(ailment.info).reshape(-1)[ailment.bad].astype(np.float64)
            lost = ailment.bad[~np.isfinite(values)]
            if not lost.size:
                continue
            if not _is_norm(layer):
                reason = "may be the gain of a normalisation layer or any other vector"
                yield self.refusal(ailment.info.name, reason, ailment.codes, "--donor FILE")
                continue
            chosen, source, made = _new(patient, ailment, layer, lost)
            title = f"{_PARTS[part]} of a new layer: {chosen}, {source}"
            yield self.edit(ailment, made, title, indices=lost)


def _new(patient: Patient, ailment: Ailment, layer: Layer, lost: Array) -> tuple[Law, str, Array]:
    """Law of a part of a new layer, where it is from, and what it gives where values are lost."""
    info, part = ailment.info, ailment.part
    own = own_law(layer, part)
    if own is not None and own[1] == STORED:
        made = _values(patient, info, own[0], lost)
        if np.isfinite(made.astype(np.float64)).all():
            return (*own, made)
    usual, source = law("zeros" if part == "beta" else "ones"), "the usual"
    if part == "gamma" and layer.kind == "norm" and _around_zero(patient):
        usual, source = law("zeros"), "for the file's gains are differences to one"
    return usual, source, _values(patient, info, usual, lost)


def _around_zero(patient: Patient) -> bool:
    """Whether the gains of the file, sound channels of broken ones included, lie around 0."""
    stats = patient.ctx.stats
    gains = [layer.parts["gamma"] for layer in patient.ctx.layers.of_kind("norm")
             if "gamma" in layer.parts and _is_norm(layer)]  # fmt: skip
    means = [abs(mean) for gain in gains if (mean := stats[gain.name].mean) is not None]
    return bool(means) and float(np.median(means)) <= CENTRED


def _is_norm(layer: Layer) -> bool:
    """Whether it is one for certain: a lone vector called ``weight`` may be anything."""
    if layer.kind == "batchnorm" or {"gamma", "beta"} <= set(layer.parts):
        return True
    if "norm" in layer.class_name.lower():
        return True
    leaf = layer.parts["gamma"].path[-1] if "gamma" in layer.parts else ""
    named = re.search(_SAYS_NORM, layer.name[-200:].lower()) is not None
    return named or leaf.partition(":")[0] in ("gamma", "beta")


def _values(patient: Patient, info: TensorInfo, chosen: Law, lost: Array) -> Array:
    """Draw what a law gives the lost elements."""
    dtype = info.kind.numpy
    if not chosen.random:
        one = draw(chosen, (1,), fan_in=1, fan_out=1, rng=generator(0, ""), dtype=dtype)
        return np.repeat(one, lost.size)
    fan_in, fan_out = fans(info.shape, keras=True)
    rng = generator(patient.orders.seed, info.name)
    drawn = draw(chosen, info.shape, fan_in=fan_in, fan_out=fan_out, rng=rng, dtype=dtype)
    return drawn.reshape(-1)[lost]
