"""What is broken, element by element: findings -> tensors and indices that need other values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from os.path import commonprefix

import numpy as np

from ..findings import Finding, Severity
from ..layers import Layer
from ..rules.batchnorm import Norm, norms_of
from ..rules.optimizer_slots import second_moments
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


def _of_layer(patient: Patient, norm: Norm, findings: Sequence[Finding]) -> Iterator[Ailment]:
    layer = norm.layer
    codes = tuple(dict.fromkeys(finding.code for finding in findings))
    held = _suspected(norm, findings)
    var, mean = _broken_channels(patient, norm, findings)
    if not findings:  # named, and nothing is known against it: all of it
        var = mean = np.ones(layer.channels, bool)
    for part, mask in (("mean", mean), ("var", var)):
        info = layer.parts.get(part)
        if info is None or mask is None or not mask.any() or info.size != mask.size:
            continue
        yield Ailment(
            info=info,
            layer=layer,
            part=part,
            bad=np.flatnonzero(mask).astype(np.int64),
            codes=codes,
            suspected="" if info.name in patient.named else held,
        )


def _suspected(norm: Norm, findings: Sequence[Finding]) -> str:
    """Why the fault is not certain; empty where it is."""
    if norm.on_input and {finding.code for finding in findings} == {"BN003"}:
        return INPUT
    if norm.first and all(finding.code == "BN003" for finding in findings):
        return FIRST if all(f.severity < Severity.ERROR for f in findings) else ""
    info = norm.layer.parts.get("var")
    if info is not None and info.dtype == "float16" and norm.var is not None:
        mean = norm.mean
        overflowed = np.isposinf(norm.var).any() and not np.isnan(norm.var).any()
        if overflowed and (mean is None or np.isfinite(mean).all()):
            return HALF
    if all(finding.severity < Severity.ERROR for finding in findings):
        return "it is finite, and only probably not as intended"
    return ""


def _broken_channels(
    patient: Patient, norm: Norm, findings: Sequence[Finding]
) -> tuple[Array | None, Array | None]:
    """Masks of the channels whose variance, and whose mean, cannot be used.

    A mean survives where only the variance is NaN or negative: of a batch with one value per
    channel the mean is right, and 0 in its place took a model from 0.96 to 0.64 (0.96 with it).
    Beside an infinite or exploded variance it exploded as well: keeping it gave 0.08 and 0.09
    where 0 gave 0.86 and 0.93.
    """
    var, mean = norm.var, norm.mean
    codes = {finding.code for finding in findings}
    lost = None if mean is None else ~np.isfinite(mean)
    if var is None:
        return None, lost
    wrong = ~np.isfinite(var)
    narrow = norm.layer.parts["var"].dtype == "float16"  # there a cast makes Inf of what is finite
    exploded = np.zeros(var.size, bool) if narrow else np.isposinf(var)
    if "BN002" in codes:
        wrong = wrong | (var < 0)
    if "BN003" in codes:
        wild = _exploded(patient, norm, var, findings)
        wrong, exploded = wrong | wild, exploded | wild
    if "BN004" in codes:
        wrong = wrong | (var <= 0)
    if codes & {"BN006", "BN009"}:
        wrong = exploded = np.ones(var.size, bool)
    if lost is not None and lost.size == var.size:
        lost = lost | exploded
    return wrong, lost


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
    common = re.sub(r"([*?[])", r"[\1]", commonprefix(names))  # noqa: RUF071  (by character)
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
