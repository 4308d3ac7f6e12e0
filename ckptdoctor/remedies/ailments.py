"""What is broken, element by element: findings -> tensors and indices that need other values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import NamedTuple

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..rules.batchnorm import Norm, norms_of
from ..rules.optimizer_slots import second_moments
from ..selection import exactly
from ..shell import quoted
from ..tensors import Array, TensorInfo
from .base import Ailment, Patient

__all__ = ["BN_CODES", "ailments_of", "spikes_of", "statistics_of"]

BN_CODES = ("BN001", "BN002", "BN003", "BN004", "BN006", "BN009")
"""Findings about running statistics whose channels other statistics can cure."""

_VALUE_CODES = ("NF001", "NF002", "TS001", "TS002", "TS006", "WT011")

FIRST = "it may be the scale of the model's inputs: the file cannot tell"
INPUT = "the layer stands on the model's input, whose scale may be as large"
HALF = "in float16 a variance beyond 65504 is infinite without being wrong: the channel is nearly constant"

PROBABLY = "it is finite, and only probably not as intended"

HIDDEN = 1000.0
"""Times the squared norm of its kernel: a channel beside lost ones.  The largest of 1,570 healthy
interior layers is 722, exploded ones start at 1359."""

APART = 10.0
"""Times what is usual in the file: a channel of an exploded layer that is below is left alone.
Healthy channels of interior layers reach 3.8 times the squared norm of their kernel, exploded
layers start at 1359 (their smallest channel at 300)."""


def ailments_of(patient: Patient) -> list[Ailment]:
    """Broken elements of every tensor that a finding is about, in table order.

    Notes are no ailments, and of the warnings only those that something can be done about.
    """
    found = [*_batchnorms(patient), *_values(patient), *spikes_of(patient)]
    rows = {name: row for row, name in enumerate(patient.ctx.table.infos)}
    return sorted(found, key=lambda ailment: rows[ailment.info.name])


# --- running statistics ---------------------------------------------------------------------------


def _batchnorms(patient: Patient) -> Iterator[Ailment]:
    ctx = patient.ctx
    norms = norms_of(ctx)
    by_layer: dict[str, list[Finding]] = {}
    for finding in patient.about(*BN_CODES):
        layer = ctx.layers.of(finding.tensor)
        if layer is not None and finding.severity > Severity.NOTE:
            by_layer.setdefault(layer.key, []).append(finding)
    for index, layer in enumerate(ctx.layers.batchnorms):
        findings = by_layer.get(layer.key)
        if findings or _named(patient, layer):
            yield from _of_layer(patient, norms.norm(index), findings or [])


def _named(patient: Patient, layer: Layer) -> bool:
    return any(
        part in layer.parts and layer.parts[part].name in patient.named for part in ("mean", "var")
    )


class _Fault(NamedTuple):
    """Channels of one layer with one fault; masks of shape ``(channels,)``."""

    var: Array
    mean: Array
    suspected: str = ""


def _of_layer(patient: Patient, norm: Norm, findings: Sequence[Finding]) -> Iterator[Ailment]:
    layer = norm.layer
    codes = tuple(dict.fromkeys(finding.code for finding in findings))
    done = {part: np.zeros(layer.channels, bool) for part in ("mean", "var")}
    for fault in _faults(patient, norm, findings):
        for part, mask in (("mean", fault.mean), ("var", fault.var)):
            info = layer.parts.get(part)
            if info is None or info.size != mask.size:
                continue
            new = mask & ~done[part]
            done[part] |= mask
            if new.any():
                yield Ailment(
                    info=info,
                    layer=layer,
                    part=part,
                    bad=np.flatnonzero(new).astype(np.int64),
                    codes=codes,
                    suspected="" if info.name in patient.named else fault.suspected,
                )


def _faults(patient: Patient, norm: Norm, findings: Sequence[Finding]) -> Iterator[_Fault]:
    """Faults of a layer, the certain ones first; channels that are sound have none.

    A mean survives where only the variance is NaN or negative: of a batch with one value per
    channel the mean is right, and 0 in its place took a model from 0.96 to 0.64 (0.96 with it).
    Beside an infinite or exploded variance it exploded as well: keeping it gave 0.08 and 0.09
    where 0 gave 0.86 and 0.93.
    """
    worst = {f.code: max(g.severity for g in findings if g.code == f.code) for f in findings}
    none, every = np.zeros(norm.layer.channels, bool), np.ones(norm.layer.channels, bool)
    if not findings:  # named, and nothing is known against it: all of it
        yield _Fault(every, every)
        return
    var = norm.var if norm.var is not None and norm.var.size == none.size else None
    lost = none if norm.mean is None or norm.mean.size != none.size else ~np.isfinite(norm.mean)
    if var is None:
        yield _Fault(none, lost)
        return
    infinite = np.isposinf(var)
    cast = none  # in float16, Inf beside a finite mean may be a variance that did not fit
    if norm.layer.parts["var"].dtype == "float16":
        cast = infinite & ~lost
    negative = (var < 0) if "BN002" in worst else none
    sick = (~np.isfinite(var) & ~cast) | negative
    yield _Fault(sick, lost | (infinite & ~cast))
    yield _Fault(cast, none, HALF)
    if "BN003" in worst:
        wild = _exploded(patient, norm, var, findings)
        yield _Fault(wild, wild, _suspected(norm, worst["BN003"]))
    elif sick.any():
        hidden = _hidden(norm, var)
        yield _Fault(hidden, hidden)
    if "BN004" in worst:
        yield _Fault(var <= 0, none, "" if worst["BN004"] is Severity.ERROR else PROBABLY)
    stale = [worst[code] for code in ("BN006", "BN009") if code in worst]
    if stale:
        yield _Fault(every, every, "" if max(stale) is Severity.ERROR else PROBABLY)


def _suspected(norm: Norm, severity: Severity) -> str:
    """Why an exploded variance is not certain; empty where it is."""
    if norm.on_input:
        return INPUT
    if severity is Severity.ERROR:
        return ""
    return FIRST if norm.first else PROBABLY


def _exploded(patient: Patient, norm: Norm, var: Array, findings: Sequence[Finding]) -> Array:
    """Channels of an exploded layer that exploded; where that cannot be told apart, all."""
    finding = next(f for f in findings if f.code == "BN003")
    finite = np.isfinite(var)
    if "at" in finding.measured:  # single channels of an ordinary layer
        peak, middle = float(var[finite].max()), float(finding.measured["median"])
        return np.asarray(finite & (var > np.sqrt(peak * max(middle, 1e-12))))
    squares = norm.squared_norms
    if norm.first or squares is None:
        return np.asarray(finite)
    # where most layers exploded, what is usual in the file says nothing
    usual = float(np.clip(norms_of(patient.ctx).typical(norm.layer.role), 1.0, APART))
    return np.asarray(finite & (var > np.maximum(1.0, APART * usual * squares)))


def _hidden(norm: Norm, var: Array) -> Array:
    """Channels that exploded beside others that are NaN: of such a layer BN003 says nothing."""
    reference, squares = norm.reference, norm.squared_norms
    if norm.first or norm.on_input or reference is None or not reference.exact or squares is None:
        return np.zeros(var.size, bool)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(var) & (var > np.maximum(1.0, HIDDEN * squares)))


def statistics_of(layer: Layer) -> str:
    """Pattern that names a layer's mean and variance, as the shell needs it.

    Examples
    --------
    >>> from ckptdoctor.rules.base import Case
    >>> ctx = Case("", {"a [1].running_mean": [0.0], "a [1].running_var": [1.0]}).context()
    >>> print(statistics_of(next(ctx.layers.batchnorms)))
    'a [[]1].running_*'
    """
    names = [layer.parts[part].name for part in ("mean", "var") if part in layer.parts]
    common = exactly(commonprefix(names))  # noqa: RUF071  (by character)
    return quoted(common if len(names) == 1 else f"{common}*")


# --- everything else ------------------------------------------------------------------------------


def _values(patient: Patient) -> Iterator[Ailment]:
    """Elements that are not finite, and negative second moments."""
    codes: dict[str, list[str]] = {}
    for finding in patient.about(*_VALUE_CODES):
        if finding.severity > Severity.NOTE and finding.tensor in patient.ctx.table.infos:
            codes.setdefault(finding.tensor, []).append(finding.code)
    for finding in patient.about("TS006"):
        for name in finding.measured.get("copies", {}):
            if name in patient.ctx.table.infos:
                codes.setdefault(name, []).append("TS006")
    squares = {info.name for info in second_moments(patient.ctx)[1]} if codes else set()
    for name, about in codes.items():
        info = patient.ctx.table[name]
        layer = patient.ctx.layers.of(name)
        part = patient.ctx.layers.part_of(name) if layer is not None else ""
        if layer is not None and layer.kind == "batchnorm" and part in ("mean", "var"):
            if "BN001" not in about and "TS006" not in about:
                continue
            if any(f.code in BN_CODES and f.tensor == name for f in patient.findings):
                continue
        bad = _bad_elements(patient, info, negative=name in squares)
        if bad.size:
            yield Ailment(
                info=info, layer=layer, part=part, bad=bad, codes=tuple(dict.fromkeys(about))
            )


def spikes_of(patient: Patient) -> Iterator[Ailment]:
    """Single weights that WT004 found, as ailments; of shared memory under its first name."""
    seen = set()
    for finding in patient.about("WT004"):
        info = patient.ctx.table.infos.get(finding.tensor)
        if info is None or finding.severity <= Severity.NOTE:
            continue
        memory = info if info.extent is None else (info.extent, info.dtype, info.strides)
        if memory in seen:
            continue
        seen.add(memory)
        layer = patient.ctx.layers.of(info.name)
        at = [np.ravel_multi_index(place, info.shape) for place in finding.measured["index"]]
        yield Ailment(
            info=info,
            layer=layer,
            part=patient.ctx.layers.part_of(info.name) if layer is not None else "",
            bad=np.array(sorted(at), np.int64),
            codes=("WT004",),
        )


def _bad_elements(patient: Patient, info: TensorInfo, *, negative: bool) -> Array:
    """Flat indices of elements that are not finite, and of those below 0 where they must not be."""
    if info.encoding != "plain" or info.kind.kind not in ("float", "complex"):
        return np.zeros(0, np.int64)
    found, start = [], 0
    for block in patient.ctx.table.blocks(info):
        pairs = bool(block.dtype.fields)  # complex32
        with np.errstate(invalid="ignore"):
            mask = ~np.isfinite(block.view(np.float16) if pairs else block)
            if pairs:
                mask = mask[::2] | mask[1::2]
            if negative:
                mask = mask | (block < 0)
        found.append(np.flatnonzero(mask).astype(np.int64) + start)
        start += block.size
    return np.concatenate(found) if found else np.zeros(0, np.int64)
