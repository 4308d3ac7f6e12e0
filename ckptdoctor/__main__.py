"""``python -m ckptdoctor`` and the ``ckptdoctor`` command: what has to happen before imports."""

from __future__ import annotations

import gc
import os
import sys

__all__ = ["main"]

_UNCHECKED, _INTERRUPTED = 3, 130


def main() -> int:
    """Run the command line with this process's arguments; returns the exit code."""
    try:
        return _main()
    except KeyboardInterrupt:  # while the imports were under way
        if sys.stderr is not None:
            sys.stderr.write("ckptdoctor: interrupted\n")
        return _INTERRUPTED
    except ImportError as error:  # Python's own exit code for it would read as "findings"
        if "--debug" in sys.argv:
            import traceback  # noqa: PLC0415

            traceback.print_exception(error)
        if sys.stderr is not None:
            hint = "install it again: pip install --force-reinstall ckptdoctor"
            sys.stderr.write(f"ckptdoctor: cannot start: {error}; {hint}\n")
        return _UNCHECKED


def _main() -> int:
    # What is read is kept to the end: of 100,000 tensors, looking for garbage took half the time.
    gc.set_threshold(200_000, 20, 20)
    # Before NumPy is imported: a pool of threads that nobody uses takes half of its start-up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # For models that are run: TensorFlow tells of every processor feature otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arguments = sys.argv[1:]
    if arguments[:1] == ["probe"] or any(word.startswith("--recal") for word in arguments):
        from .quiet_imports import quiet_imports  # noqa: PLC0415

        quiet_imports()
    if arguments[:1] in (["inspect"], ["preflight"]) and "--trust-hdf5" not in arguments:
        # The HDF5 library's own process takes as long to start as our imports: side by side.
        from .containers.hdf5_process import prestart  # noqa: PLC0415

        prestart(word for word in arguments[1:] if not word.startswith("-"))
    from .cli import run  # noqa: PLC0415

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
