"""Exit codes of the command line, and what is said of a fault of this package."""

from __future__ import annotations

from ._version import __version__

__all__ = ["BUG", "CLEAN", "FINDINGS", "INTERRUPTED", "UNCHECKED", "USAGE"]

CLEAN, FINDINGS, USAGE, UNCHECKED, INTERRUPTED = 0, 1, 2, 3, 130
BUG = f"a bug in ckptdoctor {__version__}: please report this line (--debug shows the traceback)"
