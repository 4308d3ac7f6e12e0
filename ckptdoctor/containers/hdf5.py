"""HDF5 files as rows of plain data: the parent's side of the guarded walk.

The C library runs in a child process (`ckptdoctor.containers.hdf5_process` starts it,
`ckptdoctor.containers.hdf5_worker` is what it does).  Every number it answers is checked here
against the file's real size, since a hostile file may have taken the child over.  Contiguous data
is then read by offset in this process; chunked, compressed and compact data is decoded by the
child, a block at a time.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import BombError, CkptDoctorError, FormatError, ReadError, TruncatedError
from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource, Extent, FileSource, WindowSource
from .hdf5_blocks import CHUNK_BYTES, slabs
from .hdf5_process import ProcessLost, magic_offset, prestart, take

if TYPE_CHECKING:
    from ..tensors import Array, TensorInfo

__all__ = ["Contents", "Dataset", "Hdf5Decoder", "is_hdf5", "prestart", "read_hdf5"]

READY_SECONDS = 60.0
WALK_SECONDS = 10.0
"""For any file; one more second for each megabyte of it."""
BLOCK_SECONDS = 20.0
MAX_ANSWER = 1 << 29
MAX_RATIO = 1100
"""DEFLATE gives at most 1032 bytes for each stored one."""
MAX_TOLD = 16
_INT64 = 1 << 63
_PIECE = 1 << 18
_ADVICE = "get the file again from where it came from, or save the model anew"
_TRUST = "if you trust the file, read it with --trust-hdf5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    r"""One dataset, or one more hard link to it.

    Parameters
    ----------
    path
        Names of the links from the root; bytes that are no UTF-8 as ``\xff`` escapes.
    dtype
        A name of `ckptdoctor.dtypes.DTYPES`; ``uint8`` or ``string`` where ``opaque``.
    shape
        In elements; opaque elements show their bytes as a last dimension.
    opaque
        Whether the elements are of a type that is no number: strings, compounds, float128.
    absent
        Why no value can be read; empty where they can.
    extent
        Where contiguous bytes lie; None where the child decodes them.
    storage
        Equal for hard links to one dataset.
    index, stored_shape, chunks, itemsize
        How the child knows it.
    """

    path: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    big_endian: bool = False
    opaque: bool = False
    absent: str = ""
    extent: Extent | None = None
    storage: str = ""
    index: int = 0
    stored_shape: tuple[int, ...] = ()
    chunks: tuple[int, ...] = ()
    itemsize: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What one HDF5 file holds.

    Parameters
    ----------
    datasets
        In the order of the walk: groups by name.
    attributes
        Of the groups, by path: those that Keras writes.
    findings
        Links not followed, data not there, objects that could not be read.
    skipped
        Paths of datasets that hold no numbers in place (variable-length strings, references).
    decoder
        Gives the blocks of datasets without an extent.
    """

    datasets: tuple[Dataset, ...]
    attributes: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    decoder: Hdf5Decoder | None


def is_hdf5(head: bytes, source: ByteSource) -> bool:
    """Whether the file holds HDF5's signature at 0, 512, 1024, 2048, ..."""
    return magic_offset(head, source.pread, source.size) >= 0


def read_hdf5(source: ByteSource, *, trust: bool = False) -> Contents:
    """Walk a file and check what it declares.

    Parameters
    ----------
    source
        A file, or a stored run of bytes of one (a window).
    trust
        Run HDF5's C library in this process.

    Raises
    ------
    TruncatedError
        If the file is shorter than it says.
    FormatError
        If HDF5 cannot open it, or the child died of it.
    """
    check_superblock(source)
    reader: _Reader = _Here(source) if trust else _Child(source)
    try:
        answer = reader.walk()
        contents = _Checker(source).contents(answer, reader)
    except BaseException:
        reader.close()
        raise
    if contents.decoder is None:
        reader.close()
    return contents


def check_superblock(source: ByteSource) -> None:
    """Check what HDF5 itself would refuse, to say it in plain words and with the numbers.

    Raises
    ------
    FormatError
        If there is no signature, or the superblock says what no HDF5 file says.
    TruncatedError
        If the file ends before the superblock says it does.
    """
    start = magic_offset(source.pread(0, min(4096, source.size)), source.pread, source.size)
    where = f"{source.name}+{max(0, start)}"
    if start < 0:
        raise FormatError("expected HDF5's signature, found none", where=where)
    block = source.pread(start, min(96, source.size - start)).ljust(96, b"\0")
    version = block[8]
    if version > 3:
        raise FormatError(f"expected superblock version 0 to 3, found {version}", where=where)
    width, at = (block[13], 24 + 4 * version) if version < 2 else (block[9], 12)
    if width not in (2, 4, 8):
        raise FormatError(f"expected addresses of 2, 4 or 8 bytes, found {width}", where=where)
    base = int.from_bytes(block[at : at + width], "little")
    end_at = at + 2 * width
    end = int.from_bytes(block[end_at : end_at + width], "little")
    if end - base + start > source.size:
        message = f"expected {end - base + start} bytes, the file has {source.size}"
        hint = "it was cut off, or is still being written: copy or download it again"
        raise TruncatedError(message, where=source.name, hint=hint)


# --- where the C library runs --------------------------------------------------------------------


class _Reader:
    """Answers a walk once, and blocks of bytes after it."""

    def walk(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def block(
        self, index: int, start: Sequence[int], count: Sequence[int], size: int
    ) -> bytes | bytearray:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class _Child(_Reader):
    """The C library in a process of its own; safe to call from several threads."""

    def __init__(self, source: ByteSource) -> None:
        file, self.base = _ground(source)
        self.source, self.lock = source, threading.Lock()
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
            raise FormatError(
                f"HDF5 cannot read it: {reason}", where=self.source.name, hint=_ADVICE
            )
        return header

    def _lost(self, error: ProcessLost) -> FormatError:
        self.close()
        message = f"the HDF5 reader process {error}: the file is damaged, or made to do this"
        return FormatError(message, where=self.source.name, hint=_ADVICE)

    def _nonsense(self, expected: str) -> FormatError:
        self.close()
        message = f"the HDF5 reader process answered nonsense: expected {expected}"
        return FormatError(message, where=self.source.name, hint=_ADVICE)


class _Here(_Reader):
    """The C library in this process, for callers who trust the file."""

    def __init__(self, source: ByteSource) -> None:
        from .hdf5_worker import Session  # noqa: PLC0415

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
            raise FormatError(message, where=self.source.name, hint=_ADVICE) from None

    def close(self) -> None:
        if hasattr(self, "session"):
            self.session.close()


def _ground(source: ByteSource) -> tuple[FileSource, int]:
    """Find the open file below a source, and where in it the source starts."""
    base = 0
    while isinstance(source, WindowSource):
        base += source.offset
        source = source.below
    if not isinstance(source, FileSource):
        raise FormatError("expected a file, found a stream", where=source.name)
    return source, base


# --- checking the answer -------------------------------------------------------------------------


@dataclass(slots=True)
class _Checker:
    """Turns a walk's answer into `Dataset` rows, believing nothing."""

    source: ByteSource
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def contents(self, answer: Mapping[str, Any], reader: _Reader) -> Contents:
        try:
            datasets = [d for d in map(self._dataset, answer["rows"]) if d is not None]
            self._report(answer["told"], answer["counts"])
            attributes = {
                str(path): dict(each.items()) for path, each in answer["attributes"].items()
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            message = "the HDF5 reader process answered nonsense"
            raise FormatError(message, where=self.source.name, hint=_ADVICE) from None
        self._report_overlaps(datasets)
        self._close_counts()
        decoded = any(d.extent is None and not d.absent for d in datasets)
        return Contents(
            datasets=tuple(datasets),
            attributes=attributes,
            findings=tuple(self.findings),
            skipped=tuple(self.skipped),
            decoder=Hdf5Decoder(reader, datasets, self.source.name) if decoded else None,
        )

    def _dataset(self, raw: Mapping[str, Any]) -> Dataset | None:
        from ..dtypes import DTYPES  # noqa: PLC0415

        path = tuple(str(part) for part in raw["path"])
        dtype, itemsize = str(raw["dtype"]), _number(raw["itemsize"])
        if dtype == "vlen":
            self.skipped.append("/".join(path))
            return None
        shape = tuple(map(_number, raw["shape"]))
        if len(shape) > 64 or itemsize < 1 or math.prod(shape) * itemsize >= _INT64:
            self._note("CK005", Severity.ERROR, path, f"declares {_short(shape)} elements")
            return None
        opaque = dtype in ("opaque", "string")
        if not opaque and DTYPES[dtype].itemsize != itemsize:
            raise ValueError(itemsize)
        size = math.prod(shape) * itemsize
        extent, absent = self._place(raw, path, size)
        return Dataset(
            path=path,
            dtype="uint8" if dtype == "opaque" else dtype,
            shape=(*shape, itemsize) if opaque else shape,
            big_endian=bool(raw["big"]),
            opaque=opaque,
            absent=absent,
            extent=extent,
            storage=f"object@{raw['address']}" if size else "",
            index=_number(raw["index"]),
            stored_shape=shape,
            chunks=tuple(map(_number, raw.get("chunks", shape))),
            itemsize=itemsize,
        )

    def _place(
        self, raw: Mapping[str, Any], path: tuple[str, ...], size: int
    ) -> tuple[Extent | None, str]:
        """Where the bytes are, or why they are not to be had."""
        layout = raw["layout"]
        if layout in ("external", "virtual"):
            note = str(raw.get("note", ""))[:200]
            severity = Severity.ERROR if note or layout == "external" else Severity.WARNING
            what = f"its values are in another file ({note!r})" if note else "it is put together"
            text = f"{layout} storage: {what}: not read"
            return None, self._note("CK006", severity, path, text)
        if not size:
            return Extent(self.source, 0, 0), ""
        if layout == "contiguous":
            return self._contiguous(raw, path, size)
        if layout == "compact":
            return None, ""
        return None, self._chunked(raw, path, size)

    def _contiguous(
        self, raw: Mapping[str, Any], path: tuple[str, ...], size: int
    ) -> tuple[Extent | None, str]:
        stored = _number(raw["stored"])
        if raw["offset"] is None:
            text = f"declares {size} bytes, none were ever written"
            return None, self._note("CK004", Severity.ERROR, path, text)
        offset = _number(raw["offset"])
        if offset + size > self.source.size:
            text = f"its bytes {offset} to {offset + size} run past the end ({self.source.size})"
            return None, self._note("CK004", Severity.ERROR, path, text)
        if stored < size:
            text = f"declares {size} bytes, stores {stored}"
            return None, self._note("CK004", Severity.ERROR, path, text)
        return Extent(self.source, offset, size), ""

    def _chunked(self, raw: Mapping[str, Any], path: tuple[str, ...], size: int) -> str:
        """Why chunked data cannot be read; empty where it can."""
        stored, missing = _number(raw["stored"]), _number(raw.get("missing", 0))
        chunks, shape = raw["chunks"], raw["shape"]
        if len(chunks) != len(shape) or 0 in map(_number, chunks):
            raise ValueError(chunks)
        if not stored:
            text = f"declares {size} bytes, none were ever written"
            return self._note("CK004", Severity.ERROR, path, text)
        if raw.get("refused"):
            text = f"not read: {str(raw['refused'])[:200]}; rewrite it with h5repack -f GZIP=1"
            return self._note("CK005", Severity.ERROR, path, text)
        if math.prod(chunks) * _number(raw["itemsize"]) > CHUNK_BYTES:
            raise ValueError(chunks)
        if stored > self.source.size or size > MAX_RATIO * stored + (1 << 16):
            text = f"declares {size} bytes, stores {stored}: no compression goes so far"
            return self._note("CK004", Severity.ERROR, path, text)
        if missing:
            text = f"{missing} of {raw['places']} chunks were never written"
            self._note("CK004", Severity.ERROR, path, text)
        return ""

    def _note(self, code: str, severity: Severity, path: tuple[str, ...], text: str) -> str:
        """Add a finding about one dataset; beyond a few of a kind they are counted."""
        name = "/".join(path)
        self.counts[code] = self.counts.get(code, 0) + 1
        if self.counts[code] <= MAX_TOLD:
            finding = container_finding(code, severity, text, where=self.source.name, tensor=name)
            self.findings.append(finding)
        return text

    def _close_counts(self) -> None:
        for code, count in self.counts.items():
            if count > MAX_TOLD:
                text = f"{count - MAX_TOLD} more datasets with the same fault"
                where = self.source.name
                self.findings.append(container_finding(code, Severity.ERROR, text, where=where))

    def _report(self, told: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
        """Add findings about links and objects: one for each kind, with a few of them by name."""
        for kind, examples in told.items():
            if kind not in _ODDITIES:
                continue
            code, severity, text = _ODDITIES[kind]
            count = _number(counts[kind])
            shown = [" -> ".join(repr(str(part)[:80]) for part in e if part) for e in examples[:3]]
            more = f", and {count - len(shown)} more" if count > len(shown) else ""
            message = f"{text}: {'; '.join(shown)}{more}"
            where = self.source.name
            self.findings.append(
                container_finding(code, severity, message, where=where, count=count)
            )

    def _report_overlaps(self, datasets: Sequence[Dataset]) -> None:
        placed = sorted(
            (d.extent.offset, d.extent.length, d.storage, d.path)
            for d in datasets
            if d.extent is not None and d.extent.length
        )
        end, owner = 0, ""
        for offset, length, storage, path in placed:
            if offset < end and storage != owner:
                text = f"shares bytes from {offset} on with another dataset"
                self._note("CK005", Severity.ERROR, path, text)
            if offset + length > end:
                end, owner = offset + length, storage


_ODDITIES = {
    "soft": ("CK006", Severity.WARNING, "soft links, not followed"),
    "external": ("CK006", Severity.ERROR, "links into other files, not followed"),
    "damaged": ("CK005", Severity.ERROR, "objects that HDF5 cannot read"),
    "budget": ("CK005", Severity.ERROR, "more or deeper groups than any model has, not read"),
    "again": ("CK005", Severity.WARNING, "groups reachable by several paths, read once"),
}


def _number(value: object) -> int:
    """Read a count, size or offset out of JSON; anything else is nonsense."""
    if type(value) is not int or not 0 <= value < _INT64:
        raise ValueError(value)
    return value


def _short(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8])) + ("..." if len(shape) > 8 else "")


# --- values --------------------------------------------------------------------------------------


class Hdf5Decoder:
    """Blocks of chunked, compressed and compact datasets, decoded where the C library runs."""

    def __init__(self, reader: _Reader, datasets: Sequence[Dataset], where: str) -> None:
        self._reader, self._where = reader, where
        self._datasets = {
            dataset.path: dataset
            for dataset in datasets
            if dataset.extent is None and not dataset.absent
        }

    def blocks(self, info: TensorInfo) -> Iterator[Array]:
        """Flat blocks in row-major order, native byte order.

        Raises
        ------
        FormatError
            If the data cannot be decoded.
        """
        import numpy as np  # noqa: PLC0415

        dataset = self._datasets.get(info.path)
        if dataset is None:
            raise FormatError("no values to decode", where=f"{self._where}:{info.name}"[:1000])
        dtype = info.kind.numpy
        if dataset.big_endian:
            dtype = dtype.newbyteorder(">")
        step = max(1, _PIECE // dtype.itemsize)
        shape, itemsize = dataset.stored_shape, dataset.itemsize
        for start, count in slabs(shape, dataset.chunks, itemsize):
            size = math.prod(count) * itemsize
            if size > CHUNK_BYTES:
                raise BombError(
                    f"a block of {size} bytes", where=f"{self._where}:{info.name}"[:1000]
                )
            raw = self._reader.block(dataset.index, start, count, size)
            values = np.frombuffer(raw, dtype)
            for first in range(0, values.size, step):
                piece = values[first : first + step]
                yield piece.astype(dtype.newbyteorder("="))

    def close(self) -> None:
        """End the process that decodes."""
        self._reader.close()
