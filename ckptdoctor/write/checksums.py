"""The checksums that an archive states, kept true while bytes under them change.

A CRC-32 is linear: what a change does to it follows from the difference of the bytes and from how
many bytes follow them.  So nothing has to be read again, and a checksum that did not fit before
does not fit afterwards either, by the same difference: damage is never covered up.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import accumulate

import numpy as np

from ..errors import UnsupportedError, UsageError
from ..measure.crc import shift
from ..sources import FileSource
from ..tensors import Checksum
from .windows import Window, locate
from .zip_fields import crc_fields

__all__ = ["Checksums"]


class Checksums:
    """Checksums of one file of a checkpoint, by the bytes that they cover.

    Parameters
    ----------
    stated
        Those that cover stored bytes of ``file`` are looked after.
    """

    def __init__(self, stated: Iterable[Checksum], file: FileSource) -> None:
        runs = []
        for checksum in stated:
            found = locate(checksum.extent.source, checksum.extent.offset)
            if found is not None and found[0] is file and checksum.header >= 0:
                runs.append((found[1], found[1] + checksum.extent.length, checksum))
        runs.sort(key=lambda run: run[0])
        self._runs = runs
        self._starts = [run[0] for run in runs]
        self._reach = list(accumulate((run[1] for run in runs), max))
        self._changes: dict[int, int] = {}
        self._restated: set[int] = set()

    def note(self, window: Window) -> None:
        """Take a change into account; noted twice, it is not taken into account.

        Raises
        ------
        UnsupportedError
            If it is not in one member alone: hostile archives have members that overlap.
        """
        end = window.offset + len(window.new)
        touched = self._touched(window.offset, end)
        if not touched:
            return
        index = touched[0]
        start, stop, checksum = self._runs[index]
        if len(touched) > 1 or window.offset < start or end > stop:
            raise _tangled(checksum, "overlaps another")
        old, new = (np.frombuffer(data, np.uint8) for data in (window.old, window.new))
        difference = (old ^ new).tobytes()
        plain = zlib.crc32(difference) ^ zlib.crc32(bytes(len(difference)))
        self._changes[index] = self._changes.get(index, 0) ^ shift(plain, stop - end)

    def _touched(self, start: int, stop: int) -> list[int]:
        """Numbers of the checksums that cover one of these bytes."""
        first = bisect.bisect_right(self._reach, start)
        last = bisect.bisect_left(self._starts, stop)
        return [index for index in range(first, last) if self._runs[index][1] > start]

    def restate(self, where: str) -> None:
        """State the checksum of a member anew, from its data.

        Raises
        ------
        UsageError
            If there is no such member: a plan may call the file by another path, but no member.
        """
        member = where.partition(":")[2]
        if not any(checksum.where.partition(":")[2] == member for _, _, checksum in self._runs):
            raise UsageError("expected a member with a checksum, found none", where=where)
        for index, (_, _, checksum) in enumerate(self._runs):
            if checksum.where.partition(":")[2] == member:
                apart = checksum.crc32 ^ _actual(checksum)
                self._changes[index] = self._changes.get(index, 0) ^ apart
                self._restated.add(index)

    def windows(self) -> Iterator[Window]:
        """Yield the bytes of the archive that state the checksums that changed."""
        for index, change in self._changes.items():
            anew = index in self._restated
            if not change and not anew:
                continue
            checksum = self._runs[index][2]
            for window in _stated(checksum, change, agree=not anew):
                if self._touched(window.offset, window.offset + len(window.new)):
                    raise _tangled(checksum, "has its checksum in another")
                yield window


def _tangled(checksum: Checksum, how: str) -> UnsupportedError:
    message = f"the member {how}: its checksum cannot be kept true"
    hint = "save the checkpoint again with the framework's own writer"
    return UnsupportedError(message, where=checksum.where, hint=hint)


def _stated(checksum: Checksum, change: int, *, agree: bool) -> Iterator[Window]:
    source = checksum.extent.source
    new = struct.pack("<I", checksum.crc32 ^ change)
    for field in crc_fields(checksum, agree=agree):
        found = locate(source, field)
        if found is not None:
            yield Window(found[1], source.pread(field, 4), new)


def _actual(checksum: Checksum) -> int:
    """CRC-32 of a member's data."""
    crc32, (source, offset, length) = 0, checksum.extent
    for at in range(0, length, _BLOCK):
        crc32 = zlib.crc32(source.pread(offset + at, min(_BLOCK, length - at)), crc32)
    return crc32


_BLOCK = 1 << 20
