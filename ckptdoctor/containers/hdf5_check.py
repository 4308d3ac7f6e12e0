"""What the HDF5 walk answered, checked against the file: nothing of it is believed.

The process that walked a hostile file may have been taken over by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import FormatError
from ..findings import Finding, Severity, container_finding
from ..sources import ByteSource, Extent, FileSource, WindowSource
from .hdf5_blocks import CHUNK_BYTES

__all__ = ["ADVICE", "Checker", "Dataset", "ground"]

MAX_RATIO = 1100
"""DEFLATE gives at most 1032 bytes for each stored one."""
MAX_TOLD = 16
ADVICE = "get the file again from where it came from, or save the model anew"
_INT64 = 1 << 63


class Dataset(NamedTuple):
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
    number, stored_shape, chunks, itemsize
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
    number: int = 0
    stored_shape: tuple[int, ...] = ()
    chunks: tuple[int, ...] = ()
    itemsize: int = 1


class Checker:
    """Turns a walk's answer into `Dataset` rows.

    ``skipped`` are paths of datasets that hold no numbers in place.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.findings: list[Finding] = []
        self.skipped: list[str] = []
        self.counts: dict[str, int] = {}

    def check(
        self, answer: Mapping[str, Any]
    ) -> tuple[list[Dataset], Mapping[str, Mapping[str, Any]]]:
        """Rows and attributes of an answer; what is odd is kept in ``findings``.

        Raises
        ------
        FormatError
            If the answer is not what an honest worker says.
        """
        try:
            datasets = [d for d in map(self._dataset, answer["rows"]) if d is not None]
            self._report(answer["told"], answer["counts"])
            attributes = {
                str(path): dict(each.items()) for path, each in answer["attributes"].items()
            }
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            message = "the HDF5 reader process answered nonsense"
            raise FormatError(message, where=self.source.name, hint=ADVICE) from None
        self._report_overlaps(datasets)
        self._close_counts()
        return datasets, attributes

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
            number=_number(raw["index"]),
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
            return Extent(ground(self.source)[0], 0, 0), ""
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
        file, base = ground(self.source)
        return Extent(file, base + offset, size), ""

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


def ground(source: ByteSource) -> tuple[FileSource, int]:
    """Find the open file below a source, and where in it the source starts."""
    base = 0
    while isinstance(source, WindowSource):
        base += source.offset
        source = source.below
    if not isinstance(source, FileSource):
        raise FormatError("expected a file, found a stream", where=source.name)
    return source, base
