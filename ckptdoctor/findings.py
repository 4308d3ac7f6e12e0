"""What reading and diagnosis say: severities and findings."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONTAINER_CODES", "Finding", "Severity", "Tally", "container_finding"]


class Severity(enum.IntEnum):
    """How bad it is to use the checkpoint as it stands."""

    NOTE = 1
    """Worth knowing; nothing is wrong."""
    WARNING = 2
    """Finite and loadable, but probably not as intended."""
    ERROR = 3
    """Outputs are wrong, or the file cannot be loaded, resumed or opened safely."""


CONTAINER_CODES: Mapping[str, str] = {
    "CK001": "checksum-mismatch",
    "CK002": "code-in-checkpoint",
    "CK003": "incomplete-set",
    "CK004": "truncated",
    "CK005": "ambiguous-structure",
    "CK006": "external-reference",
}
"""Codes that adapters report while they read; every other code belongs to a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing seen in one checkpoint.

    Parameters
    ----------
    code, name
        ``NF001`` and ``nan-values``: both are a contract.
    severity
        See `Severity`.
    message
        One sentence with the numbers.
    role
        Role of the tensor it is about; ``container`` for the file itself.
    tensor, layer
        Names as the table has them; empty where the finding is about the file.
    where
        ``file:member+offset`` for findings about bytes.
    measured
        The numbers of the message, for machines.
    unsafe
        Whether the framework's default way of loading would run code of the file, hang or
        exhaust memory (the ``load`` verdict).
    limit
        The threshold it crossed, as a phrase with number and unit (``over 50 times the squared
        norm of the kernel``); empty where there is none.
    """

    code: str
    name: str
    severity: Severity
    message: str
    role: str = "container"
    tensor: str = ""
    layer: str = ""
    where: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    unsafe: bool = False
    limit: str = ""


def container_finding(
    code: str,
    severity: Severity,
    message: str,
    *,
    where: str = "",
    tensor: str = "",
    unsafe: bool = False,
    **measured: Any,
) -> Finding:
    """Make a finding about the file itself, as adapters do.

    Examples
    --------
    >>> container_finding("CK001", Severity.ERROR, "checksum differs", where="m.pt:a/data/0").name
    'checksum-mismatch'
    """
    return Finding(
        code=code,
        name=CONTAINER_CODES[code],
        severity=severity,
        message=message,
        tensor=tensor,
        where=where,
        measured=measured,
        unsafe=unsafe,
    )


class Tally:
    """Findings as they come in, a few of each kind: a hostile file can hold millions of one.

    Kinds are told apart by code, severity and danger, so that many harmless ones never hide
    another; what is left out is counted in a finding of the same kind.

    Examples
    --------
    >>> tally = Tally("m.pt", shown=2)
    >>> for name in "abcd":
    ...     tally.add(container_finding("CK004", Severity.ERROR, f"{name} is cut"))
    >>> [finding.message for finding in tally.findings()]
    ['a is cut', 'b is cut', '2 more findings of this kind']
    """

    def __init__(self, where: str, shown: int = 20) -> None:
        self._where, self._shown = where, shown
        self._kept: dict[tuple[str, Severity, bool], list[Finding]] = {}
        self._left_out: dict[tuple[str, Severity, bool], int] = {}

    def add(self, finding: Finding) -> None:
        """Take a finding, or count it where there are enough of its kind."""
        kind = finding.code, finding.severity, finding.unsafe
        kept = self._kept.setdefault(kind, [])
        if len(kept) < self._shown:
            kept.append(finding)
        else:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1

    def findings(self) -> tuple[Finding, ...]:
        """Every kind in the order it was first seen."""
        found: list[Finding] = []
        for kind, kept in self._kept.items():
            found += kept
            if kind in self._left_out:
                code, severity, unsafe = kind
                message = f"{self._left_out[kind]:,} more findings of this kind"
                found.append(
                    container_finding(code, severity, message, where=self._where, unsafe=unsafe)
                )
        return tuple(found)
