"""What is particular to a terminal: its width, its colours, its pipes, a line of progress."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from .report.escape import display, shorten

__all__ = ["Progress", "colored", "put", "say", "width_of"]

_QUIET_SECONDS = 1.0
_STEP_SECONDS = 0.1
_WIDTH_OF_NOTHING = 120
_LEAST_WIDTH = 40


class Progress:
    """Writes ``name  43%`` over itself, from `_QUIET_SECONDS` on, where there is a terminal.

    By hand, in 30 lines: the bars of click and rich cost more to import than a file to read.
    """

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self.stream = stream
        self.enabled = enabled
        self.start("")

    def start(self, name: str) -> None:
        """Begin with the next file."""
        self.name = shorten(display(name), _LEAST_WIDTH)
        self.next = time.monotonic() + _QUIET_SECONDS
        self.shown = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.enabled or now < self.next:
            return
        self.next = now + _STEP_SECONDS
        share = min(1.0, done / total) if total else 1.0
        line = f"{self.name}  [{'#' * int(share * 20):20}] {share:4.0%}"
        put(self.stream, "\r" + line.ljust(self.shown))
        self.shown = len(line)

    def clear(self) -> None:
        """Wipe the line, if there is one."""
        if self.shown:
            put(self.stream, "\r" + " " * self.shown + "\r")
            self.shown = 0


def width_of(stream: TextIO) -> int:
    """Columns to use: what COLUMNS or the terminal says; piped into a pager, stderr still knows."""
    try:
        return max(_LEAST_WIDTH, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    for candidate in (stream, sys.stderr):
        try:
            return max(_LEAST_WIDTH, os.get_terminal_size(candidate.fileno()).columns)
        except (OSError, ValueError, AttributeError):
            continue
    return _WIDTH_OF_NOTHING


def colored(when: str, stream: TextIO) -> bool:
    """Whether to colour: ``always``, ``never``, or ``auto`` (a terminal, and NO_COLOR not set)."""
    if when != "auto":
        return when == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def put(stream: TextIO, text: str) -> bool:
    """Write and flush; False when the reader has gone (``| head``), which is no error."""
    encoding = stream.encoding or "utf-8"
    if not text.isascii():
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _silence(stream)
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Point a closed pipe at nothing, so that the flush at exit does not complain either."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def say(text: str) -> None:
    """Write one line about the run itself to stderr."""
    put(sys.stderr, f"ckptdoctor: {display(text)}\n")
