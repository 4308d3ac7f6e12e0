"""``python -m ckptdoctor`` and the ``ckptdoctor`` command: what has to happen before imports."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_INTERRUPTED = 130


def main() -> int:
    """Run the command line with this process's arguments; returns the exit code."""
    try:
        return _main()
    except KeyboardInterrupt:  # while the imports were under way
        if sys.stderr is not None:
            sys.stderr.write("ckptdoctor: interrupted\n")
        return _INTERRUPTED


def _main() -> int:
    # Before NumPy is imported: a pool of threads that nobody uses takes half of its start-up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:]
    if arguments[:1] == ["inspect"] and "--trust-hdf5" not in arguments:
        # The HDF5 library's own process takes as long to start as our imports: side by side.
        from .containers.hdf5_process import prestart  # noqa: PLC0415

        prestart(word for word in arguments[1:] if not word.startswith("-"))
    from .cli import run  # noqa: PLC0415

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
