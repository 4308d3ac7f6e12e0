"""The ``repair`` command: options -> api -> report -> exit code, no logic."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..api import repair
from ..config import settings_of
from ..errors import CkptDoctorError
from ..outcome import Outcome
from ..report.escape import display
from ..report.repair import render
from ..report.repair_json import outcome_json
from ..results import ErrorInfo
from ..terminal import ProgressLine, is_terminal, put
from .reports import view_on

if TYPE_CHECKING:
    from .wishes import RepairWish

__all__ = ["run_repair"]

_DONE, _REMAINDER = 0, 1


def _papers(wish: RepairWish) -> Iterator[str]:
    """Say where plan and receipt are."""
    if not wish.quiet:
        for option, word in (("write_plan", "plan"), ("receipt", "receipt")):
            file = wish.given.get(option)
            if file and not (option == "receipt" and wish.given.get("dry_run")):
                yield f"  {word:10} {display(file)}\n"


def run_repair(wish: RepairWish) -> int:
    """Repair one checkpoint, tell of it, and return the exit code.

    What a model's code prints goes to standard error: standard output is the report.

    Raises
    ------
    CkptDoctorError
        If it was declined, or could not be done: nothing was changed then.
    """
    settings = settings_of(wish.config)
    line = ProgressLine(sys.stderr, enabled=not wish.quiet and is_terminal(sys.stderr))
    phase = [""]

    def note(what: str, done: int, total: int) -> None:
        if phase[0] != what:
            line.clear()
            phase[0] = what
            line.start(f"{what} {wish.path}")
        line(done, total)

    stream = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            outcome = repair(wish.path, config=settings, note=note, **wish.given)
    except CkptDoctorError as error:
        if wish.format == "json":
            put(stream, outcome_json(Outcome(file=wish.path, error=ErrorInfo.of(error, wish.path))))
        raise
    finally:
        line.clear()
    if wish.format == "json":
        put(stream, outcome_json(outcome))
    else:
        view = view_on(stream, color=wish.color, quiet=wish.quiet)
        put(stream, render(outcome, view) + "".join(_papers(wish)))
    return _DONE if outcome.done else _REMAINDER
