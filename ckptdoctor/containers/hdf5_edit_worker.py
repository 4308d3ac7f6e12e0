"""What runs in the child process that changes an HDF5 file, or compares two.

The bytes are those of the input, which nobody trusts, so the process gives up its rights before
HDF5 sees the first of them, as `ckptdoctor.containers.hdf5_worker` does.  It holds the descriptors
it was given and can open no other; what it writes ends at a size that its parent names.
"""

from __future__ import annotations

import contextlib
import encodings.ascii
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .hdf5_describe import reason_of
from .hdf5_edit_window import Declined, Inbox, Window
from .hdf5_rights import give_up_rights
from .hdf5_walk import Session

__all__ = ["main", "perform"]

_LOADED = (encodings.ascii, Session)
"""What h5py and HDF5 look up late, when the process may open no file any more."""
HEADROOM = 640 << 20
"""Address space beyond what the imports took: one chunk stored, decoded, changed and copied."""
MAX_TEXT = 1000


Operation = Callable[[Sequence[Window], Mapping[str, Any], Inbox], Any]


def _operations() -> Mapping[str, Operation]:
    from .hdf5_edit_attribute import set_attribute  # noqa: PLC0415
    from .hdf5_edit_copy import remove  # noqa: PLC0415
    from .hdf5_edit_values import overwrite  # noqa: PLC0415
    from .hdf5_same_walk import compare  # noqa: PLC0415

    return {
        "overwrite": overwrite, "remove": remove, "set_attribute": set_attribute,
        "compare": compare,
    }  # fmt: skip


def perform(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> dict[str, Any]:
    """Do one job and answer: ``{"done": ...}``, or ``{"error": text, "kind": ...}``."""
    try:
        return _performed(windows, job, inbox)
    finally:
        for window in windows:
            window.release()


def _performed(windows: Sequence[Window], job: Mapping[str, Any], inbox: Inbox) -> dict[str, Any]:
    written = [window for window in windows if window.writable]
    try:
        done = _operations()[job["verb"]](windows, job, inbox)
        for window in written:
            window.check()
    except MemoryError:
        return {"error": "out of memory", "kind": "write" if written else "damaged"}
    except Exception as error:  # noqa: BLE001  (h5py raises whatever HDF5's error class maps to)
        for window in written:
            if window.failed is not None:
                reason = window.failed.strerror or str(window.failed)
                return {"error": reason[:MAX_TEXT], "kind": "write"}
        if isinstance(error, Declined):
            return {"error": str(error)[:MAX_TEXT], "kind": error.kind}
        return {"error": reason_of(error), "kind": "damaged"}
    return {"done": done}


def _renew_clock(seconds: int) -> None:
    """Allow that much more time of the processor: for a process whose parent is gone."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + seconds
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(answer: Mapping[str, Any]) -> None:
    view = memoryview(json.dumps(answer).encode())
    while view:
        view = view[os.write(1, view) :]


def _descriptors(files: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    for file in files:
        if file["path"]:
            flags = os.O_RDWR if file["writable"] else os.O_RDONLY
            yield os.open(file["path"], flags | getattr(os, "O_BINARY", 0))
        else:
            yield file["fd"]


def main() -> None:
    """Do the one job that standard input describes, and answer on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        for stream in (0, 1):
            msvcrt.setmode(stream, os.O_BINARY)
    _operations()
    seconds = 60

    def more() -> bytes:
        _renew_clock(seconds)
        return os.read(0, 1 << 18)

    inbox = Inbox(more)
    job = json.loads(inbox.take(inbox.number()))
    files = job["files"]
    windows = [
        Window(fd, file["base"], file["size"], writable=file["writable"])
        for fd, file in zip(_descriptors(files), files, strict=True)
    ]
    seconds = job["seconds"]
    give_up_rights(int(job["limit"]), HEADROOM + int(job["room"]))
    _renew_clock(seconds)
    _answer(perform(windows, job, inbox))
    os._exit(0)  # taking HDF5 down in order takes longer, and a failed file has nothing to save
