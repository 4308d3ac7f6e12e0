"""Extra fields of a zip archive's headers: 64-bit sizes, and the padding that aligns data."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from ..containers.zip import Archive
from ..containers.zip_directory import MAX32

__all__ = ["ALIGNMENT", "LocalExtra", "alignment_of", "central_extra"]

ALIGNMENT: Final = 64
"""Bytes; what torch has always aligned to, and its default since that can be set."""
MAX_ALIGNMENT: Final = 4096
"""A page of memory; more is chance."""
ZIP64: Final = 1
PADDING: Final = int.from_bytes(b"FB", "little")
_DISK_BYTES: Final = 4

Field = tuple[int, bytes]


def _fields(extra: bytes) -> tuple[list[Field], bytes]:
    """Fields in order, and the bytes that are none."""
    found: list[Field] = []
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        if at + 4 + length > len(extra):
            break
        found.append((number, extra[at + 4 : at + 4 + length]))
        at += 4 + length
    return found, extra[at:]


def _joined(fields: Iterable[Field], rest: bytes) -> bytes:
    return b"".join(struct.pack("<HH", n, len(data)) + data for n, data in fields) + rest


def _with(fields: Sequence[Field], number: int, data: bytes | None) -> list[Field]:
    """Fields with the data of one changed, in its place or in front; None takes it out."""
    if data is None:
        return [field for field in fields if field[0] != number]
    if all(n != number for n, _ in fields):
        return [(number, data), *fields]
    return [(n, data if n == number else held) for n, held in fields]


def central_extra(extra: bytes, wide: Sequence[int]) -> bytes:
    r"""Extra fields of a directory entry whose zip64 field holds these numbers.

    Examples
    --------
    >>> central_extra(b"", [5 << 32])
    b'\x01\x00\x08\x00\x00\x00\x00\x00\x05\x00\x00\x00'
    >>> central_extra(b"\x01\x00\x08\x00\x00\x00\x00\x00\x05\x00\x00\x00", [])
    b''
    """
    fields, rest = _fields(extra)
    if not wide and all(number != ZIP64 for number, _ in fields):
        return extra
    disk = b""
    for number, data in fields:
        if number == ZIP64 and len(data) % 8 == _DISK_BYTES:
            disk = data[-_DISK_BYTES:]
    return _joined(
        _with(fields, ZIP64, struct.pack(f"<{len(wide)}Q", *wide) + disk if wide else None), rest
    )


class LocalExtra:
    """Extra fields of a local header."""

    def __init__(self, extra: bytes) -> None:
        self._fields, self._rest = _fields(extra)

    def _get(self, number: int) -> bytes | None:
        return next((data for n, data in self._fields if n == number), None)

    def joined(self) -> bytes:
        """All fields as they are written."""
        return _joined(self._fields, self._rest)

    def keep_sizes(self, header: int, *, escaped: bool) -> None:
        """Leave the sizes in the zip64 field; the header's own offset, which torch adds, moves.

        Parameters
        ----------
        header
            New offset of the header.
        escaped
            Whether the field holds the sizes.
        """
        wide = self._get(ZIP64)
        if wide is None:
            return
        sizes = wide[:16] if escaped else b""
        if len(wide) != len(sizes) + 8:
            return
        offset = struct.pack("<Q", header) if header >= MAX32 else b""
        self._fields = _with(self._fields, ZIP64, sizes + offset or None)

    def set_sizes(self, sizes: tuple[int, int] | None) -> None:
        """State sizes in 64 bits (inflated, stored), or take the field out."""
        data = None if sizes is None else struct.pack("<2Q", *sizes)
        self._fields = _with(self._fields, ZIP64, data)

    def align(self, start: int, before: int, alignment: int) -> None:
        """Fit the padding, if there is any, to where the data comes to lie.

        Parameters
        ----------
        start
            Offset of these fields in the output.
        before
            Where the data lay in the input: padding that aligns it no worse stays.
        alignment
            In bytes.
        """
        padding = self._get(PADDING)
        if padding is None:
            return
        data = start + len(self.joined())
        if data % alignment == before % alignment:
            return
        length = -(data - len(padding)) % alignment
        self._fields = _with(self._fields, PADDING, (padding[:1] or b"Z") * length)


def alignment_of(archive: Archive) -> int:
    """Bytes to whose multiples torch's padding moves the data of this archive's members."""
    together = 0
    for member in archive.members:
        head = archive.source.pread(member.header, 30)
        named, extras = struct.unpack("<2H", head[26:])
        extra = archive.source.pread(member.header + 30 + named, extras)
        if any(number == PADDING for number, _ in _fields(extra)[0]):
            together |= member.offset
    return max(ALIGNMENT, min(together & -together, MAX_ALIGNMENT))
