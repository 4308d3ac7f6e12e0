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

from h5py import h5f, h5fd, h5p

from .hdf5_describe import reason_of
from .hdf5_walk import Session

__all__ = ["Declined", "Inbox", "Window", "main", "opened", "perform"]

_LOADED = (encodings.ascii, Session)
"""What h5py and HDF5 look up late, when the process may open no file any more."""
HEADROOM = 640 << 20
"""Address space beyond what the imports took: one chunk stored, decoded, changed and copied."""
MAX_TEXT = 1000


class Declined(Exception):
    """What is asked for is not done.

    Parameters
    ----------
    kind
        ``unsupported``, ``missing`` or ``write``.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Window:
    """The file object that HDF5 reads and writes through: one descriptor, by offset.

    A write that fails is kept in ``failed``, and the ones after it are swallowed: HDF5 can then
    close the file without more errors, and the first reason is the one that is told.

    Parameters
    ----------
    fd, base, size
        The file starts at ``base``; nothing is read from ``base + size`` on.
    writable
        Whether it may be written to; then ``base`` is 0.
    """

    def __init__(self, fd: int, base: int, size: int, *, writable: bool = False) -> None:
        self.fd, self.base, self.size, self.writable = fd, base, size, writable
        self.at = 0
        self.failed: OSError | None = None
        self.released = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset if whence == 0 else self.size + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer)  # old versions of h5py have views of their own
        end = 0 if self.released else min(len(view), max(0, self.size - self.at))
        done = 0
        while done < end:
            got = _read_at(self.fd, self.base + self.at + done, view[done:end])
            if not got:
                break
            done += got
        # h5py does not look at what was returned: HDF5 must not see what lay in the buffer.
        view[done:] = bytes(len(view) - done)
        self.at += len(view)
        return done

    def write(self, data: memoryview) -> int:
        view = memoryview(data)
        length = len(view)
        try:
            if not self.writable:
                raise PermissionError(1, "opened for reading")
            while view and self.failed is None and not self.released:
                done = _write_at(self.fd, self.at + length - len(view), view)
                view = view[done:]
        except OSError as error:
            self.failed = self.failed or error
        self.at += length
        self.size = max(self.size, self.at)
        return length

    def truncate(self, size: int) -> int:
        if self.writable and self.failed is None and not self.released:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                self.failed = error
        self.size = size
        return size

    def flush(self) -> None:
        pass

    def release(self) -> None:
        """Touch the descriptor never again, whenever HDF5 closes the file."""
        self.released = True

    def check(self) -> None:
        """Raise `Declined` if a write failed."""
        if self.failed is not None:
            raise Declined("write", self.failed.strerror or str(self.failed))


if hasattr(os, "preadv"):

    def _read_at(fd: int, offset: int, buffer: memoryview) -> int:
        return os.preadv(fd, (buffer,), offset)

    def _write_at(fd: int, offset: int, data: memoryview) -> int:
        return os.pwrite(fd, data, offset)

else:  # Windows has no positioned access

    def _read_at(fd: int, offset: int, buffer: memoryview) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _write_at(fd: int, offset: int, data: memoryview) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


@contextlib.contextmanager
def opened(window: Window, create: Any = None, low: int = h5f.LIBVER_EARLIEST) -> Iterator[Any]:
    """HDF5's handle on a window; with ``create`` (its creation properties) a new, empty file.

    After an error it is closed at once and nothing more is written: left open until the
    interpreter ends, it would take the interpreter down.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, window)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_libver_bounds(low, h5f.LIBVER_LATEST)
    if create is not None:
        file = h5f.create(b"checkpoint", h5f.ACC_TRUNC, create, access)
    else:
        mode = h5f.ACC_RDWR if window.writable else h5f.ACC_RDONLY
        file = h5f.open(b"checkpoint", mode, access)
    access.close()
    try:
        yield file
    except BaseException:
        window.release()
        with contextlib.suppress(Exception):
            file.close()
        raise
    file.close()


class Inbox:
    """What the parent sends, in the order it is asked for."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self.more = more
        self.rest = memoryview(b"")

    def fill(self, buffer: memoryview) -> None:
        """Fill a flat buffer of bytes."""
        done = 0
        while done < len(buffer):
            if not self.rest:
                self.rest = memoryview(self.more())
                if not self.rest:
                    raise EOFError("the parent process ended")
            piece = self.rest[: len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            self.rest = self.rest[len(piece) :]
            done += len(piece)

    def take(self, length: int) -> bytearray:
        """Exactly ``length`` bytes."""
        data = bytearray(length)
        self.fill(memoryview(data))
        return data

    def number(self) -> int:
        """Take a count: eight bytes."""
        return int.from_bytes(self.take(8), "little")


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


def _give_up_rights(job: Mapping[str, Any]) -> None:
    """Limit what the process may still do to its open files, its answer, and some memory."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 1 << 30
    limits = [
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, int(job["limit"])),
        (resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, used + HEADROOM + int(job["room"])),
    ]  # fmt: skip
    for limit, value in limits:
        try:
            hard = resource.getrlimit(limit)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (least, least))
        except (OSError, ValueError):
            continue  # macOS knows no limit of address space


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
    _give_up_rights(job)
    _renew_clock(seconds)
    _answer(perform(windows, job, inbox))
    os._exit(0)  # taking HDF5 down in order takes longer, and a failed file has nothing to save
