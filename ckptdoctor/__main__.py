"""``python -m ckptdoctor`` and the ``ckptdoctor`` command: what has to happen before imports."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line with this process's arguments; returns the exit code."""
    # Before NumPy is imported: a pool of threads that nobody uses takes half of its start-up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from .cli import run  # noqa: PLC0415

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
