"""The child process that changes an HDF5 file or compares two: started, fed, heard, ended.

One process does one job and ends, since it may have been taken over by what it read.  What it may
write is bounded in size; what it answers is a short text, believed only as far as "it went wrong".
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from .hdf5_process import _search_path

if TYPE_CHECKING:
    import subprocess

__all__ = ["File", "Lost", "Payload", "run"]

BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from ckptdoctor.containers.hdf5_edit_worker import main; main()"
)
_MAX_ANSWER = 1 << 16
_INHERITS = os.name == "posix"
SECONDS = 120.0
"""For any job; one more for each megabyte of the files and of the new values."""

Payload = Iterable[Callable[[], Iterable[bytes]]]
"""What is sent to the process: parts that are made when their turn comes, each in pieces."""


class Lost(Exception):
    """The process ended, was ended for taking too long, or could not be started."""


class File(NamedTuple):
    """An open file that the process works on; ``path`` is for platforms that inherit none."""

    fd: int
    path: str
    base: int
    size: int
    writable: bool = False


def run(
    verb: str,
    files: Sequence[File],
    job: Mapping[str, Any],
    payload: Payload = (),
    *,
    limit: int = 0,
    room: int = 0,
    trust: bool = False,
) -> Mapping[str, Any]:
    """Have one job done.

    Parameters
    ----------
    verb, job
        An operation of `ckptdoctor.containers.hdf5_edit_worker` and its arguments.
    limit
        Bytes that a file may have once it is written to.
    room
        Bytes of memory beyond the usual.
    trust
        Do it in this process.

    Returns
    -------
    answer
        ``{"done": ...}``, or ``{"error": text, "kind": ...}``.

    Raises
    ------
    Lost
        If no answer comes.
    """
    if trust:
        return _here(verb, files, job, payload)
    seconds = SECONDS + sum(file.size for file in files) / 1e6
    listed = [
        {**file._asdict(), "path": "" if _INHERITS else os.path.abspath(file.path)}  # noqa: PTH100
        for file in files
    ]
    header = {
        **job, "verb": verb, "files": listed, "limit": limit, "room": room, "seconds": int(seconds),
    }  # fmt: skip
    text = json.dumps(header).encode()
    with _started([file.fd for file in files]) as process, _Clock(process, seconds) as clock:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            clock.start()
            _send(process.stdin, len(text).to_bytes(8, "little") + text)
            for part in payload:
                clock.stop()  # new values may take time to be made
                for piece in part():
                    clock.start()
                    _send(process.stdin, piece)
            clock.start()
            process.stdin.close()
        except OSError:
            pass  # it has answered already, or ended
        answer = b""
        while len(answer) < _MAX_ANSWER and (piece := process.stdout.read(_MAX_ANSWER)):
            answer += piece
    if clock.rang:
        raise Lost("took too long")
    try:
        found = json.loads(answer)
        if isinstance(found, dict) and ("done" in found or isinstance(found.get("error"), str)):
            return found
    except (ValueError, RecursionError):
        pass
    raise Lost("answered nonsense" if answer else "ended")


def _here(
    verb: str, files: Sequence[File], job: Mapping[str, Any], payload: Payload
) -> Mapping[str, Any]:
    from .hdf5_edit_window import Inbox, Window  # noqa: PLC0415
    from .hdf5_edit_worker import perform  # noqa: PLC0415

    pieces = (bytes(piece) for part in payload for piece in part() if len(piece))
    failed: list[BaseException] = []

    def more() -> bytes:
        try:
            return next(pieces, b"")
        except BaseException as error:
            failed.append(error)
            raise

    windows = [Window(f.fd, f.base, f.size, writable=f.writable) for f in files]
    answer = perform(windows, {**job, "verb": verb}, Inbox(more))
    if failed:
        raise failed[0]  # of what makes the values, not of the file
    return answer


@contextlib.contextmanager
def _started(fds: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process; whatever happens, it is gone afterwards."""
    import subprocess  # noqa: PLC0415

    if not sys.executable or getattr(sys, "frozen", False):
        raise Lost("could not be started: this interpreter cannot be started a second time")
    pipe = subprocess.PIPE
    environment = dict(
        os.environ, OPENBLAS_NUM_THREADS="1", HDF5_USE_FILE_LOCKING="FALSE",
        HDF5_PLUGIN_PRELOAD="::", HDF5_PLUGIN_PATH="",
    )  # fmt: skip
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, *_search_path()],
            stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0,
            pass_fds=tuple(fds) if _INHERITS else (),
        )  # fmt: skip
    except OSError as error:
        raise Lost(f"could not be started: {error.strerror}") from None
    with process:
        try:
            yield process
        finally:
            process.kill()


def _send(pipe: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


class _Clock:
    """Ends a process that is busy for too long."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.process, self.seconds = process, seconds
        self.rang = False
        self.timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Give it its time once more."""
        self.stop()
        self.timer = threading.Timer(self.seconds, self._ring)
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _ring(self) -> None:
        self.rang = True
        self.process.kill()
