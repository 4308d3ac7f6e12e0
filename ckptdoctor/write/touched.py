"""Which tensors and checksums lie under the bytes that were written."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ..sources import ByteSource
from ..tensors import Checksum, TensorInfo, TensorTable
from .verify import Mark
from .windows import locate

__all__ = ["Touched", "touched"]


_ENTRY = 46
"""Bytes of an entry of a zip archive's directory, names aside."""


class Touched(NamedTuple):
    """Tensors and checksums of a draft that must be looked at again; all others are the input's."""

    infos: dict[str, TensorInfo]
    checksums: tuple[Checksum, ...]


def touched(table: TensorTable, marks: Sequence[Mark]) -> Touched:
    """Find what lies under the windows of a draft.

    Parameters
    ----------
    table
        The draft, one file.
    marks
        Its windows: all bytes outside them were compared with the input.
    """
    windows = sorted((mark.offset, mark.offset + mark.length) for mark in marks)
    starts = [start for start, _ in windows]
    # the furthest end up to each window: windows may lie in each other
    ends: list[int] = []
    for _, stop in windows:
        ends.append(max(stop, ends[-1] if ends else stop))

    def under(source: ByteSource, offset: int, length: int) -> bool:
        found = locate(source, offset)
        if found is None:
            return True
        index = bisect_right(starts, found[1] + length - 1) - 1
        return index >= 0 and ends[index] > found[1]

    infos = {
        name: info
        for name, info in table.infos.items()
        if info.extent is None or under(*info.extent)
    }
    checksums = tuple(
        c
        for c in table.checksums
        # the data, or what the archive's directory states of them
        if under(*c.extent) or (c.entry >= 0 and under(c.extent.source, c.entry, _ENTRY))
    )
    return Touched(infos, checksums)
