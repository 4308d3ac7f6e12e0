"""The child process that HDF5's C library runs in: starting it, talking to it, ending it.

Always a fresh interpreter, never a fork: a caller with threads must not fork, and started before
the command's own imports it costs little.  Measured on 2 cores: spawning takes the parent 0.5 to 2
ms, the child is ready after 100 ms.  A file of 1 MB is read 100 ms after it was opened with the
child started then, 15 to 30 ms after it with the child started before ``import numpy``.
`os.posix_spawn` because ``import subprocess`` costs 12 ms before anything else has been imported;
``-I -S`` (no environment, no working folder, no ``site``) saves 3 ms and keeps strangers out.

One process reads one file and ends: it may have been taken over by what it read.

Nothing but `os` and `sys` is imported here, because the command imports this module first of all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

__all__ = ["MAGIC", "Process", "ProcessLost", "magic_offset", "prestart", "take"]

MAGIC = b"\x89HDF\r\n\x1a\n"
_KERAS_MEMBERS = (b"metadata.json", b"config.json", b"model.weights.h5")
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from ckptdoctor.containers.hdf5_worker import main; main(sys.argv[1])"
)
_SPAWNS = hasattr(os, "posix_spawn")
_SIGKILL = 9
"""A number, because nothing can be imported any more when the interpreter takes itself down."""


class ProcessLost(Exception):
    """The process ended, was ended for taking too long, or could not be started."""


class Process:
    """A running worker.

    Parameters
    ----------
    fd
        The file it is to read; it gets a descriptor of its own, at the same place.
    path
        The same file by name, for platforms where descriptors are not inherited.
    """

    def __init__(self, fd: int, path: str) -> None:
        stat = os.fstat(fd)
        self.identity = stat.st_dev, stat.st_ino
        self.owner = os.getpid()
        self.closed = False
        argv = [sys.executable, "-I", "-S", "-c", _BOOT]
        environment = dict(
            os.environ, OPENBLAS_NUM_THREADS="1", HDF5_USE_FILE_LOCKING="FALSE",
            HDF5_PLUGIN_PRELOAD="::", HDF5_PLUGIN_PATH="",
        )  # fmt: skip
        if not sys.executable or getattr(sys, "frozen", False):
            self.closed = True
            raise ProcessLost("this interpreter cannot be started a second time")
        try:
            if _SPAWNS:
                self._spawn(fd, [*argv, "", *_search_path()], environment)
            else:
                self._popen([*argv, path, *_search_path()], environment)
        except OSError as error:
            self.closed = True
            raise ProcessLost(f"could not be started: {error.strerror}") from None

    def _spawn(self, fd: int, argv: list[str], environment: dict[str, str]) -> None:
        opened: list[int] = []
        try:
            for _ in range(2):
                opened += map(_high, os.pipe())
            child_in, self.to, self.out, child_out = opened
            low = _high(os.dup(fd))
            opened.append(low)
            actions = [
                (os.POSIX_SPAWN_DUP2, child_in, 0),
                (os.POSIX_SPAWN_DUP2, child_out, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, low, 3),
            ]
            self.pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
        except OSError:
            for each in opened:
                os.close(each)
            raise
        for each in (child_in, child_out, low):
            os.close(each)

    def _popen(self, argv: list[str], environment: dict[str, str]) -> None:
        import subprocess  # noqa: PLC0415

        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0
        )
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.to, self.out = self.popen.stdin.fileno(), self.popen.stdout.fileno()

    def send(self, text: str) -> None:
        """Send one request line."""
        if self.closed:  # the descriptor may be another file's by now
            raise ProcessLost("was stopped")
        try:
            os.write(self.to, text.encode() + b"\n")
        except OSError:
            raise ProcessLost("ended") from None

    def receive(self, length: int, deadline: float) -> bytearray:
        """Exactly ``length`` bytes, by ``deadline`` (of `time.monotonic`)."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            if self.closed:
                raise ProcessLost("was stopped")
            self._wait(deadline)
            got = os.readv(self.out, [view]) if _SPAWNS else self._read_into(view)
            if not got:
                raise ProcessLost("ended")
            view = view[got:]
        return data

    def _read_into(self, view: memoryview) -> int:
        piece = os.read(self.out, min(len(view), 1 << 16))
        view[: len(piece)] = piece
        return len(piece)

    def _wait(self, deadline: float) -> None:
        """Return when there is something to read; end the process when time is over."""
        import time  # noqa: PLC0415

        left = deadline - time.monotonic()
        if _SPAWNS:
            import select  # noqa: PLC0415

            poll = select.poll()
            poll.register(self.out, select.POLLIN)
            if left > 0 and poll.poll(left * 1000):
                return
        else:  # pipes cannot be waited for: look again now and then
            import ctypes  # noqa: PLC0415
            import msvcrt  # noqa: PLC0415

            handle = msvcrt.get_osfhandle(self.out)  # type: ignore[attr-defined]
            peek = ctypes.windll.kernel32.PeekNamedPipe  # type: ignore[attr-defined]
            there = ctypes.c_ulong()
            while time.monotonic() < deadline:
                if not peek(handle, None, 0, None, ctypes.byref(there), None) or there.value:
                    return
                time.sleep(0.001)
        self.close()
        raise ProcessLost("took too long")

    def close(self) -> None:
        """End the process, whatever it does, and let go of everything."""
        if self.closed:
            return
        self.closed = True
        if not _SPAWNS:
            self.popen.kill()
            with self.popen:
                return
        for fd in (self.to, self.out):
            os.close(fd)
        if os.getpid() != self.owner:
            return  # a copy of this object in a forked child
        try:
            os.kill(self.pid, _SIGKILL)
            os.waitpid(self.pid, 0)
        except OSError:
            pass  # somebody else waited for all children

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()


def _high(fd: int) -> int:
    """Move a descriptor out of the way of 0 to 3, which the child's are copied onto."""
    if fd > 3:
        return fd
    import fcntl  # noqa: PLC0415

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 4)
    os.close(fd)
    return moved


def _search_path() -> list[str]:
    """List the parent's import path without the working folder, and where this package is."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    try:
        here = os.getcwd()  # noqa: PTH109
    except OSError:
        here = ""
    kept = [p for p in sys.path if os.path.isabs(p) and p != here]  # noqa: PTH117
    return kept if package in kept else [*kept, package]


def magic_offset(head: bytes, fd_or_read: object, size: int) -> int:
    """Where an HDF5 file starts: 0, 512, 1024, 2048, ...; -1 if it is none.

    ``fd_or_read`` is a file descriptor, or a function of offset and length.
    """
    if head.startswith(MAGIC):
        return 0
    offset = 512
    while offset + len(MAGIC) <= size:
        if offset + len(MAGIC) <= len(head):
            found = head[offset : offset + len(MAGIC)]
        elif callable(fd_or_read):
            found = fd_or_read(offset, len(MAGIC))
        else:
            found = _pread(fd_or_read, offset, len(MAGIC))
        if found == MAGIC:
            return offset
        offset *= 2
    return -1


def _pread(fd: object, offset: int, length: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)  # type: ignore[arg-type]
    os.lseek(fd, offset, os.SEEK_SET)  # type: ignore[arg-type]
    return os.read(fd, length)  # type: ignore[arg-type]


_early: dict[tuple[int, int], Process] = {}


def prestart(paths: Iterable[str]) -> None:
    """Start a worker for the first of the files that will need one, while others still import.

    Never fails: what is wrong with a file is said when it is opened.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
            try:
                if _needs_worker(fd):
                    process = Process(fd, path)
                    _early[process.identity] = process
                    return
            finally:
                os.close(fd)
        except (OSError, ValueError, ProcessLost):
            continue


_BINARY = getattr(os, "O_BINARY", 0)


def _needs_worker(fd: int) -> bool:
    head = _pread(fd, 0, 4096)
    if head.startswith(b"PK\3\4"):
        length = int.from_bytes(head[26:28], "little")
        return head[30 : 30 + length] in _KERAS_MEMBERS
    return magic_offset(head, fd, os.fstat(fd).st_size) >= 0


def take(fd: int, path: str) -> Process:
    """Return the worker for an open file: the one started early, or a new one.

    Raises
    ------
    ProcessLost
        If none can be started.
    """
    stat = os.fstat(fd)
    early = _early.pop((stat.st_dev, stat.st_ino), None)
    return early if early is not None else Process(fd, path)
