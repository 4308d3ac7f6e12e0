"""The ``inspect`` command: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..api import examine
from ..config import settings_of
from ..errors import UsageError
from ..exits import BUG, CLEAN, FINDINGS, UNCHECKED, USAGE
from ..findings import Severity
from ..report import renderer
from ..results import View
from ..selection import check_wishes
from ..terminal import ProgressLine, colored, is_terminal, put, say, width_of
from .reports import REPORT_WIDTH, check_paths, write_report

if TYPE_CHECKING:
    from ..results import Report, Wishes
    from .wishes import InspectWish

__all__ = ["run_inspection"]


def run_inspection(wish: InspectWish) -> int:
    """Inspect path after path, write what was asked for, and return the worst exit code."""
    settings = settings_of(wish.config)
    wishes = settings.wishes(**wish.given)
    check_wishes(wishes)
    check_paths(wish.paths, wish.reports)
    limit = wish.fail_on or settings.fail_on or "error"
    run = _Run(wish, wishes, None if limit == "never" else Severity[limit.upper()])
    if not wish.reports:
        run.emit(run.reports())
        return run.code
    reports = list(run.reports())
    run.emit(reports)
    for kind, file in wish.reports:
        view = run.view(REPORT_WIDTH)
        run.code = max(run.code, write_report(kind, file, reports, view))
    return run.code


class _Run:
    """Inspects path after path and keeps the worst exit code: 3, then 2, then 1."""

    def __init__(self, wish: InspectWish, wishes: Wishes, fail_on: Severity | None) -> None:
        self.wish, self.wishes, self.fail_on = wish, wishes, fail_on
        self.code = CLEAN
        seen = not wish.quiet and is_terminal(sys.stderr)
        self.progress = ProgressLine(sys.stderr, enabled=seen)

    def reports(self) -> Iterator[Report]:
        for path in self.wish.paths:
            self.progress.start(path)
            try:
                report = examine(path, self.wishes, self.progress, debug=self.wish.debug)
            finally:
                self.progress.clear()
            self.weigh(report)
            yield report

    def weigh(self, report: Report) -> None:
        error = report.error
        if error is not None and error.usage:
            self.code = max(self.code, USAGE)
            say(str(UsageError(error.message, where=error.where, hint=error.hint)))
        elif error is not None:
            self.code = UNCHECKED
            if error.bug:
                say(f"{report.file}: {error.type} at {error.where}: {error.message}; {BUG}")
        elif report.fails(self.fail_on):
            self.code = max(self.code, FINDINGS)

    def view(self, width: int, *, color: bool = False, encoding: str = "utf-8") -> View:
        return View(
            tensors=self.wish.tensors,
            sort=self.wish.sort,
            width=width,
            encoding=encoding,
            color=color,
            quiet=self.wish.quiet,
            fail_on=self.fail_on,
        )

    def emit(self, reports: Iterable[Report]) -> None:
        stream = sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        color = colored(self.wish.color, stream)
        view = self.view(width_of(stream), color=color, encoding=encoding)
        listening = True
        for piece in renderer(self.wish.format)(reports, view):
            # When nobody reads on, the exit code still is that of all files.
            listening = listening and put(stream, piece)
