"""SHA-256 that a checkpoint is expected to have: compared, and told in its report."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ChangedError, CkptDoctorError, UsageError
from ..findings import Finding, Severity, container_finding
from ..results import Diagnosis, Report, Verdict
from ..shell import command
from ..sources import FileSource
from .identity import Identity, identify, sha256_of

__all__ = [
    "KEY",
    "Expected",
    "Mismatch",
    "digests_of",
    "mismatch",
    "mismatch_of_unreadable",
    "parsed",
    "told",
]

Expected = str | Mapping[str, str]

KEY = "another-file"
"""Of the diagnosis."""

_HEX = re.compile(r"(sha256:)?([0-9a-fA-F]{64})")


def parsed(expected: Any) -> Expected | None:
    """Digest, or digests by file name, in lower case; None for None.

    Raises
    ------
    UsageError
        If it is neither 64 hexadecimal digits, with or without ``sha256:``, nor a mapping of file
        names to such.

    Examples
    --------
    >>> parsed("SHA256:" .lower() + "AB" * 32) == "ab" * 32
    True
    """
    if expected is None:
        return None
    if isinstance(expected, Mapping) and expected:
        return {os.fspath(name): _digest(digest) for name, digest in expected.items()}
    return _digest(expected)


def _digest(text: Any) -> str:
    match = _HEX.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UsageError(f"expected a SHA-256 as 64 hexadecimal digits, found {text!r:.100}")
    return match[2].lower()


def digests_of(path: str, identity: Identity) -> dict[str, str]:
    """SHA-256 of every file, by name, of the same bytes that have that identity.

    Raises
    ------
    CkptDoctorError
        If a file cannot be read, or is another by now.
    """
    if all(file.sha256 for file in identity.files):
        return {file.name: file.sha256 for file in identity.files}
    found = identify(path, content=True)
    if found.unhashed() != identity.unhashed():
        hint = "run again when nothing writes to it"
        raise ChangedError("changed while it was being read", where=path, hint=hint)
    return {file.name: file.sha256 for file in found.files}


class Mismatch(NamedTuple):
    """A file that is not the one expected, and the sentence that says so."""

    file: str
    sentence: str


def mismatch(path: str, expected: Expected, digests: Mapping[str, str]) -> Mismatch | None:
    """Say which file is not the one expected; None where all are.

    Raises
    ------
    UsageError
        If one digest is given for several files, or none for one of them.
    """
    if isinstance(expected, str):
        if len(digests) != 1:
            message = f"expected one file for one SHA-256, found {len(digests)} files"
            hint = "give a SHA-256 for each, by file name"
            raise UsageError(message, where=path, hint=hint)
        expected = dict.fromkeys(digests, expected)
    missing = [name for name in digests if name not in expected]
    if missing:
        message = f"no SHA-256 is given for {missing[0]!r:.200}, a file of the checkpoint"
        raise UsageError(message, where=path, hint="give one for each of its files")
    wrong = [name for name, digest in digests.items() if digest != expected[name]]
    if not wrong:
        return None
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    which = path if len(digests) == 1 else _beside(path, first)
    what = "it" if len(digests) == 1 else f"{first!r:.200}{more}"
    sentence = (
        f"{what} is not the file expected: its SHA-256 is {digests[first]}, "
        f"expected {expected[first]}"
    )
    return Mismatch(which, sentence)


def _beside(path: str, name: str) -> str:
    folder = path if Path(path).is_dir() else os.path.dirname(path)  # noqa: PTH120
    return os.path.join(folder, name)  # noqa: PTH118  (Path would tidy the name)


def mismatch_of_unreadable(path: str, expected: Expected | None) -> Mismatch | None:
    """As `mismatch`, for a single file that is no checkpoint; None where that cannot be told."""
    if not isinstance(expected, str):
        return None
    try:
        source = FileSource(path)
        try:
            return mismatch(path, expected, {path: sha256_of(source)})
        finally:
            source.close()
    except CkptDoctorError:
        return None


def told(report: Report, wrong: Mismatch) -> Report:
    """Report of which the first thing said is that this is another file."""
    sentence = wrong.sentence
    finding = container_finding("CK001", Severity.ERROR, sentence, where=report.file)
    diagnosis = Diagnosis(
        key=KEY,
        title=sentence[:1].upper() + sentence[1:],
        severity=Severity.ERROR,
        findings=(0,),
        evidence=("The file was read to its end, and its SHA-256 compared with the one given.",),
        inference="Whatever it holds, it is not what was meant to be served.",
        repair="Nothing is lost that a copy of the right file does not bring back.",
        advice=("Publish a model under a new name, and its SHA-256 with it.",),
        next=command("sha256sum", file=wrong.file),
        next_tells="Prints what the file has.",
    )
    later = [replace(d, findings=tuple(at + 1 for at in d.findings)) for d in report.diagnoses]
    findings: tuple[Finding, ...] = (finding, *report.findings)
    made = replace(
        report,
        findings=findings,
        relevant=(True, *report.relevant),
        diagnoses=(diagnosis, *later),
    )
    if report.verdict is None or report.summary is None:
        return made
    return replace(
        made,
        verdict=Verdict(load=report.verdict.load, serve="unfit", resume="unfit"),
        summary=replace(report.summary, errors=report.summary.errors + 1),
    )
