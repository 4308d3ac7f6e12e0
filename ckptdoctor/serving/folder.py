"""
A private folder on disk: small files that appear whole, and locks that die with their holder.

Only what nobody else can have written is read: files of this user or of root, in a folder that no
one else may write to, opened through the folder's descriptor so that neither can be exchanged.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from typing import Any, Self

__all__ = ["Lock", "PrivateFolder", "UntrustedError"]

_MAX_BYTES = 1 << 28
_MAX_FILES = 1000
"""More than a node has checkpoints; 1,000 verdicts on 300 tensors are 60 MB."""
_LEFTOVER_SECONDS = 3600.0
_TEMPORARY = ".tmp-"
_HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")


class UntrustedError(Exception):
    """Somebody else may have written here; the message says who."""


class PrivateFolder:
    """A folder of this user, made where there is none.

    A folder that others may write to (``/tmp``, a volume of Kubernetes with mode 0777) is not used
    itself, but a folder in it that is this user's own.

    Raises
    ------
    OSError
        If it can neither be opened nor made.
    UntrustedError
        If it belongs to another user.
    """

    def __init__(self, path: str) -> None:
        path = path.rstrip(os.sep) or path
        self.path, self.fd = path, -1
        try:
            self._open(path)
            if self._shared():
                self.close()
                own = os.path.join(path, f"ckptdoctor-{_user()}")  # noqa: PTH118
                self._open(own, getattr(os, "O_NOFOLLOW", 0))
            self._check()
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, more: int = 0) -> None:
        self.path = path
        above = os.path.dirname(path)  # noqa: PTH120
        if above:
            os.makedirs(above, exist_ok=True)  # noqa: PTH103
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)  # noqa: PTH102
        if _HAS_DIR_FD:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | more)

    def _shared(self) -> bool:
        return os.name == "posix" and bool(self._status().st_mode & 0o022)

    def _check(self) -> None:
        if not _own(self._status()):
            raise UntrustedError(f"{self.path} belongs to another user, or others may write to it")

    def _status(self) -> os.stat_result:
        return os.stat(self._handle())  # noqa: PTH116

    def _handle(self) -> int | str:
        return self.fd if self.fd >= 0 else self.path

    def _at(self, name: str) -> tuple[str, dict[str, Any]]:
        """Path and keywords with which functions of `os` find a file of this folder."""
        if self.fd >= 0:
            return name, {"dir_fd": self.fd}
        return os.path.join(self.path, name), {}  # noqa: PTH118

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, name: str) -> bytes | None:
        """Content of a file, None where there is none.

        Raises
        ------
        OSError
            If it cannot be read.
        UntrustedError
            If somebody else may have written it, or it is no plain file of a plausible size.
        """
        place, at = self._at(name)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            fd = os.open(place, flags, **at)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:  # noqa: PTH123
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
                raise UntrustedError(f"{name} in {self.path} is not what was put there")
            if not _own(found):
                raise UntrustedError(f"{name} in {self.path} may have been written by others")
            return file.read(_MAX_BYTES)

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all; the oldest files go when there are too many.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        beside = f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"
        place, at = self._at(beside)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        fd = os.open(place, flags | getattr(os, "O_CLOEXEC", 0), 0o600, **at)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123
                file.write(data)
            target, _ = self._at(name)
            both = {f"{side}_dir_fd": self.fd for side in ("src", "dst") if at}
            os.replace(place, target, **both)  # noqa: PTH105
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(place, **at)
            raise
        with contextlib.suppress(OSError):
            self._tidy()

    def _tidy(self) -> None:
        """Remove the oldest files beyond `_MAX_FILES`, and what killed processes left."""
        ages: list[tuple[float, str]] = []
        for name in os.listdir(self._handle()):  # noqa: PTH208
            place, at = self._at(name)
            with contextlib.suppress(OSError):
                ages.append((os.stat(place, **at).st_mtime, name))  # noqa: PTH116
        kept = sorted((age, name) for age, name in ages if name.endswith(".json"))
        gone = [name for _, name in kept[:-_MAX_FILES]]
        stale = time.time() - _LEFTOVER_SECONDS
        gone += [name for age, name in ages if name.startswith(_TEMPORARY) and age < stale]
        for name in gone:
            place, at = self._at(name)
            with contextlib.suppress(OSError):
                os.unlink(place, **at)

    def lock(self, name: str) -> Lock:
        """Lock file of this folder, not taken yet.

        Raises
        ------
        OSError
            If it cannot be made.
        """
        place, at = self._at(name)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        return Lock(os.open(place, flags | getattr(os, "O_CLOEXEC", 0), 0o600, **at))


class Lock:
    """A lock between processes and threads, let go when its holder dies.

    Where the platform or the file system has none, `take` always succeeds: work is done twice then,
    and nothing is wrong.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self) -> bool:
        """Take it if nobody has it."""
        try:
            import fcntl  # noqa: PLC0415  (not on Windows)
        except ImportError:
            return True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # NFS without a lock daemon
            return True
        return True

    def leave_word(self, text: str) -> None:
        """Write a word to whoever takes it next."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
            os.write(self.fd, text.encode())

    def word(self) -> str:
        """Read what the last holder left."""
        with contextlib.suppress(OSError):
            os.lseek(self.fd, 0, os.SEEK_SET)
            return os.read(self.fd, 256).decode("ascii", "replace")
        return ""

    def release(self) -> None:
        """Let go; explicitly, as a child that was forked meanwhile holds the same lock."""
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # noqa: PLC0415

            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go, and close the file."""
        self.release()
        os.close(self.fd)


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _own(found: os.stat_result) -> bool:
    """Whether nobody but this user and root can have written it."""
    if os.name != "posix":  # access is not in the mode there
        return True
    return found.st_uid in (_user(), 0) and not found.st_mode & 0o022
