"""ByteSource: where bytes come from, by offset; a file, or a window of another source."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from .errors import ChangedError, ReadError, TruncatedError, UsageError

__all__ = ["ByteSource", "Extent", "FileSource", "Identity", "WindowSource"]


class ByteSource(Protocol):
    """Random access to a fixed number of bytes; safe to call from several threads.

    ``name`` is what messages print: the path as the caller wrote it, with ``:member`` behind it
    for a part of a file.  ``sequential`` says that reading backwards or from two threads is
    slow (an inflating source), so that one reader should take it from start to end.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sequential(self) -> bool: ...

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes.

        Raises
        ------
        TruncatedError
            If the source ends before ``offset + length``.
        """

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (flat, bytes) from ``offset``; raises as `pread`."""


class Extent(NamedTuple):
    """A run of bytes in a source (a named tuple: see `ckptdoctor.tensors.TensorInfo`).

    Examples
    --------
    >>> Extent(WindowSource.over(b"abcdef", "m.bin"), 2, 3).read()
    b'cde'
    """

    source: ByteSource
    offset: int
    length: int

    def read(self) -> bytes:
        """All bytes of the extent."""
        return self.source.pread(self.offset, self.length)

    def __str__(self) -> str:
        return f"{self.source.name}+{self.offset}"


@dataclass(frozen=True, slots=True)
class Identity:
    """What must stay the same while a file is read; ``mtime`` in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime: int


class FileSource:
    """A regular file opened for reading.

    Parameters
    ----------
    path
        As the caller wrote it; messages repeat it.

    Raises
    ------
    UsageError
        If there is no such file.
    ReadError
        If it is no regular file or may not be read.
    """

    sequential = False
    temporary = False
    """Whether it holds what was inflated of another file: no place to repair."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
            self.fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            raise UsageError("no such file", where=self.name) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ReadError(f"cannot be opened: {reason}", where=self.name) from None
        found = os.fstat(self.fd)
        self.identity = _identity(found)
        self.size = self.identity.size
        self._lock = threading.Lock()
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise ReadError("is not a regular file", where=self.name)

    def check_unchanged(self) -> None:
        """Compare the file with what it was when it was opened.

        Raises
        ------
        ChangedError
            If its size or modification time moved, or the path names another file by now.
        """
        try:
            same = (
                _identity(os.fstat(self.fd)) == self.identity == _identity(Path(self.name).stat())
            )
        except OSError:
            same = False
        if not same:
            hint = "run again when nothing writes to it"
            raise ChangedError("changed while it was being read", where=self.name, hint=hint)

    def pread(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self._short(offset, length)
        if not length:
            return b""
        buffer = bytearray(length)
        self.pread_into(offset, memoryview(buffer))
        return bytes(buffer)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        length = len(buffer)
        if offset < 0 or offset + length > self.size:
            raise self._short(offset, length)
        done = 0
        while done < length:
            try:
                got = self._read_some(offset + done, buffer[done:])
            except OSError as error:
                where = f"{self.name}+{offset + done}"
                raise ReadError(f"read failed: {error.strerror}", where=where) from None
            if not got:
                hint = "run again when nothing writes to it"
                raise ChangedError("shrank while it was being read", where=self.name, hint=hint)
            done += got

    if hasattr(os, "preadv"):

        def _read_some(self, offset: int, buffer: memoryview) -> int:
            return os.preadv(self.fd, (buffer,), offset)

    else:  # Windows has no positioned read

        def _read_some(self, offset: int, buffer: memoryview) -> int:
            with self._lock:
                os.lseek(self.fd, offset, os.SEEK_SET)
                data = os.read(self.fd, len(buffer))
            buffer[: len(data)] = data
            return len(data)

    def _short(self, offset: int, length: int) -> TruncatedError:
        where = f"{self.name}+{offset}"
        return TruncatedError(f"expected {length} bytes, the file has {self.size}", where=where)

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class WindowSource:
    """A run of bytes of another source, seen as a source of its own (an archive's stored member)."""

    def __init__(self, name: str, below: ByteSource, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > below.size:
            message = f"expected {size} bytes, {below.name} has {below.size}"
            raise TruncatedError(message, where=f"{name}+{offset}")
        self.name, self.size = name, size
        self.below, self.offset = below, offset

    @classmethod
    def over(cls, data: bytes, name: str) -> WindowSource:
        """Source over bytes in memory."""
        return cls(name, _MemorySource(name, data), 0, len(data))

    @property
    def sequential(self) -> bool:
        return self.below.sequential

    def pread(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        return self.below.pread(self.offset + offset, length)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        self.below.pread_into(self.offset + offset, buffer)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            message = f"expected {length} bytes, found {max(0, self.size - offset)}"
            raise TruncatedError(message, where=f"{self.name}+{offset}")


@dataclass(frozen=True, slots=True)
class _MemorySource:
    name: str
    data: bytes
    sequential: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    def pread(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]
