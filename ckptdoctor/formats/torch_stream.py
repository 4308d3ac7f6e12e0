"""What the stream and the tar form of old torch files share: pickles in a row, and storages."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from ..containers.pickle import MAX_PICKLE, Persistent, PickleError, Unpickled, unpickle
from ..containers.pickle_policy import findings_about, scan_pickles
from ..dtypes import DTYPES
from ..errors import FormatError, TruncatedError
from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource, Extent
from .torch_values import Refusal, Storage, storage_dtype

__all__ = ["PickleStream", "Storages"]

FIRST_WINDOW: Final = 1 << 16


class PickleStream:
    """Pickles one behind the other in a source; the window grows until one fits."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.pos = source, 0
        self.findings: list[Finding] = []

    def next(self, persistent_load: Callable[[Any], Any] = Persistent) -> Unpickled:
        left = self.source.size - self.pos
        window = FIRST_WINDOW
        while True:
            data = self.source.pread(self.pos, min(window, left))
            try:
                found = unpickle(
                    data,
                    self.source.name,
                    base=self.pos,
                    total=left,
                    persistent_load=persistent_load,
                )
            except PickleError as error:
                if isinstance(error.reason, TruncatedError) and window < min(left, MAX_PICKLE):
                    window = min(window * 8, MAX_PICKLE)
                    continue
                self._judge(error.seen)
                error.findings = tuple(self.findings)
                raise
            self._judge(found)
            self.pos += found.end
            return found

    def _judge(self, seen: Unpickled) -> None:
        for finding in findings_about(seen.globals, seen.computed, self.source.name, seen.endless):
            if (
                finding not in self.findings
            ):  # storages and tensors name the same types over and over
                self.findings.append(finding)

    def int64(self) -> int:
        (value,) = struct.unpack("<q", self.source.pread(self.pos, 8))
        self.pos += 8
        return int(value)


class Storages:
    """Buffers of a legacy file by key."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.findings: list[Finding] = []
        self._dtypes: dict[str, str] = {}
        self._declared: dict[str, int] = {}
        self._extents: dict[str, Extent] = {}

    def declare(self, references: tuple[Persistent, ...]) -> None:
        """Learn each storage's element type from the references to it."""
        for reference in references:
            pid = reference.pid
            if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
                continue
            try:
                dtype = storage_dtype(pid[1])
            except Refusal:
                continue
            self._dtypes[key_of(pid[2])] = dtype or "uint8"
            if type(pid[4]) is int:
                self._declared[key_of(pid[2])] = pid[4]

    def read_stream(self, stream: PickleStream) -> None:
        """Find the storages behind the object: a list of keys, then a count and bytes for each."""
        try:
            for key in _list(stream):
                self._add(key_of(key), stream)
        except TruncatedError as error:
            self._find("CK004", f"the file ends inside its storages: {error.message}")
            return
        except FormatError as error:
            self._find("CK004", f"the list of storages cannot be read: {error.message}")
            return
        if stream.pos < self.source.size:
            left = self.source.size - stream.pos
            self.findings.append(
                container_finding(
                    "CK005",
                    Severity.WARNING,
                    f"{left} bytes follow the last storage",
                    where=f"{self.source.name}+{stream.pos}",
                    end=stream.pos,
                )
            )
            rest = self.source.pread(stream.pos, min(left, MAX_PICKLE))
            self.findings += scan_pickles(rest, self.source.name, stream.pos)

    def _add(self, key: str, stream: PickleStream) -> None:
        numel = stream.int64()
        dtype = self._dtypes.get(key)
        if dtype is None:
            raise FormatError(f"storage {key!r:.60} has no known type", where=self.source.name)
        length = DTYPES[dtype].nbytes(numel) if numel >= 0 else -1
        available = self.source.size - stream.pos
        if numel < 0 or length > available:
            message = f"storage {key!r:.60} needs {length} bytes, {available} are left"
            raise TruncatedError(message, where=f"{self.source.name}+{stream.pos}")
        declared = self._declared.get(key, numel)
        if declared != numel:
            message = (
                f"storage {key!r:.60}: the pickle says {declared:.3g} elements, the data {numel}"
            )
            self._find(
                "CK005", message + "; torch allocates the former before it looks", unsafe=True
            )
        self._extents[key] = Extent(self.source, stream.pos, length)
        stream.pos += length

    def add(self, key: str, dtype: str, extent: Extent) -> None:
        """Take a storage found by other means (the tar form)."""
        self._dtypes[key], self._extents[key] = dtype, extent

    def find(self, pid: Any) -> Storage:
        """Return the buffer of a persistent id, or the view of one that it describes."""
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise Refusal("its storage is not referenced as torch does it")
        key = key_of(pid[2])
        extent = self._extents.get(key)
        if extent is None:
            raise Refusal(f"its storage {key!r:.60} is not in the file", code="CK004")
        dtype = storage_dtype(pid[1])
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return Storage(key, dtype, extent)
        if type(view) is not tuple or len(view) != 3 or any(type(n) is not int for n in view[1:]):
            raise Refusal("its storage view is not described as torch does it")
        width = DTYPES[dtype or "uint8"].itemsize
        first, length = view[1] * width, view[2] * width
        if first < 0 or length < 0 or first + length > extent.length:
            raise Refusal(f"its view lies outside storage {key!r:.60}", code="CK004")
        return Storage(key, dtype, Extent(extent.source, extent.offset + first, length))

    def _find(self, code: str, message: str, *, unsafe: bool = False) -> None:
        self.findings.append(
            container_finding(code, Severity.ERROR, message, where=self.source.name, unsafe=unsafe)
        )


def key_of(value: Any) -> str:
    return str(value)[:80] if type(value) in (str, int, bytes) else ""


def _list(stream: PickleStream) -> list[Any]:
    keys = stream.next().value
    if type(keys) is not list:
        raise FormatError("expected a list of storage keys", where=stream.source.name)
    return keys
