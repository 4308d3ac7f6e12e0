"""What is known of a model's weights before it runs, by the layer that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import CkptDoctorError, UnknownFormatError
from ..findings import Finding, Severity
from ..results import Report, Wishes

if TYPE_CHECKING:
    from ..live.opening import Opened
    from ..measure.stats import TensorStats
    from ..tensors import TensorTable

__all__ = ["File", "Known", "file_report", "known_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What `ckptdoctor.inspect` says of a file of weights.

    ``report`` is None for a kind that is not read here.
    """

    path: str
    report: Report | None = None

    @property
    def which(self) -> str:
        """The weights that would be served: ``model`` or ``ema``."""
        return self.report.weights if self.report is not None else "model"


def file_report(path: str) -> File:
    """Inspect a file of weights.

    Raises
    ------
    CkptDoctorError
        If it cannot be read.
    """
    from ..api import inspect  # noqa: PLC0415  (not for models without a file)

    try:
        return File(path=path, report=inspect(path, purpose="serve"))
    except UnknownFormatError:
        return File(path=path)  # an ExportedProgram: the framework reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Weights of a live model.

    Parameters
    ----------
    table
        Its tensors.
    stats
        Statistics of each.
    said
        Errors and warnings: of the file where there is one, else of the live weights.
    layers
        Layer of the model, by tensor of ``said``.
    names
        What the model calls it, where the file has another name.
    """

    table: TensorTable
    stats: Mapping[str, TensorStats]
    said: tuple[Finding, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def tensors_of(self, layer: str) -> list[str]:
        """Names of the tensors that a layer owns itself."""
        return [name for name, info in self.table.infos.items() if info.layer == layer]

    def said_of(self, layer: str) -> tuple[Finding, ...]:
        """Return the findings on tensors of a layer."""
        return tuple(f for f in self.said if self.layers.get(f.tensor) == layer)


def known_weights(opened: Opened, file: File | None) -> Known:
    """Measure a model's weights, and find the layer that each finding is about."""
    from ..examination import examined  # noqa: PLC0415  (it imports the rules)

    table = opened.subject.table()
    measured, live = examined(table.path, table, Wishes(purpose="serve"))
    report = file.report if file is not None else None
    if report is None or report.table is None:
        said = _serious(live)
        layers = {f.tensor: table[f.tensor].layer for f in said if f.tensor in table}
        return Known(table=table, stats=measured.stats, said=said, layers=layers)
    said = _serious(report)
    ours = {theirs: mine for mine, theirs in _pairs(opened, table, report.table).items()}
    layers = {
        f.tensor: table[ours[f.tensor]].layer
        for f in said
        if f.tensor in ours and ours[f.tensor] in table
    }
    names = {f.tensor: ours[f.tensor] for f in said if f.tensor in layers}
    return Known(table=table, stats=measured.stats, said=said, layers=layers, names=names)


def _serious(report: Report) -> tuple[Finding, ...]:
    return tuple(
        f
        for f, counts in zip(report.findings, report.relevant, strict=True)
        if counts and f.severity > Severity.NOTE
    )


def _pairs(opened: Opened, table: TensorTable, stored: TensorTable) -> Mapping[str, str]:
    """Tensors of the model -> tensors of the file."""
    if opened.loaded is not None:
        return opened.loaded.pairs
    from ..matching import match  # noqa: PLC0415

    try:
        return match(table, stored).pairs
    except CkptDoctorError:  # the file is closed, and a layout may have to be looked up in it
        return {}
