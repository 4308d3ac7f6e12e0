"""The ``probe`` command: options -> probing -> report -> exit code, no logic."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import CkptDoctorError
from ..exits import CLEAN, FINDINGS
from ..probing.probe import STEPS, probe
from ..probing.results import ProbeReport
from ..report.probe import render
from ..report.probe_json import probe_json
from ..results import ErrorInfo
from ..terminal import ProgressLine, is_terminal, put
from .reports import view_on

if TYPE_CHECKING:
    from .wishes import ProbeWish

__all__ = ["run_probe"]


def run_probe(wish: ProbeWish) -> int:
    """Probe one model, tell of it, and return the exit code.

    What the user's code prints goes to standard error: standard output is the report.

    Raises
    ------
    CkptDoctorError
        If it could not be probed.
    """
    line = ProgressLine(sys.stderr, enabled=not wish.quiet and is_terminal(sys.stderr))
    stream = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = probe(wish.model, **wish.given, note=_told(wish.model, line))
    except CkptDoctorError as error:
        if wish.format == "json":
            failed = ProbeReport(model=wish.model, error=ErrorInfo.of(error, wish.model))
            put(stream, probe_json(failed))
        raise
    finally:
        line.clear()
    if wish.format == "json":
        put(stream, probe_json(report))
    else:
        view = view_on(stream, color=wish.color, quiet=wish.quiet)
        put(stream, render(report, view, wish.layers))
    return CLEAN if report.clean else FINDINGS


def _told(model: str, line: ProgressLine) -> Callable[[str], None]:
    """Progress by steps: how long each takes, nobody knows."""
    line.start(model)

    def note(what: str) -> None:
        line(STEPS.index(what), len(STEPS))

    return note
