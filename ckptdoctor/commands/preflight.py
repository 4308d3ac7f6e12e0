"""The ``preflight`` command: one line for each checkpoint, for whoever reads a container's log."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Settings, settings_of
from ..errors import UsageError
from ..exits import BUG, CLEAN, FINDINGS, UNCHECKED, USAGE
from ..report.escape import display, unicode_text
from ..report.words import COLORS, human_bytes, many, paint
from ..results import View
from ..serving.cache import VerdictCache
from ..serving.digests import parsed
from ..serving.gate import check
from ..serving.outcome import Outcome, not_checked
from ..serving.terms import Terms
from ..shell import quoted
from ..terminal import ProgressLine, colored, is_terminal, put, say
from .reports import REPORT_WIDTH, check_reports, write_report

if TYPE_CHECKING:
    from ..serving.digests import Expected
    from .wishes import PreflightWish

__all__ = ["run_preflight"]

_WIDTH = len("unchecked")
_MAX_SUMS = 1 << 24
_SUM = re.compile(r"\\?([0-9a-fA-F]{64}) [ *](.+)")
"""A line of ``sha256sum``; it puts a backslash before one whose name it had to escape."""


def run_preflight(wish: PreflightWish) -> int:
    """Check path after path, a line each; return the worst exit code.

    What is wrong whatever the file stops it before the first; a path that does not exist, and an
    option that does not fit its file, is told in the line of that path.

    Raises
    ------
    UsageError
        If something was asked for that does not exist; nothing was checked then.
    """
    settings = settings_of(wish.config)
    terms = Terms.of(
        config=settings,
        fail_on=wish.fail_on or settings.fail_on or "error",
        expect_sha256=_expected(wish),
        expect_keys=wish.expect_keys,
        cache=None if wish.cache is None else VerdictCache(wish.cache, key=wish.cache_key),
        allow_unsafe_load=wish.allow_unsafe_load,
        **wish.given,
    )
    check_reports(wish.paths, wish.reports)
    _check_names(wish.expect_keys)
    run = _Run(wish, terms, settings)
    for path in wish.paths:
        run.check(path)
    for kind, file in wish.reports:
        reports = [outcome.report for outcome in run.outcomes]
        view = View(width=REPORT_WIDTH, fail_on=terms.limit, names=True)
        run.code = max(run.code, write_report(kind, file, reports, view))
    return run.code


class _Run:
    """Checks path after path and keeps the worst exit code: 3, then 2, then 1."""

    def __init__(self, wish: PreflightWish, terms: Terms, settings: Settings) -> None:
        self.wish, self.terms = wish, terms
        self.found = settings.file if wish.config is None else ""
        self.code = CLEAN
        self.outcomes: list[Outcome] = []
        self.listening = True
        seen = not wish.quiet and is_terminal(sys.stderr)
        self.progress = ProgressLine(sys.stderr, enabled=seen)

    def check(self, path: str) -> None:
        """Check one path, and say so at once."""
        self.progress.start(path)
        start = time.monotonic()
        try:
            odd = _settings_beside(path, self.found) if self.found else None
            if odd is None:
                outcome = check(path, self.terms, self.progress, self.warn)
            else:
                outcome = not_checked(path, self.terms, odd)
        finally:
            self.progress.clear()
        seconds = time.monotonic() - start
        self.weigh(outcome)
        self.outcomes.append(outcome)
        if outcome.error is not None or not self.wish.quiet:
            line = self.renderer()(outcome, seconds)
            # When nobody reads on, the exit code still is that of all files.
            self.listening = self.listening and put(sys.stdout, line + "\n")

    def warn(self, text: str) -> None:
        """Say what there is to say about the cache; a line of progress would hide it."""
        self.progress.clear()
        say(text)

    def weigh(self, outcome: Outcome) -> None:
        """Make an exit code of an outcome."""
        error = outcome.report.error
        if outcome.grade != "unchecked":
            self.code = max(self.code, CLEAN if outcome.error is None else FINDINGS)
        elif error is not None and error.usage:
            self.code = max(self.code, USAGE)
        else:
            self.code = UNCHECKED
            if error is not None and error.bug:
                if self.wish.debug and outcome.error is not None and outcome.error.__cause__:
                    raise outcome.error.__cause__
                say(f"{outcome.report.file}: {error.type} at {error.where}: {error.message}; {BUG}")

    def renderer(self) -> Callable[[Outcome, float], str]:
        """Return the function that makes a line of an outcome."""
        if self.wish.format == "json":
            return _json
        stream = sys.stdout
        view = View(color=colored(self.wish.color, stream))
        return lambda outcome, seconds: _text(outcome, seconds, self.terms, view)


def _text(outcome: Outcome, seconds: float, terms: Terms, view: View) -> str:
    """Line for people: grade, file, and why or what it is."""
    grade = outcome.grade
    return "  ".join(
        (
            paint(grade, COLORS.get(grade, COLORS["error"]), view) + " " * (_WIDTH - len(grade)),
            display(outcome.report.file),
            _details(outcome, seconds, terms),
        )
    )


def _details(outcome: Outcome, seconds: float, terms: Terms) -> str:
    summary = outcome.report.summary
    if outcome.grade == "fit" and summary is not None:
        took = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
        how = "known from the cache" if outcome.report.cached else f"checked in {took}"
        settings = terms.wishes.settings
        how += f", by the settings of {display(settings)}" if settings else ""
        return (
            f"{outcome.report.format}, {many(summary.tensors, 'tensor')}, "
            f"{many(summary.parameters, 'parameter')}, {human_bytes(summary.nbytes)}, {how}"
        )
    note = ""
    if outcome.grade == "unfit" and outcome.error is None:
        note = f" (passes: --fail-on {terms.fail_on})"
    elif outcome.grade == "suspect" and outcome.error is not None:
        note = f" (stopped: --fail-on {terms.fail_on})"
    step = f"; {'' if outcome.grade == 'unchecked' else 'next: '}{outcome.next}"
    return f"{outcome.reason}{note}{step if outcome.next else ''}"


def _json(outcome: Outcome, seconds: float) -> str:
    """Line for machines: an object whose members mean what they mean in a report as JSON."""
    report = outcome.report
    told: dict[str, Any] = {
        "schema": 1,
        "file": unicode_text(report.file),
        "grade": outcome.grade,
        "passes": outcome.error is None,
        "reason": unicode_text(outcome.reason),
        "next": unicode_text(outcome.next),
        "format": report.format,
        "weights": report.weights,
        "verdict": None,
        "summary": None,
        "cached": report.cached,
        "seconds": round(seconds, 3),
        "error": None,
    }
    if report.verdict is not None and report.summary is not None:
        v, s = report.verdict, report.summary
        told["verdict"] = {"load": v.load, "serve": v.serve, "resume": v.resume}
        told["summary"] = {
            "tensors": s.tensors, "parameters": s.parameters, "bytes": s.nbytes,
            "errors": s.errors, "warnings": s.warnings, "notes": s.notes,
        }  # fmt: skip
    if report.error is not None:
        e = report.error
        message = f"{e.message}; {e.hint}" if e.hint else e.message
        parts = {"type": e.type, "message": message, "where": e.where}
        told["error"] = {key: unicode_text(text) for key, text in parts.items()}
    return json.dumps(told)


def _settings_beside(path: str, found: str) -> UsageError | None:
    """Refuse settings that were found in the checkpoint's own folder, as a download can bring them.

    Whoever made the file must have no say in how it is judged. To pass them by would be as wrong:
    settings may be stricter than none.
    """
    home = os.path.dirname(found) or "."  # noqa: PTH120
    try:
        if not os.path.exists(path):  # noqa: PTH110
            return None
        folders = [path]
        if not os.path.isdir(path):  # noqa: PTH112
            folders = [os.path.dirname(each) or "." for each in (path, os.path.realpath(path))]  # noqa: PTH120
        beside = any(os.path.samefile(folder, home) for folder in folders)  # noqa: PTH121
    except (OSError, ValueError):
        return None  # whoever reads it will say what is wrong
    if not beside:
        return None
    message = f"the settings of {found!r:.200} lie beside it, and may have come with it"
    hint = f"say --config {quoted(found)}, or --config /dev/null for none"
    return UsageError(message, where=path, hint=hint)


def _expected(wish: PreflightWish) -> Expected | None:
    """Digest that was given, or digests by file name of a file that was."""
    text = wish.expect_sha256
    if text is None:
        return None
    try:
        digest = parsed(text)
    except UsageError:
        return _sums(text)
    if len(wish.paths) > 1:
        message = f"--expect-sha256: expected one path for one digest, found {len(wish.paths)}"
        raise UsageError(message, hint="give a file as sha256sum writes it")
    return digest


def _check_names(file: str | None) -> None:
    """See that the expected names can be read: where they cannot, no checkpoint is at fault."""
    if file is not None:
        from ..coverage.expected import read_expected  # noqa: PLC0415  (few ask for it)

        try:
            read_expected(file)
        except UsageError as error:
            message = f"--expect-keys {file!r:.200}: {error.message}"
            raise UsageError(message, hint=error.hint) from None


def _sums(file: str) -> Expected:
    """Digests of a file as ``sha256sum`` writes it, by the last part of their names."""
    try:
        with Path(file).open(encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read(_MAX_SUMS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"--expect-sha256 {file!r:.200}: neither 64 hexadecimal digits nor a file"
        raise UsageError(f"{message} that can be read ({reason})") from None
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _SUM.fullmatch(line)
        if match is None:
            message = (
                f"--expect-sha256: expected lines as sha256sum writes them, found {line!r:.100}"
            )
            raise UsageError(message, where=file)
        name = match[2].rpartition("/")[2]
        if found.setdefault(name, match[1].lower()) != match[1].lower():
            raise UsageError(f"--expect-sha256: two files are named {name!r:.200}", where=file)
    if not found:
        raise UsageError(
            "--expect-sha256: expected lines as sha256sum writes them, found none", where=file
        )
    return found
