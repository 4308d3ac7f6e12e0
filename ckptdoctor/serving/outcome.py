"""What a report comes to on given terms: pass or error, and the one line that says why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..api import refused
from ..errors import FormatError, UncheckedCheckpointError, UnfitCheckpointError
from ..findings import Finding, Severity
from ..report.escape import display, shorten
from ..results import Diagnosis, Report
from ..shell import command
from . import digests
from .terms import Terms

__all__ = ["Grade", "Outcome", "not_checked", "weighed"]

Grade = Literal["fit", "suspect", "unfit", "unchecked"]

_LONGEST, _ALSO = 300, 2
"""Characters of a sentence in a line of a log, and sentences more about names."""
_LAYERS, _LONGEST_NAME = 3, 60
"""Layers that it names, and characters of a name."""
_COVERAGE = ("file-incomplete", "file-surplus")
"""Diagnoses that ``ckptdoctor inspect`` may not repeat: it knows no names to compare with."""
_REPORT = "text=preflight.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it: ``error`` is None if the checkpoint may pass.

    ``grade`` is about the checkpoint, whatever the limit: what has errors is ``unfit`` even where
    ``fail_on`` lets it pass. ``reason`` is its first diagnosis, ``next`` a command; both empty for
    one without fault.
    """

    report: Report
    grade: Grade
    reason: str = ""
    next: str = ""
    error: UnfitCheckpointError | UncheckedCheckpointError | None = None


def weighed(report: Report, terms: Terms) -> Outcome:
    """Hold what was found against the terms."""
    assert report.verdict is not None  # it was checked
    counting = [
        (at, finding)
        for at, (finding, counts) in enumerate(zip(report.findings, report.relevant, strict=True))
        if counts and not (finding.unsafe and terms.allow_unsafe_load)
    ]
    worst = max((finding.severity for _, finding in counting), default=Severity.NOTE)
    unsafe = report.verdict.load == "unsafe" and not terms.allow_unsafe_load
    grade: Grade = "fit"
    if unsafe or worst is Severity.ERROR:
        grade = "unfit"
    elif worst is Severity.WARNING:
        grade = "suspect"
    if grade == "fit":
        return Outcome(report=report, grade=grade)
    level = Severity.ERROR if grade == "unfit" else Severity.WARNING
    reason, told = _reason(report, {at: f for at, f in counting if f.severity >= level})
    following = _next(report, told, terms)
    another = told is not None and told.key == digests.KEY
    stopped = unsafe or another or (terms.limit is not None and worst >= terms.limit)
    if not stopped:
        return Outcome(report=report, grade=grade, reason=reason, next=following)
    verdict = _VERDICTS[report.wishes.purpose] if grade == "unfit" else "suspect"
    error = UnfitCheckpointError(
        f"{verdict}: {reason}",
        where=display(report.file),
        hint=f"next: {following}",
        report=report,
    )
    return Outcome(report=report, grade=grade, reason=reason, next=following, error=error)


_VERDICTS = {"serve": "unfit to serve", "resume": "unfit to resume", "any": "unfit"}


def _reason(report: Report, guilty: Mapping[int, Finding]) -> tuple[str, Diagnosis | None]:
    """First diagnosis of what counts, else the first finding, in one sentence."""
    told = [d for d in report.diagnoses if guilty.keys() & set(d.findings)]
    if told:
        first, others = told[0], len(told) - 1
        title = first.title
        if first.key.startswith("file-"):  # what is wrong with the file, only its findings say
            title += ": " + next(guilty[at].message for at in first.findings if at in guilty)
        title = _sentence(title) + (_also(first, report) if first.key in _COVERAGE else "")
        more = f"; {others} more {'diagnosis' if others == 1 else 'diagnoses'}" if others else ""
        return title + _where(first) + more, first
    if guilty:
        finding = next(iter(guilty.values()))
        layer = f"{finding.layer}: " if finding.layer else ""
        return _sentence(f"{layer}{finding.message}"), None
    return "loading it the usual way can run code, hang or exhaust memory", None


def _also(diagnosis: Diagnosis, report: Report) -> str:
    """Say what is surplus beside what is missing: it often is the same weight by another name."""
    listed = [report.findings[at] for at in diagnosis.findings]
    told = [f.message for f in listed if f.severity > Severity.NOTE][1 : 1 + _ALSO]
    return "".join(f"; {_sentence(message)}" for message in told)


def _where(diagnosis: Diagnosis) -> str:
    """Name the layers, that where it began first."""
    layers = list(dict.fromkeys(filter(None, (diagnosis.suspect, *diagnosis.layers))))
    if not layers:
        return ""
    shown = ", ".join(shorten(display(layer), _LONGEST_NAME) for layer in layers[:_LAYERS])
    more = f" and {len(layers) - _LAYERS} more" if len(layers) > _LAYERS else ""
    return f" ({shown}{more})"


def _sentence(text: str) -> str:
    return shorten(display(text), _LONGEST)


def _next(report: Report, told: Diagnosis | None, terms: Terms) -> str:
    """Command that shows more: inspecting does, but not what only preflight is told."""
    key = told.key if told is not None else ""
    again, names = key in _COVERAGE, terms.expect_keys
    words = ["ckptdoctor", "preflight", "--report", _REPORT] if again else ["ckptdoctor", "inspect"]
    if again and isinstance(names, str | os.PathLike):
        words += ["--expect-keys", os.fspath(names)]
        names = None
    if told is not None and (key == digests.KEY or (again and names is not None)):
        return display(told.next)
    wishes = report.wishes
    for option, value, default in (
        ("--purpose", wishes.purpose, "serve" if again else "any"),
        ("--weights", wishes.weights, "auto"),
        ("--cast-to", wishes.cast_to, ""),
        ("--config", wishes.settings, ""),
    ):
        words += [option, value] if value != default else []
    return command(*words, file=report.file)


def not_checked(path: str, terms: Terms, error: Exception) -> Outcome:
    """Fail closed; but bytes that nothing reads, and that are others than expected, are unfit."""
    report = refused(path, terms.wishes, error)
    info = report.error
    assert info is not None  # that is what a refusal has
    if isinstance(error, FormatError):
        wrong = digests.mismatch_of_unreadable(path, terms.expect_sha256)
        if wrong:
            report = digests.told(report, wrong)
            following = report.diagnoses[0].next
            unfit = UnfitCheckpointError(
                f"{_VERDICTS[terms.wishes.purpose]}: {report.diagnoses[0].title}",
                where=display(path),
                hint=f"next: {following}",
                report=report,
            )
            reason = report.diagnoses[0].title
            return Outcome(report=report, grade="unfit", reason=reason, next=following, error=unfit)
    kind = f"{info.type} at {info.where}: " if info.bug else ""
    place = f" (at {info.where})" if not info.bug and info.where != path else ""
    reason = _sentence(f"{kind}{info.message}{place}")
    following = _sentence(info.hint)
    unchecked = UncheckedCheckpointError(
        f"could not be checked: {reason}", where=display(path), hint=following, report=report
    )
    unchecked.findings = report.findings
    unchecked.__cause__ = error
    return Outcome(report=report, grade="unchecked", reason=reason, next=following, error=unchecked)
