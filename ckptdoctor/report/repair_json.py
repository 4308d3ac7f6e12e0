"""Outcome of a repair as JSON, schema 1: strict (no bare NaN), ASCII only, no values of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._version import __version__
from ..edits import Change, Edit
from ..outcome import Before, Outcome, Written
from ..plans import before_fields, change_fields, encode, refusal_fields
from ..results import ErrorInfo, Report
from .json import _finding, _plain

__all__ = ["SCHEMA", "outcome_json"]

SCHEMA = 1


def outcome_json(outcome: Outcome) -> str:
    r"""Return one JSON document: what was planned, written, cured, and what is left.

    ``written`` is null where nothing was (``dry_run`` says whether that was asked for), ``plan``
    where none could be made, ``error`` where nothing went wrong.  Names and texts are escaped as
    in the JSON of ``inspect``; numbers that are not finite are ``"nan"``, ``"inf"``, ``"-inf"``.

    Examples
    --------
    >>> print(outcome_json(Outcome(file="m.pt")).partition("\n")[0])
    {"schema": 1, "tool": {"name": "ckptdoctor", "version": "0.1.0"}, "repair": {
    """
    head = {
        "file": outcome.file,
        "format": outcome.before.format if outcome.before is not None else "",
        "done": outcome.done,
        "dry_run": outcome.error is None and outcome.written is None,
        "verdict": {"before": _verdict(outcome.before), "after": _verdict(outcome.after)},
        "donor": outcome.donor,
        "recalibration": outcome.recalibration,
        "written": _written(outcome.written),
    }
    body = [f'"{name}": {encode(_plain(value))}' for name, value in head.items()]
    body += [f'"plan": {_plan(outcome)}']
    for name in ("cured", "uncured", "remaining"):
        body += [f'"{name}": {_lines(_finding(f) for f in getattr(outcome, name))}']
    body += [f'"error": {encode(_plain(_error(outcome.error)))}']
    tool = encode({"name": "ckptdoctor", "version": __version__})
    joined = ",\n".join(body)
    return f'{{"schema": {SCHEMA}, "tool": {tool}, "repair": {{\n{joined}}}}}\n'


def _plan(outcome: Outcome) -> str:
    plan = outcome.plan
    if plan is None:
        return "null"
    head = {"explicit": plan.explicit, "made_for": plan.made_for, "warnings": plan.warnings}
    changes = (_change(c, n, outcome.details) for n, c in enumerate(plan.changes))
    refusals = (refusal_fields(refusal) for refusal in plan.refusals)
    listed = f'"changes": {_lines(changes)},\n"refusals": {_lines(refusals)}'
    return f"{encode(_plain(head))[:-1]},\n{listed}}}"


def _lines(items: Iterable[dict[str, Any]]) -> str:
    """List of objects, one a line."""
    return "[" + ",\n  ".join(encode(_plain(item)) for item in items) + "]"


def _change(change: Change, index: int, details: Mapping[int, Before]) -> dict[str, Any]:
    """Return what a change says; of its elements how many, not which: a plan file has them."""
    fields = change_fields(change)
    if isinstance(change, Edit):
        del fields["indices"]
        count = None if change.indices is None else int(change.indices.size)
        fields |= {"count": count, "total": None, "was": "", "becomes": "", "aliases": []}
        if index in details:
            fields |= before_fields(details[index])
    return fields


def _verdict(report: Report | None) -> dict[str, str] | None:
    if report is None or report.verdict is None:
        return None
    verdict = report.verdict
    return {"load": verdict.load, "serve": verdict.serve, "resume": verdict.resume}


def _written(written: Written | None) -> dict[str, Any] | None:
    """Return what was written; ``changed`` is null where bytes moved and nobody counted."""
    if written is None:
        return None
    return {
        "path": written.path,
        "changed": written.changed if written.changed >= 0 else None,
        "size": written.size,
        "moved": written.moved,
        "compared": written.compared,
        "identical": written.identical,
        "kept": written.kept,
        "backup": written.backup,
    }


def _error(error: ErrorInfo | None) -> dict[str, Any] | None:
    if error is None:
        return None
    message = f"{error.message}; {error.hint}" if error.hint else error.message
    return {"type": error.type, "message": message, "where": error.where}
