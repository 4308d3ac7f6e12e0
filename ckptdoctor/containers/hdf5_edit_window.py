"""What the child that changes HDF5 files holds: descriptors as file objects, and what it is sent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from h5py import h5f, h5fd, h5p

__all__ = ["Declined", "Inbox", "Window", "opened"]


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
