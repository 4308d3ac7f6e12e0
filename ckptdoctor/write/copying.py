"""A copy of an open file, by the kernel where it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..errors import WriteError
from ..sources import FileSource

__all__ = ["copy_file"]

_CHUNK = 1 << 26
_BUFFER = 1 << 20
_FICLONE = 0x40049409
_NOT_HERE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY,
             errno.EBADF, errno.ETXTBSY}  # fmt: skip
"""What the kernel answers where it cannot copy by itself; anything else is a failure."""


def copy_file(source: FileSource, target: int, advance: Callable[[int], None]) -> None:
    """Copy all bytes of ``source`` to the empty file behind the descriptor ``target``.

    Parameters
    ----------
    advance
        Called with the number of bytes done.

    Raises
    ------
    WriteError
        If the target takes no more: a full disk, a limit.
    ChangedError
        If the source shrinks meanwhile.
    """
    try:
        if not _cloned(source, target):
            done = _by_kernel(source, target, advance)
            _by_hand(source, target, done, advance)
    except OSError as error:
        raise WriteError(f"could not be written: {error.strerror}") from None
    advance(source.size)


def _cloned(source: FileSource, target: int) -> bool:
    try:
        import fcntl  # noqa: PLC0415  (POSIX only)

        fcntl.ioctl(target, _FICLONE, source.fd)
    except (ImportError, OSError):
        return False
    return True


def _by_kernel(source: FileSource, target: int, advance: Callable[[int], None]) -> int:
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < source.size:
        count = min(_CHUNK, source.size - done)
        try:
            copied = os.copy_file_range(source.fd, target, count, done, done)
        except OSError as error:
            if error.errno in _NOT_HERE:
                break
            raise
        if not copied:
            break
        done += copied
        advance(done)
    return done


def _by_hand(
    source: FileSource, target: int, done: int, advance: Callable[[int], None]
) -> None:
    buffer = memoryview(bytearray(_BUFFER))
    while done < source.size:
        part = buffer[: min(_BUFFER, source.size - done)]
        source.pread_into(done, part)
        os.lseek(target, done, os.SEEK_SET)
        while part:
            written = os.write(target, part)
            part, done = part[written:], done + written
        advance(done)
