"""What runs in the child process: the guarded walk, on bytes that nobody trusts.

HDF5's C library gets new memory-safety faults every year, so `ckptdoctor.containers.hdf5` runs it
in a process of its own, which gives up the right to open files, to write, to start processes and
to grow before it looks at the first byte.  What it answers is plain data (JSON and raw element
bytes), and the parent believes none of it unchecked.
"""

from __future__ import annotations

import encodings.ascii
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from .hdf5_describe import reason_of
from .hdf5_rights import give_up_rights
from .hdf5_walk import Session

__all__ = ["file_reader", "main"]

_LOADED = (encodings.ascii,)
"""A codec that h5py looks up late, when the process may open no file any more."""
HEADROOM = 640 << 20
"""Address space beyond what the imports took: one chunk stored, decoded and copied."""
CPU_SECONDS = 60


def _renew_clock() -> None:
    try:
        import resource  # noqa: PLC0415
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, -1))


def _answer(header: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + payload
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _requests() -> Iterator[list[str]]:
    pending = b""
    while True:
        line, found, rest = pending.partition(b"\n")
        if found:
            pending = rest
            yield line.decode().split()
            continue
        more = os.read(0, 1 << 16)
        if not more:
            return
        pending += more


def _serve(fd: int) -> None:
    session: Session | None = None
    for verb, *numbers in _requests():
        _renew_clock()
        try:
            if verb == "walk":
                base, size = map(int, numbers)
                session = Session(file_reader(fd, base), size)
                _answer(session.walk())
            elif session is not None:
                index, rank, *block = map(int, numbers)
                data = session.read(index, tuple(block[:rank]), tuple(block[rank:]))
                _answer({"bytes": len(data)}, data)
        except MemoryError:
            _answer({"error": "out of memory"})
        except Exception as error:  # noqa: BLE001  (whatever it is, it goes to the parent as text)
            _answer({"error": reason_of(error)})


def file_reader(fd: int, base: int) -> Callable[[int, int], bytes]:
    """Positioned reads of a file from an offset on."""
    if hasattr(os, "pread"):
        return lambda offset, length: os.pread(fd, length, base + offset)

    def pread(offset: int, length: int) -> bytes:
        os.lseek(fd, base + offset, os.SEEK_SET)
        return os.read(fd, length)

    return pread


def main(path: str = "") -> None:
    """Serve requests on standard input for the file open as descriptor 3 (or, on Windows, ``path``).

    Requests are lines: ``walk BASE SIZE`` and ``read INDEX RANK START... COUNT...``.  Answers are
    a length (8 bytes, little-endian), that much JSON, and for ``read`` the raw bytes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if path:
        import msvcrt  # noqa: PLC0415

        for stream in (0, 1):
            msvcrt.setmode(stream, os.O_BINARY)  # type: ignore[attr-defined]
        fd = os.open(path, os.O_RDONLY | os.O_BINARY)  # type: ignore[attr-defined]
    else:
        fd = 3
        os.closerange(4, 1 << 16)  # whatever the parent's other libraries leaked
    stat = os.fstat(fd)
    _answer({"ready": True, "file": [stat.st_dev, stat.st_ino]})
    give_up_rights(0, HEADROOM)  # it only answers
    _serve(fd)
    os._exit(0)  # taking HDF5 down in order takes longer than this process lived
