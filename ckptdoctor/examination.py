"""An open checkpoint, measured and judged: what inspecting and repairing share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .diagnose import diagnose
from .errors import CkptDoctorError
from .measure.scan import Measured, Progress, measure
from .results import Report, Wishes
from .tensors import Checksum, TensorInfo, TensorTable

__all__ = ["examined", "examined_again"]


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
    except CkptDoctorError as error:
        error.findings = error.findings or table.findings
        raise
    return measured, _judged(path, table, measured, wishes)


def examined_again(
    path: str,
    table: TensorTable,
    wishes: Wishes,
    before: Measured,
    origin: str,
    infos: Mapping[str, TensorInfo],
    checksums: tuple[Checksum, ...],
) -> tuple[Measured, Report]:
    """Judge a checkpoint of which only some tensors are not what they were when it was measured.

    Parameters
    ----------
    path, table, wishes
        As in `examined`.
    before, origin
        What was measured of a file that is the same, byte for byte, everywhere else; its path.
    infos, checksums
        Tensors and checksums of the table to look at again.
    """
    part = replace(table, infos=infos, checksums=checksums, findings=())
    new = measure(part)
    stale = {checksum.where.removeprefix(table.path) for checksum in checksums}
    kept = (
        replace(finding, where=finding.where.replace(origin, table.path, 1))
        for finding in before.findings
        if finding.tensor not in infos and finding.where.removeprefix(origin) not in stale
    )
    measured = Measured(before.stats.with_rows(new.stats), (*kept, *new.findings))
    return measured, _judged(path, table, measured, wishes)


def _judged(path: str, table: TensorTable, measured: Measured, wishes: Wishes) -> Report:
    try:
        found = diagnose(table, measured, wishes)
    except CkptDoctorError as error:
        error.findings = error.findings or table.findings
        raise
    return Report(
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
