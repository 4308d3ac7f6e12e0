"""What counts as detected, and what as a false alarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckptdoctor.findings import Finding, Severity
from ckptdoctor.results import Report
from ckptdoctor.rules import RULES

from .patients import Fault, Written

SIBLINGS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "NF001": (("WT011",), "the gain of a LayerNorm has a rule of its own"),
    "NF002": (("WT011", "NF001"), "the same; a step further Inf - Inf is NaN"),
    "BN004": (
        ("BN010",),
        "a collapsed variance and an exploded gain are one number, gamma/sqrt(var)",
    ),
    "BN010": (("BN004",), "the same the other way round"),
    "BN008": (("PR001",), "a statistic beyond float16 is a value beyond float16"),
    "WT002": (("WT005",), "units that are all one constant are duplicates"),
    "WT003": (("WT004",), "which of many sick elements is a spike is a matter of their number"),
    "WT004": (("NF001", "NF002", "WT003"), "bit 30 of a number in [1, 2) makes it Inf or NaN"),
    "WT005": (("WT002",), "the same as WT002"),
    "WT006": (("WT001",), "values below the type's range are zeros"),
    "WT008": (("BN006",), "the BatchNorm of a fresh layer is fresh too"),
    "WT010": (
        ("NF001", "NF002", "WT003", "WT004", "WT006"),
        "what lay in memory may look like any of them",
    ),
    "WT011": (("NF001", "NF002"), "non-finite gains are NF001 and NF002 where WT011 leaves them"),
    "PR001": (("BN008",), "the same as BN008"),
    "PR002": (("WT001", "WT006"), "a kernel that float16 has made vanish"),
    "CF003": (("BN006",), "statistics that never moved are stale"),
    "TS006": (
        ("NF001", "NF002", "BN001", "BN003", "WT003", "WT010"),
        "a sick copy is sick by itself too",
    ),
}
"""Codes whose finding at the right tensor counts as well, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One damaged file and what was said about it."""

    patient: str
    half: str
    code: str
    what: str
    place: str
    layout: str
    effect: float
    noise: float
    effective: bool
    harmful: bool
    detected: bool
    refused: str = ""
    seen: tuple[str, ...] = ()
    """Findings at the right tensors: code and severity."""
    wrong: tuple[str, ...] = ()
    """Errors at tensors that nothing was done to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One healthy file and what was said about it."""

    name: str
    half: str
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: str = ""


def needed(fault: Fault) -> Severity:
    """Severity that counts: the fault's, else the rule's own, but no more than a warning."""
    if fault.least is not None:
        return fault.least
    own = {rule.code: rule.severity for rule in RULES}.get(fault.code, Severity.WARNING)
    return min(own, Severity.WARNING)


def stored(written: Written, *groups: Iterable[str]) -> set[str]:
    """What the fault's tensors are called in the file."""
    found = {written.names.get(name, name) for group in groups for name in group}
    return found | {written.twins[name] for name in found if name in written.twins}


def about(finding: Finding, wanted: set[str]) -> bool:
    """Whether a finding is about one of these tensors, paths or layers."""
    if finding.tensor in wanted or finding.layer in wanted:
        return True
    return any(finding.tensor.startswith((f"{name}.", f"{name}/")) for name in wanted)


def judge(fault: Fault, written: Written, report: Report, **row: object) -> Row:
    """Hold a report against what was done."""
    accepted = {fault.code, *SIBLINGS.get(fault.code, ((), ""))[0]}
    targets = stored(written, fault.targets)
    touched = targets | stored(written, fault.touched, fault.change)
    here = [f for f in report.findings if about(f, targets)]
    least = needed(fault)
    detected = any(f.code in accepted and f.severity >= least for f in here)
    wrong = [
        f for f in report.findings
        if f.severity == Severity.ERROR and f.tensor and not about(f, touched)
    ]  # fmt: skip
    return Row(
        code=fault.code,
        what=fault.what,
        place=fault.place,
        detected=detected,
        refused=report.error.message if report.error else "",
        seen=tuple(sorted({f"{f.code} {f.severity.name.lower()}" for f in here})),
        wrong=tuple(f"{f.code} {f.tensor}: {f.message}" for f in wrong),
        **row,  # type: ignore[arg-type]
    )


def judge_control(name: str, half: str, report: Report) -> Control:
    """Count what is said about a healthy file."""

    def said(severity: Severity) -> tuple[str, ...]:
        return tuple(
            f"{f.code} {f.tensor}: {f.message}" for f in report.findings if f.severity == severity
        )

    return Control(
        name=name,
        half=half,
        errors=said(Severity.ERROR),
        warnings=said(Severity.WARNING),
        notes=said(Severity.NOTE),
        refused=report.error.message if report.error else "",
    )
