"""An open checkpoint, measured and judged: what inspecting and repairing share."""

from __future__ import annotations

from .diagnose import diagnose
from .errors import CkptDoctorError
from .measure.scan import Measured, Progress, measure
from .results import Report, Wishes
from .tensors import TensorTable

__all__ = ["examined"]


def examined(
    path: str, table: TensorTable, wishes: Wishes, progress: Progress | None = None
) -> tuple[Measured, Report]:
    """Measure every tensor of a checkpoint and judge it.

    Parameters
    ----------
    path
        As the report is to call it.
    table
        The open checkpoint.
    wishes
        How it is judged.
    progress
        As `ckptdoctor.measure.scan.measure`.

    Raises
    ------
    CkptDoctorError
        If it cannot be checked; ``error.findings`` holds what was seen before.
    """
    try:
        measured = measure(table, progress=progress)
        found = diagnose(table, measured, wishes)
    except CkptDoctorError as error:
        error.findings = error.findings or table.findings
        raise
    report = Report(
        file=path,
        format=table.format,
        weights=found.weights,
        verdict=found.verdict,
        summary=found.summary,
        findings=found.findings,
        diagnoses=found.diagnoses,
        wishes=wishes,
        relevant=found.relevant,
        table=table,
        stats=measured.stats,
        judged=found.judged,
    )
    return measured, report
