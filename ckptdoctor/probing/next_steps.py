"""Commands that follow from what a probe found."""

from __future__ import annotations

from ..findings import Severity
from ..recalibration.choice import FEWEST
from ..shell import quoted
from .results import ProbeReport

__all__ = ["next_steps"]


_STATISTICS = ("stale-statistics", "new-statistics", "train-eval-disagreement")
"""Signs that statistics of the data would heal, where they are errors."""


def next_steps(report: ProbeReport, *, trust: bool = False) -> tuple[tuple[str, str], ...]:
    """Say what to type next, and what it does.

    Parameters
    ----------
    report
        With its signs.
    trust
        Whether the model was only opened because it is trusted.
    """
    samples = report.samples
    if samples is None or not report.file:
        return ()
    errors = {sign.kind for sign in report.signs if sign.severity is Severity.ERROR}
    sick = any(d.far for d in report.norms) or bool(errors.intersection(_STATISTICS))
    norms = {drift.layer for drift in report.norms}
    first = report.first
    lost = first is not None and first.origin == "weights" and first.row.layer not in norms
    accused = any(finding.severity is Severity.ERROR for finding in report.said)
    file = quoted(f"./{report.file}" if report.file.startswith("-") else report.file)
    look = f"ckptdoctor inspect {file}"
    refused = report.scale is not None and report.scale.refused  # by repair
    if not sick or lost or refused:
        return ((look, "says what is lost and what can be had back"),) if lost or accused else ()
    if samples.kind != "file" or samples.alike:
        return ((look, "says what is lost and what can be had back"),)
    if samples.used < FEWEST:
        few = f"recomputing statistics takes {FEWEST} samples or more, these are {samples.used}"
        return ((look, f"says what can be had back; {few}"),)
    command = (
        f"ckptdoctor repair {file} --recalibrate {quoted(report.model)} "
        f"--data {quoted(samples.source)}{' --trust' if trust else ''}"
    )
    return ((command, "recomputes the broken statistics from these samples"),)
