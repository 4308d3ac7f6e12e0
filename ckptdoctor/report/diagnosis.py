"""Diagnoses as text: which layer, what it does, why, how sure, what to do, what to type."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Severity
from ..results import Cause, Diagnosis, Report, View
from ..shell import quoted
from .escape import display, shorten
from .words import INDENT, labelled, many

__all__ = ["diagnoses"]

_LABEL = 11
"""Columns of the labels."""
_FULL = 2
"""Diagnoses told at length; of more, and of warnings, what happens and what to type."""
_SHOWN = 6
_EVIDENCE = 6
_ADVICE = 2
_TEXT_LIMIT = 700
"""Characters of one text: names in it may be as long as the file."""


def diagnoses(report: Report, view: View) -> Iterator[str]:
    """Yield the lines of every diagnosis, the first in full, an empty line after each."""
    for number, diagnosis in enumerate(report.diagnoses[:_SHOWN]):
        full = number == 0 or (number < _FULL and diagnosis.severity is Severity.ERROR)
        yield from _diagnosis(diagnosis, report, view, full=full)
        yield ""
    rest = len(report.diagnoses) - _SHOWN
    if rest > 0:
        yield f"{INDENT}... and {rest:,} more diagnoses: --format json"
        yield ""


def _diagnosis(d: Diagnosis, report: Report, view: View, *, full: bool) -> Iterator[str]:
    severity = d.severity.name.lower()
    yield from labelled("diagnosis", _clean(d.title), view, _LABEL, severity)
    if d.suspect:
        yield from _label("suspect", _suspect(d), view)
    if full:
        for number, line in enumerate(d.evidence[:_EVIDENCE]):
            yield from _label("" if number else "evidence", line, view)
    yield from _label("inference", d.inference, view)
    if full:
        yield from _label("training", d.training, view)
    for number, cause in enumerate(_causes(d) if full else d.causes[:1]):
        yield from _label("or" if number else "cause", _cause(cause, number), view)
    yield from _label("repair", d.repair, view)
    if full:
        yield from _snippet(d, view)
        for number, line in enumerate(d.advice[:_ADVICE]):
            yield from _label("" if number else "advice", line, view)
    yield from _next(d, report, view)


def _causes(d: Diagnosis) -> list[Cause]:
    """Likeliest cause and the others that are not ruled out by it."""
    sure = d.causes[:1] and d.causes[0].confidence == "high"
    return [c for n, c in enumerate(d.causes) if not n or not sure or c.confidence != "low"]


def _suspect(d: Diagnosis) -> str:
    others = len(d.layers) - 1
    if not others:
        return d.suspect
    return f"{d.suspect}, the first of {many(len(d.layers), 'affected layer')}"


def _cause(cause: Cause, number: int) -> str:
    """Most likely one with what shows it; of unlikely others only the words."""
    if number and cause.confidence == "low":
        return f"{cause.text} (confidence low)"
    return f"{cause.text} (confidence {cause.confidence}: {cause.observation})"


def _snippet(d: Diagnosis, view: View) -> Iterator[str]:
    """Lines of Python, unbroken; none where they do not fit."""
    room = " " * (len(INDENT) + _LABEL)
    if d.snippet and max(map(len, d.snippet)) + len(room) <= view.width:
        yield from (room + display(line) for line in d.snippet)


def _next(d: Diagnosis, report: Report, view: View) -> Iterator[str]:
    """Command on a line of its own, never broken: it is there to be copied."""
    if not d.next:
        return
    command = d.next.replace(quoted(report.file), quoted(report.file, view.encoding))
    yield from labelled("next", _clean(d.next_tells) or "run", view, _LABEL)
    yield " " * (len(INDENT) + _LABEL) + command


def _label(label: str, text: str, view: View) -> Iterator[str]:
    if text:
        yield from labelled(label, _clean(text), view, _LABEL)


def _clean(text: str) -> str:
    return shorten(display(text), _TEXT_LIMIT)
