"""The table of illnesses, in the order in which they may claim findings."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Severity
from .case import Case, Pattern
from .commands import explain
from .facts import Facts
from .patterns_batchnorm import BATCHNORM
from .patterns_precision import PRECISION
from .patterns_state import CONTAINER, REST, STATE
from .patterns_weights import WEIGHTS

__all__ = ["PATTERNS", "cases_of"]

PATTERNS: tuple[Pattern, ...] = (
    *CONTAINER, *PRECISION[:1], *WEIGHTS, *BATCHNORM, *STATE, *PRECISION[1:], *REST,
)  # fmt: skip
"""What takes most comes first: lost weights explain lost statistics, never the reverse.

A cast that is only asked about comes before: it is no illness of the file."""

_OTHER = Pattern(
    key="other",
    codes=(),
    rank=9,
    title=lambda case: case.findings[0].name.replace("-", " ").capitalize(),
    inference="",
    causes=(),
    repair="",
    next=lambda case: explain(case.findings[0].code),
)
"""Findings that no pattern knows are told one code at a time: nothing goes untold."""


def cases_of(facts: Facts) -> Iterator[tuple[Pattern, Case]]:
    """Yield each illness that the file has, with the findings that it explains."""
    codes = [facts.code_of(finding) for finding in facts.findings]
    left = dict(enumerate(codes))
    for pattern in PATTERNS:
        core = [i for i, code in left.items() if code in pattern.codes]
        core = [i for i in core if facts.findings[i].severity > Severity.NOTE]
        if not core or not pattern.when(Case(facts, core)):
            continue
        wanted = {*pattern.codes, *pattern.takes}
        mine = [i for i, code in left.items() if code in wanted]
        for i in mine:
            del left[i]
        yield pattern, Case(facts, mine)
    rest = [i for i in left if facts.findings[i].severity > Severity.NOTE]
    for code in dict.fromkeys(codes[i] for i in rest):
        yield _OTHER, Case(facts, [i for i in rest if codes[i] == code])
