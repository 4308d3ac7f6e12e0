"""Cases -> diagnoses: words put together, worst first."""

from __future__ import annotations

from collections.abc import Sequence

from ..findings import Finding
from ..results import Diagnosis
from ..rules.base import Context
from .advice import advice_for
from .case import Case, Pattern, Text
from .causes import causes_of
from .commands import as_text, inspect_layers
from .evidence import evidence_of
from .facts import Facts
from .patterns import cases_of

__all__ = ["draw"]


def draw(context: Context, findings: Sequence[Finding], file: str) -> tuple[Diagnosis, ...]:
    """Draw the diagnoses of a checkpoint; see `ckptdoctor.diagnoses.conclude`."""
    facts = Facts(context, findings, file)
    found = list(cases_of(facts))
    found.sort(key=lambda item: (-item[1].severity, not _served(item[1]), item[0].rank))
    return tuple(_diagnosis(pattern, case) for pattern, case in found)


def _served(case: Case) -> bool:
    return bool(case.roles & {"model", "ema", "container"})


def _diagnosis(pattern: Pattern, case: Case) -> Diagnosis:
    causes = causes_of(case, pattern.causes)
    command = (pattern.next or inspect_layers)(case)
    return Diagnosis(
        key=pattern.key,
        title=_said(pattern.title, case),
        severity=case.severity,
        findings=case.indices,
        layers=case.layers,
        suspect=case.suspect,
        evidence=evidence_of(case),
        inference=_said(pattern.inference, case),
        training=_said(pattern.training, case),
        causes=causes,
        repair=_said(pattern.repair, case),
        advice=advice_for(case, pattern.key, causes),
        snippet=pattern.snippet(case),
        next=as_text(command, case.facts.file),
        next_tells=command.tells,
    )


def _said(text: Text, case: Case) -> str:
    return text if isinstance(text, str) else text(case)
