"""From findings to diagnoses: findings of one cause are told once, with what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..findings import Finding, Severity

if TYPE_CHECKING:
    from ..results import Diagnosis
    from ..rules.base import Context

__all__ = ["conclude"]


def conclude(
    context: Context, findings: tuple[Finding, ...], *, file: str
) -> tuple[Diagnosis, ...]:
    """Draw what the findings come to, worst first.

    Every error and every warning is part of exactly one diagnosis; notes only where they say more
    about one.  Nothing but notes is no diagnosis.

    Parameters
    ----------
    context
        The checkpoint as the rules saw it.
    findings
        Final and in the order of the report: a diagnosis refers to them by index.
    file
        The path as the caller wrote it, for commands to copy.
    """
    if all(finding.severity is Severity.NOTE for finding in findings):
        return ()
    from .conclusion import draw  # noqa: PLC0415  (a healthy file pays nothing for it)

    return draw(context, findings, file)
