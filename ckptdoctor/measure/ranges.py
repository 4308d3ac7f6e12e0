"""Where extents really lie: which source below all windows, and at which offset of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..sources import ByteSource, Extent, WindowSource
from .stats import Ints

__all__ = ["FAR", "Sources", "int64"]

FAR = 1 << 60
"""Beyond every file: what claims to be larger is cut to it, for columns are int64."""


class Sources:
    """The sources below all extents, numbered in the order in which they turn up."""

    def __init__(self) -> None:
        self.found: list[ByteSource] = []
        self._numbers: dict[int, int] = {}
        self._known: dict[int, tuple[int, int, int]] = {}

    def locate(self, extents: Sequence[Extent]) -> tuple[Ints, Ints, Ints, Ints]:
        """Source number, start and length of each extent, and what its own source has from there.

        An extent fits where ``0 <= length <= room``.
        """
        known = self._known
        places = [known.get(id(e.source)) or self._resolve(e.source) for e in extents]
        number, shift, size = (int64([place[i] for place in places]) for i in range(3))
        offsets, lengths = int64([e.offset for e in extents]), int64([e.length for e in extents])
        room = np.where(offsets >= 0, size - offsets, -1)
        return number, shift + offsets, lengths, room

    def _resolve(self, source: ByteSource) -> tuple[int, int, int]:
        """Find the source below all windows, where this one starts in it, and its size."""
        below, shift = source, 0
        while type(below) is WindowSource:
            shift += below.offset
            below = below.below
        number = self._numbers.setdefault(id(below), len(self.found))
        if number == len(self.found):
            self.found.append(below)
        place = self._known[id(source)] = number, shift, min(source.size, FAR)
        return place


def int64(values: Sequence[int]) -> Ints:
    """Column of whole numbers, those beyond `FAR` cut to it."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([max(-FAR, min(FAR, value)) for value in values], np.int64)
