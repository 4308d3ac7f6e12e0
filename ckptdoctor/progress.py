"""A progress line for work that takes longer than a second, on a terminal."""

from __future__ import annotations

import time
from typing import TextIO

from .report.escape import display, shorten

__all__ = ["Progress"]

_QUIET_SECONDS = 1.0
_STEP_SECONDS = 0.1


class Progress:
    """Writes ``name  43 %`` over itself; nothing before `_QUIET_SECONDS`, nothing if not enabled.

    By hand, in 30 lines: the bars of click and rich cost more to import than this file to read.
    """

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self.stream = stream
        self.enabled = enabled
        self.start("")

    def start(self, name: str) -> None:
        """Begin with the next file."""
        self.name = shorten(display(name), 40)
        self.next = time.monotonic() + _QUIET_SECONDS
        self.shown = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.enabled or now < self.next:
            return
        self.next = now + _STEP_SECONDS
        share = min(1.0, done / total) if total else 1.0
        line = f"{self.name}  [{'#' * int(share * 20):20}] {share:4.0%}"
        self.stream.write("\r" + line.ljust(self.shown))
        self.stream.flush()
        self.shown = len(line)

    def clear(self) -> None:
        """Wipe the line, if there is one."""
        if self.shown:
            self.stream.write("\r" + " " * self.shown + "\r")
            self.stream.flush()
            self.shown = 0
