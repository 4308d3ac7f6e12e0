"""
The doctor for neural-network checkpoints: says whether a file is fit to serve, and why not.

Names are imported when they are first used (PEP 562), so that ``import ckptdoctor`` costs
nothing: NumPy alone would take 60 ms.

Examples
--------
>>> import ckptdoctor
>>> ckptdoctor.Severity.ERROR > ckptdoctor.Severity.WARNING
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import inspect, open_checkpoint, repair
    from .edits import RepairPlan
    from .errors import (
        BombError,
        ChangedError,
        CkptDoctorError,
        FormatError,
        InternalError,
        ReadError,
        TruncatedError,
        UnknownFormatError,
        UnsupportedError,
        UsageError,
        WriteError,
    )
    from .findings import Finding, Severity
    from .outcome import Outcome
    from .results import Diagnosis, Exemption, Report, Summary, Verdict
    from .tensors import TensorInfo, TensorTable

__all__ = [
    "BombError",
    "ChangedError",
    "CkptDoctorError",
    "Diagnosis",
    "Exemption",
    "Finding",
    "FormatError",
    "InternalError",
    "Outcome",
    "ReadError",
    "RepairPlan",
    "Report",
    "Severity",
    "Summary",
    "TensorInfo",
    "TensorTable",
    "TruncatedError",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "WriteError",
    "__version__",
    "inspect",
    "open_checkpoint",
    "repair",
]

_HOMES = {
    "api": ("inspect", "open_checkpoint", "repair"),
    "edits": ("RepairPlan",),
    "outcome": ("Outcome",),
    "findings": ("Finding", "Severity"),
    "results": ("Diagnosis", "Exemption", "Report", "Summary", "Verdict"),
    "tensors": ("TensorInfo", "TensorTable"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    import importlib  # noqa: PLC0415

    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
