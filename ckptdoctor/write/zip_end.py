"""The records that end a zip archive, for an archive whose directory moved."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..containers.zip import Member
from ..containers.zip_directory import (
    CENTRAL_BYTES,
    END64_SIGN,
    END_SIGN,
    LOCATOR_SIGN,
    MAX16,
    MAX32,
)
from ..errors import UnsupportedError
from ..sources import ByteSource

__all__ = ["End", "end_records", "read_end"]

_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_NEW_END64: Final = _END64.pack(END64_SIGN, 44, 45, 45, 0, 0, 0, 0, 0, 0)


class End(NamedTuple):
    """The end records of an archive.

    ``record`` is the one that every archive has, with its comment; ``record64`` the zip64 one,
    empty without; ``stop`` is the first byte behind.
    """

    record: bytes
    record64: bytes
    stop: int


def read_end(source: ByteSource, members: Sequence[Member]) -> End:
    """Find the end records of an archive that was read without complaint.

    Raises
    ------
    UnsupportedError
        If there is more between directory and end than these records: a signature.
    """
    start = max(0, source.size - MAX16 - _END.size)
    tail = source.pread(start, source.size - start)
    found = tail.rfind(END_SIGN, 0, len(tail) - _END.size + len(END_SIGN))
    (comment,) = struct.unpack_from("<H", tail, found + _END.size - 2)
    record, at = tail[found : found + _END.size + comment], start + found
    before, record64 = at, b""
    locator = at - _LOCATOR.size
    if locator >= 0 and source.pread(locator, 4) == LOCATOR_SIGN:
        before = locator - _END64.size
        if before >= 0 and source.pread(before, 4) == END64_SIGN:
            record64 = source.pread(before, _END64.size)
    if _directory_stop(source, members, before) != before:
        message = "the archive has records between its directory and its end that would not hold"
        hint = "load the model with its framework and save it anew"
        raise UnsupportedError(message, where=f"{source.name}+{before}", hint=hint)
    return End(record, record64, at + len(record))


def _directory_stop(source: ByteSource, members: Sequence[Member], empty: int) -> int:
    """Offset behind the last entry of the directory."""
    if not members:
        return empty
    last = max(member.entry for member in members)
    lengths = struct.unpack("<3H", source.pread(last + 28, 6))
    return int(last + CENTRAL_BYTES + sum(lengths))


def end_records(end: End, entries: int, directory: int, size: int) -> bytes:
    """Make the end records of an archive.

    Parameters
    ----------
    end
        Those of the input: comment, versions, and whether there is a zip64 record stay.
    entries
        Members.
    directory, size
        Where the directory starts, and its bytes.
    """
    sign, disk, first, *narrow, comment = _END.unpack(end.record[: _END.size])
    numbers = (entries, entries, size, directory)
    limits = (MAX16, MAX16, MAX32, MAX32)
    wide = bool(end.record64) or any(n >= most for n, most in zip(numbers, limits, strict=True))
    stated = [
        most if wide and most in (old, min(number, most)) else number
        for old, number, most in zip(narrow, numbers, limits, strict=True)
    ]
    record = _END.pack(sign, disk, first, *stated, comment) + end.record[_END.size :]
    if not wide:
        return record
    fixed = list(_END64.unpack(end.record64 or _NEW_END64))
    fixed[6:] = numbers
    locator = _LOCATOR.pack(LOCATOR_SIGN, 0, directory + size, 1)
    return _END64.pack(*fixed) + locator + record
