"""What commands share: paths checked before any work, reports to files, text on a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..errors import UsageError
from ..exits import CLEAN, UNCHECKED, USAGE
from ..report import renderer
from ..results import View
from ..terminal import colored, say, width_of

if TYPE_CHECKING:
    from ..results import Report

__all__ = ["REPORT_WIDTH", "check_paths", "check_reports", "view_on", "write_report"]

REPORT_WIDTH = 100
"""Columns of a text report in a file."""


def view_on(stream: TextIO, *, color: str, quiet: bool) -> View:
    """How text is to look on a stream: as wide, as colourful, and in letters that it can show."""
    return View(
        width=width_of(stream),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        color=colored(color, stream),
        quiet=quiet,
    )


def check_paths(paths: Sequence[str], reports: Iterable[tuple[str, str]]) -> None:
    """See that there is something at each path, and that each report can be written.

    Raises
    ------
    UsageError
        If not.
    """
    for path in paths:
        if not path or not _exists(Path(path)):
            raise UsageError("no such file or folder", where=path or "''")
    check_reports(paths, reports)


def check_reports(paths: Sequence[str], reports: Iterable[tuple[str, str]]) -> None:
    """See that each report can be written, and over none of the paths.

    Raises
    ------
    UsageError
        If not.
    """
    for _, file in reports:
        from ..report.files import check_target  # noqa: PLC0415  (tempfile costs 5 ms)

        check_target(file, paths)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def write_report(kind: str, file: str, reports: Sequence[Report], view: View) -> int:
    """Write reports to a file, never over what they are about; returns the exit code of that."""
    from ..report.files import guard_inputs, write  # noqa: PLC0415

    try:
        guard_inputs(file, reports)
        write(file, renderer(kind)(reports, view))
    except UsageError as error:
        say(str(error))
        return USAGE
    except OSError as error:
        say(f"{file}: the report could not be written: {error.strerror}")
        return UNCHECKED
    return CLEAN
