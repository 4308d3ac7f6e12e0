"""What is particular to a terminal: its width, its colours, its pipes, a line of progress."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TextIO

from .report.escape import columns, display, shorten

__all__ = [
    "OutputError",
    "ProgressLine",
    "colored",
    "is_terminal",
    "put",
    "say",
    "unwritable",
    "width_of",
]

_QUIET_SECONDS = 1.0
_STEP_SECONDS = 0.1
_WIDTH_OF_NOTHING = 120
_LEAST_WIDTH = 40
_NAME_WIDTH = 40
_BAR_WIDTH = 20


class OutputError(Exception):
    """The standard output took no more, for another reason than a reader who has gone."""


class ProgressLine:
    """Writes ``name  43%`` over itself, from `_QUIET_SECONDS` on, where there is a terminal.

    By hand, in 30 lines: the bars of click and rich cost more to import than a file to read.
    """

    def __init__(self, stream: TextIO | None, *, enabled: bool) -> None:
        self.stream = stream
        self.enabled = enabled
        self.start("")

    def start(self, name: str) -> None:
        """Begin with the next file."""
        self.name = shorten(_encodable(display(name), self.stream), _NAME_WIDTH)
        self.next = time.monotonic() + _QUIET_SECONDS
        self.shown = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.enabled or now < self.next:
            return
        self.next = now + _STEP_SECONDS
        share = min(1.0, done / total) if total else 1.0
        line = self.line(share, _columns_of(self.stream) or 80)
        wide = columns(line)
        _tell(self.stream, "\r" + line + " " * (self.shown - wide))
        self.shown = wide

    def line(self, share: float, width: int) -> str:
        """Text for a share done, shorter than ``width``: a line that wraps cannot be wiped."""
        end = f"{share:4.0%}"
        bar = f"[{'#' * int(share * _BAR_WIDTH):{_BAR_WIDTH}}] "
        if width > _BAR_WIDTH + _NAME_WIDTH // 2:
            end = bar + end
        room, name = width - 1 - len(end) - 2, self.name
        while columns(name) > max(room, 0):
            name = shorten(name, len(name) - 1)
        if name:
            return f"{name}  {end}"
        return end[1 - width :] if width > 1 else ""

    def clear(self) -> None:
        """Wipe the line, if there is one."""
        if self.shown:
            _tell(self.stream, "\r" + " " * self.shown + "\r")
            self.shown = 0


def width_of(stream: TextIO | None) -> int:
    """Columns to use: what COLUMNS or the terminal says; piped into a pager, stderr still knows."""
    try:
        return max(_LEAST_WIDTH, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    for candidate in (stream, sys.stderr):
        wide = _columns_of(candidate)
        if wide:
            return max(_LEAST_WIDTH, wide)
    return _WIDTH_OF_NOTHING


def _columns_of(stream: TextIO | None) -> int:
    """Columns of a terminal; 0 for what is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream else 0
    except (OSError, ValueError, AttributeError):
        return 0


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads it; a stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def colored(when: str, stream: TextIO | None) -> bool:
    """Whether to colour: ``always``, ``never``, or ``auto`` (a terminal, and NO_COLOR not set)."""
    if when != "auto":
        return when == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return is_terminal(stream) and not plain


def put(stream: TextIO | None, text: str) -> bool:
    """Write and flush; False when the reader has gone (``| head``), which is no error.

    Raises
    ------
    OutputError
        If it cannot be written for another reason: a full disk, a stream that was closed.
    """
    if stream is None:
        raise OutputError("it is closed")
    try:
        stream.write(_encodable(text, stream))
        stream.flush()
    except BrokenPipeError:
        _silence(stream)
        return False
    except OSError as error:
        raise unwritable(stream, error) from None
    return True


def unwritable(stream: TextIO, error: OSError) -> OutputError:
    """Give up on a stream; returns the error that says so."""
    _silence(stream)
    return OutputError(error.strerror or str(error))


def _encodable(text: str, stream: TextIO | None) -> str:
    if text.isascii() or stream is None:
        return text
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _silence(stream: TextIO) -> None:
    """Point a stream at nothing, so that the flush at exit does not complain either."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):  # a stream in memory has no descriptor
        os.dup2(null, stream.fileno())
    os.close(null)


def say(text: str) -> None:
    """Write one line about the run itself to stderr."""
    _tell(sys.stderr, f"ckptdoctor: {display(text)}\n")


def _tell(stream: TextIO | None, text: str) -> None:
    """Write what nobody has to hear: a lost line about the run must not end it."""
    with contextlib.suppress(OutputError):
        put(stream, text)
