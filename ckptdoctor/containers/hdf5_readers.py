"""Where HDF5's C library runs: in a child process, or here for callers who trust the file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import CkptDoctorError, FormatError, ReadError
from ..sources import ByteSource
from .hdf5_check import ADVICE, ground
from .hdf5_process import ProcessLost, take

__all__ = ["Child", "Here", "Reader"]

READY_SECONDS = 60.0
WALK_SECONDS = 10.0
"""For any file; one more second for each megabyte of it."""
BLOCK_SECONDS = 20.0
MAX_ANSWER = 1 << 29
_TRUST = "if you trust the file, read it with --trust-hdf5"


class Reader:
    """Answers a walk once, and blocks of bytes after it."""

    def walk(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def block(
        self, index: int, start: Sequence[int], count: Sequence[int], size: int
    ) -> bytes | bytearray:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Child(Reader):
    """The C library in a process of its own; safe to call from several threads."""

    def __init__(self, source: ByteSource) -> None:
        file, self.base = ground(source)
        self.source, self.lock = source, threading.RLock()
        try:
            self.process = take(file.fd, file.name)
        except ProcessLost as error:
            hint = "try again with more memory and processes to spare, or --trust-hdf5"
            raise ReadError(
                f"the HDF5 reader process {error}", where=source.name, hint=hint
            ) from None
        try:
            ready = self._header(READY_SECONDS)
        except FormatError:
            ready = {"error": "did not start: check that `python -c 'import h5py'` works"}
        if ready.get("error") or ready.get("file") != list(self.process.identity):
            self.close()
            reason = str(ready.get("error") or "opened another file")[:200]
            raise ReadError(f"the HDF5 reader process: {reason}", where=source.name, hint=_TRUST)

    def walk(self) -> Mapping[str, Any]:
        self._send(f"walk {self.base} {self.source.size}")
        return self._checked(self._header(WALK_SECONDS + self.source.size / 1e6))

    def block(
        self, index: int, start: Sequence[int], count: Sequence[int], size: int
    ) -> bytes | bytearray:
        with self.lock:
            numbers = " ".join(map(str, (index, len(start), *start, *count)))
            self._send(f"read {numbers}")
            header = self._checked(self._header(BLOCK_SECONDS))
            if header.get("bytes") != size:
                raise self._nonsense(f"{size} bytes, found {header.get('bytes')!r}")
            return self._receive(size, BLOCK_SECONDS)

    def close(self) -> None:
        with self.lock:  # not under the feet of a thread that waits for a block
            self.process.close()

    def _send(self, line: str) -> None:
        try:
            self.process.send(line)
        except ProcessLost as error:
            raise self._lost(error) from None

    def _receive(self, size: int, seconds: float) -> bytearray:
        try:
            return self.process.receive(size, time.monotonic() + seconds)
        except ProcessLost as error:
            raise self._lost(error) from None

    def _header(self, seconds: float) -> Mapping[str, Any]:
        size = int.from_bytes(self._receive(8, seconds), "little")
        if size > MAX_ANSWER:
            raise self._nonsense(f"at most {MAX_ANSWER} bytes, found {size}")
        try:
            header = json.loads(self._receive(size, seconds))
        except (ValueError, RecursionError):
            raise self._nonsense("JSON, found something else") from None
        if not isinstance(header, dict):
            raise self._nonsense("an object")
        return header

    def _checked(self, header: Mapping[str, Any]) -> Mapping[str, Any]:
        if "error" in header:
            reason = str(header["error"])[:200]
            raise FormatError(f"HDF5 cannot read it: {reason}", where=self.source.name, hint=ADVICE)
        return header

    def _lost(self, error: ProcessLost) -> FormatError:
        self.close()
        message = f"the HDF5 reader process {error}: the file is damaged, or made to do this"
        return FormatError(message, where=self.source.name, hint=ADVICE)

    def _nonsense(self, expected: str) -> FormatError:
        self.close()
        message = f"the HDF5 reader process answered nonsense: expected {expected}"
        return FormatError(message, where=self.source.name, hint=ADVICE)


class Here(Reader):
    """The C library in this process, for callers who trust the file."""

    def __init__(self, source: ByteSource) -> None:
        from .hdf5_walk import Session  # noqa: PLC0415

        self.source = source
        self.session = self._guarded(Session, source.pread, source.size)

    def walk(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._guarded(self.session.walk)
        return found

    def block(
        self, index: int, start: Sequence[int], count: Sequence[int], size: int
    ) -> bytes | bytearray:
        data: bytes = self._guarded(self.session.read, index, tuple(start), tuple(count))
        if len(data) != size:
            raise FormatError(f"expected {size} bytes, found {len(data)}", where=self.source.name)
        return data

    def _guarded(self, call: Callable[..., Any], *arguments: object) -> Any:
        try:
            return call(*arguments)
        except CkptDoctorError:
            raise
        except Exception as error:  # noqa: BLE001  (h5py raises whatever HDF5's class maps to)
            reason = " ".join(str(error).split())[:200]
            message = f"HDF5 cannot read it: {reason}"
            raise FormatError(message, where=self.source.name, hint=ADVICE) from None

    def close(self) -> None:
        if hasattr(self, "session"):
            self.session.close()
