"""A probe as JSON, schema 1: strict (no bare NaN), ASCII only, a layer or a sign a line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from .._version import __version__
from ..plans import encode
from ..probing.bisect import Search
from ..probing.norms import Agreement, Drift
from ..probing.precision import Precision
from ..probing.results import FirstBad, ProbeReport, Samples, Sign
from ..probing.trace import LayerRow
from ..probing.values import Span
from ..recalibration.scale import Scale
from ..results import ErrorInfo
from .json import _finding, _plain

__all__ = ["SCHEMA", "probe_json"]

SCHEMA = 1


def probe_json(report: ProbeReport) -> str:
    r"""Return one JSON document with every layer.

    ``first`` and ``frozen`` are null where nothing begins, ``training_mode`` without BatchNorms,
    ``scale`` where the samples are of that of training or nothing tells,
    ``error`` where nothing went wrong.  Numbers that are not finite are ``"nan"``, ``"inf"``,
    ``"-inf"``; ranges are null where no value is finite.

    Examples
    --------
    >>> print(probe_json(ProbeReport(model="m.py:build")).partition("\n")[0])
    {"schema": 1, "tool": {"name": "ckptdoctor", "version": "0.1.0"}, "probe": {
    """
    train = report.train
    head: dict[str, Any] = {
        "model": report.model,
        "framework": report.framework,
        "file": report.file,
        "code": report.code,
        "clean": report.clean,
        "data": _samples(report.samples),
        "notes": report.notes,
        "nonfinite_samples": report.bad,
        "batchnorms": report.norms_of,
        "batchnorms_given_nothing_finite": report.blind,
        "scale": report.scale and _scale(report.scale),
        "constant": report.constant,
        "first": _first(report.first),
        "frozen": report.frozen and report.frozen.layer,
        "training_mode": train
        and {
            "batch": train.batch,
            "agreement": _agreement(train.agreement),
            "treated": train.treated,
            "treated_agreement": _agreement(train.healed),
            "pooled_agreement": _agreement(train.pooled),
        },
        "next": [command for command, _ in report.next],
    }
    body = [f'"{name}": {encode(_plain(value))}' for name, value in head.items()]
    lists: dict[str, Iterable[dict[str, Any]]] = {
        "signs": map(_sign, report.signs),
        "norms": map(_drift, report.norms),
        "types": map(_precision, report.precisions),
        "searches": map(_search, report.searches),
        "findings": (
            {**_finding(f), "model_layer": report.layers.get(f.tensor, "")} for f in report.said
        ),
        "layers": map(_row, report.rows),
    }
    body += [f'"{name}": {_lines(items)}' for name, items in lists.items()]
    body += [f'"error": {encode(_plain(_error(report.error)))}']
    tool = encode({"name": "ckptdoctor", "version": __version__})
    joined = ",\n".join(body)
    return f'{{"schema": {SCHEMA}, "tool": {tool}, "probe": {{\n{joined}}}}}\n'


def _lines(items: Iterable[dict[str, Any]]) -> str:
    """List of objects, one a line."""
    return "[" + ",\n  ".join(encode(_plain(item)) for item in items) + "]"


def _span(span: Span) -> dict[str, Any]:
    """Range and counts; null where no value is finite."""
    known = bool(span.finite)
    return {
        "size": span.size,
        "min": span.low if known else None,
        "max": span.high if known else None,
        "mean_abs": span.mean_abs,
        "zeros": span.zeros,
        "nan": span.nan,
        "posinf": span.posinf,
        "neginf": span.neginf,
    }


def _samples(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    return {
        "source": samples.source,
        "kind": samples.kind,
        "samples": samples.total,
        "used": samples.used,
        "shapes": samples.shapes,
        "dtypes": samples.dtypes,
        "values": _span(samples.span),
        "nonfinite": [asdict(sample) for sample in samples.nonfinite],
        "outliers": [asdict(sample) for sample in samples.outliers],
        "large": [asdict(sample) for sample in samples.large],
        "usual": samples.usual,
        "alike": samples.alike,
    }


def _scale(scale: Scale) -> dict[str, Any]:
    return {"layer": scale.norm, "factor": scale.factor, "means_too": scale.together}


def _first(first: FirstBad | None) -> dict[str, Any] | None:
    if first is None:
        return None
    return {
        "layer": first.row.layer,
        "class": first.row.class_name,
        "call": first.row.index,
        "inputs": _span(first.row.inputs),
        "outputs": _span(first.row.outputs),
        "origin": first.origin,
        "reason": first.reason,
        "also": first.others,
    }


def _agreement(found: Agreement | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "samples": found.samples,
        "same": found.same,
        "difference": found.difference,
        "finite": found.finite,
        "reference_finite": found.reference,
    }


def _sign(sign: Sign) -> dict[str, Any]:
    return {
        "kind": sign.kind,
        "severity": sign.severity.name.lower(),
        "layer": sign.layer,
        "message": sign.message,
        "measured": sign.measured,
    }


def _drift(drift: Drift) -> dict[str, Any]:
    return {
        "layer": drift.layer,
        "channels": drift.channels,
        "compared": drift.alive,
        "values": drift.values,
        "nonfinite": drift.nonfinite,
        "negative": drift.negative,
        "far": drift.exploded,
        "new": drift.new,
        "ratio": drift.ratio,
        "typical_ratio": drift.typical,
        "distance": drift.distance,
        "var": drift.var,
        "data_var": drift.data_var,
        "worst": [asdict(channel) for channel in drift.worst],
    }


def _precision(found: Precision) -> dict[str, Any]:
    return {
        "dtype": found.dtype,
        "nonfinite_samples": found.bad,
        "samples": found.samples,
        "first": found.first,
        "call": found.index,
        "training_spoils": found.training,
        "agreement": _agreement(found.agreement),
    }


def _search(search: Search) -> dict[str, Any]:
    return {
        "mode": search.mode,
        "samples": search.samples,
        "culprits": [asdict(culprit) for culprit in search.culprits],
        "groups": search.groups,
        "everyone": search.everyone,
    }


def _row(row: LayerRow) -> dict[str, Any]:
    return {
        "layer": row.layer,
        "class": row.class_name,
        "call": row.index,
        "depth": row.depth,
        "leaf": row.leaf,
        "shape": row.shape,
        "inputs": _span(row.inputs),
        "outputs": _span(row.outputs),
        "began": row.began,
        "constant": row.constant,
        "saturated": row.saturated,
    }


def _error(error: ErrorInfo | None) -> dict[str, Any] | None:
    if error is None:
        return None
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    return {"type": error.type, "message": message, "where": error.where}
