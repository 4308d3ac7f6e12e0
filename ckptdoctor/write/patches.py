"""Bytes to overwrite in a copy of a file, and the checksums that must follow them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..measure.crc import shift
from ..sources import ByteSource, FileSource, WindowSource

__all__ = ["Patch", "checksum_after", "locate", "merged"]


class Patch(NamedTuple):
    """Bytes to put at an offset of the file."""

    offset: int
    data: bytes

    @property
    def stop(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + len(self.data)


def locate(source: ByteSource, offset: int) -> tuple[FileSource, int] | None:
    """File and offset in it of a byte of a source; None where it is not stored as it is read."""
    while isinstance(source, WindowSource):
        source, offset = source.below, source.offset + offset
    return (source, offset) if isinstance(source, FileSource) else None


def merged(patches: Iterable[Patch]) -> list[Patch]:
    """Patches in file order, neighbours joined; of the same byte the later one counts.

    Examples
    --------
    >>> merged([Patch(4, b"cd"), Patch(2, b"ab"), Patch(3, b"B")])
    [Patch(offset=2, data=b'aBcd')]
    """
    done: list[Patch] = []
    for patch in patches:
        start, data = patch.offset, bytearray(patch.data)
        keep = []
        for other in done:
            if other.stop < start or start + len(data) < other.offset:
                keep.append(other)
                continue
            low, high = min(start, other.offset), max(start + len(data), other.stop)
            whole = bytearray(high - low)
            whole[other.offset - low : other.stop - low] = other.data
            whole[start - low : start - low + len(data)] = data
            start, data = low, whole
        done = [*keep, Patch(start, bytes(data))]
    return sorted(done)


def checksum_after(
    crc32: int, start: int, length: int, patches: Sequence[Patch], before: Sequence[bytes]
) -> int:
    """CRC-32 of a run of bytes once patches inside it are applied, without reading it again.

    A checksum is linear: what changes by a patch is the checksum of the difference, moved by the
    bytes that follow.

    Parameters
    ----------
    crc32
        Of the run as it is, which must be known to be right.
    start, length
        Where the run lies in the file.
    patches, before
        What is written, inside the run, and the bytes that stand there now.
    """
    for patch, old in zip(patches, before, strict=True):
        difference = bytes(a ^ b for a, b in zip(patch.data, old, strict=True))
        plain = zlib.crc32(difference) ^ zlib.crc32(bytes(len(difference)))
        crc32 ^= shift(plain, start + length - patch.stop)
    return crc32
