"""What ``repair`` does about a finding, by its code: for reports, which do not plan a repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .findings import Finding, Severity
from .shell import quoted
from .wishes import Class

__all__ = ["FIXES", "Fix", "fix_for"]


class Fix(NamedTuple):
    """One row.

    Parameters
    ----------
    remedy
        Name of the remedy, as plans have it.
    title
        What it does.
    kind
        Its class, see `ckptdoctor.wishes.Class`.
    options
        Of ``ckptdoctor repair``; empty where it needs no asking.  ``OLD`` is an older checkpoint.
    """

    remedy: str
    title: str
    kind: Class
    options: str = ""


_RESET = Fix("bn-reset", "broken channels to mean 0 and variance 1", "destructive", "--bn-reset")
_DONOR = Fix("donor", "statistics from an older checkpoint", "statistical", "--donor OLD")
_GRAFT = Fix("graft", "the tensor from an older checkpoint", "statistical", "--donor OLD --tensor")
_MOMENTS = Fix("optimizer-state", "broken moments start at 0 again", "statistical")

FIXES: Mapping[str, Fix] = {
    "CK001": Fix("checksum", "the flipped bit that the checksum locates back", "statistical"),
    "NF001": _GRAFT,
    "NF002": _GRAFT,
    "BN001": _RESET,
    "BN002": _RESET,
    "BN003": _RESET,
    "BN004": _RESET,
    "BN006": _DONOR,
    "BN009": _DONOR,
    "WT001": _GRAFT,
    "WT003": _GRAFT,
    "WT004": Fix("flipped-bits", "the flipped bit back", "statistical"),
    "WT011": Fix("affine", "gains and offsets of lost channels to 1 and 0", "destructive",
                 "--allow destructive"),
    "TS001": _MOMENTS,
    "TS002": _MOMENTS,
    "TS003": Fix("set", "the number that is given", "statistical", "--set"),
    "TS004": Fix("set", "the number that is given", "statistical", "--set"),
    "TS005": Fix("grad-scaler", "the loss scale that training starts with", "statistical"),
    "TS006": Fix("twin", "the intact copy over the broken one", "lossless"),
}  # fmt: skip
"""The first remedy to think of; which of them can be used only a plan tells."""


def fix_for(finding: Finding) -> Fix | None:
    """Remedy for a finding; None for notes, and where there is none.

    Examples
    --------
    >>> sick = Finding(code="BN001", name="", severity=Severity.ERROR, message="", tensor="bn.var")
    >>> fix_for(sick).options
    '--bn-reset'
    """
    if finding.severity is Severity.NOTE:
        return None
    fix = FIXES.get(finding.code)
    if fix is None or not fix.options.endswith(("--tensor", "--set")):
        return fix
    if fix.options.endswith("--set"):
        return fix._replace(options=f"--set {quoted(finding.tensor)}=NUMBER")
    return fix._replace(options=f"{fix.options} {quoted(finding.tensor)}")
