"""What a look at a checkpoint comes to: summary, verdict, findings, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .findings import Finding, Severity

if TYPE_CHECKING:
    from .measure.stats import StatsTable
    from .tensors import TensorTable

__all__ = [
    "ErrorInfo",
    "Fitness",
    "Loading",
    "Part",
    "Purpose",
    "Report",
    "Sort",
    "Summary",
    "Tensors",
    "Verdict",
    "View",
    "Weights",
]

Loading = Literal["safe", "unsafe"]
Fitness = Literal["fit", "suspect", "unfit"]
Purpose = Literal["any", "serve", "resume"]
Weights = Literal["auto", "model", "ema"]
Tensors = Literal["none", "suspect", "all"]
Sort = Literal["file", "name", "size", "nonfinite", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The three answers.

    Parameters
    ----------
    load
        ``unsafe`` where the framework's default way of loading would run code of the file, hang
        or exhaust memory.
    serve, resume
        ``unfit`` for an error in what that purpose uses, ``suspect`` for a warning.
    """

    load: Loading
    serve: Fitness
    resume: Fitness


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of one role: how many, their elements and their bytes."""

    role: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A checkpoint in numbers.

    Parameters
    ----------
    tensors
        Rows of the table.
    parameters
        Elements of the weights that were judged; shared memory counts once.
    nbytes
        Bytes of all tensors; shared memory counts once.
    errors, warnings, notes
        Findings by severity.
    dtypes
        Tensors by dtype, most frequent first.
    parts
        The same numbers by role, in file order.
    """

    tensors: int
    parameters: int
    nbytes: int
    errors: int
    warnings: int
    notes: int
    dtypes: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """Why a file could not be checked; ``bug`` when the fault is this package's."""

    type: str
    message: str
    where: str = ""
    hint: str = ""
    bug: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything ``inspect`` has to say about one path.

    Parameters
    ----------
    file
        The path as the caller wrote it.
    format
        The adapter's name for it; empty where none was recognised.
    weights
        Which weights ``serve`` was judged by: ``model`` or ``ema``.
    verdict, summary, table, stats
        None where ``error`` says why the file could not be checked.  The table's file is closed:
        names, shapes and roles stay, values need `ckptdoctor.open_checkpoint`.
    findings
        Errors first; after a refusal, what was seen before giving up.
    purpose
        What the findings are weighed for.
    relevant
        Of each finding, whether it counts for ``purpose``.
    judged
        Names of the tensors that were judged where a pattern chose some; None for all.
    error
        None, or why the file could not be checked.
    """

    file: str
    format: str = ""
    weights: str = "model"
    verdict: Verdict | None = None
    summary: Summary | None = None
    findings: tuple[Finding, ...] = ()
    purpose: Purpose = "any"
    relevant: tuple[bool, ...] = ()
    table: TensorTable | None = None
    stats: StatsTable | None = None
    judged: frozenset[str] | None = None
    error: ErrorInfo | None = None

    @property
    def worst(self) -> Severity | None:
        """Highest severity among the findings that count for the purpose; None without any."""
        seen = [
            f.severity for f, counts in zip(self.findings, self.relevant, strict=True) if counts
        ]
        return max(seen, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a report is to look; the formats take from it what they can show.

    Parameters
    ----------
    tensors
        Which rows: ``none``, ``suspect``, ``all``; None for the format's own default.
    sort
        Order of the rows: ``file``, ``name``, ``size``, ``nonfinite``, ``max``.
    width
        Columns of the terminal.
    color, quiet
        ANSI colours; only what fails.
    fail_on
        Lowest severity that fails; None for none.
    """

    tensors: Tensors | None = None
    sort: Sort = "file"
    width: int = 80
    color: bool = False
    quiet: bool = False
    fail_on: Severity | None = Severity.ERROR
