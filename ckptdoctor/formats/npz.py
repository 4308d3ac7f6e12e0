"""NumPy's ``.npz``: a zip of ``.npy`` members, one array each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ..containers.zip import STORED, Archive, Member
from ..errors import CkptDoctorError, FormatError, TruncatedError
from ..findings import Finding, Severity, container_finding
from ..roles import keras_role_of, role_of
from ..sources import ByteSource, Extent, FileSource
from ..tensors import Array, ArrayDecoder, Checksum, Role, TensorInfo, TensorTable
from .base import ReadOptions

__all__ = ["Npz", "NpzContents", "read_npz"]

MAX_HEADER = 1 << 16
"""64 KiB; NumPy itself refuses headers above 10,000 bytes."""
MAX_DIMENSIONS = 32
_MAX_BYTES = 1 << 62

_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_DTYPES = {
    "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16",
}  # fmt: skip
# As NumPy writes it; Python 2 wrote long integers with an L, and keys come in any order.
_TEXT = re.compile(r"[|<>=]?([SUV]\d*|[biufc]\d+|[mM]8(\[\w+\])?)")
"""Types that hold no objects: strings, raw bytes, dates, and numbers this table does not know."""


class Npz:
    """``numpy.savez`` and ``savez_compressed``."""

    name = "npz"
    spec = "https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"
    summary = "NumPy .npz of named arrays (numpy.savez, also compressed)"

    def read_archive(
        self,
        archive: Archive,
        source: FileSource,
        options: ReadOptions,  # noqa: ARG002
    ) -> TensorTable:
        """Find the arrays of a zip whose directory is parsed already.

        Raises
        ------
        FormatError
            If not a single array can be read.
        """
        contents = read_npz(archive)
        return TensorTable(
            path=source.name,
            format=self.name,
            infos=contents.infos,
            metadata={"framework": "numpy"},
            findings=(*archive.findings, *contents.findings),
            checksums=tuple(contents.checksums),
            decoder=ArrayDecoder(contents.arrays) if contents.arrays else None,
            files=(source,),
        )


@dataclass(slots=True)
class NpzContents:
    """What an ``.npz`` holds.

    ``arrays`` are values that only a pickle has, by tensor name; all others have extents.
    ``findings`` do not repeat those of the archive.
    """

    infos: dict[str, TensorInfo] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)


def read_npz(archive: Archive, *, keras: bool = False) -> NpzContents:
    """Arrays of an archive of ``.npy`` members, in its order; one that is wrong is a finding.

    Parameters
    ----------
    keras
        The archive is a ``model.weights.npz``: each member is a pickled dictionary of one layer's
        variables, named ``layers/dense/vars/0`` as in ``model.weights.h5``.

    Raises
    ------
    FormatError
        If there are members, and none of them is an array.
    """
    contents = NpzContents()
    error: CkptDoctorError | None = None
    for name in dict.fromkeys(member.name for member in archive.members):
        member = archive.last(name)  # as numpy.load takes it
        if member is None or not name.endswith(".npy") or name.startswith("__MACOSX/"):
            continue
        try:
            _read_member(archive, member, contents, keras=keras)
        except CkptDoctorError as reason:
            error = error or reason
            if not member.broken:  # else the archive has said so
                contents.findings += reason.findings
                code = "CK004" if isinstance(reason, TruncatedError) else "CK005"
                message = f"not an array that can be read: {reason.message}"
                where = archive.where(member)
                finding = container_finding(code, Severity.ERROR, message, where=where)
                contents.findings.append(finding)
    if error is not None and not contents.infos:
        error.findings = (*archive.findings, *contents.findings)
        raise error
    return contents


@dataclass(frozen=True, slots=True)
class _Header:
    """``dtype`` is empty for types that the table does not know; ``size`` counts header bytes."""

    dtype: str
    big_endian: bool
    fortran: bool
    shape: tuple[int, ...]
    size: int
    is_object: bool


def _read_member(archive: Archive, member: Member, contents: NpzContents, *, keras: bool) -> None:
    header = _read_header(archive.open(member))
    name = member.name.removesuffix(".npy")
    if header.is_object:
        _read_pickle(archive, member, header, contents, keras=keras)
        return
    checksum = archive.checksum(member)
    # A deflated member is inflated once: values and checksum come from one source.
    whole = checksum.extent if checksum else None
    if whole is None or member.method == STORED:
        whole = Extent(archive.open(member), 0, member.size)
    if checksum is not None:
        contents.checksums.append(checksum)
    info = _info(name, header, whole, contents, archive.where(member), keras=keras)
    contents.infos[info.name] = info


def _info(
    name: str, header: _Header, whole: Extent, contents: NpzContents, where: str, *, keras: bool
) -> TensorInfo:
    """Row of the table; data that is cut off leaves it without values."""
    left = whole.length - header.size
    needed = left
    if header.dtype:
        needed = math.prod(header.shape) * _width(header.dtype)
    extent: Extent | None = Extent(whole.source, whole.offset + header.size, needed)
    if needed > left:
        message = f"{needed - left:,} of {needed:,} bytes are missing"
        contents.findings.append(container_finding("CK004", Severity.ERROR, message, where=where))
        extent = None
    elif needed < left:
        message = f"{left - needed:,} bytes follow the array"
        contents.findings.append(container_finding("CK005", Severity.WARNING, message, where=where))
    full, path, role = _named((name,), keras=keras)
    plain = bool(header.dtype)
    return TensorInfo(
        name=full,
        path=path,
        dtype=header.dtype or "string",
        shape=header.shape,
        role=role,
        encoding="absent" if extent is None else "plain" if plain else "opaque",
        extent=extent,
        strides=_fortran_strides(header.shape) if header.fortran and plain else None,
        big_endian=header.big_endian,
    )


def _width(dtype: str) -> int:
    """Bytes of one element of the plain types."""
    return 1 if dtype == "bool" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def _named(keys: tuple[str, ...], *, keras: bool) -> tuple[str, tuple[str, ...], Role]:
    """Name, path and role of an array, or of one that lies in a pickled dictionary."""
    if keras:
        group = () if keys[0] == "__root__" else tuple(keys[0].split("/"))
        path = (*group, "vars", *keys[1:]) if len(keys) > 1 else group
        return "/".join(path), path, keras_role_of(path)
    return ".".join(keys), keys, role_of((*keys[0].split("/"), *keys[1:]))


def _fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if sum(n > 1 for n in shape) < 2 or 0 in shape:
        return None  # one order is as good as the other
    return tuple(math.prod(shape[:axis]) for axis in range(len(shape)))


def _read_header(source: ByteSource) -> _Header:
    """Parse the header of a ``.npy`` member; a literal, so that nothing in it runs."""
    head = source.pread(0, min(128, source.size))
    where = f"{source.name}+0"
    if len(head) < 12 or not head.startswith(b"\x93NUMPY"):
        raise FormatError(f"expected the start of a .npy file, found {head[:8]!r}", where=where)
    if head[6] not in (1, 2, 3):
        raise FormatError(f"expected .npy version 1, 2 or 3, found {head[6]}", where=where)
    start = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    if length > MAX_HEADER:
        message = f"expected a header of at most {MAX_HEADER:,} bytes, found {length:,}"
        raise FormatError(message, where=where)
    if start + length > source.size:
        message = f"the header has {length:,} bytes, {source.size - start:,} are here"
        raise TruncatedError(message, where=where)
    if start + length > len(head):
        head = source.pread(0, start + length)
    text = head[start : start + length].decode("utf-8" if head[6] == 3 else "latin-1", "replace")
    descr, order, shape = _fields(text, where)
    dtype, big_endian = _dtype(descr) if type(descr) is str else ("", False)
    # Default deny: what is not known to hold plain values is what NumPy would unpickle.
    objects = not dtype and not _is_plain(descr)
    return _Header(dtype, big_endian, order, _shape(shape, where), start + length, objects)


def _fields(text: str, where: str) -> tuple[Any, bool, tuple[Any, ...]]:
    """Type, order and shape, parsed as NumPy does it: as a literal, the last of two keys wins."""
    import ast  # noqa: PLC0415

    try:
        fields = ast.literal_eval(re.sub(r"(?<=\d)L(?=[,)])", "", text.strip()))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        fields = None
    match fields:
        case {"descr": descr, "fortran_order": bool(order), "shape": tuple(shape)} if (
            len(fields) == 3
        ):
            return descr, order, shape
    message = f"the header does not give descr, fortran_order and shape: {text[:80].strip()!r}"
    raise FormatError(message, where=where)


def _is_plain(descr: Any) -> bool:
    """Whether a type, or every field of a record, is known to hold no objects."""
    if type(descr) is str:
        return bool(_dtype(descr)[0] or _TEXT.fullmatch(descr))
    if type(descr) is not list:
        return False
    return all(type(f) is tuple and len(f) >= 2 and _is_plain(f[1]) for f in descr)


def _dtype(code: str) -> tuple[str, bool]:
    """Translate a type code; the name is empty for strings, dates and records."""
    order, kind = code[:1], code.lstrip("<>=|")
    if kind not in _DTYPES:
        return "", False
    if kind == "b1":
        return "bool", False
    bits = 8 * int(kind[1:])
    return f"{_KINDS[kind[0]]}{bits}", order == ">" and bits > 8


def _shape(shape: tuple[Any, ...], where: str) -> tuple[int, ...]:
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise FormatError(f"no shape of an array: {repr(shape)[:80]}", where=where)
    if math.prod(n for n in shape if n) > _MAX_BYTES // 16:
        raise FormatError(f"a shape larger than any file: {repr(shape)[:80]}", where=where)
    return shape


def _read_pickle(
    archive: Archive, member: Member, header: _Header, contents: NpzContents, *, keras: bool
) -> None:
    """Interpret an object array: its names are judged, arrays in dictionaries are found."""
    from ..containers.pickle import PickleError, size_limit, unpickle  # noqa: PLC0415  (rare, and large)
    from ..containers.pickle_policy import findings_about  # noqa: PLC0415

    where = archive.where(member)
    message = "an object array, which is a pickle: numpy.load reads it only with allow_pickle=True"
    contents.findings.append(container_finding("CK002", Severity.WARNING, message, where=where))
    data = archive.read(member, size_limit(member.stored))[header.size :]
    try:
        unpickled = unpickle(data, where, base=header.size)
    except PickleError as error:
        seen = error.seen
        contents.findings += findings_about(seen.globals, seen.computed, where, seen.endless)
        raise
    contents.findings += findings_about(
        unpickled.globals, unpickled.computed, where, unpickled.endless
    )
    name = member.name.removesuffix(".npy")
    for keys, array in _arrays_in(unpickled.value):
        full, path, role = _named((name, *keys), keras=keras)
        if full in contents.infos:
            full = f"{full}#{sum(info.path == path for info in contents.infos.values()) + 1}"
        contents.arrays[full] = array
        contents.infos[full] = TensorInfo(
            name=full, path=path, dtype=array.dtype.name, shape=array.shape, role=role
        )


def _arrays_in(value: Any) -> list[tuple[tuple[str, ...], Array]]:
    """Numeric arrays in the first level of dictionaries of an object array."""
    from ..containers.pickle import Call, PDict  # noqa: PLC0415
    from .numpy_values import array_of  # noqa: PLC0415

    elements: list[Any] = []
    if type(value) is Call and value.state and type(value.state[-1]) is tuple:
        held = value.state[-1][-1]
        elements = held if type(held) is list else []
    found: list[tuple[tuple[str, ...], Array]] = []
    for i, element in enumerate(elements):
        pairs = element.pairs if type(element) is PDict else [(i, element)]
        for key, inner in pairs:
            array = array_of(inner)
            if array is not None and type(key) in (str, int):
                found.append(((str(key)[:200],), array))
    return found
