"""``--reinit``: tensors drawn anew from the law that they were initialised by, or another."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import DType
from ..edits import Change, Edit, Refusal
from ..errors import UsageError
from ..hints import shown, suggestion
from ..layers import Layer
from ..rules.ema_copies import ema_copies
from ..shell import quoted
from ..tensors import Array, TensorInfo
from .base import Ailment, Orders, Patient, Remedy
from .laws import Law, draw, generator, parse_order, reach, spread
from .own_laws import fans, keras_layout, own_law

__all__ = ["Reinit", "fits"]

_CURED = frozenset({"NF001", "NF002", "BN001", "BN002", "WT003", "WT004", "WT010"})
"""Codes of faults that no law draws again."""

_CURED_IF_RANDOM = frozenset({"WT001", "WT002"})

MAX_WORK = 1e13
"""Multiplications that an orthogonal matrix may take: some minutes on one core."""


class Reinit(Remedy):
    """Draw tensors anew, whole: from a law that was asked for, else from the layer's own.

    What it does
    ------------
    Every tensor that a pattern names gets the values of a new layer.  The law is the one behind
    ``=``, else the one that a Keras configuration stores for it, else the framework's default for
    such a layer: torch draws kernels within one over the root of their inputs, Keras by Glorot.
    Running statistics start at mean 0 and variance 1, their counter at 0.  Values depend on the
    seed and the tensor's name alone; a moving average gets those of its model.

    What it costs
    -------------
    What the tensor had learnt.  The layer has to be trained again, and until then what comes out
    of it is noise; a head for new classes is the case it is made for.  The optimizer's moments for
    it stay: drop them (``--drop-optimizer``), or the first steps follow the old weights.

    How well it does
    ----------------
    It restores nothing.  Moments, bounds and orthogonality are those of the initialisers of torch
    2.13 and Keras 3.15 with the same arguments (tests compare them).
    """

    name = "reinit"
    kind = "destructive"
    option = "--reinit"

    def asked(self, orders: Orders) -> bool:
        return bool(orders.reinit)

    def propose(self, patient: Patient, ailments: Sequence[Ailment]) -> Iterator[Change | Refusal]:
        wanted = _wanted(patient)
        codes = {ailment.info.name: ailment.codes for ailment in ailments}
        twins = _twins(patient, wanted)
        memory, laws = _Memory(), dict[str, Law]()
        for name, law in wanted.items():
            info = patient.ctx.table[name]
            told = _told(patient, info, law)
            if isinstance(told, _Told):
                other = memory.other(info)
                if other:  # another name of what is drawn already
                    if law is not None and told.law != laws[other]:
                        raise _two_wishes(name, other)
                    continue
                laws[name] = told.law
                told = memory.claim(info) or told
            if isinstance(told, str):
                yield self.refusal(name, told, codes.get(name, ()), _hint(info, told))
            else:
                cures = _cures(patient, info, told.law, codes.get(name, ()))
                yield self._drawn(info, told, patient.orders.seed, twins.get(name, name), cures)

    def _drawn(
        self, info: TensorInfo, told: _Told, seed: int, drawn_as: str, cures: tuple[str, ...]
    ) -> Edit:
        random = f", seed {seed}" if told.law.random else ""
        return Edit(
            tensor=info.name,
            indices=None,
            values=partial(_values, info, told, seed, drawn_as),
            remedy=self.name,
            kind=self.kind,
            cures=cures,
            title=f"drawn anew by {told.law}, {told.source}{random}",
        )


class _Told(NamedTuple):
    """A law for a tensor, where it is from, and how the tensor is laid out."""

    law: Law
    source: str
    keras: bool


_NO_LAW = "no law is known for it"


def _hint(info: TensorInfo, why: str) -> str:
    if info.role == "optimizer":
        return "--drop-optimizer"
    return f"--reinit {quoted(info.name[:100] + '=LAW')}" if why == _NO_LAW else ""


def _wanted(patient: Patient) -> dict[str, Law | None]:
    """Tensors to draw, in the table's order; of two patterns the later decides."""
    orders = [(text, *parse_order(text)) for text in patient.orders.reinit]
    found: dict[str, Law | None] = {}
    for text, pattern, law in orders:
        infos = patient.matching(pattern)
        if not infos:
            hint = suggestion(pattern, patient.ctx.table) or "'ckptdoctor inspect' lists names"
            if "=" in text and law is None and not text.endswith("="):
                hint += "; a pattern that holds '=' itself ends with '='"
            raise UsageError(f"no tensor matches {shown(pattern)}", hint=hint)
        found.update({info.name: law for info in infos})
    return {name: found[name] for name in patient.ctx.table if name in found}


def _twins(patient: Patient, wanted: Mapping[str, Law | None]) -> Mapping[str, str]:
    """Map wanted moving averages to the model's tensors whose values they are to have."""
    if all(patient.ctx.table[name].role != "ema" for name in wanted):
        return {}
    return {ema: model for ema, model in ema_copies(patient.ctx).items() if model in wanted}


def _told(patient: Patient, info: TensorInfo, law: Law | None) -> _Told | str:
    """Law for a tensor, or why it is not drawn."""
    why = _untouchable(info)
    if why is not None:
        return why
    layers = patient.ctx.layers
    told = _law_for(info, layers.of(info.name), layers.part_of(info.name), law)
    return (_unfit(info, told) or told) if isinstance(told, _Told) else told


def _untouchable(info: TensorInfo) -> str | None:
    """Say why a tensor is not drawn whatever the law."""
    if info.role not in ("model", "ema"):
        return f"belongs to the {info.role} state, which is not drawn from a law"
    if info.encoding == "absent":
        return "has no stored values"
    if info.encoding != "plain" or info.kind.kind not in ("float", "int"):
        stored = info.encoding if info.encoding != "plain" else info.kind.kind
        return f"holds {stored} values ({info.dtype}); laws are for real numbers"
    return None if info.size else "has no elements"


def _law_for(info: TensorInfo, layer: Layer | None, part: str, asked: Law | None) -> _Told | str:
    """Law for a tensor, or why there is none."""
    counter = layer is not None and layer.kind == "batchnorm" and part == "count"
    if info.kind.kind == "int" and not (counter and asked is None):
        return f"holds integers ({info.dtype}), which are not drawn from a law"
    keras = layer.keras if layer is not None else keras_layout(info)
    if asked is not None:
        if part == "var" and reach(spread(asked, *fans(info.shape, keras=keras)))[0] < 0:
            return f"is a variance, and {asked} gives negative ones"
        return _Told(asked, "as asked", keras)
    if layer is not None and layer.kind == "quantised" and part != "bias":
        return "is quantised: its numbers have a meaning only with their scales"
    own = own_law(layer, part) if layer is not None else None
    return _Told(*own, keras) if own is not None else _NO_LAW


def _unfit(info: TensorInfo, told: _Told) -> str | None:
    """Say why a law cannot be drawn for a shape and type."""
    axes = len(info.shape)
    orthogonal = told.law.name == "orthogonal"
    if axes < 2 and (orthogonal or (told.law.by_fan and not told.keras)):
        return f"has {axes} axes, and {told.law.name} needs inputs and outputs"
    if orthogonal:
        side = info.shape[-1] if told.keras else info.shape[0]
        if 2.0 * info.size * min(side, info.size // side) > MAX_WORK:
            return f"is too large to be made orthogonal ({info.size:,} elements)"
    low, high = reach(spread(told.law, *fans(info.shape, keras=told.keras)))
    if fits(low, info.kind) and fits(high, info.kind):
        return None
    return f"is {info.dtype}, which cannot hold what {told.law} gives ({low:.3g} to {high:.3g})"


def fits(value: float, kind: DType) -> bool:
    """Whether a type holds a number, give or take its own rounding.

    Examples
    --------
    >>> from ckptdoctor.dtypes import DTYPES
    >>> fits(65504.0, DTYPES["float16"]), fits(1e6, DTYPES["float16"]), fits(0.5, DTYPES["int64"])
    (True, False, False)
    """
    if kind.kind in ("int", "bool"):
        if value != math.floor(value):
            return False
        limits = (0, 1) if kind.kind == "bool" else _limits(kind)
        return limits[0] <= value <= limits[1]
    with np.errstate(all="ignore"):
        held = float(np.array([value], np.float64).astype(kind.numpy)[0])
    return abs(held - value) <= abs(value) / 8  # the rounding of float8_e5m2


def _limits(kind: DType) -> tuple[int, int]:
    info = np.iinfo(kind.numpy)
    return int(info.min), int(info.max)


def _values(info: TensorInfo, told: _Told, seed: int, drawn_as: str) -> Array:
    fan_in, fan_out = fans(info.shape, keras=told.keras)
    dtype: np.dtype[Any] = info.kind.numpy
    return draw(
        told.law, info.shape, fan_in=fan_in, fan_out=fan_out,
        rng=generator(seed, drawn_as), dtype=dtype, outputs_last=told.keras,
    )  # fmt: skip


def _cures(patient: Patient, info: TensorInfo, law: Law, known: Sequence[str]) -> tuple[str, ...]:
    """Codes of the findings about a tensor that new values settle."""
    about = [f.code for f in patient.findings if f.tensor == info.name]
    settled = _CURED | (_CURED_IF_RANDOM if law.random else frozenset())
    if law.name != "zeros":
        settled |= {"WT011"}  # a gain of zero, too
    return tuple(dict.fromkeys([*known, *(code for code in about if code in settled)]))


class _Memory:
    """Memory that is drawn already: tied weights are drawn once, overlapping views not at all."""

    def __init__(self) -> None:
        self._drawn: dict[object, str] = {}
        self._taken: dict[str, list[tuple[int, int, str]]] = {}

    def other(self, info: TensorInfo) -> str:
        """Give the name under which the very tensor was taken; empty for none."""
        return self._drawn.get(_place(info), "")

    def claim(self, info: TensorInfo) -> str | None:
        """Take a tensor's memory; say why not where another tensor has taken some of it."""
        if not info.storage or info.extent is None:
            return None
        start, stop = info.extent.offset, info.extent.offset + info.extent.length
        taken = self._taken.setdefault(info.storage, [])
        at = bisect_left(taken, (start, stop, ""))
        for first, last, name in taken[max(0, at - 1) : at + 1]:
            if first < stop and start < last:
                return f"shares memory with {name!r:.200}, which is drawn anew"
        taken.insert(at, (start, stop, info.name))
        self._drawn[_place(info)] = info.name
        return None


def _two_wishes(name: str, other: str) -> UsageError:
    message = f"{name!r:.100} and {other!r:.100} share their memory"
    return UsageError(f"{message}: expected one wish for both, found two")


def _place(info: TensorInfo) -> object:
    """Identity of a tensor's memory and layout."""
    if not info.storage or info.extent is None:
        return info.name
    return info.storage, info.extent.offset, info.dtype, info.shape, info.strides
