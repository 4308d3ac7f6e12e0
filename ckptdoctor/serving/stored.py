"""
Reports as JSON documents and back: what a cache keeps of a verdict.

Kept is all that a report tells once its file is closed: verdict, findings, diagnoses, and of the
table names, shapes, dtypes, roles and statistics. Where the bytes lay is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, get_args

from ..findings import Finding, Severity
from ..results import (
    Cause,
    Diagnosis,
    Fitness,
    Loading,
    Part,
    Report,
    Summary,
    Verdict,
    Wishes,
)

__all__ = ["as_document", "detached", "from_document"]

Document = dict[str, Any]
_T = TypeVar("_T")

_COUNTS = ("nan", "posinf", "neginf", "zeros")
_MOMENTS = ("minimum", "maximum", "mean", "std")
_ROLES = ("model", "ema", "optimizer", "scaler", "training", "other")
_ENCODINGS = ("plain", "quantised", "opaque", "absent")


def detached(report: Report) -> Report:
    """Report whose table holds on to no file, so that it can be kept, compared and pickled."""
    table = report.table
    if table is None:
        return report
    infos = {
        name: info._replace(extent=None, strides=None, storage="", quantisation=None)
        for name, info in table.infos.items()
    }
    kept = type(table)(
        path=table.path,
        format=table.format,
        infos=infos,
        metadata=dict(table.metadata),
        scalars=dict(table.scalars),
    )
    return replace(report, table=kept)


def as_document(report: Report) -> Document:
    """Turn a report on a file that was checked into plain data for strict JSON.

    Raises
    ------
    ValueError
        If it is about a file that could not be checked: that is not kept.
    """
    if report.verdict is None or report.summary is None or report.table is None:
        raise ValueError("not a report on a file that was checked")
    verdict, summary = report.verdict, report.summary
    return {
        "file": report.file,
        "format": report.format,
        "weights": report.weights,
        "verdict": [verdict.load, verdict.serve, verdict.resume],
        "summary": {
            "tensors": summary.tensors,
            "parameters": summary.parameters,
            "nbytes": summary.nbytes,
            "errors": summary.errors,
            "warnings": summary.warnings,
            "notes": summary.notes,
            "dtypes": dict(summary.dtypes),
            "parts": [[p.role, p.tensors, p.elements, p.nbytes] for p in summary.parts],
        },
        "findings": [_finding(finding) for finding in report.findings],
        "relevant": list(report.relevant),
        "diagnoses": [_diagnosis(diagnosis) for diagnosis in report.diagnoses],
        "table": _table(report),
    }


def _finding(f: Finding) -> Document:
    return {
        "code": f.code, "name": f.name, "severity": int(f.severity), "message": f.message,
        "role": f.role, "tensor": f.tensor, "layer": f.layer, "where": f.where,
        "measured": _packed(f.measured), "unsafe": f.unsafe, "limit": f.limit,
    }  # fmt: skip


def _diagnosis(d: Diagnosis) -> Document:
    return {
        "key": d.key, "title": d.title, "severity": int(d.severity), "findings": list(d.findings),
        "layers": list(d.layers), "suspect": d.suspect, "evidence": list(d.evidence),
        "inference": d.inference, "training": d.training,
        "causes": [[c.name, c.text, c.confidence, c.observation] for c in d.causes],
        "repair": d.repair, "advice": list(d.advice), "snippet": list(d.snippet),
        "next": d.next, "next_tells": d.next_tells,
    }  # fmt: skip


def _table(report: Report) -> Document:
    table, stats = report.table, report.stats
    assert table is not None  # the caller's condition
    assert stats is not None  # a report with a table has its statistics
    return {
        "path": table.path,
        "metadata": dict(table.metadata),
        "scalars": _packed(table.scalars),
        "infos": [
            [i.name, list(i.path), i.dtype, list(i.shape), i.role, i.encoding, i.big_endian,
             i.layer_name]
            for i in table.infos.values()
        ],
        "counts": [getattr(stats, name).tolist() for name in _COUNTS],
        "moments": [[_packed(x) for x in getattr(stats, name).tolist()] for name in _MOMENTS],
    }  # fmt: skip


def _packed(value: Any) -> Any:
    """Value as strict JSON can hold it; what is no list, mapping or number becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Mapping):
        return {"map": {str(key): _packed(item) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    if isinstance(value, set | frozenset):
        return [_packed(item) for item in sorted(value, key=repr)]
    if hasattr(value, "item"):  # a NumPy scalar
        return _packed(value.item())
    return str(value)


def from_document(document: Any, wishes: Wishes) -> Report:
    """Report that a document was made of, for the same wishes.

    Raises
    ------
    ValueError
        If it is no such document. Whatever it holds, no other exception leaves.
    """
    try:
        return _report(document, wishes)
    except (
        ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise ValueError(f"not a stored report: {type(error).__name__}") from None


def _report(document: Any, wishes: Wishes) -> Report:
    findings = _many(document["findings"], _unpacked_finding)
    relevant = _many(document["relevant"], _flag)
    load, serve, resume = document["verdict"]
    if len(findings) != len(relevant):
        raise ValueError("findings")
    diagnoses = _many(document["diagnoses"], _unpacked_diagnosis)
    if any(not 0 <= at < len(findings) for d in diagnoses for at in d.findings):
        raise ValueError("diagnoses")
    table, stats = _unpacked_table(document["table"], _text(document["format"]))
    return Report(
        file=_text(document["file"]),
        format=_text(document["format"]),
        weights=_one_of(document["weights"], ("model", "ema")),
        verdict=Verdict(
            load=_one_of(load, get_args(Loading)),
            serve=_one_of(serve, get_args(Fitness)),
            resume=_one_of(resume, get_args(Fitness)),
        ),
        summary=_summary(document["summary"]),
        findings=findings,
        diagnoses=diagnoses,
        wishes=wishes,
        relevant=relevant,
        table=table,
        stats=stats,
        cached=True,
    )


def _summary(document: Any) -> Summary:
    numbers = ("tensors", "parameters", "nbytes", "errors", "warnings", "notes")
    return Summary(
        **{name: _count(document[name]) for name in numbers},
        dtypes={_text(key): _count(value) for key, value in document["dtypes"].items()},
        parts=tuple(
            Part(_text(role), _count(tensors), _count(elements), _count(nbytes))
            for role, tensors, elements, nbytes in document["parts"]
        ),
    )


def _unpacked_finding(document: Any) -> Finding:
    words = ("code", "name", "message", "tensor", "layer", "where", "limit")
    return Finding(
        role=_one_of(document["role"], (*_ROLES, "container")),
        severity=_severity(document["severity"]),
        measured=_mapping(document["measured"]),
        unsafe=_flag(document["unsafe"]),
        **{word: _text(document[word]) for word in words},
    )


def _unpacked_diagnosis(document: Any) -> Diagnosis:
    words = ("key", "title", "suspect", "inference", "training", "repair", "next", "next_tells")
    lists = ("layers", "evidence", "advice", "snippet")
    told: dict[str, Any] = {word: _text(document[word]) for word in words}
    told |= {name: _many(document[name], _text) for name in lists}
    return Diagnosis(
        severity=_severity(document["severity"]),
        findings=_many(document["findings"], _count),
        causes=_many(document["causes"], _cause),
        **told,
    )


def _cause(row: Any) -> Cause:
    name, text, confidence, observation = row
    return Cause(
        name=_text(name),
        text=_text(text),
        confidence=_one_of(confidence, ("high", "medium", "low")),
        observation=_text(observation),
    )


def _unpacked_table(document: Any, format: str) -> tuple[Any, Any]:
    import numpy as np  # noqa: PLC0415  (60 ms; telling an unusable entry does without)

    from ..measure.stats import Columns, StatsTable  # noqa: PLC0415
    from ..tensors import TensorTable  # noqa: PLC0415

    infos = [_info(row) for row in document["infos"]]
    by_name = {info.name: info for info in infos}
    counts = [_many(column, _count) for column in document["counts"]]
    moments = [_many(column, _number) for column in document["moments"]]
    columns = [*counts, *moments]
    if len(by_name) != len(infos) or any(len(column) != len(infos) for column in columns):
        raise ValueError("table")
    made: dict[str, Any] = {
        name: np.array(column, np.int64) for name, column in zip(_COUNTS, counts, strict=True)
    }
    made |= {
        name: np.array(column, np.float64) for name, column in zip(_MOMENTS, moments, strict=True)
    }
    table = TensorTable(
        path=_text(document["path"]),
        format=format,
        infos=by_name,
        metadata={_text(key): _text(value) for key, value in document["metadata"].items()},
        scalars=_mapping(document["scalars"]),
    )
    return table, StatsTable(by_name, (info.size for info in infos), Columns(**made))


def _info(row: Any) -> Any:
    from ..dtypes import DTYPES  # noqa: PLC0415
    from ..tensors import TensorInfo  # noqa: PLC0415

    name, path, dtype, shape, role, encoding, big_endian, layer_name = row
    return TensorInfo(
        name=_text(name),
        path=_many(path, _text),
        dtype=_one_of(dtype, DTYPES),
        shape=_many(shape, _count),
        role=_one_of(role, _ROLES),
        encoding=_one_of(encoding, _ENCODINGS),
        big_endian=_flag(big_endian),
        layer_name=_text(layer_name),
    )


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if isinstance(value, dict):
        if "map" in value:
            return {_text(key): _unpacked(item) for key, item in value["map"].items()}
        return float(_one_of(value["float"], ("nan", "inf", "-inf")))
    return value


def _mapping(value: Any) -> dict[str, Any]:
    unpacked = _unpacked(value)
    if not isinstance(unpacked, dict):
        raise TypeError("mapping")
    return unpacked


def _number(value: Any) -> float:
    unpacked = _unpacked(value)
    if type(unpacked) is not float:
        raise TypeError("number")
    return unpacked


def _many(value: Any, each: Callable[[Any], _T]) -> tuple[_T, ...]:
    if not isinstance(value, list):
        raise TypeError("list")
    return tuple(map(each, value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("flag")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("count")
    return value


def _severity(value: Any) -> Severity:
    return Severity(_count(value))


def _one_of(value: Any, known: Sequence[str] | Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ValueError("choice")
    return value
