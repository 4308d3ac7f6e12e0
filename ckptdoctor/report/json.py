"""Reports as JSON, schema 1: strict (no bare NaN), ASCII only, one finding or tensor a line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from json.encoder import JSONEncoder, encode_basestring_ascii
from typing import Any

from .._version import __version__
from ..findings import Finding
from ..fixes import fix_for
from ..results import Diagnosis, Report, View
from ..tensors import TensorInfo
from .escape import unicode_text
from .rows import chosen_rows

__all__ = ["render"]

_encode = JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": ")).encode
_quoted: Callable[[str], str] = encode_basestring_ascii
_CHUNK_ROWS = 1000


def render(reports: Iterable[Report], view: View) -> Iterator[str]:
    """Yield one JSON document in pieces; reports are taken one by one and not kept.

    Examples
    --------
    >>> print("".join(render([], View())), end="")
    {"schema": 1, "tool": {"name": "ckptdoctor", "version": "0.1.0"}, "reports": []}
    """
    tool = _encode({"name": "ckptdoctor", "version": __version__})
    yield f'{{"schema": 1, "tool": {tool}, "reports": ['
    comma = ""
    for report in reports:
        yield comma
        yield from _report(report, view)
        comma = ",\n"
    yield "]}\n"


def _report(report: Report, view: View) -> Iterator[str]:
    verdict = summary = error = None
    if report.verdict is not None:
        v = report.verdict
        verdict = {"load": v.load, "serve": v.serve, "resume": v.resume}
    if report.summary is not None:
        s = report.summary
        summary = {
            "tensors": s.tensors,
            "parameters": s.parameters,
            "bytes": s.nbytes,
            "errors": s.errors,
            "warnings": s.warnings,
            "notes": s.notes,
        }
    if report.error is not None:
        e = report.error
        message = f"{e.message}; {e.hint}" if e.hint else e.message
        error = _plain({"type": e.type, "message": message, "where": e.where})
    head = {"file": unicode_text(report.file), "format": report.format, "weights": report.weights}
    yield "{\n" + _encode(head)[1:-1] + ",\n"
    yield f'"verdict": {_encode(verdict)},\n"summary": {_encode(summary)},\n'
    yield '"diagnoses": [' + ",\n  ".join(_encode(_diagnosis(d)) for d in report.diagnoses) + "],\n"
    yield '"findings": [' + ",\n  ".join(_encode(_finding(f)) for f in report.findings) + "],\n"
    yield '"tensors": ['
    if report.table is not None:
        yield from _rows(report, view)
    yield "]"
    yield f',\n"error": {_encode(error)}}}'


def _diagnosis(d: Diagnosis) -> dict[str, Any]:
    """Diagnosis; ``cause`` and ``confidence`` are those of the likeliest, null where there is none."""
    top = d.causes[0] if d.causes else None
    told: dict[str, Any] = _plain(
        {
            "key": d.key,
            "title": d.title,
            "severity": d.severity.name.lower(),
            "cause": top and top.name,
            "confidence": top and top.confidence,
            "findings": d.findings,
            "suspect": d.suspect,
            "layers": d.layers,
            "evidence": d.evidence,
            "inference": d.inference,
            "training": d.training,
            "causes": [
                {
                    "name": c.name,
                    "text": c.text,
                    "confidence": c.confidence,
                    "observation": c.observation,
                }
                for c in d.causes
            ],
            "repair": d.repair,
            "snippet": d.snippet,
            "advice": d.advice,
            "next": d.next,
            "next_tells": d.next_tells,
        }
    )
    return told


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.name.lower(),
        "role": finding.role,
        "layer": unicode_text(finding.layer),
        "tensor": unicode_text(finding.tensor),
        "where": unicode_text(finding.where),
        "message": unicode_text(finding.message),
        "measured": _plain(finding.measured),
        "limit": unicode_text(finding.limit),
        "unsafe": finding.unsafe,
        "fix": _fix(finding),
    }


def _fix(finding: Finding) -> dict[str, str] | None:
    fix = fix_for(finding)
    if fix is None:
        return None
    return {"title": unicode_text(fix.title), "class": fix.kind, "remedy": fix.remedy,
            "options": unicode_text(fix.options)}  # fmt: skip


def _plain(value: Any) -> Any:
    """Value as JSON can hold it: non-finite numbers by name, what is unknown as its text."""
    if isinstance(value, str):
        return unicode_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _named(value)
    if isinstance(value, Mapping):
        return {unicode_text(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    return unicode_text(str(value))


def _named(value: float) -> str:
    return "nan" if value != value else "inf" if value > 0 else "-inf"  # noqa: PLR0124


def _rows(report: Report, view: View) -> Iterator[str]:
    """Yield the rows, column-wise and by hand: 3 us each, where the encoder took 9."""
    table, stats = report.table, report.stats
    assert table is not None  # the caller's condition
    assert stats is not None  # a report with a table has its statistics
    infos = chosen_rows(report, view, "all")
    columns = (stats.nan, stats.posinf, stats.neginf, stats.zeros)
    moments = (stats.minimum, stats.maximum, stats.mean, stats.std)
    place = {name: row for row, name in enumerate(table.infos)}
    start = ""
    for at in range(0, len(infos), _CHUNK_ROWS):
        part = infos[at : at + _CHUNK_ROWS]
        rows = [place[info.name] for info in part]
        counts = [column[rows].tolist() for column in columns]
        numbers = [[_number(x) for x in column[rows].tolist()] for column in moments]
        yield start + ",\n  ".join(map(_row, part, *counts, *numbers))
        start = ",\n  "


def _row(info: TensorInfo, nan: int, pos: int, neg: int, zeros: int, *numbers: str) -> str:
    name = info.name if info.name.isascii() else unicode_text(info.name)
    low, high, mean, std = numbers
    return (
        f'{{"name": {_quoted(name)}, "dtype": "{info.dtype}", "shape": {[*info.shape]}, '
        f'"role": "{info.role}", "nan": {nan}, "posinf": {pos}, "neginf": {neg}, "zeros": {zeros}, '
        f'"min": {low}, "max": {high}, "mean": {mean}, "std": {std}}}'
    )


def _number(value: float) -> str:
    """Text of a moment: NaN where there is none; a mean can leave the range of its values."""
    if value - value == 0:
        return repr(value)
    return "null" if value != value else f'"{_named(value)}"'  # noqa: PLR0124
