"""A file that appears whole or not at all: written beside its target, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ..errors import WriteError

__all__ = ["Draft", "draft_name", "flush_folder", "hold_folder", "remove_leftovers"]

_SUFFIX = ".ckptdoctor"
_LONGEST = 180
"""Bytes of the target's name in that of its draft: names of 255 bytes are the limit."""
_NO_FOLDERS = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP})
"""What file systems answer that cannot flush a folder at all: nothing failed there."""


class _Flush(threading.Thread):
    """One fsync; on 2 GiB half a second that reading back need not wait for."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd = fd
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.error = error


class Draft:
    """A new file beside ``target``, which takes its place by `publish` or leaves no trace.

    Its name starts with a dot and holds the process: what a killed one leaves behind is hidden,
    and removed by the next run for the same target.

    Attributes
    ----------
    published
        Whether it took the target's place, even if flushing the folder failed behind that.

    Raises
    ------
    WriteError
        If it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.published = False
        self._flush: _Flush | None = None
        self.path = target.with_name(draft_name(target))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            self.fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            message = f"the folder takes no new file: {error.strerror}"
            raise WriteError(message, where=str(target.parent), hint=_ELSEWHERE) from None
        _lock(self.fd)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at an offset."""
        view = memoryview(data)
        try:
            while view:
                os.lseek(self.fd, offset, os.SEEK_SET)
                count = os.write(self.fd, view)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self.failed("written", error) from None

    def truncate(self, size: int) -> None:
        """Cut it to ``size`` bytes."""
        self._settle()
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise self.failed("cut", error) from None

    def flush(self, mode: int, *, wait: bool = True) -> None:
        """Give it its mode, and have the disk take everything.

        Without ``wait`` that goes on beside the caller, who reads the file back meanwhile; what
        comes next, `publish` at the latest, waits for it.
        """
        self._settle()
        try:
            self.path.chmod(mode)
        except OSError as error:
            raise self.failed("flushed", error) from None
        self._flush = _Flush(self.fd)
        if wait:
            self._flush.run()
            self._settle()
        else:
            self._flush.start()

    def _settle(self) -> None:
        """Wait for a flush that goes on, and raise what it raised."""
        flush, self._flush = self._flush, None
        if flush is None:
            return
        if flush.ident is not None:
            flush.join()
        if flush.error is not None:
            raise self.failed("flushed", flush.error) from None

    def publish(self) -> None:
        """Take the target's place.

        Raises
        ------
        WriteError
            If it cannot: the target is as before.  If only the folder could not be flushed, the
            new file stands, complete, and the message says so.
        """
        self._settle()
        try:
            self._close()
            self.path.replace(self.target)
        except OSError as error:
            raise self.failed("renamed", error) from None
        self.published = True
        flush_folder(self.target.parent)

    def discard(self) -> None:
        """Leave no trace; nothing to do after `publish`."""
        with contextlib.suppress(WriteError):
            self._settle()
        with contextlib.suppress(OSError):
            self._close()
        if not self.published:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def failed(self, what: str, error: OSError) -> WriteError:
        """Error for a call that the operating system refused."""
        message = f"could not be {what}: {error.strerror}; nothing was changed"
        return WriteError(message, where=str(self.target), hint=_ELSEWHERE)

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


_ELSEWHERE = "-o writes elsewhere"


def draft_name(target: Path) -> str:
    """Name of a draft: hidden, with the process that writes it."""
    process = os.getpid()
    return f"{_start(target)}{process}-{_mark(process)}{secrets.token_hex(2)}{_SUFFIX}"


@functools.cache
def _mark(_process: int) -> str:
    """Digits by which a process knows its own drafts: another thread may not hold its lock yet."""
    return secrets.token_hex(2)


def _start(target: Path) -> str:
    name = target.name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
    return f".{name}."


def remove_leftovers(target: Path) -> None:
    """Remove drafts for the same target whose processes are gone."""
    for path in _leftovers(target):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not _unlocked(path):
                continue
            if path.is_dir():
                import shutil  # noqa: PLC0415  (drafts of sharded sets are folders)

                shutil.rmtree(path)
            else:
                path.unlink()


def _leftovers(target: Path) -> Iterator[Path]:
    start = _start(target)
    with contextlib.suppress(OSError):
        for path in list(target.parent.iterdir()):
            if not path.name.startswith(start) or not path.name.endswith(_SUFFIX):
                continue
            process, _, rest = path.name[len(start) : -len(_SUFFIX)].partition("-")
            ours = process.isdecimal() and len(process) < 10 and len(rest) == 8
            if ours and not _alive(int(process), rest):
                yield path


def _alive(process: int, token: str) -> bool:
    if os.name == "nt":
        return True  # there, asking would end it; what is left over stays
    if process == os.getpid():
        # in a container every run may have the number 1: the lock tells them apart
        return token.startswith(_mark(process))
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def hold_folder(folder: Path) -> int | None:
    """Lock a folder that is being made, where folders can be opened; close what it returns."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    _lock(fd)
    return fd


def _lock(fd: int) -> None:
    """Say that the draft is in use to those who cannot see its process: another container."""
    try:
        import fcntl  # noqa: PLC0415  (POSIX only)

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return  # file systems without locks: the process number is all there is


def _unlocked(path: Path) -> bool:
    # for reading: drafts of read-only files, and folders, cannot be opened for writing
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        import fcntl  # noqa: PLC0415

        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows the names in a folder (nothing to do on Windows).

    Raises
    ------
    WriteError
        If it cannot be done: the names are there, but may be lost with the power.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_FOLDERS:
            return
        message = f"the file is complete, but its folder could not be flushed: {error.strerror}"
        raise WriteError(message, where=str(folder)) from None
