"""The checksums that an archive states, kept true while bytes under them change.

A CRC-32 is linear: what a change does to it follows from the difference of the bytes and from how
many bytes follow them.  So nothing has to be read again, and a checksum that did not fit before
does not fit afterwards either, by the same difference: damage is never covered up.
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from ..measure.crc import shift
from ..sources import FileSource
from ..tensors import Checksum, TensorTable
from .windows import Window, locate
from .zip_fields import crc_fields

__all__ = ["Checksums"]


class Checksums:
    """Checksums of one file of a checkpoint, by the bytes that they cover.

    Parameters
    ----------
    table
        Its checksums that cover stored bytes of ``file`` are looked after.
    """

    def __init__(self, table: TensorTable, file: FileSource) -> None:
        runs = []
        for checksum in table.checksums:
            found = locate(checksum.extent.source, checksum.extent.offset)
            if found is not None and found[0] is file and checksum.header >= 0:
                runs.append((found[1], found[1] + checksum.extent.length, checksum))
        runs.sort(key=lambda run: run[:2])
        self._starts = [run[0] for run in runs]
        self._runs = runs
        self._changes: dict[int, int] = {}

    def note(self, window: Window) -> None:
        """Take a change into account."""
        index = bisect.bisect_right(self._starts, window.offset) - 1
        if index < 0:
            return
        start, stop, _ = self._runs[index]
        if not start <= window.offset < stop:
            return
        old, new = (np.frombuffer(data, np.uint8) for data in (window.old, window.new))
        difference = (old ^ new).tobytes()
        plain = zlib.crc32(difference) ^ zlib.crc32(bytes(len(difference)))
        moved = shift(plain, stop - window.offset - len(difference))
        self._changes[index] = self._changes.get(index, 0) ^ moved

    def windows(self) -> Iterator[Window]:
        """Bytes of the archive that state the checksums that changed."""
        for index, change in self._changes.items():
            if change:
                yield from _stated(self._runs[index][2], change)


def _stated(checksum: Checksum, change: int) -> Iterator[Window]:
    old = struct.pack("<I", checksum.crc32)
    new = struct.pack("<I", checksum.crc32 ^ change)
    for field in crc_fields(checksum):
        found = locate(checksum.extent.source, field)
        if found is not None:
            yield Window(found[1], old, new)
