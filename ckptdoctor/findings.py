"""What reading and diagnosis say: severities and findings."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["CONTAINER_CODES", "Finding", "Severity", "container_finding"]


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
