"""Edits as bytes of the file: which windows of it are written anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..edits import Edit
from ..errors import UnsupportedError
from ..sources import ByteSource, FileSource, WindowSource
from ..tensors import Array, TensorInfo, TensorTable

__all__ = ["Window", "aliases", "in_place", "locate", "windows_of"]

GAP = 1 << 12
"""Bytes between two edited elements that are rather written again than left out: scattered
elements would else cost a system call, and a checksum of its own, each."""
LONGEST = 1 << 20


class Window(NamedTuple):
    """Bytes of a file: what stands there and what is to stand there."""

    offset: int
    old: bytes
    new: bytes


def locate(source: ByteSource, offset: int) -> tuple[FileSource, int] | None:
    """File and offset in it of a byte of a source; None where it is not stored as it is read."""
    if isinstance(source, WindowSource):
        return locate(source.below, source.offset + offset)
    return (source, offset) if isinstance(source, FileSource) else None


def in_place(info: TensorInfo) -> FileSource | None:
    """File in which the tensor's elements can be overwritten where they are; None for no such."""
    if info.extent is None or info.encoding != "plain" or info.kind.bits < 8:
        return None
    found = locate(info.extent.source, info.extent.offset)
    return found[0] if found is not None and not found[0].temporary else None


def windows_of(info: TensorInfo, edit: Edit) -> Iterator[Window]:
    """Bytes that an edit writes, in file order, neighbours in one window.

    Raises
    ------
    UnsupportedError
        If the tensor's elements have no bytes of their own.
    """
    if info.extent is None or info.encoding != "plain" or info.kind.bits < 8:
        raise UnsupportedError(f"{info.name!r:.200} cannot be overwritten in place")
    found = locate(info.extent.source, info.extent.offset)
    if found is None:
        raise UnsupportedError(f"{info.name!r:.200} is compressed")
    file, start = found
    width = info.kind.numpy.itemsize
    raw = _raw(info, edit.after())
    if edit.indices is None and info.strides is None:
        yield from _whole(file, start, raw)
        return
    places = _places(info, edit.indices)
    if not np.all(places[1:] > places[:-1]):
        # views may show elements in any order, or one element twice: then the last one counts
        places, last = np.unique(places[::-1], return_index=True)
        raw = raw[::-1][last]
    breaks = np.flatnonzero(np.diff(places) * width > GAP) + 1
    for first, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), places.size], strict=True):
        yield from _scattered(file, start, places[first:stop], raw[first:stop], width)


def _raw(info: TensorInfo, values: Array) -> Array:
    """Elements as the file stores them, uint8, shape ``(n, width)``."""
    stored = np.ascontiguousarray(values.reshape(-1), info.kind.numpy)
    if info.big_endian:
        stored = stored.byteswap()
    return stored.view(np.uint8).reshape(stored.size, info.kind.numpy.itemsize)


def _places(info: TensorInfo, indices: Array | None) -> Array:
    """Places of the elements, counted in elements from the start of the extent."""
    flat = np.arange(info.size, dtype=np.int64) if indices is None else indices.astype(np.int64)
    if info.strides is None:
        return flat
    where = np.unravel_index(flat, info.shape or (1,))
    steps = info.strides or (0,)
    return sum((w * s for w, s in zip(where, steps, strict=True)), np.zeros_like(flat))


def _whole(file: FileSource, start: int, raw: Array) -> Iterator[Window]:
    data = raw.reshape(-1)
    for at in range(0, data.size, LONGEST):
        new = data[at : at + LONGEST].tobytes()
        yield Window(start + at, file.pread(start + at, len(new)), new)


def _scattered(
    file: FileSource, start: int, places: Array, raw: Array, width: int
) -> Iterator[Window]:
    """Windows over elements that lie close together, each at most `LONGEST` and a gap long."""
    first = 0
    while first < places.size:
        base = int(places[first])
        stop = int(np.searchsorted(places, base + LONGEST // width, "left"))
        length = (int(places[stop - 1]) - base + 1) * width
        old = file.pread(start + base * width, length)
        new = np.frombuffer(bytearray(old), np.uint8).reshape(-1, width)
        new[places[first:stop] - base] = raw[first:stop]
        yield Window(start + base * width, old, new.tobytes())
        first = stop


def aliases(table: TensorTable, info: TensorInfo) -> tuple[str, ...]:
    """Names of other tensors that share memory with this one.

    An edit to one of them may be an edit to the others: tied weights, views.
    """
    if info.extent is None or not info.storage:
        return ()
    start, stop = info.extent.offset, info.extent.offset + info.extent.length
    return tuple(
        other.name
        for other in table.infos.values()
        if other.storage == info.storage
        and other.name != info.name
        and other.extent is not None
        and other.extent.offset < stop
        and start < other.extent.offset + other.extent.length
    )
