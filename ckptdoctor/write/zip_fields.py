"""Where a zip archive repeats the CRC-32 of a member: the fields to change with its data."""

from __future__ import annotations

import struct

from ..errors import FormatError
from ..tensors import Checksum

__all__ = ["crc_fields"]

_LOCAL = struct.Struct("<4s2xH6xI")
_DESCRIBED = 8
_SIGN = b"PK\7\x08"


def crc_fields(checksum: Checksum, *, agree: bool = True) -> tuple[int, ...]:
    """Offsets, in the archive's source, of the four bytes that state a stored member's CRC-32.

    They stand in the directory, and in the local header or, for members written as a stream, in
    the data descriptor behind the data (with or without its signature).

    Parameters
    ----------
    agree
        Whether all of them must hold the checksum that was read.

    Raises
    ------
    FormatError
        If they should and do not.
    """
    source, (extent, crc32, where) = checksum.extent.source, checksum[:3]
    sign, flags, local = _LOCAL.unpack(source.pread(checksum.header, _LOCAL.size))
    fields = [checksum.entry + 16]
    if local or not flags & _DESCRIBED:
        fields.append(checksum.header + 14)
    if flags & _DESCRIBED:
        stop = extent.offset + extent.length
        fields.append(stop + 4 if source.pread(stop, 4) == _SIGN else stop)
    stated = struct.pack("<I", crc32)
    if sign != b"PK\3\4" or (agree and any(source.pread(at, 4) != stated for at in fields)):
        raise FormatError("the archive states two checksums for one member", where=where)
    return tuple(fields)
