"""What a repair comes to: the plan, what was written, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .edits import RepairPlan
from .findings import Finding
from .results import ErrorInfo, Report

__all__ = ["Before", "Outcome", "Written"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What stands in a tensor where an edit goes, for the plan's table.

    Parameters
    ----------
    count, total
        Elements that are replaced, and elements of the tensor.
    was, becomes
        Both in words, short: ``16 NaN``, ``1.5e+06..2.4e+07``; ``1``, ``0.04..0.21``.
    aliases
        Names of other tensors that share the memory, and change with it.
    """

    count: int
    total: int
    was: str
    becomes: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that was written and verified.

    Parameters
    ----------
    path
        The output.
    changed
        Bytes that differ from the input, checksums included; -1 where bytes moved.
    size
        Of the output.
    moved
        Why bytes moved, empty where every other byte stayed in its place: data that is
        compressed, or parts that were removed.
    compared
        Tensors that were compared with the input's one by one, where bytes moved.
    identical
        Whether the output is the input, byte for byte: nothing was changed.
    kept
        Whether the output was there already, just as it would have been written.
    backup
        Path of the original, where it was replaced and kept.
    """

    path: str
    changed: int
    size: int
    moved: str = ""
    compared: int = 0
    identical: bool = False
    kept: bool = False
    backup: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything ``repair`` has to say about one file.

    Parameters
    ----------
    file
        The path as the caller wrote it.
    plan
        None where the file could not even be planned for: ``error`` says why.
    details
        Of each change of the plan that overwrites elements, by its index in ``plan.changes``.
    before, after
        Reports of the input and of what was written; ``after`` is None for a dry run.
    written
        None for a dry run, and where nothing could be written.
    cured
        Findings that the changes were to cure and that are gone.
    uncured
        Findings that the changes were to cure and that are still there: a fault of the remedy.
    remaining
        Findings of the output that count, uncured ones included, worst first.
    donor
        How alike the donor is, in words, one fact each: ``42 of 46 tensors match by name``.
    recalibration
        What was compared before statistics were recomputed from data, and what was taken.
    error
        None, or why nothing was written.
    """

    file: str
    plan: RepairPlan | None = None
    details: Mapping[int, Before] = field(default_factory=dict)
    before: Report | None = None
    after: Report | None = None
    written: Written | None = None
    cured: tuple[Finding, ...] = ()
    uncured: tuple[Finding, ...] = ()
    remaining: tuple[Finding, ...] = ()
    donor: tuple[str, ...] = ()
    recalibration: tuple[str, ...] = ()
    error: ErrorInfo | None = None

    @property
    def done(self) -> bool:
        """Whether all that was asked for is done, and what it was to cure is cured.

        What remains counts only where nothing was asked for by name.
        """
        if self.error is not None or self.plan is None or self.uncured:
            return False
        if self.plan.explicit:
            return not any(refusal.remedy for refusal in self.plan.refusals)
        if self.after is None and self.before is not None:  # a dry run
            errors = {f.tensor or f.where for f in self.before.findings if f.severity >= 3}
            return not any(refusal.target in errors for refusal in self.plan.refusals)
        return not any(finding.severity >= 3 for finding in self.remaining)
