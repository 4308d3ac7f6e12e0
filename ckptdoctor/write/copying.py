"""A copy of an open file, by the kernel where it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from ..errors import WriteError
from ..sources import FileSource

__all__ = ["check_space", "copy_file"]

_CHUNK = 1 << 28
_BUFFER = 1 << 20
_FICLONE = 0x40049409
_NOT_HERE = frozenset(
    {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY,
     errno.EBADF, errno.ETXTBSY}
)  # fmt: skip
"""What the kernel answers where it cannot copy by itself; anything else is a failure."""


def copy_file(source: FileSource, target: int, folder: Path, done: Callable[[int], None]) -> None:
    """Copy all bytes of ``source`` to the empty file behind the descriptor ``target``.

    Parameters
    ----------
    folder
        Where the target lies: its file system must have room.
    done
        Called with the number of bytes copied so far.

    Raises
    ------
    OSError
        If the target takes no more: a full disk, a limit.
    WriteError
        If there is not enough room to begin with.
    ChangedError
        If the source shrinks meanwhile.
    """
    if not _cloned(source, target):
        check_space(folder, source.size)
        _by_hand(source, target, _by_kernel(source, target, done), done)
    done(source.size)


def check_space(folder: Path, size: int) -> None:
    """Raise `WriteError` if a file system has no room for ``size`` more bytes."""
    if not hasattr(os, "statvfs"):
        return
    try:
        found = os.statvfs(folder)
    except OSError:
        return  # then writing will tell
    free = found.f_bavail * found.f_frsize
    if free < size:
        message = f"expected room for {size:,} bytes, {free:,} are free; nothing was changed"
        raise WriteError(
            message, where=str(folder), hint="free some, or name another place with -o"
        )


def _cloned(source: FileSource, target: int) -> bool:
    """Share the blocks of the source, where the file system can."""
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
        try:
            copied = os.copy_file_range(
                source.fd, target, min(_CHUNK, source.size - done), done, done
            )
        except OSError as error:
            if error.errno in _NOT_HERE:
                break
            raise
        if not copied:
            break
        done += copied
        advance(done)
    return done


def _by_hand(source: FileSource, target: int, done: int, advance: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(_BUFFER))
    while done < source.size:
        part = buffer[: min(_BUFFER, source.size - done)]
        source.pread_into(done, part)
        os.lseek(target, done, os.SEEK_SET)
        while part:
            written = os.write(target, part)
            part, done = part[written:], done + written
        advance(done)
