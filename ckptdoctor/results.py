"""What a look at a checkpoint comes to: summary, verdict, findings, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import CkptDoctorError, InternalError, UsageError
from .findings import Finding, Severity

if TYPE_CHECKING:
    from .measure.stats import StatsTable
    from .tensors import TensorTable

__all__ = [
    "CastTo",
    "Cause",
    "Diagnosis",
    "ErrorInfo",
    "Exemption",
    "FailOn",
    "Fitness",
    "Format",
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
    "Wishes",
    "counted",
    "one_line",
]

_LONGEST = 200
"""Characters of a text in a ``repr``: names and messages come from files."""


def one_line(text: str) -> str:
    r"""Text of a file within one line of a ``repr``.

    Examples
    --------
    >>> print(one_line("a\nb"), len(one_line("x" * 1000)))
    a\nb 200
    """
    shown = repr(text)[1:-1]
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."


def counted(*counts: int) -> str:
    """Errors, warnings and notes in words; those there are.

    Examples
    --------
    >>> counted(2, 0, 1), counted(0, 0, 0)
    ('2 errors, 1 note', 'nothing found')
    """
    kinds = ("error", "warning", "note")
    told = [
        f"{n:,} {kind}{'' if n == 1 else 's'}" for n, kind in zip(counts, kinds, strict=False) if n
    ]
    return ", ".join(told) or "nothing found"


Loading = Literal["safe", "unsafe"]
Fitness = Literal["fit", "suspect", "unfit"]
Purpose = Literal["any", "serve", "resume"]
Weights = Literal["auto", "model", "ema"]
Tensors = Literal["none", "suspect", "all"]
Sort = Literal["file", "name", "size", "nonfinite", "max"]
Format = Literal["text", "json"]
FailOn = Literal["error", "warning", "never"]
CastTo = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Findings that someone has looked at and accepts.

    Parameters
    ----------
    tensor
        Pattern of tensor names (``fnmatch``).
    reason
        Why they are accepted; the report repeats it.
    codes
        Codes, their first letters, or names; all where empty.
    """

    tensor: str
    reason: str
    codes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a caller may choose about an inspection; see `ckptdoctor.inspect`.

    ``thresholds`` are by code or name, and threshold (``{"BN003": {"limit": 500}}``); ``settings``
    is the file that some of the choices were read from.

    Raises
    ------
    UsageError
        If a choice is none of those there are, or a list is a single word.

    Examples
    --------
    >>> Wishes(weights="Model")
    Traceback (most recent call last):
    ckptdoctor.errors.UsageError: expected weights to be auto, model or ema, found 'Model'
    """

    purpose: Purpose = "any"
    weights: Weights = "auto"
    select: Sequence[str] = ()
    ignore: Sequence[str] = ()
    tensors: Sequence[str] = ()
    cast_to: str = ""
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    exempt: Sequence[Exemption] = ()
    trust_hdf5: bool = False
    settings: str = ""

    def __post_init__(self) -> None:
        _check_choice("purpose", self.purpose, Purpose)
        _check_choice("weights", self.weights, Weights)
        if self.cast_to:
            _check_choice("cast_to", self.cast_to, CastTo)
        for name in ("select", "ignore", "tensors"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise UsageError(f"expected {name} to be a list, found {value!r:.100}")


def _check_choice(name: str, value: object, literal: Any) -> None:
    known = get_args(literal)
    if value not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}"
        raise UsageError(f"expected {name} to be {listed}, found {value!r:.100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why it may have happened: how sure that is, and the observation behind it.

    ``confidence`` is ``high`` (the file shows it), ``medium`` (the file fits it better than the
    alternatives) or ``low`` (possible, and worth ruling out).
    """

    name: str
    text: str
    confidence: Literal["high", "medium", "low"]
    observation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Findings of one cause, told once.

    Parameters
    ----------
    key
        Identity of the kind of illness: ``bn-stats-nonfinite``.
    title
        The illness in one line, with its layers and numbers.
    severity
        Highest of its findings.
    findings
        Their indices in ``Report.findings``.
    layers
        Affected layers, in depth order where it is known.
    suspect
        The layer where it most likely began.
    evidence
        What in the file says so, one sentence each.
    inference, training
        What the model does when served, and why training looked fine.
    causes
        Most likely first.
    repair
        What is lost and what can be had back.
    advice
        What to change so that it does not happen again, each with the evidence that calls for it.
    snippet
        A few lines of Python that do what ``repair`` says; empty where there are none.
    next, next_tells
        A command to copy, and what it shows and exits with.
    """

    key: str
    title: str
    severity: Severity
    findings: tuple[int, ...]
    layers: tuple[str, ...] = ()
    suspect: str = ""
    evidence: tuple[str, ...] = ()
    inference: str = ""
    training: str = ""
    causes: tuple[Cause, ...] = ()
    repair: str = ""
    advice: tuple[str, ...] = ()
    snippet: tuple[str, ...] = ()
    next: str = ""
    next_tells: str = ""


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

    @classmethod
    def of(cls, error: CkptDoctorError, where: str) -> ErrorInfo:
        """Take what an error says; ``where`` it was if it does not say so itself."""
        return cls(
            type=type(error).__name__,
            message=error.message,
            where=error.where or where,
            hint=error.hint,
            bug=isinstance(error, InternalError),
        )

    @property
    def usage(self) -> bool:
        """Whether the file was asked for what it does not have: wrong usage, not a bad file."""
        return self.type == UsageError.__name__


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
    diagnoses
        What the findings come to, worst first.
    wishes
        What was asked for: the purpose the findings are weighed for, the codes left out.
    relevant
        Of each finding, whether it counts for that purpose.
    judged
        Names of the tensors that were judged where a pattern chose some; None for all.
    error
        None, or why the file could not be checked.
    cached
        Whether `ckptdoctor.preflight` knew the verdict from its cache, and scanned nothing.
    """

    file: str
    format: str = ""
    weights: str = "model"
    verdict: Verdict | None = None
    summary: Summary | None = None
    findings: tuple[Finding, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    wishes: Wishes = Wishes()
    relevant: tuple[bool, ...] = ()
    table: TensorTable | None = None
    stats: StatsTable | None = None
    judged: frozenset[str] | None = None
    error: ErrorInfo | None = None
    cached: bool = False

    def __repr__(self) -> str:
        """One line, for consoles and notebooks: `ckptdoctor.as_text` has the whole."""
        name = f"<Report {one_line(self.file)}: "
        if self.error is not None:
            return f"{name}could not be checked: {one_line(self.error.message)}>"
        told = []
        if self.verdict is not None:
            v = self.verdict
            told.append(f"serve {v.serve}, resume {v.resume}, load {v.load}")
        if self.summary is not None:
            told.append(counted(self.summary.errors, self.summary.warnings, self.summary.notes))
        told += [one_line(diagnosis.title) for diagnosis in self.diagnoses[:1]]
        return f"{name}{'; '.join(told)}>"

    @property
    def worst(self) -> Severity | None:
        """Highest severity among the findings that count for the purpose; None without any."""
        seen = [
            f.severity for f, counts in zip(self.findings, self.relevant, strict=True) if counts
        ]
        return max(seen, default=None)

    def fails(self, fail_on: Severity | None) -> bool:
        """Whether a finding that counts is at or above the limit; None is no limit."""
        worst = self.worst
        return worst is not None and fail_on is not None and worst >= fail_on


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a report is to look; the formats take from it what they can show.

    Parameters
    ----------
    tensors
        Which rows: ``none``, ``suspect``, ``all``; None for the format's own default.
    sort
        Order of the rows.
    width, encoding
        Columns of the terminal, and what it can print.
    color, quiet
        ANSI colours; only what fails.
    fail_on
        Lowest severity that fails; None for none.
    names
        Every name that CK003 counts, where a message has room for a few.
    """

    tensors: Tensors | None = None
    sort: Sort = "file"
    width: int = 80
    encoding: str = "utf-8"
    color: bool = False
    quiet: bool = False
    fail_on: Severity | None = Severity.ERROR
    names: bool = False
