"""A file that appears whole or not at all: written beside its target, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from ..errors import WriteError

__all__ = ["Draft", "flush_folder"]


class Draft:
    """A new file beside ``target``, which takes its place by `publish` or leaves no trace.

    Its name starts with a dot and ends with ``.ckptdoctor``: what a killed process leaves behind
    is hidden, and removed by the next run for the same target.
    """

    def __init__(self, target: Path, mode: int) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name[:180]}.{secrets.token_hex(4)}.ckptdoctor")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            self.fd = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            message = f"cannot be written: {error.strerror}"
            raise WriteError(message, where=str(target.parent or ".")) from None
        self._mode = mode

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at an offset."""
        view = memoryview(data)
        try:
            while view:
                os.lseek(self.fd, offset, os.SEEK_SET)
                count = os.write(self.fd, view)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise WriteError(f"cannot be written: {error.strerror}", where=str(self.target)) from None

    def flush(self) -> None:
        """Wait until the disk has everything."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise WriteError(f"cannot be flushed: {error.strerror}", where=str(self.target)) from None

    def publish(self) -> None:
        """Take the target's place.

        Raises
        ------
        WriteError
            If it cannot: the target is as before.  If only the folder could not be flushed, the
            new file stands, complete, and the message says so.
        """
        try:
            os.chmod(self.path, self._mode)
            os.close(self.fd)
            self.fd = -1
            os.replace(self.path, self.target)
        except OSError as error:
            raise WriteError(f"cannot be renamed: {error.strerror}", where=str(self.target)) from None
        flush_folder(self.target.parent)

    def discard(self) -> None:
        """Leave no trace; nothing to do after `publish`."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def leftovers(target: Path) -> Iterator[Path]:
    """Drafts that killed runs left beside a target."""
    start, end = f".{target.name[:180]}.", ".ckptdoctor"
    for path in target.parent.iterdir():
        if path.name.startswith(start) and path.name.endswith(end):
            yield path


def flush_folder(folder: Path) -> None:
    """Wait until the disk knows the names in a folder (nothing to do on Windows)."""
    if os.name == "nt":
        return
    try:
        fd = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        message = f"the file is complete, its folder could not be flushed: {error.strerror}"
        raise WriteError(message, where=str(folder)) from None
