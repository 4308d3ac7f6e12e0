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
        ModelError,
        ReadError,
        TruncatedError,
        UncheckedCheckpointError,
        UnfitCheckpointError,
        UnknownFormatError,
        UnsupportedError,
        UsageError,
        WriteError,
    )
    from .findings import Finding, Severity
    from .guards.saving import Saved, guarded_save
    from .living import diagnose_model, diagnose_module, recalibrate
    from .outcome import Outcome
    from .probing.probe import probe
    from .probing.results import ProbeReport
    from .recalibration.choice import Recalibration
    from .report import as_text
    from .results import Diagnosis, Exemption, Report, Summary, Verdict
    from .serving.cache import VerdictCache
    from .serving.gate import apreflight, preflight
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
    "ModelError",
    "Outcome",
    "ProbeReport",
    "ReadError",
    "Recalibration",
    "RepairPlan",
    "Report",
    "Saved",
    "Severity",
    "Summary",
    "TensorInfo",
    "TensorTable",
    "TruncatedError",
    "UncheckedCheckpointError",
    "UnfitCheckpointError",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "Verdict",
    "VerdictCache",
    "WriteError",
    "__version__",
    "apreflight",
    "as_text",
    "diagnose_model",
    "diagnose_module",
    "guarded_save",
    "inspect",
    "open_checkpoint",
    "preflight",
    "probe",
    "recalibrate",
    "repair",
]

_HOMES = {
    "api": ("inspect", "open_checkpoint", "repair"),
    "edits": ("RepairPlan",),
    "guards.saving": ("Saved", "guarded_save"),
    "living": ("diagnose_model", "diagnose_module", "recalibrate"),
    "outcome": ("Outcome",),
    "probing.probe": ("probe",),
    "probing.results": ("ProbeReport",),
    "recalibration.choice": ("Recalibration",),
    "serving.cache": ("VerdictCache",),
    "serving.gate": ("apreflight", "preflight"),
    "report": ("as_text",),
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
