"""
Exception tree: everything this package raises on purpose.

    CkptDoctorError
    ├── FormatError               the bytes break the format they claim to follow
    │   ├── UnknownFormatError    no adapter reads this kind of file
    │   ├── TruncatedError        a declared extent runs past the end of the file
    │   ├── BombError             a declared size or amount of work is far above the stored size
    │   └── UnsupportedError      valid, but outside what this version reads
    ├── ChangedError              the file changed while it was being read
    ├── ReadError                 the operating system would not give the bytes
    ├── WriteError                the operating system would not take the bytes, or gave others back
    ├── InternalError             a part of this package crashed: what it would have found is unknown
    ├── ModelError                code that the caller named failed: a model's, or its factory's
    ├── UnfitCheckpointError      preflight: the checkpoint must not be used
    ├── UncheckedCheckpointError  preflight: nobody knows, so it must not be used either
    └── UsageError                the caller asked for something that does not exist
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BombError",
    "ChangedError",
    "CkptDoctorError",
    "FormatError",
    "InternalError",
    "ModelError",
    "ReadError",
    "TruncatedError",
    "UncheckedCheckpointError",
    "UnfitCheckpointError",
    "UnknownFormatError",
    "UnsupportedError",
    "UsageError",
    "WriteError",
]


class CkptDoctorError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    message
        What was expected and what was found, both with their values; one line.
    where
        ``file:member+offset`` of the first wrong byte, as far as it is known.
    hint
        What to do next: a sentence or a command.

    Attributes
    ----------
    findings
        What was seen of the file before giving up (`ckptdoctor.findings.Finding`).

    Examples
    --------
    >>> str(FormatError("expected a header of 8 bytes, found 3", where="m.safetensors+0"))
    'm.safetensors+0: expected a header of 8 bytes, found 3'
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}; {hint}" if hint else text)
        self.message = message
        self.where = where
        self.hint = hint
        self.findings: tuple[Any, ...] = ()


class FormatError(CkptDoctorError):
    """The bytes break the format they claim to follow."""


class UnknownFormatError(FormatError):
    """No adapter reads this kind of file."""


class TruncatedError(FormatError):
    """A declared extent runs past the end of the file."""


class BombError(FormatError):
    """A declared size or amount of work is far above what the stored size justifies."""


class UnsupportedError(FormatError):
    """Valid, but outside what this version reads."""


class ChangedError(CkptDoctorError):
    """The file changed while it was being read."""


class ReadError(CkptDoctorError):
    """The operating system would not give the bytes."""


class WriteError(CkptDoctorError):
    """The operating system would not take the bytes, or what it gives back is not what was written.

    The target is as it was before, unless the message says otherwise.
    """


class InternalError(CkptDoctorError):
    """A part of this package crashed; what it would have found is unknown, so nothing passes."""


class ModelError(CkptDoctorError):
    """Code that the caller named failed: importing it, making the model, or running it."""


class UsageError(CkptDoctorError):
    """The caller asked for a file, code, tensor or setting that does not exist."""


class _PreflightError(CkptDoctorError):
    """Why `ckptdoctor.preflight` let nothing pass; ``report`` is kept when it is pickled."""

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", report: Any = None
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.report = report


class UnfitCheckpointError(_PreflightError):
    """A checkpoint that must not be used, as `ckptdoctor.preflight` or a guard found.

    Attributes
    ----------
    report
        The `ckptdoctor.Report` that says so; None where a guard saw it in a live model.
    """


class UncheckedCheckpointError(_PreflightError):
    """A checkpoint that `ckptdoctor.preflight` could not check: nobody knows whether it is fit.

    Attributes
    ----------
    report
        A `ckptdoctor.Report` whose ``error`` says why; ``__cause__`` is what was raised.
    """
